import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from delineate.review.editing import fill_between, fill_holes, keep_largest, smooth

EVEN = (1.0, 1.0, 1.0)
masks = arrays(bool, st.tuples(*[st.integers(1, 6)] * 3))


def disc(shape, centre, radius, spacing=(1.0, 1.0)):
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((y - centre[0]) * spacing[0]) ** 2 + ((x - centre[1]) * spacing[1]) ** 2 <= radius**2


def ball(shape, radius, spacing=EVEN):
    z, y, x = np.mgrid[tuple(slice(n) for n in shape)]
    away = [(v - n // 2) * s for v, n, s in zip((z, y, x), shape, spacing, strict=True)]
    return sum(a**2 for a in away) <= radius**2


# --- fill_between


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_cone_comes_back_from_its_ends(axis):
    shape, radii = (48, 48), np.linspace(6, 18, 13)
    cone = np.stack([disc(shape, (24, 24), r) for r in radii])
    drawn = np.zeros_like(cone)
    drawn[[0, 12]] = cone[[0, 12]]
    cone, drawn = np.moveaxis(cone, 0, axis), np.moveaxis(drawn, 0, axis)
    filled = fill_between(drawn, axis, EVEN)
    assert 2 * (filled & cone).sum() / (filled.sum() + cone.sum()) > 0.98


def test_within_a_slice_distances_are_in_mm():
    """Between a flat and a tall ellipse of the same mm lies what the same shapes on square pixels have between them."""
    spacing = (0.5, 2.0)
    wide = [disc((64, 16), (32, 8), r, spacing) for r in (4, 8, 12)]
    drawn = np.stack([wide[0], np.zeros_like(wide[0]), wide[2]])
    middle = fill_between(drawn, 0, (5.0, *spacing))[1]
    assert 2 * (middle & wide[1]).sum() / (middle.sum() + wide[1].sum()) > 0.95
    careless = fill_between(drawn, 0, EVEN)[1]
    assert (middle != careless).sum() > 5


def test_what_moves_sideways_is_filled_along_its_way():
    drawn = np.zeros((9, 60, 60), bool)
    drawn[0], drawn[8] = disc((60, 60), (10, 10), 5), disc((60, 60), (50, 42), 5)
    filled = fill_between(drawn, 0, EVEN)
    for k in range(1, 8):
        assert abs(filled[k].sum() - drawn[0].sum()) <= 0.2 * drawn[0].sum()
        centre = np.argwhere(filled[k]).mean(axis=0)
        np.testing.assert_allclose(centre, (10 + 5 * k, 10 + 4 * k), atol=0.6)


@given(masks, st.integers(0, 2))
def test_only_empty_slices_between_drawn_ones_change(mask, axis):
    filled = np.moveaxis(fill_between(mask, axis, (1.0, 2.0, 0.5)), axis, 0)
    drawn = np.moveaxis(mask, axis, 0)
    inside = np.flatnonzero(drawn.any(axis=(1, 2)))
    for k in range(len(drawn)):
        gap = len(inside) and inside[0] < k < inside[-1] and k not in inside
        if not gap:
            np.testing.assert_array_equal(filled[k], drawn[k])


def test_a_prism_is_filled_with_itself_even_over_the_whole_slice():
    for slice_ in (np.ones((5, 6), bool), np.eye(5, 6, dtype=bool)):
        drawn = np.zeros((4, 5, 6), bool)
        drawn[[0, 3]] = slice_
        np.testing.assert_array_equal(fill_between(drawn, 0, EVEN), np.broadcast_to(slice_, (4, 5, 6)))


# --- smooth


@pytest.mark.parametrize("spacing", [EVEN, (2.0, 1.0, 0.5)])
def test_smoothing_takes_bumps_away_and_keeps_volume_and_shape(spacing):
    truth = ball((24, 48, 90), 18, spacing)
    rough = truth ^ (np.random.default_rng(0).random(truth.shape) < 0.05)
    smoothed = smooth(rough, 4.0, spacing)
    assert (smoothed ^ truth).sum() < 0.25 * (rough ^ truth).sum()
    assert abs(smooth(truth, 4.0, spacing).sum() / truth.sum() - 1) < 0.02


def test_details_smaller_than_the_radius_go_and_larger_ones_stay():
    mask = np.zeros((1, 60, 60), bool)
    mask[0, 10:50, 10:40] = True
    mask[0, 30, 40:50] = True  # a hair
    smoothed = smooth(mask, 3.0, EVEN)
    assert not smoothed[0, 30, 44:].any()
    assert smoothed[0, 14:46, 14:36].all()


def test_the_radius_is_in_mm():
    truth = ball((1, 40, 80), 12, (1.0, 1.0, 0.5))
    rough = truth ^ (np.random.default_rng(0).random(truth.shape) < 0.1)
    fine = smooth(rough, 4.0, (1.0, 1.0, 0.5))
    coarse = smooth(rough, 8.0, (2.0, 2.0, 1.0))  # the same picture, all of it twice as large
    np.testing.assert_array_equal(fine, coarse)


@given(masks, st.floats(0.1, 20))
def test_smoothing_never_fails_and_an_empty_or_full_mask_stays(mask, radius):
    smoothed = smooth(mask, radius, (1.0, 2.0, 0.5))
    assert smoothed.shape == mask.shape
    assert smoothed.dtype == bool
    if not mask.any() or mask.all():
        np.testing.assert_array_equal(smoothed, mask)


def test_what_touches_the_border_of_the_scan_is_not_eroded_there():
    mask = np.zeros((1, 40, 40), bool)
    mask[0, :20] = True
    np.testing.assert_array_equal(smooth(mask, 6.0, EVEN), mask)


# --- parts and holes


def test_the_largest_part_is_kept_with_what_touches_it_at_a_corner():
    mask = np.zeros((4, 8, 8), bool)
    mask[0, :2, :2] = True
    mask[1, 2, 2] = True  # touches at a corner
    small = np.zeros_like(mask)
    small[3, 5:7, 5:7] = True
    np.testing.assert_array_equal(keep_largest(mask | small), mask)


@given(masks)
def test_keeping_the_largest_part_twice_is_keeping_it_once(mask):
    kept = keep_largest(mask)
    assert not (kept & ~mask).any()
    assert kept.any() == mask.any()
    np.testing.assert_array_equal(keep_largest(kept), kept)


def test_a_cavity_is_filled_and_a_tunnel_is_not():
    box = np.zeros((7, 9, 9), bool)
    box[1:6, 2:7, 2:7] = True
    hollow = box.copy()
    hollow[3, 4, 4] = False
    np.testing.assert_array_equal(fill_holes(hollow), box)
    tunnel = box.copy()
    tunnel[:, 4, 4] = False
    np.testing.assert_array_equal(fill_holes(tunnel), tunnel)


def test_in_a_flat_scan_a_ring_becomes_a_disc():
    ring = disc((30, 30), (15, 15), 10) & ~disc((30, 30), (15, 15), 6)
    np.testing.assert_array_equal(fill_holes(ring[None]), disc((30, 30), (15, 15), 10)[None])


@given(masks)
def test_filling_holes_only_adds_and_is_done_once(mask):
    filled = fill_holes(mask)
    assert not (mask & ~filled).any()
    np.testing.assert_array_equal(fill_holes(filled), filled)
