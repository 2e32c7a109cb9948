"""Corrections that are the same for a whole mask: pure functions on bool arrays (I, J, K), SciPy only."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import ndimage

UNDECIDED = 0.25, 0.75  # shares of a voxel's surroundings between which its neighbours do not decide for it


def fill_between(mask: np.ndarray, axis: int, spacing_mm: Sequence[float]) -> np.ndarray:
    """The mask with the empty slices between drawn ones filled by shapes in between (Raya and Udupa, 1990).

    The signed distances to two neighbouring drawn shapes, in mm, are mixed by how near each is. Shapes that do not
    overlap are first moved onto each other, and what is between them onto the line from one to the other. Slices that
    hold anything stay as they are, and so do those beyond the first and the last.

    Args:
        mask: bool (I, J, K).
        axis: along which slices were drawn.
        spacing_mm: of the three axes.
    """
    drawn = np.moveaxis(mask, axis, 0)
    filled = drawn.copy()
    inside = np.flatnonzero(drawn.any(axis=(1, 2)))
    within = [s for a, s in enumerate(spacing_mm) if a != axis]
    for below, above in pairwise(inside):
        if above - below == 1:
            continue
        box = _box(drawn[below] | drawn[above])
        near, far = (_signed_distance(drawn[k][box], within) for k in (below, above))
        way = np.zeros(2)
        if not (drawn[below] & drawn[above]).any():
            centres = [np.array(ndimage.center_of_mass(drawn[k][box])) for k in (below, above)]
            way = centres[1] - centres[0]
        for k in range(below + 1, above):
            t = (k - below) / (above - below)
            mixed = (1 - t) * _moved(near, t * way) + t * _moved(far, (t - 1) * way)
            filled[k][box] = mixed > 0
    return np.moveaxis(filled, 0, axis)


def smooth(mask: np.ndarray, radius_mm: float, spacing_mm: Sequence[float]) -> np.ndarray:
    """The mask without details smaller than `radius_mm`, and otherwise of about the same volume.

    A Gaussian with half the radius as its standard deviation says how much of a voxel's surroundings is inside. Voxels
    below or above `UNDECIDED` are outside or inside, which takes away specks and fills pits; of those between, as many
    are inside as were, the ones with the largest share. Beyond its borders a scan is taken to go on as it ends.
    """
    if not mask.any():
        return mask.copy()
    sigma = [radius_mm / 2 / s if n > 1 else 0.0 for s, n in zip(spacing_mm, mask.shape, strict=True)]
    box = _box(mask, [int(4 * s) + 1 for s in sigma])
    share = ndimage.gaussian_filter(mask[box].astype(np.float32), sigma, mode="nearest")
    low, high = UNDECIDED
    undecided = (share >= low) & (share <= high)
    inside = int(np.count_nonzero(undecided & mask[box]))
    level = np.sort(share[undecided])[-inside] if inside else np.inf
    smoothed = np.zeros_like(mask)
    smoothed[box] = (share > high) | (share >= level)
    return smoothed


def keep_largest(mask: np.ndarray) -> np.ndarray:
    """The largest part of the mask; voxels that touch, if only at a corner, belong together."""
    kept = mask.copy()
    if mask.any():
        box = _box(mask, 0)
        parts: np.ndarray = ndimage.label(mask[box], np.ones((3, 3, 3)))[0]  # type: ignore[index]  # of a pair
        kept[box] = parts == 1 + int(np.bincount(parts.reshape(-1))[1:].argmax())
    return kept


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """The mask with every cavity filled that no path outside it leads out of; in flat scans, every hole."""
    filled = mask.copy()
    if mask.any():
        box = _box(mask, 0)  # what is open at its side is open
        flat = tuple(axis for axis, n in enumerate(mask.shape) if n == 1)
        within = ndimage.binary_fill_holes(np.squeeze(mask[box], flat))
        filled[box] = np.expand_dims(np.asarray(within, bool), flat)
    return filled


def _box(mask: np.ndarray, margin: Sequence[int] | int = 1) -> tuple[slice, ...]:
    """The smallest box around a mask that is not empty, and so many voxels more on every side where there are any."""
    margins = [margin] * mask.ndim if isinstance(margin, int) else margin
    sides = []
    for axis, more in enumerate(margins):
        hit = np.flatnonzero(mask.any(axis=tuple(a for a in range(mask.ndim) if a != axis)))
        sides.append(slice(max(0, int(hit[0]) - more), int(hit[-1]) + 1 + more))
    return tuple(sides)


def _signed_distance(shape: np.ndarray, spacing_mm: Sequence[float]) -> np.ndarray:
    """Distance to the border in mm, positive inside."""
    if shape.all():
        return np.full(shape.shape, sum(n * s for n, s in zip(shape.shape, spacing_mm, strict=True)), np.float32)
    inside = np.asarray(ndimage.distance_transform_edt(shape, spacing_mm), np.float32)
    return inside - np.asarray(ndimage.distance_transform_edt(~shape, spacing_mm), np.float32)


def _moved(values: np.ndarray, by: np.ndarray) -> np.ndarray:
    return ndimage.shift(values, by, order=1, mode="nearest") if by.any() else values
