"""Studies: what is compared, refused and gone on with; and the trivial baseline beside it."""

import json

import numpy as np
import pytest
import torch

from delineate.data.dataset import open_dataset
from delineate.data.slices import build_slices
from delineate.errors import DelineateError
from delineate.evaluation.studies import STUDIES, StudyRequest
from delineate.evaluation.studies.ubench import BASELINE, u_scores
from delineate.evaluation.trivial import OneMask
from delineate.jobs.study import make_study
from delineate.scans.grid import View
from delineate.systems import SYSTEMS
from delineate.systems.system import Asked


def request(dataset, **more):
    asked = {"systems": ("unet", "mk_unet"), "images": 16, "size": 32, "seeds": (0,), "split": "val"}
    return StudyRequest("ubench", [dataset], **{**asked, **more})


@pytest.fixture(scope="module")
def made(phantom_dataset, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "out"
    return folder, make_study(request(phantom_dataset), folder)


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_a_file_with_three_functions(name):
    row = STUDIES[name]
    assert all(callable(getattr(row._file(), function)) for function in ("run", "draw", "show"))
    assert row.picture.endswith(".png")


def test_a_report_has_every_system_and_the_trivial_baseline(made):
    folder, report = made
    assert list(report["systems"]) == [BASELINE, "unet", "mk_unet"]
    assert 0 < report["systems"][BASELINE]["mean_dice"] < 1
    assert report["systems"]["mk_unet"]["weights"] < report["systems"]["unet"]["weights"]
    assert len(report["systems"]["mk_unet"]["minus_unet"]["abdomen"]) == 3
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report))
    assert (folder / "ubench.png").stat().st_size > 5000


def test_the_same_request_trains_nothing_again_and_another_one_is_refused(made, phantom_dataset, monkeypatch):
    folder, report = made
    monkeypatch.setattr("delineate.systems.plain.train", lambda *args, **how: pytest.fail("trained again"))
    again = make_study(request(phantom_dataset), folder)
    assert {n: row["dice"] for n, row in again["systems"].items()} == {
        n: row["dice"] for n, row in report["systems"].items()
    }
    with pytest.raises(DelineateError, match="holds a study that was asked for otherwise"):
        make_study(request(phantom_dataset, images=24), folder)


def test_a_study_that_failed_at_the_door_is_in_nobody_s_way(phantom_dataset, tmp_path):
    with pytest.raises(DelineateError):
        make_study(request(tmp_path / "nowhere"), tmp_path / "out")
    with pytest.raises(DelineateError, match=r"ubench compares networks .* progidiff is more than one"):
        make_study(request(phantom_dataset, systems=("progidiff",)), tmp_path / "out")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"systems": ("vnet",)}, "--system is one of .* got 'vnet'"),
        ({"preset": "huge"}, "--preset of unet is one of tiny, base; got 'huge'"),
        ({"minutes": 1.0}, "one budget"),
        ({"images": None}, "one budget"),
        ({"size": 40}, "multiple of 32; got 40"),
    ],
)
def test_what_cannot_be_studied_is_refused_in_one_line(phantom_dataset, wrong, message):
    with pytest.raises(DelineateError, match=message) as caught:
        request(phantom_dataset, **wrong)
    assert "\n" not in str(caught.value)


def test_two_datasets_of_one_name_are_refused(tmp_path):
    for part in ("a", "b"):
        (tmp_path / part / "scans").mkdir(parents=True)
    with pytest.raises(DelineateError, match="two datasets are called 'scans'"):
        StudyRequest("ubench", [tmp_path / "a" / "scans", tmp_path / "b" / "scans"], images=8)


def test_without_names_every_network_is_compared(phantom_dataset):
    assert request(phantom_dataset, systems=()).compared == [n for n, row in SYSTEMS.items() if row.pixelwise]


def test_a_system_no_better_than_one_mask_has_no_score_and_the_best_and_cheapest_has_all():
    cheap = {"weights": 1, "multiplications": 1, "milliseconds": 1.0}
    dear = {"weights": 1000, "multiplications": 1000, "milliseconds": 1000.0}
    rows = {"best": {"mean_dice": 0.9, **cheap}, "as the mask": {"mean_dice": 0.5, **dear}}
    assert u_scores(rows, floor=0.5) == {"best": 100.0, "as the mask": 0.0}


def test_the_one_mask_is_the_best_constant_one(phantom_dataset):
    bank = build_slices([open_dataset(phantom_dataset)], "train", 32)
    system = OneMask(bank)
    concept = bank.vocabulary.concepts[bank.vocabulary.index("liver")]
    drawn = system.propose(system.see(View(torch.zeros(4, 3, 32, 32))), Asked(concept, "liver"), 8, 0).probabilities
    assert drawn.shape == (1, 4, 32, 32)
    assert (drawn == drawn[:, :1]).all()
    index = bank.vocabulary.index("liver")
    masks = (bank.labels[bank.present[:, index]] == 1 + index).float()

    def dice(guess):
        return float((2 * (guess * masks).sum((1, 2)) / (guess.sum() + masks.sum((1, 2)))).mean())

    others = [dice((masks.mean(0) >= level).float()) for level in np.linspace(0.05, 0.95, 19)]
    assert dice(drawn[0, 0]) == pytest.approx(max(others))
    assert dice(drawn[0, 0]) > dice(torch.ones(32, 32))
