"""The figures of the CURVAS challenges (2024 and 2025), one target at a time."""

from collections.abc import Sequence
from typing import Any

from delineate.evaluation.protocols.lines import Answered, Line, line_of, summarise
from delineate.metrics.raters import CURVAS_MARGIN, consensus_dice, curvas_crps, curvas_ece, curvas_threshold_dice
from delineate.proposals.fusion import foreground

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
    `consensus_dice` of the mask p >= 0.5; `threshold_dice`; `ece` over the whole image (2024) and `ece_crop` in the
    raters' box and 20 voxels around (2025); `crps_ml`, or `crps_pixels` where the file states no spacing. The
    challenges score several organs in one label map; here each is scored alone, as prompted targets may overlap.
    """
    p, readings = answered.probability(), answered.readings
    figures = {
        "consensus_dice": consensus_dice(foreground(p), readings),
        "threshold_dice": curvas_threshold_dice(p, readings),
        "ece": curvas_ece(p[None], readings),
        "ece_crop": curvas_ece(p[None], readings, margin=CURVAS_MARGIN),
        f"crps_{answered.unit}": curvas_crps(p, readings, answered.step),
    }
    return line_of(answered, figures)


def summarise_curvas(lines: Sequence[Line]) -> dict[str, Any]:
    """As `lines.summarise`."""
    return summarise(lines)
