"""Pictures unlike any: of the right shape and range, of every sort, the same for the same seed."""

import pytest
import torch

from delineate.data.strange import strange
from delineate.scans.grid import turned, turned_back


def pictures(count=4, size=64, channels=3):
    draws = torch.Generator().manual_seed(0)
    return [torch.rand(channels, size, size, generator=draws) * 2 - 1 for _ in range(count)]


@pytest.mark.parametrize("channels", [3, 2, 4])
def test_they_are_pictures_and_none_of_those_they_are_made_of(channels):
    given = pictures(channels=channels)
    made = strange(given, 27, seed=0)
    assert len(made) == 27
    for one in made:
        assert one.shape == (channels, 64, 64)
        assert torch.isfinite(one).all()
        assert one.abs().max() <= 1
        assert not any(torch.equal(one, other) for other in given)


def test_they_follow_from_the_seed():
    given = pictures()
    assert all(torch.equal(a, b) for a, b in zip(strange(given, 9, 3), strange(given, 9, 3), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(strange(given, 9, 3), strange(given, 9, 4), strict=True))


def test_a_turn_is_undone_by_its_way_back_and_all_eight_differ():
    stack = torch.arange(2 * 3 * 16, dtype=torch.float32).reshape(2, 3, 4, 4)
    ways = [turned(stack, turn) for turn in range(8)]
    assert all(torch.equal(turned_back(one, turn), stack) for turn, one in enumerate(ways))
    assert len({tuple(one.flatten().tolist()) for one in ways}) == 8
    assert torch.equal(ways[4], stack.flip(-1))
    assert torch.equal(ways[6], stack.flip(-2))
    assert torch.equal(ways[7], stack.transpose(-1, -2))
