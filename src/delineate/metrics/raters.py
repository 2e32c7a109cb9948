"""How well several proposals agree with several raters, and volumes and probabilities with them. NumPy and SciPy only.

One image at a time; the mean over images is the caller's. Beside `overlap.ged_squared` and `overlap.hm_iou`. Two empty
masks agree (Dice and IoU 1, distance 0), an empty one and another do not (0), here as there.

What grows with the number of proposals N alone, whatever they are worth, must be reported with N: `dice_max_reverse`
does; `dice_match`, `sample_diversity` and the unbiased `overlap.ged_squared` do not. Names of several-rater Dice follow
D-Persona (Wu et al., CVPR 2024); those with `curvas` follow the CURVAS challenges of 2024 and 2025, but for the faults
of their published code, which the functions name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.optimize import linear_sum_assignment

from delineate.calibration.calibrators import reliability
from delineate.metrics.overlap import dice, pairwise_iou

SOFT_LEVELS = (0.1, 0.3, 0.5, 0.7, 0.9)  # D-Persona's
CURVAS_LEVELS = tuple(float(level) for level in np.linspace(0.1, 0.8, 6))  # CURVAS-PDACVI 2025
CURVAS_BINS = 50
CURVAS_MARGIN = 20  # voxels, CURVAS-PDACVI 2025


def dice_max(samples: Bool[np.ndarray, " samples *space"], raters: Bool[np.ndarray, " raters *space"]) -> float:
    """The mean over samples of the Dice with the rater nearest to each, in [0, 1]: is what is proposed plausible?

    Blind to raters whom no sample resembles; see `dice_max_reverse`. Raises `ValueError` as `overlap.hm_iou`.
    """
    return float(_dice_pairs(samples, raters).max(axis=1).mean())


def dice_max_reverse(samples: Bool[np.ndarray, " samples *space"], raters: Bool[np.ndarray, " raters *space"]) -> float:
    """The mean over raters of the Dice with the sample nearest to each, in [0, 1]: is every opinion covered?

    An oracle: it can only grow with the number of samples. Raises `ValueError` as `overlap.hm_iou`.
    """
    return float(_dice_pairs(samples, raters).max(axis=0).mean())


def dice_match(samples: Bool[np.ndarray, " samples *space"], raters: Bool[np.ndarray, " raters *space"]) -> float:
    """The mean Dice of the best one-to-one matching of samples and raters, in [0, 1].

    Both sets are repeated to their least common multiple first, as for `overlap.hm_iou`, so that every mask counts.
    D-Persona's code matches the two sets as they are, which takes the best M of N samples and drops the rest.
    Raises `ValueError` as `overlap.hm_iou`.
    """
    pairs = _dice_pairs(samples, raters)
    n, m = pairs.shape
    times = math.lcm(n, m)
    pairs = pairs.repeat(times // n, axis=0).repeat(times // m, axis=1)
    return float(pairs[linear_sum_assignment(pairs, maximize=True)].mean())


def dice_each(
    samples: Bool[np.ndarray, " raters *space"], raters: Bool[np.ndarray, " raters *space"]
) -> Float[np.ndarray, " raters"]:
    """The Dice of sample i with rater i, for models with a head for each rater.

    The true diagonal: D-Persona's code, its flag for the test never set, reports the best assignment instead.

    Raises:
        ValueError: as `overlap.hm_iou`, or other than one sample for each rater.
    """
    if len(samples) != len(raters):
        raise ValueError(f"sample i is for rater i: as many are needed, not {len(samples)} and {len(raters)}.")
    return _dice_pairs(samples, raters).diagonal().copy()


def dice_soft(
    samples: Shaped[np.ndarray, " samples *space"],
    raters: Bool[np.ndarray, " raters *space"],
    levels: Sequence[float] = SOFT_LEVELS,
) -> float:
    """The mean over levels of the Dice of {mean sample > level} and {mean rater > level}, in [0, 1].

    Strictly above, in float32, so that a mean of 0.3 is not above 0.3 whatever it was summed from; 1 at levels where
    both are empty.

    Args:
        samples: (N, *space), masks or probabilities in [0, 1].
        raters: (M, *space).
        levels: of consent, in [0, 1).

    Raises:
        ValueError: different grids, no mask, raters not bool, or samples out of range.
    """
    samples = np.asarray(samples)
    raters = _raters(raters, samples.shape[1:])
    if not len(samples) or not ((samples >= 0) & (samples <= 1)).all():
        raise ValueError("samples must be masks or probabilities in [0, 1], one at least.")
    ours, theirs = (stack.mean(axis=0, dtype=np.float64).astype(np.float32) for stack in (samples, raters))
    return float(np.mean([_flat_dice(ours > np.float32(level), theirs > np.float32(level)) for level in levels]))


def sample_diversity(samples: Bool[np.ndarray, " samples *space"]) -> float:
    """The mean of 1 - IoU over pairs of different samples, in [0, 1]; 0 for a single one.

    Set beside the same number of the raters: more is not better. Raises `ValueError` as `overlap.hm_iou`.
    """
    n, _, agreement = pairwise_iou(samples, samples[:1])
    return float((1 - agreement[:n, :n]).sum() / (n * (n - 1))) if n > 1 else 0.0


def crps_ensemble(members: Float[np.ndarray, " members"], value: float) -> float:
    """The continuous ranked probability score of an ensemble: mean |x_i - v| - 1/2 mean |x_i - x_j|.

    In the unit of what is given (ml for volumes in ml), 0 or more, less is better; |x - v| for one member. The means
    run over all pairs: it is the integral of (F(x) - [x >= v])^2 for the members' own step function F.

    >>> crps_ensemble(np.array([100.0, 120.0]), 110.0), crps_ensemble(np.array([100.0]), 110.0)
    (5.0, 10.0)

    Source: Gneiting and Raftery, JASA 102, 2007, eq. 20-21.

    Raises:
        ValueError: no member, or not finite.
    """
    x = np.asarray(members, np.float64)
    if x.ndim != 1 or not len(x) or not (np.isfinite(x).all() and math.isfinite(value)):
        raise ValueError("members must be finite numbers, one at least, and value finite.")
    return float(np.abs(x - value).mean() - np.abs(x[:, None] - x).mean() / 2)


def crps_gaussian(mean: float, sd: float, value: float) -> float:
    """The continuous ranked probability score of N(mean, sd^2) at `value`, in their unit; |mean - value| if sd is 0.

    sd [z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)] with z = (value - mean) / sd: Gneiting et al., Monthly Weather
    Review 133, 2005, eq. 5.

    Raises:
        ValueError: sd below 0, or not finite.
    """
    if not (sd >= 0 and all(math.isfinite(number) for number in (mean, sd, value))):
        raise ValueError(f"mean, sd and value must be finite and sd 0 or more, not {mean}, {sd} and {value}.")
    off = value - mean
    if sd == 0:
        return abs(off)
    z = off / sd
    return off * math.erf(z / math.sqrt(2)) + sd * (math.sqrt(2) * math.exp(-z * z / 2) - 1) / math.sqrt(math.pi)


def curvas_crps(
    probability: Float[np.ndarray, "x y z"], raters: Bool[np.ndarray, "raters x y z"], spacing_mm: Sequence[float]
) -> float:
    """The CRPS of a predicted volume under the raters' ones, in ml; CURVAS reports mm3, a thousand times as much.

    CURVAS's conventions: F is the Gaussian of the raters' volumes (standard deviation over M, not M - 1), the value
    is the sum of probabilities times a voxel's volume. Their code integrates only within three standard deviations,
    so all far volumes score alike, and is NaN where the raters agree; this is the closed form, without either fault.

    Raises:
        ValueError: different grids, not 3-D, raters not bool, out of range, or a bad spacing.
    """
    probability = _probability(probability)
    raters = _raters(raters, probability.shape)
    spacing = tuple(float(step) for step in spacing_mm)
    if probability.ndim != 3 or len(spacing) != 3 or not all(0 < step < math.inf for step in spacing):
        raise ValueError(f"a volume needs 3-D masks and 3 positive steps, not {probability.shape} and {spacing}.")
    ml = math.prod(spacing) / 1000
    volumes = np.count_nonzero(raters.reshape(len(raters), -1), axis=1) * ml
    return crps_gaussian(float(volumes.mean()), float(volumes.std()), float(probability.sum(dtype=np.float64)) * ml)


def consensus_dice(pred: Bool[np.ndarray, "*space"], raters: Bool[np.ndarray, " raters *space"]) -> float:
    """The Dice on the voxels on which all raters agree, in [0, 1]; where they do not, nothing counts.

    CURVAS 2024's definition, over the whole volume. Its code hands the volume to a metric that takes the first axis
    for the batch and the second for channels, drops the first of these and averages over the rows that hold organ:
    false voxels in other rows are free.

    Raises:
        ValueError: different grids or not bool.
    """
    pred = np.asarray(pred)
    raters = _raters(raters, pred.shape)
    if pred.dtype != np.bool_:
        raise ValueError(f"masks must be bool, not {pred.dtype}. Threshold them first.")
    agreed = raters.all(axis=0) | ~raters.any(axis=0)
    return _flat_dice(pred[agreed], raters[0][agreed])


def curvas_threshold_dice(
    probability: Float[np.ndarray, "*space"], raters: Bool[np.ndarray, " raters *space"]
) -> float:
    """CURVAS-PDACVI 2025's thresholded Dice, in [0, 1]: `dice_soft` of one map at 0.1, 0.24, ... 0.8.

    Of five raters all must agree at the last level: 4/5 is not above 0.8. Raises `ValueError` as `dice_soft`.
    """
    return dice_soft(np.asarray(probability)[None], raters, CURVAS_LEVELS)


def curvas_ece(
    probability: Float[np.ndarray, " targets *space"],
    raters: Shaped[np.ndarray, " raters *space"],
    *,
    margin: int | None = None,
    top_label: bool = True,
    bins: int = CURVAS_BINS,
) -> float:
    """The expected calibration error against each rater, averaged over raters, in [0, 1].

    The background has 1 - the sum of the targets, at least 0, and all are scaled to sum to 1. (Without that, a sum a
    hair above 1 makes the metric that CURVAS 2024 calls take every probability for a logit.) Bins are of equal width
    and the last is closed; some versions of that metric keep confidences of exactly 1 in a bin of their own.

    Args:
        probability: (K, *space), the targets' probabilities without the background's; `p[None]` for one target.
        raters: (M, *space), labels: 0 is background, k the k-th target; bool masks do for one target.
        margin: None for the whole image (2024), where background rules; else only the box of all raters' targets
            with so many voxels before and after, cut at the image's border (2025: 20, the last of which its slice
            leaves out, and so does this). Near the border the code of 2025 starts a slice below 0, which is empty
            or elsewhere. The whole image if no rater marked anything.
        top_label: the confidence is the likeliest label's (background in a tie), right if it is the rater's. False:
            it is the one target's own probability.
        bins: 50 in both years.

    Raises:
        ValueError: different grids, labels beyond the targets, out of range, or several targets without top_label.
    """
    p, raters = _probability(probability), np.asarray(raters)
    if p.ndim < 2 or raters.shape[1:] != p.shape[1:] or not (len(p) and len(raters)) or raters.dtype.kind not in "bui":
        raise ValueError(
            f"probability (targets, *space) and raters (raters, *space), of labels, must share a grid, "
            f"not {p.shape} and {raters.shape} {raters.dtype}."
        )
    if int(raters.min(initial=0)) < 0 or int(raters.max(initial=0)) > len(p):
        raise ValueError(f"raters' labels must be 0 to {len(p)}, the number of targets.")
    if not top_label and len(p) > 1:
        raise ValueError("top_label=False is for one target; give them one by one.")
    if margin is not None:
        box = _box(raters != 0, margin)
        p, raters = p[:, *box], raters[:, *box]
    p = p.astype(np.float64)
    everything = np.concatenate([np.maximum(1 - p.sum(axis=0, keepdims=True), 0), p])
    everything = everything / everything.sum(axis=0)
    label, sure = everything.argmax(axis=0), everything.max(axis=0)
    if top_label:
        return float(np.mean([reliability(sure, label == rater, bins).ece for rater in raters]))
    return float(np.mean([reliability(everything[1], rater == 1, bins).ece for rater in raters]))


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """What is gained by keeping only the cases one is sure of.

    Attributes:
        coverage: (cases,) the share kept, 1/n to 1.
        risk: (cases,) the mean risk of those kept.
        area: the mean of `risk` over coverages (AURC), in the risk's unit, less is better.
        least: the area were cases kept in the order of their true risk.
    """

    coverage: np.ndarray
    risk: np.ndarray
    area: float
    least: float

    @property
    def excess(self) -> float:
        """The area above the best order's, 0 or more (E-AURC)."""
        return self.area - self.least


def risk_coverage_area(risk: Float[np.ndarray, " cases"], confidence: Float[np.ndarray, " cases"]) -> RiskCoverage:
    """The risk-coverage curve and its area, cases kept from the most to the least confident.

    Cases of equal confidence stand in no order: each counts with their mean risk, which is the mean over all orders.

    Sources: Geifman and El-Yaniv, NeurIPS 2017 (AURC); Geifman, Uziel, El-Yaniv, ICLR 2019 (E-AURC; here the oracle is
    the sorted risks themselves, not their formula for 0/1 losses).

    Args:
        risk: of each case if it is kept, such as 1 - Dice.
        confidence: higher is surer, of any scale.

    Raises:
        ValueError: other shapes, no case, or not finite.
    """
    risk, confidence = np.asarray(risk, np.float64), np.asarray(confidence, np.float64)
    if risk.ndim != 1 or risk.shape != confidence.shape or not len(risk):
        raise ValueError(f"risk and confidence must be one each a case, not {risk.shape} and {confidence.shape}.")
    if not (np.isfinite(risk).all() and np.isfinite(confidence).all()):
        raise ValueError("risk and confidence must be finite.")
    _, tied = np.unique(-confidence, return_inverse=True)
    fair = (np.bincount(tied, risk) / np.bincount(tied))[tied]
    kept = np.arange(1, len(risk) + 1)
    curve = np.cumsum(fair[np.argsort(tied, kind="stable")]) / kept
    return RiskCoverage(kept / len(risk), curve, float(curve.mean()), float((np.cumsum(np.sort(risk)) / kept).mean()))


def _dice_pairs(samples: np.ndarray, raters: np.ndarray) -> np.ndarray:
    """The Dice of every sample with every rater, (N, M)."""
    n, _, agreement = pairwise_iou(samples, raters)
    iou = agreement[:n, n:]
    return 2 * iou / (1 + iou)


def _flat_dice(one: np.ndarray, other: np.ndarray) -> float:
    return dice(one.reshape(1, -1), other.reshape(1, -1))


def _raters(raters: np.ndarray, space: tuple[int, ...]) -> np.ndarray:
    raters = np.asarray(raters)
    if raters.dtype != np.bool_ or raters.ndim < 1 or not len(raters) or raters.shape[1:] != space:
        raise ValueError(
            f"raters must be bool masks (raters, *{space}), one at least, not {raters.dtype} {raters.shape}."
        )
    return raters


def _probability(probability: np.ndarray) -> np.ndarray:
    p = np.asarray(probability)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities must be in [0, 1]; apply a sigmoid to logits first.")
    return p if np.issubdtype(p.dtype, np.floating) else p.astype(np.float64)


def _box(marked: np.ndarray, margin: int) -> tuple[slice, ...]:
    """Half-open, over all raters: first - margin to last + margin."""
    if margin < 1:
        raise ValueError(f"margin must be 1 or more voxels, not {margin}.")
    places = np.argwhere(marked.any(axis=0))
    if not len(places):
        return tuple(slice(None) for _ in marked.shape[1:])
    first, last = places.min(axis=0), places.max(axis=0)
    return tuple(slice(max(int(a) - margin, 0), int(b) + margin) for a, b in zip(first, last, strict=True))
