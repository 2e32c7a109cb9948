"""One model for findings of seven kinds: the staged diffusion beside its own condition network, floor, U-Net, MedNeXt.

    python benchmarks/lesions.py --data ../shared/data --minutes 10 --seeds 0 1 2 --work runs/lesions

Polyps (endoscopy), skin lesions (dermoscopy), breast lesions (ultrasound, without training images like a held-out one),
lung nodules (CT, all raters), fetal heads (ultrasound), nuclei (H&E and fluorescence). Every system learns all sets at
once, for the same processor time on one thread. Held-out cases: Dice of the consensus of 16 and GED² of them against
the mask, or against all raters; a set counts once, a subject once within it.

Rows beside the systems: UniSegDiff's condition network alone, its *floor* (its estimate against noise, calibrated on
val), and UniSegDiff taught as its paper has it. Means over seeds; differences from UniSegDiff are paired by subject,
with 95 % intervals by Student's t over the subjects of a set, and for the mean of sets from their standard errors.

Writes benchmarks/results/lesions.json (lesions_val.json for val). Run again, it goes on where it was.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import plural
import torch
from steady import SteadyClock

from delineate import open_dataset
from delineate.data.dataset import Dataset
from delineate.data.lidc import write_lidc
from delineate.data.twins import without_twins
from delineate.evaluation.alone import EstimateAlone, Floor
from delineate.evaluation.protocols.lines import answers
from delineate.jobs.calibrate import calibrate
from delineate.jobs.opening import read_bank
from delineate.jobs.train import TrainRequest, train_on
from delineate.jobs.watch import Nobody
from delineate.metrics.overlap import dice, ged_squared, mean_interval
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.systems import SYSTEMS
from delineate.training import loop

RESULTS = Path(__file__).parent / "results"
SETS = {
    "kvasir_seg": ("polyp", "endoscopy"),
    "isic2018": ("skin lesion", "dermoscopy"),
    "busi": ("breast lesion", "US"),
    "lidc4": ("lung nodule", "CT"),
    "hc18_us": ("fetal head", "US"),
    "dsb2018_he": ("nuclei", "histopathology"),
    "dsb2018_fl": ("nuclei", "fluorescence"),
}
TRIED = ("unisegdiff", "unisegdiff-paper", "spread", "unet", "mednext")
IDLE = {"condition network alone": "unisegdiff", "its floor": "unisegdiff"}
PROPOSALS = 16


def main() -> None:
    """Train, score, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/lesions"), help="for models and figures")
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time, for each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", choices=TRIED, default=list(TRIED), help="these systems alone")
    parser.add_argument("--split", default="test", choices=("val", "test"), help="val while choosing, test at the end")
    parser.add_argument("--limit", type=int, help="score so many cases of each set only")
    parser.add_argument("--workers", type=int, default=1, help="how many trainings or scorings at once")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)  # (train or score, row, seed), in its own process
    args = parser.parse_args()
    torch.set_num_threads(1)
    datasets = gather(args.data, args.work)
    if args.job:
        kind, name, seed = args.job
        return (train_one if kind == "train" else score_one)(args, datasets, name, int(seed))
    rows = [*args.only, *(name for name, system in IDLE.items() if system in args.only)]
    plural.queue(args, "train", [(system, seed) for seed in args.seeds for system in args.only])
    plural.queue(args, "score", [(name, seed) for seed in args.seeds for name in rows])
    result = report(args, rows)
    write_json(RESULTS / ("lesions.json" if args.split == "test" else "lesions_val.json"), result)
    print_table(result)


def gather(data: Path, work: Path) -> dict[str, Dataset]:
    """The sets, LIDC written out with its raters."""
    lidc = work / "lidc4"
    if not lidc.exists():
        write_lidc(data / "lidc4" / "lidc4.npz", data / "splits.json", lidc)
    roots = {name: lidc if name == "lidc4" else data / name for name in SETS}
    opened = {n: open_dataset(roots[n], targets=[target], modality=kind) for n, (target, kind) in SETS.items()}
    return {name: without_twins(dataset) for name, dataset in opened.items()}


def train_one(args: argparse.Namespace, datasets: dict[str, Dataset], system: str, seed: int) -> None:
    """One training, to its model folder."""
    loop.time = SteadyClock(args.work / "clock.json")  # type: ignore[assignment]
    output, sets = plural.model_path(args, system, seed), list(datasets.values())
    work = Path(f"{output}-training")
    work.mkdir(parents=True, exist_ok=True)
    request = TrainRequest(system, [d.root for d in sets], minutes=args.minutes, seed=seed, precision="bfloat16")
    about = {"system": system, "preset": "tiny", "minutes": args.minutes, "seed": seed, "raters": "random"}
    bank = read_bank(sets, SYSTEMS["unet"].presets["tiny"], Nobody(), rating="random")
    train_on(request, bank, output, work, about, [d.name for d in sets])


def score_one(args: argparse.Namespace, datasets: dict[str, Dataset], name: str, seed: int) -> None:
    """Figures of every case."""
    segmenter = Segmenter.load(plural.model_path(args, IDLE.get(name, name), seed)).calibrated(None)
    if name in IDLE:
        kind: Any = EstimateAlone if name == "condition network alone" else Floor
        segmenter = Segmenter(kind(segmenter.system), segmenter.modalities, habits=segmenter.habits)
    rows = []
    for one, dataset in datasets.items():
        draws = getattr(segmenter.system, "draws_estimate", False)
        for known, scored in plural.halves(dataset, args.split) if draws else [(None, dataset)]:
            ready = segmenter if known is None else segmenter.calibrated(calibrate(segmenter, [known], n=PROPOSALS))
            cases = scored.split(args.split)[: args.limit]
            for answered in answers(ready, scored, cases, list(scored.labels), PROPOSALS, seed):
                figures = {
                    "dice": dice(answered.answer.consensus(), answered.truth),
                    "ged": ged_squared(answered.masks(), answered.readings),
                    "best": max(dice(mask, answered.truth) for mask in answered.masks()),
                }
                rows.append({"set": one, "subject": answered.case.subject, **figures})
    write_json(plural.rows_path(args, name, seed), {"rows": rows})


def report(args: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Means by set, and how far each row is from UniSegDiff."""
    kept = {
        name: [row for seed in args.seeds for row in json.loads(plural.rows_path(args, name, seed).read_text())["rows"]]
        for name in names
    }
    values = {name: {key: by_set(rows, key) for key in ("dice", "ged", "best")} for name, rows in kept.items()}
    told: dict[str, Any] = {}
    for name, own in values.items():
        sets = {key: {one: fmean(by.values()) for one, by in of.items()} for key, of in own.items()}
        told[name] = {"sets": sets, "mean": {key: fmean(of.values()) for key, of in sets.items()}}
        if name != "unisegdiff" and "unisegdiff" in values:
            ours = values["unisegdiff"]
            told[name]["unisegdiff_minus"] = {key: apart(ours[key], own[key]) for key in own}
    command = " ".join(["python", *sys.argv])
    told = {"command": command, "split": args.split, "minutes_each": args.minutes, "seeds": args.seeds, "rows": told}
    return told | {"subjects": {one: len(by) for one, by in next(iter(values.values()))["dice"].items()}}


def by_set(rows: Sequence[dict[str, Any]], key: str) -> dict[str, dict[str, float]]:
    """Of every set, a subject's mean over cases and seeds."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        found.setdefault(row["set"], {}).setdefault(row["subject"], []).append(row[key])
    return {one: {subject: fmean(v) for subject, v in by.items()} for one, by in found.items()}


def apart(ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Ours minus theirs, by set and for the mean of sets."""
    out: dict[str, Any] = {}
    errors = []
    for one, own in ours.items():
        differences = np.array([own[s] - theirs[one][s] for s in own if s in theirs[one]])
        out[one] = dict(zip(("difference", "low", "high"), mean_interval(differences), strict=True))
        errors.append(float(differences.std(ddof=1)) / len(differences) ** 0.5)
    middle = fmean(out[one]["difference"] for one in ours)
    half = 1.96 * float(np.sqrt(np.square(errors).sum())) / len(errors)
    return {**out, "mean": {"difference": middle, "low": middle - half, "high": middle + half}}


def print_table(result: dict[str, Any]) -> None:
    """What a reader wants to see first."""
    from rich.console import Console
    from rich.table import Table

    table = Table("Dice", *SETS, "mean", "best of N", "GED²", "UniSegDiff minus it", box=None, pad_edge=False)
    for name, entry in result["rows"].items():
        minus = entry.get("unisegdiff_minus", {}).get("dice", {}).get("mean")
        said = "" if minus is None else f"{minus['difference']:+.3f} [{minus['low']:+.3f}, {minus['high']:+.3f}]"
        cells = [f"{entry['sets']['dice'][one]:.3f}" for one in SETS]
        table.add_row(name, *cells, *(f"{entry['mean'][key]:.3f}" for key in ("dice", "best", "ged")), said)
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
