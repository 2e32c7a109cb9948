import torch

from delineate.calibration.calibrators import Temperature
from delineate.evaluation.alone import EstimateAlone, Floor
from delineate.prompts.vocabulary import Concept, Vocabulary
from delineate.scans.grid import View
from delineate.systems.system import Asked, Drawn


class Guesses:
    """Estimates 0.7 everywhere and proposes nothing."""

    vocabulary = Vocabulary((Concept("liver"),))
    size = 8

    def see(self, view):
        return view.stack

    def estimate(self, seen, asked, slices=None):
        return torch.full((len(seen), 8, 8), 0.7)

    def propose(self, seen, asked, n, seed, on_step=None):
        return Drawn(torch.zeros(n, len(seen), 8, 8))


def test_the_one_proposal_is_the_estimate_and_not_what_is_proposed():
    alone = EstimateAlone(Guesses())
    drawn = alone.propose(alone.see(View(torch.zeros(3, 3, 8, 8))), Asked(Concept("liver"), "liver"), 5, 0)
    assert torch.equal(drawn.probabilities, torch.full((1, 3, 8, 8), 0.7))


def test_the_floor_draws_the_estimate_as_often_as_it_says_mended_where_that_is_known():
    floor = Floor(Guesses())
    seen = floor.see(View(torch.zeros(3, 3, 8, 8)))
    plain = floor.propose(seen, Asked(Concept("liver"), "liver"), 64, 0).probabilities
    assert plain.shape == (64, 3, 8, 8)
    assert abs((plain > 0.5).float().mean() - 0.7) < 0.02
    calm = Asked(Concept("liver"), "liver", calibrator=Temperature(4.0))
    mended = floor.propose(seen, calm, 64, 0).probabilities
    assert abs((mended > 0.5).float().mean() - 0.553) < 0.02
    assert Floor.draws_estimate
    assert not EstimateAlone.draws_estimate
