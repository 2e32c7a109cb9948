"""Thresholds with a guarantee: conformal risk control of what a mask misses and of what it adds. NumPy only.

Angelopoulos, Bates, Fisch, Lei, Schuster, Conformal Risk Control, arXiv 2208.02814 (ICLR 2024), Theorem 1: for n
exchangeable subjects whose losses L_i(lambda) <= B do not rise with lambda,

    lambda-hat = inf { lambda : n/(n+1) R_n(lambda) + B/(n+1) <= alpha }    =>    E L_{n+1}(lambda-hat) <= alpha

The guarantee is for the mean over new subjects like those it was set on (and over the draw of those), not for each
one; a subject gives one loss, the mean over its slices or targets, for they are not exchangeable among themselves.
Where nothing can be guaranteed the result says so and holds no threshold; refusing then counts as no loss.

A mask holds the voxels of p >= threshold, as everywhere here. A threshold of 0 or less takes all of them, one above
1 none. To miss less, lower it; to add less, raise it. So curves of the first are safest at the low end, those of the
second at the high end, and `risk_control` reads columns from the boldest to the safest.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

ROUNDING = 1e-12  # a mean of losses may be a hair above what its fractions make


@dataclass(frozen=True)
class RiskControl:
    """The boldest setting whose risk is controlled, or why there is none.

    Attributes:
        index: its column; None if nothing can be guaranteed.
        value: its number in the grid, or None.
        risk: the mean loss of the n subjects there, or None.
        alpha: the risk asked for.
        subjects: n.
        subjects_needed: the fewest subjects by which `alpha` could be guaranteed, had they no loss at all.
        why_not: what to do, where nothing can be guaranteed.
    """

    index: int | None
    value: float | None
    risk: float | None
    alpha: float
    subjects: int
    subjects_needed: int
    why_not: str | None = None

    @property
    def guaranteed(self) -> bool:
        """Whether there is a setting."""
        return self.index is not None


def risk_control(
    losses: Float[np.ndarray, "subjects settings"],
    grid: Float[np.ndarray, " settings"],
    alpha: float,
    bound: float = 1.0,
) -> RiskControl:
    """The first setting at which a new subject's expected loss is at most `alpha`.

    Source: arXiv 2208.02814, lambda-hat of section 1 and Theorem 1.

    >>> control = risk_control(np.zeros((9, 2)), np.array([0.5, 0.4]), alpha=0.1)
    >>> control.value, risk_control(np.zeros((8, 2)), np.array([0.5, 0.4]), alpha=0.1).value
    (0.5, None)

    Args:
        losses: one row a subject, at most `bound`, not rising along the row (see `monotone`).
        grid: what the columns are, from the boldest to the safest: thresholds fall for `missed_fraction` and rise
            for `false_fraction`.
        alpha: the mean loss to stay under, between 0 and `bound`.
        bound: B, the greatest loss there can be, not the greatest seen.

    Raises:
        ValueError: other shapes, a grid that turns back, a loss that is not finite, above `bound` or rising.
    """
    losses, grid = _losses(losses, grid, bound)
    if not 0 < alpha < bound:
        raise ValueError(f"alpha must be between 0 and bound ({bound:g}), not {alpha}.")
    return _controlled(losses, grid, alpha, bound)


def monotone(losses: Float[np.ndarray, "*subjects settings"]) -> Float[np.ndarray, "*subjects settings"]:
    """The largest loss at each setting or any safer one: never rises from the boldest to the safest, and never less.

    What is guaranteed of it is guaranteed of the losses themselves, only with something to spare.
    """
    return np.maximum.accumulate(np.asarray(losses)[..., ::-1], axis=-1)[..., ::-1]


def missed_fraction(
    probability: Float[np.ndarray, "*space"],
    truth: Bool[np.ndarray, "*space"],
    thresholds: Float[np.ndarray, " thresholds"],
) -> Float[np.ndarray, " thresholds"]:
    """The share of the truth that p >= threshold leaves out (FNR), in [0, 1], at each threshold; rises with it.

    0 where the truth is empty: there is nothing to miss. Such subjects lower the mean; leave them out of `losses` if
    the guarantee shall be for subjects that have the target.

    One pass over the voxels, whatever the number of thresholds.

    Args:
        probability: in [0, 1].
        truth: on the same grid.
        thresholds: falling or rising; the answer is in their order.

    Raises:
        ValueError: other shapes, not bool, out of range, or thresholds that turn back.
    """
    probability, truth, rising, turned = _checked(probability, truth, thresholds)
    kept = _kept(probability[truth], rising)
    total = int(np.count_nonzero(truth))
    missed = (total - kept) / max(total, 1)
    return missed[::-1] if turned else missed


def false_fraction(
    probability: Float[np.ndarray, "*space"],
    truth: Bool[np.ndarray, "*space"],
    thresholds: Float[np.ndarray, " thresholds"],
) -> Float[np.ndarray, " thresholds"]:
    """The share of p >= threshold that is not truth (FDR), made monotone, in [0, 1]; falls as the threshold rises.

    A higher threshold can leave a mask with a larger share of error, so the share itself is not monotone and cannot
    be controlled. What comes back at a threshold is the largest share at it or any higher one given, never less than
    the share itself. An empty mask has none wrong: 0.

    Args, errors: as `missed_fraction`. One pass over the voxels.
    """
    probability, truth, rising, turned = _checked(probability, truth, thresholds)
    kept = _kept(probability, rising)
    wrong = monotone((kept - _kept(probability[truth], rising)) / np.maximum(kept, 1))
    return wrong[::-1] if turned else wrong


def overlaps_above(
    probability: Float[np.ndarray, "*space"],
    truth: Bool[np.ndarray, "*space"],
    thresholds: Float[np.ndarray, " thresholds"],
) -> tuple[Float[np.ndarray, " thresholds"], Float[np.ndarray, " thresholds"]]:
    """Of the masks p >= threshold: Dice with the truth, and their size in units of it (infinite where it is empty).

    Exact at each threshold, where `false_fraction` is made monotone. Args, errors: as `missed_fraction`.
    """
    probability, truth, rising, turned = _checked(probability, truth, thresholds)
    kept, both, total = _kept(probability, rising), _kept(probability[truth], rising), int(np.count_nonzero(truth))
    overlap, size = 2 * both / np.maximum(kept + total, 1), kept / total if total else np.full(len(kept), np.inf)
    return (overlap[::-1], size[::-1]) if turned else (overlap, size)


@dataclass(frozen=True)
class InnerOuter:
    """Two thresholds on one map; the mask of `inner` lies within that of `outer`.

    Attributes:
        inner: p >= inner adds at most alpha on average; None if that cannot be guaranteed.
        outer: p >= outer misses at most alpha on average; None if that cannot be guaranteed.
        added: how `inner` was found.
        missed: how `outer` was found.
    """

    inner: float | None
    outer: float | None
    added: RiskControl
    missed: RiskControl


def inner_outer(
    missed: Float[np.ndarray, "subjects thresholds"],
    false: Float[np.ndarray, "subjects thresholds"],
    thresholds: Float[np.ndarray, " thresholds"],
    alpha: float,
) -> InnerOuter:
    """A mask to trust within the truth and one to look for it in, each wrong by `alpha` on average at most.

    `outer` is the highest threshold that misses at most alpha of the truth, `inner` the lowest of whose mask at most
    alpha is not truth. Both hold each on their own, not jointly. A good model lets them cross (`outer` above
    `inner`): any threshold between does both, and both become the one halfway, which is safer for each.

    Args:
        missed: rows of `missed_fraction`.
        false: rows of `false_fraction`.
        thresholds: of both, rising.
        alpha: between 0 and 1.

    Raises:
        ValueError: as `risk_control`, or thresholds that do not rise.
    """
    thresholds = np.asarray(thresholds, np.float64)
    if not (np.diff(thresholds) > 0).all():
        raise ValueError("thresholds must rise; turn them and both matrices' columns round.")
    low = risk_control(np.asarray(missed)[..., ::-1], thresholds[::-1], alpha)
    high = risk_control(false, thresholds, alpha)
    inner, outer = high.value, low.value
    if low.index is not None and high.index is not None:
        last = len(thresholds) - 1 - low.index
        if last > high.index:
            inner = outer = float(thresholds[(last + high.index) // 2])
    return InnerOuter(inner, outer, high, low)


def coverage(
    losses: Float[np.ndarray, "subjects settings"],
    grid: Float[np.ndarray, " settings"],
    alpha: float,
    splits: int = 200,
    seed: int = 0,
    bound: float = 1.0,
) -> Float[np.ndarray, " splits"]:
    """The mean loss on the other half of the subjects, for settings chosen on a random half of them.

    Its mean over splits is at most `alpha` but for chance; single splits lie above and below. Splits of the same
    subjects overlap: their spread is not that of new cohorts.

    Args:
        losses: as for `risk_control`.
        grid: as for `risk_control`.
        alpha: as for `risk_control`.
        splits: how many.
        seed: which.
        bound: as for `risk_control`.

    Raises:
        ValueError: as `risk_control`, or where nothing can be guaranteed by half of the subjects.
    """
    losses, grid = _losses(losses, grid, bound)
    generator = np.random.default_rng(seed)
    half = len(losses) // 2
    if half == 0:
        raise ValueError("a split needs two subjects at least.")
    realised = np.empty(splits)
    for i in range(splits):
        order = generator.permutation(len(losses))
        control = risk_control(losses[order[:half]], grid, alpha, bound)
        if control.index is None:
            raise ValueError(f"of {len(losses)} subjects, {half} choose: {control.why_not}")
        realised[i] = losses[order[half:], control.index].mean()
    return realised


def _controlled(losses: np.ndarray, grid: np.ndarray, alpha: float, bound: float) -> RiskControl:
    n = len(losses)
    needed = math.ceil(bound / alpha - 1 - ROUNDING * bound / alpha)  # the smallest n with B / (n + 1) <= alpha
    reached = (losses.sum(axis=0) + bound) / (n + 1)  # n/(n+1) R_n + B/(n+1)
    good = np.flatnonzero(reached <= alpha + ROUNDING * bound)
    if len(good):
        j = int(good[0])
        return RiskControl(j, float(grid[j]), float(losses[:, j].mean()), alpha, n, needed)
    if n < needed:
        why = f"a risk of {alpha:g} cannot be guaranteed with {n} subject{'s' * (n != 1)}: needs at least {needed}."
    else:
        why = (
            f"a risk of {alpha:g} cannot be guaranteed on this grid: at its safest end, {grid[-1]:g}, the mean loss "
            f"of {n} subjects is {losses[:, -1].mean():.3g}. Extend the grid that way or get more subjects."
        )
    return RiskControl(None, None, None, alpha, n, needed, why)


def _losses(losses: np.ndarray, grid: np.ndarray, bound: float) -> tuple[np.ndarray, np.ndarray]:
    losses, grid = np.asarray(losses, np.float64), np.asarray(grid, np.float64)
    if losses.ndim != 2 or not losses.size or grid.shape != losses.shape[1:]:
        raise ValueError(f"losses must be (subjects, settings) and grid (settings,), not {losses.shape}, {grid.shape}.")
    _one_way(grid)
    if not np.isfinite(losses).all() or losses.max() > bound + ROUNDING * bound:
        raise ValueError(f"losses must be finite and at most bound ({bound:g}).")
    rises = np.diff(losses, axis=1) > ROUNDING * bound
    if rises.any():
        i, j = np.argwhere(rises)[0]
        raise ValueError(
            f"a subject's losses must not rise from the boldest setting to the safest; those of subject {i} rise "
            f"from {losses[i, j]:g} at {grid[j]:g} to {losses[i, j + 1]:g} at {grid[j + 1]:g}. "
            f"Turn the columns round if all do, or take monotone(losses)."
        )
    return losses, grid


def _one_way(grid: np.ndarray) -> None:
    steps = np.diff(grid)
    if np.isnan(grid).any() or not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError("a grid or thresholds must rise all the way or fall all the way.")


def _checked(
    probability: np.ndarray, truth: np.ndarray, thresholds: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool]:
    """The map and the truth flat, the thresholds rising, and whether they fell."""
    probability, truth, thresholds = np.asarray(probability), np.asarray(truth), np.asarray(thresholds, np.float64)
    if truth.dtype != np.bool_ or probability.shape != truth.shape:
        raise ValueError(f"truth must be bool and of probability's shape, not {truth.dtype} {truth.shape}.")
    if thresholds.ndim != 1 or not len(thresholds):
        raise ValueError(f"thresholds must be (thresholds,), one at least, not {thresholds.shape}.")
    _one_way(thresholds)
    if not np.issubdtype(probability.dtype, np.floating):
        probability = probability.astype(np.float64)
    if not ((probability >= 0) & (probability <= 1)).all():
        raise ValueError("probabilities must be in [0, 1]; apply a sigmoid to logits first.")
    turned = len(thresholds) > 1 and bool(thresholds[0] > thresholds[-1])
    rising = thresholds[::-1] if turned else thresholds
    # in the map's own type, as `probability >= 0.3` compares
    return probability.ravel(), truth.ravel(), rising.astype(probability.dtype), turned


def _kept(probability: np.ndarray, rising: np.ndarray) -> np.ndarray:
    """How many voxels have p >= each of the rising thresholds."""
    reached = np.bincount(np.searchsorted(rising, probability, side="right"), minlength=len(rising) + 1)
    return len(probability) - np.cumsum(reached)[:-1]
