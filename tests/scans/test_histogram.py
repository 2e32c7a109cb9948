import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from delineate.scans.histogram import PERCENTILES, landmarks, standard_of, standardise

STANDARD = tuple(np.linspace(0, 1, len(PERCENTILES)) ** 1.5)


def scan(seed=0, air=9000):
    """Air at 0 and a skewed hump of tissue from 0.5 to 1.5, float64; a landmark is the value of one voxel."""
    draw = np.random.default_rng(seed)
    tissue = 0.5 + draw.beta(2, 5, 1001)
    return draw.permutation(np.r_[np.zeros(air), tissue])


def test_landmarks_are_percentiles_of_what_is_brighter_than_the_mean():
    voxels = np.r_[np.zeros(1000), np.arange(1001, 2002)]  # their 1000 steps are percentiles of a tenth
    np.testing.assert_array_equal(landmarks(voxels.reshape(3, 23, 29)), [1001 + 10 * p for p in PERCENTILES])


def test_where_voxels_lie_does_not_count():
    voxels = scan()
    np.testing.assert_array_equal(landmarks(voxels), landmarks(voxels[::-1].reshape(-1, 1, 1)))


@pytest.mark.parametrize(("factor", "offset"), [(2, 0), (1e-6, 3), (750, -1024), (1e6, 1e5)])
def test_scans_that_differ_by_an_affine_grey_map_come_to_the_same(factor, offset):
    one, other = scan(), scan() * factor + offset
    np.testing.assert_allclose(standardise(one, STANDARD), standardise(other, STANDARD), rtol=0, atol=1e-5)
    np.testing.assert_allclose(standard_of([landmarks(one)]), standard_of([landmarks(other)]), rtol=0, atol=1e-9)


def test_a_scan_on_its_own_standard_is_the_same_mapped_linearly():
    voxels = scan()
    first, *_, last = own = landmarks(voxels)
    expected = (voxels - first) / (last - first)
    np.testing.assert_allclose(standardise(voxels, standard_of([own])), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2, 3])
def test_a_gamma_is_undone_at_the_landmarks(gamma):
    """Air is air in both and the landmarks are voxels, so those of one are the powers of those of the other."""
    one = scan()
    other = one**gamma
    np.testing.assert_allclose(landmarks(other), landmarks(one) ** gamma, rtol=1e-12)
    at = np.isclose(one[:, None], landmarks(one), rtol=1e-12).any(1)
    assert at.sum() == len(PERCENTILES)
    both = [standardise(voxels, STANDARD)[at] for voxels in (one, other)]
    np.testing.assert_allclose(both[0], both[1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(sorted(both[0]), STANDARD, rtol=0, atol=1e-6)


def test_landmarks_come_to_the_standard_and_beyond_the_ends_the_slope_is_that_of_the_whole():
    voxels = scan()
    mapped, (first, *_, last) = standardise(voxels, STANDARD), landmarks(voxels)
    below, above = voxels < first, voxels > last
    assert below.sum() > 9000
    assert above.any()
    np.testing.assert_allclose(mapped[below], (voxels[below] - first) / (last - first), rtol=1e-5)
    np.testing.assert_allclose(mapped[above], 1 + (voxels[above] - last) / (last - first), rtol=1e-5)
    assert mapped[~below & ~above].min() == 0
    assert mapped[~below & ~above].max() == pytest.approx(1, abs=1e-6)


def test_the_standard_is_the_mean_of_all_scans_with_0_and_1_at_its_ends():
    many = [landmarks(scan(seed) ** (1 + seed)) for seed in range(3)]
    alone = [standard_of([own]) for own in many]
    np.testing.assert_allclose(standard_of(many), np.mean(alone, axis=0), rtol=1e-12)
    for standard in (*alone, standard_of(many)):
        assert (standard[0], standard[-1]) == (0, 1)
        assert (np.diff(standard) > 0).all()
    np.testing.assert_allclose(standard_of([7 * own - 3 for own in many]), standard_of(many), atol=1e-12)


VOLUMES = arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(1, 6)),
    elements=st.one_of(st.integers(-3, 3).map(float), st.floats(-3000, 3000, width=32)),
)


@given(VOLUMES, st.lists(st.floats(0, 1), min_size=len(PERCENTILES) - 2, max_size=len(PERCENTILES) - 2))
@settings(deadline=None, max_examples=150)
def test_the_order_of_grey_values_is_kept_and_all_are_finite(voxels, between):
    mapped = standardise(voxels, [0, *sorted(between), 1])
    assert mapped.shape == voxels.shape
    assert mapped.dtype == np.float32
    assert np.isfinite(mapped).all()
    ordered = mapped.reshape(-1)[np.argsort(voxels, axis=None, kind="stable")].astype(np.float64)
    steps = np.diff(ordered)
    assert (steps >= -1e-6 * np.abs(ordered[1:]).clip(1)).all()  # but for the rounding of float32
    same = np.diff(np.sort(voxels, axis=None)) == 0
    assert (steps[same] == 0).all()


@given(VOLUMES, st.integers(-4, 4), st.integers(-64, 64))
@settings(deadline=None, max_examples=60)
def test_any_volume_comes_to_the_same_at_another_scale(voxels, power, offset):
    """Powers of two and float64 keep the volume as it is, so that the same voxels are brighter than the mean."""
    voxels = np.round(voxels * 16) / 16
    one, other = standardise(voxels, STANDARD), standardise((voxels.astype(np.float64) + offset) * 2.0**power, STANDARD)
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("apart", [1e-45, 1e-38, 1e-30, 1e-7])
def test_landmarks_that_differ_by_next_to_nothing_are_as_good_as_one(apart):
    """At the slope of such a span, what lies below would be farther away than float32 reaches."""
    (((zero, below, above),),) = standardise(np.array([[[0, -1, apart]]], np.float32), STANDARD)
    assert -2 < below < zero <= above < 2


@pytest.mark.parametrize("value", [0, 0.1, -1024, 1e9])
def test_a_constant_volume_comes_to_one_finite_value(value):
    mapped = standardise(np.full((3, 4, 5), value, np.float32), STANDARD)
    assert np.unique(mapped).tolist() == [0]


@pytest.mark.parametrize(("dark", "bright"), [(0, 1), (0, 255), (-1000, 40), (5e8, 5e8 + 64)])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_two_grey_levels_stay_two_at_the_same_distance_whatever_they_are(dark, bright, share):
    drawn = np.arange(1000) < 1000 * share
    mapped = standardise(np.where(drawn, bright, dark).astype(np.float32), STANDARD)
    assert np.unique(mapped[drawn]).tolist() == [0]
    assert np.unique(mapped[~drawn]).tolist() == [-1]


def test_scans_without_any_contrast_are_no_part_of_the_standard():
    black, mask = np.zeros(1000), (np.arange(1000) < 300) * 255.0
    own = landmarks(scan())
    assert standard_of([landmarks(black), own, landmarks(mask)]) == standard_of([own])
    assert standard_of([landmarks(black), landmarks(mask)]) == standard_of([]) == ()


@pytest.mark.parametrize("seed", range(3))
def test_air_stays_darker_than_everything_else(seed):
    voxels, darker = scan(seed), scan(seed) - 1000 * (scan(seed) == 0)  # as CT has it
    for own in (voxels, darker):
        mapped = standardise(own, STANDARD)
        air = scan(seed) == 0
        assert mapped[air].max() < mapped[~air].min()
        assert mapped[air].max() < 0


def test_large_scans_are_looked_at_in_part_and_mapped_whole():
    voxels = np.resize(scan(), 4_100_000)  # every second voxel
    np.testing.assert_allclose(landmarks(voxels), landmarks(scan()), atol=0.01)
    assert standardise(voxels, STANDARD).shape == voxels.shape


def test_what_is_given_is_not_changed():
    voxels = scan().astype(np.float32)
    kept = voxels.copy()
    standardise(voxels, STANDARD)
    np.testing.assert_array_equal(voxels, kept)
