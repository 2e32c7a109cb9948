"""What a prompt may hold beside words: served by the door, given to systems that accept it, or refused in words."""

import numpy as np
import pytest
import torch

from delineate.calibration.guarantees import Calibration
from delineate.errors import PromptError
from delineate.prompts.clues import Box, Example, Region
from delineate.prompts.marks import Marks
from delineate.prompts.prompt import Prompt
from delineate.prompts.vocabulary import Vocabulary
from delineate.proposals.target import Outcome
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter
from delineate.systems.system import Clue, Drawn

SHAPE = (3, 40, 32)


class Listening:
    """Keeps what it is asked, and draws one probability everywhere."""

    vocabulary, size = Vocabulary.from_names(["liver"], "CT"), 32

    def __init__(self, accepts=(), open_words=False, scores=None):
        self.accepts, self.open_words, self.scores = frozenset(accepts), open_words, scores
        self.views, self.asked = [], []

    def see(self, view):
        self.views.append(view)
        return view

    def propose(self, seen, asked, n, seed, on_step=lambda share: None):
        self.asked.append(asked)
        slices = len(seen.stack) if asked.clues.slices is None else len(asked.clues.slices)
        return Drawn(torch.full((n, slices, 32, 32), 0.9), self.scores)


@pytest.fixture
def scan():
    voxels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    return Scan(voxels, np.diag([5.0, 0.5, 0.8, 1.0]), "MR")


def test_a_box_is_served_for_every_system(scan):
    box = Box((1, 10, 8), (2, 20, 24))
    answer = Segmenter(Listening())(scan, [Prompt("liver", box=box)], n=2)["liver"]
    inside = np.zeros(SHAPE, bool)
    inside[1:2, 10:20, 8:24] = True
    assert (answer.probabilities[:, inside] > 0.5).all()
    assert (answer.probabilities[:, ~inside] == 0).all()


def test_a_system_that_accepts_a_box_gets_it_on_its_grid(scan):
    system = Listening({Clue.BOX})
    Segmenter(system)(scan, [Prompt("liver", box=Box((0, 0, 0), (3, 20, 32)))], n=1)
    box = system.asked[0].clues.box
    assert box.dtype == torch.bool
    assert 0.2 < box.float().mean() < 0.6


@pytest.mark.parametrize(
    ("prompt", "clue", "word"),
    [
        (Prompt("liver", mask=Region(np.ones(SHAPE))), Clue.MASK, "mask"),
        (Prompt("liver", style="rater 2"), Clue.STYLE, "style"),
        (Prompt("liver", examples=(Example(None, np.ones(SHAPE, bool)),)), Clue.REFERENCES, "examples"),
    ],
)
def test_what_only_a_system_can_serve_is_refused_before_it_is_asked(scan, prompt, clue, word):
    system = Listening({Clue.BOX})
    with pytest.raises(PromptError, match=rf"takes no {word} with 'liver' \(it takes box, marks\); leave it out"):
        Segmenter(system)(scan, [prompt], n=1)
    assert system.asked == []


def test_a_mask_an_example_and_a_style_reach_a_system_that_accepts_them(scan):
    system = Listening({Clue.MASK, Clue.STYLE, Clue.REFERENCES})
    mask = np.zeros(SHAPE, np.float32)
    mask[:, :20] = 0.5
    example = Example(scan, mask > 0)
    prompt = Prompt("liver", mask=Region(mask), style="rater 2", examples=(example, example))
    Segmenter(system)(scan, [prompt], n=1)
    clues = system.asked[0].clues
    assert clues.slices.tolist() == list(range(len(system.views[0].stack)))
    assert clues.mask.max() == pytest.approx(0.5, abs=1e-6)
    assert clues.style == "rater 2"
    assert len(clues.references) == 2
    assert clues.references[0].stack.shape == (*clues.references[0].mask.shape[:1], 3, 32, 32)
    assert clues.references[0].mask.max() == 1


def test_scribbles_reach_a_system_that_takes_no_mask_and_no_marker_is_asked(scan):
    system = Listening({Clue.POINTS, Clue.SCRIBBLES})
    prompt = Prompt("liver", Marks(positive=[(1, 20, 16)], negative=[(1, 2, 2)]))
    answer = Segmenter(system)(scan, [prompt], n=2)["liver"]
    clues = system.asked[-1].clues
    assert len(clues.slices) == len(clues.inside) > 0
    assert clues.inside.any()
    assert clues.outside.any()
    assert not (clues.inside & clues.outside).any()
    value, known = clues.known
    assert value[known].sum() == clues.inside.sum()
    assert answer.probabilities[0, 1, 20, 16] == 1
    assert answer.probabilities[0, 1, 2, 2] == 0


def test_unknown_words_reach_a_system_with_open_words_alone(scan):
    closed, opened = Listening(), Listening(open_words=True)
    assert Segmenter(closed)(scan, ["flux capacitor"], n=1)["flux capacitor"].outcome is Outcome.UNKNOWN_PROMPT
    assert closed.asked == []
    answer = Segmenter(opened)(scan, ["flux  capacitor"], n=1)["flux  capacitor"]
    assert answer.outcome is Outcome.FOUND
    assert answer.name == "flux capacitor"
    assert opened.asked[0].concept is None
    assert opened.asked[0].words == "flux  capacitor"


def test_a_system_sees_spacing_and_modality_and_its_scores_come_back(scan):
    system = Listening(scores=torch.tensor([0.25, 0.75]))
    answer = Segmenter(system)(scan, ["liver"], n=2)["liver"]
    view = system.views[0]
    assert view.modality == "MR"
    across = sorted(view.spacing_mm[1:])
    assert across[1] / across[0] < 1.05  # pixels of the grid are square
    extent = max(s * 32 for s in across)
    assert extent == pytest.approx(max(40 * 0.5, 32 * 0.8, 3 * 5.0), rel=0.3)
    assert answer.scores.tolist() == [0.25, 0.75]


@pytest.mark.parametrize(
    ("clue", "message"),
    [
        (lambda: Box((0, 0), (1, 1)), "two corners"),
        (lambda: Box((0, 5, 0), (1, 5, 1)), "two corners"),
        (lambda: Box((0, 0, 0.5), (1, 5, 1)), "two corners"),
    ],
)
def test_a_box_that_is_none_is_refused(clue, message):
    with pytest.raises(PromptError, match=message):
        clue()


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Prompt("liver", box=Box((0, 0, 0), (3, 41, 2))), "a box must lie inside the scan, 3 x 40 x 32 voxels"),
        (Prompt("liver", mask=Region(np.ones((3, 40, 31)))), r"a mask must have the scan's shape \(3, 40, 32\)"),
    ],
)
def test_clues_outside_of_the_scan_are_refused(scan, prompt, message):
    with pytest.raises(PromptError, match=message):
        Segmenter(Listening({Clue.MASK, Clue.BOX}))(scan, [prompt], n=1)


def test_with_marks_a_box_still_holds_and_the_other_clues_still_reach_the_system(scan):
    system = Listening({Clue.SCRIBBLES, Clue.STYLE})
    prompt = Prompt("liver", Marks(positive=[(1, 20, 16)]), box=Box((0, 10, 8), (3, 30, 24)), style="rater 2")
    answer = Segmenter(system)(scan, [prompt], n=2)["liver"]
    outside = np.ones(SHAPE, bool)
    outside[:, 10:30, 8:24] = False
    assert (answer.probabilities[:, outside] == 0).all()
    assert answer.probabilities[0, 1, 20, 16] == 1
    assert system.asked[-1].clues.style == "rater 2"
    assert system.asked[-1].clues.inside.any()


def test_marks_on_a_given_mask_start_from_that_mask(scan):
    class Refining(Listening):
        def estimate(self, seen, asked, slices=None):
            raise AssertionError("the mask was given")

    system = Refining({Clue.MASK, Clue.POINTS, Clue.SCRIBBLES})
    full, empty = (Region(np.full(SHAPE, value, np.float32)) for value in (1.0, 0.0))
    means = []
    for region in (full, empty):
        prompt = Prompt("liver", Marks(positive=[(1, 20, 16)]), mask=region)
        Segmenter(system)(scan, [prompt], n=1)
        means.append(system.asked[-1].clues.mask.mean())
    assert means[0] > means[1]


def test_what_was_learnt_of_answers_to_words_is_not_said_of_answers_to_other_clues(scan):
    segmenter = Segmenter(Listening(), calibration=Calibration(1))
    assert segmenter(scan, ["liver"], n=1)["liver"].calibration is not None
    assert segmenter(scan, [Prompt("liver", box=Box((0, 0, 0), (1, 4, 4)))], n=1)["liver"].calibration is None
