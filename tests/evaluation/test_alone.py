import torch

from delineate.evaluation.alone import EstimateAlone
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
