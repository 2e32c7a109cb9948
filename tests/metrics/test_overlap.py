import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage, stats

from delineate.metrics import overlap as metrics
from delineate.metrics.overlap import (
    Emptiness,
    diagonal_mm,
    dice,
    emptiness,
    ged_squared,
    hd95_mm,
    hm_iou,
    iou,
    mean_interval,
    nsd,
    paired_interval,
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
        (lambda: ged_squared(HALVES.astype(float), HALVES), "must be bool"),
        (lambda: ged_squared(HALVES, HALVES[:, :3]), r"share a grid .* not \(2, 4\) and \(2, 3\)"),
        (lambda: ged_squared(HALVES[:0], HALVES), "hold a mask each"),
        (lambda: ged_squared(HALVES[:1], HALVES, unbiased=True), "two samples and two raters at least, not 1 and 2"),
        (lambda: hm_iou(HALVES[0], HALVES[1]), r"\(4,\) and \(4,\)"),
        (lambda: paired_interval([1.0], [1.0, 2.0]), "same subjects"),
        (lambda: mean_interval([np.nan]), "finite"),
        (lambda: mean_interval([]), "at least one"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# Sets of masks. IoU of LEFT and RIGHT is 0, of either with FULL 1/2.

LEFT, RIGHT, FULL, NONE = (np.array([bool(int(c)) for c in bits]) for bits in ("1100", "0011", "1111", "0000"))
HALVES = np.stack([LEFT, RIGHT])


def sets(*masks):
    return np.stack(masks)


@pytest.mark.parametrize(
    ("samples", "raters", "biased", "unbiased", "matched"),
    [
        # 2 · 1/2 - 1/2 - 0: among two halves half of all pairs, or every pair of two, are 1 apart
        (sets(LEFT, RIGHT), sets(FULL, FULL), 0.5, 0.0, 0.5),
        (sets(LEFT, RIGHT), sets(LEFT, RIGHT), 0.0, -1.0, 1.0),  # 2 · 1/2 - 1 - 1 without i = j
        (sets(LEFT, LEFT), sets(RIGHT, RIGHT), 2.0, 2.0, 0.0),
        (sets(LEFT, LEFT), sets(LEFT, RIGHT), 0.5, 0.0, 0.5),
        (sets(NONE, NONE), sets(NONE, NONE), 0.0, 0.0, 1.0),
        (sets(NONE, NONE), sets(FULL, FULL), 2.0, 2.0, 0.0),
        (sets(NONE, FULL), sets(NONE, NONE), 0.5, 0.0, 0.5),
        # three samples, two raters: 2 (0 + 1 + 1 + 0 + 1/2 + 1/2) / 6 - 2 (1 + 1/2 + 1/2) / 9 - 1/2; by hand
        (sets(LEFT, RIGHT, FULL), sets(LEFT, RIGHT), 1 - 4 / 9 - 1 / 2, 1 - 2 / 3 - 1, (2 + 2 + 2 * 0.5) / 6),
    ],
)
def test_sets_of_masks_by_hand(samples, raters, biased, unbiased, matched):
    assert ged_squared(samples, raters) == pytest.approx(biased)
    assert ged_squared(samples, raters, unbiased=True) == pytest.approx(unbiased)
    assert hm_iou(samples, raters) == pytest.approx(matched)
    assert ged_squared(raters, samples) == pytest.approx(biased)
    assert hm_iou(raters, samples) == pytest.approx(matched)


def test_one_sample_and_one_rater_are_twice_one_minus_iou():
    P, T = blob(0), blob(1)
    assert ged_squared(P[None], T[None]) == pytest.approx(2 * (1 - iou(P, T)))
    assert hm_iou(P[None], T[None]) == pytest.approx(iou(P, T))


def test_repeating_a_set_changes_neither():
    samples, raters = np.stack([blob(k) for k in range(3)]), np.stack([blob(k) for k in range(10, 12)])
    for measure in (ged_squared, hm_iou):
        once = measure(samples, raters)
        assert measure(samples.repeat(4, axis=0), raters) == pytest.approx(once)
        assert measure(samples[::-1], raters[::-1]) == pytest.approx(once)


def test_every_sample_counts_in_the_matching():
    """Not the best one for each rater alone: that would only grow with the number of samples."""
    raters = sets(LEFT, RIGHT)
    assert hm_iou(sets(LEFT, RIGHT, NONE, NONE), raters) == pytest.approx(0.5)


masks_of_six = arrays(bool, st.tuples(st.integers(1, 5), st.just(6)))


@given(masks_of_six, masks_of_six)
@settings(deadline=None, max_examples=60)
def test_sets_of_masks_equal_the_definitions(samples, raters):
    def apart(ones, others):
        return np.mean([1 - iou(a[None], b[None]) for a in ones for b in others])

    wanted = 2 * apart(samples, raters) - apart(samples, samples) - apart(raters, raters)
    assert ged_squared(samples, raters) == pytest.approx(wanted)
    assert -1e-12 <= ged_squared(samples, raters) <= 2
    assert ged_squared(samples, samples) == pytest.approx(0, abs=1e-12)
    assert hm_iou(samples, samples) == pytest.approx(1)
    best = np.mean([max(iou(s[None], r[None]) for s in samples) for r in raters])
    assert hm_iou(samples, raters) <= best + 1e-12  # an oracle is never below it


def test_large_masks_are_taken_in_parts(monkeypatch):
    samples, raters = np.stack([blob(k) for k in range(4)]), np.stack([blob(k) for k in range(4, 7)])
    whole = ged_squared(samples, raters)
    monkeypatch.setattr(metrics, "COLUMNS_AT_ONCE", 100)
    assert ged_squared(samples, raters) == whole


def test_of_one_subject_there_is_no_interval():
    assert mean_interval([0.8]) == (0.8, None, None)


@pytest.mark.parametrize("subjects", [3, 4, 10])
def test_an_interval_of_few_subjects_holds_the_truth_as_often_as_it_says(subjects):
    generator = np.random.default_rng(0)
    drawn = [mean_interval(generator.normal(0.5, 0.1, subjects)) for _ in range(2000)]
    assert np.mean([low <= 0.5 <= high for _, low, high in drawn]) == pytest.approx(0.95, abs=0.02)


def test_an_interval_is_that_of_scipy():
    values = np.random.default_rng(1).uniform(0.2, 0.9, 7)
    wanted = stats.t.interval(0.95, 6, values.mean(), stats.sem(values))
    assert mean_interval(values)[1:] == pytest.approx(wanted)


def test_paired_interval_sees_what_pairing_shows():
    generator = np.random.default_rng(6)
    b = generator.uniform(0.2, 0.9, 40)
    a = b + 0.02 + generator.normal(0, 0.01, 40)
    difference, low, high = paired_interval(a, b)
    assert difference == pytest.approx((a - b).mean())
    assert 0 < low < difference < high
    assert paired_interval(b, b) == (0, 0, 0)
    assert paired_interval(b, a)[0] == pytest.approx(-difference)


def test_rounding_does_not_decide_the_tolerance():
    mask = np.zeros((9, 9), bool)
    mask[3] = True
    assert nsd(np.roll(mask, 2, 0), mask, (0.7, 0.7), 1.4) == 1.0
