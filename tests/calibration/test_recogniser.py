"""What kind of scan a model looks at: told from others, refused where it is none, and how it lies."""

import json

import numpy as np
import pytest

from delineate.calibration.guarantees import Calibration
from delineate.calibration.recogniser import (
    LIE,
    TURNS,
    Head,
    Kind,
    RecogniserFile,
    fit_recogniser,
    fit_turns,
    from_file,
    of_scan,
)
from delineate.errors import ModelError
from delineate.storage.files import write_json

CT = Kind("abdomen", "CT", ("liver", "spleen", "aorta"))
MR = Kind("brain", "MR", ("hippocampus",))
RNG = np.random.default_rng(0)
CENTRES = np.eye(8, dtype=np.float32)[:2] * 6


def gist(kind, slices=4, seed=0):
    return CENTRES[kind] + np.random.default_rng(seed).normal(size=(slices, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def recogniser():
    others = 3 * RNG.normal(size=(200, 8)).astype(np.float32)
    held_out = [(kind, gist(kind, seed=100 + k)) for k in range(40) for kind in (0, 1)]
    return fit_recogniser([CT, MR], [gist(0, 80, 1), gist(1, 80, 2)], others, held_out)


def test_each_scan_is_taken_for_its_kind_and_others_for_none(recogniser):
    told = [recogniser(gist(kind, seed=500 + k)).kind for k in range(50) for kind in (0, 1)]
    assert np.mean([one == right for one, right in zip(told, [CT, MR] * 50, strict=True)]) > 0.94
    strange = [recogniser(CENTRES[0] - 12 * np.eye(8)[5] + 0 * gist(0, seed=k)).kind for k in range(5)]
    assert strange == [None] * 5
    assert recogniser.scans == 80


def test_a_modality_that_is_told_leaves_its_own_kinds(recogniser):
    assert recogniser(gist(0), "CT").kind == CT
    assert recogniser(gist(0), "MR").kind is None  # what is like no MR
    assert recogniser(gist(0), "US").kind is None
    assert recogniser(gist(0), "US").unlike == 0


def test_air_above_a_body_is_no_evidence_against_it():
    certain, air = np.log([0.98, 0.01, 0.01]), np.log([0.01, 0.01, 0.98])
    told = np.exp(of_scan(np.stack([certain, certain, air])))
    assert told.sum() == pytest.approx(1)
    assert told[0] > 0.9


def test_how_slices_lie_is_told_and_seldom_wrongly():
    patterns = 5 * np.random.default_rng(3).normal(size=(TURNS, 8)).astype(np.float32)
    turns = np.repeat(np.arange(TURNS), 60)
    noise = np.random.default_rng(4).normal
    found = fit_turns(patterns[turns] + noise(size=(len(turns), 8)), turns, patterns[0] + noise(size=(200, 8)))
    told = [found(patterns[turn] + noise(size=(3, 8))) for turn in range(TURNS)]
    assert told == list(range(TURNS))
    assert np.mean([found(patterns[:1] + noise(size=(1, 8))) != 0 for _ in range(200)]) < 0.06
    assert len(LIE) == TURNS


def test_it_comes_back_from_a_model_folder_as_it_was(recogniser, tmp_path):
    turns = fit_turns(np.repeat(np.eye(8, dtype=np.float32), 5, 0), np.repeat(np.arange(8), 5), np.eye(8)[:1])
    both = type(recogniser)(recogniser.kinds, recogniser.head, recogniser.threshold, recogniser.scans, {CT.name: turns})
    Calibration(8, recogniser=both).save(tmp_path)
    loaded = Calibration.load(tmp_path)
    assert loaded is not None
    back = loaded.recogniser
    assert back is not None
    assert (back(gist(0)).kind, back(gist(0)).turn) == (both(gist(0)).kind, both(gist(0)).turn)
    np.testing.assert_allclose(back.log_shares(gist(1)), both.log_shares(gist(1)), rtol=1e-4)
    assert back.kinds == (CT, MR)
    assert back.turns[CT.name].threshold == turns.threshold


def test_arrays_that_do_not_fit_are_refused_in_a_line(recogniser, tmp_path):
    Calibration(8, recogniser=recogniser).save(tmp_path)
    told = json.loads((tmp_path / "calibration.json").read_text())
    told["recogniser"]["kinds"] = told["recogniser"]["kinds"][:1]
    write_json(tmp_path / "calibration.json", told)
    with pytest.raises(ModelError, match="calibration cannot be read"):
        Calibration.load(tmp_path)
    with pytest.raises(KeyError):
        from_file(RecogniserFile((CT,), -0.1), {})
    with pytest.raises(ValueError, match="do not fit"):
        Head(np.zeros(3), np.zeros((4, 2)), np.zeros((3, 2)))


def test_kinds_are_told_as_one_speaks():
    assert str(CT) == "CT of liver, spleen and 1 more"
    assert str(Kind("x", None, ("nuclei",))) == "scans of nuclei"


def test_few_held_out_scans_leave_a_threshold_above_the_worst_of_them():
    others = 3 * RNG.normal(size=(60, 8)).astype(np.float32)
    found = fit_recogniser([CT], [gist(0, 40)], others, [(0, gist(0, seed=9))])
    assert found(gist(0, seed=9)).kind == CT
    assert found.scans == 1
