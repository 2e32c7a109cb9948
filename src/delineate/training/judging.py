"""Held-out Dice while a training goes on: on slices of the val split, by the averaged weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from delineate.data.slices import UNLABELLED, SliceBank

SLICES = 256  # at most, spread evenly over each set's cases: enough to tell better from worse
AT_ONCE = 16

Answer = Callable[[Tensor, Tensor], Tensor]
"""Slices (B, 3, S, S) in [-1, 1], and which concepts may be in them (B, C) bool, to labels (B, S, S) as in `Batch`."""


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Slices that a training is judged by and never learns from.

    Attributes:
        bank: of the val split, with the vocabulary of the training.
    """

    bank: SliceBank

    @classmethod
    def of(cls, bank: SliceBank, most: int = SLICES) -> "HeldOut":
        """Judging on at most `most` slices of every set, evenly spaced."""
        chosen = []
        for d in range(len(bank.shares)):
            own = (bank.dataset == d).nonzero()[:, 0]
            chosen.append(own[torch.linspace(0, len(own) - 1, min(most, len(own))).round().long()])
        return cls(bank.subset(torch.cat(chosen)))

    @torch.no_grad()
    def dice(self, answer: Answer, device: torch.device | str = "cpu") -> dict[str, float]:
        """Dice of every name that the slices show: counted over a scan, mean over scans, then over sets."""
        bank = self.bank
        assert bank.case is not None
        names = 1 + len(bank.vocabulary.concepts)
        both, total = (torch.zeros(int(bank.case.max()) + 1, names, dtype=torch.float64) for _ in range(2))
        true = torch.zeros_like(total)
        for index in torch.arange(len(bank)).split(AT_ONCE):
            image = bank.images[index].to(device).float() / 127.5 - 1
            possible = (bank.annotated | bank.foreign)[bank.dataset[index]]
            found, labels = answer(image, possible.to(device)).cpu(), bank.labels[index].long()
            for place, drawn, truth in zip(index.tolist(), found, labels, strict=True):
                case, known = int(bank.case[place]), truth != UNLABELLED
                drawn, truth = drawn[known], truth[known]
                both[case] += torch.bincount(truth[drawn == truth], minlength=names)
                true[case] += torch.bincount(truth, minlength=names)
                total[case] += torch.bincount(drawn, minlength=names)
        owner = torch.zeros(len(both), dtype=torch.long).scatter_(0, bank.case, bank.dataset)
        scores = {}
        for c, name in enumerate(bank.vocabulary.names, start=1):
            shown = true[:, c] > 0
            dice = 2 * both[:, c] / (true + total)[:, c]
            of_sets = [dice[shown & (owner == d)].mean() for d in owner[shown].unique()]
            if of_sets:
                scores[name] = torch.stack(of_sets).mean().item()
        return scores


def mean_score(scores: Mapping[str, float]) -> float:
    """One number of several names: their mean; 0 of none."""
    return sum(scores.values()) / len(scores) if scores else 0.0
