import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delineate.scans.dicom.source import DicomSource, shifted, straight


@pytest.mark.parametrize("shift", [(0, 0), (2, -1), (-3, 4)])
def test_whole_shifts_only_move_pixels(shift):
    slices = np.random.default_rng(0).random((3, 10, 12)).astype(np.float32)
    moved = shifted(slices, np.array([shift] * 3, float), (10, 12), -1.0)
    for r, c in np.ndindex(10, 12):
        y, x = r + shift[0], c + shift[1]
        expected = slices[:, y, x] if 0 <= y < 10 and 0 <= x < 12 else -1.0
        np.testing.assert_array_equal(moved[:, r, c], expected)


@given(st.floats(-2, 2), st.floats(-2, 2))
def test_a_ramp_stays_a_ramp(down, right):
    """Linear interpolation is exact on what is linear."""
    y, x = np.mgrid[:16, :18].astype(np.float32)
    moved = shifted((3 * y - 2 * x)[None], np.array([[down, right]]), (16, 18), np.nan)[0]
    inside = moved[3:-3, 3:-3]
    np.testing.assert_allclose(inside, (3 * (y + down) - 2 * (x + right))[3:-3, 3:-3], atol=1e-4)


def test_the_straight_grid_is_just_large_enough():
    in_plane = np.array([[0, 0.8, 0], [0.7, 0, 0]])
    shifts, size = straight(np.array([0.35, -0.4, 2.0]), in_plane, (20, 30), 5)
    np.testing.assert_allclose(shifts[:, 0], [2, 1.5, 1, 0.5, 0])
    np.testing.assert_allclose(shifts[:, 1], [0, 0.5, 1, 1.5, 2])
    assert size == (22, 32)


def test_a_mask_comes_back_to_the_frames_it_was_drawn_from():
    mask = np.zeros((4, 20, 20), np.float32)
    mask[:, 6:14, 5:12] = 1
    shifts = np.array([[0, 0], [0.3, 1.2], [0.6, 2.4], [0.9, 3.6]])
    on_grid = shifted(mask, -shifts, (21, 24), 0.0) >= 0.5
    source = DicomSource((), (), True, (), (20, 20), shifts)
    back = source.to_frames(on_grid)
    assert (back != (mask > 0)).sum() <= 4  # a corner may be rounded
    np.testing.assert_array_equal(back[:, 7:13, 6:11], True)
    plain = DicomSource((), (), True, (), (20, 20))
    assert plain.to_frames(on_grid) is on_grid
