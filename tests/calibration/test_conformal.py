import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from delineate.calibration.conformal import (
    coverage,
    false_fraction,
    inner_outer,
    missed_fraction,
    monotone,
    risk_control,
)

TAUS = np.linspace(0, 1.01, 102)  # the first takes every voxel, the last none


def cohort(subjects, seed, shape=(24, 24)):
    """(missed, false): curves of a mediocre model on blobs, one row a subject."""
    generator = np.random.default_rng(seed)
    missed, false = [], []
    for _ in range(subjects):
        field = ndimage.gaussian_filter(generator.normal(size=shape), 3)
        truth = field > np.quantile(field, generator.uniform(0.75, 0.95))
        blur = ndimage.gaussian_filter(truth.astype(float), generator.uniform(0.5, 2.5))
        noise = ndimage.gaussian_filter(generator.normal(size=shape), 1)
        probability = np.clip(blur + 0.35 * noise, 0, 1)
        missed.append(missed_fraction(probability, truth, TAUS))
        false.append(false_fraction(probability, truth, TAUS))
    return np.array(missed), np.array(false)


# lambda-hat


def test_by_hand():
    """n = 4, B = 1: (sum + 1) / 5 is 4.2/5, 2/5, 1.5/5, 1/5 in the four columns."""
    losses = np.array([[1.0, 0.5, 0.25, 0], [1, 0, 0, 0], [0.7, 0.25, 0.25, 0], [0.5, 0.25, 0, 0]])
    grid = np.array([0.8, 0.6, 0.4, 0.2])
    for alpha, index in ((0.84, 0), (0.83, 1), (0.4, 1), (0.39, 2), (0.3, 2), (0.29, 3), (0.2, 3)):
        control = risk_control(losses, grid, alpha)
        assert (control.index, control.value) == (index, grid[index])
        assert control.risk == pytest.approx(losses[:, index].mean())
        assert control.guaranteed
        assert control.why_not is None
    # the plain empirical rule would stop at a mean of 0.25 for alpha 0.29; the correction does not
    assert losses[:, 1].mean() == 0.25


def test_the_bound_counts():
    losses, grid = np.zeros((9, 1)), np.array([0.5])
    assert risk_control(losses, grid, 0.1).guaranteed
    assert not risk_control(losses, grid, 0.1, bound=2).guaranteed
    assert risk_control(losses, grid, 0.2, bound=2).guaranteed


@pytest.mark.parametrize(("alpha", "bound", "needed"), [(0.1, 1, 9), (0.05, 1, 19), (0.01, 1, 99), (0.3, 1, 3), (0.3, 2, 6), (0.7, 1, 1)])  # fmt: skip
def test_too_few_subjects(alpha, bound, needed):
    """Not one loss among them, and yet: nothing is guaranteed, and nothing is chosen."""
    grid = np.array([0.5, 0.4])
    enough = risk_control(np.zeros((needed, 2)), grid, alpha, bound)
    assert (enough.index, enough.value, enough.subjects_needed) == (0, 0.5, needed)
    if needed > 1:
        few = risk_control(np.zeros((needed - 1, 2)), grid, alpha, bound)
        assert (few.index, few.value, few.risk, few.guaranteed) == (None, None, None, False)
        assert few.subjects_needed == needed
        assert few.why_not == (
            f"a risk of {alpha:g} cannot be guaranteed with {needed - 1} subjects: needs at least {needed}."
        )


def test_a_grid_that_does_not_reach_far_enough():
    control = risk_control(np.full((50, 2), 0.4), np.array([0.5, 0.3]), 0.1)
    assert not control.guaranteed
    assert control.why_not is not None
    assert "at its safest end, 0.3, the mean loss of 50 subjects is 0.4" in control.why_not


monotone_losses = st.tuples(st.integers(2, 7), st.integers(1, 6)).flatmap(
    lambda shape: arrays(float, shape, elements=st.floats(0, 1)).map(lambda x: -np.sort(-x, axis=1))
)


@given(monotone_losses, st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=80)
def test_it_is_the_first_column_that_holds(losses, alpha):
    n, settings_ = losses.shape
    grid = np.arange(settings_, dtype=float)
    control = risk_control(losses, grid, alpha)
    good = [j for j in range(settings_) if n / (n + 1) * losses[:, j].mean() + 1 / (n + 1) <= alpha + 1e-12]
    assert control.index == (good[0] if good else None)
    assert (control.index is None) == (control.why_not is not None)
    more = risk_control(losses, grid, min(alpha * 1.5, 0.999))
    if control.index is not None:
        assert more.index is not None
        assert more.index <= control.index
        mirrored = risk_control(losses, grid[::-1], alpha)  # a grid may fall
        assert mirrored.index == control.index


@given(monotone_losses, st.floats(0.2, 0.9))
@settings(deadline=None, max_examples=120)
def test_the_theorem_itself(losses, alpha):
    """Leaving each subject out in turn is every ordering of n + 1 exchangeable ones: the mean is exactly <= alpha."""
    grid = np.arange(losses.shape[1], dtype=float)
    realised = []
    for i in range(len(losses)):
        control = risk_control(np.delete(losses, i, axis=0), grid, alpha)
        realised.append(0.0 if control.index is None else losses[i, control.index])  # refusing is no loss
    assert np.mean(realised) <= alpha + 1e-9


def test_the_plain_empirical_rule_has_no_such_guarantee():
    """The same leave-one-out without B/(n + 1): five subjects, one of whom loses all until the last setting."""
    losses = np.zeros((5, 2))
    losses[0, 0] = 1
    alpha = 0.1
    plain = []
    for i in range(5):
        means = np.delete(losses, i, axis=0).mean(axis=0)
        plain.append(losses[i, int(np.flatnonzero(means <= alpha)[0])])
    assert np.mean(plain) == 0.2 > alpha


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: risk_control(np.zeros(3), np.zeros(3), 0.1), r"\(subjects, settings\)"),
        (lambda: risk_control(np.zeros((2, 3)), np.arange(2.0), 0.1), r"not \(2, 3\), \(2,\)"),
        (lambda: risk_control(np.zeros((0, 3)), np.arange(3.0), 0.1), r"not \(0, 3\)"),
        (
            lambda: risk_control(np.zeros((2, 3)), np.array([1.0, 2.0, 1.5]), 0.1),
            "rise all the way or fall all the way",
        ),
        (lambda: risk_control(np.zeros((2, 2)), np.array([1.0, 1.0]), 0.1), "all the way"),
        (lambda: risk_control(np.zeros((2, 2)), np.array([1.0, np.nan]), 0.1), "all the way"),
        (lambda: risk_control(np.array([[np.nan]]), np.zeros(1), 0.1), "finite"),
        (lambda: risk_control(np.array([[1.5]]), np.zeros(1), 0.1), r"at most bound \(1\)"),
        (lambda: risk_control(np.zeros((1, 1)), np.zeros(1), 1.0), r"between 0 and bound \(1\), not 1.0"),
        (lambda: risk_control(np.zeros((1, 1)), np.zeros(1), 0.0), "between 0 and bound"),
        (lambda: coverage(np.zeros((1, 1)), np.zeros(1), 0.5), "two subjects"),
        (lambda: coverage(np.zeros((10, 1)), np.zeros(1), 0.1), "of 10 subjects, 5 choose.*needs at least 9"),
        (lambda: coverage(np.ones((40, 1)), np.zeros(1), 0.1), "20 choose.*Extend the grid"),
        (lambda: missed_fraction(np.zeros(3), np.zeros(3), TAUS), "truth must be bool"),
        (lambda: missed_fraction(np.zeros(3), np.zeros(4, bool), TAUS), r"bool \(4,\)"),
        (lambda: missed_fraction(np.full(3, 1.5), np.zeros(3, bool), TAUS), "sigmoid"),
        (lambda: false_fraction(np.full(3, np.nan), np.zeros(3, bool), TAUS), "sigmoid"),
        (lambda: false_fraction(np.zeros(3), np.zeros(3, bool), np.array([])), "one at least"),
        (lambda: false_fraction(np.zeros(3), np.zeros(3, bool), np.array([0.5, 0.2, 0.3])), "all the way"),
        (lambda: inner_outer(np.zeros((9, 2)), np.zeros((9, 2)), np.array([0.5, 0.4]), 0.1), "thresholds must rise"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rising_rows_are_refused():
    losses = np.array([[0.5, 0.4, 0.1], [0.5, 0.2, 0.3]])
    with pytest.raises(ValueError, match=r"those of subject 1 rise from 0.2 at 0.4 to 0.3 at 0.3.*monotone\(losses\)"):
        risk_control(losses, np.array([0.5, 0.4, 0.3]), 0.6)
    with pytest.raises(ValueError, match="must not rise"):
        coverage(losses, np.array([0.5, 0.4, 0.3]), 0.6)
    mended = monotone(losses)
    assert mended.tolist() == [[0.5, 0.4, 0.1], [0.5, 0.3, 0.3]]  # never below what it was
    assert risk_control(mended, np.array([0.5, 0.4, 0.3]), 0.6).guaranteed


# Curves of one map


def test_curves_by_hand():
    probability = np.array([[0.1, 0.4, 0.4, 0.9]])
    truth = np.array([[False, True, False, True]])
    taus = np.array([0.0, 0.1, 0.4, 0.41, 0.9, 0.95])
    assert missed_fraction(probability, truth, taus).tolist() == [0, 0, 0, 0.5, 0.5, 1]
    assert false_fraction(probability, truth, taus) == pytest.approx([2 / 4, 2 / 4, 1 / 3, 0, 0, 0])


def test_the_false_share_is_made_monotone_from_the_safe_end():
    probability = np.array([0.9, 0.5, 0.5, 0.5])
    truth = np.array([False, True, True, True])  # the surest voxel is the wrong one
    taus = np.array([0.0, 0.6, 0.95])
    assert false_fraction(probability, truth, taus).tolist() == [1, 1, 0]  # 1/4 at 0 by itself, but 1 above it
    assert false_fraction(probability, truth, taus[::-1]).tolist() == [0, 1, 1]


def test_empty_masks_and_truths():
    nobody, taus = np.zeros((4, 5), bool), np.array([0.0, 0.5, 1.5])
    half = np.full((4, 5), 0.5)
    assert missed_fraction(half, nobody, taus).tolist() == [0, 0, 0]  # nothing to miss
    assert false_fraction(half, nobody, taus).tolist() == [1, 1, 0]  # all of it wrong, until there is none
    assert missed_fraction(half, ~nobody, taus).tolist() == [0, 0, 1]
    assert false_fraction(half, ~nobody, taus).tolist() == [0, 0, 0]


@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(
            arrays(
                np.float32, n, elements=st.one_of(st.floats(0, 1, width=32), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
            ),
            arrays(bool, n),
        )
    ),
    st.lists(st.one_of(st.floats(-0.5, 1.5), st.sampled_from([0.0, 0.25, 0.3, 0.5, 1.0])), min_size=1, unique=True),
    st.booleans(),
)
@settings(deadline=None, max_examples=80)
def test_one_pass_equals_the_loop(pair, taus, falling):
    probability, truth = pair
    taus = np.array(sorted(taus, reverse=falling))
    masks = [probability >= float(tau) for tau in taus]
    missed = [(truth & ~mask).sum() / max(truth.sum(), 1) for mask in masks]
    share = np.array([(mask & ~truth).sum() / max(mask.sum(), 1) for mask in masks])
    assert missed_fraction(probability, truth, taus) == pytest.approx(missed)
    above = [share[taus >= tau].max() for tau in taus]
    assert false_fraction(probability, truth, taus) == pytest.approx(above)
    assert (false_fraction(probability, truth, taus) >= share - 1e-12).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_threshold_means_what_it_will_when_it_is_applied(dtype):
    """float32's 0.3 is above 0.3; `probability >= 0.3` compares in float32, and so do the curves."""
    probability, truth = np.full((2, 2), 0.3, dtype), np.ones((2, 2), bool)
    assert (probability >= 0.3).all()
    assert missed_fraction(probability, truth, np.array([0.3])) == 0
    assert missed_fraction(truth, truth, np.array([0.5, 1.5])).tolist() == [0, 1]  # votes of one are a map too


# Guarantees on synthetic cohorts


@pytest.fixture(scope="module")
def curves():
    return cohort(120, seed=0)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("kind", ["missed", "false"])
def test_realised_risk_is_what_was_promised(curves, kind, alpha):
    losses, grid = (curves[0][:, ::-1], TAUS[::-1]) if kind == "missed" else (curves[1], TAUS)
    realised = coverage(losses, grid, alpha, splits=200, seed=1)
    assert realised.mean() <= alpha + 3 * realised.std() / math.sqrt(200)
    assert (
        realised.mean() >= alpha - 2 / (60 + 1) - 0.03
    )  # and not by hiding: Theorem 2's 2B/(n + 1), and the grid's step
    assert realised.max() > alpha  # a mean over draws, not a promise for each
    assert (coverage(losses, grid, alpha, splits=200, seed=1) == realised).all()
    assert (coverage(losses, grid, alpha, splits=200, seed=2) != realised).any()


def test_fresh_subjects_each_time():
    """Uniform thresholds at which a subject starts to lose: the risk at t is t, so the guarantee can be computed."""
    generator = np.random.default_rng(3)
    grid = np.linspace(1, 0, 201)
    realised = []
    for _ in range(1500):
        start = generator.random(14)
        losses = (grid[None] > start[:, None]).astype(float)
        realised.append(risk_control(losses, grid, 0.15).value)
    mean, error = np.mean(realised), np.std(realised) / math.sqrt(1500)
    assert mean <= 0.15 + 3 * error
    assert mean >= 0.15 - 1 / 15 - 3 * error


def test_inner_and_outer(curves):
    missed, false = curves
    alpha = 0.1
    pair = inner_outer(missed, false, TAUS, alpha)
    assert pair.inner is not None
    assert pair.outer is not None
    assert pair.outer < pair.inner  # a mediocre model needs a band between the two
    assert (pair.outer, pair.inner) == (pair.missed.value, pair.added.value)
    at = {float(tau): j for j, tau in enumerate(TAUS)}
    assert missed[:, at[pair.outer]].mean() <= alpha
    assert false[:, at[pair.inner]].mean() <= alpha
    wider = inner_outer(missed, false, TAUS, 0.03)
    assert wider.outer is not None
    assert wider.inner is not None
    assert wider.outer <= pair.outer
    assert wider.inner >= pair.inner


def test_fresh_subjects_lie_between(curves):
    pair = inner_outer(*curves, TAUS, 0.1)
    missed, false = cohort(150, seed=50)
    at = {float(tau): j for j, tau in enumerate(TAUS)}
    for losses, value in ((missed, pair.outer), (false, pair.inner)):
        new = losses[:, at[value]]
        assert new.mean() <= 0.1 + 3 * new.std() * math.sqrt(1 / 150 + 1 / 120)


def test_a_perfect_model_needs_no_band():
    truth = np.arange(10) < 4
    probability = np.where(truth, 0.8, 0.1)
    taus = np.linspace(0, 1, 11)
    missed = np.stack([missed_fraction(probability, truth, taus)] * 30)
    false = np.stack([false_fraction(probability, truth, taus)] * 30)
    pair = inner_outer(missed, false, taus, 0.1)
    assert pair.missed.value == pytest.approx(0.8)  # the highest that misses nothing
    assert pair.added.value == pytest.approx(0.2)  # the lowest that adds nothing
    assert pair.inner == pair.outer == pytest.approx(0.5)


def test_too_few_for_a_band():
    pair = inner_outer(np.zeros((8, 3)), np.zeros((8, 3)), np.arange(3) / 4, 0.1)
    assert (pair.inner, pair.outer) == (None, None)
    assert pair.added.why_not == pair.missed.why_not
    half = inner_outer(np.ones((30, 3)), np.zeros((30, 3)), np.arange(3) / 4, 0.1)  # one side only
    assert half.outer is None
    assert half.inner == 0
    assert not half.missed.guaranteed


def test_every_split_of_a_small_cohort():
    """All ways to choose 3 of 6: their mean is at most alpha exactly, so `coverage` converges to such a number."""
    losses = -np.sort(-(np.random.default_rng(9).random((6, 5)) ** 2), axis=1)
    losses[:, -1] = 0
    grid, alpha = np.arange(5.0), 0.45
    exact = []
    for chosen in itertools.combinations(range(6), 3):
        rest = [i for i in range(6) if i not in chosen]
        control = risk_control(losses[list(chosen)], grid, alpha)
        assert control.index is not None
        exact.append(losses[rest, control.index].mean())
    assert np.mean(exact) <= alpha
    drawn = coverage(losses, grid, alpha, splits=400)
    assert drawn.mean() == pytest.approx(np.mean(exact), abs=4 * drawn.std() / math.sqrt(400) + 1e-12)
