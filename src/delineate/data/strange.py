"""Pictures that are certainly none of those that a model learnt from, made of them: what "unlike" looks like.

Cut and put together anew, magnified, inverted, in other colours, with their phases lost, mixed with one another; and
textures and shapes of no scan at all.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Picture = Float[Tensor, "3 size size"]
Rng = np.random.Generator


def strange(pictures: Sequence[Picture], count: int, seed: int) -> list[Picture]:
    """`count` pictures (C, S, S) in [-1, 1], of `pictures` of one size likewise; all kinds equally often."""
    rng = np.random.default_rng(seed)

    def any_of_them() -> Picture:
        return pictures[int(rng.integers(len(pictures)))]

    def two() -> tuple[Picture, Picture]:
        one, other = rng.choice(len(pictures), 2, replace=len(pictures) < 2)
        return pictures[int(one)], pictures[int(other)]

    channels, size = len(pictures[0]), pictures[0].shape[-1]
    made: list[Callable[[], Picture]] = [
        lambda: _cut_up(any_of_them(), rng),
        lambda: _magnified(any_of_them(), rng),
        lambda: -any_of_them(),
        lambda: _in_other_colours(any_of_them(), rng),
        lambda: _without_phases(any_of_them(), rng),
        lambda: torch.lerp(*two(), rng.uniform(0.35, 0.65)),
        lambda: _side_by_side(*two(), rng),
        lambda: _texture(channels, size, rng),
        lambda: _shapes(channels, size, rng),
    ]
    return [made[k % len(made)]() for k in range(count)]


def _cut_up(picture: Picture, rng: Rng) -> Picture:
    n, size = int(rng.choice([2, 3, 4])), picture.shape[-1]
    side = size // n
    tiles = [(i * side, j * side) for i in range(n) for j in range(n)]
    out = torch.full_like(picture, -1.0)
    for (top, left), k in zip(tiles, rng.permutation(n * n), strict=True):
        a, b = tiles[k]
        out[:, top : top + side, left : left + side] = picture[:, a : a + side, b : b + side]
    return out


def _magnified(picture: Picture, rng: Rng) -> Picture:
    size = picture.shape[-1]
    side = max(2, int(rng.uniform(0.08, 0.31) * size))
    top, left = rng.integers(size // 6, size - size // 6 - side, 2)
    part = picture[None, :, top : top + side, left : left + side]
    return F.interpolate(part, (size, size), mode="bilinear")[0]


def _in_other_colours(picture: Picture, rng: Rng) -> Picture:
    if float((picture[0] - picture[1]).abs().mean()) > 0.02:
        if rng.random() >= 0.5:
            return picture.mean(dim=0, keepdim=True).expand_as(picture).clone()
        order = torch.from_numpy(rng.permutation(len(picture)))
        return picture[order.roll(1) if (order.diff() > 0).all() else order]  # in their order it would be no stranger
    colour = torch.from_numpy(rng.uniform(-1, 1, (len(picture), 1, 1))).float()
    return ((picture + 1) / 2 * (1 - colour) + colour).clamp(-1, 1)


def _without_phases(picture: Picture, rng: Rng) -> Picture:
    noise, spectrum = torch.from_numpy(rng.random(picture.shape[-2:])).float(), torch.fft.rfft2(picture).abs()
    turned = torch.polar(spectrum, torch.fft.rfft2(noise).angle().expand_as(spectrum))
    return torch.fft.irfft2(turned, s=picture.shape[-2:]).clamp(-1, 1)


def _side_by_side(one: Picture, other: Picture, rng: Rng) -> Picture:
    out, at = one.clone(), int(rng.uniform(0.25, 0.75) * one.shape[-1])
    out[..., at:] = other[..., at:]
    return out


def _texture(channels: int, size: int, rng: Rng) -> Picture:
    """Noise of a power law, grey or in colour, sometimes cut to two levels."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = 1
    shape = (channels if rng.random() < 0.5 else 1, size, size // 2 + 1)
    spectrum = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / frequency ** rng.uniform(0, 3)
    values = np.fft.irfft2(spectrum, s=(size, size))
    values = (values - values.mean()) / (2 * values.std())
    if rng.random() < 0.4:
        values = 0.8 * np.sign(values - rng.uniform(-1, 1))
    return _as_picture(values, channels)


def _shapes(channels: int, size: int, rng: Rng) -> Picture:
    """Ellipses and boxes on noise."""
    rows, columns = np.mgrid[:size, :size]
    n = channels if rng.random() < 0.5 else 1
    values = rng.uniform(-1, 0.5) + rng.normal(0, rng.uniform(0, 0.15), (n, size, size))
    for _ in range(rng.integers(1, 25)):
        (y, x), (a, b), turn = rng.uniform(0, size, 2), size / 256 * np.exp(rng.uniform(1, 4.5, 2)), rng.uniform(0, 3.1)
        u = ((columns - x) * np.cos(turn) + (rows - y) * np.sin(turn)) / a
        v = ((rows - y) * np.cos(turn) - (columns - x) * np.sin(turn)) / b
        inside = u**2 + v**2 < 1 if rng.random() < 0.6 else np.maximum(abs(u), abs(v)) < 1
        values[:, inside] = rng.uniform(-1, 1, (n, 1))
    return _as_picture(values, channels)


def _as_picture(values: np.ndarray, channels: int) -> Picture:
    spread = np.broadcast_to(values.clip(-1, 1), (channels, *values.shape[1:]))
    return torch.from_numpy(np.ascontiguousarray(spread, np.float32))
