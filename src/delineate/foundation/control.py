"""The control towards masks (ProGiDiff): what steers a foundation from a scan and words to draws of a mask.

A ControlNet (Zhang et al., 2023) whose stock hint network is replaced by an image encoder of its own, the "custom
encoder" of ProGiDiff (Lin et al. 2026, arXiv 2601.16060). The encoder looks at the scan once. Of every (slice, prompt)
pair a *hint* on the latent grid is made: all levels of the encoder down to that grid, each told the prompt's text, and
what the encoder itself thinks of every pixel. The ControlNet reads the hint and no noise, so it too runs once a pair;
the U-Net alone runs for every draw, with the residuals that it gives.

A draw starts where the floor is (`systems.diffusion.thresholds`): the encoder's log-odds, cooled, and noise. How far
they are cooled and shifted, and how strongly the noise speaks, is learnt by pixel (`Spread`): level sets that open
where people differ and stay shut where they agree. The foundation changes that through one convolution, for what level
sets cannot say. Both are zero at first, so a control that has learnt nothing draws the floor, and whatever is learnt is
an improvement on it or costs.
"""

from dataclasses import dataclass

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.diffusion.codec import STRIDE
from delineate.foundation.foundation import Foundation
from delineate.foundation.text import Encoded
from delineate.networks.encoder import ConceptHead, Features, ImageEncoder, ResidualBlock

BROUGHT = (8, 16, 64)  # channels of the encoder's levels at a half, a quarter and an eighth of the resolution
PROBIT = 1.7  # σ(1.7 z) is about Φ(z): noise of variance 1 against log-odds
COOL = 2.0  # temperature of the encoder's log-odds at first: networks are surer than they are right
MOST = 12.0  # log-odds beyond which a pixel is as sure as it can be


@dataclass(frozen=True, eq=False)
class Hint:
    """What a (slice, prompt) pair tells the generator.

    Attributes:
        grid: (B, width, h, w), the ControlNet's condition.
        odds: (B, 1, S, S), where draws start without noise: the encoder's own log-odds, cooled and shifted.
        gain: (B, 1, S, S), how strongly noise of variance 1 speaks, in log-odds.
    """

    grid: Tensor
    odds: Tensor
    gain: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Hint":
        return Hint(self.grid[index], self.odds[index], self.gain[index])


class Spread(nn.Module):
    """From all levels of the encoder, told the text, and its log-odds: where draws start, and how far they spread.

    A U-Net's way up, once a (slice, prompt) pair; a draw then costs a sum.
    """

    def __init__(self, widths: tuple[int, ...], text_width: int, width: int = 32):
        super().__init__()
        self.bring = nn.ModuleList([nn.Conv2d(inside, width, 1) for inside in widths])
        self.told = nn.Linear(text_width, 2 * width * len(widths))
        self.blocks = nn.ModuleList([ResidualBlock(width, width) for _ in widths])
        self.odds = nn.Conv2d(4, width, 1)
        self.out = nn.Conv2d(width, 12, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, features: Features, odds: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Odds and gain of `Hint`, for the encoder's log-odds (B, 1, S, S) and pooled texts (B, width)."""
        told = self.told(pooled)[:, :, None, None].chunk(2 * len(self.blocks), dim=1)
        x: Tensor | None = None
        for i in reversed(range(len(self.blocks))):
            level = self.bring[i](features.levels[i]) * (1 + told[2 * i]) + told[2 * i + 1]
            if x is not None:
                level = level + F.interpolate(x, scale_factor=2, mode="nearest")
            if i == 0:
                level = level + self.odds(F.pixel_unshuffle(odds / 4, 2))
            x = self.blocks[i](level)
        scale, shift, gain = F.pixel_shuffle(self.out(x), 2).float().chunk(3, dim=1)  # type: ignore[arg-type]
        return odds * scale.clamp(-2, 2).exp() / COOL + 4 * shift, PROBIT * gain.clamp(-2, 2).exp()


@dataclass(frozen=True, eq=False)
class Residuals:
    """What a control adds to the foundation's U-Net, to its skips and its middle: one row a (slice, prompt) pair."""

    down: tuple[Tensor, ...]
    middle: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Residuals":
        return Residuals(tuple(skip[index] for skip in self.down), self.middle[index])


class MaskControl(nn.Module):
    """Image encoder and head; then what makes of them the hint, the ControlNet, and the way out.

    Built from the foundation's U-Net, whose encoder half the ControlNet copies. `state_dict` holds all of it, the
    custom encoder included (diffusers' own `save_pretrained` loses it silently).
    """

    def __init__(self, unet: UNet2DConditionModel, widths: tuple[int, ...], codec_channels: int, text_width: int):
        """A control that draws the floor.

        Args:
            unet: the foundation's.
            widths: of the image encoder.
            codec_channels: of the foundation's codec.
            text_width: of the foundation's texts.
        """
        super().__init__()
        self.encoder = ImageEncoder(widths)
        self.head = ConceptHead(widths[0], text_width)
        hint = int(unet.config["block_out_channels"][0])
        self.bring = nn.ModuleList([nn.Conv2d(inside, out, 1) for inside, out in zip(widths, BROUGHT, strict=False)])
        self.told = nn.Linear(text_width, 2 * sum(BROUGHT))
        brought = sum(width * (STRIDE // 2 ** (i + 1)) ** 2 for i, width in enumerate(BROUGHT))
        self.mix = nn.Sequential(
            nn.Conv2d(brought + STRIDE**2, 2 * hint, 1),
            nn.GroupNorm(8, 2 * hint),
            nn.SiLU(),
            nn.Conv2d(2 * hint, hint, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hint, hint, 1),
        )
        self.net: ControlNetModel = ControlNetModel.from_unet(unet, conditioning_channels=3)
        self.net.controlnet_cond_embedding = nn.Identity()  # type: ignore[assignment]  # the hint arrives made
        for zero in (*self.net.controlnet_down_blocks, self.net.controlnet_mid_block):
            nn.init.normal_(zero.weight, std=0.02)  # type: ignore[arg-type]  # one closed door, `out`, is enough
        self.out = nn.Conv2d(codec_channels, codec_channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]
        self.spread = Spread(widths, text_width)

    def estimate(self, features: Features, pooled: Tensor, possible: Tensor | None = None) -> Tensor:
        """Log-probabilities (B, 1 + P, S, S): background, then each of P texts, (P, width), which exclude each other.

        `possible`, (B, P) bool, leaves out texts of whose presence nothing is known.
        """
        logit = self.head(features.fine, pooled)
        if possible is not None:
            logit = logit.masked_fill(~possible[:, :, None, None], -1e4)
        return torch.cat([torch.zeros_like(logit[:, :1]), logit], dim=1).log_softmax(dim=1)

    def hint(self, features: Features, probability: Tensor, pooled: Tensor) -> Hint:
        """The hint of B probabilities (B, 1, S, S) with their slices' features and their prompts' pooled texts."""
        odds = torch.logit(probability.float().clamp(1e-6, 1 - 1e-6)).clamp(-MOST, MOST)
        scale, shift = self.told(pooled)[:, :, None, None].chunk(2, dim=1)
        levels = [
            bring(level) * (1 + of_text) + also
            for bring, level, of_text, also in zip(
                self.bring, features.levels, scale.split(BROUGHT, dim=1), shift.split(BROUGHT, dim=1), strict=False
            )
        ]
        levels = [F.pixel_unshuffle(level, STRIDE // 2 ** (i + 1)) for i, level in enumerate(levels)]
        grid = self.mix(torch.cat([*levels, F.pixel_unshuffle(odds / 4, STRIDE)], dim=1))
        return Hint(grid, *self.spread(features, odds, pooled))

    def residuals(self, t: int, text: Encoded, hint: Hint, channels: int) -> Residuals:
        """What the ControlNet adds to the U-Net at time t, of B pairs; `channels` are those of the latent."""
        nothing = hint.grid.new_zeros(len(hint.grid), channels, *hint.grid.shape[2:])
        when = torch.full((len(nothing),), t, device=nothing.device)
        down, middle = self.net(
            nothing, when, encoder_hidden_states=text.tokens, controlnet_cond=hint.grid, return_dict=False
        )
        return Residuals(tuple(down), middle)

    def draw(
        self,
        foundation: Foundation,
        x_t: Tensor,
        pixels: Tensor,
        t: int,
        text: Encoded,
        steering: Residuals,
        hint: Hint,
    ) -> Tensor:
        """Log-odds (B, 1, S, S) of the masks that the steered foundation draws.

        Args:
            foundation: whose U-Net is steered.
            x_t: latents (B, channels, h, w) at time t; at the last time nothing but noise.
            pixels: the same on the grid of pixels (B, 1, S, S), as `start` takes it.
            t: the time.
            text: of the prompts, B of them.
            steering: the residuals, of B rows.
            hint: of the pairs, B rows.
        """
        when = torch.full((len(x_t),), t, device=x_t.device)
        output = foundation.unet(
            x_t,
            when,
            encoder_hidden_states=text.tokens,
            down_block_additional_residuals=steering.down,
            mid_block_additional_residual=steering.middle,
        ).sample
        x0 = foundation.schedule.to_x0(output, x_t, when)
        a, sigma = foundation.schedule.signal_and_noise(when, pixels)
        return foundation.codec.changed(start(hint, pixels, a, sigma), self.out(x0))


def start(hint: Hint, pixels: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
    """Log-odds before the foundation is heard, (B, 1, S, S): those of the hint, and what `pixels` say.

    They are a m + σ z of a mask m = ±1 and noise z: by Bayes' rule they add 2 a / σ² times themselves; and z, where
    there is no signal yet, makes draws differ as those of the floor do.
    """
    heard = 2 * signal / noise.square().clamp(min=1e-3) + hint.gain * noise
    return (hint.odds + heard * pixels).clamp(-MOST, MOST)
