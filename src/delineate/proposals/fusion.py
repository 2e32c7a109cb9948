"""Several masks of one target into one: mean, majority, or STAPLE. NumPy only.

STAPLE (Warfield, Zou, Wells, IEEE TMI 23(7), 2004) estimates, by expectation maximisation, the hidden true
mask together with each rater's sensitivity a_j = P(z_ij = 1 | y_i = 1) and false-positive rate
b_j = P(z_ij = 1 | y_i = 0), one minus its specificity. UniSegDiff, which fuses its samples so, misprints the
M-step: its eq. 3 is upside down and lacks the decisions z_ij, and the beta_j of its eq. 2 can only be the
false-positive rate. With W_i the posterior of voxel i and pi the prior, what is meant, and done here, is

    E:  W_i = pi prod_j a_j^z_ij (1 - a_j)^(1 - z_ij)
              / (the same + (1 - pi) prod_j b_j^z_ij (1 - b_j)^(1 - z_ij))
    M:  a_j = sum_i W_i z_ij / sum_i W_i,    b_j = sum_i (1 - W_i) z_ij / sum_i (1 - W_i)

All voxels with the same N decisions have the same posterior, so EM runs on the distinct decision patterns.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

FOREGROUND = 0.5  # a probability of at least this is foreground
_RATE_FLOOR = 1e-7  # keeps a rate off 0 and 1, where one rater's word would be final
_MOST_RATERS = 64  # decisions packed in one machine word
_ONE_BITS, _HALF_BITS = 0x3C00, 0x3800  # float16's 1.0 and 0.5; NaN and negative numbers have greater bits
_CONVERGED = 1e-4  # largest change of any rate in the last iteration


@dataclass(frozen=True)
class StapleResult:
    """What STAPLE found.

    Attributes:
        posterior: P(voxel is foreground | all masks), shape `space`, float32.
        sensitivity: a_j of each mask, shape (N,).
        specificity: 1 - b_j of each mask, shape (N,).
        iterations: EM iterations that ran.
        converged: whether no rate moved by more than 1e-4 in the last of them.
    """

    posterior: np.ndarray
    sensitivity: np.ndarray
    specificity: np.ndarray
    iterations: int
    converged: bool


def fuse_mean(
    probabilities: Shaped[np.ndarray, " N *space"], weights: Float[np.ndarray, " N"] | None = None
) -> Float[np.ndarray, "*space"]:
    """The mean over the N masks, float32 in [0, 1]; by `weights` that sum to 1, where they are given."""
    stack = _checked(probabilities)
    bits = stack.view(np.uint16) if stack.dtype == np.float16 else stack
    reached = np.logical_or.reduce(bits, axis=0)
    mean = np.zeros(stack[0].size, np.float32)
    some = np.flatnonzero(reached)  # most of a scan is nobody's target
    mean[some] = mean_of((mask[some] for mask in stack.reshape(len(stack), -1)), len(some), weights)
    return mean.reshape(stack.shape[1:])


def mean_of(
    rows: Iterable[Shaped[np.ndarray, " M"]], voxels: int, weights: Float[np.ndarray, " N"] | None = None
) -> Float[np.ndarray, " M"]:
    """The same of masks (M,) in [0, 1] that come one by one."""
    values, n = np.zeros(voxels, np.float32), 0
    for n, mask in enumerate(rows, start=1):
        values += mask if weights is None else np.float32(weights[n - 1]) * mask.astype(np.float32)
    return np.divide(values, np.float32(n), out=values) if weights is None else values.clip(0, 1, out=values)


def fuse_majority(probabilities: Shaped[np.ndarray, " N *space"]) -> Float[np.ndarray, "*space"]:
    """1 where more than half of the N masks have p >= 0.5, else 0 (float32); a tie is background."""
    stack = _checked(probabilities)
    votes = np.zeros(stack.shape[1:], np.int32)
    for mask in stack:
        votes += foreground(mask)
    return (2 * votes > len(stack)).astype(np.float32)


def fuse_staple(
    probabilities: Shaped[np.ndarray, " N *space"],
    *,
    sensitivity: float = 0.9,
    false_positive_rate: float = 0.1,
    prior: float = 0.5,
    iterations: int = 20,
    others: int = 0,
) -> Float[np.ndarray, "*space"]:
    """The STAPLE posterior of the masks p >= 0.5, float32; zero everywhere if half or more are empty.

    STAPLE alone is blind to how many masks are empty: one stray blob among 20 masks becomes the consensus,
    because the 19 empty ones are taken for raters of no sensitivity. So presence is put to the vote first.

    Args:
        probabilities: N masks, values in [0, 1], any float type or bool, N <= 64.
        sensitivity: where every a_j starts.
        false_positive_rate: where every b_j starts.
        prior: P(foreground) of a voxel before any mask is seen.
        iterations: EM iterations at most; UniSegDiff takes 20.
        others: voxels more that are in no mask: they count, and are not returned.
    """
    masks = foreground(_checked(probabilities))
    present = sum(bool(mask.any()) for mask in masks)
    if 2 * present <= len(masks):
        return np.zeros(masks.shape[1:], np.float32)
    return staple(
        masks,
        sensitivity=sensitivity,
        false_positive_rate=false_positive_rate,
        prior=prior,
        iterations=iterations,
        others=others,
    ).posterior


def staple(
    masks: Bool[np.ndarray, " N *space"],
    *,
    sensitivity: float = 0.9,
    false_positive_rate: float = 0.1,
    prior: float = 0.5,
    iterations: int = 20,
    others: int = 0,
) -> StapleResult:
    """STAPLE without the presence vote, for N <= 64 binary masks. See the module's head for the source.

    So many `others`, voxels that are in no mask, count too and are not in the posterior.

    Masks that all agree on every voxel are returned as they are: nothing is left to estimate, and EM would
    explain an all-empty stack as well by a truth that no rater sees.

    Raises:
        ValueError: no masks, more than 64, masks that are not bool, or a rate outside (0, 1).
    """
    masks = np.asarray(masks)
    if masks.dtype != np.bool_:
        raise ValueError(f"masks must be bool, not {masks.dtype}. Compare them with a threshold first.")
    if masks.ndim < 2 or not 1 <= len(masks) <= _MOST_RATERS:
        raise ValueError(f"masks must be (N, *space) with N from 1 to {_MOST_RATERS}, not {masks.shape}.")
    for name, rate in (
        ("sensitivity", sensitivity),
        ("false_positive_rate", false_positive_rate),
        ("prior", prior),
    ):
        if not 0.0 < rate < 1.0:
            raise ValueError(f"{name} must lie strictly between 0 and 1, not {rate}.")
    if iterations < 1:
        raise ValueError(f"iterations must be 1 or more, not {iterations}.")

    patterns, pattern_of_voxel, counts = _patterns(masks, others)
    decided = (patterns[:, None] >> np.arange(len(masks), dtype=np.uint64)) & np.uint64(1)
    z = decided.astype(np.float64)  # (patterns, N)
    if (z == z[:, :1]).all():
        ones = np.ones(len(masks))
        return StapleResult(masks[0].astype(np.float32), ones, ones, 0, True)

    a = np.full(len(masks), sensitivity)
    b = np.full(len(masks), false_positive_rate)
    converged, ran = False, 0
    W = _posterior(z, a, b, prior)
    for ran in range(1, iterations + 1):  # noqa: B007
        before = np.concatenate([a, b])
        a = _rates(W * counts, z, a)
        b = _rates((1 - W) * counts, z, b)
        W = _posterior(z, a, b, prior)
        converged = bool(np.abs(np.concatenate([a, b]) - before).max() <= _CONVERGED)
    posterior = W.astype(np.float32)[pattern_of_voxel].reshape(masks.shape[1:])
    return StapleResult(posterior, a, 1 - b, ran, converged)


def _rates(weights: np.ndarray, z: np.ndarray, before: np.ndarray) -> np.ndarray:
    """The M-step: the weighted fraction of ones of each rater; as before where nothing has weight."""
    total = weights.sum()
    rates = weights @ z / total if total > 0 else before
    return np.clip(rates, _RATE_FLOOR, 1 - _RATE_FLOOR)


def _posterior(z: np.ndarray, a: np.ndarray, b: np.ndarray, prior: float) -> np.ndarray:
    """The E-step for each pattern, through log-odds so that many raters do not underflow."""
    log_odds = np.log(prior / (1 - prior)) + z @ np.log(a / b) + (1 - z) @ np.log((1 - a) / (1 - b))
    return np.exp(-np.logaddexp(0.0, -log_odds))


def _patterns(masks: np.ndarray, others: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The distinct columns of N decisions as 64-bit words, which one each voxel has, how many have it."""
    bits = np.packbits(masks.reshape(len(masks), -1), axis=0, bitorder="little")  # (ceil(N / 8), voxels)
    words = np.zeros(bits.shape[1], np.uint64)
    for byte, row in enumerate(bits):
        words |= row.astype(np.uint64) << np.uint64(8 * byte)
    everyone = np.uint64((1 << len(masks)) - 1)
    mixed = np.flatnonzero((words != 0) & (words != everyone))  # few: sort only these
    found, inverse, mixed_counts = np.unique(words[mixed], return_inverse=True, return_counts=True)
    patterns = np.concatenate([np.array([0, everyone], np.uint64), found])
    index = np.where(words == everyone, 1, 0)
    index[mixed] = inverse + 2
    full = int(np.count_nonzero(index == 1))
    counts = np.concatenate([[len(words) - len(mixed) - full + others, full], mixed_counts]).astype(np.float64)
    kept = counts > 0
    return patterns[kept], (np.cumsum(kept) - 1)[index], counts[kept]


def foreground(probability: np.ndarray) -> np.ndarray:
    """Where a probability is at least 0.5, bool; quick for float16."""
    if probability.dtype == np.float16 and (bits := probability.view(np.uint16)).max(initial=0) <= _ONE_BITS:
        return bits >= _HALF_BITS
    return probability >= FOREGROUND


def _checked(probabilities: np.ndarray) -> np.ndarray:
    stack = np.asarray(probabilities)
    if stack.ndim < 2 or len(stack) == 0:
        raise ValueError(f"probabilities must be (N, *space) with N of 1 or more, not {stack.shape}.")
    for mask in stack:  # one at a time: no copy of the stack
        if mask.size and mask.dtype == np.float16 and mask.view(np.uint16).max() <= _ONE_BITS:
            continue  # NumPy compares halves slowly; the bits of those in [0, 1] are ordered as the halves are
        if mask.size and not (mask.min() >= 0 and mask.max() <= 1):
            raise ValueError("probabilities must lie in [0, 1] and be finite; apply the sigmoid first.")
    return stack


FUSIONS: dict[str, Callable[..., np.ndarray]] = {
    "mean": fuse_mean,
    "majority": fuse_majority,
    "staple": fuse_staple,
}
