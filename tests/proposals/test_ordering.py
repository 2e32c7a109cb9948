from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.cluster.hierarchy import fcluster, linkage

from delineate.metrics.overlap import dice, iou, pairwise_iou
from delineate.prompts.prompt import Prompt
from delineate.proposals import ordering
from delineate.proposals.fusion import FUSIONS
from delineate.proposals.ordering import (
    Distinct,
    agreement,
    agreement_of,
    distinct,
    doubtful_slices,
    overlaps,
    probable_dice,
)
from delineate.proposals.target import Outcome, TargetProposals
from delineate.scans.geometry import FLAT_AFFINE

STACKS = arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)))


def line(*ranges, length=100):
    """A mask each of (from, to) on a line of voxels."""
    masks = np.zeros((len(ranges), length), bool)
    for mask, (start, stop) in zip(masks, ranges, strict=True):
        mask[start:stop] = True
    return masks


def blobs(n=6, shape=(9, 20, 24), seed=0):
    """Masks that agree in the middle and disagree at the border."""
    draw = np.random.default_rng(seed)
    axes = np.meshgrid(*[np.linspace(-1, 1, s) for s in shape], indexing="ij")
    far = sum(axis**2 for axis in axes)
    return np.stack([far + draw.normal(0, 0.1, shape) < draw.uniform(0.4, 0.8) for _ in range(n)])


# overlaps


@given(STACKS)
@settings(deadline=None, max_examples=200)
def test_overlaps_are_those_counted_pair_by_pair(masks):
    told = overlaps(masks)
    for i, one in enumerate(masks):
        for j, other in enumerate(masks):
            assert told.shared[i, j] == (one & other).sum()
            assert told.iou()[i, j] == pytest.approx(iou(one, other))
            assert told.dice()[i, j] == pytest.approx(dice(one, other))
    assert told.sizes.tolist() == masks.reshape(len(masks), -1).sum(axis=1).tolist()
    np.testing.assert_allclose(told.iou(), pairwise_iou(masks, masks)[2][: len(masks), : len(masks)])


def test_large_masks_are_counted_in_pieces_with_the_same_result(monkeypatch):
    masks = blobs()
    whole = overlaps(masks).shared
    monkeypatch.setattr(ordering, "BYTES_AT_ONCE", 7)
    assert np.array_equal(overlaps(masks).shared, whole)
    flat = masks.reshape(len(masks), -1).astype(np.int64)
    assert np.array_equal(whole, flat @ flat.T)


def test_masks_may_come_one_by_one_and_in_any_memory_order():
    masks = blobs()
    assert np.array_equal(overlaps(mask for mask in masks).shared, overlaps(masks).shared)
    turned = masks.transpose(0, 3, 1, 2)[:, ::-1]
    assert np.array_equal(overlaps(turned).shared, overlaps(masks).shared)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (np.zeros((0, 3), bool), "one or more of the same shape, not of no mask at all"),
        ([np.zeros(3, bool), np.zeros((3, 1), bool)], r"same shape, not of \[\(3,\), \(3, 1\)\]"),
        (np.zeros((2, 3), np.uint8), "must be bool, not uint8. Threshold them first"),
    ],
    ids=["none", "shapes", "numbers"],
)
def test_what_are_no_masks_is_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        overlaps(masks)


# distinct


@pytest.mark.parametrize(
    ("ranges", "share"),
    [
        ([(0, 50), (10, 40), (12, 30)], 1.0),
        ([(0, 50), (40, 60)], 0.5),
        ([(0, 50), (0, 0)], None),
        ([(0, 50)], None),
        ([(0, 50), (10, 40), (0, 0)], 1.0),
    ],
)
def test_masks_within_one_another_are_nested(ranges, share):
    assert overlaps(line(*ranges)).nested() == share


def test_nested_proposals_are_told_and_staple_leans_to_their_union():
    masks = line((0, 50), (10, 40), (12, 30), (12, 31), length=1000)
    target = TargetProposals(Prompt("liver"), "liver", Outcome.FOUND, 1.0, masks[:, None, None].astype(np.float16))
    assert target.nested()
    assert target.consensus("staple").sum() == 50
    assert target.consensus().sum() == 30
    torn = line((0, 50), (40, 90), length=1000)
    assert not replace(target, drawn=torn[:, None, None].astype(np.float16)).nested()


def test_two_groups_are_told_apart_with_their_medoids_and_weights():
    """Three stretches around one place, the middle one nearest to both others, and two elsewhere."""
    masks = line((60, 80), (0, 20), (61, 81), (2, 22), (1, 21))
    first, second = distinct(masks)
    assert (first.k, first.weight, first.members) == (4, 0.6, (1, 3, 4))
    assert (second.k, second.weight, second.members) == (0, 0.4, (0, 2))
    assert first.spread == pytest.approx((2 * 2 / 21 + 4 / 22) / 3)
    assert second.spread == pytest.approx(2 / 21)


def test_groups_come_by_weight_then_by_index():
    masks = line((80, 90), (40, 50), (0, 10), (40, 50), (0, 10))
    assert [(one.k, one.members) for one in distinct(masks)] == [(1, (1, 3)), (2, (2, 4)), (0, (0,))]


def test_equally_central_members_are_stood_for_by_the_first():
    assert distinct(line((2, 22), (0, 20), (1, 21), (1, 21)))[0].k == 2
    assert distinct(line((5, 25), (6, 26)))[0].k == 0


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("mask", [line((0, 0)), line((3, 9)), line((0, 100))], ids=["empty", "some", "full"])
def test_masks_that_are_all_the_same_are_one(n, mask):
    assert distinct(mask.repeat(n, axis=0)) == (Distinct(0, 1.0, tuple(range(n)), 0.0),)


def test_empty_masks_are_alike_and_unlike_all_others():
    told = distinct(line((0, 0), (3, 9), (0, 0), (0, 0)))
    assert [(one.k, one.weight) for one in told] == [(0, 0.75), (1, 0.25)]


def test_where_nothing_is_alike_the_most_remote_ones_stand_alone():
    """Six stretches that overlap ever less with the first ones: 1 - IoU of neighbours is 0.4 and more."""
    masks = line((0, 40), (10, 50), (20, 60), (30, 70), (70, 80), (90, 95))
    assert len(distinct(masks, most=6)) == 6
    told = distinct(masks, most=3)
    assert [one.members for one in told] == [(0, 1, 2, 3), (4,), (5,)]
    assert told[0].k == 1
    assert told[0].spread > 0.25
    assert [one.members for one in distinct(masks, most=1)] == [(0, 1, 2, 3, 4, 5)]


def test_how_far_is_apart_can_be_said():
    masks = line((0, 20), (5, 25))  # 1 - IoU is 0.4
    assert [len(distinct(masks, apart)) for apart in (0.0, 0.39, 0.41, 1.0)] == [2, 2, 1, 1]


@pytest.mark.parametrize("wrong", [{"apart": -0.1}, {"apart": float("nan")}, {"most": 0}])
def test_groups_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="apart must be 0 or more and most 1 or more, not"):
        distinct(line((0, 2)), **wrong)


@given(STACKS, st.floats(0, 1), st.integers(1, 7))
@settings(deadline=None, max_examples=200)
def test_every_proposal_is_stood_for_once(masks, apart, most):
    told = distinct(masks, apart, most)
    assert 1 <= len(told) <= max(most, 1)
    assert sum(one.weight for one in told) == pytest.approx(1)
    assert sorted(k for one in told for k in one.members) == list(range(len(masks)))
    for one in told:
        assert one.weight == len(one.members) / len(masks)
        away = [sum(1 - iou(masks[k], masks[other]) for other in one.members) for k in one.members]
        assert away[one.members.index(one.k)] == pytest.approx(min(away))
        assert one.spread == pytest.approx(sum(away) / max(1, len(away) * (len(away) - 1)))
    assert told == distinct(overlaps(masks), apart, most)


@given(STACKS.filter(lambda masks: len(masks) > 1), st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=100)
def test_groups_are_those_of_average_linkage(masks, apart):
    away = [1 - iou(masks[i], masks[j]) for i in range(len(masks)) for j in range(i + 1, len(masks))]
    label = fcluster(linkage(away, "average"), apart, "distance")
    expected = {tuple(np.flatnonzero(label == one).tolist()) for one in set(label)}
    assert {one.members for one in distinct(masks, apart, most=len(masks))} == expected


# expected Dice


@given(STACKS.filter(lambda masks: len(masks) > 1))
@settings(deadline=None, max_examples=200)
def test_a_proposal_expects_its_mean_dice_with_the_others(masks):
    brute = [np.mean([dice(a, b) for j, b in enumerate(masks) if j != i]) for i, a in enumerate(masks)]
    assert agreement(masks) == pytest.approx(brute)
    assert agreement(overlaps(masks)) == pytest.approx(brute)
    consensus = masks.mean(axis=0) >= 0.5
    expected = np.mean([dice(consensus, mask) for mask in masks])
    assert agreement_of(consensus, masks) == pytest.approx(expected)
    assert agreement_of(consensus, iter(masks)) == pytest.approx(expected)


def test_among_draws_of_the_truth_the_agreement_is_the_dice_to_expect_on_average():
    """The next draw is the truth: over many, what was expected of the first ones is what they get."""
    shape = np.linspace(0, 1, 400)
    draws = np.random.default_rng(0).uniform(size=(300, 9)) * 0.4 + 0.4  # where each stretch ends
    expected, got = [], []
    for ends in draws:
        masks = shape < ends[:, None]
        expected.append(agreement(masks[:8]).mean())
        got.append(np.mean([dice(mask[None], masks[8][None]) for mask in masks[:8]]))
    assert np.mean(expected) == pytest.approx(np.mean(got), abs=0.005)


def test_two_proposals_expect_the_same_and_empty_ones_expect_one():
    assert agreement(line((0, 10), (5, 15))) == pytest.approx([0.5, 0.5])
    assert agreement(line((0, 0), (0, 0), (0, 4))) == pytest.approx([0.5, 0.5, 0])
    assert agreement_of(np.zeros(100, bool), line((0, 0), (0, 4))) == 0.5


@pytest.mark.parametrize("q", [0.5, 0.75, 1.0])
def test_one_proposal_is_held_against_its_own_probability(q):
    """n voxels of probability q: 2 n q / (n + n q)."""
    mask = line((10, 30))
    expected = pytest.approx(2 * q / (1 + q))
    assert agreement(mask, mask[0] * q).tolist() == [expected]
    assert agreement_of(mask[0], mask, mask[0] * q) == expected
    assert probable_dice(mask[0], mask[0] * q) == expected


def test_less_than_a_voxel_is_nothing_and_agrees_with_nothing():
    empty = np.zeros(100, bool)
    assert probable_dice(empty, np.full(100, 0.009)) == 1
    assert probable_dice(empty, np.full(100, 0.011)) == 0


def test_one_proposal_without_a_probability_is_refused():
    mask = line((0, 5))
    for ask in (lambda: agreement(mask), lambda: agreement(overlaps(mask), mask[0] * 1.0)):
        with pytest.raises(ValueError, match="give the mask and its probability"):
            ask()
    with pytest.raises(ValueError, match="give the probability"):
        agreement_of(mask[0], mask)
    with pytest.raises(ValueError, match="one proposal at least"):
        agreement_of(mask[0], mask[:0])


# doubtful slices

RAS, LAS_TURNED = np.eye(4), np.array([[0, -1, 0, 0], [0, 0, -3, 0], [2, 0, 0, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(("affine", "axis"), [(RAS, 2), (LAS_TURNED, 0), (FLAT_AFFINE, 0)])
def test_the_slices_of_most_doubt_are_counted_along_the_file_s_axial_axis(affine, axis):
    doubt = np.zeros((6, 6, 6))
    along = np.moveaxis(doubt, axis, 0)
    along[4, :3, 0], along[1, 2, 2:4], along[2, 0, 0] = 1, 0.5, 1
    assert doubtful_slices(doubt, affine) == (axis, [(4, 0.6), (1, 0.2), (2, 0.2)])
    assert doubtful_slices(doubt, affine, top=1) == (axis, [(4, 0.6)])


def test_without_doubt_or_with_one_slice_there_is_nothing_to_choose():
    assert doubtful_slices(np.zeros((4, 5, 6)), RAS) == (2, [])
    assert doubtful_slices(np.ones((1, 5, 6)), FLAT_AFFINE) == (0, [])


def test_shares_of_all_slices_make_one():
    doubt = np.random.default_rng(0).uniform(size=(5, 4, 9)).astype(np.float32)
    _, slices = doubtful_slices(doubt, RAS, top=99)
    shares = [share for _, share in slices]
    assert sorted(index for index, _ in slices) == list(range(9))
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)


# of a target


def target(masks, probability=1.0):
    return TargetProposals(Prompt("liver"), "liver", Outcome.FOUND, 0.9, (masks * probability).astype(np.float16))


@pytest.mark.parametrize("how", FUSIONS)
def test_a_target_s_proposals_are_ordered_as_their_masks_are(how):
    masks = blobs(5)
    t = target(masks, 0.75)
    assert t.distinct() == distinct(masks)
    assert t.distinct(0.01, 2) == distinct(masks, 0.01, 2)
    assert t.agreement().tolist() == agreement(masks).tolist()
    assert t.agreement_of(how) == pytest.approx(np.mean([dice(t.consensus(how), mask) for mask in masks]))


@pytest.mark.parametrize("q", [0.5, 0.75, 1.0])
def test_a_single_proposal_expects_what_its_doubt_leaves(q):
    t = target(blobs(1), q)
    assert t.agreement().tolist() == [t.agreement_of()] == [1 - t.doubt] == [pytest.approx(2 * q / (1 + q))]
    assert t.distinct() == (Distinct(0, 1.0, (0,), 0.0),)


def test_an_unknown_prompt_has_nothing_to_order():
    unknown = TargetProposals(Prompt("livr3"), None, Outcome.UNKNOWN_PROMPT)
    for ask in (unknown.distinct, unknown.agreement, unknown.agreement_of):
        with pytest.raises(ValueError, match="'livr3': unknown prompt"):
            ask()
