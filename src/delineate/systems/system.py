"""What a system is: it sees slices once and then proposes masks of a target, on the working grid."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from delineate.prompt import Concept, Vocabulary


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
        """Probabilities (N, S, size, size) in [0, 1]; N is 1 for a deterministic system."""
        ...
