"""Doubt that can be believed: guarantees for a model of nodules that raters outlined, and calibration on abdominal CT.

    python benchmarks/doubt.py --data ../shared/data --model runs/plural/seed0/spread

**coverage**: the share that a guaranteed mask misses, over random divisions of the held-out LIDC patients into those
that calibrate and those that are counted, for a model that `benchmarks/plural.py` trained. **btcv**: how calibration
changes reliability, and what is said of absent and unknown targets, for a model of abdominal CT.

How systems compare on these nodules: `benchmarks/plural.py`. Writes benchmarks/results/doubt.json and its pictures.
"""

import argparse
import json
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
from delineate.calibration.evidence import Evidence, calibration_from
from delineate.calibration.guarantees import THRESHOLDS
from delineate.data.dataset import Dataset
from delineate.data.lidc import write_lidc
from delineate.evaluation.protocols.calibration import box_around
from delineate.evaluation.protocols.lines import answers
from delineate.jobs.calibrate import calibrate, evidence_from
from delineate.proposals.target import presence
from delineate.scans.geometry import orientation_of, to_canonical
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json

RESULT = Path(__file__).parent / "results" / "doubt.json"
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
ALPHAS = (0.01, 0.05, 0.1)
SPLITS = 200
SLAB, SLIVER = 8, 50  # slices of a slab; voxels of an organ below which a slab counts for neither
# What no scan of the abdomen shows, or nobody knows.
STRANGE = ("polyp", "skin lesion", "hippocampus", "breast lesion", "nuclei", "banana", "left ear", "liver tumour")


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/doubt"), help="for the crops with all four slots")
    parser.add_argument("--model", type=Path, default=Path("runs/plural/seed0/spread"), help="of nodules")
    parser.add_argument("--btcv-model", type=Path, help="a model folder trained on btcv_ct; the house model without")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--phase", nargs="*", default=["coverage", "btcv"], choices=("coverage", "btcv"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if "coverage" in args.phase:
        dataset = lidc(args)
        segmenter = Segmenter.load(args.model, args.device)
        result["coverage"] = {
            json.loads((args.model / "config.json").read_text())["system"]: guarantees(segmenter, dataset)
        }
        segmenter.calibration = calibrate(segmenter, [dataset])
        nodules(segmenter, dataset, PICTURES / "doubt_nodules.png")
    if "btcv" in args.phase:
        result["btcv"] = abdomen(args)
    write_json(RESULT, result)
    if {"coverage", "btcv"} <= result.keys():
        chart(result, PICTURES / "doubt.png")
    print(json.dumps(result, indent=1))


def lidc(args: argparse.Namespace) -> Dataset:
    """The crops with all four slots."""
    folder = args.work / "lidc4"
    if not folder.exists():
        write_lidc(args.data / "lidc4" / "lidc4.npz", args.data / "splits.json", folder, empty_slots=True)
    return open_dataset(folder)


def guarantees(segmenter: Segmenter, dataset: Dataset, n: int = 8) -> dict[str, Any]:
    """Realised against asked, over 200 divisions of the held-out patients; and how large the masks are."""
    held = curves(segmenter, dataset, n)
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
