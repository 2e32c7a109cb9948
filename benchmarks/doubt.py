"""Doubt that can be believed: six systems on nodules that four radiologists outlined, guarantees, and calibration.

    python benchmarks/doubt.py --data ../shared/data --minutes 12 --work runs/doubt

**lidc**: LIDC nodules, 128², held-out test patients, all four rater slots (an empty one is a rater who saw nothing).
Every system learns a random rater's reading each time, for the same processor time on one thread, turned into images as
in benchmarks/lesions.py. GED² in V form, HM-IoU, Dice of agreement, ECE and CRPS of area, as means over patients with
95 % bootstrap intervals, and paired differences from the best; N is what a system drew (`drawn`), which may be fewer
than 4, 16 or 50. **coverage**: the share that a guaranteed mask misses, over random divisions of the held-out patients
into those that calibrate and those that are counted. **btcv**: how calibration changes reliability, and what is said of
absent and unknown targets, for a model of abdominal CT.

Two trainings run side by side with a thread each. Writes benchmarks/results/doubt.json. Run again, it goes on where it
was.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from doubt_pictures import chart, nodules

from delineate import open_dataset
from delineate.calibration.calibrators import auroc, brier, histogram, nll, reliability, to_json
from delineate.calibration.conformal import coverage, false_fraction, missed_fraction, risk_control
from delineate.calibration.guarantees import THRESHOLDS
from delineate.data.dataset import Dataset
from delineate.data.lidc import write_lidc
from delineate.data.slices import SliceBank
from delineate.evaluation.protocols.calibration import box_around, calibration_line, summarise
from delineate.evaluation.protocols.lines import answers
from delineate.evaluation.protocols.raters import raters_line
from delineate.jobs.calibrate import Evidence, calibrate, calibration_from, evidence_from
from delineate.jobs.opening import read_bank
from delineate.jobs.train import TrainRequest, train_on
from delineate.jobs.watch import Nobody
from delineate.metrics.overlap import mean_interval, paired_interval
from delineate.proposals.proposals import presence
from delineate.scans.geometry import orientation_of, to_canonical
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.systems import SYSTEMS
from delineate.training.loop import Budget, Run

RESULT = Path(__file__).parent / "results" / "doubt.json"
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
TRIED = ("progidiff", "unisegdiff", "probunet", "pulaski", "ensemble", "mcdropout")
VARIANTS = {  # the same model, sampled otherwise; chosen on val
    "unisegdiff-own-chains": ("unisegdiff", {"chains": "own"}),
}
PROPOSALS = {"mcdropout": 16}  # instead of the most of `SIZES`: each is a pass of the whole network
SIZES = (4, 16, 50)  # of N, for what depends on it
ALPHAS = (0.01, 0.05, 0.1)
SEED_OF_TIMING = 1
SPLITS = 200
SLAB, SLIVER = 8, 50  # slices of a slab; voxels of an organ below which a slab counts for neither
FIGURES = (
    "ged_4",
    "ged_16",
    "ged_50",
    "crps_pixels",
    "hm_iou",
    "dice_soft",
    "dice_max",
    "dice_max_reverse",
    "dice",
    "diversity",
)
# What no scan of the abdomen shows, or nobody knows.
STRANGE = ("polyp", "skin lesion", "hippocampus", "breast lesion", "nuclei", "banana", "left ear", "liver tumour")


def main() -> None:
    """Train, score, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/doubt"))
    parser.add_argument("--minutes", type=float, default=12.0, help="of training, on an idle thread, for each system")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="*", choices=TRIED, default=list(TRIED))
    parser.add_argument("--split", default="test", help="val while choosing, test for the result")
    parser.add_argument("--limit", type=int, help="score so many cases only")
    parser.add_argument("--btcv-model", type=Path, help="a model folder trained on btcv_ct; the house model without")
    parser.add_argument("--workers", type=int, default=2, help="how many trainings or scorings at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--phase", nargs="*", default=["lidc", "coverage", "btcv"], choices=("lidc", "coverage", "btcv")
    )
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)  # (train or score, row, seed), in its own process
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = lidc(args)
    if args.job:
        kind, system, seed = args.job
        return (train_one if kind == "train" else score_one)(args, dataset, system, int(seed))
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if "lidc" in args.phase:
        timing(args, dataset)
        queue(args, "train", [(system, seed) for seed in args.seeds for system in args.only])
        queue(args, "score", [(name, seed) for seed in args.seeds for name in rows_of(args)])
        result["lidc"] = report(args, dataset)
    if "coverage" in args.phase:
        result["coverage"] = {system: guarantees(args, dataset, system) for system in ("unisegdiff",)}
    if "btcv" in args.phase:
        result["btcv"] = abdomen(args)
    if args.split == "test" and args.limit is None:
        write_json(RESULT, result)
        if {"lidc", "coverage", "btcv"} <= result.keys():
            chart(result, PICTURES / "doubt.png")
            segmenter = Segmenter.load(model_path(args, "unisegdiff", args.seeds[0]), args.device)
            segmenter.calibration = calibrate(segmenter, [dataset])
            nodules(segmenter, dataset, PICTURES / "doubt_nodules.png")
    print(json.dumps(result, indent=1))


def lidc(args: argparse.Namespace) -> Dataset:
    """The crops with all four slots."""
    folder = args.work / "lidc4"
    if not folder.exists():
        write_lidc(args.data / "lidc4" / "lidc4.npz", args.data / "splits.json", folder, empty_slots=True)
    return open_dataset(folder)


def rows_of(args: argparse.Namespace) -> list[str]:
    """The rows of the table: systems, and variants of theirs."""
    return [*args.only, *(name for name, (system, _) in VARIANTS.items() if system in args.only)]


def bank_of(dataset: Dataset) -> SliceBank:
    """Training slices with every rater's reading."""
    return read_bank([dataset], SYSTEMS["unet"].presets["tiny"], Nobody(), rating="random")


def timing(args: argparse.Namespace, dataset: Dataset, rounds: int = 2, images: int = 160) -> None:
    """Processor seconds of training an image, for each system: the least of a few rounds in turn. Measured once."""
    path = args.work / "timing.json"
    known: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}
    missing: dict[str, list[float]] = {system: [] for system in args.only if system not in known}
    if not missing:
        return
    bank = bank_of(dataset)
    for _ in range(rounds):
        for system, measured in missing.items():
            start = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                SYSTEMS[system].train(
                    bank, "tiny", Run(Budget(images=images), Path(folder), seed=SEED_OF_TIMING), device=args.device
                )
            measured.append((time.process_time() - start) / images)
            print(f"{system}: {1000 * measured[-1]:.1f} ms of training an image", flush=True)
    write_json(path, known | missing)


def images_for(args: argparse.Namespace, system: str) -> int:
    """How many images a system sees in its time."""
    return int(60 * args.minutes / min(json.loads((args.work / "timing.json").read_text())[system])) // 8 * 8


def queue(args: argparse.Namespace, kind: str, jobs: Sequence[tuple[str, int]]) -> None:
    """The unfinished jobs, `--workers` at a time, each in a process with one thread."""
    done = {"train": lambda job: model_path(args, *job) / "manifest.json", "score": lambda job: rows_path(args, *job)}
    waiting = [job for job in jobs if not done[kind](job).exists()]
    running: dict[tuple[str, int], subprocess.Popen] = {}
    while waiting or running:
        while waiting and len(running) < args.workers:
            system, seed = job = waiting.pop(0)
            print(f"{kind}: {system}, seed {seed}", flush=True)
            command = [sys.executable, *sys.argv, "--job", kind, system, str(seed)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            running[job] = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        time.sleep(1)
        for job in [j for j, process in running.items() if process.poll() is not None]:
            if running.pop(job).returncode != 0:
                sys.exit(f"{kind} {job} failed; run again to go on")


def model_path(args: argparse.Namespace, system: str, seed: int) -> Path:
    """Where a model is."""
    return args.work / f"seed{seed}" / system


def rows_path(args: argparse.Namespace, system: str, seed: int) -> Path:
    """Where its scores are."""
    return args.work / f"seed{seed}" / f"{system}-{args.split}.json"


def train_one(args: argparse.Namespace, dataset: Dataset, system: str, seed: int) -> None:
    """One training, to its model folder."""
    output = model_path(args, system, seed)
    work = Path(f"{output}-training")
    work.mkdir(parents=True, exist_ok=True)
    images = images_for(args, VARIANTS.get(system, (system,))[0])
    request = TrainRequest(system, [dataset.root], images=images, seed=seed, raters="random")
    about = {"system": system, "preset": "tiny", "minutes": None, "seed": seed, "images": images, "raters": "random"}
    train_on(request, bank_of(dataset), output, work, about, [dataset.name], device=args.device)


def score_one(args: argparse.Namespace, dataset: Dataset, system: str, seed: int) -> None:
    """Figures of every case, from one drawing of the most proposals."""
    base, changes = VARIANTS.get(system, (system, {}))
    segmenter: Any = Segmenter.load(model_path(args, base, seed), args.device)
    if changes:
        segmenter.system.config = replace(segmenter.system.config, **changes)
    rows, lines, start = [], [], time.perf_counter()
    cases = dataset.split(args.split)[: args.limit]
    for answered in answers(segmenter, dataset, cases, list(dataset.labels), PROPOSALS.get(base, max(SIZES)), 0):
        drawn, calibrated = raters_line(answered), calibration_line(answered)
        lines.append(calibrated)
        sizes = {min(int(n), drawn.proposals) for n in SIZES}
        by_n = {f"ged_{n}": drawn.kept["by_n"].get(min(n, drawn.proposals), {}).get("ged") for n in SIZES}
        figures = {**drawn.figures, **by_n, "dice": calibrated.figures["dice"], "sizes": sorted(sizes)}
        rows.append({"case": drawn.case, "subject": drawn.subject, "drawn": drawn.proposals, **figures})
    pooled = summarise(lines)["mean"]["pooled"]["as_drawn"]
    seconds = (time.perf_counter() - start) / len(rows)
    write_json(rows_path(args, system, seed), {"rows": rows, "pooled": pooled, "seconds_a_case": seconds})


def report(args: argparse.Namespace, dataset: Dataset) -> dict[str, Any]:
    """The table, and how far each system is from the best by GED² of 16."""
    found: dict[str, dict[str, Any]] = {}
    values: dict[str, dict[str, np.ndarray]] = {}
    for system in rows_of(args):
        paths = [rows_path(args, system, seed) for seed in args.seeds if rows_path(args, system, seed).exists()]
        if not paths:
            continue
        told = [json.loads(path.read_text()) for path in paths]
        values[system] = {key: per_subject(told, key) for key in FIGURES if key in told[0]["rows"][0]}
        figures = {key: interval(own) for key, own in values[system].items()}
        for key in ("ece", "brier", "nll"):
            for region in ("box", "whole"):
                pooled = [one["pooled"][region]["raters"][key] for one in told]
                figures[f"{key}_{region}_raters"] = {"mean": float(np.mean(pooled)), "seeds": pooled}
        found[system] = {
            "figures": figures,
            "drawn": told[0]["rows"][0]["drawn"],
            "seeds": len(told),
            "images": images_for(args, VARIANTS.get(system, (system,))[0]),
            "seconds_a_case": float(np.mean([one["seconds_a_case"] for one in told])),
        }
    best = min(found, key=lambda system: found[system]["figures"]["ged_16"]["mean"])
    for system, entry in found.items():
        keys = [key for key in ("ged_4", "ged_16", "ged_50", "hm_iou", "dice_soft") if key in values[system]]
        pairs = {key: paired_interval(values[system][key], values[best][key]) for key in keys}
        names = ("difference", "low", "high")
        entry["minus_best"] = {k: dict(zip(names, map(float, pair), strict=True)) for k, pair in pairs.items()}
    cases = dataset.split(args.split)[: args.limit]
    return {
        "command": " ".join(["python", *sys.argv]),
        "split": args.split,
        "cases": len(cases),
        "patients": len({case.subject for case in cases}),
        "minutes_each": args.minutes,
        "seeds": args.seeds,
        "best_by_ged_16": best,
        "systems": found,
    }


def per_subject(told: Sequence[dict[str, Any]], key: str) -> np.ndarray:
    """Means over a patient's cases and over seeds, in the order of patients."""
    subjects: dict[str, list[float]] = {}
    for one in told:
        for row in one["rows"]:
            if row.get(key) is not None:
                subjects.setdefault(row["subject"], []).append(row[key])
    return np.array([np.mean(subjects[name]) for name in sorted(subjects)])


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean over patients with its 95 % bootstrap interval."""
    return dict(zip(("mean", "low", "high"), map(float, mean_interval(values)), strict=True))


def guarantees(args: argparse.Namespace, dataset: Dataset, system: str, n: int = 8) -> dict[str, Any]:
    """Realised against asked, over 200 divisions of the held-out patients; and how large the masks are."""
    path = args.work / f"seed{args.seeds[0]}" / f"{system}-curves.npz"
    if not path.exists():
        np.savez(path, **curves(Segmenter.load(model_path(args, system, args.seeds[0]), args.device), dataset, n))
    held = np.load(path)
    out: dict[str, Any] = {"patients": len(held["missed"]), "proposals": n}
    for kind, step in (("missed", -1), ("false", 1)):
        for alpha in ALPHAS:
            losses, grid = held[kind][:, ::step], THRESHOLDS[::step]
            entry: dict[str, Any] = {"calibrated_on": len(losses) // 2, "asked": alpha}
            try:
                realised = coverage(losses, grid, alpha, splits=SPLITS)
            except ValueError as problem:
                out[f"{kind}_at_most_{alpha:g}"] = entry | {"why_not": str(problem)}
                continue
            at = risk_control(losses, grid, alpha).index or 0
            area = held["areas"][:, ::step][:, at].sum()
            entry |= {"realised": float(realised.mean()), "percentiles": np.percentile(realised, (5, 95)).tolist()}
            entry |= {"threshold": float(grid[at]), "area_over_consensus": float(area / held["consensus"].sum())}
            out[f"{kind}_at_most_{alpha:g}"] = entry | {"area_over_truth": float(area / held["truth"].sum())}
    return out


def curves(segmenter: Segmenter, dataset: Dataset, n: int) -> dict[str, np.ndarray]:
    """Of val and test patients: losses at every threshold, and pixels of those masks, of consensus and of truth."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for answered in answers(
        segmenter, dataset, (*dataset.split("val"), *dataset.split("test")), list(dataset.labels), n, 0
    ):
        if answered.truth.any():
            p = answered.probability()
            row = {
                "missed": missed_fraction(p, answered.truth, THRESHOLDS),
                "false": false_fraction(p, answered.truth, THRESHOLDS),
                "areas": np.array([(p >= t).sum() for t in THRESHOLDS]),
                "consensus": (p >= 0.5).sum(),
                "truth": answered.truth.sum(),
            }
            rows.setdefault(answered.case.subject, []).append(row)
    names = next(iter(rows.values()))[0]
    return {name: np.array([np.mean([row[name] for row in own], axis=0) for own in rows.values()]) for name in names}


def abdomen(args: argparse.Namespace, n: int = 8) -> dict[str, Any]:
    """Reliability before and after, presence by organ, and strange or absent targets, for a model of abdominal CT."""
    dataset = open_dataset(args.data / "btcv_ct")
    segmenter = Segmenter.load(args.btcv_model, args.device).calibrated(None)
    patients = (*dataset.split("val"), *dataset.split("test"))
    names = [name for name in dataset.labels if name in segmenter.vocabulary.names]
    slabs: dict[str, list[tuple[float, bool]]] = {name: [] for name in names}
    every: dict[str, list[Any]] = {}
    found: list[Evidence] = []
    for answered in answers(segmenter, dataset, patients, names, n, 0):
        name, orientation = str(answered.answer.name), orientation_of(answered.scan.affine)
        every.setdefault(answered.case.subject, []).append((answered.probability(), answered.truth))
        found.append(evidence_from(dataset, answered))
        p, truth = (to_canonical(a, orientation) for a in (answered.probability(), answered.truth))
        if answered.case in dataset.split("test"):
            for start in range(0, len(p) - SLAB + 1, SLAB):
                there = int(truth[start : start + SLAB].sum())
                if there == 0 or there >= SLIVER:
                    slabs[name].append((presence(p[start : start + SLAB]), there > 0))
    reliable = {"val patient alone": measured(found, every, [c.subject for c in dataset.split("val")])}
    reliable["four others, each test patient in turn"] = measured(found, every, None)
    return {
        "model": "house" if args.btcv_model is None else str(args.btcv_model),
        "proposals": n,
        "test_patients": len(dataset.split("test")),
        "reliability": reliable,
        "presence": {name: told_of(pairs) for name, pairs in slabs.items()}
        | {"all": told_of([pair for pairs in slabs.values() for pair in pairs])},
        "strange": strange(segmenter, dataset, n),
    }


def measured(found: Sequence[Evidence], every: dict[str, list[Any]], by: list[str] | None) -> dict[str, Any]:
    """ECE and the like over the test patients, as drawn and calibrated on others; the diagram as well."""
    tested = list(every)[1:]
    parts: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {"as_drawn": [], "calibrated": []}
    kinds = []
    for subject in tested:
        others = [e for e in found if e.subject.split("/")[1] in (by or [s for s in every if s != subject])]
        calibration = calibration_from(others)
        kinds.append(to_json(calibration.voxel))
        for p, truth in every[subject]:
            box = box_around((p >= 0.5) | truth, 10)
            if box is not None:
                parts["as_drawn"].append(histogram(p[box], truth[box]))
                parts["calibrated"].append(histogram(calibration.calibrated(p[box]), truth[box]))
    out: dict[str, Any] = {"calibrators": kinds}
    for kind, tables in parts.items():
        p, y, w = (np.concatenate(part) for part in zip(*tables, strict=True))
        seen = reliability(p, y, weight=w)
        diagram = {"confidence": seen.confidence.tolist(), "frequency": seen.frequency.tolist()}
        out[kind] = {"ece": seen.ece, "mce": seen.mce, "brier": brier(p, y, w), "nll": nll(p, y, w), **diagram}
    return out


def told_of(pairs: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """How well the score tells slabs with a target from those without."""
    score, there = np.array([s for s, _ in pairs]), np.array([t for _, t in pairs], bool)
    out: dict[str, Any] = {"present": int(there.sum()), "absent": int((~there).sum()), "auroc": None}
    if there.any() and not there.all():
        out["auroc"] = auroc(score, there)
        out["found_at_0.6"] = {
            "present": float((score[there] >= 0.6).mean()),
            "absent": float((score[~there] >= 0.6).mean()),
        }
    return out


def strange(segmenter: Segmenter, dataset: Dataset, n: int) -> list[dict[str, Any]]:
    """Twenty questions whose right answer is not "found": unknown words, and organs that the slices do not show."""
    told = []
    cases = dataset.split("test")
    scan = dataset.read(cases[0])[0]
    for words in STRANGE:
        answer = segmenter(scan, [words], n=n)[words]
        told.append({"prompt": words, "truth": "not in the model's vocabulary", "outcome": answer.outcome.value})
    names = [name for name in dataset.labels if name in segmenter.vocabulary.names]
    for number in range(20 - len(told)):
        case, name = cases[number % len(cases)], names[(5 * number) % len(names)]
        scan, labels = dataset.read(case)
        axis = int(np.abs(scan.affine[2, :3]).argmax())
        lacking = ~(labels == dataset.labels[name]).any(axis=tuple(a for a in range(3) if a != axis))
        runs = np.split(np.flatnonzero(lacking), np.flatnonzero(np.diff(np.flatnonzero(lacking)) > 1) + 1)
        run = max(runs, key=len)
        affine = scan.affine.copy()
        affine[:3, 3] += affine[:3, axis] * run[0]
        cropped = replace(scan, voxels=np.take(scan.voxels, run, axis=axis), affine=affine)
        answer = segmenter(cropped, [name], n=n)[name]
        entry = {"prompt": name, "truth": f"{case.name}, {len(run)} slices without it", "outcome": answer.outcome.value}
        told.append({**entry, "score": round(answer.score, 3), "voxels": int(answer.consensus().sum())})
    return told


if __name__ == "__main__":
    main()
