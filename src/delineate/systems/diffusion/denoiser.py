"""The denoising network of UniSegDiff: one encoder over the noisy mask, two decoders, for x0 and for ε."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.diffusion.stages import Branch
from delineate.systems.diffusion.attention import DualCrossAttention


class TimedBlock(nn.Module):
    """Two 3×3 convolutions, the time as scale and shift between them, added to a 1×1 of the input."""

    def __init__(self, inputs: int, outputs: int, time: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(8, outputs)
        self.time = nn.Linear(time, 2 * outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(8, outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """(B, inputs, h, w) and time embeddings (B, time) to (B, outputs, h, w)."""
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)
        h = F.silu(self.norm1(self.conv1(x)) * (1 + scale) + shift)
        return F.silu(self.norm2(self.conv2(h)) + self.skip(x))


class Decoder(nn.Module):
    """From the encoder's levels back to the finest: one answer in latent channels."""

    def __init__(self, widths: Sequence[int], channels: int, time: int):
        super().__init__()
        self.grow = nn.ModuleList([nn.ConvTranspose2d(a, b, 2, stride=2) for a, b in pairwise(widths[::-1])])
        self.blocks = nn.ModuleList([TimedBlock(2 * b, b, time) for b in widths[-2::-1]])
        self.head = nn.Conv2d(widths[0], channels, 1)

    def forward(self, levels: Sequence[Tensor], time: Tensor) -> Tensor:
        """(B, channels, h, w) from levels, finest first."""
        x = levels[-1]
        for grow, block, skip in zip(self.grow, self.blocks, levels[-2::-1], strict=True):
            x = block(torch.cat([grow(x), skip], dim=1), time)
        return self.head(x)


class TwinDenoiser(nn.Module):
    """DNet: "1.5 U-Nets" (Sec. 2.1) that receive the condition features level by level.

    Levels that attend, the coarse ones, receive them by dual cross-attention, finer ones by a 1×1 convolution that is
    added: attention at 128² would cost more than everything else.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        condition: Sequence[int],
        *,
        attends: Sequence[bool],
        time: int = 128,
    ):
        """A denoiser.

        Args:
            channels: of the noisy mask and of each answer.
            widths: of the levels, finest first.
            condition: channels of the condition features at each level.
            attends: which levels use cross-attention.
            time: width of the time embedding.
        """
        super().__init__()
        self.widths, self.time_width = tuple(widths), time
        self.embed = nn.Sequential(nn.Linear(time, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.shrink = nn.ModuleList([nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths)])
        self.blocks = nn.ModuleList([TimedBlock(w, w, time) for w in widths])
        self.fuse = nn.ModuleList(
            [
                DualCrossAttention(w, c) if attend else nn.Conv2d(c, w, 1)
                for w, c, attend in zip(widths, condition, attends, strict=True)
            ]
        )
        self.decoders = nn.ModuleDict({str(b): Decoder(widths, channels, time) for b in Branch})
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a quarter faster on CPU

    def answer_nothing(self) -> None:
        """Make both decoders answer 0 until trained, for answers that are added to something."""
        for decoder in self.decoders.values():
            nn.init.zeros_(decoder.head.weight)  # type: ignore[union-attr]
            nn.init.zeros_(decoder.head.bias)  # type: ignore[union-attr]

    def forward(
        self,
        x_t: Float[Tensor, "batch channels h w"],
        t: Int[Tensor, " batch"],
        condition: Sequence[Tensor],
        branches: Sequence[Branch] = tuple(Branch),
    ) -> dict[Branch, Tensor]:
        """The answers of the decoders asked for.

        Args:
            x_t: noisy masks (B, channels, h, w), in latent units.
            t: the times (B,) the network is told.
            condition: features of each level, finest first, (B, condition[i], h / 2^i, w / 2^i).
            branches: which decoders to run; one alone saves the other's cost.

        Returns:
            For `Branch.MASK` the logits of the mask, for `Branch.NOISE` ε; (B, channels, h, w) each.
        """
        time = self.embed(_waves(t, self.time_width))
        x = self.stem(x_t.contiguous(memory_format=torch.channels_last))
        levels = []
        for i, (block, fuse) in enumerate(zip(self.blocks, self.fuse, strict=True)):
            if i:
                x = self.shrink[i - 1](x)
            if isinstance(fuse, DualCrossAttention):
                x = fuse(block(x, time), condition[i])
            else:
                x = block(x + fuse(condition[i]), time)
            levels.append(x)
        return {b: self.decoders[b](levels, time) for b in branches}


def _waves(t: Tensor, width: int) -> Tensor:
    """Sinusoidal embeddings (B, width) of times (B,), as in Vaswani et al. (2017)."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t[:, None].float() * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
