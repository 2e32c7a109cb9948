"""Several-rater metrics: closed forms, and a test for each fault known in public code.

A fault is written out as a few lines of its own here, so that its number can be seen beside the right one.
"""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from delineate.metrics.overlap import dice, ged_squared, iou
from delineate.metrics.raters import (
    CURVAS_LEVELS,
    CURVAS_MARGIN,
    consensus_dice,
    crps_ensemble,
    crps_gaussian,
    curvas_crps,
    curvas_ece,
    curvas_threshold_dice,
    dice_each,
    dice_match,
    dice_max,
    dice_max_reverse,
    dice_soft,
    risk_coverage_area,
    sample_diversity,
)

LEFT, RIGHT, FULL, NONE = (np.array([bool(int(c)) for c in bits]) for bits in ("1100", "0011", "1111", "0000"))


def ged_squared_u(samples, raters):
    return ged_squared(samples, raters, unbiased=True)


SET_METRICS = (ged_squared_u, dice_max, dice_max_reverse, dice_match, dice_soft)


def sets(*masks):
    return np.stack(masks)


def blobs(count, seed, shape=(14, 16, 18)):
    noise = np.random.default_rng(seed).normal(size=(count, *shape))
    noise = ndimage.gaussian_filter(noise, (0, 2, 2, 2))
    return noise > np.quantile(noise, 0.85)


def flat_dice(one, other):
    return dice(one[None], other[None])


# Sets of masks. Dice of LEFT and RIGHT is 0, of either with FULL 2/3.


@pytest.mark.parametrize(
    ("samples", "raters", "best", "reverse", "match", "diversity"),
    [
        (sets(LEFT, RIGHT), sets(LEFT, RIGHT), 1, 1, 1, 1),
        (sets(LEFT, LEFT), sets(LEFT, RIGHT), 1, 0.5, 0.5, 0),  # plausible, but one opinion is not covered
        (sets(LEFT, RIGHT), sets(FULL), 2 / 3, 2 / 3, 2 / 3, 1),
        (sets(FULL), sets(LEFT, RIGHT, FULL), 1, (2 / 3 + 2 / 3 + 1) / 3, (2 / 3 + 2 / 3 + 1) / 3, 0),
        (sets(NONE, NONE), sets(NONE), 1, 1, 1, 0),
        (sets(NONE, FULL), sets(NONE, NONE), 0.5, 1, 0.5, 1),
        (sets(NONE, NONE), sets(FULL, FULL), 0, 0, 0, 0),
    ],
)
def test_sets_of_masks_by_hand(samples, raters, best, reverse, match, diversity):
    assert dice_max(samples, raters) == pytest.approx(best)
    assert dice_max_reverse(samples, raters) == pytest.approx(reverse)
    assert dice_match(samples, raters) == pytest.approx(match)
    assert dice_match(raters, samples) == pytest.approx(match)
    assert dice_max(raters, samples) == pytest.approx(reverse)
    assert sample_diversity(samples) == pytest.approx(diversity)


masks_of_six = arrays(bool, st.tuples(st.integers(2, 4), st.just(6)))


@given(masks_of_six, masks_of_six)
@settings(deadline=None, max_examples=40)
def test_sets_of_masks_equal_the_definitions(samples, raters):
    def apart(ones, others):
        return [[1 - iou(a[None], b[None]) for b in others] for a in ones]

    def off_diagonal(masks):
        return np.mean([1 - iou(a[None], b[None]) for a, b in itertools.permutations(masks, 2)])

    wanted = 2 * np.mean(apart(samples, raters)) - off_diagonal(samples) - off_diagonal(raters)
    assert ged_squared_u(samples, raters) == pytest.approx(wanted)
    assert sample_diversity(samples) == pytest.approx(off_diagonal(samples))
    pairs = np.array([[flat_dice(s, r) for r in raters] for s in samples])
    assert dice_max(samples, raters) == pytest.approx(pairs.max(axis=1).mean())
    assert dice_max_reverse(samples, raters) == pytest.approx(pairs.max(axis=0).mean())
    assert dice_match(samples, raters) <= min(dice_max(samples, raters), dice_max_reverse(samples, raters)) + 1e-12
    levels = [
        flat_dice(samples.mean(axis=0) > level, raters.mean(axis=0) > level) for level in (0.1, 0.3, 0.5, 0.7, 0.9)
    ]
    assert dice_soft(samples, raters) == pytest.approx(np.mean(levels))
    for measure in SET_METRICS:  # order within a set and flips of space change nothing
        assert measure(samples[::-1, ::-1], raters[::-1, ::-1]) == pytest.approx(measure(samples, raters))


def test_volumes_and_other_spaces():
    samples, raters = blobs(3, 0), blobs(2, 1)
    for measure in SET_METRICS:
        assert measure(samples, raters) == pytest.approx(measure(samples.reshape(3, -1), raters.reshape(2, -1)))


def test_the_u_form_is_below_zero_for_a_copy_of_four_raters():
    """-0.155 where the raters are 0.31 apart: the core is 138 voxels, each has 31 of its own, so IoU = 138 / 200."""
    raters = np.zeros((4, 138 + 4 * 31), bool)
    raters[:, :138] = True
    for i in range(4):
        raters[i, 138 + 31 * i :][:31] = True
    assert ged_squared_u(raters, raters) == pytest.approx(-0.155)
    assert ged_squared(raters, raters) == pytest.approx(0, abs=1e-12)


def test_the_u_form_does_not_depend_on_how_many_samples_are_drawn():
    generator = np.random.default_rng(0)
    pool, raters = sets(LEFT, RIGHT, FULL), sets(LEFT, FULL, RIGHT)
    few, many = (
        np.array(
            [
                (ged_squared_u(s, raters), ged_squared(s, raters))
                for s in (pool[generator.integers(3, size=n)] for _ in range(600))
            ]
        )
        for n in (2, 8)
    )
    slack = 4 * few[:, 0].std() / math.sqrt(600)
    assert few[:, 0].mean() == pytest.approx(many[:, 0].mean(), abs=slack)
    assert few[:, 1].mean() > many[:, 1].mean() + slack  # the V form does


def test_two_empty_masks_agree():
    """D-Persona's and PULASki's IoU, a small constant in its denominator only, sets them 1 apart."""

    def faulty(one, other):
        return 1 - (one & other).sum() / ((one | other).sum() + 1e-8)

    def faulty_ged(samples, raters):  # their V-statistic
        pairs = [(samples, raters), (samples, samples), (raters, raters)]
        across, among, between = (np.mean([faulty(a, b) for a in x for b in y]) for x, y in pairs)
        return 2 * across - among - between

    samples, raters = sets(NONE, NONE), sets(FULL, FULL)
    assert faulty_ged(samples, raters) == pytest.approx(1)
    assert ged_squared_u(samples, raters) == ged_squared(samples, raters) == 2
    assert sample_diversity(samples) == 0
    assert faulty(NONE, NONE) == 1


def test_matching_is_no_oracle():
    """Matching the two sets as they are takes the best of many samples: it can only grow with their number."""
    raters = sets(LEFT, RIGHT)
    lucky = sets(LEFT, RIGHT, NONE, NONE, NONE, NONE)
    assert dice_max_reverse(lucky, raters) == 1  # as rectangular matching gives
    assert dice_match(lucky, raters) == pytest.approx(2 / 6)
    assert dice_match(raters[:1], raters) == pytest.approx(0.5)  # fewer samples than raters: no index beyond the end


def test_the_diagonal_is_the_diagonal():
    """D-Persona's `Dice_each` is that of the best assignment: heads that were swapped look perfect."""
    raters = sets(LEFT, RIGHT, FULL)
    assert dice_each(raters, raters).tolist() == [1, 1, 1]
    swapped = raters[[1, 0, 2]]
    assert dice_each(swapped, raters).tolist() == [0, 0, 1]
    assert dice_match(swapped, raters) == 1


def test_soft_dice_by_hand():
    samples = sets(LEFT, FULL)  # means 1, 1, 1/2, 1/2
    raters = sets(LEFT, LEFT)  # 1, 1, 0, 0
    # above .1 and .3 all four against two; 1/2 is not above 1/2, so the same two from there on
    assert dice_soft(samples, raters) == pytest.approx((2 / 3 + 2 / 3 + 1 + 1 + 1) / 5)
    assert dice_soft(sets(NONE), sets(NONE)) == 1
    assert dice_soft(sets(NONE), sets(FULL)) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_mean_equal_to_a_level_is_not_above_it(dtype):
    raters = np.zeros((10, 8), bool)
    raters[:3] = True  # mean 0.3
    samples = np.full((7, 8), 0.3)
    assert np.float64(np.float32(0.3)) > 0.3
    assert dice_soft(samples.astype(dtype), raters, levels=(0.3,)) == 1  # both empty
    assert dice_soft(samples.astype(dtype), raters, levels=(0.29,)) == 1  # both full


def test_curvas_thresholded_dice():
    assert pytest.approx([0.1, 0.24, 0.38, 0.52, 0.66, 0.8]) == CURVAS_LEVELS
    raters = np.stack([FULL] * 4 + [LEFT])
    probability = np.array([1.0, 1.0, 0.5, 0.5])
    # .1, .24, .38: all four each; .52, .66: two against four; 4/5 is not above .8: two each
    assert curvas_threshold_dice(probability, raters) == pytest.approx((1 + 1 + 1 + 2 / 3 + 2 / 3 + 1) / 6)
    assert curvas_threshold_dice(np.zeros(4), sets(NONE, NONE)) == 1  # not 0: CURVAS says so too
    assert curvas_threshold_dice(raters.mean(axis=0), raters) == 1


# Volumes


def integral(distribution, value, low, high, steps=200_001):
    x = np.linspace(low, high, steps)
    return np.trapezoid((distribution(x) - (x >= value)) ** 2, x)


@pytest.mark.parametrize(("mean", "sd", "value"), [(0, 1, 0), (110, 8, 135), (5, 2, -3), (1, 0.1, 1.05)])
def test_crps_gaussian_is_its_integral(mean, sd, value):
    def normal(x):
        return 0.5 * (1 + np.vectorize(math.erf)((x - mean) / sd / math.sqrt(2)))

    low, high = min(mean - 9 * sd, value - 1), max(mean + 9 * sd, value + 1)
    assert crps_gaussian(mean, sd, value) == pytest.approx(integral(normal, value, low, high, 20_001), rel=2e-3)
    assert crps_gaussian(0, 1, 0) == pytest.approx((math.sqrt(2) - 1) / math.sqrt(math.pi))


@given(
    arrays(float, st.integers(1, 6), elements=st.floats(-50, 50)),
    st.floats(-60, 60),
    st.floats(0.1, 10),
    st.floats(-20, 20),
)
@settings(deadline=None, max_examples=40)
def test_crps_of_an_ensemble(members, value, scale, shift):
    def steps(x):
        return np.searchsorted(np.sort(members), x, side="right") / len(members)

    crps = crps_ensemble(members, value)
    assert crps == pytest.approx(integral(steps, value, -70, 70, 40_001), abs=0.02)
    assert -1e-12 <= crps <= np.abs(members - value).max() + 1e-9
    assert crps_ensemble(scale * members + shift, scale * value + shift) == pytest.approx(scale * crps, abs=1e-9)
    assert crps_ensemble(np.repeat(members, 3), value) == pytest.approx(crps)
    assert crps_ensemble(np.array([value]), shift) == pytest.approx(abs(value - shift))


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.floats(-1e6, 1e6))
@settings(deadline=None)
def test_crps_gaussian_is_even_and_not_negative(mean, sd, value):
    crps = crps_gaussian(mean, sd, value)
    assert crps == pytest.approx(crps_gaussian(value, sd, mean))
    assert -1e-9 <= crps <= abs(mean - value) + sd


def test_a_large_ensemble_is_its_gaussian():
    members = np.random.default_rng(1).normal(40, 3, 1500)
    for value in (30, 40, 44):
        assert crps_ensemble(members, value) == pytest.approx(crps_gaussian(40, 3, value), abs=0.15)


def test_crps_does_not_saturate():
    """CURVAS integrates within three standard deviations, with F from a table that ends at the 1 and 99 % quantiles."""
    volumes = np.array([100.0, 110.0, 120.0])
    mean, sd = volumes.mean(), volumes.std()
    table = mean + sd * np.linspace(-2.3263478740408408, 2.3263478740408408, 100)
    cdf = np.array([0.5 * (1 + math.erf((x - mean) / sd / math.sqrt(2))) for x in table])

    def faulty(value):
        return integral(lambda x: np.interp(x, table, cdf, left=0, right=1), value, mean - 3 * sd, mean + 3 * sd)

    for value, right in ((135, 20.4), (200, 85.4), (1000, 885.4)):
        assert faulty(value) == pytest.approx(19.94, abs=0.01)
        assert crps_gaussian(mean, sd, value) == pytest.approx(right, abs=0.05)


def test_curvas_crps_in_ml():
    raters = np.zeros((3, 10, 10, 10), bool)
    for rater, voxels in zip(raters, (100, 110, 120), strict=True):
        rater.reshape(-1)[:voxels] = True
    probability = np.full((10, 10, 10), 0.135, np.float32)  # sums to 135, though no voxel would be marked
    spacing = (2.0, 5.0, 1.0)  # 0.01 ml a voxel
    wanted = crps_gaussian(110, math.sqrt(200 / 3), 135) / 100
    assert curvas_crps(probability, raters, spacing) == pytest.approx(wanted, rel=1e-5)
    assert wanted == pytest.approx(0.204, abs=0.0005)
    agreed = raters[[1, 1, 1]]
    assert curvas_crps(probability, agreed, spacing) == pytest.approx(0.25, rel=1e-5)  # CURVAS: NaN for sigma = 0
    assert curvas_crps(agreed[0].astype(float), agreed, spacing) == 0
    assert curvas_crps(np.zeros((10, 10, 10)), np.zeros_like(raters), spacing) == 0


def test_a_missing_class_does_not_take_the_next_ones_volume():
    """CURVAS counts class k as np.unique(labels, return_counts=True)[1][k]."""
    labels = np.zeros((3, 6, 6, 6), np.uint8)
    labels[:, 0] = 1
    labels[:, 1:3] = 3  # and no 2
    assert np.unique(labels[0], return_counts=True)[1][2] == 72  # class 3's
    assert curvas_crps(np.zeros((6, 6, 6)), labels == 2, (10, 10, 10)) == 0
    assert curvas_crps(np.zeros((6, 6, 6)), labels == 3, (10, 10, 10)) == pytest.approx(72)


# Consensus and calibration


def rows_as_batch(pred, truth):
    """What a metric makes of (D, H, W) as (batch, channel, W): Dice of rows, the first dropped, where truth has any."""
    pred, truth = pred[:, 1:], truth[:, 1:]
    both, total = (pred & truth).sum(axis=-1), pred.sum(axis=-1) + truth.sum(axis=-1)
    rows = truth.any(axis=-1)
    return float((2 * both[rows] / total[rows]).mean())


def test_consensus_dice_is_that_of_the_volume():
    """A perfect organ and a slab of false voxels: .952 by rows, .465 in truth."""
    organ = np.zeros((88, 100, 100), bool)
    organ[:55, 20:75, 20:75] = True
    pred = organ.copy()
    pred[46:87] = True
    raters = organ[None].repeat(3, axis=0)
    assert rows_as_batch(pred, organ) == pytest.approx(0.952, abs=0.0006)
    assert consensus_dice(pred, raters) == pytest.approx(0.465, abs=0.0006)
    assert consensus_dice(pred, raters) == pytest.approx(dice(pred, organ))


def test_only_where_all_raters_agree():
    raters = np.array([[[1, 1, 1, 0, 0]], [[1, 1, 0, 1, 0]], [[1, 1, 0, 0, 0]]], bool)
    pred = np.array([[1, 0, 1, 1, 1]], bool)
    assert consensus_dice(pred, raters) == pytest.approx(2 * 1 / (2 + 2))  # of columns 0, 1 and 4
    pred[0, 2:4] = False
    assert consensus_dice(pred, raters) == pytest.approx(0.5)
    assert consensus_dice(~raters[0], np.stack([raters[0], ~raters[0]])) == 1  # nothing is agreed on: both empty


def slow_ece(confidence, correct, bins=50):
    gap = 0.0
    for k in range(bins):
        held = (confidence >= k / bins) & ((confidence < (k + 1) / bins) | ((k == bins - 1) & (confidence == 1)))
        if held.any():
            gap += held.mean() * abs(correct[held].mean() - confidence[held].mean())
    return gap


@pytest.mark.parametrize("seed", range(3))
def test_curvas_ece_by_loops(seed):
    generator = np.random.default_rng(seed)
    p = generator.dirichlet(np.ones(4), (5, 6, 7)).transpose(3, 0, 1, 2)[1:]  # three targets, background left out
    raters = generator.integers(0, 4, (3, 5, 6, 7))
    everything = np.concatenate([1 - p.sum(axis=0, keepdims=True), p])
    wanted = [slow_ece(everything.max(axis=0).ravel(), (everything.argmax(axis=0) == r).ravel()) for r in raters]
    assert curvas_ece(p, raters) == pytest.approx(np.mean(wanted))
    one = raters == 1
    wanted = np.mean([slow_ece(p[0].ravel(), r.ravel()) for r in one])
    assert curvas_ece(p[:1], one, top_label=False) == pytest.approx(wanted)


def test_ece_of_a_sure_map_is_its_share_of_errors():
    raters = np.array([[[True, True, False, False]], [[True, False, False, False]]])
    assert curvas_ece(raters[:1].astype(float), raters) == pytest.approx((0 + 1 / 4) / 2)
    assert curvas_ece(raters[:1].astype(float), raters, top_label=False) == pytest.approx((0 + 1 / 4) / 2)
    half = np.full((1, 1, 4), 0.5)  # a tie is background, right for 2 and 3 of 4
    assert curvas_ece(half, raters) == pytest.approx((0 + 0.25) / 2)


def test_background_a_hair_below_zero_is_no_logit():
    """1 - sum may be -1e-8; the metric that CURVAS calls then applies a softmax to every probability."""
    raters = np.zeros((1, 4, 5), np.uint8)
    raters[0, :2] = 1
    p = np.stack([raters[0] == 1, np.zeros((4, 5), bool)]).astype(np.float64)
    before = curvas_ece(p, raters)
    p[1, 0, 0] = 1e-7
    assert p.sum(axis=0).max() > 1
    assert curvas_ece(p, raters) == pytest.approx(before, abs=1e-6)
    everything = np.exp(np.concatenate([1 - p.sum(axis=0, keepdims=True), p]))
    softmax = everything / everything.sum(axis=0)
    assert slow_ece(softmax.max(axis=0).ravel(), (softmax.argmax(axis=0) == raters[0]).ravel()) > 0.4


def test_the_box_of_2025():
    generator = np.random.default_rng(2)
    shape = (64, 70, 50)
    raters = np.zeros((2, *shape), bool)
    raters[0, 3:8, 30:33, 40:49] = True
    raters[1, 5:10, 28:31, 45:50] = True
    p = generator.random((1, *shape))
    box = (slice(0, 9 + 20), slice(28 - 20, 32 + 20), slice(40 - 20, 50))
    cropped = curvas_ece(p[:, *box], raters[:, *box])
    assert curvas_ece(p, raters, margin=CURVAS_MARGIN) == pytest.approx(cropped)
    assert curvas_ece(p, raters) != pytest.approx(cropped)
    assert p[0, 3 - 20 : 9 + 20].size == 0  # a start below 0, as the code of 2025 has it, leaves nothing
    nobody = np.zeros_like(raters)
    assert curvas_ece(p, nobody, margin=CURVAS_MARGIN) == curvas_ece(p, nobody)


def test_background_hides_errors_from_the_whole_image():
    raters = np.zeros((1, 60, 60), bool)
    raters[0, 28:32, 28:32] = True
    missed = np.zeros((1, 60, 60))
    assert curvas_ece(missed, raters) == pytest.approx(16 / 3600)
    assert curvas_ece(missed, raters, margin=2) == pytest.approx(16 / 49)  # 26 to 33: the last voxel is left out


# Risk and coverage


@pytest.mark.parametrize(
    ("risk", "confidence", "area", "least"),
    [
        ([0, 1], [2, 1], 0.25, 0.25),
        ([0, 1], [1, 2], 0.75, 0.25),
        ([0, 1], [1, 1], 0.5, 0.25),
        ([0, 0, 1, 1], [4, 3, 2, 1], (0 + 0 + 1 / 3 + 1 / 2) / 4, (1 / 3 + 1 / 2) / 4),
        ([0.3], [7], 0.3, 0.3),
    ],
)
def test_risk_coverage_by_hand(risk, confidence, area, least):
    kept = risk_coverage_area(np.array(risk, float), np.array(confidence, float))
    assert (kept.area, kept.least, kept.excess) == pytest.approx((area, least, area - least))
    assert kept.coverage[-1] == 1
    assert kept.risk[-1] == pytest.approx(np.mean(risk))


cases = st.integers(1, 5).flatmap(
    lambda n: st.tuples(arrays(float, n, elements=st.floats(0, 1)), arrays(float, n, elements=st.integers(0, 3)))
)


@given(cases)
@settings(deadline=None, max_examples=40)
def test_ties_are_the_mean_over_all_orders(case):
    risk, confidence = case
    orders = [
        order for order in itertools.permutations(range(len(risk))) if (np.diff(confidence[list(order)]) <= 0).all()
    ]
    areas = [np.mean([risk[list(order[:k])].mean() for k in range(1, len(risk) + 1)]) for order in orders]
    kept = risk_coverage_area(risk, confidence)
    assert kept.area == pytest.approx(np.mean(areas))
    assert kept.excess >= -1e-12
    assert risk_coverage_area(risk, np.exp(confidence)).area == pytest.approx(kept.area)
    assert risk_coverage_area(risk, -risk).excess == pytest.approx(0, abs=1e-12)


P, Y = np.zeros((1, 3, 4)), np.zeros((2, 3, 4), bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ged_squared_u(P[0][None] > 0, Y), "two samples and two raters at least"),
        (lambda: dice_max(P, Y), "must be bool"),
        (lambda: dice_match(Y, Y[:, :2]), "share a grid"),
        (lambda: dice_each(Y, Y[:1]), "as many are needed, not 2 and 1"),
        (lambda: dice_soft(P + 2, Y), r"in \[0, 1\]"),
        (lambda: dice_soft(P, Y[:0]), "one at least"),
        (lambda: dice_soft(P, P), "raters must be bool"),
        (lambda: sample_diversity(Y[:0]), "hold a mask each"),
        (lambda: crps_ensemble(np.array([]), 0.0), "one at least"),
        (lambda: crps_ensemble(np.array([1.0]), math.nan), "finite"),
        (lambda: crps_gaussian(0, -1, 0), "sd 0 or more"),
        (lambda: curvas_crps(P[0], Y, (1, 1)), "3-D"),
        (lambda: curvas_crps(P, Y[:, None], (1, 1, 0)), "3 positive steps"),
        (lambda: consensus_dice(P[0], Y), "must be bool"),
        (lambda: curvas_ece(P, Y[0]), "share a grid"),
        (lambda: curvas_ece(P, Y.astype(float)), "of labels"),
        (lambda: curvas_ece(P, Y + 2), "0 to 1"),
        (lambda: curvas_ece(P, Y + np.int8(-1)), "0 to 1"),
        (lambda: curvas_ece(P - 1, Y), "sigmoid"),
        (lambda: curvas_ece(np.concatenate([P, P]), Y, top_label=False), "one target"),
        (lambda: curvas_ece(P, Y, margin=0), "1 or more voxels"),
        (lambda: risk_coverage_area(np.zeros(2), np.zeros(3)), "one each a case"),
        (lambda: risk_coverage_area(np.array([np.nan]), np.zeros(1)), "finite"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
