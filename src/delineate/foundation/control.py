"""The control towards masks (ProGiDiff): what steers a foundation from a scan and words to draws of a mask.

A ControlNet (Zhang et al., 2023) whose stock hint network is replaced by an image encoder of its own, the "custom
encoder" of ProGiDiff (Lin et al. 2026, arXiv 2601.16060). The encoder looks at the scan once. Of every (slice, prompt)
pair a *hint* on the latent grid is made: all levels of the encoder down to that grid, each told the prompt's text, and
what the encoder itself thinks of every pixel. The ControlNet reads the hint and no noise, so it too runs once a pair;
the U-Net alone runs for every draw, with the residuals that it gives.

A draw starts where the floor is (`networks.spread.cooled`): the encoder's log-odds, cooled, and noise. The foundation
changes that through one convolution, which is zero at first: a control that has learnt nothing draws the floor, and
whatever is learnt is an improvement on it or costs.
"""

from dataclasses import dataclass

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.diffusion.codec import STRIDE
from delineate.foundation.foundation import Foundation
from delineate.foundation.text import Encoded
from delineate.networks.encoder import Features, PromptedEncoder
from delineate.networks.spread import Start, cooled, log_odds

BROUGHT = (8, 16, 64)  # channels of the encoder's levels at a half, a quarter and an eighth of the resolution


@dataclass(frozen=True, eq=False)
class Hint:
    """What a (slice, prompt) pair tells the generator: `grid` (B, width, h, w), the ControlNet's condition; a start."""

    grid: Tensor
    start: Start

    def __getitem__(self, index: Tensor | slice) -> "Hint":
        return Hint(self.grid[index], self.start[index])


@dataclass(frozen=True, eq=False)
class Residuals:
    """What a control adds to the foundation's U-Net, to its skips and its middle: one row a (slice, prompt) pair."""

    down: tuple[Tensor, ...]
    middle: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Residuals":
        return Residuals(tuple(skip[index] for skip in self.down), self.middle[index])


class MaskControl(PromptedEncoder):
    """Image encoder and head; then what makes of them the hint, the ControlNet, and the way out.

    Built from the foundation's U-Net, whose encoder half the ControlNet copies. `state_dict` holds all of it, the
    custom encoder included (diffusers' own `save_pretrained` loses it silently).
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        widths: tuple[int, ...],
        codec_channels: int,
        text_width: int,
        channels: int = 3,
    ):
        """A control that draws the floor.

        Args:
            unet: the foundation's.
            widths: of the image encoder.
            codec_channels: of the foundation's codec.
            text_width: of the foundation's texts.
            channels: of the slices.
        """
        super().__init__(widths, text_width, channels)
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

    def hint(self, features: Features, probability: Tensor, pooled: Tensor) -> Hint:
        """The hint of B probabilities (B, 1, S, S) with their slices' features and their prompts' pooled texts."""
        odds = log_odds(probability)
        scale, shift = self.told(pooled)[:, :, None, None].chunk(2, dim=1)
        levels = [
            bring(level) * (1 + of_text) + also
            for bring, level, of_text, also in zip(
                self.bring, features.levels, scale.split(BROUGHT, dim=1), shift.split(BROUGHT, dim=1), strict=False
            )
        ]
        levels = [F.pixel_unshuffle(level, STRIDE // 2 ** (i + 1)) for i, level in enumerate(levels)]
        grid = self.mix(torch.cat([*levels, F.pixel_unshuffle(odds / 4, STRIDE)], dim=1))
        return Hint(grid, cooled(odds))

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
            pixels: the same on the grid of pixels (B, 1, S, S), as `Start.heard` takes it.
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
        return foundation.codec.changed(hint.start.heard(pixels, a, sigma), self.out(x0))
