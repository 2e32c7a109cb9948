"""Simulated people mark what they mean, some of them a little more."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from delineate.data.slices import SliceBank
from delineate.interaction.simulated_user import (
    SMALLEST,
    believed,
    centre_line,
    click,
    contour,
    draw_target,
    line,
    marks_at_once,
    marks_of_a_round,
    middle,
    next_click,
)

SIZE = 64
Y, X = np.mgrid[:SIZE, :SIZE]
DISC = (Y - 20) ** 2 + (X - 20) ** 2 <= 12**2
THREAD = np.abs(Y - 40 - 8 * np.sin(X / 6)) < 1
SPECK = (Y == 3) & (X == 60)
REGIONS = {"disc": DISC, "thread": THREAD, "speck": SPECK, "all": DISC | THREAD | SPECK}


@pytest.fixture(scope="module")
def recipe():
    path = Path(__file__).parents[2] / "recipes" / "house_marks.py"
    spec = importlib.util.spec_from_file_location("house_marks_recipe", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("draw", [click, line, centre_line, contour])
@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_a_stroke_stays_inside(draw, region):
    for seed in range(20):
        mark = draw(region, np.random.default_rng(seed))
        assert not (mark & ~region).any()
        assert draw is not click or mark.sum() == 1


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_marks_of_a_round_are_true_and_there_is_always_one(region):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        answer = None if seed % 4 == 0 else believed(region, rng) >= 0.5
        inside, outside = marks_of_a_round(region, answer, rng)
        assert not (inside & ~region).any()
        assert not (outside & region).any()
        if answer is not None:  # only errors are marked
            assert not ((inside & answer) | (outside & ~answer)).any()
        assert (inside | outside).any() or np.array_equal(answer, region)
    inside, outside = marks_of_a_round(region, region, np.random.default_rng(0))
    assert not (inside | outside).any()


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_who_draws_much_at_once_stays_near_the_target_inside_and_off_it_outside(region):
    near = np.asarray(ndimage.binary_dilation(region, iterations=2))
    over, far = 0, 0
    for seed in range(40):
        inside, outside = marks_at_once(region, np.random.default_rng(seed))
        assert (inside & region).any()
        assert not (inside & ~near).any()
        assert not (outside & (region | inside)).any()
        over += bool((inside & ~region).any())
        far += bool((outside & (np.abs(Y - 32) > 20) & ~near).any())
    assert 10 <= over <= 30  # every other time over the edge
    assert far > 20


def test_the_middle_of_the_largest_error_is_clicked():
    assert middle(DISC | SPECK) == (20, 20)
    assert next_click(DISC, np.zeros_like(DISC)) == (20, 20, True)
    added = (Y > 40) & (X > 30)
    row, column, positive = next_click(DISC, DISC | added)
    assert added[row, column]
    assert not positive
    assert next_click(DISC, DISC) is None


def test_targets_are_large_enough_and_drawn_ones_can_be_seen():
    image = np.random.default_rng(0).uniform(-1, 1, (3, SIZE, SIZE)).astype(np.float32)
    labels = DISC.astype(np.uint8) + 2 * THREAD.astype(np.uint8)
    kinds = {"label": 0, "drawn": 0, "else": 0}
    for seed in range(80):
        drawn, target = draw_target(image, labels, np.random.default_rng(seed))
        assert target.dtype == bool
        assert SMALLEST <= target.sum() <= 0.7 * target.size
        assert drawn.dtype == np.float32
        assert np.abs(drawn).max() <= 1
        if not np.array_equal(drawn, image):
            kinds["drawn"] += 1
            change = np.abs(drawn - image).mean(0)
            assert change[target].mean() > 3 * change[~target].mean()
        else:
            kinds["label" if not (target & (labels == 0)).any() else "else"] += 1
    assert kinds["label"] > 25
    assert min(kinds.values()) > 5


def test_the_same_generator_gives_the_same_person():
    image = np.zeros((3, SIZE, SIZE), np.float32)
    first, second = (draw_target(image, DISC.astype(np.uint8), np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


def test_the_recipe_draws_people_who_mark_the_truth(recipe, two_organ_bank: SliceBank, monkeypatch):
    monkeypatch.setattr(recipe, "BANK", two_organ_bank.size)
    generator = torch.Generator().manual_seed(0)
    for size in (32, 64):
        image, truth, marks, previous = recipe.people(two_organ_bank, 6, size, generator)
        assert image.shape == (6, 3, size, size)
        assert truth.shape == previous.shape == (6, size, size)
        assert -1 <= image.min() <= image.max() <= 1
        assert 0 <= previous.min() <= previous.max() <= 1
        for _ in range(2):
            near = torch.nn.functional.max_pool2d(truth.float(), 5, 1, 2) > 0  # some go over the edge
            assert not (marks[:, 0] & ~near).any()
            assert not (marks[:, 1] & truth).any()
            answer = torch.rand(truth.shape, generator=generator)
            more = recipe.more_marks(truth, answer, np.random.default_rng(0))
            assert not (more[:, 0] & (answer >= 0.5)).any()
            marks = marks | more


def test_a_step_of_the_recipe_lowers_its_loss(recipe, two_organ_bank: SliceBank, monkeypatch):
    from delineate.interaction.marker import MarkerConfig, build

    monkeypatch.setattr(recipe, "BANK", 64)
    monkeypatch.setattr(recipe, "VIEW", 32)
    monkeypatch.setattr(recipe, "slices", lambda datasets, split: two_organ_bank)
    network = build(MarkerConfig(widths=(8, 16)), seed=0)
    loss_of = recipe.loss_on([], network)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for step in range(25):
        loss, _ = loss_of(4, torch.Generator().manual_seed(step % 5))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])
