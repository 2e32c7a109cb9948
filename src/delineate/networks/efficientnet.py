"""EfficientNet-Lite0 with a light U-Net decoder: an encoder for colour images whose weights can come from ImageNet.

The encoder is TensorFlow's efficientnet-lite, variant lite0: EfficientNet-B0 (Tan and Le 2019, arXiv 1905.11946)
without squeeze-and-excitation and with ReLU6 for swish. Its parts have the names that published weights have, so that
these fit one to one (`begin`); the classifier behind the last block is left out.

What was decided:

* **What the encoder sees** is (v - 127) / 128 of grey values v from 0 to 255, as its ImageNet weights learnt, and not
  ImageNet's mean and standard deviation, as with most other networks. Slices in [-1, 1] are brought there inside.
* **Padding** is TensorFlow's SAME: a strided convolution pads more below and to the right. With as much on every side
  the weights would look a pixel beside where they learnt to, at every halving.
* **The decoder**: at each of the strides 16 to 2, what comes from below is enlarged twice, laid beside the encoder's
  features and convolved. Answers are read off at half the image's size and then enlarged, as in MK-UNet.
* **Batch statistics** follow with torch's usual 0.1 instead of TensorFlow's 0.01: training here takes few steps.
* **First weights** are the paper's, normal with variance 2 / fan-out, so that a start from chance is a fair one.
"""

from collections.abc import Mapping
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = (  # kernel, stride, expansion, channels, blocks: Table 1 of the paper, width and depth 1
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM = 32
FEATURES = {0: 16, 2: 24, 4: 40, 10: 112, 15: 320}  # the last block at strides 2, 4, 8, 16 and 32, and its channels
EPSILON = 1e-3  # TensorFlow's, of batch normalisation


def _convolution(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """Without a bias; a strided one without padding, which is not even (`_padded`)."""
    padding = kernel // 2 if stride == 1 else 0
    made = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    nn.init.normal_(made.weight, std=(2 * groups / (kernel**2 * outputs)) ** 0.5)
    return made


def _padded(x: Tensor, kernel: int) -> Tensor:
    """`x`, its sides even, as TensorFlow's SAME pads it for a `kernel` of stride 2: one more below and to the right."""
    before = (kernel - 2) // 2
    return F.pad(x, (before, kernel - 2 - before) * 2)


class InvertedBottleneck(nn.Module):
    """1×1 to more channels, depthwise, 1×1 to few (MobileNetV2's MBConv); added to its input where the shape stays."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs
        self.pads = kernel if stride > 1 else None
        if self.expands:
            self._expand_conv = _convolution(inputs, wide)
            self._bn0 = nn.BatchNorm2d(wide, EPSILON)
            self.cut0 = nn.ReLU6()
        self._depthwise_conv = _convolution(wide, wide, kernel, stride, groups=wide)
        self._bn1 = nn.BatchNorm2d(wide, EPSILON)
        self.cut1 = nn.ReLU6()
        self._project_conv = _convolution(wide, outputs)
        self._bn2 = nn.BatchNorm2d(outputs, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        h = self.cut0(self._bn0(self._expand_conv(x))) if self.expands else x
        h = h if self.pads is None else _padded(h, self.pads)
        h = self.cut1(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return h + x if self.adds else h


class EfficientNetLite0(nn.Module):
    """Images (B, 3, H, W) in [-1, 1] to features at strides 2, 4, 8, 16 and 32, finest first; see `FEATURES`."""

    def __init__(self):
        super().__init__()
        self._conv_stem = _convolution(3, STEM, 3, 2)
        self._bn0 = nn.BatchNorm2d(STEM, EPSILON)
        self.cut = nn.ReLU6()
        blocks, inputs = [], STEM
        for kernel, stride, expansion, outputs, count in STAGES:
            for number in range(count):
                blocks.append(InvertedBottleneck(inputs, outputs, kernel, 1 if number else stride, expansion))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)

    def forward(self, image: Float[Tensor, "batch 3 height width"]) -> list[Tensor]:
        """Five features (B, C, H / stride, W / stride)."""
        seen = (image * 127.5 + 0.5) / 128  # (v - 127) / 128 of v = 127.5 (image + 1)
        x, features = self.cut(self._bn0(self._conv_stem(_padded(seen, 3)))), []
        for number, block in enumerate(self._blocks):
            x = block(x)
            if number in FEATURES:
                features.append(x)
        return features


class EfficientNetUNet(nn.Module):
    """Logits of slices: `encoder`, and on the way up `decode` and `head`, which alone has a channel for each answer.

    Args:
        channels: of the image: three, or one that is repeated.
        answers: channels of the logits.
        widths: of the decoder at strides 2, 4, 8 and 16.
        blocks: convolutions at each of them.

    Raises:
        ValueError: there are other channels or not four widths.

    >>> EfficientNetUNet(channels=3, answers=2).eval()(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 2, 64, 64])
    """

    def __init__(self, channels: int, answers: int, widths: tuple[int, ...] = (16, 24, 40, 64), blocks: int = 1):
        super().__init__()
        multiple_of(widths)
        if channels not in (1, 3):
            raise ValueError(f"an EfficientNet looks at three colours or at one grey value, not {channels} channels")
        self.encoder = EfficientNetLite0()
        of_skips = list(FEATURES.values())
        steps = zip(pairwise([of_skips[-1], *widths[::-1]]), of_skips[-2::-1], strict=True)
        self.decode = nn.ModuleList(_convolutions(below + skip, width, blocks) for (below, width), skip in steps)
        self.head = nn.Conv2d(widths[0], answers, 1)

    def forward(
        self, image: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch answers height width"]:
        """Logits (B, answers, H, W) of (B, channels, H, W).

        Raises:
            ValueError: H or W is no multiple of 32; or a training batch is a single pixel at the deepest level.
        """
        batch, _, rows, columns = image.shape
        if rows % 32 or columns % 32:
            raise ValueError(f"an EfficientNet needs sides that are multiples of 32, not {rows}×{columns}")
        if self.training and batch * rows * columns == 32**2:
            raise ValueError(f"training on {rows}×{columns} needs a batch of two or more, for batch statistics")
        *skips, x = self.encoder(image.expand(-1, 3, -1, -1))
        for convolve, skip in zip(self.decode, skips[::-1], strict=True):
            x = convolve(torch.cat([_twice(x), skip], dim=1))
        return _twice(self.head(x))


def _convolutions(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for number in range(blocks):
        layers += [_convolution(outputs if number else inputs, outputs, 3), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def multiple_of(widths: tuple[int, ...]) -> int:
    """The encoder halves the sides five times, whatever the decoder's widths.

    Raises:
        ValueError: there are not four widths.
    """
    if len(widths) != len(FEATURES) - 1:
        raise ValueError(f"the decoder of an EfficientNet has {len(FEATURES) - 1} widths; got {widths}")
    return 2 ** len(FEATURES)


def build(channels: int, answers: int, widths: tuple[int, ...], blocks: int) -> nn.Module:
    """The network, its decoder `widths` wide with `blocks` convolutions a level."""
    return EfficientNetUNet(channels, answers, widths, blocks)


def begin(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give the encoder weights that were learnt elsewhere; those of a classifier behind it are left out.

    Raises:
        RuntimeError: they are not an EfficientNet-Lite0's.
    """
    assert isinstance(network, EfficientNetUNet)
    behind = ("_conv_head.", "_bn1.", "_fc.")
    network.encoder.load_state_dict({k: v for k, v in weights.items() if not k.startswith(behind)})
