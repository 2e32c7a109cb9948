"""The house model: a small prompted encoder with its spread, on every set whose terms allow shipping weights.

    python recipes/house.py --data ../shared/data --minutes 60

Reads BTCV CT (13 abdominal organs), MSD hippocampus (MR), ISIC 2018 (skin lesion), BUSI (breast ultrasound), DSB 2018
H&E (nuclei), LIDC (lung nodule, what half of the raters drew), HC18 (fetal head), CHASE_DB1 (retinal vessels) and
phantoms in MR. Trains on the train split without images like a held-out one, on a reading drawn anew where there are
several; the val split judges and calibrates; writes src/delineate/house/ in half precision with its card. Fluorescence
nuclei are left out on purpose: `delineate demo` shows on them how a few images adapt the model.

Run again it goes on: an unfinished run from its checkpoints, else from the model that ships, which is replaced only by
one that is as good on val. `--pack FILE` learns from one file, on a machine without the sets. `--afresh` begins from
nothing: words, then half the resolution, then all of it, then draws as well. `--test` scores the test splits and writes
them into the card: once, at the end.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from delineate import open_dataset
from delineate.data.chase import write_chase
from delineate.data.dataset import Dataset
from delineate.data.lidc import write_lidc
from delineate.data.phantom import write_phantom_dataset
from delineate.data.slices import SliceBank, build_slices
from delineate.data.twins import without_twins
from delineate.evaluation.alone import EstimateAlone
from delineate.evaluation.evaluation import consensus_dice, evaluate, summarise
from delineate.evaluation.trivial import TRIVIAL
from delineate.jobs.calibrate import calibrate_folder, save_calibration
from delineate.jobs.opening import held_out_slices, read_bank
from delineate.jobs.recognising import recogniser_of
from delineate.jobs.watch import reporter
from delineate.model_folder import check_model, save_model
from delineate.pictures import training_curves
from delineate.scans.preparation import Habits
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.storage.shipped import house_folder
from delineate.systems import SYSTEMS
from delineate.systems.diffusion.spread import SpreadSystem, build
from delineate.training.engine import Engine
from delineate.training.judging import HeldOut, mean_score
from delineate.training.loop import Budget, Hyperparameters, Run, polite_stop, train_phases
from delineate.training.planning import APART_MM

SYSTEM, PRESET = "spread", "small"
SIZE = SYSTEMS[SYSTEM].presets[PRESET]
LICENCES = {
    "btcv_ct": "BTCV (Synapse syn3193805), usually quoted CC BY 4.0",
    "hippocampus": "Medical Segmentation Decathlon, task 4, CC BY-SA 4.0",
    "isic2018": "ISIC 2018 task 1, CC0",
    "busi": "Breast Ultrasound Images, quoted CC0 / CC BY",
    "dsb2018_he": "Data Science Bowl 2018, H&E images, corrected, CC0",
    "lidc": "LIDC-IDRI, CC BY 3.0",
    "hc18_us": "HC18, CC BY 4.0",
    "chase": "CHASE_DB1, CC BY 4.0",
    "phantom_mr": "made by delineate itself",
}
# How often each set is drawn: thirteen targets need more than one.
SHARES = {
    "btcv_ct": 0.52,
    "hippocampus": 0.07,
    "isic2018": 0.07,
    "busi": 0.09,
    "dsb2018_he": 0.05,
    "lidc": 0.08,
    "hc18_us": 0.05,
    "chase": 0.03,
    "phantom_mr": 0.04,
}
DRAWN = {
    "encoder": "the encoder's calibrated probabilities and noise: it has no generator.",
    "spread": "level sets that open where the image says that people differ, taught by the energy score.",
}
PATIENTS_LIDC = {"train": 383, "val": 54, "test": 30}
# Children whom no run ever learnt from are scored; drawn anew by another release, splits would not be these.
CHASE = {
    "train": ["01", "03", "04", "05", "06", "07", "08", "10", "11", "12", "14"],
    "val": ["13"],
    "test": ["02", "09"],
}
PHANTOMS = 12
FALSE_ALARMS = 0.2  # fewer would cost half of the targets: breast ultrasound without a lesion misleads it
NEAR = 0.003  # of val Dice: what differs by less is as good, and the later one has learnt more of how masks spread
GOING_ON = Hyperparameters(learning_rate=3e-4, average_halflife_images=6000)


def main() -> None:
    """Prepare, train, and ship what is best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--pack", type=Path, help="learn from what recipes/pack.py wrote; calibrate and test elsewhere")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training in this run; 0 ships what there is")
    parser.add_argument("--work", type=Path, default=Path("runs/house"), help="for checkpoints and rewritten sets")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", default="bfloat16", help="of activations; half again as fast on newer CPUs")
    parser.add_argument("--afresh", action="store_true", help="begin from nothing, not from the model that ships")
    parser.add_argument(
        "--kinds", action="store_true", help="only teach it to tell kinds of scans apart, with minutes 0"
    )
    parser.add_argument("--test", action="store_true", help="score the test splits too")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.pack is not None:
        from pack import read_pack  # which imports this file

        learn(args, *read_pack(args.pack))
        return
    datasets = gather(args.data, args.work)
    if args.minutes > 0:
        shares = [SHARES[dataset.name] for dataset in datasets]
        bank = read_bank(datasets, SIZE, Lines(), shares=shares, apart_mm=APART_MM, rating="random")
        held_out = held_out_slices(datasets, bank, Lines())
        print(f"{len(bank)} slices, {len(bank.vocabulary.concepts)} targets", flush=True)
        assert held_out is not None
        learn(args, bank, held_out)
    if not args.kinds:
        calibrate_folder(house_folder(), datasets[:-1], false_alarms=FALSE_ALARMS, kinds=False, on_step=Lines().update)
    tell_apart(datasets[:-1])
    if args.test:
        score(datasets)


def tell_apart(datasets: list[Dataset]) -> None:
    """Teach the house model which kinds of scan it knows; phantoms are none: a patient's MR would be taken for one."""
    segmenter = Segmenter.load(house_folder())
    assert segmenter.calibration is not None
    watch = Lines()
    watch.start(f"telling {len(datasets)} kinds of scan apart")
    bare = segmenter.calibrated(None)
    recogniser = recogniser_of(bare, datasets, on_step=watch.update)
    save_calibration(house_folder(), replace(segmenter.calibration, recogniser=recogniser))


def learn(args: argparse.Namespace, bank: SliceBank, held_out: HeldOut) -> None:
    """Train for the minutes given, and replace the house model if the result is better on val."""
    shipped, before = last_state(bank) if not args.afresh else (None, {})
    work, logs = args.work / ("afresh" if shipped is None else "going-on"), {}
    with polite_stop() as should_stop:
        how = {"on_step": reporter(logs, Lines()), "should_stop": should_stop, "held_out": held_out}
        run = Run(Budget(minutes=args.minutes), work, args.seed, engine=Engine(args.precision), **how)
        if shipped is None:
            row = SYSTEMS[SYSTEM]
            made = row.make(PRESET, SIZE, bank.vocabulary, seed=args.seed, modalities=bank.modalities)
            system = row._file().train(made.to(args.device), bank, run)
            score_before = 0.0
        else:
            system = shipped.to(args.device)
            score_before = mean_score(held_out.dice(system.labels, args.device))
            run = replace(run, seed=args.seed + 1 + len(before["runs"]))
            train_phases([replace(system.phases(bank)[-1], share=1.0, hyper=GOING_ON)], run)
    score_after = mean_score(held_out.dice(system.labels, args.device))
    print(f"val: {score_before:.4f} before, {score_after:.4f} after", flush=True)
    if score_after < score_before - NEAR:
        print("the model that ships stays", flush=True)
        return
    told = {stage: {k: log[-1][k] for k in ("images", "seconds")} for stage, log in logs.items() if log}
    runs = [*before.get("runs", []), {"stages": told, "val": round(score_after, 4), "seed": args.seed}]
    ship(system.to("cpu"), bank, {"runs": runs, "slices": len(bank), "datasets": sorted(SHARES)})
    training_curves(logs, Path("docs/lab/house-curves.png"))


def last_state(bank: SliceBank) -> tuple[SpreadSystem | None, dict[str, Any]]:
    """The model that ships, if it knows the same names; one without a spread gets one that has learnt nothing."""
    folder, config = check_model(None)
    same = config["system"] in ("encoder", SYSTEM) and config["system_config"]["size"] == SIZE
    segmenter = Segmenter.load(folder) if same else None
    if segmenter is None or segmenter.vocabulary.names != bank.vocabulary.names:
        return None, {}
    system: Any = segmenter.system
    if config["system"] != SYSTEM:
        before, system = system, build(system.config, system.foundation, system.vocabulary)
        system.control.load_state_dict(before.control.state_dict(), strict=False)
    return system, config["training"]


def ship(system: SpreadSystem, bank: SliceBank, training: dict[str, Any]) -> None:
    """Save in half precision as the package's own model."""
    for module in (*system.foundation.modules.values(), system.control):
        module.half()
    segmenter = Segmenter(system, tuple(dict.fromkeys(bank.modalities)), habits=Habits(apart_mm=bank.apart_mm))
    save_model(house_folder(), segmenter, SYSTEM, training=training, card=card(training))
    size = sum(p.stat().st_size for p in house_folder().rglob("*") if p.is_file()) / 2**20
    print(f"{house_folder()}: {size:.1f} MiB", flush=True)


def score(datasets: list[Dataset]) -> None:
    """Score the calibrated model on the test splits, at most 20 cases a set, beside baselines; into the card."""
    folder, config = check_model(None)
    segmenter, figures = Segmenter.load(folder), {}
    alone: Any = EstimateAlone(segmenter.system)  # type: ignore[arg-type]
    rivals = {"encoder alone": Segmenter(alone, segmenter.modalities, habits=segmenter.habits)}
    for dataset in datasets:
        bank = build_slices([dataset], "train", SIZE, apart_mm=APART_MM)
        with_them = rivals | {name: Segmenter(make(bank), bank.modalities) for name, make in TRIVIAL.items()}
        figures[dataset.name] = summarise(evaluate(segmenter, dataset, split="test", n=8, limit=20, fusions=("mean",)))
        beside = {name: consensus_dice(one, dataset, n=1, limit=20).values() for name, one in with_them.items()}
        targets = figures[dataset.name]["targets"]
        for target, own in targets.items():
            own["beside"] = {name: fmean(c[target] for c in cases if target in c) for name, cases in beside.items()}
        told = {"consensus": fmean(own["consensus_dice"] for own in targets.values())}
        told |= {name: fmean(own["beside"][name] for own in targets.values()) for name in beside}
        print(dataset.name, {name: round(value, 3) for name, value in told.items()}, flush=True)
    training = {**config["training"], "figures": figures}
    for module in (*segmenter.system.foundation.modules.values(), segmenter.system.control):  # type: ignore[attr-defined]
        module.half()
    save_model(folder, segmenter, config["system"], training=training, card=card(training, config["system"]))
    assert segmenter.calibration is not None
    save_calibration(folder, segmenter.calibration)


def gather(data: Path, work: Path) -> list[Dataset]:
    """All datasets, those in other formats rewritten under `work`, without train images like a held-out one."""
    lidc, phantom, chase = work / "lidc", work / "phantom_mr", work / "chase"
    if not (lidc / "splits.json").exists():
        write_lidc(data / "lidc4" / "lidc4.npz", data / "splits.json", lidc, per_split=PATIENTS_LIDC)
    if not (chase / "dataset.json").exists():
        write_chase(data / "chase_db1", chase)
    write_json(chase / "splits.json", CHASE)
    if not (phantom / "dataset.json").exists():
        write_phantom_dataset(phantom, cases=PHANTOMS, modality="MR", seed=1)
    opened = [
        open_dataset(data / "btcv_ct"),
        open_dataset(data / "hippocampus"),
        open_dataset(data / "isic2018", targets=["skin lesion"], modality="dermoscopy"),
        open_dataset(data / "busi", targets=["breast lesion"], modality="US"),
        open_dataset(data / "dsb2018_he", targets=["nuclei"], modality="histopathology"),
        open_dataset(lidc, targets=["lung nodule"], modality="CT"),
        open_dataset(data / "hc18_us", targets=["fetal head"], modality="US"),
        open_dataset(chase),
        open_dataset(phantom),
    ]
    return [without_twins(dataset) for dataset in opened]


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


def figures_of(target: dict[str, Any]) -> list[float]:
    """The columns of a row of the card's table."""
    beside = ("encoder alone", *TRIVIAL)
    own = [target[key] for key in ("single_dice", "consensus_dice", "oracle_dice")]
    return [*own, *(target["beside"][name] for name in beside)]


def card(training: dict[str, Any], system: str = SYSTEM) -> str:
    """What it is, what it was trained on under which terms, how good it is."""
    figures = training.get("figures", {})
    rows = [
        f"| {name} | {f['cases']} | {target} | " + " | ".join(f"{x:.3f}" for x in figures_of(t)) + " |"
        for name, f in figures.items()
        for target, t in f["targets"].items()
    ]
    table = [
        "Dice on held-out test subjects (at most 20 a set), 3-D per case where the set is 3-D; single = mean of 8",
        "proposals taken one by one, consensus = their mean, cut where Dice was best on val, oracle = the best of 8,",
        "which needs the truth.",
        "Beside them the encoder without proposals, and what looks at next to nothing: one mask for all slices, an",
        "atlas of the training labels by height and place, Otsu's threshold.",
        "",
        "| set | cases | target | single | consensus | oracle | encoder alone | mean mask | atlas prior | Otsu |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *rows,
    ]
    runs = [
        f"{number}. "
        + "; ".join(f"{s}: {v['images']} images, {v['seconds'] / 60:.0f} min" for s, v in one["stages"].items())
        + f"; val {one['val']:.3f}"
        for number, one in enumerate(training["runs"], start=1)
    ]
    return "\n".join(
        [
            "# The house model",
            "",
            f"A prompted encoder (`{system}`, preset {PRESET}) on a grid of {SIZE}x{SIZE}, trained by",
            f"`recipes/house.py` on {training['slices']} slices in these runs",
            "(val: mean Dice of all names on slices of the val subjects):",
            "",
            *runs,
            "",
            "Its text encoder was taught by captions alone and saw nothing but these sets. Proposals are drawn from",
            DRAWN[system],
            "Weights are stored in half precision.",
            "",
            "**Not a medical device.** It is small: a start for trying things, not for patients.",
            "It is calibrated on the val subjects of the sets below.",
            "It knows CT and MR only as in these sets.",
            "",
            "| trained on (train split only, without images like a held-out one) | terms |",
            "|---|---|",
            *(f"| {name} | {terms} |" for name, terms in LICENCES.items()),
            "",
            *(table if rows else ["Not yet scored on the test subjects."]),
            "",
        ]
    )


if __name__ == "__main__":
    main()
