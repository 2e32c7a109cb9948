"""Grey values of one kind of scan brought to one scale: histogram matching by landmarks.

After Nyúl and Udupa (1999, 2000): in MR a grey value means nothing by itself, but the deciles of one body part look
alike in all scans of one protocol. Their means over some scans, labelled or not, are the standard; a scan is mapped to
it piecewise linearly. (Their landmarks are percentiles 1, 10, 20, …, 90, 99 of what is brighter than the mean.)
"""

from collections.abc import Sequence

import numpy as np

PERCENTILES = (1, *range(10, 100, 10), 99)
NARROW = 1e-6  # of all grey values, what landmarks span that are as good as one


def landmarks(voxels: np.ndarray) -> np.ndarray:
    """The grey values at `PERCENTILES` of the foreground, what is brighter than the mean: float64 (11,)."""
    values = np.asarray(voxels.flat[:: max(1, voxels.size // 2_000_000)], dtype=np.float64)
    inside = values[values > values.mean()]
    return np.percentile(inside if inside.size else values, PERCENTILES)


def standard_of(many: Sequence[np.ndarray]) -> tuple[float, ...]:
    """The standard scale of scans with these landmarks: each mapped linearly to [0, 1], then averaged.

    Scans whose landmarks are all the same (black ones, masks) say nothing; () where there are no others.
    """
    scaled = [(own - own[0]) / (own[-1] - own[0]) for own in many if own[-1] > own[0]]
    return tuple(float(value) for value in np.mean(scaled, axis=0)) if scaled else ()


def standardise(voxels: np.ndarray, standard: Sequence[float]) -> np.ndarray:
    """Voxels (any shape) on the standard scale, float32: 0 and 1 are the first and last landmark.

    Below the first landmark grey values go on down to the darkest voxel at the slope of the whole scale, and likewise
    above the last, so that air stays darker than everything else.
    """
    own = landmarks(voxels)
    values = np.asarray(voxels, dtype=np.float64)
    span, whole = own[-1] - own[0], np.ptp(values)
    if span <= whole * NARROW:  # of two grey levels all landmarks are the brighter one, but for rounding
        span = whole or 1.0
    values, own = (values - own[0]) / span, (own - own[0]) / span
    rising = own + np.arange(len(own)) * 1e-9  # equal landmarks (few grey levels) would be no function
    mapped = np.interp(values, rising, standard)
    mapped = np.where(values < 0, standard[0] + values, mapped)
    mapped = np.where(values > rising[-1], standard[-1] + values - rising[-1], mapped)
    return mapped.astype(np.float32)
