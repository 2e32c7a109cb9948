import importlib.util
import tempfile

import pytest

from delineate.jobs import doctor
from delineate.model_folder import save_model
from delineate.prompts.vocabulary import Vocabulary
from delineate.segmenter import Segmenter
from delineate.systems.plain import PlainConfig, build


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A sound house model of our own; the real one is no business of these tests."""
    folder = tmp_path / "house"
    system = build(PlainConfig(32, (8, 16)), Vocabulary.from_names(["liver", "spleen"], "CT"))
    save_model(folder, Segmenter(system), "unet", training={}, card="")
    monkeypatch.setattr("delineate.model_folder.house_folder", lambda: folder)
    return folder


def findings(word):
    return [f for f in doctor.examine() if word in f.what]


def test_a_sound_installation_has_nothing_bad(house):
    bad = [f.what for f in doctor.examine() if not f.ok]
    assert bad == []
    assert "2 targets, every hash right" in findings("house model")[0].what


def test_every_finding_is_one_line(house):
    assert all("\n" not in f.what and f.what for f in doctor.examine())


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_house_model_that_is_not_whole_is_found(house, damage):
    if damage == "gone":
        (house / "manifest.json").unlink()
    else:
        (house / "card.md").write_text("other")
    (finding,) = findings("house model")
    assert not finding.ok


def test_an_old_or_missing_package_is_named_with_the_release_wanted(house, monkeypatch):
    monkeypatch.setitem(doctor.FLOORS, "torch", (99, 1))
    monkeypatch.setitem(doctor.FLOORS, "no-such-package", (1, 2))
    (old,) = findings("is older than")
    assert not old.ok
    assert "99.1" in old.what
    (missing,) = findings("no-such-package is missing")
    assert not missing.ok
    assert "pip install 'no-such-package>=1.2'" in missing.what


@pytest.mark.parametrize(
    ("found", "ok"), [("2.10.0", True), ("2.10.0+cpu", True), ("2.9.1", False), ("10.0", True), ("3", True)]
)
def test_releases_are_compared_as_numbers(house, monkeypatch, found, ok):
    monkeypatch.setattr(doctor, "version", lambda name: found)
    monkeypatch.setattr(doctor, "FLOORS", {"torch": (2, 10)})
    (finding,) = findings(f"torch {found}")
    assert finding.ok is ok


def test_torchvision_is_warned_of(house, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "spec" if name == "torchvision" else real(name))
    (finding,) = findings("torchvision")
    assert not finding.ok


def test_a_folder_that_cannot_be_written_to_is_found(house, monkeypatch):
    def refuse(*arguments, **more):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    (finding,) = findings("files cannot be written here")
    assert not finding.ok
    assert "Read-only file system" in finding.what
