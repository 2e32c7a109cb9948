"""The plain baselines: MONAI's residual U-Net and MedNeXt in 2-D, one output channel a target, Dice plus CE.

Both are trained on the same slices with the same loss, optimiser and averaging; nothing but the network differs.

The `base` MedNeXt is the paper's S with kernel 3. The `tiny` one has half its filters and one block a level instead of
two. A training step at 128² on one thread of a shared CPU then takes about 80 ms an image, the tiny U-Net's about
55 ms; with two blocks it is 150 ms, with all filters 235 ms.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import MedNeXt, UNet
from torch import Generator, Tensor, nn

from delineate.data.slices import SliceBank
from delineate.prompts.concept import Concept
from delineate.prompts.vocabulary import Vocabulary
from delineate.systems.system import Target
from delineate.training.loop import Budget, OnStep, Stage, train_stages
from delineate.training.losses import lumped
from delineate.training.merging import Merging, merged_loss

SIZES = {  # widths and blocks of each network's presets
    "unet": {"tiny": ((32, 64, 128, 256), 2), "base": ((64, 128, 256, 512, 512), 2)},
    "mednext": {"tiny": ((16, 32, 64, 128, 256), 1), "base": ((32, 64, 128, 256, 512), 2)},
}
ANSWERS = {"unet": "model.2", "mednext": "out_0"}  # the path of the block that gives a channel a name
LAYOUTS = {
    "unet": torch.channels_last,
    # MedNeXt's strided 1×1 convolutions corrupt memory in channels_last on CPU below 16 filters (torch 2.13, backward).
    "mednext": torch.contiguous_format,
}


@dataclass(frozen=True)
class PlainConfig:
    """What a model folder must say beside its weights.

    Attributes:
        size: pixels along a side of the working grid, a multiple of 2^(levels - 1).
        widths: channels at each level, finest first; those of MedNeXt double.
        network: a key of `SIZES`.
        blocks: convolutions of a residual unit of the U-Net, or blocks at a level of MedNeXt.
    """

    size: int = 128
    widths: tuple[int, ...] = (32, 64, 128, 256)
    network: str = "unet"
    blocks: int = 2

    def __post_init__(self):
        if self.network not in SIZES:
            raise ValueError(f"network is one of {', '.join(SIZES)}; got '{self.network}'")
        if self.network == "mednext" and any(b != 2 * a for a, b in pairwise(self.widths)):
            raise ValueError(f"the widths of a MedNeXt double from level to level; got {self.widths}")
        if self.size % (multiple := 2 ** (len(self.widths) - 1)):
            raise ValueError(f"{len(self.widths)} levels need a size that is a multiple of {multiple}; got {self.size}")

    @classmethod
    def preset(cls, network: str, preset: str, size: int) -> "PlainConfig":
        """That of a key of `SIZES` and one of its presets, on a working grid of `size` pixels."""
        widths, blocks = SIZES[network][preset]
        return cls(size, widths, network, blocks)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "PlainConfig":
        """What `dataclasses.asdict` gave, read back from JSON."""
        return cls(**{**value, "widths": tuple(value["widths"])})


class Plain:
    """A network and its vocabulary: channel 0 is background, channel 1 + i is concept i."""

    def __init__(self, config: PlainConfig, vocabulary: Vocabulary, network: nn.Module):
        self.config = config
        self.vocabulary = vocabulary
        self.network = network.eval()

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        return self.config.size

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> "Plain":
        """Itself, moved."""
        self.network.to(device)
        return self

    def logits(self, image: Tensor) -> Tensor:
        """Logits (B, 1 + C, size, size) of slices (B, 3, size, size) in [-1, 1], background first."""
        return self.network(image.contiguous(memory_format=LAYOUTS[self.config.network]))

    @torch.no_grad()
    def see(self, stack: Tensor) -> Tensor:
        """Probabilities of all channels, (S, 1 + C, size, size)."""
        return torch.cat([self.logits(chunk.to(self.device)).softmax(dim=1).cpu() for chunk in stack.split(16)])

    def propose(
        self, seen: Tensor, target: Target, n: int, seed: int, on_step: Callable[[float], None] = lambda share: None
    ) -> Tensor:
        """One proposal, whatever `n` and `seed`: a plain network has a single answer."""
        return seen[None, :, 1 + self.vocabulary.index(target.concept.name)]

    @property
    def learnt(self) -> Vocabulary:
        """The vocabulary."""
        return self.vocabulary

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The network."""
        return {"network": self.network}

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> "Plain":
        """The same with another network, one channel for each name of `vocabulary`."""
        return Plain(self.config, vocabulary, parts["network"])

    def wider(self, count: int, *, seed: int = 0) -> tuple[str, nn.Module]:
        """The path, within `parts`, of the block that answers, and an untrained one like it for `count` more names."""
        more = Vocabulary(tuple(Concept(f"name {i}") for i in range(count)))
        network = build(self.config, more, seed=seed, background=False).network
        path = ANSWERS[self.config.network]
        return f"network.{path}", network.get_submodule(path)

    def stages(self, bank: SliceBank, merging: Merging = Merging()) -> list[Stage]:
        """One: Dice plus cross entropy of every channel, in training as merged as `merging` says."""
        criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

        def loss_of(size: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
            batch = bank.draw(size, 1, generator).to(self.device)
            labels = batch.labels[:, None]
            known = bank.annotated.to(self.device)[batch.dataset]

            def loss(logits: Tensor) -> Tensor:
                return criterion(lumped(logits, known) if bank.lumped else logits, labels)

            return merged_loss(self.logits, loss, batch.image, batch.synthetic, merging, generator), {}

        return [Stage("network", self.network, loss_of)]


def build(config: PlainConfig, vocabulary: Vocabulary, *, seed: int = 0, background: bool = True) -> Plain:
    """An untrained baseline for this vocabulary, with a channel for the background unless told otherwise."""
    channels, downs = int(background) + len(vocabulary.concepts), len(config.widths) - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.network == "unet":
            network = UNet(
                spatial_dims=2,
                in_channels=3,
                out_channels=channels,
                channels=config.widths,
                strides=(2,) * downs,
                num_res_units=config.blocks,
            )
        else:
            network = MedNeXt(  # what MONAI's MedNeXtS sets, but for the numbers of filters and blocks
                spatial_dims=2,
                in_channels=3,
                out_channels=channels,
                init_filters=config.widths[0],
                kernel_size=3,
                use_residual_connection=True,
                blocks_down=(config.blocks,) * downs,
                blocks_bottleneck=config.blocks,
                blocks_up=(config.blocks,) * downs,
            )
    return Plain(config, vocabulary, network.to(memory_format=LAYOUTS[config.network]))  # type: ignore[call-overload]


def train_plain(
    system: Plain,
    bank: SliceBank,
    *,
    budget: Budget,
    folder: Path,
    seed: int = 0,
    merging: Merging = Merging(),
    on_step: OnStep = lambda stage, state, spent: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Plain:
    """Train on the same slices, augmentation, optimiser and averaging as every other system.

    Where the bank has synthetic variants of its slices, they are merged with them as `merging` says.
    """
    train_stages(
        system.stages(bank, merging), budget=budget, folder=folder, seed=seed, on_step=on_step, should_stop=should_stop
    )
    return system
