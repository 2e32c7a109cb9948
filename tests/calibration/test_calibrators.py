import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit, logit

from delineate.calibration import calibrators as calibration
from delineate.calibration.calibrators import (
    CALIBRATORS,
    CLIP,
    Beta,
    Identity,
    Temperature,
    auroc,
    brier,
    from_json,
    histogram,
    nll,
    reliability,
    roc,
    threshold_for_false_alarms,
    to_json,
)
from delineate.errors import ModelError

GRID = np.linspace(0.001, 0.999, 999)


def population(true):
    """(truth, weight) as if each true probability came up endlessly often: no noise, so fits are exact."""
    return np.repeat([True, False], len(true)), np.concatenate([true, 1 - true])


def twice(values):
    return np.concatenate([values, values])


# Measures


def test_ece_and_mce_by_hand():
    p = np.array([0.1, 0.1, 0.1, 0.1, 0.7, 0.9, 1.0])
    y = np.array([False, False, False, True, True, True, False])
    seen = reliability(p, y, bins=2)
    assert seen.count.tolist() == [4, 3]
    assert seen.confidence == pytest.approx([0.1, 2.6 / 3])
    assert seen.frequency == pytest.approx([1 / 4, 2 / 3])
    assert seen.ece == pytest.approx((4 * 0.15 + 3 * 0.2) / 7)
    assert seen.mce == pytest.approx(0.2)


def test_bins_are_closed_below_and_the_last_one_above():
    p = np.array([0.0, 0.29, 0.3, 0.6, 1.0])
    assert reliability(p, p > 0.5, bins=10).count.tolist() == [1, 1, 1, 1, 1]  # 0.29 and 0.3 apart, empty ones left out
    assert reliability(p, p > 0.5, bins=1).count.tolist() == [5]


def test_equal_mass_bins():
    p = np.sort(np.random.default_rng(0).random(100))
    assert reliability(p, p > 0.5, bins=10, adaptive=True).count.tolist() == [10] * 10
    votes = np.array([0.0] * 3 + [1.0])  # ties stay together, in bins of their own
    assert reliability(votes, votes == 1, bins=2, adaptive=True).count.tolist() == [3, 1]
    assert reliability(1 - votes, votes == 0, bins=2, adaptive=True).count.tolist() == [1, 3]
    assert reliability(np.full(9, 0.4), np.arange(9) < 4, bins=5, adaptive=True).ece == pytest.approx(abs(4 / 9 - 0.4))


@given(arrays(float, st.integers(1, 30), elements=st.floats(0, 1)), st.integers(1, 20), st.booleans(), st.data())
@settings(deadline=None, max_examples=60)
def test_measures_of_any_data(p, bins, adaptive, data):
    y = data.draw(arrays(bool, len(p)))
    seen = reliability(p, y, bins, adaptive)
    assert seen.count.sum() == len(p)
    assert (seen.count > 0).all()
    assert len(seen.count) <= bins
    assert (np.diff(seen.confidence) >= -1e-12).all()
    assert seen.count @ seen.frequency == pytest.approx(y.sum())
    assert abs(p.mean() - y.mean()) - 1e-9 <= seen.ece <= seen.mce + 1e-9 <= 1 + 2e-9
    order = np.random.default_rng(0).permutation(len(p))
    assert reliability(p[order], y[order], bins, adaptive).ece == pytest.approx(seen.ece)
    times = data.draw(arrays(int, len(p), elements=st.integers(1, 3)))
    often = reliability(p.repeat(times), y.repeat(times), bins, adaptive)
    weighted = reliability(p, y, bins, adaptive, weight=times.astype(float))
    assert (often.ece, often.mce) == pytest.approx((weighted.ece, weighted.mce))
    for measure in (brier, nll):
        assert measure(p.repeat(times), y.repeat(times)) == pytest.approx(measure(p, y, times.astype(float)))
    assert brier(p, y) <= 1
    assert nll(p, y) == pytest.approx(nll(1 - p, ~y), rel=1e-6)


def test_brier_and_nll_in_closed_form():
    y = np.array([True, False, True])
    assert brier(np.full(3, 0.5), y) == 0.25
    assert nll(np.full(3, 0.5), y) == pytest.approx(math.log(2))
    assert brier(y.astype(float), y) == 0
    assert nll(y.astype(float), y) == pytest.approx(CLIP)
    assert nll(1 - y.astype(float), y) == pytest.approx(-math.log(CLIP))  # finite
    truth, weight = population(GRID)
    entropy = -(GRID * np.log(GRID) + (1 - GRID) * np.log(1 - GRID)).mean()
    assert nll(twice(GRID), truth, weight) == pytest.approx(entropy)
    assert brier(twice(GRID), truth, weight) == pytest.approx((GRID * (1 - GRID)).mean())
    assert reliability(twice(GRID), truth, weight=weight).ece == pytest.approx(0, abs=1e-12)


def test_maps_of_any_shape():
    p = np.random.default_rng(0).random((3, 4, 5)).astype(np.float32)
    assert reliability(p, p > 0.5).ece == reliability(p.ravel(), p.ravel() > 0.5).ece


# Calibrators

EXAMPLES = [Identity(), Temperature(0.4), Temperature(3.0), Beta(1.0, 1.0, 0.0), Beta(0.3, 2.0, -1.0), Beta(0, 0, 0.5)]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.2])
def test_a_temperature_is_recovered(temperature):
    truth, weight = population(GRID)
    distorted = twice(expit(temperature * logit(GRID)))
    fitted = Temperature.fit(distorted, truth, weight)
    assert fitted.temperature == pytest.approx(temperature, rel=1e-5)
    assert fitted(distorted) == pytest.approx(twice(GRID), abs=1e-5)
    assert reliability(fitted(distorted), truth, weight=weight).ece < 1e-5


@pytest.mark.parametrize(("a", "b", "c"), [(1, 1, 0), (0.5, 2.0, 0.7), (3, 0.4, -1.5), (0.8, 0, 0.2)])
def test_a_beta_map_is_recovered(a, b, c):
    """Whatever p is said for what is true with probability Beta(a, b, c)(p)."""
    truth, weight = population(Beta(a, b, c)(GRID))
    fitted = Beta.fit(twice(GRID), truth, weight)
    assert (fitted.a, fitted.b, fitted.c) == pytest.approx((a, b, c), abs=2e-3)
    assert fitted(GRID) == pytest.approx(Beta(a, b, c)(GRID), abs=1e-4)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_calibrated_data_stay(name):
    truth, weight = population(GRID)
    assert CALIBRATORS[name].fit(twice(GRID), truth, weight)(GRID) == pytest.approx(GRID, abs=1e-4)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_a_fit_is_never_worse_than_leaving_it(name):
    generator = np.random.default_rng(3)
    p = generator.beta(0.4, 0.9, 3000)
    p[:200], p[200:300] = 0, 1  # exact ones, some of them wrong
    y = generator.random(3000) < 0.1 + 0.6 * p**2
    fitted = CALIBRATORS[name].fit(p, y)
    assert nll(fitted(p), y) <= nll(p, y) + 1e-12
    if name == "beta":
        assert reliability(fitted(p), y).ece < reliability(p, y).ece
        # and no direction is better
        best = nll(fitted(p), y)
        for step in np.concatenate([np.eye(3), -np.eye(3)]) * 0.01:
            near = np.array([fitted.a, fitted.b, fitted.c]) + step
            assert nll(Beta(*near)(p), y) >= best


@pytest.mark.parametrize("made", [Temperature, Beta])
def test_votes_are_no_probabilities_of_zero_and_one(made):
    """One wrong vote of 0 in 20 must not bend the whole map: what the module's docstring advises, and why."""
    k = np.arange(21)
    true = np.concatenate([[0.02], 0.1 + 0.04 * k[1:-1], [0.97]])
    truth, weight = population(true)

    def ece_of(p):
        fitted = made.fit(twice(p), truth, weight)
        return np.abs(fitted(p) - true).mean()

    assert ece_of((k + 0.5) / 21) < ece_of(k / 20) / 1.5


def test_what_points_the_wrong_way_is_held_flat_not_turned_round():
    """a and b stay at 0 or more: a score that falls where truth rises says nothing, and keeps its order."""
    truth, weight = population(1 - GRID)
    fitted = Beta.fit(twice(GRID), truth, weight)
    assert (fitted.a, fitted.b) == pytest.approx((0, 0), abs=1e-6)
    assert fitted(GRID) == pytest.approx(np.full(999, 0.5), abs=1e-5)
    assert Temperature.fit(twice(GRID), truth, weight).temperature == pytest.approx(100, rel=1e-3)


def test_separable_data_stay_finite():
    p, y = np.array([0.2, 0.4, 0.6, 0.8]), np.array([False, False, True, True])
    assert Temperature.fit(p, y).temperature == pytest.approx(0.01, rel=1e-3)
    fitted = Beta.fit(p, y)
    assert np.isfinite([fitted.a, fitted.b, fitted.c]).all()
    assert nll(fitted(p), y) < 0.01


@given(
    arrays(float, st.integers(2, 20), elements=st.floats(0, 1)),
    st.one_of(
        st.just(Identity()),
        st.builds(Temperature, st.floats(0.01, 100)),
        st.builds(Beta, st.floats(0, 100), st.floats(0, 100), st.floats(-100, 100)),
    ),
)
@settings(deadline=None, max_examples=100)
def test_calibrators_keep_order_and_range(p, calibrator):
    p = np.concatenate([np.sort(p), [1.0]])
    p[0] = 0
    out = calibrator(p)
    assert np.isfinite(out).all()
    assert ((out >= 0) & (out <= 1)).all()
    assert (np.diff(out) >= -1e-12).all()
    single = calibrator(p.astype(np.float32))
    assert single.dtype == np.float32
    assert ((single >= 0) & (single <= 1)).all()
    assert from_json(json.loads(json.dumps(to_json(calibrator)))) == calibrator


def test_a_half_stays_under_a_temperature_only():
    half = np.array([0.5])
    assert Temperature(7.0)(half) == 0.5
    assert Beta(2, 1, 0)(half) == pytest.approx(1 / 3)  # p^2 / (p^2 + 1 - p): masks change


def test_the_formulas():
    p = np.array([0.2, 0.9])
    assert Temperature(2.0)(p) == pytest.approx(np.sqrt(p) / (np.sqrt(p) + np.sqrt(1 - p)))
    assert Beta(2, 3, 0.5)(p) == pytest.approx(1 / (1 + (1 - p) ** 3 / (math.exp(0.5) * p**2)))
    assert (Identity()(p) == p).all()
    assert Beta(1, 1, 0)(p) == pytest.approx(p)


def test_a_histogram_fits_as_its_voxels_do():
    generator = np.random.default_rng(4)
    z = generator.normal(-4, 3, 20_000)
    p, y = expit(z).astype(np.float32), generator.random(20_000) < expit(z / 1.7 + 0.2)
    kept = histogram(p, y, steps=2000)
    assert kept[2].sum() == 20_000
    assert len(kept[0]) < 4000
    assert kept[2] @ kept[1] == y.sum()
    assert kept[2] @ kept[0] == pytest.approx(p.sum(), rel=1e-5)
    assert Temperature.fit(*kept).temperature == pytest.approx(Temperature.fit(p, y).temperature, rel=1e-3)
    ours, theirs = Beta.fit(*kept), Beta.fit(p, y)
    assert (ours.a, ours.b, ours.c) == pytest.approx((theirs.a, theirs.b, theirs.c), abs=5e-3)
    ends = histogram(np.array([0.0, 1.0, 1.0]), np.array([False, True, False]))
    assert sorted(zip(*(part.tolist() for part in ends), strict=True)) == [(0, False, 1), (1, False, 1), (1, True, 1)]


@pytest.mark.parametrize("calibrator", EXAMPLES)
def test_round_trip(calibrator):
    told = to_json(calibrator)
    assert from_json(json.loads(json.dumps(told))) == calibrator
    assert CALIBRATORS[told["kind"]] is type(calibrator)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "platt"}, "identity, temperature, beta"),
        ({"temperature": 1.0}, "kind must be one of"),
        ([], "kind must be one of"),
        ({"kind": ["beta"]}, "kind must be one of"),
        ({"kind": "temperature"}, "numbers for temperature and no other key"),
        ({"kind": "temperature", "temperature": 1.0, "bias": 0}, "no other key"),
        ({"kind": "temperature", "temperature": "1"}, "numbers for temperature"),
        ({"kind": "temperature", "temperature": True}, "numbers for temperature"),
        ({"kind": "identity", "a": 1}, "numbers for nothing"),
        ({"kind": "temperature", "temperature": 0}, "above 0 and finite, not 0.0"),
        ({"kind": "beta", "a": -1, "b": 1, "c": 0}, "a and b must be 0 or more"),
        ({"kind": "beta", "a": 1, "b": 1, "c": math.inf}, "c finite"),
        ({"kind": "beta", "a": 10**400, "b": 1, "c": 0}, "cannot be read"),
    ],
)
def test_what_is_no_calibrator(value, message):
    with pytest.raises(ModelError, match=message):
        from_json(value)


# Scores of presence


@given(
    arrays(float, st.integers(2, 20), elements=st.integers(0, 5)),
    st.data(),
)
@settings(deadline=None, max_examples=60)
def test_auroc_counts_pairs_and_halves_ties(score, data):
    truth = data.draw(arrays(bool, len(score)))
    truth[0], truth[1] = True, False
    present, absent = score[truth], score[~truth]
    pairs = (present[:, None] > absent).mean() + (present[:, None] == absent).mean() / 2
    area = auroc(score, truth)
    assert area == pytest.approx(pairs)
    assert auroc(-score, truth) == pytest.approx(1 - area)
    assert auroc(np.exp(score), truth) == pytest.approx(area)
    curve = roc(score, truth)
    assert np.trapezoid(curve.sensitivity, curve.false_alarm) == pytest.approx(area)
    assert (curve.false_alarm[0], curve.sensitivity[0]) == (0, 0)
    assert (curve.false_alarm[-1], curve.sensitivity[-1]) == (1, 1)
    for threshold, alarm, found in zip(curve.threshold, curve.false_alarm, curve.sensitivity, strict=True):
        assert alarm == pytest.approx((absent >= threshold).mean())
        assert found == pytest.approx((present >= threshold).mean())
    same = auroc(np.full(len(score), 3.0), truth)
    assert same == 0.5


def test_a_threshold_by_hand():
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0, 0.95, 0.65])
    truth = np.arange(12) >= 10
    found = threshold_for_false_alarms(score, truth, rate=0.2)
    assert found.threshold == np.nextafter(0.7, 1)  # at 0.7 itself a third one would be found
    assert (found.false_alarms, found.absent, found.sensitivity) == (2, 10, 0.5)
    assert found.upper == pytest.approx(0.5069013, abs=1e-6)  # Clopper-Pearson, one-sided 95 %, 2 of 10
    assert found.absent_needed == 14  # 0.8^14 < 0.05 < 0.8^13
    assert found.too_few
    none = threshold_for_false_alarms(score, truth, rate=0.09)
    assert none.threshold == np.nextafter(0.9, 1)
    assert none.false_alarms == 0
    assert none.upper == pytest.approx(1 - 0.05 ** (1 / 10))  # the closed form where nothing is found


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 59), (0.01, 299), (0.5, 5)])
def test_how_many_absent_targets_vouch_for_a_rate(rate, needed):
    def found(absent):
        return threshold_for_false_alarms(np.arange(absent + 1.0), np.arange(absent + 1) == absent, rate)

    assert found(needed).absent_needed == needed
    assert not found(needed).too_few
    assert found(needed - 1).too_few
    assert 1 - 0.05 ** (1 / needed) <= rate < 1 - 0.05 ** (1 / (needed - 1))


@given(arrays(float, st.integers(1, 40), elements=st.integers(0, 12)), st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=60)
def test_no_lower_threshold_would_do(absent, rate):
    score = np.append(absent, 5.0)
    truth = np.arange(len(score)) == len(absent)
    found = threshold_for_false_alarms(score, truth, rate)
    assert found.false_alarms == (absent >= found.threshold).sum() <= rate * len(absent) + 1e-9
    assert (absent >= np.nextafter(found.threshold, -np.inf)).sum() > rate * len(absent) - 1e-9
    assert found.false_alarms / len(absent) <= found.upper <= 1


def test_rounding_does_not_cost_an_alarm():
    score = np.arange(101.0)
    assert 0.29 * 100 < 29
    assert threshold_for_false_alarms(score, score == 100, rate=0.29).false_alarms == 29


def test_single_precision_scores_compare_as_they_will():
    score = np.array([0.1, 0.7, 0.9], np.float32)
    found = threshold_for_false_alarms(score, np.array([False, False, True]), rate=0.1)
    assert not (score[1] >= np.float32(found.threshold))
    assert not (score[1] >= found.threshold)
    assert score[2] >= np.float32(found.threshold)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("absent", "rate"), [(20, 0.1), (60, 0.05), (7, 0.3)])
def test_the_upper_bound_holds_though_the_threshold_was_chosen(absent, rate, ties):
    """Scores uniform (or on eleven values): the true rate above a threshold is known."""
    generator = np.random.default_rng(8)
    kept = []
    for _ in range(1500):
        score = generator.random(absent + 1)
        if ties:
            score = np.floor(score * 11) / 11
        found = threshold_for_false_alarms(score, np.arange(absent + 1) == absent, rate)
        true = (np.arange(11) / 11 >= found.threshold).mean() if ties else 1 - found.threshold
        kept.append(true <= found.upper)
    share = np.mean(kept)
    assert share >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 1500)
    if not ties:
        assert share <= 0.95 + 3 * math.sqrt(0.95 * 0.05 / 1500)  # exact, not merely safe


P, Y = np.array([0.2, 0.8]), np.array([False, True])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reliability(P, Y, bins=0), "1 or more"),
        (lambda: reliability(P * 5, Y), "sigmoid"),
        (lambda: reliability(np.array([np.nan, 0.5]), Y), r"in \[0, 1\]"),
        (lambda: reliability(P, Y.astype(int)), "truth be bool"),
        (lambda: reliability(P, Y[:1]), r"one shape.*\(1,\), \(2,\)"),
        (lambda: brier(P[:0], Y[:0]), "not empty"),
        (lambda: nll(P, Y, np.ones(3)), "one shape"),
        (lambda: nll(P, Y, -P), "weights must be 0 or more"),
        (lambda: nll(P, Y, np.zeros(2)), "not all 0"),
        (lambda: Temperature.fit(P, Y | True), "add the kind that lacks"),
        (lambda: Beta.fit(P, Y, np.array([1.0, 0.0])), "add the kind that lacks"),
        (lambda: Identity.fit(P, Y & False), "add the kind that lacks"),
        (lambda: Temperature(-1.0), "above 0"),
        (lambda: Temperature(math.nan), "above 0"),
        (lambda: Beta(0, 0, math.nan), "c finite"),
        (lambda: Temperature(1.0)(P * 5), "sigmoid"),
        (lambda: auroc(P, Y | True), "both present and absent targets are needed, not 2 and 0"),
        (lambda: roc(P, Y[:1]), "one each a target"),
        (lambda: auroc(P / 0, Y), "finite"),
        (lambda: threshold_for_false_alarms(P, Y, 0.0), "between 0 and 1"),
        (lambda: threshold_for_false_alarms(P, Y, 0.1, confidence=1.0), "between 0 and 1"),
        (lambda: threshold_for_false_alarms(P, Y | True, 0.1), "not 2 and 0"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_table_is_whole():
    made = {value for value in vars(calibration).values() if isinstance(value, type) and hasattr(value, "fit")}
    assert set(CALIBRATORS.values()) == made
