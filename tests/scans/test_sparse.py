"""Maps kept where they are not zero: equal to whole ones to the bit, whatever is done to them."""

from itertools import permutations, product

import numpy as np
import pytest
import torch

from delineate.prompts.prompt import Prompt
from delineate.proposals.fusion import FUSIONS, foreground
from delineate.proposals.ordering import doubtful_slices
from delineate.proposals.target import Outcome, TargetProposals, entropy, presence
from delineate.scans import grid
from delineate.scans.geometry import orientation_of, to_canonical
from delineate.scans.grid import canonical_fit, to_scan_grid, to_scan_voxels
from delineate.scans.scan import Scan
from delineate.scans.sparse import Sparse

SHAPE = (7, 9, 5)


def maps(n=3, seed=0, share=0.2):
    rng = np.random.default_rng(seed)
    return (rng.random((n, *SHAPE)) * (rng.random((n, *SHAPE)) < share)).astype(np.float16)


def target(drawn, **more):
    return TargetProposals(Prompt("liver"), "liver", Outcome.FOUND, 0.9, drawn, **more)


def whole_grid(values, scan):
    """The plain way: every slice of every proposal brought back whole."""
    fit, orientation = canonical_fit(scan, values.shape[-1]), orientation_of(scan.affine)
    out = np.zeros((len(values), *scan.shape), np.float16)
    for volume, proposal in zip(out, values, strict=True):
        to_canonical(volume, orientation)[:] = fit.from_grid(proposal[:, None])[:, 0].clamp(0, 1).numpy()
    return out


@pytest.mark.parametrize("together", [grid.PIXELS_AT_ONCE, 1], ids=["all", "one by one"])
@pytest.mark.parametrize("rows_columns", [(64, 64), (96, 64), (37, 50), (24, 24)])
def test_the_way_back_to_the_scan_is_that_of_whole_slices_to_the_bit(rows_columns, together, monkeypatch):
    """However it lies; 64 is cut in both directions, 37 in none. As large pictures are, one map after another."""
    monkeypatch.setattr(grid, "PIXELS_AT_ONCE", together)
    draws = torch.Generator().manual_seed(0)
    values = torch.rand(3, 5, 32, 32, generator=draws) * (torch.rand(3, 5, 32, 32, generator=draws) < 0.05)
    values[:, 1] = values[:, 2] = values[:, :, :9] = values[:, 4, :, 20:] = 0
    values[1, 2, 31, 31] = 1
    for order, signs in list(product(permutations(range(3)), product((1, -1), repeat=3)))[::5]:  # each axis each way
        affine, shape = np.diag([0.0, 0, 0, 1]), [0, 0, 0]
        for axis, size, step in zip(range(3), (5, *rows_columns), (3, 0.8, 0.8), strict=True):
            affine[2 - axis, order[axis]], shape[order[axis]] = signs[axis] * step, size
        scan = Scan(np.zeros(shape, np.float32), affine)
        expected = whole_grid(values, scan)
        assert np.array_equal(to_scan_grid(values, scan), expected)
        ours, same = to_scan_voxels(values, scan), Sparse.of(expected)
        assert np.array_equal(ours.where, same.where)
        assert np.array_equal(ours.values, same.values)


@pytest.mark.parametrize(
    "array", [maps(), maps(1), maps(share=0), maps(share=1), maps()[:, :1], np.asfortranarray(maps())]
)
def test_maps_come_back_as_they_were(array):
    kept = Sparse.of(array)
    assert np.array_equal(kept.dense(), array)
    assert kept.dense().dtype == array.dtype
    assert all(np.array_equal(one, other) for one, other in zip(kept.whole(), array, strict=True))
    assert kept.elsewhere == np.count_nonzero(~array.any(axis=0))


def test_maps_of_which_most_is_0_or_1_take_a_bit_a_voxel_and_come_back_to_the_bit():
    rng = np.random.default_rng(0)
    drawn = (rng.random((3, 40, 50, 60)) < 0.7).astype(np.float16)
    drawn[rng.random(drawn.shape) < 0.01] = 0.3
    drawn[0, 0, 0, 0] = -0.0  # a zero, too
    kept = Sparse.of(drawn)
    assert sum(one.nbytes for one in kept.maps) < 0.15 * drawn.nbytes
    assert np.array_equal(
        kept.dense().view(np.uint16), np.where(kept.spread(np.ones(len(kept.where))) > 0, drawn, 0).view(np.uint16)
    )
    assert all(np.array_equal(kept.row(k), values) for k, values in enumerate(kept.values))
    soft = Sparse.of(rng.random((2, 40, 50, 60)).astype(np.float16))
    assert soft.nbytes == 2 * 2 * len(soft.where) + soft.where.nbytes


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("rest", [0, 1])
def test_slices_and_sums_are_those_of_the_whole(axis, rest):
    kept = Sparse.of(maps(1))
    whole = kept.spread(kept.values[0], rest)
    across = tuple(other for other in range(3) if other != axis)
    np.testing.assert_allclose(kept.sums(kept.values[0], axis, rest), whole.sum(axis=across, dtype=float))
    for index in range(SHAPE[axis]):
        assert np.array_equal(kept.slice_of(kept.values[0], axis, index, rest), whole.take([index], axis))
        assert np.array_equal(kept.sliced(axis, index).dense(), maps(1).take([index], axis + 1))


def test_only_leaves_zero_outside():
    inside = np.random.default_rng(1).random(SHAPE) < 0.5
    assert np.array_equal(Sparse.of(maps()).only(inside).dense(), maps() * inside)


@pytest.mark.parametrize("share", [0.2, 0.9])
@pytest.mark.parametrize("how", FUSIONS)
def test_a_target_says_what_whole_maps_say(how, share):
    array = np.sqrt(maps(4, share=share))
    ours = target(array)
    consensus, mean = FUSIONS[how](array) >= 0.5, FUSIONS["mean"](array)
    assert np.array_equal(ours.consensus(how), consensus)
    assert (ours.size(how), ours.sizes().tolist()) == (consensus.sum(), [foreground(one).sum() for one in array])
    assert np.array_equal(ours.mean(), mean)
    assert np.array_equal(ours.disagreement(), entropy(mean))
    assert presence(ours._mean) == pytest.approx(presence(mean), abs=1e-6)
    for axis in range(3):
        across = tuple(other for other in range(3) if other != axis)
        assert np.array_equal(ours.consensus_across(axis, how), consensus.sum(axis=across))
        assert np.array_equal(ours.peak_across(axis), mean.max(axis=across))
        np.testing.assert_allclose(ours.doubt_across(axis), entropy(mean).sum(axis=across, dtype=float))
        assert np.array_equal(ours.consensus_in(axis, 2, how), consensus.take([2], axis))
        assert np.array_equal(ours.sliced(axis, 2).choose(1), foreground(array[1]).take([2], axis))
    assert doubtful_slices(ours.disagreement(), np.eye(4))[1]
