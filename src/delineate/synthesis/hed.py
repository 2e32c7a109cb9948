"""HED, a learnt edge detector, from weights that the user has.

Holistically-nested edge detection (Xie and Tu, 2015) in the form in which ControlNet uses it (`ControlNetHED`, Apache
2.0): five stages of VGG convolutions, each with an edge map of its own; the answer is the sigmoid of their mean. No
weights come with this package. The published file is a pickle, which is never opened here: turn it into safetensors
once, where you trust it, with `safetensors.torch.save_file(torch.load("ControlNetHED.pth"), "hed.safetensors")`.
"""

from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.errors import ModelError
from delineate.storage.weights import load_weights

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # width and number of convolutions


class _Stage(nn.Module):
    """Convolutions of one resolution and the edge map read off them."""

    def __init__(self, inputs: int, width: int, depth: int):
        super().__init__()
        widths = [inputs, *[width] * depth]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.projection = nn.Conv2d(width, 1, 1)


class Hed(nn.Module):
    """An edge extractor (`delineate.synthesis.edges`) with HED's network."""

    def __init__(self, stages: tuple[tuple[int, int], ...] = STAGES):
        super().__init__()
        self.norm = nn.Parameter(torch.zeros(1, 3, 1, 1))  # what is subtracted from pictures in 0..255
        widths = [3, *(width for width, _ in stages)]
        for number, (inputs, (width, depth)) in enumerate(zip(widths, stages, strict=False), start=1):
            self.add_module(f"block{number}", _Stage(inputs, width, depth))
        self.depth = len(stages)

    @classmethod
    def load(cls, folder: Path) -> "Hed":
        """The network with the weights of the one `.safetensors` file in `folder`.

        Raises:
            ModelError: no such file, several of them, or weights of something else.
        """
        found = sorted(Path(folder).glob("*.safetensors")) if Path(folder).is_dir() else []
        if len(found) != 1:
            raise ModelError(
                f"{folder}: must be a folder with HED's weights in one .safetensors file, found {len(found)}; turn "
                "ControlNetHED.pth into one (see delineate.synthesis.hed)"
            )
        network = cls()
        load_weights(network, found[0])
        return network.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, pictures: Float[Tensor, "batch channels h w"]) -> Float[Tensor, "batch 1 h w"]:
        """Edge strengths in [0, 1] of pictures (B, 1 or 3, H, W) in [-1, 1]."""
        x = (pictures.expand(-1, 3, -1, -1) + 1) * 127.5 - self.norm
        maps = []
        for number in range(1, self.depth + 1):
            stage = self.get_submodule(f"block{number}")
            if number > 1:
                x = F.max_pool2d(x, 2, 2)
            for conv in stage.convs:  # type: ignore[union-attr]
                x = F.relu(conv(x))
            maps.append(F.interpolate(stage.projection(x), pictures.shape[-2:], mode="bilinear"))  # type: ignore[operator]
        return torch.stack(maps).mean(dim=0).sigmoid()
