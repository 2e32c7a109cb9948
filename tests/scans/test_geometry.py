from itertools import permutations, product

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from delineate.scans.geometry import (
    CANONICAL,
    FLAT_AFFINE,
    Orientation,
    axis_codes,
    canonical_spacing,
    from_canonical,
    orientation_of,
    to_canonical,
)

SHAPE = (4, 5, 6)
ALL_48 = [
    tuple(["RL", "AP", "SI"][world][sign] for world, sign in zip(order, signs, strict=True))
    for order in permutations(range(3))
    for signs in product((0, 1), repeat=3)
]


def affine_with(codes, spacing=(0.7, 1.5, 4.0), oblique_degrees=0.0):
    """An affine whose array axes grow towards `codes`, with the given spacing along the array's axes."""
    affine = np.zeros((4, 4))
    for axis, code in enumerate(codes):
        world = ["R", "A", "S"].index({"L": "R", "P": "A", "I": "S"}.get(code, code))
        affine[world, axis] = spacing[axis] * (1 if code in "RAS" else -1)
    angle = np.radians(oblique_degrees)
    turn_x = [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    turn_z = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    affine[:3, :3] = np.array(turn_x) @ np.array(turn_z) @ affine[:3, :3]
    affine[:, 3] = (-30.5, 12.25, 900.0, 1.0)
    return affine


def test_there_are_48_orientations():
    assert len(set(ALL_48)) == 48
    assert len({orientation_of(affine_with(codes)) for codes in ALL_48}) == 48


@pytest.mark.parametrize("degrees", [0, 20])
@pytest.mark.parametrize("codes", ALL_48, ids="".join)
def test_canonical_is_exact_and_in_the_right_place(codes, degrees):
    affine = affine_with(codes, oblique_degrees=degrees)
    orientation = orientation_of(affine)
    array = np.random.default_rng(0).random(SHAPE)
    canonical = to_canonical(array, orientation)
    assert np.shares_memory(canonical, array)
    assert np.array_equal(from_canonical(canonical, orientation), array)

    # physical truth: world coordinates, reordered like the voxels, grow as CANONICAL says
    voxels = np.stack([*np.indices(SHAPE), np.ones(SHAPE)], axis=-1)
    world = to_canonical((voxels @ affine.T)[..., :3], orientation)
    for axis, (component, sign) in enumerate([(2, 1), (1, -1), (0, -1)]):  # S, P, L
        step = np.diff(world, axis=axis)
        assert (sign * step[..., component] > 0).all()
        assert np.allclose(np.linalg.norm(step, axis=-1), canonical_spacing(affine, orientation)[axis])


@pytest.mark.parametrize("codes", ALL_48, ids="".join)
def test_a_mark_at_a_world_position_is_found_at_its_canonical_place(codes):
    affine = affine_with(codes, spacing=(1, 1, 1))
    cube = np.zeros((7, 7, 7), np.uint8)
    corners = np.array(list(product((0, 6), repeat=3)))
    world = nibabel.affines.apply_affine(affine, corners)
    top_front_right = corners[np.argmax(world @ [1, 1, 1])]  # most Right, Anterior and Superior
    cube[tuple(top_front_right)] = 1
    # the last slice is the most superior; row 0 is anterior; column 0 is the patient's right
    assert np.argwhere(to_canonical(cube, orientation_of(affine))).tolist() == [[6, 0, 0]]


@given(
    st.permutations(range(3)),
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.sampled_from([(), (3,), (2, 4)]),
)
def test_from_canonical_inverts_to_canonical(order, flips, shape, channels):
    orientation = Orientation(tuple(order), flips)
    array = np.arange(np.prod(shape + channels)).reshape(shape + channels)
    canonical = to_canonical(array, orientation)
    assert canonical.shape[3:] == channels
    assert np.array_equal(from_canonical(canonical, orientation), array)
    assert np.array_equal(to_canonical(from_canonical(array, orientation), orientation), array)


def test_flat_affine_is_the_identity_orientation_at_one_mm():
    assert orientation_of(FLAT_AFFINE) == Orientation()
    assert axis_codes(FLAT_AFFINE) == CANONICAL
    assert canonical_spacing(FLAT_AFFINE, Orientation()) == (1, 1, 1)
    with pytest.raises(ValueError, match="read-only"):
        FLAT_AFFINE[0, 0] = 1


def test_orientation_is_a_value():
    assert len({orientation_of(np.eye(4)), orientation_of(np.diag([2, 3, 4, 1.0]))}) == 1
