"""`delineate export` and `delineate import`: there and back, and what is refused, in a line."""

import json

import pytest

from delineate.model_folder import fingerprint, save_model
from delineate.prompts.vocabulary import Vocabulary
from delineate.segmenter import Segmenter
from delineate.systems.plain import PlainConfig, build


@pytest.fixture(scope="module")
def blank(tmp_path_factory):
    """The folder of a model that knows nothing; do not write there."""
    folder = tmp_path_factory.mktemp("blank") / "model"
    system = build(PlainConfig(32, (8, 16)), Vocabulary.from_names(["liver", "spleen"], "CT"), seed=0)
    save_model(folder, Segmenter(system, ("CT",)), "unet", training={}, card="card")
    return folder


@pytest.mark.parametrize("layout", ["hub", "monai"])
def test_a_model_goes_there_and_back(delineate, blank, tmp_path, layout):
    code, out, _ = delineate("export", blank, "--format", layout, "-o", tmp_path / "there", "--json")
    told = json.loads(out)
    assert (code, told["layout"], told["folder"]) == (0, layout, str(tmp_path / "there"))
    code, out, _ = delineate("import", tmp_path / "there", "-o", tmp_path / "back")
    assert (code, out.strip()) == (0, f"model: {tmp_path / 'back'}")
    assert fingerprint(tmp_path / "back") == fingerprint(blank)


def test_what_a_bundle_outlines_can_be_chosen(delineate, blank, tmp_path):
    words = ("--format", "monai", "-p", "spleen", "--modality", "MRI", "--proposals", "3", "-o", tmp_path / "b")
    assert delineate("export", blank, *words)[0] == 0
    told = json.loads((tmp_path / "b" / "configs" / "inference.json").read_text())
    assert (told["targets"], told["modality"], told["proposals"]) == (["spleen"], "MR", 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("export", "MODEL", "--format", "onnx", "-o", "x"), "'onnx': a layout is one of hub, monai"),
        (("export", "nowhere", "-o", "x"), "nowhere: not a model folder (no manifest.json); check the path"),
        (("export", "MODEL", "--format", "monai", "-p", "spine", "-o", "x"), "'spine' is none of the model's names"),
        (("import", "nowhere", "-o", "x"), "nowhere: no such model folder"),
        (("import", "hf://nowhere", "-o", "x"), "is written hf://ORGANISATION/NAME"),
    ],
)
def test_what_cannot_be_is_told_in_a_line(delineate, blank, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = delineate(*(blank if word == "MODEL" else word for word in words))
    assert (code, out) == (6, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()
