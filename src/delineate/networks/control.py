"""The control: what steers a frozen foundation from a scan to the mask of a prompted target.

A ControlNet (Zhang et al., 2023) whose stock hint network is replaced by an image encoder of its own, the
"custom encoder" of ProGiDiff. The encoder looks at the scan once; per prompt a *hint* on the latent grid is made
once; only the ControlNet itself runs at every step. Its residuals leave through zero-initialised convolutions: at
step 0 they are exactly 0 and the foundation does what it always did.

One thing is added to the ControlNet. The encoder can already tell each pixel's probability of the prompted target, and
with it the codec can tell what to expect of a noisy mask, pixel by pixel (`posterior`), which knows nothing of shapes.
`trust` weighs that against the steered foundation, which does, by time and place. Without it a control must first
learn to carry the estimate through the frozen U-Net, which takes far longer.
"""

from dataclasses import dataclass

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from delineate.codec import Codec
from delineate.networks.encoder import ConceptHead, Features, ImageEncoder
from delineate.networks.text import Encoded

# Log-odds, about one in eight: a foundation that nothing steers yet is a poor guide, but must be heard to be taught.
TRUST_AT_FIRST = -2.0


@dataclass(frozen=True, eq=False)
class Hint:
    """What a (slice, prompt) pair tells the denoiser.

    `grid` (B, width, h, w) is for the ControlNet; `estimate` (B, channels, h, w) is the encoder's own mask, encoded.
    """

    grid: Tensor
    estimate: Tensor

    def __getitem__(self, index: Tensor | slice) -> "Hint":
        return Hint(self.grid[index], self.estimate[index])


class Control(nn.Module):
    """Image encoder, concept head, hint and ControlNet for one foundation.

    Built from the foundation's U-Net, whose encoder half the ControlNet copies. `state_dict` holds all of it, the
    custom encoder included (diffusers' own `save_pretrained` loses it silently).
    """

    def __init__(self, unet: UNet2DConditionModel, widths: tuple[int, ...], codec_channels: int, text_width: int):
        super().__init__()
        self.encoder = ImageEncoder(widths)
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
        self.trust = nn.Conv2d(2 * hint, codec_channels, 1)
        nn.init.zeros_(self.trust.weight)
        nn.init.constant_(self.trust.bias, TRUST_AT_FIRST)  # type: ignore[arg-type]

    def estimate(self, features: Features, pooled: Tensor, possible: Tensor | None = None) -> Tensor:
        """Log-probabilities (B, 1 + P, S, S): background, then each of P texts, (P, width), which exclude each other.

        `possible`, (B, P) bool, leaves out texts of whose presence nothing is known.
        """
        logit = self.head(features.fine, pooled)
        if possible is not None:
            logit = logit.masked_fill(~possible[:, :, None, None], -1e4)
        return torch.cat([torch.zeros_like(logit[:, :1]), logit], dim=1).log_softmax(dim=1)

    def hint(self, features: Features, probability: Tensor, pooled: Tensor, codec: Codec) -> Hint:
        """The hint of B (slice, prompt) pairs: their features, probabilities (B, 1, S, S), pooled texts (B, width)."""
        estimate = codec.encode(probability)
        scale, shift = self.from_text(pooled)[:, :, None, None].chunk(2, dim=1)
        grid = self.from_features(features.coarse) * (1 + scale) + shift + self.from_estimate(estimate)
        grid = grid + self.mix(grid)
        return Hint(grid, estimate)

    def residuals(self, x_t: Tensor, t: Tensor, text: Encoded, hint: Hint) -> tuple[list[Tensor], Tensor]:
        """What is added to the U-Net's skips and middle at (x_t, t)."""
        down, middle = self.net(x_t, t, encoder_hidden_states=text.tokens, controlnet_cond=hint.grid, return_dict=False)
        return down, middle

    def combine(self, x0: Tensor, posterior: Tensor, t: Tensor, hint: Hint) -> Tensor:
        """The clean estimate: the steered foundation's `x0` and the `posterior`, weighed by trust at times `t` (B,)."""
        when = self.net.time_proj(t).to(hint.grid.dtype)[:, :, None, None].expand(-1, -1, *hint.grid.shape[2:])
        trust = self.trust(torch.cat([hint.grid, when], dim=1)).sigmoid()
        return posterior + trust * (x0 - posterior)
