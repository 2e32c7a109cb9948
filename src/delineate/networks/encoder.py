"""The image encoder: a residual U-Net that looks at a scan once, whatever will be asked of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

# Each reaches 8×8 on its preset's grid, so that what is seen there knows the whole picture. The finest level of "small"
# is thin: at 128×128 a channel costs as much as 16 at 32×32.
ENCODER_WIDTHS = {
    "tiny": (32, 64, 128, 256),
    "small": (24, 48, 96, 192, 256),
    "base": (64, 128, 256, 512, 512),
}


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with group normalisation, added to a 1×1 of the input."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        h = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(h)) + self.skip(x))


@dataclass(frozen=True, eq=False)
class Features:
    """What the encoder saw: `levels` from half the working resolution down.

    `gist` tells each slice in some hundred numbers (`gist_of`), by which kinds of scans are told apart. `memo` is for
    what is worked out of the levels once and needed again; what it holds follows from them.
    """

    levels: tuple[Tensor, ...]
    gist: Tensor | None = None
    memo: dict[Any, Tensor] = field(default_factory=dict, repr=False)

    @property
    def fine(self) -> Float[Tensor, "batch fine h w"]:
        """At half the working resolution."""
        return self.levels[0]

    @property
    def coarse(self) -> Float[Tensor, "batch coarse _ _"]:
        """At an eighth of it (the codecs' grid)."""
        return self.levels[2]

    def __getitem__(self, index: Tensor | slice) -> "Features":
        return Features(tuple(level[index] for level in self.levels))

    def split(self, count: int) -> "list[Features]":
        """The features of `count` slices at a time."""
        return [Features(some) for some in zip(*(level.split(count) for level in self.levels), strict=True)]


def gist_of(levels: Sequence[Tensor]) -> Float[Tensor, "batch numbers"]:
    """Mean, maximum and standard deviation of every channel of all levels but the finest, float32."""
    parts = [level.float().flatten(2) for level in levels[1:]]
    return torch.cat([one for part in parts for one in (part.mean(2), part.amax(2), part.std(2))], dim=1)


class ImageEncoder(nn.Module):
    """Scan slices (B, channels, S, S) in [-1, 1] to `Features`.

    With `fold` 2 the first level works at half resolution on 2×2 pixels folded into channels: nothing is thrown away,
    and the full-resolution layers, which cost most, are not needed. Heads unfold again.
    """

    def __init__(self, widths: tuple[int, ...], fold: int = 2, channels: int = 3):
        super().__init__()
        self.widths, self.fold = widths, fold
        self.stem = nn.Conv2d(channels * fold**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList([ResidualBlock(widths[0], widths[0])])
        self.shrink = nn.ModuleList()
        for a, b in pairwise(widths):
            self.shrink.append(nn.Conv2d(a, b, 2, stride=2))
            self.down.append(ResidualBlock(b, b))
        self.grow = nn.ModuleList()
        self.up = nn.ModuleList()
        for a, b in pairwise(widths[::-1]):
            self.grow.append(nn.ConvTranspose2d(a, b, 2, stride=2))
            self.up.append(ResidualBlock(2 * b, b))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster on CPU

    def levels(self, image: Float[Tensor, "batch channels size size"]) -> list[Tensor]:
        """The decoder's features at every level, finest first: (B, widths[i], S / fold / 2^i, S / fold / 2^i)."""
        folded = F.pixel_unshuffle(image, self.fold).contiguous(memory_format=torch.channels_last)
        x = self.down[0](self.stem(folded))
        skips = [x]
        for shrink, block in zip(self.shrink, self.down[1:], strict=True):
            x = block(shrink(x))
            skips.append(x)
        levels = [x]
        for grow, block, skip in zip(self.grow, self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([grow(x), skip], dim=1))
            levels.append(x)
        return levels[::-1]

    def forward(self, image: Float[Tensor, "batch channels size size"]) -> Features:
        """Features of (B, channels, S, S); S must be a multiple of fold × 2^(levels - 1)."""
        return Features(tuple(self.levels(image)))


class ConceptHead(nn.Module):
    """The target that a text names, looked for in the features: a logit per pixel.

    The text gives the weights of a 1×1 convolution over the fine features (as the query of a mask transformer
    does), so one look at the scan serves any number of prompts at the price of a dot product each.
    """

    def __init__(self, feature_width: int, text_width: int, hidden: int = 128):
        super().__init__()
        self.hidden = nn.Sequential(nn.LayerNorm(text_width), nn.Linear(text_width, hidden), nn.SiLU())
        self.weight = nn.Linear(hidden, 4 * feature_width)
        self.bias = nn.Linear(hidden, 1)
        nn.init.zeros_(self.bias.weight)
        nn.init.zeros_(self.bias.bias)

    def forward(self, fine: Tensor, pooled: Tensor) -> Tensor:
        """Logits (B, P, S, S) for features (B, C, S/2, S/2) and P texts (B, P, width) or (P, width)."""
        return F.pixel_shuffle(self._quarters(fine, pooled).flatten(1, 2), 2)

    def total(self, fine: Tensor, pooled: Tensor) -> Tensor:
        """The logarithm of one, for background, plus the exponentials of all logits, (B, S, S)."""
        quarters = F.softplus(self._quarters(fine, pooled).logsumexp(dim=1))
        return F.pixel_shuffle(quarters, 2)[:, 0]

    def _quarters(self, fine: Tensor, pooled: Tensor) -> Tensor:
        """Logits (B, P, 4, S/2, S/2): each fine pixel answers for four."""
        hidden = self.hidden(pooled)
        weight = self.weight(hidden).unflatten(-1, (4, -1))
        subscript = "bpqc,bchw->bpqhw" if pooled.ndim == 3 else "pqc,bchw->bpqhw"
        return torch.einsum(subscript, weight, fine) + self.bias(hidden)[..., None, None]


class PromptedEncoder(nn.Module):
    """An image encoder, and the head that words steer."""

    def __init__(self, widths: tuple[int, ...], text_width: int, channels: int = 3):
        super().__init__()
        self.encoder = ImageEncoder(widths, channels=channels)
        self.head = ConceptHead(widths[0], text_width)

    def estimate(self, features: Features, pooled: Tensor, possible: Tensor | None = None) -> Tensor:
        """Log-probabilities (B, 1 + P, S, S): background, then each of P texts, (P, width), which exclude each other.

        `possible`, (B, P) bool, leaves out texts of whose presence nothing is known.
        """
        logit = self.head(features.fine, pooled)
        if possible is not None:
            logit = logit.masked_fill(~possible[:, :, None, None], -1e4)
        return torch.cat([torch.zeros_like(logit[:, :1]), logit], dim=1).log_softmax(dim=1)


class PictureHead(nn.Module):
    """The scan that edges and a caption let one expect: what all scans with these edges have in common."""

    def __init__(self, feature_width: int, text_width: int, colours: int):
        super().__init__()
        self.told = nn.Linear(text_width, 2 * feature_width)
        self.mix = ResidualBlock(feature_width, feature_width)
        self.out = nn.Conv2d(feature_width, 4 * colours, 1)

    def forward(self, fine: Tensor, pooled: Tensor) -> Tensor:
        """Pictures (B, colours, S, S) about [-1, 1] of features (B, C, S/2, S/2) and texts (B, width)."""
        scale, shift = self.told(pooled)[:, :, None, None].chunk(2, dim=1)
        return F.pixel_shuffle(self.out(self.mix(fine * (1 + scale) + shift)), 2)
