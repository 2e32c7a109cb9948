import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nibabel.eulerangles import euler2mat
from scipy.spatial.distance import pdist

from delineate.proposals.statistics import Measured, longest_diameter, measured
from delineate.scans.geometry import FLAT_AFFINE, orientation_of
from delineate.scans.scan import Scan

SPACING = (0.8, 1.5, 4.0)


def scan_of(voxels, affine, **more):
    return Scan(np.asarray(voxels, np.float32), affine, **more)


def oblique(spacing, degrees):
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(np.radians(degrees), np.radians(degrees) / 2, 0) @ np.diag(spacing)
    return affine


def ball(shape, spacing, radius):
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing, strict=True)]
    return sum(np.square(a) for a in np.meshgrid(*axes, indexing="ij")) <= radius**2


@pytest.mark.parametrize("degrees", [0, 7, 20])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_of_a_box_everything_is_known(degrees, order):
    """Whatever way its axes lie in the file: 10 x 8 x 3 voxels, of which slices are counted along the longest."""
    affine = oblique(SPACING, degrees)
    mask = np.zeros((30, 20, 9), bool)
    mask[5:15, 4:12, 2:5] = True
    voxels = np.where(mask, -40.0, 900.0)
    voxels[5, 4, 2] = 20
    mask, voxels, affine = mask.transpose(order), voxels.transpose(order), affine[:, [*order, 3]]
    axis = order.index(2)
    told = measured(mask, scan_of(voxels, affine))
    assert told.longest_axial_diameter_mm == pytest.approx(np.hypot(10 * 0.8, 8 * 1.5))
    assert told.longest_diameter_pixels is None
    assert (told.slice_axis, told.first_slice, told.last_slice) == (axis, 2, 4)
    assert told.mean_grey == pytest.approx(-40 + 60 / 240)
    assert told.std_grey == pytest.approx(60 * np.sqrt(239) / 240)
    assert told.components == 1


@pytest.mark.parametrize("spacing", [(1, 1, 1), (0.7, 0.7, 5), (1.2, 0.6, 2)])
@pytest.mark.parametrize("degrees", [0, 15])
def test_a_ball_is_as_long_as_it_is_wide(spacing, degrees):
    radius, shape = 20, [int(46 / mm) for mm in spacing]
    told = measured(ball(shape, spacing, radius), scan_of(np.zeros(shape), oblique(spacing, degrees)))
    corner = np.hypot(*spacing[:2])  # at most half a pixel's diagonal longer at either end, or as much shorter
    assert 2 * radius - corner <= told.longest_axial_diameter_mm <= 2 * radius + corner


def test_the_longest_of_all_slices_counts_and_never_one_across_slices():
    mask = np.zeros((40, 40, 10), bool)
    mask[0, 0:5, 0] = mask[0, 10:19, 3] = mask[30, 30, 9] = True
    told = measured(mask, scan_of(np.zeros(mask.shape), np.diag([1.0, 2, 30, 1])))
    assert told.longest_axial_diameter_mm == pytest.approx(np.hypot(1, 9 * 2))
    assert (told.first_slice, told.last_slice, told.components) == (0, 9, 3)


@given(arrays(bool, st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_the_hull_finds_what_all_pairs_of_corners_do(mask, axis):
    affine = oblique((0.4, 3.0, 1.7), 11) @ np.array([[1, 0.03, 0, 0], [0, 1, 0.02, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    longest = 0.0
    for one in np.moveaxis(mask, axis, 0):
        corners = {(r + a, c + b) for r, c in np.argwhere(one) for a in (0, 1) for b in (0, 1)}
        if corners:
            plane = affine[:3, [a for a in range(3) if a != axis]]
            longest = max(longest, pdist(np.array(list(corners)) @ plane.T).max())
    assert longest_diameter(mask, axis, affine) == pytest.approx(longest)


@given(st.integers(0, 2**32 - 1), st.sampled_from(["flip", "turn"]))
@settings(max_examples=25, deadline=None)
def test_how_the_array_lies_changes_nothing_but_the_slices_numbers(seed, change):
    rng = np.random.default_rng(seed)
    mask, voxels = rng.random((6, 9, 5)) < 0.2, rng.normal(size=(6, 9, 5))
    affine = oblique(SPACING, 9)
    one = measured(mask, scan_of(voxels, affine))
    if change == "flip":
        mirror = np.diag([1.0, 1, -1, 1])
        other = measured(mask[..., ::-1], scan_of(voxels[..., ::-1], affine @ mirror))
        ends = (4 - other.last_slice, 4 - other.first_slice) if mask.any() else (None, None)
    else:
        other = measured(mask.transpose(1, 0, 2), scan_of(voxels.transpose(1, 0, 2), affine[:, [1, 0, 2, 3]]))
        ends = other.first_slice, other.last_slice
    assert (one.first_slice, one.last_slice) == ends
    assert one.components == other.components
    for name in ("mean_grey", "std_grey", "longest_axial_diameter_mm"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))


def test_pieces_that_touch_by_a_corner_are_one():
    mask = np.zeros((6, 6, 6), bool)
    mask[1, 1, 1] = mask[2, 2, 2] = mask[4, 4, 4] = True
    assert measured(mask, scan_of(np.zeros(mask.shape), np.eye(4))).components == 2


def test_of_nothing_nothing_is_measured():
    assert measured(np.zeros((3, 4, 5), bool), scan_of(np.zeros((3, 4, 5)), np.eye(4))) == Measured()


def test_hounsfield_units_are_named_only_where_they_are():
    voxels = np.linspace(-1000, 200, 60).reshape(3, 4, 5)
    mask = voxels > 0
    assert measured(mask, scan_of(voxels, np.eye(4), modality="CT")).grey_unit == "HU"
    assert measured(mask, scan_of(voxels, np.eye(4), modality="MR")).grey_unit == ""
    assert measured(mask, scan_of(voxels - voxels.min(), np.eye(4), modality="CT")).grey_unit == ""


def test_a_flat_picture_has_pixels_and_no_slices_and_one_in_colour_no_grey():
    mask = np.zeros((1, 20, 30), bool)
    mask[0, 3:7, 5:8] = True
    told = measured(mask, scan_of(np.full(mask.shape, 7), FLAT_AFFINE, has_spacing=False))
    assert (told.longest_diameter_pixels, told.longest_axial_diameter_mm) == (5, None)
    assert (told.slice_axis, told.first_slice, told.last_slice) == (None, None, None)
    assert (told.mean_grey, told.std_grey) == (7, 0)
    coloured = measured(mask, scan_of(np.zeros((*mask.shape, 3)), FLAT_AFFINE, has_spacing=False))
    assert (coloured.mean_grey, coloured.std_grey, coloured.grey_unit, coloured.components) == (None, None, None, 1)


def test_means_of_narrow_numbers_do_not_overflow():
    voxels = np.full((40, 40, 40), 60000, np.uint16)
    told = measured(np.ones(voxels.shape, bool), Scan(voxels, np.eye(4)))
    assert (told.mean_grey, told.std_grey) == (60000, 0)


def test_the_axis_of_slices_is_the_body_s():
    affine = np.array([[0, 0, 2.0, 0], [1, 0, 0, 0], [0, 3, 0, 0], [0, 0, 0, 1]])
    assert orientation_of(affine).order[0] == 1
    mask = np.zeros((4, 8, 4), bool)
    mask[:, 5, :] = True
    told = measured(mask, scan_of(np.zeros(mask.shape), affine))
    assert (told.slice_axis, told.first_slice, told.last_slice) == (1, 5, 5)
