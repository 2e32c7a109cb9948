"""MC dropout: a plain network that goes on dropping activations while it proposes.

After Gal and Ghahramani (2016), "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning"
(ICML), arXiv 1506.02142: a network trained with dropout, and run with it again and again, samples an approximate
posterior of its weights. Here single activations are dropped between normalisation and activation function of every
convolution, where MONAI's U-Net has a layer for it, but for the block that answers. A network without such layers gets
them before its activation functions.

What differs from the paper:

* There is none in the block that answers. It adds the channels of its first convolution to those of its last, so that
  dropping there takes a name's whole evidence away in single pixels and makes specks. After 3000 images of 64² of
  Kvasir-SEG, the mean Dice of single proposals was 0.48 with it and 0.54 without, and the pixels that differ from most
  of their neighbours were 35 and 8 for every 100 of foreground; the plain U-Net's were 5.
* A proposal is one draw for a whole scan. Each layer has one mask for all its slices, made from (seed, k, layer), so
  that a proposal is coherent from slice to slice and depends on nothing else.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from delineate.data.slices import Batch, SliceBank
from delineate.diffusion.seeds import seed_of
from delineate.networks import NETWORKS
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.systems import plain
from delineate.systems.parts import configured, filled, save, train
from delineate.systems.plain import Plain, PlainConfig, supervised_loss
from delineate.systems.system import Asked, Clue, Drawn, OnShare
from delineate.training.loop import Loss, Phase, Step

__all__ = ["DropoutConfig", "MonteCarlo", "SharedDropout", "build", "load", "make", "save", "train"]

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.GELU, nn.SiLU)
Mask = Callable[[Tensor, float], Tensor]  # activations and the chance to keep one, to which are kept; broadcastable


@dataclass(frozen=True)
class DropoutConfig:
    """What a model folder must say beside its weights.

    Attributes:
        plain: of the network.
        rate: the chance that an activation is dropped, above 0 and below 1.
    """

    plain: PlainConfig
    rate: float = 0.2

    def __post_init__(self):
        if not 0 < self.rate < 1:
            raise ValueError(f"the chance to drop an activation is above 0 and below 1; got {self.rate}")


class SharedDropout(nn.Module):
    """`torch.nn.Dropout`, until it is lent masks (`lending`): then these decide, in training and evaluation alike."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.mask: Mask | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`x` with some of its values zero and the others larger, so that the mean stays."""
        if self.mask is None:
            return F.dropout(x, self.rate, self.training)
        keep = 1 - self.rate
        return x * (self.mask(x, keep) / keep)


def fresh_masks(generator: Generator) -> Mask:
    """A mask for every sample and layer, in each of which the generator is asked for one number."""

    def mask(x: Tensor, keep: float) -> Tensor:
        own = Generator(x.device).manual_seed(int(torch.randint(2**31, (), generator=generator)))
        return torch.rand(x.shape, generator=own, device=x.device) < keep

    return mask


def shared_mask(seed: int) -> Mask:
    """One mask for all samples of a batch, and of every batch; drawn on the CPU, so the same on any device."""

    def mask(x: Tensor, keep: float) -> Tensor:
        return (torch.rand(x.shape[1:], generator=Generator().manual_seed(seed)) < keep).to(x.device)

    return mask


@contextmanager
def lending(network: nn.Module, mask_of: Callable[[int], Mask]) -> Iterator[None]:
    """Within the block dropout layer i of `network`, in the order of its modules, uses `mask_of(i)`."""
    layers = [module for module in network.modules() if isinstance(module, SharedDropout)]
    for number, layer in enumerate(layers):
        layer.mask = mask_of(number)
    try:
        yield
    finally:
        for layer in layers:
            layer.mask = None


class MonteCarlo:
    """A plain system whose network has `SharedDropout` layers."""

    accepts: frozenset[Clue] = frozenset()
    open_words = False
    about = ""

    def __init__(self, config: DropoutConfig, plain: Plain):
        self.config = config
        self.plain = plain
        self.vocabulary = plain.vocabulary

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        return self.config.plain.size

    def to(self, device: torch.device | str) -> "MonteCarlo":
        """Itself, moved."""
        self.plain.to(device)
        return self

    def see(self, view: View) -> View:
        """The scan itself: every proposal runs the whole network."""
        return view

    def propose(self, seen: View, asked: Asked, n: int, seed: int, on_step: OnShare = lambda share: None) -> Drawn:
        """N probability volumes (N, S, size, size) of one target, each the network with other activations dropped.

        Proposal k depends on the slices, `seed` and k alone.
        """
        channel, drawn = 1 + self.vocabulary.index(asked.name), []
        for k in range(n):
            with lending(self.plain.network, lambda layer, k=k: shared_mask(seed_of(seed, k, layer))):
                drawn.append(self.plain.see(seen)[:, channel])
            on_step((k + 1) / n)
        return Drawn(torch.stack(drawn))

    @property
    def learnt(self) -> Vocabulary:
        """The vocabulary."""
        return self.vocabulary

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The network."""
        return self.plain.parts

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> "MonteCarlo":
        """The same with another network, one channel for each name of `vocabulary`."""
        return MonteCarlo(self.config, self.plain.with_parts(parts, vocabulary))

    @property
    def decoder(self) -> str:
        """That of the plain system."""
        return self.plain.decoder

    def widen(self, names: Sequence[str], *, seed: int = 0) -> tuple[str, nn.Module]:
        """That of the plain system: there is no dropout in the block."""
        return self.plain.widen(names, seed=seed)

    def phases(self, bank: SliceBank) -> list[Phase]:
        """That of the plain system, on the same batches, with other activations dropped in every sample and step."""
        network = self.plain.network
        return [replace(phase, loss=dropped_loss, module=network) for phase in self.plain.phases(bank)]


def dropped_loss(system: Plain, batch: Batch, step: Step) -> Loss:
    """`supervised_loss`, with activations dropped."""
    with lending(system.network, lambda layer: fresh_masks(step.generator)):
        return supervised_loss(system, batch, step)


def build(config: DropoutConfig, vocabulary: Vocabulary, *, seed: int = 0) -> MonteCarlo:
    """An untrained system for this vocabulary; its weights are those of `plain.build`."""
    made = plain.build(config.plain, vocabulary, seed=seed)
    answers = NETWORKS[config.plain.network].answers_at
    layers = {p: m for p, m in made.network.named_modules() if not f"{p}.".startswith(f"{answers}.")}
    places = [path for path, layer in layers.items() if isinstance(layer, nn.Dropout)]  # of rate 0 all of them
    for path in places:
        made.network.set_submodule(path, SharedDropout(config.rate).train(layers[path].training))
    if not places:
        for path, layer in layers.items():
            if isinstance(layer, ACTIVATIONS):
                made.network.set_submodule(path, nn.Sequential(SharedDropout(config.rate).eval(), layer))
    return MonteCarlo(config, made)


def make(
    preset: str, size: int, vocabulary: Vocabulary, *, seed: int = 0, network: str = "unet", channels: int = 3, **_: Any
) -> MonteCarlo:
    """An untrained system of one of the network's presets."""
    return build(DropoutConfig(PlainConfig.preset(network, preset, size, channels)), vocabulary, seed=seed)


def load(folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> MonteCarlo:
    """What `save` wrote."""
    return filled(build(configured(config, DropoutConfig, folder), vocabulary), folder)
