"""The marks network, and the folder that it ships in."""

import json
import math
import shutil

import pytest
import torch
from tests.rounding import assert_same_up_to_rounding

from delineate.errors import ModelError
from delineate.interaction.marker import (
    LOOKS,
    Marker,
    MarkerConfig,
    build,
    house_marker,
    house_marks_folder,
    load_marker,
    save_marker,
)
from delineate.interaction.network import ALIKE, EDGE, NEAR, REACH, STEEP, WIDTH, likeness, reach

SMALL = MarkerConfig(size=64, widths=(8, 16))


def two_halves(size=32, step=0.1):
    """A picture of two greys, left 0 and right `step`, in all channels."""
    image = torch.zeros(1, 3, size, size)
    image[..., size // 2 :] = step
    return image


def test_likeness_is_that_of_the_nearest_mark_in_greys_and_place():
    image, marks = two_halves(), torch.zeros(1, 2, 32, 32, dtype=torch.bool)
    marks[0, 0, 16, 4] = True
    grey, nothing, near, _ = likeness(image, marks)[0]
    assert not nothing.any()
    assert grey[:, :8].allclose(torch.ones(32, 8), atol=1e-4)  # away from the blurred edge
    squares = 3 * (0.1 / ALIKE) ** 2  # three channels as one, and two blurs
    assert grey[16, 28].item() == pytest.approx(math.exp(-squares / 2), abs=1e-4)
    assert near[16, 4].item() == pytest.approx(1, abs=1e-4)
    assert near[20, 4].item() == pytest.approx(math.exp(-((4 / 32 / NEAR) ** 2) / 2), abs=1e-4)
    marks[0, 0, 16, 28] = True  # the nearest of two
    assert likeness(image, marks)[0, 0, 16, 28].item() == pytest.approx(1, abs=1e-4)


def one_mark(row, column, sign=0, size=32):
    marks = torch.zeros(1, 2, size, size, dtype=torch.bool)
    marks[0, sign, row, column] = True
    return marks


def test_reach_on_even_ground_is_the_number_of_steps():
    image = torch.full((1, 3, 32, 32), 0.3)
    inside, outside, balance = reach(image, one_mark(4, 4))[0]
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    steps = ((y - 4).abs() + (x - 4).abs()) / 32
    assert inside.allclose(torch.exp(-steps.clamp(max=1e9) / REACH) * (steps <= 1), atol=1e-5)  # none beyond one side
    assert not outside.any()
    assert balance.allclose(torch.tanh((REACH - steps.clamp(max=1)) / WIDTH), atol=1e-5)
    flipped = reach(image, one_mark(4, 4, sign=1))[0]
    assert torch.equal(flipped[1], inside)
    assert (flipped[2] < 0).all()
    assert not reach(image, torch.zeros(1, 2, 32, 32, dtype=torch.bool)).any()


def test_reach_goes_round_a_wall_and_stops_at_a_step():
    image = torch.zeros(1, 3, 64, 64)
    image[..., 20:40, 30:34] = 2  # a wall: over it costs twice a change from black to white
    inside = reach(image, one_mark(30, 25, size=64))[0, 0]
    assert inside[30, 38] < inside[5, 25] < inside[30, 24]  # round its end is farther than as far in the open
    across = reach(two_halves(64, 0.4), one_mark(30, 25, size=64))[0, 0]
    steps = 13 + STEEP * 0.2  # the blur makes the step wider, not smaller
    assert across[30, 38].item() == pytest.approx(math.exp(-steps / 64 / REACH), rel=1e-4)


def test_what_is_nearer_to_a_mark_outside_is_out_of_balance():
    marks = one_mark(16, 8) | one_mark(16, 24, sign=1)
    balance = reach(torch.zeros(1, 3, 32, 32), marks)[0, 2]
    assert (balance[:, :14][16] > 0).all()
    assert (balance[:, 18:] < 0).all()


@pytest.mark.parametrize("size", [EDGE, 2 * EDGE])
def test_reach_is_of_the_same_size_and_of_each(size):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, size, size, generator=generator) * 2 - 1
    marks = torch.rand(2, 2, size, size, generator=generator) < 0.001
    each = torch.cat([reach(image[i : i + 1], marks[i : i + 1]) for i in range(2)])
    assert each.shape == (2, 3, size, size)
    assert_same_up_to_rounding(reach(image, marks), each)


def test_likeness_of_a_batch_is_that_of_each():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 3, 16, 16, generator=generator)
    marks = torch.rand(3, 2, 16, 16, generator=generator) < 0.05
    each = torch.cat([likeness(image[i : i + 1], marks[i : i + 1]) for i in range(3)])
    assert_same_up_to_rounding(likeness(image, marks), each)


def ask(marker, seed=0):
    generator = torch.Generator().manual_seed(seed)
    stack = torch.rand(2, 3, marker.size, marker.size, generator=generator) * 2 - 1
    marks = torch.rand(2, 2, marker.size, marker.size, generator=generator) < 0.002
    return stack, marks, torch.full((2, marker.size, marker.size), 0.5)


@pytest.mark.parametrize("look", LOOKS)
def test_probabilities_are_those_of_each_slice(look):
    marker = Marker(MarkerConfig(size=64, widths=(8, 16), look=look), build(SMALL))
    stack, marks, previous = ask(marker)
    p = marker.probability(stack, marks, previous)
    assert p.shape == (2, 64, 64)
    assert 0 <= p.min() <= p.max() <= 1
    assert torch.equal(marker.probability(stack[1:], marks[1:], previous[1:]), p[1:])
    assert not torch.equal(marker.probability(stack, marks.flip(1), previous), p)


def test_proposals_of_a_probability_hold_a_pixel_as_often_as_it_says():
    marker = Marker(SMALL, build(SMALL))
    p = torch.linspace(0, 1, 64).expand(1, 64, 64)
    drawn = marker.draw(p, torch.zeros(1, 2, 64, 64, dtype=torch.bool), 64, 0)
    assert drawn.shape == (64, 1, 64, 64)
    share = (drawn >= 0.5).float().mean((0, 1, 2))
    assert (share - p[0, 0]).abs().max() < 0.08
    assert len({mask.sum().item() for mask in drawn >= 0.5}) > 30  # and they differ


def test_proposals_agree_with_marks_and_depend_on_their_number_alone():
    marker = Marker(SMALL, build(SMALL))
    marks = torch.rand(1, 2, 64, 64, generator=torch.Generator().manual_seed(1)) < 0.1
    p = torch.full((1, 64, 64), 0.4)
    drawn = marker.draw(p, marks, 6, 3)
    only = marks[0, 0] ^ marks[0, 1]
    assert (drawn[:, 0, only & marks[0, 0]] == 1).all()
    assert (drawn[:, 0, only & marks[0, 1]] == 0).all()
    assert_same_up_to_rounding(marker.draw(p, marks, 2, 3), drawn[:2])
    assert not torch.allclose(marker.draw(p, marks, 2, 4), drawn[:2], atol=1e-2)


def test_the_one_that_ships_is_sealed_small_and_says_where_it_comes_from():
    folder = house_marks_folder()
    marker = load_marker(folder)
    assert marker.config == house_marker().config
    assert sum(p.stat().st_size for p in folder.rglob("*")) <= 8 * 2**20
    card = (folder / "card.md").read_text()
    assert "Not a medical device" in card
    assert "| trained on" in card
    told = json.loads((folder / "config.json").read_text())["training"]
    assert set(told["sets"]) == {"btcv_ct", "hippocampus", "isic2018", "busi", "dsb2018_he", "lidc"}


def test_a_folder_comes_back_and_a_changed_one_is_refused(tmp_path):
    network = build(SMALL, seed=1)
    save_marker(tmp_path / "m", SMALL, network, training={}, card="")
    marker = load_marker(tmp_path / "m")
    assert marker.config == SMALL
    assert torch.equal(Marker(SMALL, network).probability(*ask(marker)), marker.probability(*ask(marker)))
    shutil.copytree(tmp_path / "m", tmp_path / "n")
    (tmp_path / "n" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"config\.json"):
        load_marker(tmp_path / "n")
    with pytest.raises(ModelError, match="not a folder of marks"):
        load_marker(tmp_path)


@pytest.mark.parametrize("wrong", [{"look": "twice"}, {"size": 100}])
def test_what_it_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"must be|is one of"):
        MarkerConfig(**wrong)
