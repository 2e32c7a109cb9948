"""Answers with marks, through the door."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.rounding import HALVES, assert_same_up_to_rounding

from delineate.interaction.answer import MISTAKEN, agreement
from delineate.interaction.marker import Marker, MarkerConfig, build
from delineate.prompts.marks import MarkError, Marks
from delineate.prompts.prompt import Prompt
from delineate.prompts.vocabulary import Vocabulary
from delineate.proposals.proposals import Proposals
from delineate.proposals.target import Outcome, TargetProposals
from delineate.scans.geometry import FLAT_AFFINE
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter
from delineate.systems import ensemble, plain
from delineate.systems.diffusion import unisegdiff

N = 4
Y, X = np.mgrid[:128, :128]
LEFT, RIGHT = ((Y - 64) ** 2 + (X - x) ** 2 < 18**2 for x in (36, 92))
LIVER = Vocabulary.from_names(["liver", "spleen"], "CT")


def untrained(name):
    """Systems that know nothing: what must hold of marks holds of any system."""
    size = plain.PlainConfig(64, (8, 16))
    return {
        "unet": lambda: plain.build(size, LIVER),
        "ensemble": lambda: ensemble.build(ensemble.EnsembleConfig(size, members=N), LIVER),
        "unisegdiff": lambda: unisegdiff.build(unisegdiff.UniSegDiffConfig(64), LIVER),
    }[name]()


@pytest.fixture(scope="module")
def house():
    return Segmenter.load()


@pytest.fixture(scope="module")
def two_spots():
    """Two dark spots on bright skin."""
    rng = np.random.default_rng(0)
    skin = np.stack([np.full((128, 128), v) for v in (205.0, 170.0, 150.0)], axis=-1)
    skin[LEFT | RIGHT] = (90, 55, 45)
    return Scan((skin + rng.normal(0, 4, skin.shape)).astype(np.float32)[None], FLAT_AFFINE, "dermoscopy", None, False)


@pytest.fixture(scope="module")
def volume():
    """Nine slices of noise, stored back to front and upside down."""
    voxels = np.random.default_rng(1).random((40, 36, 9)).astype(np.float32)
    return Scan(voxels, np.diag([-1.5, 1.2, -4.0, 1.0]), "CT", None)


def dice(a, b):
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())


VOLUME_MARKS = Marks([(10, 12, 4), (10, 13, 4), (39, 35, 0)], [(30, 5, 4), (0, 0, 8), (10, 14, 4)])


@pytest.mark.parametrize("name", ["unet", "ensemble", "unisegdiff"])
@pytest.mark.parametrize("text", ["liver", "what is marked"])
def test_what_is_marked_is_as_marked_in_every_proposal_and_other_slices_keep_the_words(name, text, volume):
    segmenter = Segmenter(untrained(name), ("CT",))
    seen = segmenter.look(volume)
    answer = segmenter(seen, [Prompt(text, VOLUME_MARKS)], n=N)[text]
    inside, outside = VOLUME_MARKS.to_masks(volume.shape)
    assert len(answer) == (1 if (name, text) == ("unet", "liver") else N)
    assert answer.outcome is Outcome.FOUND
    assert answer.name == text
    assert answer.probabilities.dtype == np.float16
    for k in range(len(answer)):
        assert answer.choose(k)[inside].all()
        assert not answer.choose(k)[outside].any()
    assert answer.consensus()[inside].all()
    assert not answer.consensus()[outside].any()
    others = [1, 2, 3, 5, 6, 7]
    words = segmenter(seen, ["liver"], n=N)["liver"].probabilities if text == "liver" else 0 * answer.probabilities
    assert np.array_equal(answer.probabilities[..., others], words[..., others])
    assert not np.array_equal(answer.probabilities[..., 4], words[..., 4])


def test_known_pixels_hold_with_the_house_model(house, two_spots):
    marks = Marks([(0, 5, 5), (0, 64, 36)], [(0, 64, 92), (0, 5, 6)])
    answer = house(two_spots, [Prompt("skin lesion", marks)], n=N)["skin lesion"]
    inside, outside = marks.to_masks(two_spots.shape)
    assert (answer.probabilities[:, inside] == 1).all()
    assert (answer.probabilities[:, outside] == 0).all()


def test_one_click_moves_the_answer(house, two_spots):
    seen = house.look(two_spots)
    words = house(seen, ["skin lesion"], n=N)["skin lesion"].consensus()[0]
    away = house(seen, [Prompt("skin lesion", Marks(negative=[(0, 64, 92)]))], n=N)["skin lesion"].consensus()[0]
    assert (words & RIGHT).sum() > 0.5 * RIGHT.sum()
    assert (away & RIGHT).sum() < 0.5 * (words & RIGHT).sum()
    assert (away & LEFT).sum() > 0.5 * (words & LEFT).sum()


def test_a_positive_click_on_an_unknown_word_answers(house, two_spots):
    seen = house.look(two_spots)
    assert house(seen, ["thingummy"])["thingummy"].outcome is Outcome.UNKNOWN_PROMPT
    answer = house(seen, [Prompt("thingummy", Marks([(0, 64, 36)], [(0, 64, 92)]))], n=N)["thingummy"]
    assert answer.outcome is Outcome.FOUND
    assert (len(answer), answer.name, answer.weights) == (N, "thingummy", None)
    assert dice(answer.consensus()[0], LEFT) > 0.8
    assert (answer.consensus()[0] & RIGHT).mean() < 0.01
    assert len({answer.choose(k).sum() for k in range(N)}) > 1  # proposals differ
    only = house(seen, [Prompt("thingummy", Marks(negative=[(0, 64, 92)]))], n=N)["thingummy"]
    assert only.outcome is Outcome.UNKNOWN_PROMPT  # nothing says what is meant


def test_the_same_marks_give_the_same_masks_and_a_seed_others(house, two_spots):
    for text in ("skin lesion", "thingummy"):
        prompt = Prompt(text, Marks([(0, 64, 36)], [(0, 20, 20)]))
        first, again, other = (house(two_spots, [prompt], n=N, seed=seed)[text] for seed in (0, 0, 1))
        assert np.array_equal(first.probabilities, again.probabilities)
        assert not np.array_equal(first.probabilities, other.probabilities)
        few = house(two_spots, [prompt], n=2)[text]
        assert_same_up_to_rounding(few.probabilities, first.probabilities[:2])


def test_a_click_encodes_nothing_again_and_takes_the_words_answer_where_it_is_given(house, two_spots):
    calls = {"see": 0, "propose": 0}

    class Counting:
        vocabulary, size, accepts = house.vocabulary, house.system.size, house.system.accepts

        def __getattr__(self, name):
            return getattr(house.system, name)

        def see(self, view):
            calls["see"] += 1
            return house.system.see(view)

        def propose(self, seen, asked, *args):
            calls["propose"] += asked.clues.mask is None  # by words alone
            return house.system.propose(seen, asked, *args)

        def estimate(self, *args):
            return house.system.estimate(*args)

    segmenter = Segmenter(Counting(), house.modalities)
    seen = segmenter.look(two_spots)
    first = segmenter(seen, ["skin lesion"], n=N)
    prompt = Prompt("skin lesion", Marks([(0, 64, 36)]))
    quick = segmenter(seen, [prompt], n=N, earlier=first)["skin lesion"]
    assert calls == {"see": 1, "propose": 1}
    slow = segmenter(seen, [prompt], n=N)["skin lesion"]
    assert calls == {"see": 1, "propose": 2}
    assert np.array_equal(quick.probabilities, slow.probabilities)
    assert np.array_equal(quick.weights, slow.weights)


@pytest.mark.parametrize("name", ["ensemble", "unisegdiff"])
@pytest.mark.parametrize("text", ["liver", "thingummy"])
def test_slices_whose_marks_stay_as_they_were_are_not_drawn_again_and_nothing_else_changes(name, text, volume):
    looked = []

    class Looking:
        size = 64

        def __init__(self):
            self.network = build(MarkerConfig(64, (8, 16)))

        def probability(self, stack, marks, previous):
            looked.append(len(stack))
            return self.network(stack, marks, previous).detach().sigmoid()

        def draw(self, *args):
            return Marker(MarkerConfig(64, (8, 16)), self.network).draw(*args)

    segmenter = Segmenter(untrained(name), marker=Looking())
    seen = segmenter.look(volume)
    words = segmenter(seen, [text], n=N)
    more = VOLUME_MARKS + Marks(negative=[(20, 20, 0)])  # of its slices 0, 4 and 8 one changes
    fewer = Marks([(39, 35, 0)], [(0, 0, 8)])  # one loses its marks
    before = segmenter(seen, [Prompt(text, VOLUME_MARKS)], n=N, earlier=words)
    for marks, changed in ((more, 1), (fewer, 0), (VOLUME_MARKS, 0)):
        prompt = Prompt(text, marks)
        slow = segmenter(seen, [prompt], n=N)[text]
        looked.clear()
        quick = segmenter(seen, [prompt], n=N, earlier=Proposals(volume, words.targets + before.targets))[text]
        assert sum(looked) == changed
        assert_same_up_to_rounding(quick.probabilities, slow.probabilities)
        assert (quick.outcome, quick.score) == (slow.outcome, pytest.approx(slow.score, abs=HALVES))
        if slow.weights is not None:
            np.testing.assert_allclose(quick.weights, slow.weights, atol=1e-6)


def test_marks_outside_of_the_scan_are_refused_before_any_work(house, two_spots):
    with pytest.raises(MarkError) as refusal:
        house(house.look(two_spots), ["skin lesion", Prompt("skin lesion", Marks([(0, 128, 3)]))], on_step=pytest.fail)
    assert "\n" not in str(refusal.value)
    assert "1 x 128 x 128" in str(refusal.value)


def test_no_marks_are_as_good_as_none(house, two_spots):
    words, empty = (house(two_spots, [p], n=2)["skin lesion"] for p in ("skin lesion", Prompt("skin lesion", Marks())))
    assert np.array_equal(words.probabilities, empty.probabilities)
    assert words.calibration is empty.calibration is not None


def test_an_answer_with_marks_is_not_calibrated_and_saves(house, two_spots, tmp_path):
    prompts = [Prompt("skin lesion", Marks([(0, 64, 36)])), Prompt("thing/../ummy", Marks([(0, 64, 92)]))]
    answers = house(two_spots, prompts, n=2)
    assert {answer.calibration for answer in answers} == {None}
    names = {path.name for path in answers.save(tmp_path, maps=True)}
    assert {"skin_lesion.png", "thing_ummy.png", "thing_ummy_proposal_01.png", "labels.png"} <= names
    assert isinstance(answers, Proposals)


def test_one_answer_is_what_the_marks_network_says():
    """A system with one proposal has no spread to keep: its answer is the marks' probability, off the marks."""

    class Told:
        size = 64

        def probability(self, stack, marks, previous):
            self.previous = previous
            return torch.linspace(0.01, 0.99, 64).expand(len(stack), 64, 64)

    scan = Scan(np.random.default_rng(0).random((1, 64, 64)).astype(np.float32), FLAT_AFFINE, "CT", None, False)
    segmenter = Segmenter(untrained("unet"), ("CT",), marker=Told())
    words = segmenter(scan, ["liver"])["liver"].probabilities[0, 0].astype(np.float32)
    answer = segmenter(scan, [Prompt("liver", Marks([(0, 3, 3)]))])["liver"].probabilities[0, 0].astype(np.float32)
    assert segmenter.marker.previous[0].numpy() == pytest.approx(words, abs=2e-3)
    assert answer[3, 3] == 1
    assert answer[10:] == pytest.approx(np.linspace(0.01, 0.99, 64)[None].repeat(54, 0), abs=2e-3)


def test_weights_are_bayes_rule_a_stroke_at_a_time():
    p = np.zeros((3, 1, 4, 8), np.float16)
    p[0] = 1
    p[1, :, :, :4] = 1
    masks = np.zeros((2, 1, 4, 8), bool)
    masks[0, 0, 0, :2] = True  # one stroke: inside by the first two
    masks[1, 0, 3, 6] = True  # another: outside by the last two
    weights = agreement(p, masks)
    right, wrong = 1 - MISTAKEN, MISTAKEN
    expected = np.array([right * wrong, right * right, wrong * right])
    assert weights == pytest.approx(expected / expected.sum())
    assert agreement(p[:1], masks) is None


def test_weights_move_mean_consensus_and_the_order_of_distinct_proposals():
    masks = np.zeros((4, 1, 8, 8), np.float16)
    masks[:3, :, :4], masks[3, :, 4:] = 1, 1
    plain_answer = TargetProposals(Prompt("liver"), "liver", Outcome.FOUND, 0.9, masks)
    weighed = replace(plain_answer, weights=np.array([0.1, 0.1, 0.1, 0.7]))
    assert np.array_equal(plain_answer.consensus(), masks[0] > 0.5)
    assert np.array_equal(weighed.consensus(), masks[3] > 0.5)
    assert weighed.mean() == pytest.approx(np.tensordot(weighed.weights, masks.astype(float), 1), abs=1e-3)
    assert [(group.k, round(group.weight, 6)) for group in plain_answer.distinct()] == [(0, 0.75), (3, 0.25)]
    assert [(group.k, round(group.weight, 6)) for group in weighed.distinct()] == [(3, 0.7), (0, 0.3)]
