"""What the pictures of several protocols share. All are PNG, drawn without a display."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from delineate.pictures import COLOURS

BLUE, RED, GREY = COLOURS[4], COLOURS[5], "#999999"


def forest(axis: Axes, report: Mapping[str, Any], keys: Sequence[str], labels: Sequence[str]) -> None:
    """The mean over targets with its interval, a line a figure; single targets as grey dots where there are several."""
    figures = report["mean"]["figures"]
    if len(report["targets"]) > 1:
        for block in report["targets"].values():
            held = [(at, block["figures"][key]["mean"]) for at, key in enumerate(keys) if key in block["figures"]]
            axis.plot([mean for _, mean in held], [at for at, _ in held], ".", color=GREY, markersize=5)
    dots(axis, range(len(keys)), [figures[key] for key in keys], BLUE)
    axis.set_yticks(range(len(keys)), labels, fontsize=9)
    axis.set_ylim(len(keys) - 0.5, -0.5)
    axis.set_xlim(min(0.0, axis.get_xlim()[0]), max(1.0, axis.get_xlim()[1]))
    axis.grid(axis="x", alpha=0.3)


def dots(
    axis: Axes, places: Sequence[float], figures: Sequence[Mapping[str, Any]], colour: str, label: str | None = None
) -> None:
    """Means as dots, each with its interval where it has one."""
    for at, figure in zip(places, figures, strict=True):
        if figure["low"] is not None:
            axis.plot([figure["low"], figure["high"]], [at, at], color=colour, linewidth=2, alpha=0.5)
    axis.plot([figure["mean"] for figure in figures], list(places), "o", color=colour, markersize=5, label=label)


def blocks_of(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The targets and, where there are several, their mean."""
    targets = list(report["targets"].items())
    return targets if len(targets) == 1 else [*targets, ("mean", report["mean"])]
