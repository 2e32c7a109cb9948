"""Frames become a stack, without a file: closed forms of where slices lie."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.dicom_series import AXIAL, CORONAL, SAGITTAL, oblique, positions

from delineate.errors import ScanError
from delineate.scans.dicom.order import Plane, normal_of, plane_name, stack


def planes(count=8, directions=AXIAL, step_mm=2.5, shear=(0.0, 0.0), origin=(1.0, 2.0, 3.0)):
    row, column = (tuple(map(float, axis)) for axis in directions)
    return [Plane(tuple(place), row, column) for place in positions(count, directions, step_mm, origin, shear)]


@given(st.permutations(range(8)), st.tuples(st.floats(-1, 1), st.floats(-1, 1)), st.floats(0.3, 9))
def test_any_order_gives_the_same_stack(order, shear, step_mm):
    directions = oblique()
    made = planes(directions=directions, shear=shear, step_mm=step_mm)
    done = stack("s", [made[n] for n in order], list(range(8)), 1.0, 0.7)
    assert [order[n] for n in done.order if n is not None] == list(range(8))
    np.testing.assert_allclose(done.origin, made[0].position, atol=1e-9)
    row, column = np.array(directions, float)
    np.testing.assert_allclose(
        done.step, np.cross(row, column) * step_mm + row * shear[0] + column * shear[1], atol=1e-9
    )


def test_planes_have_names():
    assert [plane_name(planes(1, d)[0]) for d in (AXIAL, CORONAL, SAGITTAL)] == ["axial", "coronal", "sagittal"]
    assert plane_name(planes(1, oblique())[0]) == "oblique axial"
    np.testing.assert_allclose(normal_of(planes(1)[0]), [0, 0, 1])


@given(st.sets(st.integers(1, 6), min_size=1, max_size=3))
def test_every_gap_is_found_and_can_be_filled(missing):
    made = [plane for k, plane in enumerate(planes()) if k not in missing]
    with pytest.raises(ScanError, match=r"gaps? in slices 2\.50 mm apart") as caught:
        stack("s", made, [0] * len(made), 1.0, 0.7)
    runs = sum(k - 1 not in missing for k in missing)
    assert str(caught.value).count("mm wide") == runs
    done = stack("s", made, [0] * len(made), 1.0, 0.7, fill_gaps=True)
    assert {k for k, frame in enumerate(done.order) if frame is None} == missing
    np.testing.assert_allclose(done.step, [0, 0, 2.5])


def test_small_irregularities_are_noted_and_larger_ones_refused():
    def jittered(mm):
        made = planes()
        made[3] = made[3]._replace(position=(1.0, 2.0, made[3].position[2] + mm))
        return made

    assert stack("s", jittered(0.01), [0] * 8, 1.0, 0.7).notes == ()
    (note,) = stack("s", jittered(0.2), [0] * 8, 1.0, 0.7).notes
    assert "8%" in note
    with pytest.raises(ScanError, match="evenly spaced"):
        stack("s", jittered(0.5), [0] * 8, 1.0, 0.7)


def test_one_slice_is_as_thick_as_it_says():
    done = stack("s", planes(1), [1], 4.0, 0.7)
    np.testing.assert_allclose(done.step, [0, 0, 4])
    done = stack("s", planes(1), [1], None, 0.7)
    np.testing.assert_allclose(done.step, [0, 0, 1])
    assert "without a thickness" in done.notes[0]


def test_unequal_numbers_at_places_are_refused():
    with pytest.raises(ScanError, match="from 1 to 2 at one"):
        stack("s", [*planes(), planes()[2]], list(range(9)), 1.0, 0.7)
    with pytest.raises(ScanError, match="volume 0 only"):
        stack("s", planes(), list(range(8)), 1.0, 0.7, volume=2)
