"""Edge maps: what a synthetic scan must keep of the real one.

Every extractor takes pictures (B, C, H, W) in [-1, 1] and gives edge strengths (B, 1, H, W) in [0, 1]. A `hint` merges
them with the boundaries of the labels, as DiffBoost does (Zhang et al., IEEE TMI 2025, arXiv 2310.12868): the merged
boundary is what keeps a synthetic scan on its old mask where the picture itself shows no edge.
"""

import math
from collections.abc import Callable

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
FAINTEST = 0.05  # a picture whose strongest gradient (grey levels of [-1, 1] a pixel) is below this is called flat
CANNY_LOW, CANNY_HIGH = 0.2, 0.45  # of a full edge; near the 100/200 of 255 that ControlNet's Canny is used with


def gradient(pictures: Pictures, sigma: float = 1.0) -> tuple[Tensor, Tensor]:
    """The two derivatives (B, 1, H, W) of the grey pictures, by Scharr's 3×3 kernels after a Gaussian of `sigma` px."""
    grey = _blurred(pictures.mean(dim=1, keepdim=True), sigma)
    across = grey.new_tensor([[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]]) / 32
    kernels = torch.stack([across, across.T])[:, None]
    both = F.conv2d(F.pad(grey, (1, 1, 1, 1), mode="replicate"), kernels)
    return both[:, :1], both[:, 1:]


def scharr(pictures: Pictures) -> Edges:
    """Soft edges: the magnitude of Scharr's gradient, 1 at each picture's own 99th percentile and above."""
    dx, dy = gradient(pictures)
    magnitude = torch.hypot(dx, dy)
    return (magnitude / _full(magnitude)).clamp(0, 1)


def canny(pictures: Pictures) -> Edges:
    """Thin edges, 0 or 1 (Canny, 1986): local maxima along the gradient that hang together with a strong one."""
    dx, dy = gradient(pictures)
    magnitude = torch.hypot(dx, dy)
    strength = (magnitude / _full(magnitude))[:, 0].numpy()
    # Along the gradient, rounded to the nearest of four directions, only the largest of three neighbours stays.
    direction = (torch.atan2(dy, dx) * (4 / math.pi)).round().long()[:, 0].numpy() % 4
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


def _full(magnitude: Tensor) -> Tensor:
    """The gradient that counts as a full edge in each picture, (B, 1, 1, 1)."""
    strongest = torch.quantile(magnitude.flatten(1), STRONGEST, dim=1)
    return strongest.clamp(min=FAINTEST)[:, None, None, None]


def _blurred(grey: Tensor, sigma: float) -> Tensor:
    reach = math.ceil(3 * sigma)
    bell = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * sigma**2))
    bell = (bell / bell.sum()).to(grey)
    padded = F.pad(grey, (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, bell.view(1, 1, -1, 1)), bell.view(1, 1, 1, -1))
