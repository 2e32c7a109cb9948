"""Calibration on the scans of another place, with an adapter on or without: what it promises, keeps and refuses."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from delineate.calibration.calibrators import Temperature
from delineate.calibration.guarantees import (
    THRESHOLDS,
    Calibration,
    GuaranteeError,
    carried,
    refused_guarantees,
    together,
)
from delineate.calibration.presence import Presence
from delineate.calibration.recogniser import Kind, Local, Recogniser
from delineate.cli.app import app
from delineate.data.dataset import open_dataset
from delineate.data.folds import Fold
from delineate.data.named import parse_named
from delineate.data.phantom import write_phantom_dataset
from delineate.errors import DatasetError, DelineateError
from delineate.jobs.adapt import AdaptRequest, adapt
from delineate.jobs.calibrate import CalibrateRequest, calibrate_local, calibrate_model, save_calibration
from delineate.jobs.recognising import _moved, local_kind, recogniser_of
from delineate.jobs.watch import Nobody
from delineate.model_folder import save_model
from delineate.prompts.clues import Box
from delineate.prompts.marks import Marks
from delineate.prompts.prompt import Prompt
from delineate.proposals.description import describe
from delineate.proposals.target import Outcome
from delineate.scans.grid import turned, turned_back
from delineate.scans.reading import read_scan
from delineate.segmenter import Segmenter
from delineate.storage.files import sha256_of
from delineate.systems import SYSTEMS


class Said(Nobody):
    """Keeps what people are told."""

    def __init__(self):
        self.lines = []

    def say(self, line):
        self.lines.append(line)


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    """Calibrated by nobody, of the phantom's liver and spleen in CT."""
    folder = tmp_path_factory.mktemp("local") / "model"
    save_model(folder, trained["unet"], "unet", training={"datasets": ["abdomen"]}, card="A base.\n")
    return folder


@pytest.fixture(scope="module")
def mr(tmp_path_factory):
    """Twelve patients of another place; two organs, no splits."""
    folder = tmp_path_factory.mktemp("place") / "mr_abdomen"
    write_phantom_dataset(folder, cases=12, modality="MR", shape=(10, 64, 64), missing=(), seed=50)
    (folder / "splits.json").unlink(missing_ok=True)
    return folder


@pytest.fixture(scope="module")
def adapter(model, mr, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "to-mr"
    named = open_named(mr)
    adapt(AdaptRequest(model, named, shots=2, images=48), folder)
    return folder


def open_named(root):
    return parse_named(f"{root}=liver,spleen", None, None)


def request(model, mr, **more):
    return CalibrateRequest(model, [f"{mr}=liver,spleen"], n=1, local=True, **more)


def test_with_an_adapter_both_are_calibrated_together_on_what_it_did_not_learn_from(model, mr, adapter):
    watch = Said()
    scan = sorted((mr / "imagesTr").iterdir())[-1]
    shares = {"missed_at_most": 0.1}
    with pytest.raises(GuaranteeError, match=r"delineate calibrate .* --adapter"):
        refused_guarantees(model, ["liver"], 1, adapter, **shares)
    before = Segmenter.load(model, adapter=adapter)
    told = describe(before(read(scan), ["liver"], n=1), "mean")[0]
    assert "with this adapter on" in told["uncalibrated"]
    assert told["expected_dice"] is None
    found = calibrate_model(request(model, mr, adapter=adapter), watch=watch)
    assert "the adapter learnt from 2 of its subjects" in watch.lines[0]
    assert found.about["subjects"] == 10
    after = Segmenter.load(model, adapter=adapter)
    assert after.calibration is not None
    assert after.calibration.missed["liver"].shape[0] == 10
    assert Segmenter.load(model).calibration is None  # the model alone is as it was
    answer = describe(after(read(scan), ["liver"], n=1), "mean")[0]
    assert "uncalibrated" not in answer
    (ten,) = after.calibration.guarantees("liver", **shares)
    assert (ten.subjects, ten.subjects_needed) == (10, 9)
    assert ten.threshold is not None or "the model misses or adds too much" in ten.why_not  # which is another thing
    with pytest.raises(GuaranteeError, match="needs at least 99"):
        refused_guarantees(model, ["liver"], 1, adapter, missed_at_most=0.01)


def read(path):
    return replace(read_scan(path), modality="MR")


def test_an_adapter_that_learnt_from_all_of_them_has_nothing_left(model, mr, adapter):
    learnt = set(json.loads((adapter / "adapter.json").read_text())["training"]["learnt_from"])
    dataset = open_dataset(mr, targets=["liver", "spleen"])
    own = tuple(case for case in dataset.cases if sha256_of(case.image) in learnt)
    assert len(own) == 2
    with pytest.raises(DatasetError, match="no subject is left that nothing was learnt from"):
        calibrate_local(request(model, mr, adapter=adapter), [replace(dataset, cases=own)])


def test_without_one_what_was_known_of_others_stays():
    liver = np.zeros((30, len(THRESHOLDS)))
    old = Calibration(
        1,
        Temperature(1.5),
        estimate={"": Temperature(2.0)},
        consensus={"": 0.4, "pancreas": 0.3},
        missed={"pancreas": liver, "liver": liver},
        dice={"pancreas": np.full(30, 0.6), "liver": np.full(30, 0.9)},
        about={"datasets": ["abdomen"]},
    )
    new = Calibration(1, missed={"liver": liver[:10]}, dice={"liver": np.full(10, 0.5)}, consensus={"": 0.7})
    both = together(old, new)
    assert len(both.missed["liver"]) == 10
    assert len(both.missed["pancreas"]) == 30
    assert (both.consensus_at("liver"), both.consensus_at("pancreas"), both.consensus_at("spleen")) == (0.7, 0.3, 0.4)
    assert both.voxel == Temperature(1.5)
    assert both.of_estimate("pancreas") == Temperature(2.0)
    assert both.about["local"] == {}


def test_a_fold_is_refused(model, mr, adapter):
    with pytest.raises(DelineateError, match="--fold is for sets that a model learnt from"):
        calibrate_model(request(model, mr, adapter=adapter, fold=Fold(1, 2)))


def test_another_number_of_proposals_is_refused(model, mr, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    save_calibration(copy, Calibration(8))
    with pytest.raises(DelineateError, match="give -n 8"):
        calibrate_model(request(copy, mr))


def test_scans_like_the_local_ones_are_known_and_others_are_not(two_organ_bank, phantom_dataset, mr, tmp_path):
    made = SYSTEMS["encoder"].make("tiny", 64, two_organ_bank.vocabulary, seed=0, modalities=("CT",))
    segmenter = Segmenter(made, ("CT",))
    taught = recogniser_of(segmenter, [open_dataset(phantom_dataset)])
    local = open_dataset(mr, targets=["liver", "spleen"])
    first, rest = replace(local, cases=local.cases[:8]), local.cases[8:]
    recogniser = taught.with_local([local_kind(segmenter, first, taught)])
    calibration = Calibration(1, recogniser=recogniser)
    calibration.save(tmp_path)
    asked = segmenter.calibrated(Calibration.load(tmp_path))
    scans = [local.read(case)[0] for case in rest]
    fits = [asked(replace(scan, modality="MR"), ["liver"], n=1)["liver"].misfit == "" for scan in scans]
    assert sum(fits) >= 3
    without = segmenter.calibrated(Calibration(1, recogniser=taught))
    assert all(without(replace(s, modality="MR"), ["liver"], n=1)["liver"].outcome is Outcome.NOT_LEARNT for s in scans)
    noise = replace(scans[0], voxels=torch.rand(scans[0].shape).numpy(), modality="MR")
    assert asked(noise, ["liver"], n=1)["liver"].drawn is None
    assert asked(replace(scans[0], modality="US"), ["liver"], n=1)["liver"].drawn is None


def test_a_local_kind_reaches_as_far_as_its_own_scans_lie_apart():
    kind = Kind("place", "MR", ("liver",))
    local = Local.of(kind, [(np.array([0.0, y]), np.array([3 * y])) for y in (0.0, 1.0, 3.0)])
    assert local.reach == (2, 6)
    assert local.holds((np.array([0.0, 5.0]), np.array([9.0])), "MR")
    assert not local.holds((np.array([0.0, 5.1]), np.array([9.0])), None)
    assert not local.holds((np.array([0.0, 3.0]), np.array([15.1])), None)
    assert not local.holds((np.array([0.0, 1.0]), np.array([0.0])), "CT")
    head = Recogniser((kind,), None, -0.1)
    again = Local.of(kind, [(np.zeros(2), np.zeros(1))] * 2)
    assert head.with_local([local]).with_local([again]).local == (again,)


def test_what_few_subjects_cannot_carry_is_said_in_numbers():
    shares = (0.01, 0.05, 0.1)
    assert carried({"liver": range(10)}, shares) == [
        "liver: 10 subjects carry a guarantee of 9.1% at best, were nothing missed; 5% needs 19, 1% needs 99"
    ]
    assert carried({"liver": range(1), "spleen": range(99)}, shares)[0].startswith("liver: 1 subject carries")
    assert carried({"spleen": range(99)}, shares) == []


def test_the_command_writes_into_the_adapter_and_says_what_is_carried(model, mr, adapter):
    words = ["calibrate", str(model), f"{mr}=liver,spleen", "--adapter", str(adapter), "-n", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "10 subjects carry a guarantee of 9.1% at best, were nothing missed; 5% needs 19, 1% needs 99" in " ".join(
        done.output.split()
    )
    assert (adapter / "calibration.json").is_file()


def test_answers_to_other_than_words_say_that_nobody_was_asked(trained, phantom_dataset):
    dataset = open_dataset(phantom_dataset)
    scan = dataset.read(dataset.split("val")[0])[0]
    segmenter = trained["unet"].calibrated(Calibration(1))
    marked = Prompt("liver", marks=Marks(positive=((30, 30, 5),)))
    boxed = Prompt("liver", box=Box((0, 0, 0), tuple(n - 1 for n in scan.shape)))
    plain, by_mark, by_box = describe(segmenter(scan, ["liver", marked, boxed], n=1), "mean")
    assert "uncalibrated" not in plain
    assert "without marks" in by_mark["uncalibrated"]
    assert "without a box" in by_box["uncalibrated"]
    assert "delineate calibrate" in describe(trained["unet"](scan, ["liver"], n=1), "mean")[0]["uncalibrated"]


def test_why_names_the_score_that_decided_even_where_nobody_was_asked(trained, phantom_dataset):
    """A box takes the promises off, not the threshold: outcome and reason must tell of the same score."""
    dataset = open_dataset(phantom_dataset)
    scan = dataset.read(dataset.split("val")[0])[0]
    boxed = Prompt("liver", box=Box((0, 0, 0), tuple(n - 1 for n in scan.shape)))
    score = trained["unet"](scan, [boxed], n=1).targets[0].score
    strict = Calibration(1, presence={"liver": Presence(score + 0.001, 0.1, 0.1, 9, 9, 1.0)})
    answer = trained["unet"].calibrated(strict)(scan, [boxed], n=1)
    assert answer.targets[0].outcome is Outcome.LIKELY_ABSENT
    assert f"stays below {score + 0.001:.3f}, from where on" in describe(answer, "mean")[0]["why"]
    assert f"{score:.3f}" in describe(answer, "mean")[0]["why"]


def test_the_reason_outlives_a_calibration_that_is_taken_off(trained):
    off = trained["unet"].calibrated(Calibration(1)).calibrated(None)
    assert "delineate calibrate MODEL DATASET" in off.uncalibrated


def test_slices_that_teach_turns_are_as_they_are_and_with_other_greys_in_turn():
    stack = torch.rand(6, 3, 8, 8) * 2 - 1
    moved = _moved(stack, torch.Generator().manual_seed(0))
    assert torch.equal(moved[::2], stack[::2])
    assert all(not torch.equal(one, other) for one, other in zip(moved[1::2], stack[1::2], strict=True))
    assert moved.abs().max() <= 1


def test_a_turn_by_nothing_copies_nothing():
    stack = torch.rand(2, 3, 8, 8)
    assert turned(stack, 0) is stack
    assert turned_back(stack, 0) is stack
