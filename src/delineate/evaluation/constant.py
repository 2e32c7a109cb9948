"""The trivial baseline: one mask for all scans. It stands in every table of a study."""

from collections.abc import Callable

import torch
from torch import Tensor

from delineate.data.slices import SliceBank
from delineate.scans.grid import View
from delineate.systems.system import Asked, Clue, Drawn

LEVELS = tuple(level / 20 for level in range(1, 20))


class OneMask:
    """Answers every slice with the same mask of a target: the best constant one of the training slices.

    It is where a share of the slices' masks agree, the share being the one with the highest mean Dice over those
    slices that show the target.
    """

    accepts: frozenset[Clue] = frozenset()
    open_words = False

    def __init__(self, bank: SliceBank):
        self.vocabulary = bank.vocabulary
        self.size = bank.size
        self.masks = {c.name: self._best(bank, i) for i, c in enumerate(bank.vocabulary.concepts)}

    def _best(self, bank: SliceBank, concept: int) -> Tensor:
        masks = (bank.labels[bank.present[:, concept]] == 1 + concept).float()
        if not len(masks):
            return torch.zeros(bank.size, bank.size)
        share = masks.mean(dim=0)

        def dice(level: float) -> float:
            guess = (share >= level).float()
            both, total = (guess * masks).sum((1, 2)), guess.sum() + masks.sum((1, 2))
            return float((2 * both / total).mean())

        return (share >= max(LEVELS, key=dice)).float()

    def to(self, device: torch.device | str) -> "OneMask":
        """Itself: there is nothing to move."""
        return self

    def see(self, view: View) -> int:
        """How many slices there are."""
        return len(view.stack)

    def propose(
        self, seen: int, asked: Asked, n: int, seed: int, on_step: Callable[[float], None] = lambda share: None
    ) -> Drawn:
        """One proposal: the mask, in every slice."""
        return Drawn(self.masks[asked.name].expand(1, seen, -1, -1).clone())
