"""A deep ensemble: several plain networks that differ by chance alone, each a proposal.

After Lakshminarayanan et al. (2017), "Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles"
(NeurIPS), arXiv 1612.01474. Every member has first weights and a stream of batches of its own and sees all the data;
they are trained one after another, each with an equal part of the budget. What differs from the paper: no adversarial
examples, which it offers as a further aid; and members are not averaged here, but stand beside each other as proposals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn

from delineate.data.slices import SliceBank
from delineate.errors import DelineateError
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.systems import plain
from delineate.systems.parts import configured, filled, save, train
from delineate.systems.plain import Plain, PlainConfig
from delineate.systems.system import Asked, Clue, Drawn, OnShare
from delineate.training.loop import Phase

__all__ = ["Ensemble", "EnsembleConfig", "build", "load", "make", "name_of", "save", "train"]


@dataclass(frozen=True)
class EnsembleConfig:
    """What a model folder must say beside its weights.

    Attributes:
        plain: of every member.
        members: how many; five, as in the paper.
    """

    plain: PlainConfig
    members: Annotated[int, Interval(ge=1, le=64)] = 5

    def __post_init__(self):
        if self.members < 1:
            raise ValueError(f"an ensemble has 1 member or more; got {self.members}")


class Ensemble:
    """Plain systems of one vocabulary."""

    accepts: frozenset[Clue] = frozenset()
    open_words = False
    about = ""

    def __init__(self, config: EnsembleConfig, members: tuple[Plain, ...]):
        self.config = config
        self.members = members
        self.vocabulary = members[0].vocabulary

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        return self.config.plain.size

    def to(self, device: torch.device | str) -> "Ensemble":
        """Itself, moved."""
        for member in self.members:
            member.to(device)
        return self

    def see(self, view: View) -> Tensor:
        """Probabilities of all channels by every member, (members, S, 1 + C, size, size)."""
        return torch.stack([member.see(view) for member in self.members])

    def propose(self, seen: Tensor, asked: Asked, n: int, seed: int, on_step: OnShare = lambda share: None) -> Drawn:
        """The first `n` members' probabilities (N, S, size, size) of one target, N at most the number of members.

        Proposal k is member k, whatever `n` and `seed`: there are no more.
        """
        return Drawn(seen[:n, :, 1 + self.vocabulary.index(asked.name)])

    @property
    def learnt(self) -> Vocabulary:
        """The vocabulary."""
        return self.vocabulary

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The members' networks."""
        return {name_of(i): member.network for i, member in enumerate(self.members)}

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> "Ensemble":
        """The same with other networks, one channel for each name of `vocabulary` in each."""
        members = (
            member.with_parts({"network": parts[name_of(i)]}, vocabulary) for i, member in enumerate(self.members)
        )
        return Ensemble(self.config, tuple(members))

    @property
    def decoder(self) -> str:
        """That of every member's network."""
        return self.members[0].decoder.replace("^network", r"^member-\d+", 1)

    def widen(self, names: Sequence[str], *, seed: int = 0) -> None:
        """Refused: each member would need a block of its own."""
        raise DelineateError(f"this model cannot learn new names ({', '.join(names)}); leave their labels out")

    def phases(self, bank: SliceBank) -> list[Phase]:
        """One a member, of equal shares; `train_phases` gives each a seed of its own, and so its own batches."""
        return [
            replace(phase, name=name_of(i), share=1 / len(self.members))
            for i, member in enumerate(self.members)
            for phase in member.phases(bank)
        ]


def name_of(member: int) -> str:
    """Of a member's part and phase."""
    return f"member-{member}"


def build(config: EnsembleConfig, vocabulary: Vocabulary, *, seed: int = 0) -> Ensemble:
    """Untrained members for this vocabulary; those of another seed are all others."""
    seeds = range(seed * config.members, (seed + 1) * config.members)
    return Ensemble(config, tuple(plain.build(config.plain, vocabulary, seed=s) for s in seeds))


def make(
    preset: str,
    size: int,
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    network: str = "unet",
    channels: int = 3,
    **_: Any,
) -> Ensemble:
    """Untrained members of one of the network's presets."""
    return build(EnsembleConfig(PlainConfig.preset(network, preset, size, channels)), vocabulary, seed=seed)


def load(folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> Ensemble:
    """What `save` wrote."""
    return filled(build(configured(config, EnsembleConfig, folder), vocabulary), folder)
