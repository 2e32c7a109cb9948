"""A question that does not fit the scan is refused before anything is drawn; scans that lie turned are noticed."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from delineate.calibration.guarantees import Calibration
from delineate.calibration.recogniser import TURNS, Head, Kind, Recogniser, Turns
from delineate.cli.app import main
from delineate.data.dataset import open_dataset
from delineate.data.phantom import write_phantom_dataset
from delineate.few_shot.learning import Looked, mean_dice
from delineate.jobs.recognising import recogniser_of
from delineate.jobs.segment import asked_of, looked_at
from delineate.model_folder import save_model
from delineate.prompts.concept import Concept
from delineate.prompts.marks import Marks
from delineate.prompts.prompt import Prompt
from delineate.prompts.vocabulary import Vocabulary
from delineate.proposals.description import describe
from delineate.proposals.target import Outcome
from delineate.segmenter import Segmenter
from delineate.systems import SYSTEMS

ABDOMEN, BRAIN = Kind("abdomen", "CT", ("liver", "spleen")), Kind("brain", "MR", ("hippocampus",))


@pytest.fixture(scope="module")
def segmenter(two_organ_bank):
    """One that learnt nothing: what is refused is refused before it is asked."""
    made = SYSTEMS["encoder"].make("tiny", 64, two_organ_bank.vocabulary, seed=0, modalities=("CT",))
    return Segmenter(made, ("CT",))


@pytest.fixture(scope="module")
def scan(phantom_dataset):
    dataset = open_dataset(phantom_dataset)
    return dataset.read(dataset.split("val")[0])[0]


def always(segmenter, scan, column, classes):
    """A head that says the same of every scan."""
    numbers = segmenter.look(scan).features.gist.shape[1]
    weights = np.zeros((2, classes), np.float32)
    weights[1, column] = 9
    return Head(np.zeros(numbers, np.float32), np.zeros((numbers, 1), np.float32), weights)


def taught(segmenter, scan, column, **more):
    """The segmenter with a recogniser that takes every scan for an abdomen (0), a brain (1) or none of both (2)."""
    recogniser = Recogniser((ABDOMEN, BRAIN), always(segmenter, scan, column, 3), -0.1, 9)
    return segmenter.calibrated(Calibration(1, recogniser=replace(recogniser, **more)))


def test_what_was_learnt_in_such_scans_is_answered(segmenter, scan):
    scan = replace(scan, modality=None)
    answer = taught(segmenter, scan, 0)(scan, ["liver"], n=1)["liver"]
    assert answer.misfit == ""
    assert answer.drawn is not None


@pytest.mark.parametrize(
    ("column", "outcome", "why"),
    [(1, Outcome.NOT_LEARNT, "taken for MR of hippocampus"), (2, Outcome.UNLIKE, "unlike any that the model learnt")],
)
def test_what_was_not_is_refused_in_words_and_drawn_only_if_one_insists(segmenter, scan, column, outcome, why):
    scan = replace(scan, modality=None)
    asked = taught(segmenter, scan, column)
    answers = asked(scan, ["liver"], n=1)
    answer = answers["liver"]
    assert (answer.outcome, answer.drawn, len(answer)) == (outcome, None, 0)
    assert why in answer.misfit
    told = describe(answers, "mean")[0]
    assert told["misfit"] == answer.misfit
    assert "score" not in told
    with pytest.raises(ValueError, match=outcome.value):
        answer.consensus()
    insisted = asked(scan, ["liver"], n=1, anyway=True)["liver"]
    assert insisted.outcome in (Outcome.FOUND, Outcome.LIKELY_ABSENT)
    assert insisted.misfit == answer.misfit
    marked = asked(scan, [Prompt("liver", marks=Marks(positive=((30, 30, 5),)))], n=1).targets[0]
    assert marked.outcome is Outcome.FOUND
    assert marked.misfit == answer.misfit


def test_what_a_model_is_measured_by_is_drawn_whether_it_fits_or_not(segmenter, scan, phantom_dataset):
    """The base of an adaptation, say: a refusal would count as an empty mask, or end the job."""
    dataset = open_dataset(phantom_dataset)
    ids = dataset.read(dataset.split("val")[0])[1]
    held = [Looked(scan, {"liver": ids == dataset.labels["liver"]}, np.zeros(ids.shape, bool))]
    assert mean_dice(taught(segmenter, scan, 2), held) == mean_dice(segmenter, held)


def test_a_modality_that_nobody_learnt_is_refused_by_its_name(segmenter, scan):
    scan = replace(scan, modality="US")
    answer = taught(segmenter, scan, 0)(scan, ["liver"], n=1)["liver"]
    assert answer.outcome is Outcome.NOT_LEARNT
    assert answer.misfit.endswith("this scan is US")


def test_a_target_that_held_out_subjects_hardly_show_is_not_learnt_rather_than_absent(segmenter, scan):
    known = Calibration(1, dice={"liver": np.array([0.0, 0.02, 0.01]), "spleen": np.array([0.0, 0.01])})
    answers = segmenter.calibrated(known)(scan, ["liver", "spleen"], n=1)
    assert answers["liver"].outcome is Outcome.NOT_LEARNT
    assert "Dice 0.01 on 3 held-out subjects" in answers["liver"].misfit
    assert answers["spleen"].drawn is not None  # two subjects are too few to say so


@pytest.mark.parametrize(
    ("column", "modality", "asked"),
    [
        (0, None, ("liver", "spleen")),  # recognised
        (1, None, ()),  # as another kind, in which none of its names were learnt
        (2, "CT", ("liver", "spleen")),  # unlike any: by its modality
        (2, None, ("liver", "spleen")),  # unlike any, and nobody tells: all names
    ],
)
def test_all_is_what_was_learnt_for_the_scan_at_hand(segmenter, scan, column, modality, asked):
    who, seen = taught(segmenter, scan, column), segmenter.look(replace(scan, modality=modality))
    prompts, (note,) = asked_of(who, seen, ("all",))
    assert tuple(prompts) == asked
    assert note.startswith("asked for all that was learnt in ")
    assert asked_of(who, seen, ("spleen", "all"))[0][0] == "spleen"
    assert asked_of(who, seen, ("spleen",)) == (("spleen",), [])


def test_all_leaves_out_what_is_not_learnt_and_goes_by_modality_where_nobody_recognises(segmenter, scan):
    seen = segmenter.look(scan)
    poor = segmenter.calibrated(Calibration(1, dice={"liver": np.array([0.0, 0.02, 0.01])}))
    assert asked_of(poor, seen, ("all",))[0] == ("spleen",)
    parts = (Concept("liver", modalities=("CT",)), Concept("polyp", modalities=("endoscopy",)), Concept("nodule"))
    made = SYSTEMS["encoder"].make("tiny", 64, Vocabulary(parts), seed=0, modalities=("CT", "endoscopy"))
    assert asked_of(Segmenter(made), replace(seen, scan=scan), ("all",))[0] == ("liver", "nodule")
    unknown = replace(seen, scan=replace(scan, modality="PET"))
    assert asked_of(Segmenter(made), unknown, ("all",))[0] == ("nodule",)
    assert len(asked_of(Segmenter(made), replace(seen, scan=replace(scan, modality=None)), ("all",))[0]) == 3


def test_a_scan_that_lies_turned_is_told_and_turned_if_asked(segmenter, scan):
    scan = replace(scan, modality=None)
    turns = {ABDOMEN.name: Turns(always(segmenter, scan, 2, TURNS), -0.5, 50)}
    asked = taught(segmenter, scan, 0, turns=turns)
    seen, notes = looked_at(asked, scan)
    assert seen.turn == 0
    assert "upside down" in notes[0]
    assert "--turn auto" in notes[0]
    seen, notes = looked_at(asked, scan, turn=True)
    assert seen.turn == 2
    assert "its masks back" in notes[0]
    turned = replace(scan, voxels=scan.voxels[::-1, ::-1].copy())  # rows and columns of its slices
    plain = asked(scan, ["liver"], n=1)["liver"].probabilities
    back = asked(asked.look(turned, turn=2), ["liver"], n=1)["liver"].probabilities
    np.testing.assert_allclose(back[:, ::-1, ::-1].astype(float), plain.astype(float), atol=0.03)


def test_it_is_taught_on_train_and_tells_held_out_scans_apart(segmenter, phantom_dataset, tmp_path):
    mr = write_phantom_dataset(tmp_path / "mr", cases=6, shape=(10, 64, 64), missing=(), modality="MR", seed=5)
    datasets = [open_dataset(phantom_dataset), open_dataset(mr)]
    shares = []
    found = recogniser_of(segmenter, datasets, on_step=shares.append)
    assert found is not None
    assert [sorted(kind.targets) for kind in found.kinds] == [["liver", "spleen"]] * 2
    assert shares[-1] == pytest.approx(1)
    for dataset, kind in zip(datasets, found.kinds, strict=True):
        for case in dataset.split("test"):
            told = segmenter.look(replace(dataset.read(case)[0], modality=None)).features.gist.numpy()
            assert found.kinds[int(np.argmax(found.log_shares(told)[:-1]))] == kind
    strange = torch.rand(3, 64, 64) * 2 - 1
    assert found(segmenter.system.see(type("V", (), {"stack": strange[None]})).gist.numpy()).kind is None


def test_the_command_says_so_and_ends_with_a_code_of_its_own(segmenter, phantom_dataset, tmp_path, capsys, monkeypatch):
    dataset = open_dataset(phantom_dataset)
    case = dataset.split("val")[0]
    scan = dataset.read(case)[0]
    save_model(tmp_path / "model", segmenter, "encoder", training={}, card="")
    from delineate.jobs.calibrate import save_calibration

    calibration = taught(segmenter, scan, 2).calibration
    save_calibration(tmp_path / "model", replace(calibration, dice={"liver": np.array([0.8, 0.9])}))
    command = [
        "segment",
        str(case.image),
        "-p",
        "liver",
        "-m",
        str(tmp_path / "model"),
        "-o",
        str(tmp_path / "out"),
        "-n",
        "1",
    ]

    def run(*more):
        monkeypatch.setattr("sys.argv", ["delineate", *command, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, capsys.readouterr()

    code, said = run()
    assert code == 11
    assert "--anyway asks all the same" in said.err
    (target,) = json.loads((tmp_path / "out" / "run.json").read_text())["cases"][0]["targets"]
    assert target["outcome"] == "scan unlike any known"
    assert not list((tmp_path / "out").glob("*/liver*"))
    code, said = run("--anyway")
    assert code == 0
    assert "asked all the same" in said.err
    assert list((tmp_path / "out").glob("*/liver*"))
    code, said = run("--turn", "left")
    assert code == 2
