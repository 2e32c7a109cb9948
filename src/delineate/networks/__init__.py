"""The interchangeable networks: slices in, logits out. Adding one is a file in this folder and a row in `NETWORKS`.

The table itself needs no torch. Every file that a row names has the same two functions:

    multiple_of(widths) -> int             what the sides of an image must be multiples of; refuses wrong widths
    build(channels, answers, widths, blocks) -> nn.Module      (B, channels, H, W) to logits (B, answers, H, W)

and, where its row has `starts`, a third:

    begin(network, weights)                gives a part of the network weights that were learnt elsewhere
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

Size = tuple[tuple[int, ...], int]  # channels at each level, finest first, and blocks at each


@dataclass(frozen=True)
class Network:
    """A row: what a network is, in which file of this folder it is built, and what others must know of it.

    Nothing else in the house asks a network's name.

    Attributes:
        module: the file's name.
        summary: one line for people.
        source: the paper or library it follows.
        presets: sizes by name.
        answers_at: the path of the one block that has a channel for each answer.
        decoder: a pattern of the paths on the way from features to answers (encoder-decoder networks' second half).
        layout: the memory layout that it is fast and right in, a name of torch's.
        dims: of the images it takes.
        any_channels: whether images may have other than three channels.
        starts: weights that it can begin with instead of chance, by what they learnt from: keys of
            `delineate.storage.pretrained.PRETRAINED`.
    """

    module: str
    summary: str
    source: str
    presets: Mapping[str, Size]
    answers_at: str
    decoder: str
    layout: str = "channels_last"
    dims: tuple[int, ...] = (2,)
    any_channels: bool = True
    starts: Mapping[str, str] = field(default_factory=dict)

    def _file(self) -> Any:
        return import_module(f"delineate.networks.{self.module}")

    def multiple_of(self, widths: tuple[int, ...]) -> int:
        """What the sides of an image must be multiples of.

        Raises:
            ValueError: the network cannot have these widths.
        """
        return self._file().multiple_of(widths)

    def build(self, channels: int, answers: int, preset: str | Size) -> "nn.Module":
        """The network, untrained, in its own memory layout.

        Args:
            channels: of the image.
            answers: channels of the logits.
            preset: one of `presets`, or widths and blocks.
        """
        import torch

        widths, blocks = self.presets[preset] if isinstance(preset, str) else preset
        network: Any = self._file().build(channels, answers, widths, blocks)
        return network.to(memory_format=getattr(torch, self.layout))

    def begin(self, network: "nn.Module", weights: "Mapping[str, Tensor]") -> None:
        """Give a network that was built here the weights of one of its `starts`."""
        self._file().begin(network, weights)


NETWORKS: dict[str, Network] = {
    "unet": Network(
        "unet",
        "plain 2-D U-Net, one channel a target, Dice + CE: the baseline beside every claim; one answer, no proposals",
        "Ronneberger et al. 2015; MONAI UNet with residual units (Kerfoot et al. 2018)",
        {"tiny": ((32, 64, 128, 256), 2), "base": ((64, 128, 256, 512, 512), 2)},
        answers_at="model.2",
        decoder=r"model\..*\b2\b",  # of each level's three: 0 down, 1 below, 2 up
    ),
    "mednext": Network(
        "mednext",
        "plain 2-D MedNeXt (S, kernel 3), trained as the U-Net is: a stronger baseline; one answer, no proposals",
        "Roy et al. 2023 (MICCAI), arXiv 2303.09975; MONAI MedNeXt",
        {"tiny": ((16, 32, 64, 128, 256), 1), "base": ((32, 64, 128, 256, 512), 2)},
        answers_at="out_0",
        decoder=r"(up_|out_)",
        # Its strided 1×1 convolutions corrupt memory in channels_last on CPU below 16 filters (torch 2.13, backward).
        layout="contiguous_format",
    ),
    "unetpp": Network(
        "unetpp",
        "UNet++: a U-Net whose skips are dense networks of their own, trained as the U-Net is; one answer",
        "Zhou et al. 2020 (IEEE TMI), arXiv 1912.05074; MONAI BasicUNetPlusPlus",
        {"tiny": ((16, 32, 64, 128, 256, 16), 1), "base": ((32, 64, 128, 256, 512, 32), 1)},
        answers_at="net.final_conv_0_4",
        decoder=r"net\.(upcat_|final_)",
    ),
    "mk_unet": Network(
        "mk_unet",
        "MK-UNet: several kernels at once in a third of a million weights, trained as the U-Net is; one answer",
        "Rahman and Marculescu 2025 (ICCV workshops), arXiv 2509.18493",
        {"tiny": ((16, 32, 64, 96, 160), 1), "base": ((16, 32, 64, 96, 160), 1)},
        answers_at="head",
        decoder=r"(decode|gate|head)",
    ),
    "efficientnet": Network(
        "efficientnet",
        "EfficientNet-Lite0 and a light U-Net decoder, for colour images; can start from ImageNet; one answer",
        "Tan and Le 2019 (ICML), arXiv 1905.11946; TensorFlow's efficientnet-lite (2020)",
        {"tiny": ((16, 24, 40, 64), 1), "base": ((32, 48, 80, 128), 2)},
        answers_at="head",
        decoder=r"(decode|head)",
        any_channels=False,
        starts={"imagenet": "efficientnet-lite0"},
    ),
}
