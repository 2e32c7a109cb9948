"""A system without its drawing: what its own estimate is worth, the row beside every consensus."""

from collections.abc import Callable
from typing import Any

from delineate.systems.system import Asked, Clue, Drawn, Refines


class EstimateAlone:
    """Another system's estimate as the one proposal, whatever is asked for: of an encoder and a generator, the encoder.

    >>> Segmenter(EstimateAlone(segmenter.system), segmenter.modalities, habits=segmenter.habits)  # doctest: +SKIP
    """

    accepts: frozenset[Clue] = frozenset()
    open_words = False

    def __init__(self, system: Refines):
        self.system = system
        self.vocabulary = system.vocabulary
        self.size = system.size
        self.see = system.see

    def to(self, device: Any) -> "EstimateAlone":
        """Itself, moved."""
        return EstimateAlone(self.system.to(device))  # type: ignore[arg-type]

    def propose(
        self, seen: Any, asked: Asked, n: int, seed: int, on_step: Callable[[float], None] = lambda share: None
    ) -> Drawn:
        """The estimate, (1, S, size, size)."""
        return Drawn(self.system.estimate(seen, asked)[None])
