"""The synthesizer that ships: a foundation and its edge control, on sets whose terms allow shipping weights.

    python recipes/house_synthesis.py --data ../shared/data --minutes 60

BTCV CT (two patients), MSD hippocampus (MR), ISIC 2018, BUSI (ten images), DSB 2018 and LIDC, train splits only. BTCV
and BUSI enter with no more than the smallest training sets of `benchmarks/diffboost.py`, so that its figures are of
subjects that nothing has seen; for other purposes give all of them to `delineate pretrain --edges`. Writes
src/delineate/house_synthesis.
"""

import argparse
import json
import random
import shutil
from pathlib import Path

from delineate.data.lidc import write_lidc
from delineate.jobs.pretrain import HELD_OUT, PretrainRequest, pretrain_foundation
from delineate.storage.files import write_json, write_text
from delineate.storage.shipped import HOUSE_SYNTHESIS, house_folder
from delineate.synthesis.synthesizer import Synthesizer

FEW = {"btcv_ct": 2, "busi": 10}
SETS = {  # what the masks show, the share of the drawings, and the terms
    "btcv_ct": ("", 0.3, "BTCV (Synapse syn3193805), usually quoted CC BY 4.0; two patients"),
    "hippocampus": ("", 0.1, "Medical Segmentation Decathlon, task 4, CC BY-SA 4.0"),
    "isic2018": ("=skin lesion@dermoscopy", 0.2, "ISIC 2018 task 1, CC0"),
    "busi": ("=breast lesion@US", 0.15, "Breast Ultrasound Images, quoted CC0 / CC BY; ten images"),
    "dsb2018_he": ("=nuclei@histopathology", 0.1, "Data Science Bowl 2018, H&E images, corrected, CC0"),
    "lidc": ("=lung nodule@CT", 0.15, "LIDC-IDRI, CC BY 3.0"),
}
PATIENTS_LIDC = {"train": 250, "val": 30, "test": 30}


def main() -> None:
    """Prepare, pre-train, ship."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--minutes", type=float, help="of wall time")
    parser.add_argument("--images", type=int, help="instead of minutes; repeats, to the bit on one machine")
    parser.add_argument("--work", type=Path, default=Path("runs/diffboost"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    base = args.work / "base"
    if not base.exists():
        named = [f"{gather(args.data, args.work, name)}{what}" for name, (what, _, _) in SETS.items()]
        budget = {"minutes": None if args.images else args.minutes or 60.0, "images": args.images}
        shares = [share for _, share, _ in SETS.values()]
        request = PretrainRequest(named, edges=True, shares=shares, seed=args.seed, **budget)
        pretrain_foundation(request, base, watch=Lines())
    ship(base)


def gather(data: Path, work: Path, name: str) -> Path:
    """A dataset's folder; of some a folder of links with few training subjects."""
    if name == "lidc":
        folder = work / "lidc"
        if not (folder / "splits.json").exists():
            write_lidc(data / "lidc4" / "lidc4.npz", data / "splits.json", folder, per_split=PATIENTS_LIDC)
        return folder
    if name not in FEW:
        return data / name
    folder, splits = work / "few" / name, json.loads((data / "splits.json").read_text())[name]
    train = sorted(splits["train"])
    random.Random(0).shuffle(train)
    folder.mkdir(parents=True, exist_ok=True)
    for part in (data / name).iterdir():
        if part.name != "splits.json" and not (folder / part.name).exists():
            (folder / part.name).symlink_to(part.resolve())
    write_json(folder / "splits.json", {**splits, "train": sorted(train[: FEW[name]])})
    return folder


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


def ship(base: Path) -> None:
    """Save in half precision as the package's own, with its card."""
    synthesizer = Synthesizer.load(base)
    for module in (*synthesizer.foundation.modules.values(), synthesizer.control):
        module.half()
    target = house_folder().with_name(HOUSE_SYNTHESIS)
    building = target.with_name(f".writing-{target.name}")
    shutil.rmtree(building, ignore_errors=True)
    synthesizer.save(building)
    shutil.copyfile(base / HELD_OUT, building / HELD_OUT)
    rows = [f"| {name} | {terms} |" for name, (_, _, terms) in SETS.items()]
    lines = [
        "# The house synthesizer",
        "",
        f"Made by `recipes/house_synthesis.py` on a CPU: {synthesizer.foundation.pretraining}.",
        "It is not Stable Diffusion and saw nothing but these sets. Weights are stored in half precision. What it",
        "draws is in `docs/lab/2026-11-21-diffboost.md`. **Not a medical device**: its scans are for training only.",
        "",
        "| trained on (train split only) | terms |",
        "|---|---|",
        *rows,
        "",
    ]
    write_text(building / "card.md", "\n".join(lines))
    shutil.rmtree(target, ignore_errors=True)
    building.rename(target)
    size = sum(p.stat().st_size for p in target.rglob("*") if p.is_file()) / 2**20
    print(f"{target}: {size:.1f} MiB")


if __name__ == "__main__":
    main()
