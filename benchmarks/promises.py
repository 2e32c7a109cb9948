"""Does what is promised hold: found, expected Dice, guarantees on local scans, and 300 questions of mixed sense.

    python benchmarks/promises.py --data ../shared/data --split val                  while choosing
    python benchmarks/promises.py --data ../shared/data                              once, at the end
    python benchmarks/promises.py --part guarantees --adapters runs/trust            that part alone

Held-out subjects of the sets that the house model was taught. *Found*: of what is found in whole scans, and in their
parts that lack it, how much is there, beside the probability that was stated. *Expected Dice* beside the true one, and
beside what the model itself would have said (agreement of its proposals, its probabilities) and the trivial answer
(`always`: the target's mean Dice on the val subjects): mean absolute errors over subjects, and how often the interval
holds. *Guarantees*: subjects that nothing was learnt from are divided 200 times into those of a place and new ones; a
mask shall miss at most a share. Beside each shift stands the threshold of scans without it (`elsewhere`): what a
calibration is worth that did not come along. Sizes are in units of the truth.

The adapters are made before: `delineate adapt HOUSE chaos_mr_t2 -o runs/trust/adapter_chaos --shots 4 --images 2400`,
and of promise12_mr adapter_prostate with `--shots 10 --images 2400`.
Writes benchmarks/results/promises.json (promises_val.json for val) and docs/lab/expected-dice.png.
"""

import argparse
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import ndimage

from delineate import Segmenter, open_dataset
from delineate.adapters.folder import read_adapter
from delineate.calibration.conformal import risk_control
from delineate.calibration.evidence import Evidence
from delineate.calibration.guarantees import THRESHOLDS, Calibration
from delineate.data.dataset import Dataset
from delineate.data.lidc import write_lidc
from delineate.evaluation.protocols.lines import Answered, answers
from delineate.jobs.calibrate import evidence_from
from delineate.metrics.overlap import dice, mean_interval
from delineate.proposals.target import Outcome
from delineate.scans.geometry import orientation_of
from delineate.scans.scan import Scan
from delineate.storage.files import sha256_of, write_json

RESULTS = Path(__file__).parent / "results"
PICTURE = Path(__file__).parents[1] / "docs" / "lab" / "expected-dice.png"
SPLITS = 200
PARTS = ("found", "guarantees", "questions")
MOST = 150  # subjects a set, for guarantees


def main() -> None:
    """Ask, count, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/trust"), help="for rewritten sets")
    parser.add_argument(
        "--adapters", type=Path, default=Path("runs/trust"), help="with adapter_chaos, adapter_prostate"
    )
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--part", choices=PARTS, nargs="+", default=PARTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = RESULTS / ("promises.json" if args.split == "test" else "promises_val.json")
    told: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    told |= {"command": " ".join(["python", *sys.argv]), "split": args.split}
    made = {"found": lambda: found(args), "guarantees": lambda: guarantees(args), "questions": lambda: questions(args)}
    for part in args.part:
        started = time.monotonic()
        told[part] = made[part]()
        print(part, f"{time.monotonic() - started:.0f} s", json.dumps(told[part], indent=1), flush=True)
        write_json(path, told)


def learnt(args: argparse.Namespace) -> dict[str, Dataset]:
    """The sets that the house model was taught."""
    lidc = args.work / "lidc"
    if not (lidc / "splits.json").exists():
        write_lidc(args.data / "lidc4" / "lidc4.npz", args.data / "splits.json", lidc)
    return {
        "btcv_ct": open_dataset(args.data / "btcv_ct"),
        "hippocampus": open_dataset(args.data / "hippocampus"),
        "isic2018": open_dataset(args.data / "isic2018", targets=["skin lesion"], modality="dermoscopy"),
        "busi": open_dataset(args.data / "busi", targets=["breast lesion"], modality="US"),
        "dsb2018_he": open_dataset(args.data / "dsb2018_he", targets=["nuclei"], modality="histopathology"),
        "lidc": open_dataset(lidc, targets=["lung nodule"], modality="CT"),
        "hc18_us": open_dataset(args.data / "hc18_us", targets=["fetal head"], modality="US"),
    }


def found(args: argparse.Namespace) -> dict[str, Any]:
    """Of each set: is what is found there, and as good as it was expected to be."""
    segmenter, told, points = Segmenter.load(), {}, {}
    for name, dataset in learnt(args).items():
        rows = []
        for case in dataset.split(args.split)[:200]:
            for one in answers(segmenter, dataset, [case], list(dataset.labels), 8, 0):
                rows.append(row_of(dataset, segmenter, one))
        told[name] = summary_of(rows)
        points[name] = [(r["expected"], r["dice"]) for r in rows if "expected" in r]
        print(name, json.dumps(told[name]), flush=True)
    errors: dict[str, list[float]] = defaultdict(list)
    for one in told.values():
        for guess, own in one.get("expected", {}).pop("errors_by_subject", {}).items():
            errors[guess] += own
    if args.split == "test":
        draw(points)
    first = np.array(errors["expected"])
    return {
        "sets": told,
        "mean_absolute_error": {guess: interval(own) for guess, own in errors.items()},
        "expected_minus": {guess: interval(list(first - own)) for guess, own in errors.items() if guess != "expected"},
    }


def row_of(dataset: Dataset, segmenter: Segmenter, one: Answered) -> dict[str, Any]:
    """What was said of a target, and what is true."""
    answer, evidence = one.answer, evidence_from(dataset, one)
    known = segmenter.calibration.presence_of(str(answer.name)) if segmenter.calibration else None

    def stated(score: float) -> float | None:
        return None if known is None else float(known.calibrator(np.array([score]))[0])

    row: dict[str, Any] = {"subject": one.case.subject, "target": answer.name, "there": bool(one.truth.any())}
    row["found"] = answer.outcome is Outcome.FOUND
    row["stated"] = stated(answer.score)
    if evidence.score_absent is not None:  # the parts of the scan that lack it are one more question
        row["found_elsewhere"] = evidence.score_absent >= segmenter.found_from(str(answer.name))
        row["stated_elsewhere"] = stated(evidence.score_absent)
    expected = answer.expected()
    if expected is not None and row["there"]:
        row |= {"expected": expected.dice, "holds": None, "dice": dice(answer.consensus(), one.truth)}
        row["holds"] = expected.low <= row["dice"] <= expected.high
        row["level"], row["width"] = expected.level, expected.high - expected.low
        row["agreement"], row["probable"] = answer.agreement_of(), 1 - answer.doubt
        assert segmenter.calibration is not None
        row["always"] = float(segmenter.calibration.dice[str(answer.name)].mean())
    return row


def summary_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one set."""
    asked = [(r["there"], r["found"], r["stated"]) for r in rows]
    asked += [(False, r["found_elsewhere"], r["stated_elsewhere"]) for r in rows if "found_elsewhere" in r]
    calls = [(there, stated) for there, is_found, stated in asked if is_found]
    said = [stated for _, stated in calls if stated is not None]
    told: dict[str, Any] = {
        "subjects": len({r["subject"] for r in rows}),
        "found": len(calls),
        "found_and_there": fmean(there for there, _ in calls) if calls else None,
        "stated": fmean(said) if said else None,
        "present": sum(r["there"] for r in rows),
        "present_and_found": fmean([r["found"] for r in rows if r["there"]] or [0.0]),
        "absent": sum(not there for there, _, _ in asked),
        "absent_and_found": fmean([f for there, f, _ in asked if not there] or [0.0]),
    }
    scored = [r for r in rows if "expected" in r]
    if scored:
        by_subject: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in scored:
            by_subject[row["subject"]].append(row)

        def over(of: Callable[[dict[str, Any]], float]) -> list[float]:
            return [fmean(of(row) for row in own) for own in by_subject.values()]

        guesses = ("expected", "agreement", "probable", "always")
        errors = {name: over(lambda r, name=name: abs(r[name] - r["dice"])) for name in guesses}
        told["expected"] = {
            "subjects": len(by_subject),
            "targets": len(scored),
            "mean_absolute_error": {name: interval(one) for name, one in errors.items()},
            "mean_expected": fmean(over(lambda r: r["expected"])),
            "mean_dice": fmean(over(lambda r: r["dice"])),
            "holds": interval(over(lambda r: r["holds"])),
            "level": scored[0]["level"],
            "width": fmean(over(lambda r: r["width"])),
            "errors_by_subject": errors,
        }
    return told


def draw(points: dict[str, list[tuple[float, float]]]) -> None:
    """Expected against true Dice, a panel for each set."""
    figure = Figure(figsize=(14, 2.6), layout="constrained")
    for axis, (name, own) in zip(figure.subplots(1, len(points)), points.items(), strict=True):
        axis.plot([0, 1], [0, 1], color="0.7", lw=0.8)
        if own:
            axis.scatter(*zip(*own, strict=True), s=7, alpha=0.6)
        axis.set(xlim=(0, 1), ylim=(0, 1), title=name, xlabel="Dice expected", aspect="equal")
    figure.axes[0].set_ylabel("true Dice")
    figure.savefig(PICTURE, dpi=110)


def guarantees(args: argparse.Namespace) -> dict[str, Any]:
    """Shares that masks miss, of new subjects, by calibrations on others of the same place."""
    sets, told = learnt(args), {}
    house = Segmenter.load()
    estimate = house.calibration.estimate if house.calibration else {}
    mended = house.calibrated(Calibration(8, estimate=estimate))
    shifts = {"as they are": same, "bias field": bias_field, "noise": noise, "thick slices": thick_slices}
    for name, alphas in (("hippocampus", (0.05, 0.1)), ("isic2018", (0.05,)), ("lidc", (0.05,))):
        dataset = sets[name]
        cases = [case for part in ("val", "test") for case in dataset.split(part)][:MOST]
        plain = None
        for shift, moved in shifts.items():
            if shift == "thick slices" and dataset.read(cases[0])[0].is_flat:
                continue
            evidence = list(gathered(mended, dataset, cases, moved))
            plain = plain or evidence
            for alpha in alphas:
                row = f"{name}, {shift}, {alpha:.0%}"
                told[row] = controlled(evidence, plain, alpha)
                print(row, json.dumps(told[row]), flush=True)
    for name, alpha, base in (("chaos_mr_t2", 0.1, "adapter_chaos"), ("promise12_mr", 0.1, "adapter_prostate")):
        dataset = open_dataset(args.data / name)
        folder = args.adapters / base
        if not folder.exists():
            print(f"{folder}: not there", flush=True)
            continue
        seen = set(read_adapter(folder).training["learnt_from"])
        new = [case for case in dataset.split("all") if sha256_of(case.image) not in seen]
        adapted = Segmenter.load(None, adapter=folder, calibrated=False)
        plain = None
        for shift, moved in shifts.items():
            evidence = list(gathered(adapted, dataset, new, moved))
            plain = plain or evidence
            told[f"{name} with adapter, {shift}"] = controlled(evidence, plain, alpha)
            print(name, shift, json.dumps(told[f"{name} with adapter, {shift}"]), flush=True)
        if set(dataset.labels) <= set(mended.vocabulary.names):
            alone = list(gathered(mended, dataset, new, same))
            told[f"{name} without adapter"] = controlled(alone, alone, alpha)
            print(name, "without adapter", json.dumps(told[f"{name} without adapter"]), flush=True)
    return told


def gathered(
    segmenter: Segmenter, dataset: Dataset, cases: Sequence[Any], moved: Callable[[Scan, np.ndarray], tuple[Scan, Any]]
) -> Iterator[Evidence]:
    """What every case says of its targets, its scan moved."""
    shifted = Moved(**{**dataset.__dict__, "moved": moved})
    for case in cases:
        for one in answers(segmenter, shifted, [case], list(dataset.labels), 8, 0):
            yield evidence_from(dataset, one)


class Moved(Dataset):
    """A dataset whose scans are read as another scanner would have made them."""

    def __init__(self, *, moved: Any, **more: Any):
        super().__init__(**more)
        object.__setattr__(self, "moved", moved)

    def read(self, case: Any) -> tuple[Scan, np.ndarray]:
        """As `Dataset.read`, moved."""
        return self.moved(*super().read(case))  # type: ignore[attr-defined]


def same(scan: Scan, labels: np.ndarray) -> tuple[Scan, np.ndarray]:
    """As it is."""
    return scan, labels


def bias_field(scan: Scan, labels: np.ndarray) -> tuple[Scan, np.ndarray]:
    """Brighter by up to a half on one side than on the other, as a surface coil makes it; the way by its content."""
    rng = np.random.default_rng(int(np.abs(scan.voxels, dtype=np.float64).sum()) % 2**32)
    coarse = rng.normal(size=(3, 3, 3))
    field = ndimage.zoom(coarse, [n / 3 for n in scan.shape], order=1, mode="nearest", grid_mode=True)
    field = 0.4 * field / max(1e-6, np.abs(field).max())
    low = float(np.percentile(scan.voxels, 1))
    gain = np.exp(field)[(..., *([None] * (scan.voxels.ndim - 3)))]
    return changed(scan, (scan.voxels.astype(np.float32) - low) * gain + low), labels


def noise(scan: Scan, labels: np.ndarray) -> tuple[Scan, np.ndarray]:
    """Gaussian noise of a twelfth of the range of grey values."""
    rng = np.random.default_rng(int(np.abs(scan.voxels, dtype=np.float64).sum()) % 2**32)
    low, high = np.percentile(scan.voxels, (1, 99))
    return changed(scan, scan.voxels + rng.normal(0, (high - low) / 12, scan.voxels.shape).astype(np.float32)), labels


def thick_slices(scan: Scan, labels: np.ndarray) -> tuple[Scan, np.ndarray]:
    """Each slice the mean of three neighbours, as three times thicker ones that overlap."""
    axis = orientation_of(scan.affine).order[0]
    return changed(scan, ndimage.uniform_filter1d(scan.voxels.astype(np.float32), 3, axis=axis)), labels


def changed(scan: Scan, voxels: np.ndarray) -> Scan:
    """The scan with other grey values, within the type of its file."""
    if scan.voxels.dtype.kind in "iu":
        limits = np.iinfo(scan.voxels.dtype)
        return replace(scan, voxels=np.clip(np.round(voxels), limits.min, limits.max).astype(scan.voxels.dtype))
    return replace(scan, voxels=voxels.astype(np.float32))


def controlled(evidence: Sequence[Evidence], elsewhere: Sequence[Evidence], alpha: float) -> dict[str, Any]:
    """Over `SPLITS` divisions: the share missed by new subjects, and how large masks are, each target by itself.

    Twice as many subjects calibrate as the share needs at the least, or half of all where that is more; two stay new.

    Args:
        evidence: of the place.
        elsewhere: of the same scans without its shift, by which others would have calibrated.
        alpha: the share that may be missed.
    """
    return {
        target: _controlled(
            by_subject([e for e in evidence if e.target == target and e.missed is not None]),
            by_subject([e for e in elsewhere if e.target == target and e.missed is not None]),
            alpha,
        )
        for target in dict.fromkeys(e.target for e in evidence)
    }


def by_subject(evidence: Sequence[Evidence]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Mean losses and sizes of each subject."""
    own: dict[str, list[Evidence]] = defaultdict(list)
    for entry in evidence:
        own[entry.subject].append(entry)
    return {
        subject: tuple(np.mean([getattr(e, what) for e in cases], axis=0) for what in ("missed", "sizes"))
        for subject, cases in own.items()
    }  # type: ignore[return-value]


def _controlled(here: dict[str, Any], elsewhere: dict[str, Any], alpha: float) -> dict[str, Any]:
    subjects = sorted(here)
    losses, sizes = (np.stack([here[s][i] for s in subjects])[:, ::-1] for i in (0, 1))
    before = np.stack([elsewhere[s][0] for s in subjects])[:, ::-1]
    needed = int(np.ceil(1 / alpha - 1 - 1e-9))
    count = min(max(2 * needed, len(subjects) // 2), len(subjects) - 2)
    if count < needed:
        return {"subjects": len(subjects), "why_not": f"{needed} are needed to calibrate, and some to try"}
    rng, grid = np.random.default_rng(0), THRESHOLDS[::-1]
    missed: list[float] = []
    large: list[float] = []
    missed_before: list[float] = []
    refused = 0
    for _ in range(SPLITS):
        order = rng.permutation(len(subjects))
        some, new = order[:count], order[count:]
        at, at_before = (risk_control(one[some], grid, alpha).index for one in (losses, before))
        if at is None or at == len(grid) - 1:  # the whole scan is no answer, and is refused
            refused += 1
        else:
            missed.append(float(losses[new, at].mean()))
            large.extend(sizes[new, at].tolist())
        if at_before is not None:
            missed_before.append(float(losses[new, at_before].mean()))
    half = np.argmax(grid <= 0.5)
    told: dict[str, Any] = {
        "subjects": len(subjects),
        "calibrate": count,
        "asked": alpha,
        "refused": refused,
        "missed_at_half": float(losses[:, half].mean()),
        "missed_by_calibration_elsewhere": fmean(missed_before) if missed_before else None,
    }
    if missed:
        told |= {"missed": fmean(missed), "missed_95": float(np.quantile(missed, 0.95))}
        told |= {"size_mean": fmean(large), "size_median": median(large)}
        told["share_of_sizes_within_1_5"] = fmean(one <= 1.5 for one in large)
    return told


QUESTIONS: tuple[tuple[str, str], ...] = (  # words, and what kind of question they are
    ("liver", "organ"),
    ("spleen", "organ"),
    ("the left kidney", "organ"),
    ("kidneys", "organ"),
    ("liver and spleen", "organ"),
    ("hepatic parenchyma", "organ"),
    ("anterior hippocampus", "brain"),
    ("skin lesion", "skin"),
    ("melanoma", "skin"),
    ("breast lesion", "breast"),
    ("nuclei", "cells"),
    ("lung nodule", "lung"),
    ("fetal head", "fetus"),
    ("retinal vessels", "eye"),
    ("appendix", "never learnt"),
    ("left atrium", "never learnt"),
    ("prostate", "never learnt"),
    ("polyp", "never learnt"),
    ("uterus", "never learnt"),
    ("thyroid nodule", "never learnt"),
    ("bananas", "no anatomy"),
    ("asdf", "no anatomy"),
    ("please segment everything", "everything"),
    ("what is the weather", "no anatomy"),
    ("42", "no anatomy"),
)
ASKED_OF = {  # sets, and which kinds of question can be answered there by the house model
    "btcv_ct": ("organ",),
    "hippocampus": ("brain",),
    "isic2018": ("skin",),
    "busi": ("breast",),
    "dsb2018_he": ("cells",),
    "lidc": ("lung",),
    "hc18_us": ("fetus",),
    "chaos_mr_t2": (),
    "promise12_mr": (),
    "kvasir_seg": (),
    "shenzhen_cxr": (),
    "dsb2018_fl": (),
}


def questions(args: argparse.Namespace) -> dict[str, Any]:
    """25 questions to one scan of each of 12 sets, of no declared kind; outcomes by what kind of question it is."""
    segmenter, sets = Segmenter.load(), learnt(args)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    for name, possible in ASKED_OF.items():
        target = {"kvasir_seg": "polyp", "shenzhen_cxr": "lungs", "dsb2018_fl": "nuclei"}.get(name)
        dataset = sets.get(name) or open_dataset(args.data / name, targets=[target] if target else None)
        scan = replace(dataset.read(dataset.split(args.split)[0])[0], modality=None)
        seen = segmenter.look(scan)
        for words, kind in QUESTIONS:
            told = [one.outcome.value for one in segmenter(seen, [words], n=8)]
            fits = kind in possible or (kind == "everything" and possible != ())
            sense = kind if kind in ("never learnt", "no anatomy") else "fits" if fits else "elsewhere"
            if name == "chaos_mr_t2" and kind in ("organ", "everything"):
                sense = "there, but in a kind of scan that was not learnt"
            outcome = "found" if "found" in told else told[0]
            counts[sense][outcome] += 1
            if (outcome == "found") != (sense == "fits") and not sense.startswith("there"):
                wrong.append({"set": name, "words": words, "sense": sense, "outcome": outcome})
    return {"questions": sum(sum(one.values()) for one in counts.values()), "outcomes": counts, "look_at": wrong}


def interval(values: Sequence[float]) -> list[float]:
    """Mean and 95 % of Student's t; of one value, the mean alone."""
    return [round(v, 4) for v in mean_interval(np.array(values)) if v is not None]


if __name__ == "__main__":
    main()
