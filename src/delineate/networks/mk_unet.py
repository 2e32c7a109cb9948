"""MK-UNet: a U-Net of a third of a million weights that looks through several kernels at once.

Rahman and Marculescu 2025, "MK-UNet: Multi-kernel Lightweight CNN for Medical Image Segmentation" (ICCV workshops,
arXiv 2509.18493), written anew from what the paper says. Its blocks are in `delineate.networks.multi_kernel`, with what
was decided about them.

What the paper leaves open and what was decided:

* Every level pools after its block, the last one too, and what a skip carries has been pooled, so the finest features
  are at half the image's size. A slice of 256² then costs 0.28 G multiplications in convolutions; the paper says 0.31 G
  operations. With skips from before the pooling, the decoder alone would cost more than that.
* No activation between the decoder's blocks: a block ends narrow and without one, like MobileNetV2's.
* The answers are read off at half size and then enlarged: a 1×1 convolution and bilinear enlarging can change places,
  and this way round is cheaper.
* An image as small as 2^levels, such as 32² with five, is one pixel at the deepest level. That works (pooling,
  attention and gates do not mind), but batch statistics need two values: training there takes a batch of two or more.
* Spatial attention has weights of its own at each level: 98 of them.
* One head. The paper supervises four when there are many classes.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.networks.multi_kernel import KERNELS, GroupedGate, MultiKernelAttention, MultiKernelResidual

MK_UNET_WIDTHS = {"tiny": (4, 8, 16, 24, 32), "small": (8, 16, 32, 48, 80), "base": (16, 32, 64, 96, 160)}


class MKUNet(nn.Module):
    """Logits of slices (B, channels, H, W): multi-kernel blocks down, the same with attention up, gated skips between.

    All between features and answers is in `decode`, `gate` and `head`; `head` alone has a channel for each answer.

    Args:
        channels: of the image.
        answers: channels of the logits.
        widths: channels at each level, finest first; even but for the deepest. `MK_UNET_WIDTHS` has the paper's.
        kernels: odd sides of the depthwise convolutions that each block sums.

    Raises:
        ValueError: `widths` or `kernels` cannot be built.

    >>> MKUNet(channels=3, answers=2)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 2, 64, 64])
    """

    def __init__(
        self,
        channels: int,
        answers: int,
        widths: Sequence[int] = MK_UNET_WIDTHS["base"],
        kernels: tuple[int, ...] = KERNELS,
    ):
        super().__init__()
        if len(widths) < 2 or min(widths) < 1 or any(width % 2 for width in widths[:-1]):
            raise ValueError(f"widths must be two or more, positive, and even but for the deepest; not {widths}")
        self.encode = nn.ModuleList(MultiKernelResidual(a, b, kernels) for a, b in pairwise([channels, *widths]))
        upwards = [*widths[::-1], widths[0]]
        self.decode = nn.ModuleList(MultiKernelAttention(a, b, kernels) for a, b in pairwise(upwards))
        self.gate = nn.ModuleList(GroupedGate(width) for width in widths[-2::-1])
        self.head = nn.Conv2d(widths[0], answers, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # depthwise: much faster on CPU

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch answers height width"]:
        """Logits (B, answers, H, W) of (B, channels, H, W).

        Raises:
            ValueError: H or W is no multiple of 2^levels; or a training batch is a single pixel at the deepest level.
        """
        self._check(image)
        x = image.contiguous(memory_format=torch.channels_last)
        skips = []
        for block in self.encode:
            x = F.max_pool2d(block(x), 2)
            skips.append(x)
        last = len(self.gate)
        for block, gate, skip in zip(self.decode[:last], self.gate, skips[-2::-1], strict=True):
            x = _twice(block(x))
            x = x + gate(x, skip)
        return _twice(self.head(self.decode[last](x)))

    def _check(self, image: Tensor) -> None:
        step = 2 ** len(self.encode)
        batch, _, rows, columns = image.shape
        if rows % step or columns % step:
            raise ValueError(f"{len(self.encode)} levels need sides that are multiples of {step}, not {rows}×{columns}")
        if self.training and batch * rows * columns == step**2:
            raise ValueError(f"training on {rows}×{columns} needs a batch of two or more, for batch statistics")


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def multiple_of(widths: tuple[int, ...]) -> int:
    """Every level halves the sides, the finest too."""
    return 2 ** len(widths)


def build(channels: int, answers: int, widths: tuple[int, ...], blocks: int) -> nn.Module:
    """The network; it has no choice of `blocks`."""
    return MKUNet(channels, answers, widths)
