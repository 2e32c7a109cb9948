"""Pictures: what people would look at rather than read. All are PNG, drawn without a display."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from delineate.proposals.proposals import Outcome, Proposals, TargetProposals
from delineate.scans.geometry import canonical_spacing, orientation_of, to_canonical
from delineate.scans.intensity import intensity_range, normalise
from delineate.scans.scan import Scan
from delineate.storage.files import replacing

# Okabe and Ito's colours: told apart by the colour-blind.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
CONSENSUS = "#D55E00"
DISTINCT = ("#56B4E9", "#F0E442")  # on grey, on skin and beside the consensus told apart by everyone


def montage(proposals: Proposals, path: Path, *, how: str = "mean") -> Path:
    """One row a target: the consensus, the first two distinct proposals, the doubt.

    A proposal's title says what share of all it stands for and what Dice it can expect
    (`delineate.proposals.ordering`). Where one stands for all, the bare scan takes the second one's place. The slice
    shown is the one where the consensus is largest, or most probable where there is none.
    """
    scan = proposals.scan
    ends = intensity_range(scan.voxels, scan.modality)
    rows = len(proposals.targets)
    figure = new_figure(12.4, 3.4 * rows + 0.1)
    axes = figure.subplots(rows, 4, squeeze=False)
    for line, target in zip(axes, proposals, strict=True):
        for axis in line:
            axis.axis("off")
        if target.drawn is None:
            near = f"\nnearest: {', '.join(target.nearest)}" if target.nearest else ""
            text = f"'{target.prompt.text}': unknown prompt{near}"
            line[0].text(0.0, 0.5, text, transform=line[0].transAxes, fontsize=11, parse_math=False)
            continue
        _draw_target(line, target, scan, ends, how)
    return write_figure(figure, path)


def _draw_target(line: Any, target: TargetProposals, scan: Scan, ends: tuple[float, float], how: str):
    orientation = orientation_of(scan.affine)
    slices, axis = to_canonical(scan.voxels, orientation), orientation.order[0]
    turn = slice(None, None, -1 if orientation.flips[0] else 1)  # the slices' order as they are seen
    area = target.consensus_across(axis, how)[turn]
    k = int(area.argmax()) if area.any() else int(target.peak_across(axis)[turn].argmax())
    index = len(slices) - 1 - k if orientation.flips[0] else k
    here, consensus = target.sliced(axis, index), target.consensus_in(axis, index, how)

    def seen(array: np.ndarray) -> np.ndarray:
        return to_canonical(array, orientation)[0]

    picture = (normalise(slices[k], scan.modality, ends) + 1) / 2
    _, row_mm, column_mm = canonical_spacing(scan.affine, orientation)
    aspect = row_mm / column_mm
    for panel in line[:3]:
        panel.imshow(picture, cmap="gray", vmin=0, vmax=1, aspect=aspect)
    where = f", slice {k + 1} of {len(slices)}" if len(slices) > 1 else ""
    contour(line[0], seen(consensus), CONSENSUS, 1.6)
    found = target.outcome is Outcome.FOUND
    title = f"{target.name}{where}\nconsensus: {target.outcome.value}, score {target.score:.2f}"
    title += f", expected Dice {target.expected_dice(how):.2f}" if found else ""  # 1 where all agree that it is absent
    line[0].set_title(title, fontsize=8.5, parse_math=False, color="black" if found else "#B00020")
    distinct, quality, sizes = target.distinct(), target.quality(), target.sizes()
    if len(distinct) == 1:
        line[2].set_title("scan", fontsize=8.5)
    for number, (one, colour) in enumerate(zip(distinct, DISTINCT, strict=False)):
        mask = seen(here.choose(one.k))
        contour(line[number + 1], mask, colour, 1.2)
        nothing = "" if mask.any() else ", not here" if sizes[one.k] else ", empty"
        title = f"proposal {one.k}{nothing}, for {one.weight:.0%} of {len(target)}\n"
        title += f"distinct {number + 1} of {len(distinct)}"
        title += f", expected Dice {quality[one.k]:.2f}" if found else ""
        line[number + 1].set_title(title, fontsize=8.5)
    line[3].imshow(seen(here.disagreement()), cmap="magma", vmin=0, vmax=1, aspect=aspect)
    line[3].set_title("doubt (bits)", fontsize=8.5)


def contour(axis: Axes, mask: np.ndarray, colour: str, width: float) -> None:
    """Outline a 2-D bool mask on `axis`; an empty one leaves no mark."""
    if mask.any():
        axis.set_autoscale_on(False)
        rows, columns = (np.arange(-1, n + 1) for n in mask.shape)
        # padded, so that a mask that touches the border is outlined there too
        axis.contour(columns, rows, np.pad(mask, 1).astype(float), levels=[0.5], colors=[colour], linewidths=width)


def training_curves(logs: Mapping[str, Sequence[dict[str, float]]], path: Path) -> Path:
    """The loss of every stage against images seen, with a running mean."""
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
