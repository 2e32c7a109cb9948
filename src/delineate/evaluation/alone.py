"""A system without its drawing: what its estimate is worth, alone and against noise; rows beside every generator."""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor

from delineate.systems.diffusion.thresholds import thresholds
from delineate.systems.system import Asked, Clue, Drawn, Refines


class EstimateAlone:
    """Another system's estimate as the one proposal, whatever is asked for: of an encoder and a generator, the encoder.

    >>> Segmenter(EstimateAlone(segmenter.system), segmenter.modalities, habits=segmenter.habits)  # doctest: +SKIP
    """

    accepts: frozenset[Clue] = frozenset()
    open_words = False
    draws_estimate = False

    @property
    def unites(self) -> bool:
        """As the other system."""
        return getattr(self.system, "unites", False)

    def __init__(self, system: Refines):
        self.system = system
        self.vocabulary = system.vocabulary
        self.size = system.size
        self.see = system.see

    def to(self, device: Any) -> Self:
        """Itself, moved."""
        return type(self)(self.system.to(device))  # type: ignore[arg-type]

    def estimate(self, seen: Any, asked: Asked, slices: Tensor | None = None) -> Tensor:
        """The other system's."""
        return self.system.estimate(seen, asked, slices)

    def propose(
        self, seen: Any, asked: Asked, n: int, seed: int, on_step: Callable[[float], None] = lambda share: None
    ) -> Drawn:
        """The estimate, (1, S, size, size)."""
        return Drawn(self.system.estimate(seen, asked)[None])


class Floor(EstimateAlone):
    """Another system's estimate against noise, without a network: the floor that a generator has to beat.

    Proposal k is [Φ(z_k) > 1 - p], up to soft edges (`thresholds`); p is mended where a calibration tells how. Then a
    pixel is in as many proposals as held-out subjects would have drawn it.
    """

    draws_estimate = True

    def propose(
        self, seen: Any, asked: Asked, n: int, seed: int, on_step: Callable[[float], None] = lambda share: None
    ) -> Drawn:
        """(n, S, size, size)."""
        return Drawn(thresholds(asked.mended(self.system.estimate(seen, asked)), n, seed, on_step=on_step))
