"""How far masks of one thing spread: a small network that says where level sets open, looked up in the image.

The floor (`systems.diffusion.thresholds`) draws level sets of an estimate: log-odds and one number for the whole
picture, generous or strict. Here the image tells pixel by pixel how strongly that number u speaks,

    log-odds of the mask at u:  odds + gain u

with u nearly one value for the whole picture: masks open where people differ and stay shut where they agree. One number
a draw can be spread evenly over few draws; six further ones, each with a picture of its own (a low-rank covariance),
stood for the raters less well, and bending the line into a curve changed nothing (docs/lab).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.networks.encoder import Features, ResidualBlock

PROBIT = 1.7  # σ(1.7 z) is about Φ(z): noise of variance 1 against log-odds
COOL = 2.0  # temperature of the encoder's log-odds at first: networks are surer than they are right
MOST = 12.0  # log-odds beyond which a pixel is as sure as it can be


@dataclass(frozen=True, eq=False)
class Start:
    """Where draws of B (slice, prompt) pairs start.

    Attributes:
        odds: (B, 1, S, S), log-odds without noise.
        gain: (B, 1, S, S), how strongly noise of variance 1 speaks, in log-odds; above 0.
    """

    odds: Tensor
    gain: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Start":
        return Start(self.odds[index], self.gain[index])

    def drawn(self, noise: Tensor) -> Tensor:
        """Log-odds (B, K, S, S) of K draws by noise of that shape, of variance 1 and nearly one value a picture."""
        return torch.addcmul(self.odds, self.gain, noise).clamp(-MOST, MOST)

    def heard(self, pixels: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """Log-odds (B, 1, S, S) where more is known: `pixels` are a m + σ z of a mask m = ±1.

        By Bayes' rule they add 2 a / σ² times themselves; and z, where there is no signal yet, makes draws differ.
        """
        loud = 2 * signal / noise.square().clamp(min=1e-3) + self.gain * noise
        return (self.odds + loud * pixels).clamp(-MOST, MOST)


def log_odds(probability: Tensor) -> Tensor:
    """Of probabilities (any shape), at most `MOST` from 0."""
    return torch.logit(probability.float().clamp(1e-6, 1 - 1e-6)).clamp(-MOST, MOST)


def cooled(odds: Tensor) -> Start:
    """Where draws start if nothing was learnt: the floor of an encoder that is too sure, for log-odds (B, 1, S, S)."""
    return Start(odds / COOL, torch.full_like(odds, PROBIT))


class Spread(nn.Module):
    """From all levels of the encoder, told the text, and its log-odds, to `Start`.

    A U-Net's way up, once a (slice, prompt) pair; a draw then costs a sum. Untrained it gives `cooled`.
    """

    def __init__(self, widths: tuple[int, ...], text_width: int, width: int = 32):
        """Of an encoder with `widths`, for texts of `text_width`."""
        super().__init__()
        self.bring = nn.ModuleList([nn.Conv2d(inside, width, 1) for inside in widths])
        self.told = nn.Linear(text_width, 2 * width * len(widths))
        self.blocks = nn.ModuleList([ResidualBlock(width, width) for _ in widths])
        self.odds = nn.Conv2d(4, width, 1)
        self.out = nn.Conv2d(width, 4 * 3, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster on CPU

    def forward(self, features: Features, odds: Tensor, pooled: Tensor) -> Start:
        """For the encoder's log-odds (B, 1, S, S) and pooled texts (B, width)."""
        told = self.told(pooled)[:, :, None, None].chunk(2 * len(self.blocks), dim=1)
        x: Tensor | None = None
        for i in reversed(range(len(self.blocks))):
            level = self.bring[i](features.levels[i]) * (1 + told[2 * i]) + told[2 * i + 1]
            if x is not None:
                level = level + F.interpolate(x, scale_factor=2, mode="nearest")
            if i == 0:
                level = level + self.odds(F.pixel_unshuffle(odds / 4, 2))
            x = self.blocks[i](level)
        out = F.pixel_shuffle(self.out(x), 2).float()  # type: ignore[arg-type]
        scale, shift, gain = out.split(1, dim=1)
        return Start(odds * scale.clamp(-2, 2).exp() / COOL + 4 * shift, PROBIT * gain.clamp(-2, 2).exp())
