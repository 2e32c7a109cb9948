"""The system whose generator is a line through the masks that people would draw."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from delineate.networks.spread import Start
from delineate.scans.grid import View
from delineate.systems import SYSTEMS
from delineate.systems.diffusion.fields import even_fields, even_levels, smooth_fields
from delineate.systems.diffusion.scoring import SHARP, score
from delineate.systems.diffusion.spread import drawn_from
from delineate.systems.system import Asked, Clues
from delineate.training.loop import Budget, Run

SIZE = 32


def start_of(shape, seed=0):
    """Odds that are sure in most places, as a scan's are."""
    generator = torch.Generator().manual_seed(seed)
    odds = 12 * torch.randn(shape, 1, SIZE, SIZE, generator=generator).clamp(-1, 1)
    return Start(odds, 0.5 + torch.rand(odds.shape, generator=generator))


def test_draws_are_those_of_the_whole_line_though_only_doubtful_pixels_are_worked_out():
    starts, fields = [start_of(2), start_of(1, 1)], smooth_fields(SIZE, 6, 0)
    drawn = drawn_from(starts, fields)
    for k, field in enumerate(fields):
        whole = torch.cat([(SHARP * one.drawn(field.expand(len(one.odds), 1, -1, -1))).sigmoid() for one in starts])
        assert (drawn[k] - whole[:, 0]).abs().max() < 2e-3
    assert ((drawn == 0) | (drawn == 1)).float().mean() > 0.5


def test_frequencies_are_what_is_said():
    """The mean of proposals is what is said of a pixel: as often is it in one, and in many as in more."""
    starts = [start_of(2)]
    many, more = (drawn_from(starts, smooth_fields(SIZE, n, seed)) for n, seed in ((64, 0), (512, 1)))
    apart = ((many >= 0.5).float().mean(0) - many.mean(0)).abs()
    assert apart.mean() < 0.01
    assert apart.max() < 0.2  # where a line lingers at the border
    assert (many.mean(0) - more.mean(0)).abs().max() < 0.1  # evenly spread: nearer than 64 coins would be


def test_levels_of_training_are_spread_evenly_and_normal():
    levels = even_levels(500, 16, torch.Generator().manual_seed(0))
    ranked = torch.special.ndtr(levels).sort(dim=1).values * 16
    assert torch.equal(ranked.floor().clamp(0, 15), torch.arange(16.0).expand(500, -1))
    assert levels.mean().abs() < 0.01
    assert levels.std().item() == pytest.approx(1, abs=0.02)


def test_noise_of_training_is_that_of_use():
    drawn = even_fields(SIZE, 40, 16, 0.9, torch.Generator().manual_seed(0))
    used = smooth_fields(SIZE, 256, 0, 0.9)
    assert drawn.shape == (40, 16, SIZE, SIZE)
    for fields in (drawn.flatten(0, 1), used):
        assert fields.std().item() == pytest.approx(1, abs=0.05)
        assert (fields - fields.mean((1, 2), keepdim=True)).std().item() == pytest.approx(0.1**0.5, abs=0.05)
    assert (drawn[0, 0] - drawn[0, 0].mean() - (drawn[0, 1] - drawn[0, 1].mean())).abs().max() > 0.1


def test_the_score_is_least_for_the_spread_that_raters_have():
    """Half of the raters draw the inner disc, half the outer: two masks, one of each, beat two between."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    radius = ((y - 32) ** 2 + (x - 32) ** 2).sqrt()
    raters = torch.stack([(radius < r).float() for r in (10, 20)])[None]
    there = torch.ones(1, 2, dtype=torch.bool)

    def of(*radii):
        return score(torch.stack([(r - radius) for r in radii])[None], raters, there, torch.ones(1, 1, 1, 1))

    assert of(10, 20) < of(15, 15)
    assert of(10, 20) < of(10, 10)
    assert of(10, 20) < of(5, 25)


@pytest.fixture(scope="module")
def trained_spread(two_organ_bank, tmp_path_factory):
    """Trained for a moment; and what its phases were."""
    row, seen = SYSTEMS["spread"], []
    work: Path = tmp_path_factory.mktemp("spread")
    run = Run(Budget(images=160), work, on_step=lambda phase, state, spent: seen.append(phase))
    return row.train(two_organ_bank, "tiny", run), list(dict.fromkeys(seen))


def test_the_encoder_learns_first_and_then_all_of_it(trained_spread):
    system, phases = trained_spread
    assert phases == ["words", "encoder", "spread"]
    assert system.control.spread.out.weight.any()
    assert "take no part" in system.about


def test_what_is_saved_draws_the_same(trained_spread, two_organ_bank, tmp_path):
    system = trained_spread[0]
    row = SYSTEMS["spread"]
    again = row.load(tmp_path, row.save(system, tmp_path), two_organ_bank.vocabulary)
    view = View(two_organ_bank.images[14:17].float() / 127.5 - 1)
    asked = Asked(two_organ_bank.vocabulary.concepts[0], "liver")
    one, other = (s.propose(s.see(view), asked, 4, 0).probabilities for s in (system, again))
    assert torch.equal(one, other)
    assert one.shape == (4, 3, SIZE, SIZE)
    alone = system.propose(system.see(View(view.stack[1:2])), asked, 2, 0).probabilities
    assert (alone[:, 0] - one[:2, 1]).abs().max() < 2e-2  # neither depends on the others


def test_what_is_known_is_drawn_as_it_is_known(trained_spread, two_organ_bank):
    system = trained_spread[0]
    view = View(two_organ_bank.images[12:13].float() / 127.5 - 1)
    inside, outside = torch.zeros(1, SIZE, SIZE, dtype=torch.bool), torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    inside[0, :8], outside[0, 8:16] = True, True
    clues = Clues(torch.tensor([0]), inside, outside, torch.full((1, SIZE, SIZE), 0.5))
    asked = replace(Asked(two_organ_bank.vocabulary.concepts[0], "liver"), clues=clues)
    drawn = system.propose(system.see(view), asked, 3, 0).probabilities
    assert (drawn[:, 0, :8] == 1).all()
    assert (drawn[:, 0, 8:16] == 0).all()
    assert (drawn[0, 0, 16:] != drawn[1, 0, 16:]).any()
