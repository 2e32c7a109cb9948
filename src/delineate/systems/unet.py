"""The plain baseline: MONAI's residual 2-D U-Net with one output channel a target, trained with Dice plus CE."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import Generator, Tensor

from delineate.checkpoint import TrainState, new_state
from delineate.data.slices import SliceBank
from delineate.prompt import Vocabulary
from delineate.systems.system import Target
from delineate.training import Budget, train, use_average


@dataclass(frozen=True)
class UNetConfig:
    """What a model folder must say beside its weights."""

    size: int = 128
    widths: tuple[int, ...] = (32, 64, 128, 256)


class PlainUNet:
    """A network and its vocabulary: channel 0 is background, channel 1 + i is concept i."""

    def __init__(self, config: UNetConfig, vocabulary: Vocabulary, network: UNet):
        self.config = config
        self.vocabulary = vocabulary
        self.network = network.eval()

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        return self.config.size

    def to(self, device: torch.device | str) -> "PlainUNet":
        """Itself, moved."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def see(self, stack: Tensor) -> Tensor:
        """Probabilities of all channels, (S, 1 + C, size, size)."""
        device = next(self.network.parameters()).device
        parts = [
            self.network(chunk.to(device).contiguous(memory_format=torch.channels_last)).softmax(dim=1).cpu()
            for chunk in stack.split(16)
        ]
        return torch.cat(parts)

    def propose(
        self, seen: Tensor, target: Target, n: int, seed: int, on_step: Callable[[float], None] = lambda share: None
    ) -> Tensor:
        """One proposal, whatever `n` and `seed`: a U-Net has a single answer."""
        return seen[None, :, 1 + self.vocabulary.index(target.concept.name)]


def build(config: UNetConfig, vocabulary: Vocabulary, *, seed: int = 0) -> PlainUNet:
    """An untrained baseline for this vocabulary."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(
            spatial_dims=2,
            in_channels=3,
            out_channels=1 + len(vocabulary.concepts),
            channels=config.widths,
            strides=(2,) * (len(config.widths) - 1),
            num_res_units=2,
        )
    return PlainUNet(config, vocabulary, network.to(memory_format=torch.channels_last))  # type: ignore[call-overload]


def train_unet(
    system: PlainUNet,
    bank: SliceBank,
    *,
    budget: Budget,
    folder: Path,
    seed: int = 0,
    on_step: Callable[[str, TrainState, float], None] = lambda stage, state, spent: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> PlainUNet:
    """Train on the same slices, augmentation, optimiser and averaging as every other system."""
    criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)

    def loss_of(size: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
        batch = bank.draw(size, 1, generator).to(next(system.network.parameters()).device)
        return criterion(
            system.network(batch.image.contiguous(memory_format=torch.channels_last)), batch.labels[:, None]
        ), {}

    state = new_state(system.network.requires_grad_(True), seed=seed)
    train(
        state,
        loss_of,
        budget=budget,
        folder=folder / "network",
        on_step=lambda s, spent: on_step("network", s, spent),
        should_stop=should_stop,
    )
    use_average(state)
    system.network.requires_grad_(False).eval()
    return system
