"""What a system is: it sees slices once and then proposes masks of a target, on the working grid."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from delineate.data.slices import SliceBank
from delineate.prompts.concept import Concept
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.scan import Scan
from delineate.training.loop import Stage


@dataclass(frozen=True)
class Target:
    """A concept of the vocabulary and the words in which it is asked for."""

    concept: Concept
    caption: str


class System(Protocol):
    """The grid side of a `Segmenter`; one file a system."""

    vocabulary: Vocabulary

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        ...

    def to(self, device: torch.device | str) -> "System":
        """Itself, moved; what goes in and comes out stays on the CPU."""
        ...

    def see(self, stack: Tensor) -> Any:
        """Whatever needs to be computed once for slices (S, 3, size, size) in [-1, 1]."""
        ...

    def propose(self, seen: Any, target: Target, n: int, seed: int, on_step: Callable[[float], None] = ...) -> Tensor:
        """Probabilities (N, S, size, size) in [0, 1].

        N is `n`, fewer than asked where a system has no more, 1 for a deterministic one.
        Proposal k of a slice depends on the slice, `target`, `seed` and k alone: its noise to the bit, what networks
        make of it up to rounding, for in batches of another shape, with other threads or on another processor they add
        up in another order.
        """
        ...

    @property
    def learnt(self) -> Vocabulary:
        """The names that training slices must have, in their order; what can be asked may be more."""
        ...

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What learns, by name; not a frozen foundation."""
        ...

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> "System":
        """The same system with other weights and names, sharing all else."""
        ...

    def stages(self, bank: SliceBank) -> list[Stage]:
        """How its parts learn from slices."""
        ...


@dataclass(frozen=True, eq=False)
class Marked:
    """What marks tell of the slices that have any, on the working grid.

    Attributes:
        slices: (M,) int64, their places in the scan, rising.
        probability: (M, size, size), of the target, by the marks and what the system had estimated.
        inside: (M, size, size) bool, pixels that are known to be in the target.
        outside: likewise, not in it; never both.
    """

    slices: Tensor
    probability: Tensor
    inside: Tensor
    outside: Tensor

    @property
    def where(self) -> Tensor:
        """The known pixels, (M, 1, size, size) bool."""
        return (self.inside | self.outside)[:, None]

    @property
    def value(self) -> Tensor:
        """What they are, (M, 1, size, size) in {0, 1}."""
        return self.inside[:, None].float()


@runtime_checkable
class Redraws(Protocol):
    """A system whose proposals start from an estimate, for which a better one can be put in its place."""

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        ...

    def estimate(self, seen: Any, target: Target, slices: Tensor | None = None) -> Tensor:
        """The probability that its proposals start from, (S, size, size), or (M, size, size) of the M `slices`."""
        ...

    def redraw(
        self, seen: Any, target: Target, marked: Marked, n: int, seed: int, on_step: Callable[[float], None] = ...
    ) -> Tensor:
        """Probabilities (N, M, size, size) of the marked slices: as `propose`, but from `marked.probability`.

        What is known is told to the denoiser at every step, where the codec is one of pixels.
        """
        ...


@dataclass(frozen=True, eq=False)
class Seen:
    """A scan that a segmenter has looked at: ask it as many prompts as you like.

    Attributes:
        scan: as it was given.
        features: what the system saw.
        prepared: the scan with its grey values prepared, as marks are read beside it.
    """

    scan: Scan
    features: Any
    prepared: Scan
