"""The control towards scans (DiffBoost): what steers a foundation from edges to a scan.

A ControlNet (Zhang et al., 2023) whose stock hint network is replaced by an image encoder of its own. The encoder looks
at an edge map once; per caption a *hint* on the latent grid is made once; the ControlNet alone runs at every step. Its
residuals leave through zero-initialised convolutions: at step 0 they are exactly 0 and the foundation does what it
always did. That towards masks is `foundation.control`.

The encoder says what scan the edges let one expect (`expect`), Bayes' rule
for a Gaussian says what follows from that and the noisy picture, and `Detail` weighs it against the steered foundation
and adds what is finer than the foundation's grid: on an eighth of the resolution a small U-Net cannot say what 64
pixels in three colours look like; a few convolutions that see the noisy picture and the encoder's features can.
"""

from dataclasses import dataclass

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.diffusion.codec import Codec, PixelUnshuffleCodec
from delineate.foundation.foundation import Foundation
from delineate.foundation.text import Encoded
from delineate.networks.encoder import Features, ImageEncoder, PictureHead, ResidualBlock

# Log-odds, about one in eight: a foundation that nothing steers yet is a poor guide, but must be heard to be taught.
TRUST_AT_FIRST = -2.0
SPREAD_AT_FIRST = 0.3  # error of an expected scan, in units of [-1, 1]; learnt


@dataclass(frozen=True, eq=False)
class Hint:
    """The ControlNet's condition: what an edge map with its caption tells the denoiser.

    `grid` (B, width, h, w) is for the ControlNet; `estimate` (B, channels, h, w) is the scan to expect, encoded.
    """

    grid: Tensor
    estimate: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Hint":
        return Hint(self.grid[index], self.estimate[index])


class Detail(nn.Module):
    """A picture from what is known of it: convolutions on 2×2 pixels folded into channels, and on 4×4 between them.

    At first it only weighs: `TRUST_AT_FIRST` for the foundation's picture, the rest for the expected one.
    """

    def __init__(self, colours: int, features: int, width: int, time_width: int):
        super().__init__()
        self.spread = nn.Parameter(torch.tensor(SPREAD_AT_FIRST).log())
        self.stem = nn.Conv2d(4 * 3 * colours + features, width, 3, padding=1)
        self.when = nn.Linear(time_width, 2 * width)
        self.before, self.after = ResidualBlock(width, width), ResidualBlock(width, width)
        self.shrink = nn.Conv2d(width, width, 2, stride=2)
        self.between = nn.Sequential(ResidualBlock(width, width), ResidualBlock(width, width))
        self.grow = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.out = nn.Conv2d(width, 4 * (colours + 1), 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, noisy: Tensor, rough: Tensor, expected: Tensor, fine: Tensor, time: Tensor) -> Tensor:
        """The clean picture (B, C, S, S).

        Args:
            noisy: the picture at time t, (B, C, S, S), as are the next two.
            rough: the steered foundation's.
            expected: the posterior mean without it.
            fine: the encoder's features (B, width, S/2, S/2).
            time: the waves of t, (B, time width).
        """
        x = self.stem(torch.cat([F.pixel_unshuffle(torch.cat([noisy, rough, expected], dim=1), 2), fine], dim=1))
        scale, shift = self.when(time)[:, :, None, None].chunk(2, dim=1)
        x = self.before(x * (1 + scale) + shift)
        x = self.after(x + self.grow(self.between(self.shrink(x))))
        out = F.pixel_shuffle(self.out(x), 2)
        trust = (out[:, :1] + TRUST_AT_FIRST).sigmoid()
        return expected + trust * (rough - expected) + out[:, 1:]


class ScanControl(nn.Module):
    """Image encoder, head, condition (hint) and ControlNet of a foundation; then `detail`.

    Built from the foundation's U-Net, whose encoder half the ControlNet copies. `state_dict` holds all of it, the
    custom encoder included (diffusers' own `save_pretrained` loses it silently).
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        widths: tuple[int, ...],
        codec_channels: int,
        text_width: int,
        colours: int = 1,
        detail: int = 0,
    ):
        """A control whose residuals are 0.

        Args:
            unet: the foundation's.
            widths: of the image encoder.
            codec_channels: of the foundation's codec.
            text_width: of the foundation's texts.
            colours: of the codec's pictures.
            detail: width of the `Detail`; 0 for none, as a codec that is not of pixels needs.
        """
        super().__init__()
        self.encoder = ImageEncoder(widths)
        self.head = PictureHead(widths[0], text_width, colours)
        hint = int(unet.config["block_out_channels"][0])
        self.from_features = nn.Conv2d(widths[2], hint, 1)
        self.from_estimate = nn.Conv2d(codec_channels, hint, 3, padding=1)
        self.from_text = nn.Linear(text_width, 2 * hint)
        self.mix = nn.Sequential(
            nn.GroupNorm(8, hint), nn.SiLU(), nn.Conv2d(hint, hint, 3, padding=1), nn.SiLU(), nn.Conv2d(hint, hint, 1)
        )
        self.net: ControlNetModel = ControlNetModel.from_unet(unet, conditioning_channels=3)
        self.net.controlnet_cond_embedding = nn.Identity()  # type: ignore[assignment]  # the hint arrives made
        self.detail = Detail(colours, widths[0], detail, hint) if detail else None

    def expect(self, features: Features, pooled: Tensor) -> Tensor:
        """The scans (B, colours, S, S) about [-1, 1] that B edge maps with their texts (B, width) let one expect."""
        return self.head(features.fine, pooled)

    def hint(self, features: Features, picture: Tensor, pooled: Tensor, codec: Codec) -> Hint:
        """The hint of B expected scans (B, colours, S, S) in [0, 1] with their features and pooled texts."""
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

    def refine(self, x0: Tensor, x_t: Tensor, t: Tensor, hint: Hint, fine: Tensor, foundation: Foundation) -> Tensor:
        """The clean latent: the steered foundation's `x0` weighed with what is to be expected, and detail.

        If the scan were the expected one μ but for Gaussian errors of `spread` s, Bayes' rule would make of
        x_t = a x0 + σ ε the mean (μ / s² + a x_t / σ²) / (1 / s² + a² / σ²).
        """
        codec = foundation.codec
        if self.detail is None or not isinstance(codec, PixelUnshuffleCodec):
            return x0
        a, sigma = foundation.schedule.signal_and_noise(t, x_t)
        gain = self.detail.spread.exp().square() / sigma.square().clamp(min=1e-4)
        expected = (hint.estimate + gain * a * x_t) / (1 + gain * a.square())
        pictures = [codec.decode_picture(latent) for latent in (x_t, x0, expected)]
        return codec.encode_picture(self.detail(*pictures, fine, self.net.time_proj(t).to(x0.dtype)))
