"""Flow-SSN: a Gaussian of logits that a network reads off the slice, and a thin flow that makes masks of its draws.

Ribeiro et al. 2025 (ICCV), Flow Stochastic Segmentation Networks, arXiv 2507.18838, the continuous variant. A base
network gives every pixel and name the mean of a Gaussian, u ~ N(μ(x), 1). The flow goes on the straight line from u to
the one-hot mask y that a rater drew,

    y_t = (1 - t) u + t y,    t ~ U(0, 1),

and its network, which sees y_t and t and not the slice, says what y is by now: categorical, taught by cross entropy;
the base learns through it. A proposal draws u and follows dy/dt = (p(y_t, t) - y_t) / (1 - t) in Euler steps.

Decided:

* **The base** is the plain baseline's U-Net (`systems.plain`), so that what is added is the flow. It has no variance to
  learn, as in the published run on LIDC.
* **The flow's network** is diffusers' `UNet2DModel`, three levels of 16 channels of one block each, thin as published.
* **A scan has one draw**: proposal k adds the same noise to every slice's mean, whatever else is drawn.
* **Names that a slice's labels cannot tell of** are left out of the competition, and 0 in y.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval
from diffusers import UNet2DModel
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from delineate.data.slices import NO_LABEL, Batch, SliceBank
from delineate.diffusion.seeds import seed_of
from delineate.errors import DelineateError
from delineate.networks import NETWORKS
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.storage.memory import at_once
from delineate.storage.schema import Side, SliceChannels, Widths
from delineate.systems.parts import configured, filled, save, train
from delineate.systems.system import Asked, Clue, Drawn, OnShare
from delineate.training.loop import Loss, Phase, Step
from delineate.training.losses import log_shares

__all__ = ["FlowSSN", "FlowSSNConfig", "build", "flow_loss", "load", "make", "save", "train"]

PAIRS_AT_ONCE = 16  # (slice, proposal) pairs in one go: bounds memory, changes nothing but rounding
TIMES = 1000.0  # what diffusers' time embedding counts to


@dataclass(frozen=True)
class FlowSSNConfig:
    """What a model folder must say beside its weights.

    Attributes:
        size: pixels along a side of the working grid, a multiple of 2^(levels - 1) of either network.
        widths: channels at each level of the base, finest first.
        flow: channels at each level of the flow's network.
        steps: Euler steps of a proposal.
        channels: of the slices that it sees (`delineate.scans.grid.stack_of`).
    """

    size: Side = 128
    widths: Widths = (32, 64, 128, 256)
    flow: Widths = (16, 16, 16)
    steps: Annotated[int, Interval(ge=1, le=1000)] = 10
    channels: SliceChannels = 3

    def __post_init__(self):
        levels = max(len(self.widths), len(self.flow))
        if self.size % (multiple := 2 ** (levels - 1)):
            raise ValueError(f"{levels} levels need a size that is a multiple of {multiple}; got {self.size}")
        if any(width % 8 for width in self.flow):
            raise ValueError(f"channels of the flow are multiples of 8; got {self.flow}")


class FlowSSN:
    """Two networks and their vocabulary: channel 0 is background, channel 1 + i is concept i."""

    accepts: frozenset[Clue] = frozenset()
    open_words = False
    about = ""
    decoder = r"^base\.model\..*\b2\b"  # of each of the base's levels: 0 down, 1 below, 2 up

    def __init__(self, config: FlowSSNConfig, vocabulary: Vocabulary, base: nn.Module, flow: UNet2DModel):
        self.config = config
        self.vocabulary = vocabulary
        self.base = base.eval()
        self.flow = flow.eval()

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        return self.config.size

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.base.parameters()).device

    def to(self, device: torch.device | str) -> "FlowSSN":
        """Itself, moved."""
        self.base.to(device)
        self.flow.to(device)  # type: ignore[call-overload]
        return self

    @torch.no_grad()
    def see(self, view: View) -> Tensor:
        """The base's means of slices, (S, 1 + C, size, size), made once for any number of prompts and proposals."""
        return torch.cat([self.base(chunk.to(self.device)) for chunk in view.stack.split(at_once(PAIRS_AT_ONCE))])

    @torch.no_grad()
    def propose(self, seen: Tensor, asked: Asked, n: int, seed: int, on_step: OnShare = lambda share: None) -> Drawn:
        """N probability volumes (N, S, size, size) of one target; proposal k depends on (seed, k) alone."""
        channel = 1 + self.vocabulary.index(asked.name)
        out = torch.zeros(n, len(seen), self.size, self.size)
        noise = torch.stack(
            [torch.randn(seen.shape[1:], generator=Generator().manual_seed(seed_of(seed, k))) for k in range(n)]
        )
        pairs = torch.cartesian_prod(torch.arange(n), torch.arange(len(seen)))
        for done, some in enumerate(chunks := pairs.split(at_once(PAIRS_AT_ONCE)), start=1):
            k, s = some.T
            drawn = self.follow(seen[s.to(seen.device)] + noise[k].to(seen.device))
            out[k, s] = drawn[:, channel].clamp(0, 1).cpu()
            on_step(done / len(chunks))
        return Drawn(out)

    def follow(self, u: Tensor) -> Tensor:
        """Where the flow takes u (B, 1 + C, S, S) from time 0 to 1: nearly one-hot masks of the same shape."""
        y, step = u, 1 / self.config.steps
        for i in range(self.config.steps):
            t = i * step
            p = self.logits(y, torch.full((len(y),), t, device=y.device)).softmax(dim=1)
            y = y + step * (p - y) / (1 - t)
        return y

    def logits(self, y_t: Tensor, t: Tensor) -> Tensor:
        """What the mask is, by y_t (B, 1 + C, S, S) at times t (B,) in [0, 1]; logits of the same shape."""
        return self.flow(y_t, TIMES * t).sample

    @property
    def learnt(self) -> Vocabulary:
        """The vocabulary."""
        return self.vocabulary

    @property
    def parts(self) -> dict[str, nn.Module]:
        """Both networks."""
        return {"base": self.base, "flow": self.flow}

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> "FlowSSN":
        """The same with other networks, one channel for each name of `vocabulary`."""
        flow = parts["flow"]
        assert isinstance(flow, UNet2DModel)
        return FlowSSN(self.config, vocabulary, parts["base"], flow)

    def widen(self, names: Sequence[str], *, seed: int = 0) -> None:
        """Refused: the flow was taught with its names side by side."""
        raise DelineateError(f"this model cannot learn new names ({', '.join(names)}); leave their labels out")

    def phases(self, bank: SliceBank) -> list[Phase]:
        """One: base and flow together."""
        both = nn.ModuleDict(self.parts)
        return [Phase("network", both, bank.stream(0, self.device), flow_loss, self)]


def flow_loss(system: FlowSSN, batch: Batch, step: Step) -> Loss:
    """Cross entropy of the mask that the flow expects at a drawn time."""
    mean = system.base(batch.image)
    u = mean + torch.randn(mean.shape, generator=step.generator).to(mean.device)
    t = torch.rand(len(u), generator=step.generator).to(mean.device)
    y = F.one_hot(batch.labels.clamp(min=0), u.shape[1]).permute(0, 3, 1, 2).to(u.dtype)
    y_t = torch.lerp(u, y, t.view(-1, 1, 1, 1))
    shares = log_shares(system.logits(y_t, t).float(), batch.possible, batch.lumped)
    error = F.nll_loss(shares, batch.labels, ignore_index=NO_LABEL, reduction="sum")
    return error / batch.known.sum().clamp(min=1), {}


def build(config: FlowSSNConfig, vocabulary: Vocabulary, *, seed: int = 0) -> FlowSSN:
    """An untrained system for this vocabulary."""
    channels = 1 + len(vocabulary.concepts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        base = NETWORKS["unet"].build(config.channels, channels, (config.widths, 2))
        flow = UNet2DModel(
            config.size,
            channels,
            channels,
            block_out_channels=config.flow,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * len(config.flow),
            up_block_types=("UpBlock2D",) * len(config.flow),
            norm_num_groups=8,
            add_attention=False,
        )
        flow.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return FlowSSN(config, vocabulary, base, flow)


def make(preset: str, size: int, vocabulary: Vocabulary, *, seed: int = 0, channels: int = 3, **_: Any) -> FlowSSN:
    """An untrained system of a preset."""
    widths: Sequence[int] = NETWORKS["unet"].presets[preset][0]
    return build(FlowSSNConfig(size, tuple(widths), channels=channels), vocabulary, seed=seed)


def load(folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> FlowSSN:
    """What `save` wrote."""
    return filled(build(configured(config, FlowSSNConfig, folder), vocabulary), folder)
