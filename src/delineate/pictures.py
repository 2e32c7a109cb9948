"""Pictures: what people would look at rather than read. All are PNG, drawn without a display."""

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from delineate.prompts.colours import CONSENSUS, DISTINCT
from delineate.proposals.proposals import Proposals
from delineate.proposals.reasons import why
from delineate.proposals.target import Outcome, TargetProposals
from delineate.scans.geometry import canonical_spacing, orientation_of, to_canonical
from delineate.scans.intensity import intensity_range, normalise
from delineate.scans.scan import Scan
from delineate.storage.files import replacing

# Okabe and Ito's colours: told apart by the colour-blind.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
WIDE = 58  # characters of a line of a panel's title
MOST_PIXELS = 1200  # along a side of what is drawn: a panel shows some 300
VEIL = 0.25  # how much of its colour lies over a mask: enough to tell it from its surroundings, and what is under it


def montage(proposals: Proposals, path: Path, *, how: str = "mean") -> Path:
    """One row a target: the consensus, the first two distinct proposals, the doubt.

    The consensus' title says what Dice it can expect, where that was fitted (`delineate.calibration.quality`), and what
    its outcome rests on (`why`); a proposal's says what share of all it stands for and how far it agrees with the
    others (`delineate.proposals.ordering`). Where one stands for all, the bare scan takes the second one's place. The
    slice shown is the one where the consensus is largest, or most probable where there is none; of a target that was
    not drawn the middle one, and why.
    """
    scan = proposals.scan.shown
    ends = intensity_range(scan.voxels, scan.modality)
    rows = len(proposals.targets)
    figure = new_figure(12.4, 3.8 * rows + 0.1)
    axes = figure.subplots(rows, 4, squeeze=False)
    for line, target in zip(axes, proposals, strict=True):
        for axis in line:
            axis.axis("off")
        if target.drawn is None:
            near = f"\nnearest: {', '.join(target.nearest)}" if target.nearest else ""
            near += "\n" + textwrap.fill(target.misfit, 90) if target.misfit else ""
            text = f"'{target.prompt.text}': {target.outcome}{near}"
            orientation = orientation_of(scan.affine)
            slices = to_canonical(scan.voxels, orientation)
            _, row_mm, column_mm = canonical_spacing(scan.affine, orientation)
            picture = (normalise(thinned(slices[len(slices) // 2]), scan.modality, ends) + 1) / 2
            line[0].imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=row_mm / column_mm)
            line[1].text(0.0, 0.5, text, transform=line[1].transAxes, fontsize=10, va="center", parse_math=False)
            continue
        _draw_target(line, target, scan, ends, how)
    return write_figure(figure, path)


def _draw_target(line: Any, target: TargetProposals, scan: Scan, ends: tuple[float, float], how: str):
    orientation = orientation_of(scan.affine)
    slices, axis = to_canonical(scan.voxels, orientation), orientation.order[0]
    k, index = target.fullest(orientation, how)
    here, consensus = target.sliced(axis, index), target.consensus_in(axis, index, how)

    def seen(array: np.ndarray) -> np.ndarray:
        return thinned(to_canonical(array, orientation)[0])

    picture = (normalise(thinned(slices[k]), scan.modality, ends) + 1) / 2
    _, row_mm, column_mm = canonical_spacing(scan.affine, orientation)
    aspect = row_mm / column_mm
    for panel in line[:3]:
        panel.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=aspect)
    where = f", slice {k + 1} of {len(slices)}" if len(slices) > 1 else ""
    contour(line[0], seen(consensus), CONSENSUS, 1.6)
    found = target.outcome is Outcome.FOUND
    title = f"{target.name}{where}\nconsensus: {target.outcome.value}, score {target.score:.2f}"
    if how == "mean" and (expected := target.expected()) is not None:
        title += f"\nDice {expected.dice:.2f} expected, {expected.level:.0%}: {expected.low:.2f} to {expected.high:.2f}"
    elif found and target.uncalibrated:
        title += ", uncalibrated"
    title += "\n" + "\n".join(textwrap.wrap(why(target, scan), WIDE))
    line[0].set_title(title, fontsize=7.5, parse_math=False, color="black" if found else "#B00020")
    distinct, agreement, sizes = target.distinct(), target.agreement(), target.sizes()
    if len(distinct) == 1:
        line[2].set_title("scan", fontsize=8.5)
    for number, (one, colour) in enumerate(zip(distinct, DISTINCT, strict=False)):
        mask = seen(here.choose(one.k))
        contour(line[number + 1], mask, colour, 1.2)
        nothing = "" if mask.any() else ", not here" if sizes[one.k] else ", empty"
        title = f"proposal {one.k}{nothing}, for {one.weight:.0%} of {len(target)}\n"
        title += f"distinct {number + 1} of {len(distinct)}"
        title += f", agrees {agreement[one.k]:.2f}" if found else ""
        line[number + 1].set_title(title, fontsize=8.5)
    line[3].imshow(seen(here.disagreement()), cmap="magma", vmin=0, vmax=1, aspect=aspect)
    line[3].set_title("doubt (bits)", fontsize=8.5)


def thinned(image: np.ndarray) -> np.ndarray:
    """An image (rows, columns) or (rows, columns, 3) with no more pixels than a panel shows; of a mask none is lost."""
    every = -(-max(image.shape[:2]) // MOST_PIXELS)
    if every == 1 or image.dtype != bool:
        return image[::every, ::every]
    padded = np.pad(image, [(0, -length % every) for length in image.shape])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (every, every))[::every, ::every]
    return np.asarray(windows.any(axis=(2, 3)))


def contour(axis: Axes, mask: np.ndarray, colour: str, width: float) -> None:
    """Outline a 2-D bool mask on `axis`; an empty one leaves no mark."""
    if mask.any():
        axis.set_autoscale_on(False)
        rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
        # padded, so that a mask that touches the border is outlined there too
        axis.contour(columns, rows, np.pad(mask, 1).astype(float), levels=[0.5], colors=[colour], linewidths=width)


@dataclass(frozen=True, eq=False)
class Tile:
    """A slice as people look at it, in [0, 1], grey or (rows, columns, 3), with bool masks on it by name."""

    picture: np.ndarray
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    title: str = ""
    aspect: float = 1.0


def tiles_of(scan: Scan, masks: Mapping[str, np.ndarray], slices: int = 1, title: str = "") -> list[Tile]:
    """As many slices, evenly spread over a scan, with the masks (on its own voxels) there; a title that counts them."""
    orientation, scan = orientation_of(scan.affine), scan.shown
    picture = (to_canonical(normalise(scan.voxels, scan.modality), orientation) + 1) / 2
    seen = {name: to_canonical(mask, orientation) for name, mask in masks.items()}
    _, row_mm, column_mm = canonical_spacing(scan.affine, orientation)
    depth = len(picture)
    places = np.linspace(0, depth - 1, slices + 2)[1:-1].round().astype(int)
    where = [f"slice {k + 1} of {depth}" if depth > 1 else "" for k in places]
    return [
        Tile(picture[k], {n: m[k] for n, m in seen.items()}, ", ".join(filter(None, (title, at))), row_mm / column_mm)
        for k, at in zip(places, where, strict=True)
    ]


def tiles(rows: Mapping[str, Sequence[Tile]], path: Path) -> Path:
    """Rows of slices under one another, the row's name at its left; a colour a mask's name, told at the bottom."""
    names = list(dict.fromkeys(name for row in rows.values() for tile in row for name in tile.masks))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    columns = max(len(row) for row in rows.values())
    tall = max(t.picture.shape[0] * t.aspect / t.picture.shape[1] for row in rows.values() for t in row)
    figure = new_figure(2.6 * columns + 0.3, (2.6 * tall + 0.25) * len(rows) + 0.4)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (label, row) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(label, fontsize=10)
        for axis, tile in zip(line, row, strict=False):
            axis.imshow(tile.picture, cmap="gray", vmin=0, vmax=1, aspect=tile.aspect)
            for name, mask in tile.masks.items():
                veil = np.zeros((*mask.shape, 4))
                veil[mask] = to_rgba(colours[name], VEIL)
                axis.imshow(veil, aspect=tile.aspect)
                contour(axis, mask, colours[name], 1.3)
            axis.set_title(tile.title, fontsize=8.5, parse_math=False)
    if names:
        keys = [Patch(color=colours[name], label=name) for name in names]
        figure.legend(handles=keys, loc="outside lower center", ncols=min(len(names), 7), fontsize=9, frameon=False)
    return write_figure(figure, path)


def training_curves(logs: Mapping[str, Sequence[dict[str, float]]], path: Path) -> Path:
    """The loss of every stage against images seen, with a running mean; held-out Dice where it was judged."""
    figure = new_figure(4.2 * len(logs), 3.2)
    axes = figure.subplots(1, len(logs), squeeze=False)[0]
    for axis, (stage, log) in zip(axes, logs.items(), strict=True):
        images = np.array([e["images"] for e in log])
        loss = np.array([e["loss"] for e in log])
        axis.plot(images, loss, color="#BBBBBB", linewidth=0.6)
        if len(loss) >= 10:
            window = max(5, len(loss) // 25)
            smooth = np.convolve(loss, np.ones(window) / window, mode="valid")
            axis.plot(images[window - 1 :], smooth, color=COLOURS[4])
        axis.set(title=stage, xlabel="images seen", ylabel="loss")
        if judged := [(e["images"], e["val"]) for e in log if "val" in e]:
            other = axis.twinx()
            other.plot(*zip(*judged, strict=True), "o-", color=COLOURS[1], markersize=3)
            other.set(ylabel="val Dice", ylim=(0, 1))
        axis.grid(alpha=0.3)
    return write_figure(figure, path)


def dice_chart(summaries: dict[str, dict[str, Any]], path: Path) -> Path:
    """Dice of the consensus for each target, one bar for each named evaluation; dots mark the single proposal."""
    names = list(dict.fromkeys(t for s in summaries.values() for t in s["targets"]))
    figure = new_figure(max(5.0, 0.8 * len(names) + 2), 3.6)
    axis = figure.subplots()
    width = 0.8 / len(summaries)
    for number, (label, summary) in enumerate(summaries.items()):
        at = np.arange(len(names)) + (number - (len(summaries) - 1) / 2) * width
        bars = [summary["targets"].get(n, {}).get("consensus_dice", np.nan) for n in names]
        dots = [summary["targets"].get(n, {}).get("single_dice", np.nan) for n in names]
        axis.bar(at, bars, width, color=COLOURS[number % len(COLOURS)], label=label)
        axis.plot(at, dots, "k.", markersize=4)
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right", fontsize=8)
    axis.set(ylabel="Dice (dot: single proposal)", ylim=(0, 1))
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=8)
    return write_figure(figure, path)


def adaptation_chart(targets: Mapping[str, Mapping[str, float]], title: str) -> Figure:
    """Bars of Dice for every target: before and after adapting, and the same on the source where it was measured."""
    kinds = [k for k in ("before", "after", "source before", "source after") if any(k in m for m in targets.values())]
    colours = {"before": "#9aa5b1", "after": "#1f77b4", "source before": "#d9c2a5", "source after": "#e08214"}
    figure = new_figure(max(4.8, 1.2 * len(targets) + 1.5), 3.4)
    axis = figure.subplots()
    for i, kind in enumerate(kinds):
        places = [j + (i - (len(kinds) - 1) / 2) * 0.8 / len(kinds) for j in range(len(targets))]
        heights = [means.get(kind, 0.0) for means in targets.values()]
        axis.bar(places, heights, 0.8 / len(kinds), label=kind, color=colours[kind])
    axis.set_xticks(range(len(targets)), list(targets), rotation=20, ha="right")
    axis.set_ylim(0, 1)
    axis.set_ylabel("Dice, held-out")
    axis.set_title(title, fontsize=7)
    axis.legend(fontsize=7)
    return figure


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches, drawn without a display."""
    return Figure(figsize=(width, height), layout="constrained")


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, whole or not at all, and return the path."""
    with replacing(Path(path)) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box stands for it
        figure.savefig(temporary, dpi=100, format="png")
    return Path(path)
