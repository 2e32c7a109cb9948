import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from delineate.scans.dicom import contours
from delineate.scans.dicom.contours import filled, outlines


def area(polygon):
    ahead = np.roll(polygon, -1, axis=0)
    return abs((polygon[:, 0] * ahead[:, 1] - polygon[:, 1] * ahead[:, 0]).sum()) / 2


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_an_outline_filled_is_the_mask_that_it_was_drawn_around(mask):
    """Whatever the mask: specks, checkers, rings in rings; and each polygon by itself is enough, for holes are keyholes."""
    polygons = outlines(mask)
    assert np.array_equal(filled(polygons, mask.shape), mask)
    assert np.array_equal(sum((filled([p], mask.shape) for p in polygons), np.zeros(mask.shape, bool)), mask)


def test_an_outline_lies_half_a_pixel_outside_of_the_centres():
    mask = np.zeros((9, 9), bool)
    mask[3:6, 2:7] = True
    (polygon,) = outlines(mask)
    assert polygon.min(axis=0).tolist() == [2.5, 1.5]
    assert polygon.max(axis=0).tolist() == [5.5, 6.5]
    assert len(polygon) == 8  # corners alone, cut off


def test_a_hole_is_cut_in_by_a_channel_without_width():
    mask = np.ones((20, 20), bool)
    mask[5:15, 5:9] = mask[4, 12] = False
    (polygon,) = outlines(mask)
    assert area(polygon) == pytest.approx(mask.sum(), abs=6)  # the holes are taken off, whatever the channel


def test_what_lies_outside_of_the_slice_is_cut_off():
    square = np.array([[-50.0, -50], [-50, 3.5], [3.5, 3.5], [3.5, -50]])
    assert filled([square], (6, 7)).sum() == 16
    assert filled([square + 100], (6, 7)).sum() == 0
    assert filled([square, square], (6, 7)).sum() == 0  # even


def test_many_crossings_are_worked_on_in_parts(monkeypatch):
    circle = np.stack([30 + 25 * f(np.linspace(0, 2 * np.pi, 300)) for f in (np.sin, np.cos)], axis=1)
    whole = filled([circle], (60, 60))
    monkeypatch.setattr(contours, "MOST_CROSSINGS", 7)
    assert np.array_equal(filled([circle], (60, 60)), whole)
    rows, columns = np.indices((60, 60)) - 30
    assert (whole != (rows**2 + columns**2 < 25**2)).sum() < 12
