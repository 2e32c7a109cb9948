"""What every request of a job has in common."""

import json
import os
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from delineate.data.folds import Fold
from delineate.errors import DelineateError
from delineate.jobs.adapt import AdaptRequest
from delineate.jobs.evaluate import EvaluateRequest
from delineate.jobs.pretrain import PretrainRequest
from delineate.jobs.synthesize import SynthesizeRequest
from delineate.jobs.train import TrainRequest
from delineate.jobs.watch import work_folder

KEPT = {  # by jobs that go on after a stop
    "train": lambda **more: TrainRequest("unet", ["data"], foundation=Path("base"), fold=Fold(1, 3), **more),
    "pretrain": lambda **more: PretrainRequest(["data"], fold=Fold(1, 3), **more),
    "adapt": lambda **more: AdaptRequest(None, "data", names={"lk": "left kidney"}, **more),
    "synthesize": lambda **more: SynthesizeRequest("data", foundation=Path("base"), fold=Fold(1, 3), **more),
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("make", KEPT.values(), ids=KEPT)
def test_a_request_is_kept_whole_and_compared_when_going_on(make, tmp_path):
    request = make(images=8, target=["liver"])
    with pytest.raises(FrozenInstanceError):
        request.seed = 1
    work = work_folder(tmp_path / "out", request, hash="a")
    settings = json.loads((work / "settings.json").read_text())
    assert {field.name for field in fields(request)} - {"model"} == settings.keys() - {"hash"}
    (work / "network" / "checkpoint-1").mkdir(parents=True)
    work_folder(tmp_path / "out", make(images=8, target=("liver",)), hash="a")
    for other, more in ((make(images=8, target=["liver"], seed=1), "a"), (make(images=8), "a"), (request, "b")):
        with pytest.raises(DelineateError, match="unfinished training with other settings"):
            work_folder(tmp_path / "out", other, hash=more)


@pytest.mark.parametrize("name", ["train", "pretrain", "synthesize"])
def test_a_request_is_the_same_from_another_folder(name, tmp_path, monkeypatch):
    before = KEPT[name]().to_json()
    (tmp_path / "elsewhere").mkdir()
    for link in ("data", "base"):
        (tmp_path / "elsewhere" / link).symlink_to(os.path.join("..", link))
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert KEPT[name]().to_json() == before


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TrainRequest("unet", ["data"], merge="mix"), "--merge is one of"),
        (lambda: TrainRequest("unet", ["data"], augmentation="magic"), "--augmentation is one of"),
        (lambda: TrainRequest("unet", ["data"], raters="best"), "--raters is one of"),
        (lambda: TrainRequest("unet", ["data="]), "name what the masks show"),
        (lambda: PretrainRequest(["data"], codec="zip"), "--codec is one of .*; got 'zip'"),
        (lambda: EvaluateRequest("data", protocol="eye"), "--protocol is one of"),
        (lambda: SynthesizeRequest("data", hed=Path("hed")), "--hed is for edges 'hed'"),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_asked(make, words):
    with pytest.raises(DelineateError, match=words):
        make()
