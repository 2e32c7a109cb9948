"""UNet++ in 2-D, by MONAI: nodes X(i, j) at level i after j enlargements, each fed by all before it at its level.

Zhou et al. 2020, "UNet++: Redesigning Skip Connections to Exploit Multiscale Features in Image Segmentation" (IEEE
TMI), arXiv 1912.05074. Decided: one head, at X(0, 4). The paper's deep supervision averages four of that level, which
lets it be cut short after training; at equal images one head is what the other networks have.
"""

from monai.networks.nets import BasicUNetPlusPlus
from torch import Tensor, nn

LEVELS = 5  # MONAI's class has five, and the width of the last node beside them


class UNetPlusPlus(nn.Module):
    """MONAI's network, its unused heads left out; logits (B, answers, H, W)."""

    def __init__(self, channels: int, answers: int, widths: tuple[int, ...]):
        super().__init__()
        self.net = BasicUNetPlusPlus(spatial_dims=2, in_channels=channels, out_channels=answers, features=widths)
        for depth in (1, 2, 3):
            self.net.set_submodule(f"final_conv_0_{depth}", nn.Identity())

    def forward(self, image: Tensor) -> Tensor:
        """(B, channels, H, W), sides multiples of 16, to logits."""
        return self.net(image)[-1]


def multiple_of(widths: tuple[int, ...]) -> int:
    """Every level but the finest halves the sides.

    Raises:
        ValueError: there are not six widths.
    """
    if len(widths) != LEVELS + 1:
        raise ValueError(f"a UNet++ has {LEVELS} levels and the width of its last node; got {widths}")
    return 2 ** (LEVELS - 1)


def build(channels: int, answers: int, widths: tuple[int, ...], blocks: int) -> nn.Module:
    """The network; it has no choice of `blocks`."""
    return UNetPlusPlus(channels, answers, widths)
