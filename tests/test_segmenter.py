import numpy as np
import pytest
import torch

from delineate.data.dataset import open_dataset
from delineate.errors import PromptError, ScanError
from delineate.prompts.vocabulary import Vocabulary
from delineate.proposals.target import Outcome
from delineate.scans.geometry import FLAT_AFFINE
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter
from delineate.systems import SYSTEMS
from delineate.systems.system import Drawn


def families() -> list:
    """Every system, all but the first of each family marked slow: what they share without training is a contract."""
    seen: set[str] = set()
    params = []
    for name, row in SYSTEMS.items():
        family = row.module.split(".")[0]
        known = family in seen or row.takes_network or family == "latent"  # half a minute; its own tests see it learn
        known |= row.takes_foundation  # a minute, likewise
        params.append(pytest.param(name, marks=[pytest.mark.slow] if known else []))
        if not known:
            seen.add(family)
    return params


@pytest.fixture(params=families())
def name(request):
    return request.param


@pytest.fixture
def segmenter(name, trained):
    return trained[name]


@pytest.fixture(scope="module")
def case(phantom_dataset):
    """A training scan and its labels: what a machine that learnt anything finds again."""
    dataset = open_dataset(phantom_dataset)
    scan, ids = dataset.read(dataset.split("train")[0])
    return scan, ids == dataset.labels["liver"]


def dice(a, b):
    return 2 * (a & b).sum() / max(1, a.sum() + b.sum())


def test_the_prompted_organ_is_found_on_the_scan_s_own_voxels(segmenter, case):
    scan, truth = case
    answer = segmenter(scan, ["liver"], n=2)["liver"]
    assert answer.outcome is Outcome.FOUND
    assert 0.6 <= answer.score <= 1
    assert answer.probabilities.dtype == np.float16
    assert answer.probabilities.shape[1:] == scan.shape
    assert dice(answer.consensus(), truth) > 0.5


def test_slices_without_the_organ_hold_less_of_it(segmenter, case):
    scan, truth = case
    without = ~truth.any(axis=(0, 1))
    assert 0 < without.sum() < len(without)
    empty = segmenter(Scan(scan.voxels[:, :, without], scan.affine, "CT"), ["liver"], n=2)["liver"]
    whole = segmenter(scan, ["liver"], n=2)["liver"]
    assert empty.consensus().mean() < whole.consensus().mean()


class Constant:
    """Draws one probability everywhere."""

    accepts, open_words, about = frozenset(), False, ""
    vocabulary = Vocabulary.from_names(["liver", "spleen"], "CT")
    size = 32

    def __init__(self, probability):
        self.probability = probability

    def see(self, view):
        stack = view.stack
        return stack

    def propose(self, seen, target, n, seed, on_step=lambda share: None):
        return Drawn(torch.full((n, len(seen), 32, 32), self.probability))


@pytest.fixture
def certain():
    """A segmenter that sees liver everywhere and needs no training."""
    return Segmenter(Constant(1.0), ("CT",))


@pytest.mark.parametrize(
    ("probability", "outcome", "score"),
    [
        (0.0, Outcome.LIKELY_ABSENT, 0.0),
        (0.49, Outcome.LIKELY_ABSENT, 0.0),
        (0.55, Outcome.LIKELY_ABSENT, 0.55),
        (0.65, Outcome.FOUND, 0.65),
        (1.0, Outcome.FOUND, 1.0),
    ],
)
def test_the_outcome_follows_from_how_sure_the_proposals_are(probability, outcome, score):
    scan = Scan(np.zeros((2, 32, 32), np.float32), FLAT_AFFINE)
    answer = Segmenter(Constant(probability))(scan, ["liver"], n=3)["liver"]
    assert answer.outcome is outcome
    assert answer.score == pytest.approx(score, abs=1e-3)
    assert len(answer) == 3  # masks come with the doubt, even of what is likely absent


def test_an_unknown_prompt_gets_the_nearest_names_and_no_mask(certain, case):
    answers = certain(case[0], ["livr3x", "pancreas", "liver"], n=1)
    unknown = answers["livr3x"]
    assert unknown.outcome is Outcome.UNKNOWN_PROMPT
    assert unknown.nearest[0] == "liver"
    assert (unknown.name, unknown.probabilities, len(unknown), unknown.score) == (None, None, 0, 0.0)
    for question in (unknown.consensus, unknown.probability, unknown.disagreement, lambda: unknown.choose(0)):
        with pytest.raises(ValueError, match="unknown prompt"):
            question()
    assert answers["pancreas"].outcome is Outcome.UNKNOWN_PROMPT  # known to anatomy, not to this model
    assert answers["liver"].outcome is Outcome.FOUND


def test_a_free_sentence_names_the_organ_too(segmenter, case):
    sentence = "segmentation mask of the liver in a CT image"
    answer = segmenter(case[0], [sentence], n=1)[sentence]
    assert answer.name == "liver"
    assert answer.outcome is Outcome.FOUND
    assert dice(answer.consensus(), case[1]) > 0.4


def test_asking_nothing_gives_nothing(certain, case):
    answers = certain(case[0], [])
    assert list(answers) == []
    labels, ids = answers.label_map()
    assert not labels.any()
    assert ids == {}


@pytest.mark.parametrize("prompt", ["", "  ", "x" * 201])
def test_a_prompt_that_is_none_is_refused(certain, case, prompt):
    with pytest.raises(PromptError):
        certain(case[0], [prompt])


def test_no_proposals_cannot_be_asked_for(certain, case):
    with pytest.raises(ValueError, match="1 or more; got 0"):
        certain(case[0], ["liver"], n=0)


def test_a_scan_without_voxels_is_refused(certain):
    with pytest.raises(ScanError, match="must hold voxels"):
        certain.look(Scan(np.zeros((0, 4, 4), np.float32), np.eye(4)))


@pytest.mark.parametrize("words", ["the LIVER", "hepar", "please mark the liver in this CT image for me"])
def test_however_a_target_is_named_the_answer_is_the_same_to_the_bit(certain, case, words):
    plain, other = (certain(case[0], [text], n=2).targets[0] for text in ("liver", words))
    assert other.name == "liver"
    assert np.array_equal(plain.probabilities, other.probabilities)


def test_several_names_in_one_prompt_are_so_many_targets_and_what_was_understood_is_said(certain, case):
    answers = certain(case[0], ["liver and spleen"], n=1)
    assert [target.name for target in answers] == ["liver", "spleen"]
    assert answers["spleen"].said == "'liver and spleen' was taken for liver and spleen"
