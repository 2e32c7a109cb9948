"""The figures of the CURVAS challenges (2024 and 2025), one target at a time."""

from pathlib import Path
from typing import Any

from rich.console import Console

from delineate.evaluation.protocols.charts import BLUE, RED, blocks_of, dots
from delineate.evaluation.protocols.lines import Answered, Line, counted, line_of, lines_of, summarise
from delineate.evaluation.protocols.lines import write_lines as write
from delineate.evaluation.protocols.tables import print_counts, print_figures, print_targets
from delineate.metrics.raters import CURVAS_MARGIN, consensus_dice, curvas_crps, curvas_ece, curvas_threshold_dice
from delineate.pictures import COLOURS, new_figure, write_figure

__all__ = ["draw", "rows", "show", "summarise", "write"]


HEADINGS = {
    "consensus_dice": "Dice where all raters agree",
    "threshold_dice": "Dice of agreement, at 0.1 to 0.8",
    "ece": "calibration error, whole image (less is better)",
    "ece_crop": f"calibration error, raters' box + {CURVAS_MARGIN} (less is better)",
    "crps_ml": "CRPS of volume, ml (less is better)",
    "crps_pixels": "CRPS of area, pixels (less is better)",
}


def curvas_line(answered: Answered) -> Line:
    """One target against its background, with the mean of the proposals for probability.

    Figures (`delineate.metrics.raters` has the definitions, and where the challenges' own code departs from them):
    `consensus_dice` of the consensus; `threshold_dice`; `ece` over the whole image (2024) and `ece_crop` in the
    raters' box and 20 voxels around (2025); `crps_ml`, or `crps_pixels` where the file states no spacing. The
    challenges score several organs in one label map; here each is scored alone, as prompted targets may overlap.
    """
    p, readings = answered.probability(), answered.readings
    figures = {
        "consensus_dice": consensus_dice(answered.answer.consensus(), readings),
        "threshold_dice": curvas_threshold_dice(p, readings),
        "ece": curvas_ece(p[None], readings),
        "ece_crop": curvas_ece(p[None], readings, margin=CURVAS_MARGIN),
        f"crps_{answered.unit}": curvas_crps(p, readings, answered.step),
    }
    return line_of(answered, figures)


def rows(*args: Any, **how: Any) -> list[Line]:
    """What is known of every case and target."""
    return lines_of(curvas_line, *args, **how)


def draw(name: str, report: dict[str, Any], path: Path) -> Path:
    """A panel each for overlap, calibration error and volume; a line a target."""
    crps = "crps_ml" if "crps_ml" in report["mean"]["figures"] else "crps_pixels"
    box = f"calibration error, raters' box + {CURVAS_MARGIN} voxels"
    panels = (
        ("overlap", {"consensus_dice": "Dice where all raters agree", "threshold_dice": "Dice of agreement"}),
        ("calibration error", {"ece": "calibration error, whole image", "ece_crop": box}),
        (f"CRPS of {'volume, ml' if crps == 'crps_ml' else 'area, pixels'}", {crps: None}),
    )
    colours = iter((BLUE, RED, COLOURS[2], COLOURS[6], "black"))
    blocks = blocks_of(report)
    figure = new_figure(11.5, 1.9 + 0.34 * len(blocks))
    axes = figure.subplots(1, len(panels), sharey=True)
    figure.suptitle(f"{name}: {counted(report)}", fontsize=11, parse_math=False)
    for axis, (title, keys) in zip(axes, panels, strict=True):
        for number, (key, label) in enumerate(keys.items()):
            shift = (number - (len(keys) - 1) / 2) * 0.24
            held = [(at, block["figures"][key]) for at, (_, block) in enumerate(blocks) if key in block["figures"]]
            dots(axis, [at + shift for at, _ in held], [f for _, f in held], next(colours), label)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlim(left=0)
    axes[0].set_xlim(0, 1)
    axes[0].set_yticks(range(len(blocks)), [target for target, _ in blocks], fontsize=9, parse_math=False)
    axes[0].set_ylim(len(blocks) - 0.5, -0.5)
    figure.legend(loc="outside lower center", ncols=len(panels) + 2, fontsize=8, frameon=False)
    return write_figure(figure, path)


def show(summary: dict[str, Any], console: Console) -> None:
    """The table of `summarise`."""
    short = {"consensus_dice": "Dice", "threshold_dice": "agreement", "ece": "ECE", "ece_crop": "ECE box"}
    short |= {"crps_ml": "CRPS ml", "crps_pixels": "CRPS pixels"}
    print_targets(summary, short, console)
    print_figures(summary, HEADINGS, console)
    print_counts(summary, console)
