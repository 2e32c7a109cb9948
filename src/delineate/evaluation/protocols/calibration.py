"""Do the mean probabilities, the doubt and the presence scores mean what they say?"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from delineate.calibration.calibrators import Reliability, auroc, brier, histogram, nll, reliability, roc
from delineate.evaluation.protocols.lines import Answered, Line, line_of, summarise
from delineate.metrics.overlap import dice
from delineate.metrics.raters import risk_coverage_area
from delineate.proposals.fusion import foreground
from delineate.proposals.ordering import probable_dice
from delineate.proposals.proposals import Outcome

BINS = 15
MARGIN = 10  # voxels along each axis, around what is drawn or true
DRAWN, CALIBRATED = "as_drawn", "calibrated"
BOX, WHOLE = "box", "whole"

Table = tuple[np.ndarray, np.ndarray, np.ndarray]  # probability, truth, weight: of `calibrators.histogram`


def calibration_line(answered: Answered, calibrator: Callable[[np.ndarray], np.ndarray] | None = None) -> Line:
    """How far the mean of the proposals is a probability, as drawn and, with a `calibrator`, mapped by it.

    Figures, all of this one case: `dice` of the mask p >= 0.5 with the truth, `doubt` (`TargetProposals.doubt`), and
    `ece`, `brier` and `nll` against the truth over all voxels (`_whole`) and in a box (`_box`): what the mask, the
    truth and the raters cover, with `MARGIN` voxels around, cut at the image's border. Where nobody drew anything there
    is no box. Mask and box are those of the map as drawn for both maps: they are measured on the same voxels.
    `calibrated_` stands before the figures of the second.

    Kept: `tables`, by (map, region, against) what pools into a reliability diagram. Against "truth" is the label file;
    against "raters", where there are several, each voxel counts once, as 1/M for each of M raters.
    """
    p = answered.probability()
    mask = foreground(p)
    maps = {DRAWN: p} | ({} if calibrator is None else {CALIBRATED: calibrator(p)})
    box = box_around(mask | answered.truth | answered.readings.any(axis=0), MARGIN)
    regions = {WHOLE: (...,)} | ({} if box is None else {BOX: box})
    figures: dict[str, float | None] = {"dice": dice(mask, answered.truth)}
    tables: dict[tuple[str, str, str], Table] = {}
    for kind, q in maps.items():
        before = "" if kind == DRAWN else f"{kind}_"
        figures[f"{before}doubt"] = 1 - probable_dice(mask, q)
        for region in (BOX, WHOLE):
            where = regions.get(region)
            if where is not None:
                tables[kind, region, "truth"] = histogram(q[where], answered.truth[where])
            if where is not None and len(answered.readings) > 1:
                tables[kind, region, "raters"] = _by_raters(q[where], answered.readings[:, *where])
            table = tables.get((kind, region, "truth"))
            figures[f"{before}ece_{region}"] = None if table is None else _reliability(table).ece
            figures[f"{before}brier_{region}"] = None if table is None else brier(*table)
            figures[f"{before}nll_{region}"] = None if table is None else nll(*table)
    return line_of(answered, figures, tables=tables, truth=bool(answered.truth.any()), mask=bool(mask.any()))


def box_around(marked: np.ndarray, margin: int) -> tuple[slice, ...] | None:
    """The box of a bool array's true voxels with `margin` more on every side, cut at the border; None without any."""
    if not marked.any():
        return None
    places = [
        np.flatnonzero(marked.any(axis=tuple(a for a in range(marked.ndim) if a != axis)))
        for axis in range(marked.ndim)
    ]
    return tuple(slice(max(0, int(at[0]) - margin), int(at[-1]) + 1 + margin) for at in places)


def _by_raters(p: np.ndarray, readings: np.ndarray) -> Table:
    p, y, w = _joined([histogram(p, reading) for reading in readings])
    return p, y, w / len(readings)


def _joined(tables: Sequence[Table]) -> Table:
    p, y, w = (np.concatenate(part) for part in zip(*tables, strict=True))
    return p, y, w


def _reliability(table: Table, adaptive: bool = False) -> Reliability:
    p, y, w = table
    return reliability(p, y, BINS, adaptive, w)


def summarise_calibration(lines: Sequence[Line]) -> dict[str, Any]:
    """`lines.summarise`, with what takes many cases together, for each target and, in `mean`, for all targets.

    `pooled`: by map (as_drawn, calibrated), region (box, whole) and against what (truth, raters) the voxels of all
    cases together: how many, `ece`, `adaptive_ece`, `mce` (of 15 bins), `brier`, `nll` and the `reliability` diagram.
    Large cases weigh more there than in `figures`, whose means and intervals are over subjects.

    `risk_coverage`: by map, over `all` (case, target) and over those whose mask is `not_empty` (an empty one has no
    doubt, so a target that was missed passes for sure): risk 1 - Dice with the truth, confidence 1 - doubt of that map;
    the `area` under the curve, the `least` it could be, and `mean_risk`, what no order at all would give.

    `presence`: whether the truth has a voxel, against the score and the outcome; the ROC curve and its area where
    some have and some have not.
    """
    return summarise(lines, _taken_together) | {"bins": BINS, "margin_voxels": MARGIN}


def _taken_together(lines: Sequence[Line]) -> dict[str, Any]:
    kinds = list(dict.fromkeys(kind for line in lines for kind, _, _ in line.kept["tables"]))
    return {
        "pooled": {kind: {region: _pooled(lines, kind, region) for region in (BOX, WHOLE)} for kind in kinds},
        "risk_coverage": {kind: _risk_coverage(lines, "" if kind == DRAWN else f"{kind}_") for kind in kinds},
        "presence": _presence(lines),
    }


def _pooled(lines: Sequence[Line], kind: str, region: str) -> dict[str, Any]:
    told = {}
    for against in ("truth", "raters"):
        if tables := [t for line in lines if (t := line.kept["tables"].get((kind, region, against))) is not None]:
            table = _joined(tables)
            diagram = _reliability(table)
            told[against] = {
                "n": len(tables),
                "voxels": round(float(table[2].sum())),
                "ece": diagram.ece,
                "adaptive_ece": _reliability(table, adaptive=True).ece,
                "mce": diagram.mce,
                "brier": brier(*table),
                "nll": nll(*table),
                "reliability": {
                    "count": diagram.count.tolist(),
                    "confidence": diagram.confidence.tolist(),
                    "frequency": diagram.frequency.tolist(),
                },
            }
    return told


def _risk_coverage(lines: Sequence[Line], before: str) -> dict[str, Any]:
    told = {}
    for which, some in {"all": lines, "not_empty": [line for line in lines if line.kept["mask"]]}.items():
        agreed, doubt = (np.array([line.figures[k] for line in some], float) for k in ("dice", f"{before}doubt"))
        if some:
            curve = risk_coverage_area(1 - agreed, 1 - doubt)
            told[which] = {
                "n": len(some),
                "area": curve.area,
                "least": curve.least,
                "mean_risk": float((1 - agreed).mean()),
                "coverage": curve.coverage.tolist(),
                "risk": curve.risk.tolist(),
            }
    return told


def _presence(lines: Sequence[Line]) -> dict[str, Any]:
    truth, score = np.array([line.kept["truth"] for line in lines]), np.array([line.score for line in lines])
    found = np.array([line.outcome == Outcome.FOUND.value for line in lines])
    told: dict[str, Any] = {
        "present": int(truth.sum()),
        "absent": int((~truth).sum()),
        "found_of_present": int((found & truth).sum()),
        "found_of_absent": int((found & ~truth).sum()),
        "auroc": None,
        "roc": None,
    }
    if told["present"] and told["absent"]:
        curve = roc(score, truth)
        told["auroc"] = auroc(score, truth)
        told["roc"] = {
            "threshold": [None, *curve.threshold[1:].tolist()],  # the first is infinity: nothing is found
            "false_alarm": curve.false_alarm.tolist(),
            "sensitivity": curve.sensitivity.tolist(),
        }
    return told
