"""A worker says in a line why it cannot work, before it takes a case."""

from pathlib import Path

import pytest

from delineate import __version__
from delineate.jobs.segment import Doing, SegmentRequest
from delineate.jobs.worker import begun
from delineate.model_folder import fingerprint, save_model
from delineate.prompts.vocabulary import Vocabulary
from delineate.segmenter import Segmenter
from delineate.systems.plain import PlainConfig, build


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worker") / "model"
    system = build(PlainConfig(32, (8, 16)), Vocabulary.from_names(["liver"], "CT"))
    save_model(folder, Segmenter(system, ("CT",)), "unet", training={}, card="card")
    return folder


def begin(model: Path, tmp_path: Path, **other):
    known = {"model_sha256": fingerprint(model), "adapter_sha256": None}
    doing = Doing("a", SegmentRequest(("liver",)), tmp_path, known | other.pop("signature", {})).to_json()
    own = {"current": str(Path.cwd()), "release": __version__, "model": str(model), "adapter": None, "device": "cpu"}
    return own | {"threads": 1, "bids": None, "number": 0, "doing": doing} | other


def test_one_that_has_what_the_command_has_is_ready(model, tmp_path):
    worker, said = begun(begin(model, tmp_path))
    assert worker is not None
    assert set(said) == {"ready"}
    assert worker.doing.request == SegmentRequest(("liver",))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"current": "/no/such/folder"}, "a worker has no folder /no/such/folder; all machines need the same paths"),
        ({"release": "0.0.1"}, "the command is of delineate 0.0.1, a worker of"),
        ({"signature": {"model_sha256": "0" * 64}}, "a worker finds another model there; copy it to all machines"),
        ({"signature": {"adapter_sha256": "0" * 64}}, "a worker finds another model there; copy it to all machines"),
    ],
)
def test_one_that_has_not_says_so_in_a_line(model, tmp_path, other, words):
    worker, said = begun(begin(model, tmp_path, **other))
    assert worker is None
    assert words in said["refused"]
    assert "\n" not in said["refused"]
    assert said["exit_code"] > 0
