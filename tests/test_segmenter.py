import inspect

import nibabel
import numpy as np
import pytest
import torch
from tests.rounding import assert_same_up_to_rounding

from delineate.data.dataset import open_dataset
from delineate.errors import PromptError, ScanError
from delineate.model_folder import save_model
from delineate.prompts.captions import captions
from delineate.prompts.concept import Concept
from delineate.prompts.prompt import Prompt
from delineate.prompts.vocabulary import Vocabulary
from delineate.proposals.proposals import Outcome
from delineate.scans.geometry import FLAT_AFFINE
from delineate.scans.grid import View
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter, caption_for
from delineate.systems import SYSTEMS
from delineate.systems.system import Asked, Drawn


def families() -> list:
    """Every system, all but the first of each family marked slow: what they share without training is a contract."""
    seen: set[str] = set()
    params = []
    for name, row in SYSTEMS.items():
        family = row.module.split(".")[0]
        known = family in seen or row.takes_network
        params.append(pytest.param(name, marks=[pytest.mark.slow] if known else []))
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
    vocabulary = Vocabulary.from_names(["liver"], "CT")
    size = 32

    def __init__(self, probability):
        self.probability = probability

    def see(self, view):
        stack = view.stack
        return stack

    def propose(self, seen, target, n, seed, on_step=lambda share: None):
        return Drawn(torch.full((n, len(seen), 32, 32), self.probability))


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


def test_an_unknown_prompt_gets_the_nearest_names_and_no_mask(segmenter, case):
    answers = segmenter(case[0], ["livr3", "pancreas", "liver"], n=1)
    unknown = answers["livr3"]
    assert unknown.outcome is Outcome.UNKNOWN_PROMPT
    assert unknown.nearest[0] == "liver"
    assert (unknown.name, unknown.probabilities, len(unknown), unknown.score) == (None, None, 0, 0.0)
    for question in (unknown.consensus, unknown.probability, unknown.disagreement, lambda: unknown.choose(0)):
        with pytest.raises(ValueError, match="unknown prompt"):
            question()
    assert answers["pancreas"].outcome is Outcome.UNKNOWN_PROMPT  # known to anatomy, not to this model
    assert answers["liver"].outcome is Outcome.FOUND


def test_a_saved_and_loaded_segmenter_answers_the_same_to_the_bit(name, segmenter, case, tmp_path):
    save_model(tmp_path / "model", segmenter, name, training={}, card="card")
    again = Segmenter.load(tmp_path / "model")
    assert again.vocabulary == segmenter.vocabulary
    assert again.modalities == ("CT",)
    before, after = (s(case[0], ["spleen", "liver"], n=2, seed=3) for s in (segmenter, again))
    for a, b in zip(before, after, strict=True):
        assert (a.outcome, a.score) == (b.outcome, b.score)
        assert np.array_equal(a.probabilities, b.probabilities)


def test_the_same_question_has_the_same_answer_whatever_was_asked_before(segmenter, case):
    first = segmenter(case[0], ["liver"], n=3, seed=5)["liver"].probabilities
    seen = segmenter.look(case[0])
    segmenter(seen, ["spleen"], n=2, seed=9)
    torch.manual_seed(1)
    after = segmenter(seen, ["spleen", "liver"], n=2, seed=5)["liver"].probabilities
    assert_same_up_to_rounding(after, first[: len(after)])


def test_a_free_sentence_names_the_organ_too(segmenter, case):
    sentence = "segmentation mask of the liver in a CT image"
    answer = segmenter(case[0], [sentence], n=1)[sentence]
    assert answer.name == "liver"
    assert answer.outcome is Outcome.FOUND
    assert dice(answer.consensus(), case[1]) > 0.4


def test_asking_nothing_gives_nothing(segmenter, case):
    answers = segmenter(case[0], [])
    assert list(answers) == []
    labels, ids = answers.label_map()
    assert not labels.any()
    assert ids == {}


@pytest.mark.parametrize("prompt", ["", "  ", "x" * 201])
def test_a_prompt_that_is_none_is_refused(segmenter, case, prompt):
    with pytest.raises(PromptError):
        segmenter(case[0], [prompt])


def test_no_proposals_cannot_be_asked_for(segmenter, case):
    with pytest.raises(ValueError, match="1 or more; got 0"):
        segmenter(case[0], ["liver"], n=0)


def test_a_scan_without_voxels_is_refused(segmenter):
    with pytest.raises(ScanError, match="must hold voxels"):
        segmenter.look(Scan(np.zeros((0, 4, 4), np.float32), np.eye(4)))


def test_progress_rises_to_one(segmenter, case):
    told = []
    segmenter(case[0], ["liver", "nonsense", "spleen"], n=2, on_step=told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


@pytest.mark.parametrize("colour", [False, True])
def test_flat_images_of_any_shape_are_answered_on_their_pixels(segmenter, colour):
    shape = (1, 41, 77, 3) if colour else (1, 41, 77)
    picture = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    answer = segmenter(Scan(picture, FLAT_AFFINE), ["liver"], n=2)["liver"]
    assert answer.probabilities.shape[1:] == (1, 41, 77)
    assert np.isfinite(answer.probabilities).all()


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SLA"])
def test_how_the_file_is_stored_does_not_move_the_mask_in_the_patient(segmenter, case, codes):
    scan, _ = case
    there = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(scan.affine), nibabel.orientations.axcodes2ornt(tuple(codes))
    )
    affine = scan.affine @ nibabel.orientations.inv_ornt_aff(there, scan.shape)
    voxels = nibabel.orientations.apply_orientation(scan.voxels, there)
    turned = segmenter(Scan(voxels, affine, "CT"), ["liver"], n=1)["liver"].choose(0)
    straight = segmenter(scan, ["liver"], n=1)["liver"].choose(0)

    def world(mask, affine):
        at = np.argwhere(mask) @ affine[:3, :3].T + affine[:3, 3]
        return {tuple(p) for p in at.round(2) + 0.0}

    assert straight.any()
    assert world(turned, affine) == world(straight, scan.affine)


def test_the_modality_of_the_scan_is_named_and_else_the_only_one_learnt(segmenter):
    liver = segmenter.vocabulary.concepts[segmenter.vocabulary.index("liver")]
    grey = np.zeros((1, 8, 8), np.float32)
    assert segmenter.modality_of(Scan(grey, np.eye(4), "MR"), liver) == "MR"
    assert segmenter.modality_of(Scan(grey, np.eye(4)), liver) == "CT"
    assert segmenter.modality_of(Scan(grey, np.eye(4)), Concept("liver", (), ("CT", "MR"))) is None


def test_a_name_or_synonym_is_encoded_as_the_plain_caption_and_a_sentence_as_it_stands():
    liver = Vocabulary.from_names(["liver"], "CT").concepts[0]
    plain = caption_for(Prompt("liver"), liver, "CT")
    assert plain == "liver"
    assert caption_for(Prompt("the LIVER"), liver, "CT") == plain
    assert caption_for(Prompt(liver.synonyms[0]), liver, "CT") == plain
    sentence = "please mark the liver in this CT image for me"
    assert caption_for(Prompt(sentence), liver, "CT") == sentence


# --- the systems behind the door: here, where they are trained already


def test_a_saved_system_proposes_the_same_to_the_bit(name, trained, two_organ_bank, tmp_path):
    entry, system = SYSTEMS[name], trained[name].system
    config = entry.save(system, tmp_path)
    again = entry.load(tmp_path, config, system.vocabulary)
    assert again.size == system.size == 64
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} <= {".safetensors", ".json", ".txt"}
    stack = two_organ_bank.images[12:15].float() / 127.5 - 1
    for concept in system.vocabulary.concepts:
        target = Asked(concept, captions(concept, "CT")[0])
        before = system.propose(system.see(View(stack)), target, 2, 7).probabilities
        assert before.std() > 0
        assert torch.equal(again.propose(again.see(View(stack)), target, 2, 7).probabilities, before)


def test_proposals_are_probabilities_and_progress_ends_with_all(name, trained, two_organ_bank):
    system, told = trained[name].system, []
    concept = system.vocabulary.concepts[0]
    stack = two_organ_bank.images[:15].float() / 127.5 - 1
    drawn = system.propose(system.see(View(stack)), Asked(concept, concept.name), 3, 0, told.append).probabilities
    assert drawn.shape[0] in (1, 3)
    assert drawn.shape[1:] == (15, 64, 64)
    assert drawn.device.type == "cpu"
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert told == sorted(told)
    assert not told or told[-1] == 1.0


def test_a_system_has_the_protocol_s_methods(name, trained):
    system = trained[name].system
    parameters = list(inspect.signature(system.propose).parameters)
    assert parameters == ["seen", "target", "n", "seed", "on_step"]
    assert system.to("cpu") is system
