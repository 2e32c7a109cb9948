"""The house model: one small ProGiDiff on every set whose terms allow shipping weights, and on the phantom.

    python recipes/house.py --data ../shared/data --minutes 60

Reads BTCV CT (13 abdominal organs), MSD hippocampus (MR), ISIC 2018 (skin lesion), BUSI (breast ultrasound), DSB 2018
H&E (nuclei), LIDC (lung nodule, what half of the raters drew) and phantoms in MR; trains on the train split; scores
the test splits; writes src/delineate/house/ in half precision with its card; calibrates it on the val splits. Run
again, it goes on.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

from delineate import open_dataset
from delineate.data.dataset import Dataset
from delineate.data.lidc import write_lidc
from delineate.data.phantom import write_phantom_dataset
from delineate.evaluation.evaluation import evaluate, summarise
from delineate.jobs.calibrate import calibrate_folder
from delineate.jobs.opening import read_bank
from delineate.jobs.train import TrainRequest, train_on
from delineate.model_folder import save_model
from delineate.segmenter import Segmenter
from delineate.storage.shipped import house_folder
from delineate.systems import PRESETS
from delineate.systems.diffusion.progidiff import ProGiDiffConfig

LICENCES = {
    "btcv_ct": "BTCV (Synapse syn3193805), usually quoted CC BY 4.0",
    "hippocampus": "Medical Segmentation Decathlon, task 4, CC BY-SA 4.0",
    "isic2018": "ISIC 2018 task 1, CC0",
    "busi": "Breast Ultrasound Images, quoted CC0 / CC BY",
    "dsb2018_he": "Data Science Bowl 2018, H&E images, corrected, CC0",
    "lidc": "LIDC-IDRI, CC BY 3.0",
    "phantom_mr": "made by delineate itself",
}
# How often each set is drawn: thirteen targets need more than one.
SHARES = {
    "btcv_ct": 0.55,
    "hippocampus": 0.08,
    "isic2018": 0.08,
    "busi": 0.1,
    "dsb2018_he": 0.06,
    "lidc": 0.08,
    "phantom_mr": 0.05,
}
PATIENTS_LIDC = {"train": 250, "val": 30, "test": 30}
PHANTOMS = 12
FALSE_ALARMS = 0.2  # fewer would cost half of the targets: breast ultrasound without a lesion misleads it


def main() -> None:
    """Prepare, train, score, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--work", type=Path, default=Path("runs/house"))
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    datasets = gather(args.data, args.work)
    model = args.work / "model"
    if not (model / "manifest.json").exists():
        request = TrainRequest(
            "progidiff", [d.root for d in datasets], args.preset, minutes=args.minutes, seed=args.seed
        )
        about = {"preset": args.preset, "minutes": args.minutes, "images": None}
        about |= {"seed": args.seed, "target": [], "modality": None}
        bank = read_bank(datasets, PRESETS[args.preset], Lines(), shares=[SHARES[d.name] for d in datasets])
        print(f"{len(bank)} slices, {len(bank.vocabulary.concepts)} targets", flush=True)
        work = args.work / "model-training"
        work.mkdir(parents=True, exist_ok=True)
        train_on(request, bank, model, work, about, [d.name for d in datasets], watch=Lines())
    segmenter = Segmenter.load(model)
    segmenter.system.config = replace(segmenter.system.config, steps=ProGiDiffConfig().steps)
    figures = {}
    for dataset in datasets:
        split = "test"
        figures[dataset.name] = summarise(evaluate(segmenter, dataset, split=split, n=8, limit=20, fusions=("mean",)))
        print(dataset.name, round(figures[dataset.name]["mean"].get("consensus_dice", float("nan")), 3), flush=True)
    ship(segmenter, model, figures)
    real = [dataset for dataset in datasets if dataset.name != "phantom_mr"]
    calibrate_folder(house_folder(), real, false_alarms=FALSE_ALARMS, on_step=Lines().update)


def gather(data: Path, work: Path) -> list[Dataset]:
    """All datasets, those in other formats rewritten under `work`."""
    lidc, phantom = work / "lidc", work / "phantom_mr"
    if not (lidc / "splits.json").exists():
        write_lidc(data / "lidc4" / "lidc4.npz", data / "splits.json", lidc, per_split=PATIENTS_LIDC)
    if not (phantom / "dataset.json").exists():
        write_phantom_dataset(phantom, cases=PHANTOMS, modality="MR", seed=1)
    return [
        open_dataset(data / "btcv_ct"),
        open_dataset(data / "hippocampus"),
        open_dataset(data / "isic2018", targets=["skin lesion"], modality="dermoscopy"),
        open_dataset(data / "busi", targets=["breast lesion"], modality="US"),
        open_dataset(data / "dsb2018_he", targets=["nuclei"], modality="histopathology"),
        open_dataset(lidc, targets=["lung nodule"], modality="CT"),
        open_dataset(phantom),
    ]


class Lines:
    """Progress as plain lines, for a log file."""

    last = -1.0

    def start(self, what: str, done: float = 0.0) -> None:
        """A new stage."""
        print(what, flush=True)
        self.last = -1.0

    def update(self, done: float, note: str = "") -> None:
        """A line every 5 %."""
        if done - self.last >= 0.05:
            self.last = done
            print(f"  {done:4.0%} {note}", flush=True)

    def say(self, line: str) -> None:
        """What a person should know."""
        print(line, flush=True)


def ship(segmenter: Segmenter, model: Path, figures: dict) -> None:
    """Save in half precision as the package's own model, with its card."""
    config = json.loads((model / "config.json").read_text())
    for module in (*segmenter.system.foundation.modules.values(), segmenter.system.control):
        module.half()
    target = house_folder()
    training = {**config["training"], "figures": figures}
    save_model(target, segmenter, "progidiff", training=training, card=card(config["training"], segmenter, figures))
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file()) / 2**20
    curves = model.with_name("model-training") / "curves.png"
    shutil.copyfile(curves, Path("docs/lab/house-curves.png"))
    print(f"{target}: {size:.1f} MiB")


def card(training: dict, segmenter: Segmenter, figures: dict) -> str:
    """What it is, what it was trained on under which terms, how good it is."""
    keys = ("single_dice", "consensus_dice", "oracle_dice")
    rows = [
        f"| {name} | {f['cases']} | {target} | " + " | ".join(f"{t[k]:.3f}" for k in keys) + " |"
        for name, f in figures.items()
        for target, t in f["targets"].items()
    ]
    stages = "; ".join(f"{s}: {v['images']} images, {v['seconds'] / 60:.0f} min" for s, v in training["stages"].items())
    return "\n".join(
        [
            "# The house model",
            "",
            "ProGiDiff, preset "
            + training["preset"]
            + f", trained by `recipes/house.py` on {training['slices']} slices",
            f"({stages}), on a CPU. Foundation: {segmenter.system.foundation.pretraining};",
            "it is not Stable Diffusion and saw nothing but these sets. Weights are stored in half precision.",
            "",
            "**Not a medical device.** It is small and briefly trained: a start for trying things, not for patients.",
            "It is calibrated on the val subjects of the sets below; the figures here are of the test subjects.",
            "It knows CT and MR only as in these sets.",
            "",
            "| trained on (train split only) | terms |",
            "|---|---|",
            *(f"| {name} | {terms} |" for name, terms in LICENCES.items()),
            "",
            "Dice on held-out test subjects (at most 20 a set), 3-D per case where the set is 3-D; single = mean of 8",
            "proposals taken one by one, consensus = their mean ≥ 0.5, oracle = the best of 8, which needs the truth.",
            "",
            "| set | cases | target | single | consensus | oracle |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
