"""The marks network: what a few clicks and scribbles say about every other pixel of a slice.

It knows no names. It reads a slice, what was marked in it, where the picture looks like what was marked and can be
reached from it, and what was believed before, and answers with log-odds of the thing that is meant: the scheme of
ScribblePrompt (Wong et al. 2024, ECCV, arXiv 2312.07381). Here likeness and reach are worked out first, in closed form:
a small, briefly trained network need not learn to compare distant pixels, nor to follow paths.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy import sparse
from scipy.sparse.csgraph import dijkstra
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.networks.encoder import ImageEncoder

CHANNELS = 3 + 2 + 4 + 3 + 1  # the slice, its marks, where it is like them, what they reach, what was believed
SAMPLES = 48  # marked pixels of a sign that others are compared with, spread evenly over them
BLURS = (3, 9)  # pixels; a mark stands for what surrounds it as well
ALIKE = 0.2  # greys, of a range of 2, within which pixels are alike
NEAR = 0.125  # of a side of the picture, within which pixels are neighbours
EDGE = 128  # pixels a side, at most, on which paths are sought
STEEP = 200.0  # what a change from black to white costs, in steps of one pixel
REACH, WIDTH = 0.3, 0.1  # costs, over the side of the picture: how far a mark goes; over which a border is soft


class MarksNetwork(nn.Module):
    """An image encoder that also reads marks, and a head."""

    def __init__(self, widths: tuple[int, ...], fold: int = 2):
        super().__init__()
        self.encoder = ImageEncoder(widths, fold, CHANNELS)
        self.head = nn.Conv2d(widths[0], fold**2, 1)

    def forward(
        self,
        image: Float[Tensor, "batch 3 size size"],
        marks: Bool[Tensor, "batch 2 size size"],
        previous: Float[Tensor, "batch size size"],
    ) -> Float[Tensor, "batch size size"]:
        """Log-odds of the thing that is marked.

        Args:
            image: slices in [-1, 1]; S a multiple of fold × 2^(levels - 1).
            marks: pixels that are inside (first) and outside (second).
            previous: the probability believed before, 0.5 where nothing is known.
        """
        dots = F.max_pool2d(marks.float(), 3, 1, 1)  # one pixel alone is easily lost in a stride
        alike, reached = likeness(image, marks), reach(image, marks)
        known = torch.cat([image, dots, alike, reached, 2 * previous[:, None] - 1], dim=1)
        return F.pixel_shuffle(self.head(self.encoder.levels(known)[0]), self.encoder.fold)[:, 0]


@torch.no_grad()
def likeness(
    image: Float[Tensor, "batch 3 size size"], marks: Bool[Tensor, "batch 2 size size"]
) -> Float[Tensor, "batch 4 size size"]:
    """How like the nearest mark every pixel is, in [0, 1]: to those inside, to those outside; then to those nearby.

    A Gaussian of the distance in greys (the three channels and their mean, blurred twice), for the last two channels
    in greys and place together. 0 where nothing is marked.
    """
    batch, _, rows, columns = image.shape
    mean = image.mean(dim=1, keepdim=True)
    blurred = [F.avg_pool2d(mean, k, 1, k // 2, count_include_pad=False) for k in BLURS]
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    place = torch.stack([y / rows, x / columns]).to(image).expand(batch, -1, -1, -1) / NEAR
    greys = torch.cat([image / 3**0.5, *blurred], dim=1) / ALIKE  # the three channels together weigh as one blur
    features = torch.cat([greys, place], dim=1).flatten(2).transpose(1, 2).contiguous()
    out = image.new_zeros(batch, 4, rows * columns)
    for b in range(batch):
        for sign in range(2):
            marked = marks[b, sign].flatten().nonzero()[:, 0]
            if len(marked):
                some = marked[
                    torch.linspace(0, len(marked) - 1, min(SAMPLES, len(marked)), device=marked.device).long()
                ]
                grey, both = features[b, :, :-2], features[b]
                out[b, sign] = _nearest(grey, grey[some])
                out[b, 2 + sign] = _nearest(both, both[some])
    return out.unflatten(2, (rows, columns))


@torch.no_grad()
def reach(
    image: Float[Tensor, "batch 3 size size"], marks: Bool[Tensor, "batch 2 size size"]
) -> Float[Tensor, "batch 3 size size"]:
    """How near every pixel is to the marks along the way of least change: to those inside, to those outside, balanced.

    The geodesic distance of interactive segmentation (Criminisi et al. 2008, ECCV, "GeoS"): a step between neighbours
    costs 1 + `STEEP` × the change in grey, over the side of the picture. exp(-d / `REACH`) for the first two maps, 0
    where nothing is marked; the third, in [-1, 1], is above 0 where a mark inside is nearer than `REACH` and than any
    outside. On a grid of at most `EDGE` pixels.
    """
    size = image.shape[-1]
    pool = max(1, size // EDGE)
    greys = F.avg_pool2d((image + 1) / 2, pool)
    greys = F.avg_pool2d(greys, 3, 1, 1, count_include_pad=False).double().cpu().numpy()
    dots = (F.max_pool2d(marks.float(), pool) > 0).cpu().numpy()
    away = np.stack([_away(*one) for one in zip(greys, dots, strict=True)])
    inside, outside = away[:, 0], away[:, 1].clip(max=REACH)
    maps = np.stack([*np.exp(-away.swapaxes(0, 1) / REACH), np.tanh((outside - inside.clip(max=1)) / WIDTH)], axis=1)
    maps[~dots.any(axis=(1, 2, 3)), 2] = 0
    found = torch.from_numpy(maps).to(image)
    return found if pool == 1 else F.interpolate(found, size=(size, size), mode="bilinear", align_corners=False)


def _away(grey: np.ndarray, dots: np.ndarray) -> np.ndarray:
    """The cost of the cheapest path from the dots of either sign (2, H, W) to every pixel; infinite without dots."""
    shape = dots.shape[1:]
    index, ends, costs = np.arange(dots[0].size).reshape(shape), [], []
    for axis in range(2):
        ends.append([index.take(range(a, shape[axis] - 1 + a), axis=axis).ravel() for a in (0, 1)])
        change = np.sqrt((np.diff(grey, axis=axis + 1) ** 2).mean(axis=0)).ravel()
        costs.append((1 + STEEP * change) / max(shape))
    rows, columns = np.concatenate(ends, axis=1)
    graph = sparse.csr_matrix((np.concatenate(costs), (rows, columns)), shape=(index.size, index.size))
    far = np.full((2, index.size), np.inf)
    for sign in range(2):
        if len(sources := np.flatnonzero(dots[sign])):
            far[sign] = dijkstra(graph, directed=False, indices=sources, min_only=True, limit=1.0)
    return far.reshape(dots.shape)


def _nearest(features: Tensor, marked: Tensor) -> Tensor:
    """exp(-d²/2) for the distance d of every row to the nearest of `marked`."""
    squares = torch.addmm(marked.square().sum(1)[:, None], marked, features.T, alpha=-2).amin(dim=0)
    squares = squares + features.square().sum(1)
    return (-squares.clamp(min=0) / 2).exp()
