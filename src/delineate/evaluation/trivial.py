"""Trivial baselines: what knows next to nothing of the image. They stand in every table."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from delineate.data.slices import SliceBank
from delineate.scans.grid import View
from delineate.systems.system import Asked, Clue, Drawn

LEVELS = tuple(level / 20 for level in range(1, 20))
HEIGHTS = 16  # that the atlas tells apart


class Trivial(ABC):
    """Answers with one proposal of a mask for each slice."""

    accepts: frozenset[Clue] = frozenset()
    open_words = False

    def __init__(self, bank: SliceBank):
        self.vocabulary = bank.vocabulary
        self.size = bank.size

    def to(self, device: torch.device | str) -> Self:
        """Itself: there is nothing to move."""
        return self

    def see(self, view: View) -> Tensor:
        """The slices."""
        return view.stack

    def propose(
        self, seen: Tensor, asked: Asked, n: int, seed: int, on_step: Callable[[float], None] = lambda share: None
    ) -> Drawn:
        """One proposal, (1, S, size, size)."""
        return Drawn(self.masks_of(seen, asked.name)[None])

    @abstractmethod
    def masks_of(self, stack: Tensor, name: str) -> Tensor:
        """Masks (S, size, size), 0 or 1, of slices (S, 3, size, size)."""


class Atlas(Trivial):
    """Where the training slices have a target, by height in the scan and place in the slice; no look at the image.

    A mask is where a share of the training slices of that height show the target, the share being the one with the
    highest mean Dice over those training slices that show it.
    """

    heights = HEIGHTS

    def __init__(self, bank: SliceBank):
        super().__init__(bank)
        height = heights_in(bank.case if bank.case is not None else torch.arange(len(bank)), self.heights)
        self.masks = {c.name: self._best(bank, i, height) for i, c in enumerate(bank.vocabulary.concepts)}

    def _best(self, bank: SliceBank, concept: int, height: Tensor) -> Tensor:
        shares = torch.zeros(self.heights, bank.size, bank.size)
        shows = bank.present[:, concept]
        for h in range(self.heights):
            here = height == h
            if self.heights == 1:
                here = here & shows
            if here.any():
                shares[h] = (bank.labels[here] == 1 + concept).float().mean(dim=0)
        if not shows.any():
            return shares
        masks, own = bank.labels[shows] == 1 + concept, height[shows]

        def dice(level: float) -> float:
            guess = (shares >= level)[own]
            both, total = (guess & masks).sum((1, 2)), guess.sum((1, 2)) + masks.sum((1, 2))
            return float((2 * both / total).mean())

        return (shares >= max(LEVELS, key=dice)).float()

    def masks_of(self, stack: Tensor, name: str) -> Tensor:
        """The mask of each slice's height."""
        return self.masks[name][heights_in(torch.zeros(len(stack), dtype=torch.long), self.heights)].clone()


class OneMask(Atlas):
    """The same mask of a target in every slice: the best constant one of the training slices that show it."""

    heights = 1


class Otsu(Trivial):
    """What is brighter, or darker, than Otsu's threshold of the slice, whichever fits the training slices better.

    Source: Otsu, A Threshold Selection Method from Gray-Level Histograms, 1979.
    """

    def __init__(self, bank: SliceBank):
        super().__init__(bank)
        self.bright: dict[str, bool] = {}
        for i, concept in enumerate(bank.vocabulary.concepts):
            index = bank.present[:, i].nonzero()[:, 0]
            if not len(index):
                self.bright[concept.name] = True
                continue
            index = index[torch.linspace(0, len(index) - 1, min(len(index), 200)).long()]
            above = brighter(bank.images[index].float() / 127.5 - 1)
            masks = bank.labels[index] == 1 + i
            dices = [2 * (g & masks).sum() / (g.sum() + masks.sum()).clamp(min=1) for g in (~above, above)]
            self.bright[concept.name] = bool(dices[1] > dices[0])

    def masks_of(self, stack: Tensor, name: str) -> Tensor:
        """One side of the threshold."""
        above = brighter(stack)
        return (above if self.bright[name] else ~above).float()


TRIVIAL: dict[str, Callable[[SliceBank], Any]] = {"mean mask": OneMask, "atlas prior": Atlas, "Otsu": Otsu}


def heights_in(case: Tensor, heights: int) -> Tensor:
    """In which of so many equal parts of its scan each slice lies (N,) int64, by `SliceBank.case`."""
    out = torch.empty_like(case)
    for one in case.unique():
        own = (case == one).nonzero()[:, 0]
        out[own] = torch.arange(len(own)) * heights // len(own)
    return out


def brighter(stack: Tensor) -> Tensor:
    """Where slices (S, 3, H, W) in [-1, 1] are above their own threshold, (S, H, W) bool; colours are mixed."""
    grey = ((stack.mean(1) + 1) * 127.5).round().long().clamp(0, 255)
    levels = torch.arange(256, dtype=torch.float64)
    counts = torch.stack([torch.bincount(one.flatten(), minlength=256) for one in grey]).double()
    below, sums = counts.cumsum(1), (counts * levels).cumsum(1)
    above, total = below[:, -1:] - below, sums[:, -1:]
    means = sums / below.clamp(min=1), (total - sums) / above.clamp(min=1)
    apart, threshold = (below * above * (means[0] - means[1]) ** 2).max(1)
    threshold = torch.where(apart > 0, threshold, 255)  # of one grey nothing is brighter
    return grey > threshold[:, None, None]
