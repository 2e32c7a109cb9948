import base64
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from delineate.review.runs import (
    NOTHING,
    RunsError,
    decode_runs,
    encode_runs,
    from_pairs,
    gained_and_lost,
    mask_of,
    pack,
    runs_of,
    to_pairs,
    toggles_of,
    unpack,
    voxels_of,
    xor,
)

SHAPE = (3, 4, 5)
SIZE = 60
masks = arrays(bool, SHAPE)


@given(masks)
def test_every_form_gives_the_mask_back(mask):
    toggles = toggles_of(mask)
    assert toggles.dtype == np.uint32
    assert (np.diff(toggles.astype(int)) > 0).all()
    assert voxels_of(toggles) == mask.sum()
    np.testing.assert_array_equal(mask_of(toggles, SHAPE), mask)
    for other in (
        decode_runs(encode_runs(toggles, SIZE), SIZE),
        from_pairs(to_pairs(toggles), SIZE),
        unpack(pack(toggles), SIZE),
    ):
        np.testing.assert_array_equal(other, toggles)


@given(masks)
def test_runs_are_what_walking_along_the_mask_finds(mask):
    runs, inside = [0], False
    for voxel in mask.reshape(-1):
        if voxel != inside:
            runs, inside = [*runs, 0], not inside
        runs[-1] += 1
    assert runs_of(toggles_of(mask), SIZE).tolist() == runs
    assert np.frombuffer(encode_runs(toggles_of(mask), SIZE), "<u4").tolist() == runs


@given(masks, masks)
def test_exclusive_or_is_that_of_the_masks_and_undoes_itself(one, other):
    a, b = toggles_of(one), toggles_of(other)
    np.testing.assert_array_equal(xor(a, b), toggles_of(one ^ other))
    np.testing.assert_array_equal(xor(xor(a, b), b), a)
    assert gained_and_lost(a, b) == ((other & ~one).sum(), (other & one).sum())


@given(masks, st.randoms())
def test_pairs_may_come_in_any_order_and_may_touch(mask, chance):
    pairs = [[i, 1] for i in np.flatnonzero(mask).tolist()]
    chance.shuffle(pairs)
    np.testing.assert_array_equal(from_pairs(pairs, SIZE), toggles_of(mask))


@pytest.mark.parametrize(
    "pairs",
    [[[0, 0]], [[-1, 2]], [[58, 3]], [[60, 1]], [[0, 2**32 - 1]], [[0, 5], [4, 2]], [[4, 2], [0, 5]], [[3, 1]] * 2],
)
def test_pairs_that_no_mask_has_are_refused(pairs):
    with pytest.raises(RunsError, match=r"runs must"):
        from_pairs(pairs, SIZE)


@given(st.lists(st.tuples(st.integers(-5, 70), st.integers(-5, 70)), max_size=8))
def test_pairs_are_refused_or_flip_every_voxel_once(pairs):
    times = np.zeros(200, int)
    fits = all(length >= 1 and start >= 0 and start + length <= SIZE for start, length in pairs)
    for start, length in pairs if fits else ():
        times[start : start + length] += 1
    if fits and times.max() <= 1:
        np.testing.assert_array_equal(mask_of(from_pairs(pairs, SIZE), (SIZE,)), times[:SIZE] == 1)
    else:
        with pytest.raises(RunsError):
            from_pairs(pairs, SIZE)


@given(st.binary(max_size=60))
def test_bytes_that_are_no_runs_are_refused(data):
    try:
        toggles = decode_runs(data, SIZE)
    except RunsError:
        return
    assert encode_runs(toggles, SIZE) == data


@given(st.text(max_size=40) | st.binary(max_size=60).map(lambda b: base64.b64encode(zlib.compress(b)).decode()))
def test_text_that_is_no_packed_mask_is_refused(text):
    try:
        toggles = unpack(text, SIZE)
    except RunsError:
        return
    np.testing.assert_array_equal(unpack(pack(toggles), SIZE), toggles)


def test_what_unfolds_to_far_too_much_is_not_unfolded():
    bomb = base64.b64encode(zlib.compress(bytes(50_000_000), 9)).decode()
    assert len(bomb) < 100_000
    with pytest.raises(RunsError, match="longer, or cut short"):
        unpack(bomb, SIZE)


def test_an_empty_and_a_full_mask():
    assert voxels_of(NOTHING) == 0
    assert runs_of(NOTHING, SIZE).tolist() == [SIZE]
    full = toggles_of(np.ones(SHAPE, bool))
    assert full.tolist() == [0, SIZE]
    assert runs_of(full, SIZE).tolist() == [0, SIZE]
