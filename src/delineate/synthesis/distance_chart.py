"""The picture of a distance between two sets of scans: which groups of features differ, and which features most."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from delineate.storage.files import replacing
from delineate.synthesis.distance import CLIP, Distance

HIGHER, LOWER, FLOOR = "#D55E00", "#0072B2", "black"  # Okabe and Ito's, told apart by the colour-blind
MOST = 15


def distance_chart(result: Distance, path: Path) -> Path:
    """The PNG at `path`: left each group's distance with its floor, right the features that differ most."""
    shown = result.features[:MOST]
    height = 1.6 + 0.27 * max(len(shown), len(result.groups))
    figure = Figure(figsize=(12.5, height), layout="constrained")
    groups, features = figure.subplots(1, 2)
    title = f"distance {result.distance:.1f}, floor {result.floor:.1f}"
    figure.suptitle(f"{title} ({result.n_reference} reference images, {result.n_other} others)", fontsize=11)
    _draw_groups(groups, result)
    shifts = [feature.shift for feature in shown]
    at = np.arange(len(shown))
    features.barh(at, np.clip(shifts, -CLIP, CLIP), color=[HIGHER if shift >= 0 else LOWER for shift in shifts])
    features.axvline(0, color="black", linewidth=0.8)
    features.set_yticks(at, [_label(feature.name) for feature in shown], fontsize=8)
    features.set_xlabel(f"shift of the mean, sd of the reference (at most ±{CLIP:g})", fontsize=9)
    features.set_title("features that differ most", fontsize=10)
    for axis in (groups, features):
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.3)
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=100, format="png")
    return Path(path)


def _draw_groups(axis: Axes, result: Distance) -> None:
    at = np.arange(len(result.groups))
    axis.barh(at, [group.distance for group in result.groups.values()], color="#56B4E9", label="distance")
    axis.plot([group.floor for group in result.groups.values()], at, "|", color=FLOOR, markersize=11, label="floor")
    axis.set_yticks(at, list(result.groups), fontsize=8)
    axis.set_xlabel("Fréchet distance of the group alone", fontsize=9)
    axis.set_title("groups: filters, then feature classes", fontsize=10)
    axis.legend(fontsize=8, loc="lower right")


def _label(name: str) -> str:
    image, kind, feature = name.split("_", 2)
    return f"{feature} ({kind}, {image})"
