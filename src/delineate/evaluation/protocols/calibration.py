"""Do the mean probabilities, the doubt and the presence scores mean what they say?"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from delineate.calibration.calibrators import Reliability, auroc, brier, histogram, nll, reliability, roc
from delineate.data.dataset import Dataset
from delineate.evaluation.protocols import lines as shared
from delineate.evaluation.protocols.charts import BLUE, GREY, RED
from delineate.evaluation.protocols.lines import Answered, Line, counted, line_of, lines_of
from delineate.evaluation.protocols.lines import write_lines as write
from delineate.evaluation.protocols.tables import blocks_of, print_counts
from delineate.metrics.overlap import dice
from delineate.metrics.raters import risk_coverage_area
from delineate.pictures import new_figure, write_figure
from delineate.proposals.ordering import probable_dice
from delineate.proposals.target import Outcome
from delineate.segmenter import Segmenter

__all__ = ["draw", "rows", "show", "summarise", "write"]


BINS = 15
MARGIN = 10  # voxels along each axis, around what is drawn or true
DRAWN, CALIBRATED = "as_drawn", "calibrated"
BOX, WHOLE = "box", "whole"
FEW = 20  # points of a curve that are marked one by one
MEANING = {DRAWN: ("as drawn", BLUE), CALIBRATED: ("calibrated", RED)}

Pixels = tuple[np.ndarray, np.ndarray, np.ndarray]  # probability, truth, weight: of `calibration.histogram`


def calibration_line(answered: Answered, calibrator: Callable[[np.ndarray], np.ndarray] | None = None) -> Line:
    """How far the mean of the proposals is a probability, as drawn and, with a `calibrator`, mapped by it.

    Figures, all of this one case: `dice` of the consensus with the truth, `doubt` (`TargetProposals.doubt`), and
    `ece`, `brier` and `nll` against the truth over all voxels (`_whole`) and in a box (`_box`): what the mask, the
    truth and the raters cover, with `MARGIN` voxels around, cut at the image's border. Where nobody drew anything there
    is no box. Mask and box are those of the map as drawn for both maps: they are measured on the same voxels.
    `calibrated_` stands before the figures of the second.

    Kept: `tables`, by (map, region, against) what pools into a reliability diagram. Against "truth" is the label file;
    against "raters", where there are several, each voxel counts once, as 1/M for each of M raters.
    """
    p = answered.probability()
    mask = answered.answer.consensus()
    maps = {DRAWN: p} | ({} if calibrator is None else {CALIBRATED: calibrator(p)})
    box = box_around(mask | answered.truth | answered.readings.any(axis=0), MARGIN)
    regions = {WHOLE: (...,)} | ({} if box is None else {BOX: box})
    figures: dict[str, float | None] = {"dice": dice(mask, answered.truth)}
    tables: dict[tuple[str, str, str], Pixels] = {}
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


def _by_raters(p: np.ndarray, readings: np.ndarray) -> Pixels:
    p, y, w = _joined([histogram(p, reading) for reading in readings])
    return p, y, w / len(readings)


def _joined(tables: Sequence[Pixels]) -> Pixels:
    p, y, w = (np.concatenate(part) for part in zip(*tables, strict=True))
    return p, y, w


def _reliability(table: Pixels, adaptive: bool = False) -> Reliability:
    p, y, w = table
    return reliability(p, y, BINS, adaptive, w)


def summarise(lines: Sequence[Line]) -> dict[str, Any]:
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
    return shared.summarise(lines, _taken_together) | {"bins": BINS, "margin_voxels": MARGIN}


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


def rows(segmenter: Segmenter, dataset: Dataset, **how: Any) -> list[Line]:
    """What is known of every case and target; with what the segmenter makes of its means, where it is calibrated."""
    calibrator = None if segmenter.calibration is None else segmenter.calibration.calibrated
    return lines_of(partial(calibration_line, calibrator=calibrator), segmenter, dataset, **how)


def draw(name: str, report: dict[str, Any], path: Path) -> Path:
    """Reliability diagrams over what they count, in the box and everywhere; risk–coverage; a ROC where there is one."""
    mean = report["mean"]
    last = [] if mean["presence"]["roc"] is None else ["roc"]
    places: list[Any] = [["box", "whole", "risk", *last], ["box n", "whole n", "risk", *last]]
    figure = new_figure(3.6 * len(places[0]), 4.6)
    figure.suptitle(f"{name}: {counted(report)}", fontsize=11, parse_math=False)
    axes = figure.subplot_mosaic(places, height_ratios=(3, 1))
    box = f"{report['margin_voxels']} voxels around mask and truth"
    for region, title in ((BOX, box), (WHOLE, "all voxels")):
        _diagram(axes[region], axes[f"{region} n"], mean["pooled"], region)
        axes[region].set_title(title, fontsize=10)
    _risk(axes["risk"], mean["risk_coverage"])
    if "roc" in axes:
        _roc(axes["roc"], mean["presence"])
    return write_figure(figure, path)


def _diagram(axis: Axes, below: Axes, pooled: Mapping[str, Any], region: str) -> None:
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    for kind, regions in pooled.items():
        words, colour = MEANING[kind]
        for against, told in regions[region].items():
            diagram = told["reliability"]
            style, marker = ("-", "o") if against == "truth" else (":", "s")
            whom = "" if against == "truth" else ", raters"
            label = f"{words}{whom}: ECE {told['ece']:.3f}"
            look = {"marker": marker, "color": colour, "markersize": 4, "label": label}
            axis.plot(diagram["confidence"], diagram["frequency"], style, **look)
            if against == "truth":
                edges = np.arange(BINS + 1) / BINS
                counts, _ = np.histogram(diagram["confidence"], edges, weights=diagram["count"])
                below.stairs(counts, edges, color=colour, fill=kind == DRAWN, alpha=0.6)
    axis.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is true")
    axis.tick_params(labelbottom=False)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    below.set(xlim=(0, 1), yscale="log", xlabel="probability", ylabel="voxels")
    below.grid(alpha=0.3)


def _risk(axis: Axes, curves: Mapping[str, Any]) -> None:
    for kind, told in curves.items():
        words, colour = MEANING[kind]
        for which, curve in told.items():
            label = f"{words}{'' if which == 'all' else ', not empty'}: {curve['area']:.3f}"
            style, marker = "-" if which == "all" else ":", "." if curve["n"] <= FEW else ""
            axis.plot(curve["coverage"], curve["risk"], color=colour, label=label, linestyle=style, marker=marker)
    none = next(iter(curves.values()))["all"]["mean_risk"]
    axis.axhline(none, color=GREY, linewidth=0.8, label=f"no order: {none:.3f}")
    axis.set(xlim=(0, 1), xlabel="share of masks kept, least doubt first", ylabel="mean of 1 - Dice")
    axis.set_ylim(0, max(0.1, axis.get_ylim()[1]))
    axis.set_title("does doubt find the bad masks?", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _roc(axis: Axes, presence: Mapping[str, Any]) -> None:
    axis.set_title("does the score find what is there?", fontsize=10)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="false alarms", ylabel="sensitivity")
    axis.grid(alpha=0.3)
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    label = f"AUROC {presence['auroc']:.3f}\n{presence['present']} present, {presence['absent']} absent"
    axis.plot(presence["roc"]["false_alarm"], presence["roc"]["sensitivity"], color=BLUE, label=label)
    axis.legend(fontsize=8, loc="lower right")


def show(summary: dict[str, Any], console: Console) -> None:
    """The pooled figures of `summarise`, the risk–coverage curve and presence in words."""
    for region, where in (
        (BOX, f"in a box, {summary['margin_voxels']} voxels around what is drawn or true"),
        (WHOLE, "over all voxels, most of which are easy background"),
    ):
        console.print(f"all cases together, {where}")
        table = Table(box=None, pad_edge=False)
        table.add_column("target")
        for heading in ("ECE", "adaptive", "MCE", "Brier", "NLL"):
            table.add_column(heading, justify="right")
        for name, block in blocks_of(summary):
            for kind, regions in block["pooled"].items():
                for against, told in regions[region].items():
                    words = [name, *([] if kind == DRAWN else ["calibrated"])]
                    words += ["against the raters"] if against == "raters" else []
                    numbers = (told[key] for key in ("ece", "adaptive_ece", "mce", "brier", "nll"))
                    table.add_row(", ".join(words), *(f"{number:.4f}" for number in numbers))
        console.print(table)
        console.print()
    mean = summary["mean"]
    for kind, curves in mean["risk_coverage"].items():
        for which, curve in curves.items():
            told = "" if kind == DRAWN else " of the calibrated map"
            masks = "masks" if which == "all" else "masks that are not empty"
            console.print(
                f"risk–coverage over {curve['n']} {masks} in the order of doubt{told}: 1 - Dice {curve['area']:.3f} "
                f"(in the best order {curve['least']:.3f}, in none {curve['mean_risk']:.3f})",
                highlight=False,
            )
    presence = mean["presence"]
    area = "no ROC, for which both are needed" if presence["auroc"] is None else f"AUROC {presence['auroc']:.3f}"
    console.print(
        f"presence: {presence['present']} present, {presence['found_of_present']} of them called found; "
        f"{presence['absent']} absent, {presence['found_of_absent']} of them called found; {area}",
        highlight=False,
    )
    print_counts(summary, console)
