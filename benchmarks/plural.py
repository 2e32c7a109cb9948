"""Masks as plural as raters: generators on nodules that four radiologists outlined, beside the floor and idle parts.

    python benchmarks/plural.py --data ../shared/data --minutes 10 --seeds 0 1 2 --work runs/plural

LIDC nodules, 128², all four slots (an empty one is a rater who saw nothing). Every system learns a reading drawn
anew each time, or all readings where its score takes them, for the same processor time on one thread, by what it is
worth (`steady.py`). Held-out patients: GED² in V form at N = 4, 16 and 64, and at 16 on the middle 64² of a crop;
matched IoU at 16 in both conventions (a pair of empty masks counts 1, or readings that are empty are left out); Dice
of agreement, ECE of the mean of 16 against all raters, CRPS of area, and milliseconds for 16 masks of a crop, the look
included, on two threads.

Rows beside the systems: *floor* (the encoder's calibrated estimate against noise, no generator), of the encoder trained
by itself for all the time and of each generator's own encoder; every generator with a part switched off. Calibrated is
on val; where val itself is scored (`--split val`), on one half of its patients for the other. Figures are means over
patients, of the means over seeds, with 95 % intervals by Student's t; differences are paired by patient.

With `--model FOLDER` nothing is trained: that model, its network switched off, and its own floor.

Writes benchmarks/results/plural.json (plural_val.json for val; plural_model_*.json of a model) after every training.
Runs whose figures are written there are not made again, wherever their models went: stop and go on at will.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from steady import SteadyClock

from delineate import open_dataset
from delineate.calibration.calibrators import histogram, reliability
from delineate.data.dataset import Dataset
from delineate.data.lidc import write_lidc
from delineate.evaluation.alone import Floor
from delineate.evaluation.protocols.lines import answers
from delineate.jobs.calibrate import calibrate
from delineate.jobs.opening import read_bank
from delineate.jobs.train import TrainRequest, train_on
from delineate.jobs.watch import Nobody
from delineate.metrics.overlap import ged_squared, mean_interval, paired_interval
from delineate.metrics.raters import crps_ensemble, dice_soft
from delineate.model_folder import is_model
from delineate.prompts.prompt import Prompt
from delineate.scans.grid import view_of
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.systems import SYSTEMS
from delineate.training import loop

RESULTS = Path(__file__).parent / "results"
SIZES = (4, 16, 64)
OF = 16  # of the figures that need one N
FEWER = {"ensemble": 5, "mcdropout": 16}  # than the most of `SIZES`
SYSTEMS["unisegdiff-paper"] = replace(SYSTEMS["unisegdiff"], options={"score": "paper"})  # type: ignore[index]
TRIED = (
    "encoder",
    "spread",
    "progidiff",
    "unisegdiff",
    "unisegdiff-paper",
    "flowssn",
    "pulaski",
    "probunet",
    "ensemble",
    "mcdropout",
)


def without_unet(segmenter: Any) -> Any:
    """ProGiDiff whose foundation adds nothing."""
    for p in segmenter.system.control.out.parameters():
        p.data.zero_()
    return segmenter


def without_spread(segmenter: Any) -> Any:
    """Spread that looks nothing up: one temperature and one gain for all pixels, as before it learnt."""
    for p in segmenter.system.control.spread.out.parameters():
        p.data.zero_()
    return segmenter


def without_noise(segmenter: Any) -> Any:
    """A generator whose noise is at its mean: all draws are one."""
    own = sys.modules[type(segmenter.system).__module__]
    fields = own.smooth_fields
    own.smooth_fields = lambda *asked: torch.zeros_like(fields(*asked))  # a scoring has a process of its own
    return segmenter


def of_estimate(segmenter: Any) -> Any:
    """The floor of a system's own encoder."""
    return Segmenter(Floor(segmenter.system), segmenter.modalities, habits=segmenter.habits)


IDLE: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "spread: nothing looked up": ("spread", without_spread),
    "spread: noise at its mean": ("spread", without_noise),
    "spread: its encoder's floor": ("spread", of_estimate),
    "progidiff: U-Net off": ("progidiff", without_unet),
    "progidiff: noise at its mean": ("progidiff", without_noise),
    "progidiff: its encoder's floor": ("progidiff", of_estimate),
    "unisegdiff: its condition network's floor": ("unisegdiff", of_estimate),
}


def main() -> None:
    """Train, score, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/plural"), help="for models and figures")
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time, for each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", choices=TRIED, default=list(TRIED), help="these systems alone")
    parser.add_argument(
        "--split", nargs="+", default=["test"], choices=("val", "test"), help="val while choosing, test at the end"
    )
    parser.add_argument("--workers", type=int, default=1, help="how many trainings or scorings at once")
    parser.add_argument(
        "--model", type=Path, help="score this spread model, its network off and its floor; no training"
    )
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)  # (train or score, row, seed), in its own process
    args = parser.parse_args()
    folder = args.work / "lidc4"
    if not folder.exists():
        write_lidc(args.data / "lidc4" / "lidc4.npz", args.data / "splits.json", folder, empty_slots=True)
    dataset = open_dataset(folder)
    torch.set_num_threads(1)
    if args.job:
        kind, name, seed = args.job
        return (train_one if kind == "train" else score_one)(args, dataset, name, int(seed))
    if args.model:
        for split in args.split:
            write_json(RESULTS / f"plural_model_{split}.json", of_model(args.model, dataset, split))
        return
    told = {split: read_told(split) for split in args.split}
    jobs = [(system, seed) for seed in args.seeds for system in args.only]
    jobs = [job for job in jobs if any(key not in told[split]["runs"] for split in told for key in keys_of(*job))]
    with ThreadPoolExecutor(args.workers) as pool:
        for runs in pool.map(lambda job: run_one(args, *job), jobs):
            for split, own in told.items():
                own["runs"] |= runs[split]
                own |= {"command": " ".join(["python", *sys.argv]), "split": split, "minutes_each": args.minutes}
                own["rows"] = report(own["runs"])
                write_json(path_of(split), own)


def path_of(split: str) -> Path:
    """Where the figures of a split are kept."""
    return RESULTS / ("plural.json" if split == "test" else f"plural_{split}.json")


def read_told(split: str) -> dict[str, Any]:
    """The figures of a split, so far."""
    return json.loads(path_of(split).read_text()) if path_of(split).exists() else {"runs": {}}


def rows_of(system: str) -> list[str]:
    """The rows that one training gives: itself, and what of it is switched off."""
    return [system, *(name for name, (whose, _) in IDLE.items() if whose == system)]


def keys_of(system: str, seed: int) -> list[str]:
    """Of the runs that one training gives."""
    return [f"{row}/{seed}" for row in rows_of(system)]


def run_one(args: argparse.Namespace, system: str, seed: int) -> dict[str, dict[str, Any]]:
    """A training, if it was not to its end before, and by split the figures of its rows; each in its own process."""
    if not is_model(model_path(args, system, seed)):
        in_process("train", system, seed)
    runs: dict[str, dict[str, Any]] = {split: {} for split in args.split}
    for name in rows_of(system):
        if not all(rows_path(args, name, seed, split).exists() for split in args.split):
            in_process("score", name, seed)
        for split, own in runs.items():
            own[f"{name}/{seed}"] = json.loads(rows_path(args, name, seed, split).read_text())
    return runs


def in_process(kind: str, name: str, seed: int) -> None:
    """A training or a scoring, on one thread."""
    print(f"{time.strftime('%H:%M')} {kind}: {name}, seed {seed}", flush=True)
    command = [sys.executable, *sys.argv, "--job", kind, name, str(seed)]
    if subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode:
        sys.exit(f"{kind} {name}, seed {seed} failed; run again to go on")


def model_path(args: argparse.Namespace, system: str, seed: int) -> Path:
    """Where a model is."""
    return args.work / f"seed{seed}" / system


def rows_path(args: argparse.Namespace, name: str, seed: int, split: str) -> Path:
    """Where the scores of a row are."""
    return args.work / f"seed{seed}" / f"{name.replace(': ', '-').replace(' ', '-')}-{split}.json"


def train_one(args: argparse.Namespace, dataset: Dataset, system: str, seed: int) -> None:
    """One training, to its model folder."""
    clock = loop.time = SteadyClock(args.work / "clock.json")  # type: ignore[assignment]
    output = model_path(args, system, seed)
    work = Path(f"{output}-training")
    work.mkdir(parents=True, exist_ok=True)
    request = TrainRequest(
        system, [dataset.root], minutes=args.minutes, seed=seed, raters="random", precision="bfloat16"
    )
    about = {"system": system, "preset": "tiny", "minutes": args.minutes, "seed": seed, "raters": "random"}
    bank = read_bank([dataset], SYSTEMS["unet"].presets["tiny"], Nobody(), rating="random")
    train_on(request, bank, output, work, about, [dataset.name])
    print(f"{system}, seed {seed}: seconds were worth {clock.about()}", flush=True)


def of_model(folder: Path, dataset: Dataset, split: str) -> dict[str, Any]:
    """Figures of a model that is there, with differences from its network switched off and from its own floor."""
    values: dict[str, dict[str, dict[str, float]]] = {}
    for name, change in (("model", lambda one: one), ("nothing looked up", without_spread), ("floor", of_estimate)):
        kept = scored(change(Segmenter.load(folder).calibrated(None)), dataset, split, max(SIZES), 0)
        keys = [key for key in kept["rows"][0] if key not in ("case", "subject", "pooled")]
        values[name] = {key: per_subject(kept, key) for key in keys}
        print(
            name, {key: round(float(np.mean(list(own.values()))), 4) for key, own in values[name].items()}, flush=True
        )
    means = {name: {key: float(np.mean(list(v.values()))) for key, v in own.items()} for name, own in values.items()}
    beside = {
        other: {key: minus(values["model"][key], values[other][key]) for key in values["model"]}
        for other in ("nothing looked up", "floor")
    }
    return {"command": " ".join(["python", *sys.argv]), "split": split, "rows": means, "model minus": beside}


def score_one(args: argparse.Namespace, dataset: Dataset, name: str, seed: int) -> None:
    """Figures of every case, from one drawing of the most proposals."""
    system, change = IDLE.get(name, (name, lambda segmenter: segmenter))
    segmenter = change(Segmenter.load(model_path(args, system, seed)).calibrated(None))
    for split in args.split:
        kept = scored(segmenter, dataset, split, FEWER.get(system, max(SIZES)), seed)
        write_json(rows_path(args, name, seed, split), compact(kept))


def compact(kept: dict[str, Any]) -> dict[str, Any]:
    """Means over a patient's cases; and how often a probability was drawn, over all cases."""
    keys = [key for key in kept["rows"][0] if key not in ("case", "subject", "pooled")]
    figures = {key: {s: round(v, 5) for s, v in per_subject(kept, key).items()} for key in keys}
    counts: dict[tuple[float, float], float] = {}
    for row in kept["rows"]:
        for p, drawn, count in row["pooled"]:
            counts[round(p, 4), drawn] = counts.get((round(p, 4), drawn), 0) + count
    pooled = [[p, drawn, round(count, 2)] for (p, drawn), count in sorted(counts.items())]
    return {"figures": figures, "pooled": pooled, "ms": round(kept["ms"], 2), "drawn": kept["drawn"]}


def scored(segmenter: Any, dataset: Dataset, split: str, n: int, seed: int) -> dict[str, Any]:
    """Rows of a segmenter that is not calibrated, its milliseconds, and how many proposals were drawn."""
    draws_estimate = getattr(segmenter.system, "draws_estimate", False)
    rows = []
    for known, half in halves(dataset, split) if draws_estimate else [(None, dataset)]:
        ready = segmenter.calibrated(calibrate(segmenter, [known], n=OF)) if known is not None else segmenter
        rows += [line(one, n) for one in answers(ready, half, half.split(split), list(half.labels), n, seed)]
    return {"rows": rows, "ms": milliseconds(segmenter, dataset), "drawn": n}


def halves(dataset: Dataset, split: str) -> list[tuple[Dataset, Dataset]]:
    """What to calibrate on, and what to score then: val for test; each half of val for the other."""
    if split == "test":
        return [(dataset, dataset)]
    val = dataset.splits["val"]
    one, other = (replace(dataset, splits={**dataset.splits, "val": val[i::2]}) for i in range(2))
    return [(one, other), (other, one)]


def line(answered: Any, n: int) -> dict[str, Any]:
    """The figures of a case."""
    masks, readings = answered.masks(), answered.readings
    marked = masks.any(axis=0) | readings.any(axis=0)
    ours, theirs = masks[:, marked], readings[:, marked]
    middle, of_theirs = (found[..., 32:96, 32:96].reshape(len(found), -1) for found in (masks[:OF], readings))
    figures: dict[str, Any] = {f"ged_{k}": ged_squared(ours[:k], theirs) for k in SIZES if k <= n}
    figures[f"ged_{OF}_centre"] = ged_squared(middle, of_theirs)
    some = ours[:OF]
    figures["matched"], figures["matched_not_empty"] = matched(some, theirs)
    mean = masks[:OF].mean(axis=0)
    figures["agreement"] = dice_soft(mean[None], readings)
    figures["crps"] = float(np.mean([crps_ensemble(some.sum(axis=1), float(r.sum())) for r in theirs]))
    figures["empty"] = float((~some.any(axis=1)).mean())
    parts = [histogram(mean[marked], drawn[marked]) for drawn in readings]
    p, y, w = (np.concatenate([part[i] for part in parts]) for i in range(3))
    pooled = [[float(a), float(b), float(c)] for a, b, c in zip(p, y, w, strict=True)]
    return {"case": answered.case.name, "subject": answered.case.subject, **figures, "pooled": pooled}


def matched(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float | None]:
    """The mean IoU of pairs where draws are dealt out evenly to readings; and that of readings that are not empty."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    both = a @ b.T
    either = a.sum(1)[:, None] + b.sum(1)[None] - both
    iou = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    times = int(np.lcm(len(ours), len(theirs)))
    rows, columns = np.arange(len(ours)).repeat(times // len(ours)), np.arange(len(theirs)).repeat(times // len(theirs))
    large = iou[np.ix_(rows, columns)]
    chosen = linear_sum_assignment(-large)
    values, full = large[chosen], theirs.any(axis=1)[columns[chosen[1]]]
    return float(values.mean()), float(values[full].mean()) if full.any() else None


def milliseconds(segmenter: Any, dataset: Dataset, rounds: int = 7) -> float:
    """The median time of a look at one crop and `OF` proposals on the grid, on two threads."""
    torch.set_num_threads(2)
    seen = segmenter.look(dataset.read(dataset.split("val")[0])[0])
    view = view_of(seen.prepared, segmenter.system.size, segmenter.habits.apart_mm)
    asked = segmenter._asked(seen, Prompt(next(iter(dataset.labels))))
    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        segmenter.system.propose(segmenter.system.see(view), asked, OF, 0)
        spent.append(time.perf_counter() - start)
    torch.set_num_threads(1)
    return 1000 * float(np.median(spent))


def report(runs: dict[str, Any]) -> dict[str, Any]:
    """Means over patients, and differences from the floor of the encoder that had all the time, and from own floors."""
    of: dict[str, dict[str, Any]] = {}  # row -> seed -> its figures
    for key, run in runs.items():
        name, seed = key.rsplit("/", 1)
        of.setdefault(name, {})[seed] = run
    told: dict[str, Any] = {}
    for name, own in of.items():
        figures = {}
        for key in own[next(iter(own))]["figures"]:
            mean, low, high = mean_interval(np.array(list(over_seeds(own, own, key).values())))
            figures[key] = {"mean": short(mean), "low": short(low), "high": short(high)}
        p, y, w = (np.array([entry[i] for run in own.values() for entry in run["pooled"]]) for i in range(3))
        figures["ece"] = short(reliability(p, y > 0, weight=w).ece)
        told[name] = {"seeds": sorted(own), "figures": figures, "drawn": run_of(own)["drawn"]}
        told[name] |= {"ms": min(run["ms"] for run in own.values()), "patients": len(run_of(own)["figures"]["ged_4"])}
        beside = ["encoder", *(row for row in rows_of(name.split(":")[0]) if row != name)]
        told[name]["minus"] = {
            other: {key: difference(own, of[other], key) for key in figures if key in run_of(of[other])["figures"]}
            for other in beside
            if other in of and other != name and own.keys() & of[other].keys()
        }
    return told


def run_of(own: dict[str, Any]) -> dict[str, Any]:
    """Any one of a row's runs."""
    return next(iter(own.values()))


def over_seeds(own: dict[str, Any], seeds: Collection[str], key: str) -> dict[str, float]:
    """A patient's mean over these seeds."""
    found: dict[str, list[float]] = {}
    for seed in seeds:
        for subject, value in own[seed]["figures"][key].items():
            found.setdefault(subject, []).append(value)
    return {subject: float(np.mean(found[subject])) for subject in sorted(found)}


def per_subject(kept: dict[str, Any], key: str) -> dict[str, float]:
    """A patient's mean over cases."""
    found: dict[str, list[float]] = {}
    for row in kept["rows"]:
        if row.get(key) is not None:
            found.setdefault(row["subject"], []).append(row[key])
    return {subject: float(np.mean(found[subject])) for subject in sorted(found)}


def difference(one: dict[str, Any], other: dict[str, Any], key: str) -> dict[str, float | None]:
    """Paired by patient, of the seeds that both rows have."""
    both = sorted(one.keys() & other.keys())
    return minus(over_seeds(one, both, key), over_seeds(other, both, key))


def minus(one: dict[str, float], other: dict[str, float]) -> dict[str, float | None]:
    """Paired by patient."""
    shared = [subject for subject in one if subject in other]
    middle, low, high = paired_interval(np.array([one[s] for s in shared]), np.array([other[s] for s in shared]))
    return {"difference": short(middle), "low": short(low), "high": short(high)}


def short(value: float | None) -> float | None:
    """To five digits; None of too few patients."""
    return None if value is None else round(value, 5)


if __name__ == "__main__":
    main()
