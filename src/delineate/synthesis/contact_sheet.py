"""A contact sheet: what a person looks at before training on synthetic scans."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from delineate.pictures import new_figure, write_figure

HEADINGS = ("real", "edges asked for")


def contact_sheet(rows: Sequence[tuple[str, Sequence[np.ndarray]]], path: Path) -> Path:
    """One row a case: the real scan, the edges, then synthetic scans; written as PNG.

    Args:
        rows: the case's name and its pictures (H, W, 3) in [0, 1]; rows may differ in length.
        path: where to.
    """
    columns = max(len(pictures) for _, pictures in rows)
    figure = new_figure(1.6 * columns, 1.75 * len(rows) + 0.3)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, pictures) in zip(axes, rows, strict=True):
        for place, axis in enumerate(line):
            axis.axis("off")
            if place < len(pictures):
                axis.imshow(pictures[place], vmin=0, vmax=1)
        line[0].set_title(name, fontsize=7, loc="left", parse_math=False)
    for place in range(columns):
        heading = HEADINGS[place] if place < len(HEADINGS) else f"synthetic {place - len(HEADINGS) + 1}"
        axes[0][place].annotate(heading, (0.5, 1.16), xycoords="axes fraction", ha="center", fontsize=8)
    return write_figure(figure, path)
