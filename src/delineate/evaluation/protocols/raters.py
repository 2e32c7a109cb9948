"""Several proposals against several raters: GED², matched overlaps, spread, volume."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from rich.console import Console

from delineate.evaluation.protocols import lines as shared
from delineate.evaluation.protocols.charts import BLUE, RED, forest
from delineate.evaluation.protocols.lines import Answered, Line, by_subject, counted, line_of, lines_of
from delineate.evaluation.protocols.lines import write_lines as write
from delineate.evaluation.protocols.tables import print_counts, print_figures, print_targets
from delineate.metrics.overlap import ged_squared, hm_iou
from delineate.metrics.raters import (
    crps_ensemble,
    dice_each,
    dice_match,
    dice_max,
    dice_max_reverse,
    dice_soft,
    sample_diversity,
)
from delineate.pictures import COLOURS, new_figure, write_figure

__all__ = ["draw", "rows", "show", "summarise", "write"]


HEADINGS = {
    "ged": "GED², V form (less is better)",
    "ged_unbiased": "GED², U form (less is better)",
    "hm_iou": "matched IoU",
    "dice_match": "matched Dice",
    "dice_max": "Dice with the nearest rater",
    "dice_max_reverse": "Dice with the nearest proposal",
    "dice_each": "Dice of proposal i with rater i",
    "dice_soft": "Dice of agreement",
    "diversity": "diversity of proposals",
    "raters_diversity": "diversity of raters",
    "crps_ml": "CRPS of volume, ml (less is better)",
    "crps_pixels": "CRPS of area, pixels (less is better)",
}


def raters_line(answered: Answered) -> Line:
    """All proposals of one target against all readings of it, in 3-D (2-D for flat images).

    Figures: those of `HEADINGS`, each the function of that name in `delineate.metrics.overlap` or
    `delineate.metrics.raters`. `ged_unbiased` needs two proposals and two raters, `raters_diversity` two raters,
    `dice_each` as many proposals as raters (and means something only if proposal i is drawn for rater i). `dice_soft`
    compares the mean of the proposals' probabilities with the raters' mean. The CRPS is that of the proposals' volumes
    at each rater's, averaged over raters.

    Kept: `by_n`, the figures that depend on N if only the first 1, 2, 4, … proposals had been drawn.
    """
    masks = answered.masks()
    marked = masks.any(axis=0) | answered.readings.any(axis=0)  # elsewhere nothing can differ
    ours, theirs = masks[:, marked], answered.readings[:, marked]
    several = len(theirs) > 1
    voxel = float(np.prod(answered.step)) / 1000
    volumes, read = ours.sum(axis=1) * voxel, theirs.sum(axis=1) * voxel
    figures = {
        **_depending_on_n(ours, theirs),
        "hm_iou": hm_iou(ours, theirs),
        "dice_match": dice_match(ours, theirs),
        "dice_max": dice_max(ours, theirs),
        "dice_each": float(dice_each(ours, theirs).mean()) if len(ours) == len(theirs) else None,
        "dice_soft": dice_soft(answered.probability()[None], answered.readings),
        "diversity": sample_diversity(ours),
        "raters_diversity": sample_diversity(theirs) if several else None,
        f"crps_{answered.unit}": float(np.mean([crps_ensemble(volumes, float(volume)) for volume in read])),
    }
    ordered = {key: figures[key] for key in HEADINGS if key in figures}
    return line_of(answered, ordered, by_n={k: _depending_on_n(ours[:k], theirs) for k in _sizes(len(ours))})


def _depending_on_n(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float | None]:
    both = min(len(ours), len(theirs)) > 1
    return {
        "ged": ged_squared(ours, theirs),
        "ged_unbiased": ged_squared(ours, theirs, unbiased=True) if both else None,
        "dice_max_reverse": dice_max_reverse(ours, theirs),
    }


def _sizes(n: int) -> list[int]:
    """1, 2, 4, … and n."""
    return sorted({2**power for power in range(n.bit_length())} | {n})


def summarise(lines: Sequence[Line]) -> dict[str, Any]:
    """`lines.summarise`, with `by_n`: for 1, 2, 4, … proposals the means over subjects of what depends on N."""
    return shared.summarise(lines, _by_n)


def _by_n(lines: Sequence[Line]) -> dict[str, Any]:
    told: dict[str, dict[str, float]] = {}
    for size in sorted({size for line in lines for size in line.kept["by_n"]}):
        for key in ("ged", "ged_unbiased", "dice_max_reverse"):
            held = [line for line in lines if line.kept["by_n"].get(size, {}).get(key) is not None]
            if held:
                values = by_subject(held, lambda line, s=size, k=key: line.kept["by_n"][s][k])
                told.setdefault(str(size), {})[key] = float(values.mean())
    return {"by_n": told}


def rows(*args: Any, **how: Any) -> list[Line]:
    """What is known of every case and target."""
    return lines_of(raters_line, *args, **how)


def draw(name: str, report: dict[str, Any], path: Path) -> Path:
    """Left the figures without a unit, each with its interval; right those that depend on N, against it."""
    mean = report["mean"]
    keys = [key for key in HEADINGS if key in mean["figures"] and not key.startswith("crps")]
    several = len(mean["by_n"]) > 1
    figure = new_figure(11.5 if several else 7.0, 1.5 + 0.3 * len(keys))
    left, *right = figure.subplots(1, 2 if several else 1, width_ratios=(1.3, 1)[: 1 + several], squeeze=False)[0]
    figure.suptitle(f"{name}: {counted(report)}", fontsize=11, parse_math=False)
    forest(left, report, keys, [HEADINGS[key] for key in keys])
    targets = "; grey: single targets" if len(report["targets"]) > 1 else ""
    left.set_xlabel(f"mean over subjects, 95 % interval{targets}", fontsize=9)
    for axis in right:
        _against_n(axis, mean["by_n"])
    return write_figure(figure, path)


def _against_n(axis: Axes, by_n: Mapping[str, Mapping[str, float]]) -> None:
    lines = {
        "ged": ("GED², V form", RED, "o-"),
        "ged_unbiased": ("GED², U form", BLUE, "s--"),
        "dice_max_reverse": ("Dice with the nearest proposal", COLOURS[2], "^-"),
    }
    for key, (label, colour, style) in lines.items():
        told = {int(size): means[key] for size, means in by_n.items() if key in means}
        if told:
            axis.plot(list(told), list(told.values()), style, color=colour, label=label, markersize=4)
    axis.set_xscale("log", base=2)
    axis.set_xticks([int(size) for size in by_n], list(by_n))
    axis.minorticks_off()
    axis.set_xlabel("proposals used (N)", fontsize=9)
    axis.set_title("what N alone changes", fontsize=10)
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def show(summary: dict[str, Any], console: Console) -> None:
    """The table of `summarise`, and what its figures depend on."""
    short = {"ged": "GED²", "hm_iou": "IoU", "dice_match": "Dice", "dice_soft": "agreement", "diversity": "diversity"}
    print_targets(summary, short, console)
    print_figures(summary, HEADINGS, console)
    print_counts(summary, console)
    console.print(
        "GED² in its V form and the Dice with the nearest proposal change with N alone: compare them at equal N only "
        "(raters.png has both against N).",
        highlight=False,
    )
