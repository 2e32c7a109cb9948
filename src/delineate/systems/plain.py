"""The plain baselines: any row of `NETWORKS`, one output channel a target, Dice plus CE.

All are trained on the same slices with the same loss, optimiser and averaging; nothing but the network differs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn

from delineate.data.slices import Batch, SliceBank
from delineate.networks import NETWORKS
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.storage.memory import at_once
from delineate.storage.pretrained import PRETRAINED, read_pretrained
from delineate.storage.schema import Side, SliceChannels, Widths
from delineate.storage.weights import load_weights, save_weights
from delineate.systems.parts import configured
from delineate.systems.system import Asked, Clue, Drawn, OnShare
from delineate.training.loop import Loss, Phase, Run, Step, train_phases
from delineate.training.losses import lumped, segmentation_loss
from delineate.training.merging import Merging, merged_loss


@dataclass(frozen=True)
class PlainConfig:
    """What a model folder must say beside its weights.

    Attributes:
        size: pixels along a side of the working grid, a multiple of what the network needs.
        widths: channels at each level, finest first; of the decoder, where the encoder is as published.
        network: a key of `NETWORKS`.
        blocks: convolutions of a residual unit of the U-Net or at a level of a decoder, or MedNeXt's blocks at a level.
        channels: of the slices that it sees (`delineate.scans.grid.stack_of`).
    """

    size: Side = 128
    widths: Widths = (32, 64, 128, 256)
    network: str = "unet"
    blocks: Annotated[int, Interval(ge=1, le=64)] = 2
    channels: SliceChannels = 3

    def __post_init__(self):
        if self.network not in NETWORKS:
            raise ValueError(f"network is one of {', '.join(NETWORKS)}; got '{self.network}'")
        if self.size % (multiple := NETWORKS[self.network].multiple_of(self.widths)):
            levels = multiple.bit_length()
            raise ValueError(f"{levels} levels need a size that is a multiple of {multiple}; got {self.size}")

        if self.channels != 3 and not NETWORKS[self.network].any_channels:
            raise ValueError(f"{self.network} is for grey and colour images; here a slice has {self.channels} channels")

    @classmethod
    def preset(cls, network: str, preset: str, size: int, channels: int = 3) -> "PlainConfig":
        """That of a key of `NETWORKS` and one of its presets, on a working grid of `size` pixels."""
        widths, blocks = NETWORKS[network].presets[preset]
        return cls(size, widths, network, blocks, channels)

    def build(self, answers: int) -> nn.Module:
        """The network, untrained."""
        return NETWORKS[self.network].build(self.channels, answers, (self.widths, self.blocks))


class Plain:
    """A network and its vocabulary: channel 0 is background, channel 1 + i is concept i."""

    accepts: frozenset[Clue] = frozenset()
    open_words = False
    about = ""

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
        """Logits (B, 1 + C, size, size) of slices (B, channels, size, size) in [-1, 1], background first."""
        layout = getattr(torch, NETWORKS[self.config.network].layout)
        return self.network(image.contiguous(memory_format=layout))

    @torch.no_grad()
    def see(self, view: View) -> Tensor:
        """Probabilities of all channels, (S, 1 + C, size, size)."""
        chunks = view.stack.split(at_once(16))
        return torch.cat([self.logits(chunk.to(self.device)).softmax(dim=1).cpu() for chunk in chunks])

    def propose(self, seen: Tensor, asked: Asked, n: int, seed: int, on_step: OnShare = lambda share: None) -> Drawn:
        """One proposal, whatever `n` and `seed`: a plain network has a single answer."""
        return Drawn(seen[None, :, 1 + self.vocabulary.index(asked.name)])

    @torch.no_grad()
    def labels(self, image: Tensor, possible: Tensor) -> Tensor:
        """The answer to slices, as `training.judging.Answer`; every name competes, as in `see`."""
        return self.logits(image).argmax(dim=1)

    @property
    def learnt(self) -> Vocabulary:
        """The vocabulary."""
        return self.vocabulary

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The network."""
        return {"network": self.network}

    @property
    def decoder(self) -> str:
        """As the network's row says."""
        return rf"^network\.{NETWORKS[self.config.network].decoder}"

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> "Plain":
        """The same with another network, one channel for each name of `vocabulary`."""
        return Plain(self.config, vocabulary, parts["network"])

    def widen(self, names: Sequence[str], *, seed: int = 0) -> tuple[str, nn.Module]:
        """The path, within `parts`, of the block that answers, and an untrained one like it for more names."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self.config.build(len(names))
        path = NETWORKS[self.config.network].answers_at
        return f"network.{path}", network.eval().get_submodule(path)

    def phases(self, bank: SliceBank, merging: Merging = Merging()) -> list[Phase]:
        """One: `supervised_loss`, in training as merged as `merging` says."""
        loss = partial(supervised_loss, merging=merging)
        draw = bank.stream(0, self.device)
        return [Phase("network", self.network, draw, loss, self, answer=self.labels)]


def supervised_loss(system: Plain, batch: Batch, step: Step, *, merging: Merging = Merging()) -> Loss:
    """Dice plus cross entropy of every channel.

    Where a batch has synthetic variants of its slices, they are merged with them as `merging` says.
    """

    def loss(logits: Tensor) -> Tensor:
        scores = lumped(logits, batch.annotated) if batch.lumped else logits
        return segmentation_loss(scores.float().log_softmax(dim=1), batch.labels)

    return merged_loss(system.logits, loss, batch.image, batch.synthetic, merging, step.generator), {}


def build(config: PlainConfig, vocabulary: Vocabulary, *, seed: int = 0) -> Plain:
    """An untrained baseline for this vocabulary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Plain(config, vocabulary, config.build(1 + len(vocabulary.concepts)))


def make(
    preset: str,
    size: int,
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    network: str = "unet",
    init: str | None = None,
    channels: int = 3,
    **_: Any,
) -> Plain:
    """An untrained baseline of one of the network's presets, with chance weights or one of the network's `starts`."""
    made = build(PlainConfig.preset(network, preset, size, channels), vocabulary, seed=seed)
    if init is not None:
        row = NETWORKS[network]
        row.begin(made.network, read_pretrained(PRETRAINED[row.starts[init]]))
    return made


def train(system: Plain, bank: SliceBank, run: Run, *, merging: Merging = Merging()) -> Plain:
    """Train on the same slices, augmentation, optimiser and averaging as every other system."""
    train_phases(system.phases(bank, merging), run)
    return system


def save(system: Plain, folder: Path) -> dict[str, Any]:
    """Write the weights; the configuration comes back."""
    save_weights(system.network, folder / "weights.safetensors")
    return asdict(system.config)


def load(folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> Plain:
    """What `save` wrote."""
    system = build(configured(config, PlainConfig, folder), vocabulary)
    load_weights(system.network, folder / "weights.safetensors")
    return system
