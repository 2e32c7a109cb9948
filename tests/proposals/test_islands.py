import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from delineate.calibration.guarantees import Calibration
from delineate.prompts.prompt import Prompt
from delineate.proposals.islands import without_islands
from delineate.proposals.target import Outcome, TargetProposals


def organ_with(*sizes):
    """A mask (12, 12, 12) with bars of so many voxels, apart from one another."""
    mask = np.zeros((12, 12, 12), bool)
    for i, size in enumerate(sizes):
        bar = np.zeros(144, bool)
        bar[:size] = True
        mask[3 * i] = bar.reshape(12, 12)
    return mask


def test_pieces_smaller_than_a_tenth_of_the_largest_are_left_out_and_others_stay():
    kept = without_islands(organ_with(100, 9, 10))
    assert np.array_equal(kept, organ_with(100, 0, 10))


def test_two_kidneys_stay_two():
    mask = organ_with(100, 90)
    assert np.array_equal(without_islands(mask), mask)


def test_what_touches_by_a_corner_is_one_piece():
    mask = np.zeros((4, 40), bool)
    mask[0, :30], mask[1, 30] = True, True
    assert np.array_equal(without_islands(mask), mask)


@given(arrays(bool, (3, 7, 8)))
def test_nothing_is_added_the_largest_piece_stays_and_twice_is_once(mask):
    kept = without_islands(mask)
    assert not (kept & ~mask).any()
    assert kept.any() == mask.any()
    assert np.array_equal(without_islands(kept), kept)


@given(st.booleans())
def test_the_consensus_leaves_islands_out_where_held_out_subjects_say_so_and_tells_how_many(said):
    mask = organ_with(100, 5)
    calibration = Calibration(1, one_piece={"": not said, "liver": said})
    target = TargetProposals(
        Prompt("liver"), "liver", Outcome.FOUND, 1.0, mask[None].astype(np.float16), calibration=calibration
    )
    left = organ_with(100) if said else mask
    assert np.array_equal(target.consensus(), left)
    assert target.size() == left.sum()
    assert target.islands() == (5 if said else 0)
    assert np.array_equal(target.consensus_in(0, 3)[0], left[3])
    assert np.array_equal(target.choose(0), mask)
    assert np.array_equal(target.consensus("majority"), mask)
