"""Datasets without splits: `delineate split`, and what `train` does by itself; and what a training says in the end."""

import json
import shutil

import pytest
from tests.cli.test_app import TRAINING, one_line, two_sets

from delineate.data.dataset import open_dataset
from delineate.jobs.evaluate import EvaluateRequest, evaluate_model
from delineate.jobs.train import TrainRequest, train_system


@pytest.fixture
def undivided(phantom_dataset, tmp_path):
    """A dataset in nnU-Net's layout without splits."""
    copy = shutil.copytree(phantom_dataset, tmp_path / "organs")
    (copy / "splits.json").unlink()
    return copy


def test_a_dataset_is_divided_once_and_who_is_where_is_told(delineate, undivided):
    subjects = {case.subject for case in open_dataset(undivided).cases}
    code, out, err = delineate("split", undivided, "--fractions", 0.5, 0.25, 0.25)
    assert (code, err) == (0, "")
    assert "train" in out
    assert "no two subjects look alike" in out
    written = json.loads((undivided / "splits.json").read_text())
    assert set().union(*written.values()) == subjects
    code, _, err = delineate("split", undivided)
    assert code == 5
    assert "has splits already" in one_line(err)
    assert "remove that" in one_line(err)
    assert json.loads((undivided / "splits.json").read_text()) == written
    (undivided / "splits.json").unlink()
    code, out, _ = delineate("split", undivided, "--fractions", 0.5, 0.25, 0.25, "--json")
    assert json.loads(out)["subjects"] == written
    (undivided / "splits.json").unlink()
    told = json.loads(delineate("split", undivided, "--fractions", 0.5, 0.25, 0.25, "--seed", 5, "--json")[1])
    assert told["subjects"] != written
    assert sum(told["cases"].values()) == len(subjects)


def test_what_masks_show_does_not_matter_and_alike_ones_are_named(delineate, tmp_path):
    light, _ = two_sets(tmp_path)
    (light / "splits.json").unlink()
    for part in ("images", "masks"):
        shutil.copy(light / part / "light0.png", light / part / "twin.png")
    code, out, _ = delineate("split", light, "--fractions", 0.6, 0.2, 0.2)
    assert code == 0
    assert "light0/twin" in out
    splits = json.loads((light / "splits.json").read_text())
    assert any({"light0", "twin"} <= set(part) for part in splits.values())


@pytest.mark.parametrize(
    ("fractions", "why"), [((0.5, 0.1, 0.1), "sum to 1"), ((0.1, 0.2, 0.7), "too few"), ((2, -1, 0), "positive")]
)
def test_shares_that_cannot_be_are_refused(delineate, tmp_path, fractions, why):
    light, _ = two_sets(tmp_path)
    (light / "splits.json").unlink()
    if why == "too few":
        for number in range(2, 6):
            (light / "images" / f"light{number}.png").unlink()
    code, _, err = delineate("split", light, "--fractions", *fractions)
    assert code == 5
    assert why in one_line(err)
    assert not (light / "splits.json").exists()


def test_splits_of_nnunet_are_named_in_the_refusal(delineate, undivided):
    subjects = sorted({case.subject for case in open_dataset(undivided).cases})
    (undivided / "splits_final.json").write_text(json.dumps([{"train": subjects[1:], "val": subjects[:1]}]))
    code, _, err = delineate("split", undivided)
    assert code == 5
    assert "fold 0 of splits_final.json" in one_line(err)


def test_training_divides_by_itself_says_so_and_ends_with_a_score(delineate, undivided, tmp_path):
    training = ["train", "unet", undivided, "-o", tmp_path / "m", "--images", 8, *TRAINING]
    code, out, err = delineate(*training)
    assert code == 0, err
    said = " ".join(err.split())
    assert "abdomen: no splits, so its subjects were divided" in said
    assert f"written to {undivided}/splits.json" in said
    assert "only test subjects tell" in said
    for words in ("val Dice", "liver", "spleen", "mean", "curves.png"):
        assert words in out
    written = json.loads((undivided / "splits.json").read_text())
    (undivided / "splits.json").unlink()
    assert (
        json.loads(delineate("split", undivided, "--json")[1])["subjects"] == written
    )  # the same command, the same draw
    code, out, err = delineate(*training[:4], tmp_path / "again", *training[5:], "--json")
    assert code == 0
    assert "no splits" not in err
    told = json.loads(out)
    assert told["system"] == "unet"
    assert set(told["val"]) >= {"liver", "spleen"}
    assert 0 <= told["val"]["liver"]["mean"] <= 1
    assert told["val"]["liver"]["subjects"] == len(written["val"])


def test_a_dataset_that_cannot_be_written_is_divided_alike_each_time(undivided, tmp_path, monkeypatch):
    def refuse(path, value):
        raise OSError(30, "Read-only file system")

    said = []
    watch = type(
        "Watch",
        (),
        {"start": lambda *a, **k: None, "update": lambda *a: None, "say": lambda s, line: said.append(line)},
    )
    monkeypatch.setattr("delineate.jobs.opening.write_json", refuse)
    request = TrainRequest("unet", [undivided], images=8, calibrate=False)
    train_system(request, tmp_path / "m", watch=watch())
    assert any("cannot be written (Read-only file system), so they are drawn alike each time" in line for line in said)
    assert not (undivided / "splits.json").exists()
    report = evaluate_model(EvaluateRequest(undivided, tmp_path / "m", n=1), tmp_path / "e")
    assert report["cases"] == 1
    assert report["split"] == "test"


def test_a_splits_file_without_splits_is_never_replaced(delineate, undivided, tmp_path):
    (undivided / "splits.json").write_text("{}")
    code, _, err = delineate("train", "unet", undivided, "-o", tmp_path / "m", "--images", 8, *TRAINING)
    assert code == 5
    assert "names no split" in one_line(err)
    assert (undivided / "splits.json").read_text() == "{}"
