"""Blocks that look through several kernels at once, and the attention that goes with them.

From MK-UNet (Rahman and Marculescu 2025, arXiv 2509.18493) and its predecessor EMCAD (Rahman, Munir and
Marculescu 2024, arXiv 2405.06880), written anew from what the papers say; the letters are theirs.

What the papers leave open and what was decided:

* They shuffle channels after the sum over kernels. The 1×1 convolution that comes next mixes all of them, so a shuffle
  only renames its weights: left out.
* The residual of a block that changes the width: a 1×1 convolution, without which the published 0.316 million weights
  would be 0.267.
* Channel attention narrows to a sixteenth. Of 16 channels that would leave one, which a ReLU can shut for good: at
  least 4 stay.
* The groups of the gate: as many as its inner width, which is half the skip's, so that each inner channel reads two.
* Convolutions before a batch normalisation have no bias of their own: it would be subtracted again.

Two convolutions are written as what they are, since torch is slow at them on a CPU (by ten times and more): depthwise
1×1 is a scale, and one that reads two channels a group is depthwise 3×3 and a sum over pairs.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

KERNELS = (1, 3, 5)  # the paper's; with 1 alone it loses seven points of Dice on BUSI
EXPANSION = 2  # the paper's
REDUCTION, FEWEST = 16, 4  # channel attention narrows to a sixteenth, but no further than to four


class ChannelScale(nn.Module):
    """A depthwise 1×1 convolution: every channel times a weight."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 1, 1).uniform_(-1, 1))  # as nn.Conv2d would start

    def forward(self, x: Float[Tensor, "batch width h w"]) -> Float[Tensor, "batch width h w"]:
        """(B, width, H, W), scaled."""
        return x * self.weight


class MultiKernelConv(nn.Module):
    """MKDC: one depthwise convolution for each kernel, side by side, normalised, cut off and summed.

    MKDC(x) = Σₖ DWCBₖ(x),   DWCBₖ(x) = ReLU6(BN(DWCₖ(x)))

    Raises:
        ValueError: no kernel, or an even one, which has no middle.
    """

    def __init__(self, width: int, kernels: tuple[int, ...] = KERNELS):
        super().__init__()
        if not kernels or any(kernel < 1 or kernel % 2 == 0 for kernel in kernels):
            raise ValueError(f"kernels must be odd sides such as {KERNELS}, not {kernels}")
        self.branches = nn.ModuleList(
            nn.Sequential(ChannelScale(width) if kernel == 1 else _depthwise(width, kernel), nn.BatchNorm2d(width))
            for kernel in kernels
        )
        self.cut = nn.ModuleList(nn.ReLU6() for _ in kernels)  # modules: MC dropout finds its places by them

    def forward(self, x: Float[Tensor, "batch width h w"]) -> Float[Tensor, "batch width h w"]:
        """(B, width, H, W), all of it at least 0: what the kernels see of (B, width, H, W), summed."""
        return sum((cut(branch(x)) for branch, cut in zip(self.branches, self.cut, strict=True)), start=x.new_zeros(()))


class MultiKernelResidual(nn.Module):
    """MKIR: widen, look through several kernels, narrow, add to the input.

    MKIR(x) = x + BN(PWC₂(MKDC(ReLU6(BN(PWC₁(x))))))

    An inverted residual (MobileNetV2) whose depthwise convolution has several kernels. It ends without an activation,
    since it ends narrow. Where the width changes, the x that is added passes through a 1×1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, ...] = KERNELS, expansion: int = EXPANSION):
        super().__init__()
        inner = expansion * inputs
        self.widen = nn.Sequential(nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.cut = nn.ReLU6()
        self.look = MultiKernelConv(inner, kernels)
        self.narrow = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else nn.Identity()

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h w"]:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        return self.skip(x) + self.narrow(self.look(self.cut(self.widen(x))))


class ChannelAttention(nn.Module):
    """CA: every channel scaled by what all channels' means and maxima say about it.

    CA(x) = x · σ(C₂(ReLU(C₁(max x))) + C₂(ReLU(C₁(mean x))))
    """

    def __init__(self, width: int):
        super().__init__()
        inner = max(FEWEST, width // REDUCTION)
        self.narrow = nn.Conv2d(width, inner, 1, bias=False)
        self.widen = nn.Conv2d(inner, width, 1, bias=False)

    def forward(self, x: Float[Tensor, "batch width h w"]) -> Float[Tensor, "batch width h w"]:
        """(B, width, H, W), each channel scaled by a number in (0, 1)."""
        most, mean = x.amax(dim=(2, 3), keepdim=True), x.mean(dim=(2, 3), keepdim=True)
        asked = self.widen(F.relu(self.narrow(most)) + F.relu(self.narrow(mean)))  # C₂ is linear: once for both
        return x * asked.sigmoid()


class SpatialAttention(nn.Module):
    """SA: every pixel scaled by what its neighbours' means and maxima over the channels say about it.

    SA(x) = x · σ(C₇ₓ₇([max x, mean x]))
    """

    def __init__(self, kernel: int = 7):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x: Float[Tensor, "batch width h w"]) -> Float[Tensor, "batch width h w"]:
        """(B, width, H, W), each pixel scaled by a number in (0, 1)."""
        told = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * self.conv(told).sigmoid()


class MultiKernelAttention(nn.Module):
    """MKIRA: which channels, then which pixels, then through several kernels: MKIR(SA(CA(x)))."""

    def __init__(self, inputs: int, outputs: int, kernels: tuple[int, ...] = KERNELS, expansion: int = EXPANSION):
        super().__init__()
        self.channels = ChannelAttention(inputs)
        self.pixels = SpatialAttention()
        self.residual = MultiKernelResidual(inputs, outputs, kernels, expansion)

    def forward(self, x: Float[Tensor, "batch inputs h w"]) -> Float[Tensor, "batch outputs h w"]:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        return self.residual(self.pixels(self.channels(x)))


class PairedConv(nn.Module):
    """A grouped convolution in which each channel that comes out reads two that go in."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.each = _depthwise(width, kernel)

    def forward(self, x: Float[Tensor, "batch width h w"]) -> Float[Tensor, "batch half h w"]:
        """(B, width, H, W) to (B, width / 2, H, W)."""
        return self.each(x).unflatten(1, (-1, 2)).sum(dim=2)


class GroupedGate(nn.Module):
    """GAG: how much of a skip connection passes, pixel by pixel, in the light of what the decoder knows.

    GAG(g, x) = x · σ(BN(C(ReLU(BN(GC_g(g)) + BN(GC_x(x))))))

    with grouped convolutions GC and a convolution C to one channel: an attention gate (Attention U-Net) that costs next
    to nothing.

    Raises:
        ValueError: the width is odd, so that it has no pairs of channels.
    """

    def __init__(self, width: int, kernel: int = 3):
        super().__init__()
        if width < 2 or width % 2:
            raise ValueError(f"a grouped gate reads channels in pairs; its width must be even, not {width}")
        inner = width // 2
        self.guide = nn.Sequential(PairedConv(width, kernel), nn.BatchNorm2d(inner))
        self.skip = nn.Sequential(PairedConv(width, kernel), nn.BatchNorm2d(inner))
        self.cut = nn.ReLU()
        self.openness = nn.Sequential(nn.Conv2d(inner, 1, 1, bias=False), nn.BatchNorm2d(1))

    def forward(
        self, guide: Float[Tensor, "batch width h w"], skip: Float[Tensor, "batch width h w"]
    ) -> Float[Tensor, "batch width h w"]:
        """What passes of the encoder's `skip` (B, width, H, W), given the decoder's `guide` of the same shape."""
        return skip * self.openness(self.cut(self.guide(guide) + self.skip(skip))).sigmoid()


def _depthwise(width: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
