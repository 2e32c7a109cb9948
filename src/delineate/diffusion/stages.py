"""What a denoiser is asked for at which time: the three stages of UniSegDiff, and the plain ways beside them.

Hu et al. (2025), arXiv 2507.18362, cut the times 999…0 in three. Far from the data (t > 599) the mask is worth
predicting and ε is easy, in the middle both are, and near the data (t ≤ 299) ε is. Each sample's loss is weighed by its
stage (Eq. 1), and the two outer stages know one time only: the embedding is clamped to 999 and to 0, while the noise in
x_t stays that of the true time. (Replacing the time before noising, the other reading of the paper, shows the ε decoder
next to no noise below 300, yet the last step asks it at that of 299; `Clamp.SAMPLE` is there to compare.)
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import torch
from annotated_types import Interval, Len
from torch import Generator, Tensor


class Strategy(StrEnum):
    """How times are drawn in training and walked in sampling."""

    STAGED = "staged"
    UNIFORM = "uniform"  # no stages: every time alike, many DDIM steps
    ONE_STEP = "one_step"  # the last time alone, in training and in sampling


class Branch(StrEnum):
    """Which decoder speaks."""

    MASK = "mask"
    NOISE = "noise"


class Clamp(StrEnum):
    """What becomes of the time in the outer stages."""

    EMBEDDING = "embedding"  # the network is told 999 or 0, the noise is that of the true time
    SAMPLE = "sample"  # the time itself is replaced, before noising
    NONE = "none"


LAST = 999
Weight = Annotated[float, Interval(ge=0, le=1e6)]
RAPID, MODELLING, REFINEMENT = 0, 1, 2


@dataclass(frozen=True)
class Stages:
    """Boundaries, loss weights and order of the decoders.

    Attributes:
        strategy: staged, uniform or one_step.
        target: "both" decoders, or "mask" or "noise" alone (for the strategies that know one target).
        high: times above it are the rapid segmentation stage.
        low: times up to it are the denoising refinement stage; -1 leaves that stage out.
        weights: (noise, mask) weight of the loss in each stage, Eq. 1.
        clamp: what becomes of the time in the outer stages.
        interval: times between two DDIM steps, in the middle stage or, for "uniform", everywhere.
    """

    strategy: Strategy = Strategy.STAGED
    target: str = "both"
    high: int = 599
    low: int = 299
    weights: Annotated[tuple[tuple[Weight, Weight], ...], Len(3, 3)] = ((1.0, 3.0), (1.0, 1.0), (3.0, 1.0))
    clamp: Clamp = Clamp.EMBEDDING
    interval: Annotated[int, Interval(ge=1, le=LAST + 1)] = 30

    def __post_init__(self):
        if not -1 <= self.low < self.high < LAST:
            raise ValueError(f"stages need -1 <= low < high < {LAST}, got low {self.low} and high {self.high}")
        if self.target not in ("both", *Branch):
            raise ValueError(f"target is one of both, {', '.join(Branch)}; got '{self.target}'")
        if self.strategy is Strategy.STAGED and self.target != "both":
            raise ValueError("the stages need both decoders; a single target goes with uniform or one_step")
        if len(self.weights) != 3 or any(len(pair) != 2 for pair in self.weights):
            raise ValueError(f"weights are three pairs (noise, mask), got {self.weights}")
        if self.interval < 1:
            raise ValueError(f"interval must be 1 or more, got {self.interval}")

    def stage_of(self, t: Tensor) -> Tensor:
        """0 rapid, 1 modelling, 2 refinement for each time (B,) int64."""
        return torch.where(t > self.high, RAPID, torch.where(t > self.low, MODELLING, REFINEMENT))

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Training times (count,) int64: whose noise enters x_t."""
        if self.strategy is Strategy.ONE_STEP:
            return torch.full((count,), LAST)
        t = torch.randint(LAST + 1, (count,), generator=generator)
        return self._clamped(t) if self.strategy is Strategy.STAGED and self.clamp is Clamp.SAMPLE else t

    def told(self, t: Tensor) -> Tensor:
        """The times (B,) that the network is told for samples noised at times `t`."""
        if self.strategy is not Strategy.STAGED or self.clamp is Clamp.NONE:
            return t
        return self._clamped(t)

    def loss_weights(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(noise, mask) weight of each sample, (B,) each: a batch mixes stages."""
        if self.target != "both":
            one, zero = torch.ones(len(t), device=t.device), torch.zeros(len(t), device=t.device)
            return (one, zero) if self.target == Branch.NOISE else (zero, one)
        if self.strategy is not Strategy.STAGED:
            return torch.ones(len(t), device=t.device), torch.ones(len(t), device=t.device)
        pairs = torch.tensor(self.weights, device=t.device)[self.stage_of(t)]
        return pairs[:, 0], pairs[:, 1]

    def times(self) -> list[int]:
        """The times of a sampler, from 999 down.

        Staged: one step to `high`, steps of `interval` down to `low`, one step to the mask; twelve evaluations as
        published. Without a third stage the steps go on to the end.

        >>> Stages().times()[:3], Stages().times()[-2:], len(Stages().times())
        ([999, 599, 569], [329, 299], 12)
        """
        match self.strategy:
            case Strategy.ONE_STEP:
                return [LAST]
            case Strategy.UNIFORM:
                return list(range(LAST, -1, -self.interval))
            case _:
                middle = list(range(self.high, max(self.low, -1), -self.interval))
                return [LAST, *middle, *([self.low] if self.low >= 0 else [])]

    def branch_at(self, t: int, chain: Branch) -> Branch:
        """Which decoder speaks at time `t` in a chain: the outer stages have their own, in the middle the chain's."""
        if self.target != "both":
            return Branch(self.target)
        if self.strategy is not Strategy.STAGED:
            return chain
        if t > self.high:
            return Branch.MASK
        return Branch.NOISE if t <= self.low else chain

    def _clamped(self, t: Tensor) -> Tensor:
        return torch.where(t > self.high, LAST, torch.where(t <= self.low, 0, t))
