"""Figures of a segmenter on the held-out subjects of a dataset, in 3-D, on each scan's own voxels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import numpy as np

from delineate.data.dataset import IGNORED, Case, Dataset
from delineate.metrics.overlap import dice, ged_squared, iou, mean_interval, score
from delineate.proposals.fusion import FUSIONS
from delineate.proposals.target import Outcome
from delineate.scans.geometry import orientation_of, to_canonical
from delineate.segmenter import Segmenter


@dataclass(frozen=True)
class Row:
    """One target in one case.

    Attributes:
        case: the case's name.
        target: the vocabulary's name.
        present: whether the truth has any voxel of it.
        outcome: what the segmenter said.
        score: its presence score.
        single: `delineate.metrics.overlap.score` of proposal 0, plus `mean_dice` and `mean_iou` over all proposals one
        by one.
        consensus: the same scores of each fusion.
        oracle: Dice of the best proposal, which needs the truth to be found; an upper bound, never a result.
        ged: `delineate.metrics.overlap.ged_squared` of all proposals against the raters; it depends on their number.
        raters: how many those are; 1 where there is the one truth only.
        absent_slices: axial slices in which the truth has no voxel of the target.
        false_slices: how many of those the consensus has a voxel in.
        wrong: mean Dice of the *other* prompts' consensus against this target; low when the prompt is heeded.
        doubt: how little overlap the model itself expects (`TargetProposals.doubt`).
    """

    case: str
    target: str
    present: bool
    outcome: str
    score: float
    single: dict[str, Any]
    consensus: dict[str, dict[str, Any]]
    oracle: float
    ged: float
    raters: int
    absent_slices: int
    false_slices: int
    wrong: float
    doubt: float = 0.0


def evaluate(
    segmenter: Segmenter,
    dataset: Dataset,
    *,
    split: str = "test",
    n: int = 8,
    seed: int = 0,
    fusions: Sequence[str] = tuple(FUSIONS),
    limit: int | None = None,
    on_step: Callable[[float], None] = lambda share: None,
) -> list[Row]:
    """Score every target that the dataset annotates and the model knows, in every case of `split`.

    `limit` takes the first cases only; the first of `fusions` is the consensus that outcomes and means refer to. Voxels
    that nobody labelled (`Dataset.ignore`) are background of truth and answers alike.
    """
    names = [name for name in dataset.targets if name in segmenter.vocabulary.names]
    cases = dataset.split(split)[:limit]
    rows = []
    for done, case in enumerate(cases):

        def report(share: float, done: int = done) -> None:
            on_step((done + share) / len(cases))

        rows += _case_rows(segmenter, dataset, case, names, n, seed, fusions, report)
    return rows


def consensus_dice(
    segmenter: Segmenter, dataset: Dataset, *, split: str = "test", n: int = 8, seed: int = 0, limit: int | None = None
) -> dict[str, dict[str, float]]:
    """Dice of the consensus (mean) by case and target, of targets that a case shows: all that a table of Dice needs.

    Much quicker than `evaluate`, which measures surfaces and single proposals too.
    """
    out: dict[str, dict[str, float]] = {}
    for case in dataset.split(split)[:limit]:
        scan, labels = dataset.read(case)
        seen = segmenter.look(scan)
        for name in dataset.targets:
            if name in segmenter.vocabulary.names and (truth := dataset.truth(name, labels)).any():
                answer = segmenter(seen, [name], n=n, seed=seed, anyway=True)[name].without(labels == IGNORED)
                out.setdefault(case.name, {})[name] = dice(answer.consensus("mean"), truth)
    return out


def _case_rows(
    segmenter: Segmenter,
    dataset: Dataset,
    case: Case,
    names: list[str],
    n: int,
    seed: int,
    fusions: Sequence[str],
    on_step: Callable[[float], None],
) -> list[Row]:
    scan, labels = dataset.read(case)
    raters = dataset.read_raters(case)
    seen = segmenter.look(scan)
    orientation = orientation_of(scan.affine)
    fused, rows = {}, []
    for done, name in enumerate(names):
        truth = dataset.truth(name, labels)
        answer = segmenter(seen, [name], n=n, seed=seed, anyway=True)[name].without(labels == IGNORED)
        consensus = {how: answer.consensus(how) for how in fusions}
        fused[name] = consensus[fusions[0]]
        masks = np.stack([answer.choose(k) for k in range(len(answer))])
        singles = [dice(mask, truth) for mask in masks]
        readings = truth[None] if raters is None else raters
        drawn = to_canonical(fused[name], orientation).any(axis=(1, 2))
        absent = ~to_canonical(truth, orientation).any(axis=(1, 2))
        rows.append(
            Row(
                case=case.name,
                target=name,
                present=bool(truth.any()),
                outcome=answer.outcome.value,
                score=answer.score,
                single=score(masks[0], truth, scan.spacing_mm)
                | {"mean_dice": fmean(singles), "mean_iou": fmean(iou(mask, truth) for mask in masks)},
                consensus={how: score(mask, truth, scan.spacing_mm) for how, mask in consensus.items()},
                oracle=max(singles),
                ged=ged_squared(masks, readings),
                raters=len(readings),
                absent_slices=int(absent.sum()),
                false_slices=int((absent & drawn).sum()),
                wrong=0.0,
                doubt=answer.doubt,
            )
        )
        on_step((done + 1) / len(names))
    return [replace(row, wrong=_wrong(row.target, fused, dataset.truth(row.target, labels))) for row in rows]


def _wrong(name: str, fused: dict[str, np.ndarray], truth: np.ndarray) -> float:
    """Mean Dice of the other prompts' masks against this target's truth."""
    others = [dice(mask, truth) for other, mask in fused.items() if other != name]
    return fmean(others) if others else 0.0


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Means over cases, for each target and over the targets, and what can be said of absent ones.

    Two readings of empty masks (`docs/concepts/empty-masks.md`). Dice, IoU, GED, HD95 and NSD are means over the cases
    in which the target is present; a score where it is absent is 1 or 0 by convention and would drown the rest, so
    those cases count in `absent` alone. Beside them `all_cases` has Dice and IoU over every case by that convention
    (both empty 1, one empty 0); `n` is the number of cases of a target, and in `mean` of targets times cases. The
    mean of `all_cases` is over all targets, those that no case shows included, which have no entry of their own.

    The interval is Student's t over cases, of the mean over targets that are present.
    """
    present = [r for r in rows if r.present]
    absent = [r for r in rows if not r.present]
    first = next(iter(rows[0].consensus)) if rows else "mean"
    targets = {}
    everywhere = {name: _over_all([r for r in rows if r.target == name], first) for name in _targets(rows)}
    for name in _targets(present):
        own = [r for r in present if r.target == name]
        targets[name] = {"n": len(own), **_means(own, first), "all_cases": everywhere[name]}
    overall: dict[str, Any] = {}
    if targets:
        overall = _mean_of([{k: v for k, v in t.items() if k not in ("n", "all_cases")} for t in targets.values()])
        cases = list(dict.fromkeys(r.case for r in present))
        by_case = [fmean(r.consensus[first]["dice"] for r in present if r.case == c) for c in cases]
        if len(cases) > 1:
            overall["consensus_dice_interval"] = list(mean_interval(np.array(by_case)))
        overall["right_minus_wrong"] = overall["consensus_dice"] - overall["wrong_prompt_dice"]
    if rows:
        overall["all_cases"] = _mean_of(list(everywhere.values())) | {"n": len(rows)}
    found = Outcome.FOUND.value
    return {
        "cases": len({r.case for r in rows}),
        "fusion": first,
        "targets": targets,
        "mean": overall,
        "absent": {
            "n": len(absent),
            "said_found": sum(r.outcome == found for r in absent),
            "false_voxels": sum(r.consensus[first]["emptiness"] == "truth_empty" for r in absent),
        },
        "absent_slices": {
            "n": sum(r.absent_slices for r in rows),
            "false": sum(r.false_slices for r in rows),
            "rate": sum(r.false_slices for r in rows) / max(1, sum(r.absent_slices for r in rows)),
        },
        "present": {"n": len(present), "said_absent": sum(r.outcome != found for r in present)},
    }


def _targets(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(r.target for r in rows))


def _mean_of(figures: list[dict[str, float]]) -> dict[str, float]:
    return {key: fmean(one[key] for one in figures) for key in figures[0]}


def _means(rows: list[Row], first: str) -> dict[str, float]:
    means = {
        "single_dice": fmean(r.single["mean_dice"] for r in rows),
        "consensus_dice": fmean(r.consensus[first]["dice"] for r in rows),
        "oracle_dice": fmean(r.oracle for r in rows),
        "single_iou": fmean(r.single["mean_iou"] for r in rows),
        "iou": fmean(r.consensus[first]["iou"] for r in rows),
        "oracle_iou": fmean(r.oracle / (2 - r.oracle) for r in rows),  # the proposal of the best Dice has the best IoU
        "ged": fmean(r.ged for r in rows),
        "raters": fmean(r.raters for r in rows),
        "hd95_mm": fmean(r.consensus[first]["hd95_mm"] for r in rows),
        "nsd": fmean(r.consensus[first]["nsd"] for r in rows),
        "wrong_prompt_dice": fmean(r.wrong for r in rows),
    }
    return means | {f"{how}_dice": fmean(r.consensus[how]["dice"] for r in rows) for how in rows[0].consensus}


def _over_all(rows: list[Row], first: str) -> dict[str, float]:
    """The second reading of one target: every case, both masks empty 1, one of them empty 0."""
    means = _means(rows, first)
    return {"n": len(rows)} | {k: means[k] for k in ("single_dice", "consensus_dice", "oracle_dice", "iou")}
