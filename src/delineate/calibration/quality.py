"""What Dice a consensus can expect, by held-out subjects: a regression on how far proposals and voxels agree. NumPy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Interval
from jaxtyping import Float
from scipy.special import expit, logit

from delineate.storage.schema import Count, Share

EDGE = 0.02  # logits are those of values between this and 1 minus it
LEVELS = (0.9, 0.8)  # of intervals; the first that the subjects carry
OWN = 2.0  # held-out cases of a target that weigh as much as what is known of all targets of its set
SLOPE = 5.0  # likewise, for how far agreement and doubt count otherwise than the model's own word
Weight = Annotated[float, Interval(ge=-1e3, le=1e3)]


@dataclass(frozen=True)
class Expected:
    """The Dice that a consensus can expect if the target is there; JSON values.

    Attributes:
        dice: about as often more as less.
        low: of an interval that holds the Dice of a found target of a new subject with a chance of `level`.
        high: likewise.
        level: 0.9, or 0.8 by fewer than nine held-out subjects.
        subjects: held-out ones by which it was fitted.
    """

    dice: float
    low: float
    high: float
    level: float
    subjects: int


@dataclass(frozen=True)
class Quality:
    """A linear regression of logit Dice on logits of what can be seen without the truth.

    Attributes:
        intercept: of the target.
        agreement: slope of the mean Dice between proposals.
        probable: slope of the Dice that the probabilities themselves promise (`probable_above`).
        reach: half the interval, in logits.
        level: of the interval.
        subjects: that it was fitted on.
        error: mean |expected - true Dice| on subjects left out of the fit in turn.
    """

    intercept: Weight
    agreement: Weight
    probable: Weight
    reach: Annotated[float, Interval(ge=0, le=100)]
    level: Share
    subjects: Count
    error: Share

    def __call__(self, agreement: float, probable: float) -> Expected:
        """Of a consensus, from two Dice in [0, 1]: `TargetProposals.agreement` and `probable_above`."""
        told = self.intercept + self.agreement * float(_logit(agreement)) + self.probable * float(_logit(probable))
        low, dice, high = (float(expit(at)) for at in (told - self.reach, told, told + self.reach))
        return Expected(round(dice, 4), round(low, 4), round(high, 4), self.level, self.subjects)


def fit_quality(
    subjects: Sequence[str],
    targets: Sequence[str],
    agreement: Float[np.ndarray, " n"],
    probable: Float[np.ndarray, " n"],
    dice: Float[np.ndarray, " n"],
) -> dict[str, Quality]:
    """For every target of one set of scans; nothing where the subjects carry no interval.

    Slopes are shared and begin at the model's own word (logit Dice = logit of what is probable); a target has an
    intercept of its own, drawn towards that of all. Subjects are left out of the fit in turn; the interval is the least
    that holds, by conformal risk control over subjects (`presence`), so large a share of a subject's targets.

    Args:
        subjects: of each found target that is there, n of them.
        targets: likewise; names.
        agreement: likewise; see `Quality`.
        probable: likewise.
        dice: likewise, of the consensus with the truth.
    """
    who, names, y = np.array(subjects), np.array(targets), _logit(dice)
    seen = np.stack([_logit(agreement), _logit(probable)], axis=1)
    everyone = np.unique(who)
    level = next((at for at in LEVELS if len(everyone) >= 1 / (1 - at) - 1 - 1e-9), None)
    if level is None:
        return {}
    told = np.zeros(len(y))
    for one in everyone:
        out = who == one
        intercepts, slopes = _ridge(names[~out], seen[~out], y[~out])
        told[out] = [intercepts.get(name, intercepts[""]) for name in names[out]] + seen[out] @ slopes
    weight = 1 / np.array([(who == one).sum() for one in who])
    away = np.abs(y - told)
    order = np.argsort(-away)
    outside = np.cumsum(weight[order])  # of how many subjects' worth, from the farthest down
    most = (1 - level) * (len(everyone) + 1) - 1 + 1e-9
    reach = float(away[order][np.searchsorted(outside, most, side="right")]) if outside[-1] > most else 0.0
    error = float((weight * np.abs(expit(told) - dice)).sum() / weight.sum())
    intercepts, (a, p) = _ridge(names, seen, y)
    return {
        name: Quality(at, float(a), float(p), min(reach, 100.0), level, len(everyone), round(error, 4))
        for name, at in intercepts.items()
        if name
    }


def probable_above(
    probability: Float[np.ndarray, "*space"], thresholds: Float[np.ndarray, " thresholds"]
) -> Float[np.ndarray, " thresholds"]:
    """Of the masks M of p >= threshold, 2 Σ_M p / (|M| + Σ p): the Dice that p itself promises; 0 of an empty mask.

    Args:
        probability: in [0, 1].
        thresholds: rising.
    """
    flat = probability.ravel()
    flat = flat[flat > 0]
    bins = np.searchsorted(thresholds.astype(flat.dtype), flat, side="right")
    counts, sums = (np.bincount(bins, weights, len(thresholds) + 1) for weights in (None, flat))
    above, inside = (np.cumsum(one[::-1])[::-1][1:] for one in (counts, sums))
    return 2 * inside / np.maximum(above + sums.sum(), 1)


def _ridge(names: np.ndarray, seen: np.ndarray, y: np.ndarray) -> tuple[Mapping[str, float], np.ndarray]:
    """Intercepts by target, that of all under "", and slopes."""
    known, at = np.unique(names, return_inverse=True)
    usual, own = seen.mean(axis=0), np.eye(len(known))[at]
    x = np.concatenate([np.ones((len(y), 1)), seen - usual, own], axis=1)
    penalty = np.diag([1e-9, *([SLOPE] * seen.shape[1]), *([OWN] * len(known))])
    found = np.linalg.solve(x.T @ x + penalty, x.T @ (y - seen[:, 1]))
    slopes = found[1 : 1 + seen.shape[1]]
    base = float(found[0] - usual @ slopes)
    slopes = slopes + np.array([0.0, 1.0])
    return {"": base} | {str(name): base + float(more) for name, more in zip(known, found[3:], strict=True)}, slopes


def _logit(dice: Float[np.ndarray, "*n"] | float) -> Float[np.ndarray, "*n"]:
    return logit(np.clip(np.asarray(dice, np.float64), EDGE, 1 - EDGE))
