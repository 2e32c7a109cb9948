import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from delineate.calibration.calibrators import Beta
from delineate.calibration.guarantees import THRESHOLDS, Calibration
from delineate.data.dataset import Case, Dataset, open_dataset
from delineate.errors import DatasetError, DelineateError, ModelError
from delineate.evaluation.protocols.lines import answers
from delineate.jobs.calibrate import (
    _near,
    calibrate,
    calibrate_folder,
    calibrators_of,
    evidence_from,
    save_calibration,
)
from delineate.model_folder import calibration_hash, check_model, fingerprint, save_model
from delineate.prompts.clues import Box
from delineate.prompts.prompt import Prompt
from delineate.prompts.vocabulary import Vocabulary
from delineate.proposals.target import Outcome
from delineate.scans.scan import Scan
from delineate.segmenter import FOUND_FROM, Segmenter
from delineate.systems.system import Drawn

NAMES = tuple(f"s{i}" for i in range(8))


class Blocks(Dataset):
    """Volumes of 32 slices of 32 x 32 x 1 mm; a block of liver in the first six slices, as bright as its case's number."""

    def read(self, case):
        ids = np.zeros((32, 32, 32), np.int32)
        ids[8:24, 8:24, :6] = 1
        voxels = np.where(ids > 0, 100.0 + int(case.name[1:]), -200.0).astype(np.float32)
        return Scan(voxels, np.diag([-1.0, -1, 1, 1]), "CT"), ids


class Brightness:
    """The block at p 0.9, its last column at 0.3; something faint everywhere; fewer proposals than asked for."""

    accepts, open_words, about = frozenset(), False, ""
    vocabulary = Vocabulary.from_names(["liver", "spleen"], "CT")
    size = 32

    def see(self, view):
        stack = view.stack
        return stack[:, 1]

    def propose(self, seen, target, n, seed, on_step=lambda share: None):
        inside = (seen > 0).float()
        last = inside * (1 - torch.roll(inside, -1, dims=2))
        return Drawn((0.9 * inside - 0.6 * last + 0.0005)[None].repeat(min(n, 5), 1, 1, 1))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("blocks")
    cases = tuple(Case(name, name, root / name, root / name) for name in NAMES)
    return Blocks(root, "blocks", "CT", {"liver": 1}, cases, {"train": (), "val": NAMES, "test": ()})


@pytest.fixture(scope="module")
def found(dataset):
    return calibrate(Segmenter(Brightness()), [dataset], n=8)


def test_what_one_case_says(dataset):
    (answered,) = answers(Segmenter(Brightness()), dataset, dataset.cases[:1], ["liver"], 8, 0)
    one = evidence_from(dataset, answered)
    assert (one.subject, one.target, one.drawn) == ("blocks/s0", "liver", 5)
    missed = dict(zip(THRESHOLDS.round(3), one.missed, strict=True))
    assert one.missed[0] == 0
    assert one.missed[-1] == 1
    assert np.interp(0.5, THRESHOLDS, one.missed) == pytest.approx(1 / 16, abs=0.01)  # one column of sixteen
    assert np.interp(0.1, THRESHOLDS, one.missed) == 0
    assert len(missed) > 100
    assert one.score_present == pytest.approx(0.9, abs=0.01)
    assert one.score_absent == 0  # of the last six slices
    p, y, w = one.voxels
    assert p.min() > 0.2  # what no proposal reaches is left out
    assert y.all()
    assert w.sum() == pytest.approx(16 * 16 * 6)


def test_held_out_subjects_set_thresholds_and_the_rest(found):
    assert found.proposals == 5
    assert found.missed["liver"].shape == (8, len(THRESHOLDS))
    (one,) = found.guarantees("liver", missed_at_most=0.15)
    assert 0.2 < one.threshold <= 0.9
    assert found.consensus_at("liver") <= 0.3  # the faint column is liver too
    assert found.volume_errors["liver"] == pytest.approx(np.zeros(8), abs=0.01)
    assert found.presence["liver"].absent == 8
    assert found.presence["liver"].rate == pytest.approx(1 / 9)
    assert found.presence["liver"].sensitivity == 1
    assert found.volume_interval("liver", 10.0) is None  # nine subjects are needed
    assert found.about["split"] == "val"
    assert "5.0% needs 19 subjects that lack a target" in found.summary()["lines"][0]


class Timid:
    """Estimates that are far too low, drawn as they are, mended where a calibration tells how."""

    accepts, open_words, about, draws_estimate = frozenset(), False, "", True
    vocabulary = Vocabulary.from_names(["liver", "spleen"], "CT")
    size = 32

    def see(self, view):
        return view.stack[:, 1]

    def estimate(self, seen, asked, slices=None):
        true = (seen > 0).float()
        return 0.2 * true + 0.002 * (1 - true)  # of 0.2 all are liver, of 0.002 none

    def propose(self, seen, asked, n, seed, on_step=lambda share: None):
        return Drawn(asked.mended(self.estimate(seen, asked))[None].repeat(n, 1, 1, 1))


def test_what_proposals_are_drawn_from_is_mended_first(dataset):
    found = calibrate(Segmenter(Timid()), [dataset], n=3)
    assert found.proposals == 3
    assert set(found.estimate) == {""}  # eight subjects do not speak for a target alone
    scan, truth = dataset.read(dataset.cases[0])
    raw, mended = Segmenter(Timid()), Segmenter(Timid(), calibration=found)
    before, after = (one(scan, ["liver"], n=3)["liver"] for one in (raw, mended))
    assert not before.consensus().any()
    assert after.mean()[truth > 0].mean() > 0.9
    assert np.array_equal(after.consensus(), truth > 0)
    assert after.probability()[truth > 0].mean() == pytest.approx(after.mean()[truth > 0].mean(), abs=0.05)
    box = Prompt("liver", box=Box((0, 0, 0), (31, 31, 31)))
    assert mended(scan, [box], n=3)["liver"].mean().max() == pytest.approx(
        0.2, abs=0.001
    )  # nothing was learnt of boxes


def test_many_subjects_mend_the_estimate_of_their_target(dataset):
    (answered,) = answers(Segmenter(Timid()), dataset, dataset.cases[:1], ["liver"], 1, 0)
    one = evidence_from(dataset, answered)
    many = [replace(one, subject=f"s{i}") for i in range(25)]
    few = [replace(one, subject=f"s{i}", target="spleen") for i in range(5)]
    assert set(calibrators_of([*many, *few])) == {"", "liver"}


def test_a_system_that_draws_otherwise_has_nothing_to_mend(found):
    assert found.estimate == {}
    assert found.of_estimate("liver") is None


def test_the_outcome_is_decided_by_the_calibrated_score(dataset, found):
    scan = dataset.read(dataset.cases[0])[0]
    assert Segmenter(Brightness()).found_from("liver") == FOUND_FROM
    lax = Segmenter(Brightness(), calibration=found)
    assert lax.found_from("liver") == found.presence["liver"].threshold < 0.01
    assert lax(scan, ["liver"])["liver"].outcome is Outcome.FOUND
    strict = Segmenter(
        Brightness(),
        calibration=Calibration(5, presence={"liver": type(found.presence["liver"])(0.95, 0.05, 0.05, 30, 30, 0.5)}),
    )
    assert strict(scan, ["liver"])["liver"].outcome is Outcome.LIKELY_ABSENT
    assert strict.calibrated(None)(scan, ["liver"])["liver"].outcome is Outcome.FOUND


def test_an_empty_split_and_unknown_targets_are_refused(dataset):
    with pytest.raises(DatasetError, match="the test split is empty"):
        calibrate(Segmenter(Brightness()), [dataset], split="test")
    renamed = Blocks(dataset.root, "x", "CT", {"kidney": 1}, dataset.cases, dataset.splits)
    with pytest.raises(DatasetError, match="knows none of its targets"):
        calibrate(Segmenter(Brightness()), [renamed])


@pytest.fixture
def model(trained, tmp_path):
    training = {"datasets": ["phantom"], "held_out": [{"name": "phantom", "fold": None, "subjects": ""}]}
    save_model(tmp_path / "model", trained["unet"], "unet", training=training, card="none")
    return tmp_path / "model"


def test_a_calibrated_folder_is_the_same_model(model, found, tmp_path, monkeypatch):
    def refuse(cls, folder):
        raise ModelError("run: delineate calibrate")

    before, answer = fingerprint(model), Segmenter.load(model)
    assert calibration_hash(model) is None
    save_calibration(model, found)
    check_model(model)
    assert fingerprint(model) == before
    first = calibration_hash(model)
    assert first is not None
    after = Segmenter.load(model)
    assert after.calibration.guarantees("liver", missed_at_most=0.2) == found.guarantees("liver", missed_at_most=0.2)
    assert answer.calibration is None
    save_calibration(model, Calibration(5, Beta(1, 2, 0)), tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == before
    assert calibration_hash(tmp_path / "copy") != first == calibration_hash(model)
    monkeypatch.setattr(Calibration, "load", classmethod(refuse))  # one of another release, which says: calibrate
    assert Segmenter.load(model, calibrated=False).calibration is None
    monkeypatch.undo()
    (model / "calibration.json").write_text("{}")
    with pytest.raises(ModelError, match=r"'calibration\.json' was changed or damaged"):
        Segmenter.load(model)


def test_nobody_is_calibrated_on_what_was_learnt(model, phantom_dataset):
    opened = open_dataset(phantom_dataset, targets=["liver", "spleen"])
    named = type(opened)(**{**opened.__dict__, "name": "phantom"})
    for split in ("train", "all"):
        with pytest.raises(DatasetError, match="was trained on its train split"):
            calibrate_folder(model, [named], split=split)
    renamed = type(opened)(**{**opened.__dict__, "name": "another"})
    subjects = hashlib.sha256("\n".join(sorted({case.subject for case in opened.cases})).encode()).hexdigest()
    training = {"datasets": ["phantom"], "held_out": [{"name": "phantom", "fold": None, "subjects": subjects}]}
    save_model(model, Segmenter.load(model), "unet", training=training, card="none")
    with pytest.raises(DatasetError, match="was trained on its train split"):  # the same subjects under another name
        calibrate_folder(model, [renamed], split="train")
    from delineate.data.folds import Fold

    with pytest.raises(DelineateError, match="without --fold"):
        calibrate_folder(model, [named], fold=Fold(1, 2))
    calibrate_folder(model, [named], n=2)
    assert json.loads((model / "calibration.json").read_text())["about"]["subjects"] == 1


def test_slices_near_the_target_are_no_scan_without_it():
    holds = np.zeros(40, bool)
    holds[18:20] = True
    near = _near(holds, 5.0)
    assert np.flatnonzero(near).tolist() == list(range(14, 24))  # four slices of 5 mm on either side
    assert not _near(np.zeros(5, bool), 1.0).any()
    assert _near(np.ones(3, bool), 100.0).all()
    assert np.flatnonzero(_near(holds[:20], 50.0)).tolist() == [17, 18, 19]
