"""Smooth noise on pixels, one field for each proposal: what makes proposals differ by shape and not by specks."""

from functools import lru_cache

import torch
from torch import Generator, Tensor

from delineate.diffusion.codec import PixelUnshuffleCodec, noise_fields

LEVEL = 0.97  # share of the noise's variance that is one value for the whole picture; by GED² on val (docs/lab)
TEXTURES = 256  # of which training takes one at a time


@lru_cache(maxsize=8)  # the same for every prompt
def smooth_fields(size: int, n: int, seed: int, level: float = LEVEL, step: int = 0) -> Tensor:
    """Noise without speckles for n proposals, (n, size, size): field k depends on (seed, k, step) alone."""
    grains = tuple(max(1, size // part) for part in (64, 32, 16, 8))
    codec = PixelUnshuffleCodec(stride=1, grains=grains, smooth=True, level=level)
    return noise_fields(codec, n, (1, size, size), seed)(step)[:, 0]


def random_fields(size: int, count: int, level: float, generator: Generator) -> Tensor:
    """The same for training, (count, size, size) on the CPU: levels, and some of a few hundred textures, turned.

    Making textures anew costs more than a network's step.
    """
    levels = torch.randn(count, 1, 1, generator=generator)
    return (1 - level) ** 0.5 * _textures(size, count, generator) + level**0.5 * levels


def even_fields(size: int, pairs: int, draws: int, level: float, generator: Generator) -> Tensor:
    """For several draws of each of so many pairs, (pairs, draws, size, size): levels are spread evenly, as in use.

    A pair has two textures, each in half of its draws as it is or negated.
    """
    textures = _textures(size, 2 * pairs, generator).view(pairs, 2, size, size)
    signs = 2.0 * torch.randint(2, (pairs, draws), generator=generator) - 1
    texture = textures[:, torch.arange(draws) % 2] * ((1 - level) ** 0.5 * signs)[..., None, None]
    return texture.add_(level**0.5 * even_levels(pairs, draws, generator)[..., None, None])


def _textures(size: int, count: int, generator: Generator) -> Tensor:
    texture = smooth_fields(size, TEXTURES, 0, 0.0)[torch.randint(TEXTURES, (count,), generator=generator)]
    turned = torch.randint(2, (count, 4), generator=generator).bool()[:, :, None, None]
    texture = torch.where(turned[:, 0], texture.flip(1), texture)
    texture = torch.where(turned[:, 1], texture.flip(2), texture)
    texture = torch.where(turned[:, 2], texture.transpose(1, 2), texture)
    return torch.where(turned[:, 3], -texture, texture)


def even_levels(pairs: int, draws: int, generator: Generator) -> Tensor:
    """Values for training, (pairs, draws), each row spread evenly over a standard normal, in any order."""
    place = torch.stack([torch.randperm(draws, generator=generator) for _ in range(pairs)])
    share = (place + torch.rand(pairs, 1, generator=generator)) / draws
    return torch.special.ndtri(share.clamp(1e-4, 1 - 1e-4))
