"""MONAI's residual U-Net in 2-D: the plain baseline."""

from monai.networks.nets import UNet
from torch import nn


def multiple_of(widths: tuple[int, ...]) -> int:
    """Every level but the finest halves the sides."""
    return 2 ** (len(widths) - 1)


def build(channels: int, answers: int, widths: tuple[int, ...], blocks: int) -> nn.Module:
    """The network; `blocks` convolutions in a residual unit."""
    return UNet(
        spatial_dims=2,
        in_channels=channels,
        out_channels=answers,
        channels=widths,
        strides=(2,) * (len(widths) - 1),
        num_res_units=blocks,
    )
