"""Edge maps: what a synthetic scan must keep of the real one.

Every extractor takes pictures (B, C, H, W) in [-1, 1] and gives edge strengths (B, 1, H, W) in [0, 1]. A `hint` merges
them with the boundaries of the labels, as DiffBoost does (Zhang et al., IEEE TMI 2025, arXiv 2310.12868): the merged
boundary is what keeps a synthetic scan on its old mask where the picture itself shows no edge.

Edges found here are the same to the bit on every processor and in every batch: sums are added up pixel by pixel, by
operations that IEEE 754 rounds in one way only, not by a convolution, which every processor sums in an order of its
own. Those of `networks.hed.Hed` come from a network, and are the same up to rounding.
"""

import math
from collections.abc import Callable, Sequence
from functools import reduce

import numpy as np
import torch
from jaxtyping import Float, UInt8
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

Pictures = Float[Tensor, "batch channels height width"]
Edges = Float[Tensor, "batch 1 height width"]
Extractor = Callable[[Pictures], Edges]

STRONGEST = 0.99  # the quantile of the gradient that counts as a full edge
GRAIN = 2.0**-22  # what derivatives are rounded to: far above the rounding of doubles, so that equal slopes are equal
FAINTEST = 0.05  # a picture whose strongest gradient (grey levels of [-1, 1] a pixel) is below this is called flat
CANNY_LOW, CANNY_HIGH = 0.2, 0.45  # of a full edge; near the 100/200 of 255 that ControlNet's Canny is used with
FLAT_BELOW = (
    math.sqrt(2) - 1
)  # tan 22.5°: rise over run up to which a direction is nearer to an axis than to a diagonal


def gradient(pictures: Pictures, sigma: float = 1.0) -> tuple[Tensor, Tensor]:
    """The two derivatives (B, 1, H, W) of the grey pictures, by Scharr's 3×3 kernels after a Gaussian of `sigma` px."""
    grey = reduce(torch.add, pictures.double().split(1, dim=1)) / pictures.shape[1]
    padded = F.pad(_blurred(grey, sigma), (1, 1, 1, 1), mode="replicate")
    both = []
    for along, beside in ((3, 2), (2, 3)):
        slope = _shifted(padded, along, 2, 2) - _shifted(padded, along, 0, 2)
        slope = _weighted(slope, (10 / 32, 3 / 32), beside)
        both.append(((slope / GRAIN).round() * GRAIN).to(pictures.dtype))
    return both[0], both[1]


def scharr(pictures: Pictures) -> Edges:
    """Soft edges: the magnitude of Scharr's gradient, 1 at each picture's own 99th percentile and above."""
    magnitude = _length(*gradient(pictures))
    return (magnitude / _full(magnitude)).clamp(0, 1)


def canny(pictures: Pictures) -> Edges:
    """Thin edges, 0 or 1 (Canny, 1986): local maxima along the gradient that hang together with a strong one."""
    dx, dy = gradient(pictures)
    magnitude = _length(dx, dy)
    strength = (magnitude / _full(magnitude))[:, 0].numpy()
    # Along the gradient, rounded to the nearest of four directions, only the largest of three neighbours stays; of two
    # that are equal, as on both sides of a step, the first.
    flat, steep = dy.abs() <= FLAT_BELOW * dx.abs(), dx.abs() <= FLAT_BELOW * dy.abs()
    direction = torch.where(flat, 0, torch.where(steep, 2, torch.where((dx > 0) == (dy > 0), 1, 3)))[:, 0].numpy()
    thin = np.zeros(strength.shape, dtype=bool)
    padded = np.pad(strength, ((0, 0), (1, 1), (1, 1)), mode="edge")
    rows, columns = strength.shape[1:]
    for code, (down, right) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[:, 1 + down : 1 + down + rows, 1 + right : 1 + right + columns]
        behind = padded[:, 1 - down : 1 - down + rows, 1 - right : 1 - right + columns]
        thin |= (direction == code) & (strength >= ahead) & (strength > behind)
    strong, weak = thin & (strength > CANNY_HIGH), thin & (strength > CANNY_LOW)
    kept = ndimage.binary_propagation(strong, np.ones((1, 3, 3)), mask=weak)
    return torch.from_numpy(kept.astype(np.float32))[:, None]


EDGES: dict[str, Extractor] = {"scharr": scharr, "canny": canny}


def boundaries(labels: UInt8[Tensor, "batch height width"] | Tensor) -> Edges:
    """1 on both sides of every border between two labels, else 0."""
    values = labels[:, None].float()
    return (F.max_pool2d(values, 3, 1, 1) != -F.max_pool2d(-values, 3, 1, 1)).float()


def hint(
    pictures: Pictures, labels: Tensor, extractor: Extractor | None = scharr, *, label_boundary: bool = True
) -> Edges:
    """What a synthetic scan is drawn from: edges of the pictures plus boundaries of the labels, at most 1.

    Args:
        pictures: (B, C, H, W) in [-1, 1].
        labels: (B, H, W) of label ids.
        extractor: one of `EDGES`, or a `networks.hed.Hed`; None leaves the picture's own edges out.
        label_boundary: whether the labels' boundaries are merged in.
    """
    merged = pictures.new_zeros(len(pictures), 1, *pictures.shape[2:])
    if extractor is not None:
        merged = merged + extractor(pictures)
    if label_boundary:
        merged = merged + boundaries(labels)
    return merged.clamp(0, 1)


def _length(dx: Tensor, dy: Tensor) -> Tensor:
    return (dx * dx + dy * dy).sqrt()  # not hypot, of which every mathematical library has its own


def _full(magnitude: Tensor) -> Tensor:
    """The gradient that counts as a full edge in each picture, (B, 1, 1, 1)."""
    ordered = magnitude.flatten(1).sort(dim=1).values
    place = STRONGEST * (ordered.shape[1] - 1)
    below, above = ordered[:, math.floor(place)], ordered[:, math.ceil(place)]
    strongest = below + (place - math.floor(place)) * (above - below)
    return strongest.clamp(min=FAINTEST)[:, None, None, None]


def _blurred(grey: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    bell = [math.exp(-(k**2) / (2 * sigma**2)) for k in range(reach + 1)]
    weights = [round(weight / (2 * sum(bell) - 1), 12) for weight in bell]  # the last digits of exp differ by library
    padded = F.pad(grey, (reach, reach, reach, reach), mode="replicate")
    return _weighted(_weighted(padded, weights, 2), weights, 3)


def _weighted(values: Tensor, weights: Sequence[float], axis: int) -> Tensor:
    """Sums along an axis by weights that are the same either way, the one of the middle first; it gets shorter."""
    reach = len(weights) - 1
    total = weights[0] * _shifted(values, axis, reach, 2 * reach)
    for k in range(1, reach + 1):
        pair = _shifted(values, axis, reach - k, 2 * reach) + _shifted(values, axis, reach + k, 2 * reach)
        total = total + weights[k] * pair
    return total


def _shifted(values: Tensor, axis: int, start: int, shorter: int) -> Tensor:
    return values.narrow(axis, start, values.shape[axis] - shorter)
