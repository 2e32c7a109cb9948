"""The pictures of the protocols. All are PNG, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from delineate.evaluation.protocols import calibration, curvas, raters
from delineate.evaluation.protocols.lines import counted
from delineate.pictures import COLOURS, new_figure, write_figure

FEW = 20  # points of a curve that are marked one by one
BLUE, RED, GREY = COLOURS[4], COLOURS[5], "#999999"
MEANING = {calibration.DRAWN: ("as drawn", BLUE), calibration.CALIBRATED: ("calibrated", RED)}


def raters_chart(name: str, report: dict[str, Any], path: Path) -> Path:
    """Left the figures without a unit, each with its interval; right those that depend on N, against it."""
    mean = report["mean"]
    keys = [key for key in raters.HEADINGS if key in mean["figures"] and not key.startswith("crps")]
    several = len(mean["by_n"]) > 1
    figure = new_figure(11.5 if several else 7.0, 1.5 + 0.3 * len(keys))
    left, *right = figure.subplots(1, 2 if several else 1, width_ratios=(1.3, 1)[: 1 + several], squeeze=False)[0]
    figure.suptitle(f"{name}: {counted(report)}", fontsize=11, parse_math=False)
    _forest(left, report, keys, [raters.HEADINGS[key] for key in keys])
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


def curvas_chart(name: str, report: dict[str, Any], path: Path) -> Path:
    """A panel each for overlap, calibration error and volume; a line a target."""
    crps = "crps_ml" if "crps_ml" in report["mean"]["figures"] else "crps_pixels"
    box = f"calibration error, raters' box + {curvas.CURVAS_MARGIN} voxels"
    panels = (
        ("overlap", {"consensus_dice": "Dice where all raters agree", "threshold_dice": "Dice of agreement"}),
        ("calibration error", {"ece": "calibration error, whole image", "ece_crop": box}),
        (f"CRPS of {'volume, ml' if crps == 'crps_ml' else 'area, pixels'}", {crps: None}),
    )
    colours = iter((BLUE, RED, COLOURS[2], COLOURS[6], "black"))
    blocks = _blocks(report)
    figure = new_figure(11.5, 1.9 + 0.34 * len(blocks))
    axes = figure.subplots(1, len(panels), sharey=True)
    figure.suptitle(f"{name}: {counted(report)}", fontsize=11, parse_math=False)
    for axis, (title, keys) in zip(axes, panels, strict=True):
        for number, (key, label) in enumerate(keys.items()):
            shift = (number - (len(keys) - 1) / 2) * 0.24
            held = [(at, block["figures"][key]) for at, (_, block) in enumerate(blocks) if key in block["figures"]]
            _dots(axis, [at + shift for at, _ in held], [f for _, f in held], next(colours), label)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlim(left=0)
    axes[0].set_xlim(0, 1)
    axes[0].set_yticks(range(len(blocks)), [target for target, _ in blocks], fontsize=9, parse_math=False)
    axes[0].set_ylim(len(blocks) - 0.5, -0.5)
    figure.legend(loc="outside lower center", ncols=len(panels) + 2, fontsize=8, frameon=False)
    return write_figure(figure, path)


def reliability_chart(name: str, report: dict[str, Any], path: Path) -> Path:
    """Reliability diagrams over what they count, in the box and everywhere; risk–coverage; a ROC where there is one."""
    mean = report["mean"]
    last = [] if mean["presence"]["roc"] is None else ["roc"]
    places: list[Any] = [["box", "whole", "risk", *last], ["box n", "whole n", "risk", *last]]
    figure = new_figure(3.6 * len(places[0]), 4.6)
    figure.suptitle(f"{name}: {counted(report)}", fontsize=11, parse_math=False)
    axes = figure.subplot_mosaic(places, height_ratios=(3, 1))
    box = f"{report['margin_voxels']} voxels around mask and truth"
    for region, title in ((calibration.BOX, box), (calibration.WHOLE, "all voxels")):
        _reliability(axes[region], axes[f"{region} n"], mean["pooled"], region)
        axes[region].set_title(title, fontsize=10)
    _risk(axes["risk"], mean["risk_coverage"])
    if "roc" in axes:
        _roc(axes["roc"], mean["presence"])
    return write_figure(figure, path)


def _reliability(axis: Axes, below: Axes, pooled: Mapping[str, Any], region: str) -> None:
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
                edges = np.arange(calibration.BINS + 1) / calibration.BINS
                counts, _ = np.histogram(diagram["confidence"], edges, weights=diagram["count"])
                below.stairs(counts, edges, color=colour, fill=kind == calibration.DRAWN, alpha=0.6)
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


def _forest(axis: Axes, report: Mapping[str, Any], keys: Sequence[str], labels: Sequence[str]) -> None:
    """The mean over targets with its interval, a line a figure; single targets as grey dots where there are several."""
    figures = report["mean"]["figures"]
    if len(report["targets"]) > 1:
        for block in report["targets"].values():
            held = [(at, block["figures"][key]["mean"]) for at, key in enumerate(keys) if key in block["figures"]]
            axis.plot([mean for _, mean in held], [at for at, _ in held], ".", color=GREY, markersize=5)
    _dots(axis, range(len(keys)), [figures[key] for key in keys], BLUE)
    axis.set_yticks(range(len(keys)), labels, fontsize=9)
    axis.set_ylim(len(keys) - 0.5, -0.5)
    axis.set_xlim(min(0.0, axis.get_xlim()[0]), max(1.0, axis.get_xlim()[1]))
    axis.grid(axis="x", alpha=0.3)


def _dots(
    axis: Axes, places: Sequence[float], figures: Sequence[Mapping[str, Any]], colour: str, label: str | None = None
) -> None:
    for at, figure in zip(places, figures, strict=True):
        if figure["low"] is not None:
            axis.plot([figure["low"], figure["high"]], [at, at], color=colour, linewidth=2, alpha=0.5)
    axis.plot([figure["mean"] for figure in figures], list(places), "o", color=colour, markersize=5, label=label)


def _blocks(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    targets = list(report["targets"].items())
    return targets if len(targets) == 1 else [*targets, ("mean", report["mean"])]
