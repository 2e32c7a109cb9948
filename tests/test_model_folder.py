import json
import shutil

import pytest

from delineate.errors import ModelError
from delineate.model_folder import check_free, check_model, fingerprint, read_vocabulary, save_model
from delineate.prompts.vocabulary import Vocabulary
from delineate.segmenter import Segmenter
from delineate.storage import sealed
from delineate.storage.files import sha256_of, write_json
from delineate.systems.plain import PlainConfig, build


def untrained(seed=0):
    vocabulary = Vocabulary.from_names(["liver", "spleen"], "CT")
    return Segmenter(build(PlainConfig(32, (8, 16)), vocabulary, seed=seed), ("CT",))


def save(folder, seed=0, card="# card\n"):
    save_model(folder, untrained(seed), "unet", training={"seed": seed}, card=card)
    return folder


@pytest.fixture
def model(tmp_path):
    return save(tmp_path / "model")


def sign(folder):
    """Make the manifest fit whatever lies in the folder, as a writer of another release would."""
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != "manifest.json"]
    write_json(folder / "manifest.json", {p.relative_to(folder).as_posix(): sha256_of(p) for p in files})


def refused(folder, match):
    with pytest.raises(ModelError, match=match) as caught:
        Segmenter.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_loaded_network_has_learnt_as_after_a_training(model):
    network = Segmenter.load(model).system.network
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_a_saved_model_is_found_whole_and_says_where_it_comes_from(model):
    folder, config = check_model(model)
    assert folder == model
    assert config["system"] == "unet"
    assert config["training"] == {"seed": 0}
    assert config["modalities"] == ["CT"]
    assert read_vocabulary(model) == untrained().vocabulary
    assert (model / "card.md").read_text() == "# card\n"
    assert {p.name for p in model.iterdir()} == {
        "card.md",
        "config.json",
        "manifest.json",
        "vocabulary.json",
        "weights.safetensors",
    }
    assert [p.name for p in model.parent.iterdir()] == ["model"]  # nothing temporary is left


@pytest.mark.parametrize("file", ["weights.safetensors", "config.json", "vocabulary.json", "card.md"])
def test_a_single_flipped_bit_is_noticed(model, file):
    data = bytearray((model / file).read_bytes())
    data[len(data) // 2] ^= 1
    (model / file).write_bytes(data)
    refused(model, f"'{file}' was changed or damaged")


@pytest.mark.parametrize("file", ["weights.safetensors", "config.json", "vocabulary.json", "card.md"])
def test_a_missing_file_is_named(model, file):
    (model / file).unlink()
    refused(model, f"'{file}' is missing")


@pytest.mark.parametrize("file", ["extra.txt", "foundation/vae/config.json"])
def test_a_file_too_many_is_named(model, file):
    (model / file).parent.mkdir(parents=True, exist_ok=True)
    (model / file).write_text("{}")
    refused(model, f"'{file}' is not part of the model")


def test_what_file_browsers_leave_behind_does_no_harm(model):
    (model / ".DS_Store").write_text("")
    Segmenter.load(model)


def test_the_format_of_a_newer_release_is_refused_with_what_to_do(model):
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", {**config, "format": 2})
    sign(model)
    refused(model, "model format 2, this release reads 1; update delineate")


def test_a_system_that_is_not_known_here_is_refused(model):
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", {**config, "system": "oracle"})
    sign(model)
    refused(model, "'oracle' is not known here; known: unet, mednext")


@pytest.mark.parametrize("change", [{"sampler": "ddim"}, {"widths": None}, {"size": 33}, {"blocks": 1_000_000_000}])
def test_a_configuration_of_another_release_is_one_line_with_what_to_do(model, change):
    config = json.loads((model / "config.json").read_text())
    write_json(model / "config.json", {**config, "system_config": config["system_config"] | change})
    sign(model)
    refused(model, r"config\.json: field 'system_config.*if another release of delineate made it, train it again")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"a.txt": "0"}'])
def test_a_manifest_that_is_none_is_refused(model, text):
    (model / "manifest.json").write_text(text)
    refused(model, "manifest.json: not")


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    refused(tmp_path, "not a model folder .* delineate train")
    refused(tmp_path / "nowhere", "not a model folder .* check the path")
    with pytest.raises(ModelError, match=r"no vocabulary\.json"):
        read_vocabulary(tmp_path)


def test_a_damaged_vocabulary_is_one_line_even_where_no_hash_is_looked_at(model):
    (model / "vocabulary.json").write_text("{")
    with pytest.raises(ModelError, match=r"vocabulary\.json: not JSON"):
        read_vocabulary(model)


def test_a_model_of_the_same_name_is_replaced(model):
    before = fingerprint(model)
    (model / "leftover.txt").write_text("of the old model")
    save(model, seed=1)
    assert fingerprint(model) != before
    assert check_model(model)[1]["training"] == {"seed": 1}
    assert [p.name for p in model.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("content", ["notes.txt", "manifest.json"])
def test_somebody_s_own_folder_is_never_overwritten(tmp_path, content):
    """A manifest alone makes no model: web projects and browser extensions have one too."""
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / content).write_text("{}")
    with pytest.raises(ModelError, match="exists and is not a model folder"):
        save(folder)
    assert [p.name for p in folder.iterdir()] == [content]
    assert [p.name for p in tmp_path.iterdir()] == ["thesis"]


def test_a_file_of_that_name_is_never_overwritten(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(ModelError, match="exists and is not a model folder"):
        save(tmp_path / "model")
    assert (tmp_path / "model").read_text() == "mine"


def test_an_empty_folder_or_none_is_free(tmp_path):
    check_free(tmp_path)
    check_free(tmp_path / "new")
    save(tmp_path / "deep" / "down" / "model")


@pytest.mark.parametrize("moment", ["weights", "manifest", "rename"])
def test_a_save_that_is_interrupted_leaves_the_old_model(model, monkeypatch, moment):
    before = fingerprint(model)

    def fail(*arguments, **more):
        raise OSError("No space left on device")

    if moment == "weights":
        monkeypatch.setattr("delineate.systems.plain.save", fail)
    elif moment == "manifest":
        monkeypatch.setattr(sealed, "hashes", fail)
    else:
        monkeypatch.setattr(type(model), "chmod", fail)
    with pytest.raises(OSError, match="No space left"):
        save(model, seed=1)
    monkeypatch.undo()
    assert fingerprint(model) == before
    Segmenter.load(model)
    assert [p.name for p in model.parent.iterdir()] == ["model"]


def test_the_fingerprint_names_the_content_not_the_place(model, tmp_path):
    shutil.copytree(model, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == fingerprint(model)
    assert fingerprint(save(tmp_path / "other", seed=1)) != fingerprint(model)
    assert fingerprint(save(tmp_path / "carded", card="other")) != fingerprint(model)
