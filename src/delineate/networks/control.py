"""The control: what steers a foundation from a scan to a mask, or from edges to a scan.

A ControlNet (Zhang et al., 2023) whose stock hint network is replaced by an image encoder of its own, the
"custom encoder" of ProGiDiff. The encoder looks at the scan once; per prompt a *hint* on the latent grid is made
once; only the ControlNet itself runs at every step. Its residuals leave through zero-initialised convolutions: at
step 0 they are exactly 0 and the foundation does what it always did.

The same class serves both directions. Towards masks (ProGiDiff) it looks at a scan, and its hint carries the encoder's
own estimate of the mask. Towards scans (DiffBoost) it looks at an edge map, and its hint carries the edges.

Towards masks one thing is added to the ControlNet. The encoder can already tell each pixel's probability of the
prompted target, and with it the codec can tell what to expect of a noisy mask, pixel by pixel (`posterior`), which
knows nothing of shapes. `trust` weighs that against the steered foundation, which does, by time and place. Without it
a control must first learn to carry the estimate through the frozen U-Net, which takes far longer.

Towards scans something else is added where the codec is of pixels: `Detail`. On its grid of an eighth a small U-Net
cannot say what 64 pixels times three colours look like; it gives the rough picture, and a few convolutions at half
the resolution of the scan, which see the noisy picture and the edges, add what is finer than the grid.
"""

from dataclasses import dataclass
from enum import StrEnum

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.codec import Codec, PixelUnshuffleCodec
from delineate.networks.encoder import ConceptHead, Features, ImageEncoder, ResidualBlock
from delineate.networks.foundation import Foundation
from delineate.networks.text import Encoded

# Log-odds, about one in eight: a foundation that nothing steers yet is a poor guide, but must be heard to be taught.
TRUST_AT_FIRST = -2.0


class Direction(StrEnum):
    """What a control steers towards."""

    MASKS = "masks"  # from a scan, as in ProGiDiff
    SCANS = "scans"  # from an edge map, as in DiffBoost


@dataclass(frozen=True, eq=False)
class Hint:
    """What a (slice, prompt) pair, or an edge map with its caption, tells the denoiser.

    `grid` (B, width, h, w) is for the ControlNet; `estimate` (B, channels, h, w) is what the hint was made from,
    encoded: the encoder's own mask, or the edges.
    """

    grid: Tensor
    estimate: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Hint":
        return Hint(self.grid[index], self.estimate[index])


class Detail(nn.Module):
    """What the steered foundation's picture lacks: a few convolutions on 2×2 pixels folded into channels.

    Its last layer is zero at first: nothing is added.
    """

    def __init__(self, colours: int, width: int, time_width: int):
        super().__init__()
        self.stem = nn.Conv2d(4 * (2 * colours + 1), width, 3, padding=1)
        self.when = nn.Linear(time_width, 2 * width)
        self.blocks = nn.ModuleList([ResidualBlock(width, width) for _ in range(2)])
        self.out = nn.Conv2d(width, 4 * colours, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, noisy: Tensor, rough: Tensor, edges: Tensor, time: Tensor) -> Tensor:
        """What to add to `rough` (B, C, S, S), given the noisy picture, the edges (B, 1, S, S) and the time's waves."""
        x = self.stem(F.pixel_unshuffle(torch.cat([noisy, rough, edges], dim=1), 2))
        scale, shift = self.when(time)[:, :, None, None].chunk(2, dim=1)
        x = x * (1 + scale) + shift
        for block in self.blocks:
            x = block(x)
        return F.pixel_shuffle(self.out(x), 2)


class Control(nn.Module):
    """Image encoder, hint and ControlNet for one foundation; then concept head and `trust`, or `detail`.

    Built from the foundation's U-Net, whose encoder half the ControlNet copies. `state_dict` holds all of it, the
    custom encoder included (diffusers' own `save_pretrained` loses it silently).
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        widths: tuple[int, ...],
        codec_channels: int,
        text_width: int,
        direction: Direction = Direction.MASKS,
        detail: int = 0,
    ):
        """A control whose residuals are 0.

        Args:
            unet: the foundation's.
            widths: of the image encoder.
            codec_channels: of the foundation's codec.
            text_width: of the foundation's texts.
            direction: towards masks or scans.
            detail: width of the `Detail`; 0 for none, as a codec that is not of pixels needs.
        """
        super().__init__()
        self.encoder = ImageEncoder(widths)
        if direction is Direction.MASKS:
            self.head = ConceptHead(widths[0], text_width)
        hint = int(unet.config["block_out_channels"][0])
        self.from_features = nn.Conv2d(widths[2], hint, 1)
        self.from_estimate = nn.Conv2d(codec_channels, hint, 3, padding=1)
        self.from_text = nn.Linear(text_width, 2 * hint)
        self.mix = nn.Sequential(
            nn.GroupNorm(8, hint), nn.SiLU(), nn.Conv2d(hint, hint, 3, padding=1), nn.SiLU(), nn.Conv2d(hint, hint, 1)
        )
        self.net: ControlNetModel = ControlNetModel.from_unet(unet, conditioning_channels=3)
        self.net.controlnet_cond_embedding = nn.Identity()  # type: ignore[assignment]  # the hint arrives made
        if direction is Direction.MASKS:
            self.trust = nn.Conv2d(2 * hint, codec_channels, 1)
            nn.init.zeros_(self.trust.weight)
            nn.init.constant_(self.trust.bias, TRUST_AT_FIRST)  # type: ignore[arg-type]
        self.detail = Detail(codec_channels // 64, detail, hint) if detail else None

    def estimate(self, features: Features, pooled: Tensor, possible: Tensor | None = None) -> Tensor:
        """Log-probabilities (B, 1 + P, S, S): background, then each of P texts, (P, width), which exclude each other.

        `possible`, (B, P) bool, leaves out texts of whose presence nothing is known.
        """
        logit = self.head(features.fine, pooled)
        if possible is not None:
            logit = logit.masked_fill(~possible[:, :, None, None], -1e4)
        return torch.cat([torch.zeros_like(logit[:, :1]), logit], dim=1).log_softmax(dim=1)

    def hint(self, features: Features, picture: Tensor, pooled: Tensor, codec: Codec) -> Hint:
        """The hint of B pictures (B, 1, S, S) in [0, 1], probabilities or edges, with features and pooled texts."""
        estimate = codec.encode(picture)
        scale, shift = self.from_text(pooled)[:, :, None, None].chunk(2, dim=1)
        grid = self.from_features(features.coarse) * (1 + scale) + shift + self.from_estimate(estimate)
        grid = grid + self.mix(grid)
        return Hint(grid, estimate)

    def residuals(self, x_t: Tensor, t: Tensor, text: Encoded, hint: Hint) -> tuple[list[Tensor], Tensor]:
        """What is added to the U-Net's skips and middle at (x_t, t)."""
        down, middle = self.net(x_t, t, encoder_hidden_states=text.tokens, controlnet_cond=hint.grid, return_dict=False)
        return down, middle

    def steer(self, foundation: Foundation, x_t: Tensor, t: Tensor, text: Encoded, hint: Hint) -> Tensor:
        """x0 of the foundation's U-Net at (x_t, t), steered by the residuals."""
        down, middle = self.residuals(x_t, t, text, hint)
        output = foundation.unet(
            x_t,
            t,
            encoder_hidden_states=text.tokens,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
        ).sample
        return foundation.schedule.to_x0(output, x_t, t)

    def refine(self, x0: Tensor, x_t: Tensor, t: Tensor, edges: Tensor, codec: Codec) -> Tensor:
        """The steered foundation's `x0` with the detail added that (x_t, t) and the edges (B, 1, S, S) tell of."""
        if self.detail is None or not isinstance(codec, PixelUnshuffleCodec):
            return x0
        rough, noisy = codec.decode_picture(x0), codec.decode_picture(x_t)
        return codec.encode_picture(rough + self.detail(noisy, rough, edges, self.net.time_proj(t).to(x0.dtype)))

    def combine(self, x0: Tensor, posterior: Tensor, t: Tensor, hint: Hint) -> Tensor:
        """The clean estimate: the steered foundation's `x0` and the `posterior`, weighed by trust at times `t` (B,)."""
        when = self.net.time_proj(t).to(hint.grid.dtype)[:, :, None, None].expand(-1, -1, *hint.grid.shape[2:])
        trust = self.trust(torch.cat([hint.grid, when], dim=1)).sigmoid()
        return posterior + trust * (x0 - posterior)
