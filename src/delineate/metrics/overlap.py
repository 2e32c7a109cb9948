"""How well a mask agrees with the truth, with conventions for empty masks written down. NumPy and SciPy only.

    case                      Dice   IoU   HD95                      NSD
    both empty                1      1     0 mm                      1
    one of the two empty      0      0     the image's diagonal, mm  0

so that every subject has a number: libraries give NaN there, and a missed organ then raises the mean (MONAI
#9095). Report how many subjects fall in each case (`emptiness`), and both means. Between sets of masks
(`ged_squared`, `hm_iou`) two empty ones agree as well: IoU 1, distance 0.

A mask's surface is its voxels with a background neighbour across a face; outside the image is background.
Distances are between centres of surface voxels, not sub-voxel surface elements; spacing is in array order.
"""

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial import KDTree

COLUMNS_AT_ONCE = 2**20  # voxels a matrix product: little memory, and float32 counts to 2^24 exactly


class Emptiness(StrEnum):
    """Which of the two masks have no voxel."""

    BOTH = "both"
    TRUTH_EMPTY = "truth_empty"
    PREDICTION_EMPTY = "prediction_empty"
    NEITHER = "neither"


def emptiness(pred: Bool[np.ndarray, "*space"], truth: Bool[np.ndarray, "*space"]) -> Emptiness:
    """Which of the two masks are empty; `TRUTH_EMPTY` and `PREDICTION_EMPTY` mean that one only."""
    pred, truth = _checked(pred, truth)
    match bool(pred.any()), bool(truth.any()):
        case False, False:
            return Emptiness.BOTH
        case True, False:
            return Emptiness.TRUTH_EMPTY
        case False, True:
            return Emptiness.PREDICTION_EMPTY
        case _:
            return Emptiness.NEITHER


def dice(pred: Bool[np.ndarray, "*space"], truth: Bool[np.ndarray, "*space"]) -> float:
    """2 |P and T| / (|P| + |T|), in [0, 1]; 1 if both are empty."""
    pred, truth = _checked(pred, truth)
    both, total = _count(pred & truth), _count(pred) + _count(truth)
    return 2 * both / total if total else 1.0


def iou(pred: Bool[np.ndarray, "*space"], truth: Bool[np.ndarray, "*space"]) -> float:
    """|P and T| / |P or T|, in [0, 1]; 1 if both are empty."""
    pred, truth = _checked(pred, truth)
    either = _count(pred | truth)
    return _count(pred & truth) / either if either else 1.0


def hd95_mm(pred: Bool[np.ndarray, "*space"], truth: Bool[np.ndarray, "*space"], spacing_mm: Sequence[float]) -> float:
    """The 95th percentile Hausdorff distance in mm: the larger of the two directed ones, as MONAI takes it.

    Each directed one is over the distances from a surface voxel of one mask to the nearest of the other.
    0 if both are empty, the image's diagonal if one is.
    """
    pred, truth = _checked(pred, truth)
    spacing = _spacing(spacing_mm, pred.ndim)
    case = emptiness(pred, truth)
    if case is Emptiness.BOTH:
        return 0.0
    if case is not Emptiness.NEITHER:
        return diagonal_mm(pred.shape, spacing)
    to_truth, to_pred = _surface_distances_mm(pred, truth, spacing)
    return _hd95(to_truth, to_pred)


def nsd(
    pred: Bool[np.ndarray, "*space"],
    truth: Bool[np.ndarray, "*space"],
    spacing_mm: Sequence[float],
    tolerance_mm: float,
) -> float:
    """Normalised surface Dice: the share of both surfaces within `tolerance_mm` of the other one, in [0, 1].

    Nikolov et al., arXiv 1809.04430, with each surface voxel counted once (as MONAI with
    `use_subvoxels=False`). 1 if both masks are empty, 0 if one is.
    """
    pred, truth = _checked(pred, truth)
    spacing = _spacing(spacing_mm, pred.ndim)
    _check_tolerance(tolerance_mm)
    case = emptiness(pred, truth)
    if case is not Emptiness.NEITHER:
        return 1.0 if case is Emptiness.BOTH else 0.0
    return _nsd(*_surface_distances_mm(pred, truth, spacing), tolerance_mm)


def volume_ml(mask: Bool[np.ndarray, "x y z"], spacing_mm: Sequence[float]) -> float:
    """The volume of a 3-D mask in millilitres."""
    mask, _ = _checked(mask, mask)
    if mask.ndim != 3:
        raise ValueError(f"a volume needs a 3-D mask, not one of shape {mask.shape}.")
    return _count(mask) * math.prod(_spacing(spacing_mm, 3)) / 1000


def score(
    pred: Bool[np.ndarray, "*space"],
    truth: Bool[np.ndarray, "*space"],
    spacing_mm: Sequence[float],
    nsd_tolerance_mm: float = 2.0,
) -> dict[str, float | str | None]:
    """Every metric of one pair of 2-D or 3-D masks.

    Args:
        pred: what was outlined.
        truth: what should have been.
        spacing_mm: voxel size along each axis of the arrays, in mm.
        nsd_tolerance_mm: how far off a surface may be and still count for `nsd`.

    Returns:
        dice, iou, hd95_mm, nsd, nsd_tolerance_mm, truth_ml, pred_ml (None for 2-D masks) and emptiness.
    """
    pred, truth = _checked(pred, truth)
    spacing = _spacing(spacing_mm, pred.ndim)
    _check_tolerance(nsd_tolerance_mm)
    case = emptiness(pred, truth)
    if case is Emptiness.NEITHER:
        distances = _surface_distances_mm(pred, truth, spacing)
        hd95, surface_dice = _hd95(*distances), _nsd(*distances, nsd_tolerance_mm)
    else:
        hd95 = hd95_mm(pred, truth, spacing)
        surface_dice = nsd(pred, truth, spacing, nsd_tolerance_mm)
    solid = pred.ndim == 3
    return {
        "dice": dice(pred, truth),
        "iou": iou(pred, truth),
        "hd95_mm": hd95,
        "nsd": surface_dice,
        "nsd_tolerance_mm": float(nsd_tolerance_mm),
        "truth_ml": volume_ml(truth, spacing) if solid else None,
        "pred_ml": volume_ml(pred, spacing) if solid else None,
        "emptiness": case.value,
    }


def ged_squared(
    samples: Bool[np.ndarray, " samples *space"], raters: Bool[np.ndarray, " raters *space"], unbiased: bool = False
) -> float:
    """The squared generalised energy distance of two sets of masks: 2 E d(S, Y) - E d(S, S') - E d(Y, Y').

    d = 1 - IoU, 0 between two empty masks. 0 if both sets hold the same masks in the same shares, at most 2; small
    if samples are as good and as varied as the raters. It depends on the number of samples: state that.

    Sources: Kohl et al., A Probabilistic U-Net, arXiv 1806.05034 (after Székely and Rizzo, 2013). Means run over all
    pairs, a mask with itself included (V-statistic), as in the authors' code.

    Args:
        samples: (N, *space), N masks from a model.
        raters: (M, *space), M masks from people on the same grid.
        unbiased: leave a mask's pair with itself out (U-statistic), as some codes do: for a perfect copy of the
            raters it is below 0.

    Raises:
        ValueError: not bool, no mask, different grids; with `unbiased`, fewer than two masks in a set.
    """
    n, m, agreement = pairwise_iou(samples, raters)
    distance = 1 - agreement
    across, among_samples, among_raters = distance[:n, n:].mean(), distance[:n, :n].mean(), distance[n:, n:].mean()
    if unbiased:
        if min(n, m) < 2:
            raise ValueError(f"unbiased=True needs two samples and two raters at least, not {n} and {m}.")
        among_samples, among_raters = among_samples * n / (n - 1), among_raters * m / (m - 1)
    return float(2 * across - among_samples - among_raters)


def hm_iou(samples: Bool[np.ndarray, " samples *space"], raters: Bool[np.ndarray, " raters *space"]) -> float:
    """The mean IoU of the best one-to-one matching of samples and raters, in [0, 1]; 1 between two empty masks.

    Both sets are repeated to their least common multiple first, so that every mask counts, however many there are
    of the other kind; matching the smaller set alone would be an oracle that grows with the number of samples.

    Source: Kohl et al., A Hierarchical Probabilistic U-Net, arXiv 1905.13077 ("Hungarian-matched IoU").

    Args:
        samples: (N, *space).
        raters: (M, *space).

    Raises:
        ValueError: not bool, no mask, or different grids.
    """
    n, m, agreement = pairwise_iou(samples, raters)
    times = math.lcm(n, m)
    matrix = agreement[:n, n:].repeat(times // n, axis=0).repeat(times // m, axis=1)
    return float(matrix[linear_sum_assignment(matrix, maximize=True)].mean())


def pairwise_iou(samples: np.ndarray, raters: np.ndarray) -> tuple[int, int, np.ndarray]:
    """N, M, and the IoU of every two masks of both sets, samples first, float64 (N + M, N + M)."""
    samples, raters = np.asarray(samples), np.asarray(raters)
    if samples.dtype != np.bool_ or raters.dtype != np.bool_:
        raise ValueError(f"masks must be bool, not {samples.dtype} and {raters.dtype}. Threshold them first.")
    if samples.ndim < 2 or samples.shape[1:] != raters.shape[1:] or not (len(samples) and len(raters)):
        raise ValueError(
            f"samples (N, *space) and raters (M, *space) must share a grid and hold a mask each, "
            f"not {samples.shape} and {raters.shape}."
        )
    masks = np.concatenate([samples.reshape(len(samples), -1), raters.reshape(len(raters), -1)])
    masks = masks[:, masks.any(axis=0)]
    both = np.zeros((len(masks), len(masks)))
    for start in range(0, masks.shape[1], COLUMNS_AT_ONCE):
        part = masks[:, start : start + COLUMNS_AT_ONCE].astype(np.float32)
        both += part @ part.T
    sizes = both.diagonal()
    either = sizes[:, None] + sizes - both
    return len(samples), len(raters), np.divide(both, either, out=np.ones_like(both), where=either > 0)


def diagonal_mm(shape: Sequence[int], spacing_mm: Sequence[float]) -> float:
    """The length of the image's diagonal, over whole voxels, in mm."""
    return math.hypot(*(size * step for size, step in zip(shape, spacing_mm, strict=True)))


def mean_interval(values: Float[np.ndarray, " subjects"]) -> tuple[float, float | None, float | None]:
    """(mean, low, high): the mean over subjects and its 95 % interval by Student's t, which one subject does not have.

    Source: Student, The Probable Error of a Mean, Biometrika 6, 1908. For few subjects (a percentile bootstrap of four
    holds the truth 75 times in a hundred, not 95). Give one value a subject, not one a slice or a structure.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError("values must be one finite number for each subject, at least one subject.")
    mean, count = float(values.mean()), len(values)
    if count == 1:
        return mean, None, None
    from scipy.special import stdtrit  # here, as it takes a while

    half = float(stdtrit(count - 1, 0.975)) * float(values.std(ddof=1)) / math.sqrt(count)
    return mean, mean - half, mean + half


def paired_interval(
    a: Float[np.ndarray, " subjects"], b: Float[np.ndarray, " subjects"]
) -> tuple[float, float | None, float | None]:
    """(difference, low, high): mean of a - b over the same subjects, and its 95 % interval, as `mean_interval`."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a and b must have the same subjects in the same order, not {a.shape} and {b.shape}.")
    return mean_interval(a - b)


def _checked(pred: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    pred, truth = np.asarray(pred), np.asarray(truth)
    if pred.dtype != np.bool_ or truth.dtype != np.bool_:
        raise ValueError(f"masks must be bool, not {pred.dtype} and {truth.dtype}. Threshold them first.")
    if pred.shape != truth.shape or pred.ndim not in (2, 3):
        raise ValueError(f"masks must have the same 2-D or 3-D shape, not {pred.shape} and {truth.shape}.")
    return pred, truth


def _count(mask: np.ndarray) -> int:
    return int(np.count_nonzero(mask))


def _spacing(spacing_mm: Sequence[float], axes: int) -> tuple[float, ...]:
    spacing = tuple(float(step) for step in spacing_mm)
    if len(spacing) != axes or not all(step > 0 and math.isfinite(step) for step in spacing):
        raise ValueError(f"spacing_mm must be {axes} positive numbers, one an axis, not {spacing}.")
    return spacing


def _check_tolerance(tolerance_mm: float) -> None:
    if not tolerance_mm >= 0:
        raise ValueError(f"tolerance_mm must be 0 or more, not {tolerance_mm}.")


def _surface_distances_mm(
    pred: np.ndarray, truth: np.ndarray, spacing_mm: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances from the prediction's surface voxels to the truth's surface, and back."""
    box = ndimage.find_objects((pred | truth).astype(np.uint8))[0]
    pred, truth = pred[box], truth[box]
    pred_surface = pred > ndimage.binary_erosion(pred)
    truth_surface = truth > ndimage.binary_erosion(truth)
    pred_mm = np.argwhere(pred_surface) * np.array(spacing_mm)
    truth_mm = np.argwhere(truth_surface) * np.array(spacing_mm)
    # Trees, not distance transforms: one stray voxel in a corner makes the joint box the whole volume.
    return KDTree(truth_mm).query(pred_mm)[0], KDTree(pred_mm).query(truth_mm)[0]


def _hd95(to_truth: np.ndarray, to_pred: np.ndarray) -> float:
    return float(max(np.percentile(to_truth, 95), np.percentile(to_pred, 95)))


def _nsd(to_truth: np.ndarray, to_pred: np.ndarray, tolerance_mm: float) -> float:
    reach = tolerance_mm + 1e-6  # a nanometre: 5 * 0.7 - 3 * 0.7 is a hair more than 1.4
    near = _count(to_truth <= reach) + _count(to_pred <= reach)
    return near / (len(to_truth) + len(to_pred))
