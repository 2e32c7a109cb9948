import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from delineate.errors import ModelError, ScanError
from delineate.scans import bias
from delineate.scans.histogram import landmarks, standard_of, standardise
from delineate.scans.preparation import Preparation
from delineate.scans.scan import Scan
from delineate.storage.schema import checked


def scan(seed=0, modality="MR"):
    voxels = np.random.default_rng(seed).gamma(2, 100, (4, 10, 12)).astype(np.float32)
    return Scan(voxels, np.diag([2.0, 1.0, 1.0, 1.0]), modality, notes=("read",))


@pytest.fixture
def n4(monkeypatch):
    """N4 in a moment: it squares grey values, and the fixture is the list of the scans that it saw."""
    seen = []

    def corrected(scan):
        seen.append(scan)
        return replace(scan, voxels=scan.voxels**2)

    monkeypatch.setattr(bias, "corrected", corrected)
    return seen


def test_by_default_nothing_is_done(n4):
    one = scan()
    assert Preparation()(one) is one
    assert Preparation() == Preparation(n4=False, standard=()) == Preparation.learnt([], n4=False)
    assert not n4


def test_grey_values_come_to_the_standard_and_nothing_else_changes():
    one, standard = scan(), standard_of([landmarks(scan(1).voxels)])
    done = Preparation(standard=standard)(one)
    np.testing.assert_array_equal(done.voxels, standardise(one.voxels, standard))
    for name in {field.name for field in fields(Scan)} - {"voxels"}:
        np.testing.assert_array_equal(getattr(done, name), getattr(one, name))
    np.testing.assert_array_equal(one.voxels, scan().voxels)


def test_the_bias_field_is_corrected_first(n4):
    one, standard = scan(), standard_of([landmarks(scan(1).voxels)])
    np.testing.assert_array_equal(Preparation(n4=True)(one).voxels, one.voxels**2)
    np.testing.assert_array_equal(Preparation(True, standard)(one).voxels, standardise(one.voxels**2, standard))
    assert n4 == [one, one]


def test_the_standard_is_learnt_from_scans_as_they_are_prepared(n4):
    scans = [scan(seed) for seed in range(3)]
    assert Preparation.learnt(scans, n4=False) == Preparation(
        False, standard_of([landmarks(one.voxels) for one in scans])
    )
    assert not n4
    squared = Preparation.learnt(scans, n4=True)
    assert squared == Preparation(True, standard_of([landmarks(one.voxels**2) for one in scans]))
    assert n4 == scans


def test_a_learnt_preparation_takes_a_scan_s_own_scale_away():
    scans = [scan(seed) for seed in range(3)]
    learnt = Preparation.learnt(scans, n4=False)
    brighter = replace(scans[0], voxels=scans[0].voxels * 8 + 512)
    np.testing.assert_allclose(learnt(brighter).voxels, learnt(scans[0]).voxels, atol=1e-5)
    assert Preparation.learnt([brighter, *scans[1:]], n4=False).standard == pytest.approx(learnt.standard, abs=1e-6)


def test_scans_without_contrast_teach_no_standard():
    black = replace(scan(), voxels=np.zeros((4, 10, 12), np.float32))
    assert Preparation.learnt([black], n4=False) == Preparation()
    assert Preparation.learnt([black, scan()], n4=False) == Preparation.learnt([scan()], n4=False)


def test_where_n4_cannot_be_is_said():
    with pytest.raises(ScanError, match="N4 corrects the coils of MR, found CT"):
        Preparation(n4=True)(scan(modality="CT"))


@pytest.mark.parametrize(
    "preparation",
    [
        Preparation(),
        Preparation(True),
        Preparation(False, tuple(place / 10 for place in range(11))),
        Preparation.learnt([scan()], False),
    ],
)
def test_json_holds_all_of_it(preparation):
    told = json.loads(json.dumps(preparation.to_json()))
    assert told == preparation.to_json()
    assert told.keys() == {"n4", "standard"}
    back = checked(told, Preparation, Path("adapter.json"), exact=True)
    assert back == preparation
    assert hash(back) == hash(preparation)


@pytest.mark.parametrize(
    "value",
    [
        {"n4": False, "standard": [], "gamma": 2},
        {"n4": False, "standard": None},
        {"n4": False, "standard": 1.0},
        {"n4": False, "standard": [0.0, 1.0]},
        [],
        None,
        "n4",
    ],
)
def test_what_is_no_preparation_is_refused(value):
    with pytest.raises(ModelError, match=r"^adapter.json: .*; copy the model again$") as caught:
        checked(value, Preparation, Path("adapter.json"), exact=True)
    assert "\n" not in str(caught.value)
