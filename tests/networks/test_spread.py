import pytest
import torch

from delineate.networks.encoder import Features, ImageEncoder
from delineate.networks.spread import COOL, MOST, PROBIT, Spread, Start, cooled, log_odds

WIDTHS = (8, 16, 24)


def looked_at(seed=0):
    """Features, log-odds and texts of two slices of 32 x 32."""
    generator = torch.Generator().manual_seed(seed)
    features = ImageEncoder(WIDTHS)(torch.rand(2, 3, 32, 32, generator=generator))
    return features, 3 * torch.randn(2, 1, 32, 32, generator=generator), torch.randn(2, 12, generator=generator)


@pytest.fixture
def spread():
    torch.manual_seed(1)
    return Spread(WIDTHS, 12)


@torch.no_grad()
def test_a_spread_that_has_learnt_nothing_draws_the_floor(spread):
    features, odds, pooled = looked_at()
    start, floor = spread(features, odds, pooled), cooled(odds)
    torch.testing.assert_close(start.odds, odds / COOL)
    torch.testing.assert_close(start.gain, torch.full_like(odds, PROBIT))
    noise = torch.randn(2, 5, 1, 1).expand(-1, -1, 32, 32)
    torch.testing.assert_close(start.drawn(noise), floor.drawn(noise))


@torch.no_grad()
def test_it_is_looked_up_pixel_by_pixel_at_all_levels_and_told_the_text(spread):
    torch.nn.init.normal_(spread.out.weight, std=0.2)
    features, odds, pooled = looked_at()
    start = spread(features, odds, pooled)
    assert (start.gain > 0).all()
    for map_of in (start.odds - odds / COOL, start.gain):
        assert map_of.std() > 0
    for i, level in enumerate(features.levels):
        changed = Features((*features.levels[:i], level.flip(-1), *features.levels[i + 1 :]))
        assert not torch.allclose(spread(changed, odds, pooled).gain, start.gain)
    assert not torch.allclose(spread(features, odds, pooled.flip(0)).gain, start.gain)


def test_with_signal_a_draw_is_bayes_rule():
    a, sigma = torch.tensor(0.6), torch.tensor(0.8)
    flat, pixels = torch.zeros(1, 1, 8, 8), torch.full((1, 1, 8, 8), 0.5)
    expected = 0.3 + 0.5 * (2 * 0.6 / 0.64 + 1.1 * 0.8)
    found = Start(flat + 0.3, flat + 1.1).heard(pixels, a, sigma)
    torch.testing.assert_close(found, torch.full_like(flat, expected))


def test_log_odds_are_bounded():
    assert log_odds(torch.tensor([0.0, 0.5, 1.0])).tolist() == [-MOST, 0.0, MOST]
