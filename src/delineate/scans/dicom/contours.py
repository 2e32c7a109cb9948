"""Outlines of masks, and masks of outlines: polygons in the pixels of one slice. No files here.

A polygon runs where the mask, taken as heights 0 and 1 at the centres of pixels and linear between them, is one half
high (marching squares): half a pixel outside the outermost centres, never through a centre. Filled by the rule of even
and odd, it therefore gives back the very mask that it was drawn around.

Holes are cut in by the keyhole technique (DICOM PS3.3, C.8.8.6.3): one polygon goes around the outside, along a channel
without width into the hole, around that and back. It reads the same to whoever fills single polygons and to whoever
takes several polygons of a slice for holes in one another.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from contourpy import FillType, contour_generator

MOST_CROSSINGS = 1 << 22  # of edges with rows of pixels that are worked on at a time


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """The polygons around a mask, each float64 (N, 2) rows and columns of pixels, not closed, with keyholes.

    Args:
        mask: bool (rows, columns).
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return []
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    heights = np.pad(box.astype(np.float64), 1)
    around = contour_generator(z=heights, fill_type=FillType.OuterOffset).filled(0.5, 2.0)
    corner = np.array([rows[0], columns[0]]) - 1
    found = []
    for points, offsets in zip(*around, strict=True):
        rings = [_corners(points[a : b - 1]) for a, b in pairwise(offsets)]
        found.append(_keyholes(rings)[:, ::-1] + corner)  # contourpy says (x, y)
    return found


def filled(polygons: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The pixels, bool (rows, columns), whose centres lie in an odd number of polygons.

    Args:
        polygons: each (N, 2) rows and columns, closed or not.
        size: rows and columns of the slice; what lies outside is cut off.
    """
    count = np.zeros((size[0], size[1] + 1), np.int32)
    for polygon in polygons:
        for row, column in _crossings(polygon, size[0]):
            np.add.at(count, (row, np.ceil(column).clip(0, size[1]).astype(np.int64)), 1)
    return (count.cumsum(axis=1)[:, :-1] & 1).astype(bool)


def _crossings(polygon: np.ndarray, rows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Where edges cross the centres of rows: int64 rows and float64 columns, some millions at a time."""
    ends = np.roll(polygon, -1, axis=0)
    down = polygon[:, 0] <= ends[:, 0]  # the same edge, whichever way it is gone, is worked out alike
    upper, lower = np.where(down[:, None], polygon, ends), np.where(down[:, None], ends, polygon)
    first = np.ceil(upper[:, 0]).clip(0, rows).astype(np.int64)
    last = (
        np.ceil(lower[:, 0]).clip(0, rows).astype(np.int64)
    )  # a row is crossed from its upper end on, up to the lower
    crossed = last - first
    upper, lower, first, crossed = (a[crossed > 0] for a in (upper, lower, first, crossed))
    parts = np.flatnonzero(np.diff(crossed.cumsum() // MOST_CROSSINGS)) + 1
    for edges in np.split(np.arange(len(crossed)), parts):
        often = crossed[edges]
        edge = np.repeat(edges, often)
        row = first[edge] + np.arange(len(edge)) - np.repeat(often.cumsum() - often, often)
        share = (row - upper[edge, 0]) / (lower[edge, 0] - upper[edge, 0])
        yield row, upper[edge, 1] + share * (lower[edge, 1] - upper[edge, 1])


def _corners(ring: np.ndarray) -> np.ndarray:
    """A ring without the points that lie on a straight line between their neighbours."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]  # halves of pixels: exact


def _keyholes(rings: Sequence[np.ndarray]) -> np.ndarray:
    """An outer ring with its holes as one polygon."""
    outer, holes = rings[0], list(rings[1:])
    while holes:
        hole = holes.pop(0)
        apart = ((outer[:, None] - hole[None]) ** 2).sum(axis=2)
        a, b = np.unravel_index(int(apart.argmin()), apart.shape)
        outer = np.concatenate([outer[: a + 1], np.roll(hole, -b, axis=0), hole[b : b + 1], outer[a:]])
    return outer
