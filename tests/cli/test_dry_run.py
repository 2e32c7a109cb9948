"""--dry-run tells what would be done, and does nothing."""

import json
import shutil

from tests.cli.test_app import TRAINING, one_line

from delineate.model_folder import fingerprint


def planned(delineate, *arguments):
    code, out, err = delineate(*arguments, "--dry-run")
    assert code == 0, err
    return json.loads(out)


def test_segment_tells_scans_prompts_and_model(delineate, pictures, model, tmp_path):
    asked = ["segment", pictures, "-o", tmp_path / "out", "-m", model, "-p", "everything, spleen", "--part", "2/2"]
    told = planned(delineate, *asked, "-p", "all")
    assert [scan["case"] for scan in told["scans"]] == ["case1"]
    assert told["prompts"]["all"] == "all that was learnt for the kind of each scan"
    assert told["model"]["sha256"] == fingerprint(model)
    assert told["request"]["n"] == 8
    assert told["output"] == str(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    told = planned(delineate, "segment", pictures, "-o", tmp_path / "out", "-m", model, "-p", "everything")
    assert told["prompts"] == {"everything": ["liver", "spleen"]}
    code, _, err = delineate("segment", pictures, "-o", tmp_path / "out", "-m", model, "-p", "flux", "--dry-run")
    assert code == 4
    one_line(err)


def test_train_tells_datasets_with_their_cases_and_writes_no_splits(delineate, phantom_dataset, tmp_path):
    copy = shutil.copytree(phantom_dataset, tmp_path / "copy")
    training = ["train", "unet", copy, "-o", tmp_path / "m", "--images", 8, "--target", "liver", *TRAINING]
    told = planned(delineate, *training)
    (dataset,) = told["datasets"]
    assert dataset["targets"] == ["liver"]
    assert dataset["cases"] == {"train": 4, "val": 1, "test": 1}
    assert told["budget"] == {"minutes": None, "images": 8}
    assert told["system"]["name"] == "unet"
    assert told["request"]["seed"] == 0
    (copy / "splits.json").unlink()
    (dataset,) = planned(delineate, *training)["datasets"]
    assert "would be divided" in dataset["splits"]
    assert sum(dataset["cases"].values()) == 6
    assert not (copy / "splits.json").exists()
    assert not (tmp_path / "m").exists()
    assert not (tmp_path / "m-training").exists()
    (dataset,) = planned(delineate, *training, "--fold", "1/3")["datasets"]
    assert dataset["cases"]["test"] == 2


def test_evaluate_and_adapt_tell_theirs(delineate, phantom_dataset, model, tmp_path):
    told = planned(delineate, "evaluate", phantom_dataset, "-m", model, "-o", tmp_path / "e", "--fold", "1/3")
    assert len(told["cases"]) == 2
    assert told["request"]["fold"] == "1/3"
    told = planned(delineate, "adapt", model, phantom_dataset, "-o", tmp_path / "a")
    assert told["model"]["sha256"] == fingerprint(model)
    assert told["request"]["minutes"] == 3
    assert [path.name for path in tmp_path.iterdir()] == []
