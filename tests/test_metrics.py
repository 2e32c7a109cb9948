import math

import numpy as np
import pytest
from scipy import ndimage

from delineate.metrics import (
    Emptiness,
    bootstrap_mean,
    diagonal_mm,
    dice,
    emptiness,
    hd95_mm,
    iou,
    nsd,
    paired_bootstrap,
    score,
    volume_ml,
)

SPACING = (2.0, 1.0, 0.5)


def box(start, stop, shape=(12, 20, 30)):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = True
    return mask


def blob(seed, shape=(16, 24, 20)):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2.5)
    return noise > np.quantile(noise, 0.85)


A, EMPTY = box((2, 3, 4), (8, 13, 24)), box((0, 0, 0), (0, 0, 0))
DIAGONAL = math.sqrt((12 * 2) ** 2 + 20**2 + (30 * 0.5) ** 2)


@pytest.mark.parametrize(
    ("pred", "truth", "case", "expected"),
    [
        (EMPTY, EMPTY, Emptiness.BOTH, (1, 1, 0, 1)),
        (A, EMPTY, Emptiness.TRUTH_EMPTY, (0, 0, DIAGONAL, 0)),
        (EMPTY, A, Emptiness.PREDICTION_EMPTY, (0, 0, DIAGONAL, 0)),
        (A, A, Emptiness.NEITHER, (1, 1, 0, 1)),
    ],
)
def test_conventions_for_empty_masks(pred, truth, case, expected):
    assert emptiness(pred, truth) is case
    alone = dice(pred, truth), iou(pred, truth), hd95_mm(pred, truth, SPACING), nsd(pred, truth, SPACING, 1.0)
    assert alone == pytest.approx(expected)
    together = score(pred, truth, SPACING, 1.0)
    assert tuple(together[key] for key in ("dice", "iou", "hd95_mm", "nsd")) == alone
    assert together["emptiness"] == case.value
    assert together["pred_ml"] == volume_ml(pred, SPACING)


@pytest.mark.parametrize(("axis", "step"), list(enumerate(SPACING)))
def test_a_shifted_box(axis, step):
    by = 2
    B = np.roll(A, by, axis)
    size = (6, 10, 20)[axis]
    assert dice(B, A) == pytest.approx((size - by) / size)
    assert iou(B, A) == pytest.approx((size - by) / (size + by))
    assert hd95_mm(B, A, SPACING) == pytest.approx(by * step)
    assert nsd(B, A, SPACING, by * step) == 1.0
    assert 0 < nsd(B, A, SPACING, by * step * 0.9) < 1


def test_touching_the_border_counts_as_surface():
    full = np.ones((4, 5), bool)
    part = full.copy()
    part[:, 0] = False
    assert hd95_mm(part, full, (1, 3)) == pytest.approx(3)


@pytest.mark.parametrize("seed", range(4))
def test_both_orders_agree_and_spacing_scales(seed):
    P, T = blob(seed), blob(seed + 100)
    for metric, extra in ((dice, ()), (iou, ()), (hd95_mm, (SPACING,)), (nsd, (SPACING, 1.5))):
        assert metric(P, T, *extra) == pytest.approx(metric(T, P, *extra))
        assert metric(P[:, ::-1], T[:, ::-1], *extra) == pytest.approx(metric(P, T, *extra))
    thrice = tuple(3 * step for step in SPACING)
    assert hd95_mm(P, T, thrice) == pytest.approx(3 * hd95_mm(P, T, SPACING))
    assert dice(P, T) == pytest.approx(2 * iou(P, T) / (1 + iou(P, T)))


@pytest.mark.filterwarnings("ignore")  # MONAI's imports
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("flat", [False, True])
def test_equals_monai(seed, flat):
    torch = pytest.importorskip("torch")
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    P, T, spacing = blob(seed), blob(seed + 100), SPACING
    if flat:
        P, T, spacing = P.any(0) & ~P.all(0), T.any(0) & ~T.all(0), SPACING[1:]
    if seed % 2:  # overlapping masks, as in practice
        T = ndimage.binary_dilation(P)
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (P, T)]
    hausdorff = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=list(spacing))
    surface = compute_surface_dice(*tensors, class_thresholds=[1.2], include_background=True, spacing=list(spacing))
    assert hd95_mm(P, T, spacing) == pytest.approx(float(hausdorff), rel=1e-5)
    assert nsd(P, T, spacing, 1.2) == pytest.approx(float(surface), rel=1e-5)


def test_volumes_in_ml():
    assert volume_ml(A, SPACING) == pytest.approx(6 * 10 * 20 * 1.0 / 1000)
    assert score(A[3], A[3], SPACING[1:])["truth_ml"] is None
    assert diagonal_mm((3, 4), (1, 1)) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dice(A.astype(int), A), "must be bool"),
        (lambda: dice(A[:5], A), "same 2-D or 3-D shape"),
        (lambda: hd95_mm(A, A, (1, 1)), "3 positive numbers"),
        (lambda: nsd(A, A, (1, 0, 1), 1.0), "3 positive numbers"),
        (lambda: nsd(A, A, SPACING, -1.0), "tolerance_mm"),
        (lambda: score(A, A, SPACING, -1.0), "tolerance_mm"),
        (lambda: volume_ml(A[0], (1, 1)), "3-D"),
        (lambda: paired_bootstrap([1.0], [1.0, 2.0]), "same subjects"),
        (lambda: bootstrap_mean([np.nan]), "finite"),
        (lambda: bootstrap_mean([]), "at least one"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_bootstrap_has_the_normal_theorys_width():
    values = np.random.default_rng(5).normal(0.8, 0.1, 200)
    mean, low, high = bootstrap_mean(values, resamples=4000)
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert mean == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(half, rel=0.08)
    assert low < mean < high


def test_paired_bootstrap_sees_what_pairing_shows():
    generator = np.random.default_rng(6)
    b = generator.uniform(0.2, 0.9, 40)
    a = b + 0.02 + generator.normal(0, 0.01, 40)
    difference, low, high = paired_bootstrap(a, b)
    assert difference == pytest.approx((a - b).mean())
    assert 0 < low < difference < high
    assert paired_bootstrap(a, b) == (difference, low, high)  # the seed says which resamples
    assert paired_bootstrap(b, b) == (0, 0, 0)
    assert paired_bootstrap(b, a)[0] == pytest.approx(-difference)


def test_rounding_does_not_decide_the_tolerance():
    mask = np.zeros((9, 9), bool)
    mask[3] = True
    assert nsd(np.roll(mask, 2, 0), mask, (0.7, 0.7), 1.4) == 1.0
