"""Files and folders have the permissions that the umask leaves, weights and masks alike, whichever room writes them."""

import ast
import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.dicom_series import write_series
from tests.review_world import Bright, Client, desk_for, write_volume
from torch import nn

from delineate.adapters import AdapterConfig
from delineate.adapters.adapter import attach
from delineate.adapters.folder import AdapterFolder, save_adapter
from delineate.data.phantom import write_phantom_dataset
from delineate.jobs.segment import SegmentRequest, run_cohort
from delineate.model_folder import save_model
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.dicom.seg import write_seg
from delineate.scans.finding import Found
from delineate.scans.preparation import Habits
from delineate.scans.reading import read_scan
from delineate.segmenter import Segmenter
from delineate.storage.files import as_usual, new_file, replacing, usual_mode, write_json
from delineate.storage.sealed import sealing
from delineate.systems.plain import PlainConfig, build
from delineate.training.checkpoint import keep_if_best, new_state, save_checkpoint

SOURCE = Path(__file__).resolve().parents[1] / "src" / "delineate"
pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions of another kind")


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> str:
    return oct(stat.S_IMODE(path.stat().st_mode))


def assert_usual(folder: Path, umask: int, *expected: str) -> None:
    """All below a folder, and the folder itself, as the umask says; files of the expected names are among them."""
    found = [folder, *folder.rglob("*")]
    names = {path.name for path in found}
    assert set(expected) <= names
    for path in found:
        usual = 0o777 if path.is_dir() else 0o666
        assert mode(path) == oct(usual & ~umask), path.relative_to(folder)


def test_files_that_take_the_place_of_others(tmp_path, umask):
    folder = tmp_path / "new"
    write_json(folder / "a.json", {})
    (folder / "a.json").chmod(0o600)
    write_json(folder / "a.json", {})  # the older file does not matter
    with replacing(folder / "w.safetensors") as temporary:  # the library makes a file of its own, for its owner alone
        save_file({"w": torch.zeros(2)}, temporary)
    assert_usual(folder, umask, "a.json", "w.safetensors")


def test_a_temporary_name_is_new_every_time(tmp_path, umask):
    made = {new_file(tmp_path, ".nii.gz") for _ in range(20)}
    assert len(made) == 20
    assert {path.suffix for path in made if path.is_file()} == {".gz"}
    assert usual_mode(tmp_path) == 0o666 & ~umask
    assert set(tmp_path.iterdir()) == made


def test_what_others_wrote_for_themselves_becomes_usual_and_links_are_left(tmp_path, umask):
    folder, other = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other.write_text("of somebody else")
    other.chmod(0o400)
    (folder / "deep").mkdir(mode=0o700)
    (folder / "deep" / "file").touch(mode=0o600)
    (folder / "link").symlink_to(other)
    as_usual(folder)
    assert mode(other) == "0o400"
    (folder / "link").unlink()
    assert_usual(folder, umask, "file")


def test_sealed_folders(tmp_path, umask):
    with sealing(tmp_path / "box", lambda folder: True, "box") as building:
        (building / "deep").mkdir(mode=0o700)
        save_file({"w": torch.zeros(2)}, building / "deep" / "w.safetensors")
    assert_usual(tmp_path / "box", umask, "w.safetensors", "manifest.json")


def test_models_and_adapters(tmp_path, umask):
    segmenter = Segmenter(build(PlainConfig(32, (8, 16)), Vocabulary.from_names(["liver"], "CT")), ("CT",))
    save_model(tmp_path / "model", segmenter, "unet", training={}, card="# card\n")
    assert_usual(tmp_path / "model", umask, "weights.safetensors", "config.json", "card.md")
    config = AdapterConfig("full")
    adapted = attach(segmenter.system, config, segmenter.vocabulary)
    about = AdapterFolder(config, {"sha256": "0" * 64, "name": "model"}, Habits())
    save_adapter(tmp_path / "adapter", adapted, about, "# card\n")
    assert_usual(tmp_path / "adapter", umask, "adapter.safetensors", "adapter.json")


def test_checkpoints(tmp_path, umask):
    state = new_state(nn.Linear(2, 2), seed=0)
    save_checkpoint(state, tmp_path / "work")
    keep_if_best(state, tmp_path / "work", 0.5)
    assert_usual(tmp_path / "work", umask, "state.json", "weights.safetensors", "best-0000000000.safetensors")


def test_what_segment_writes(tmp_path, umask):
    scan = write_volume(tmp_path / "v.nii.gz")
    request = SegmentRequest(("liver",), n=2, maps=True)
    run_cohort(Segmenter(Bright()), [Found.at(scan)], request, tmp_path / "out", model_hash="m")
    assert_usual(tmp_path / "out", umask, "liver.nii.gz", "case.json", "run.json", "montage.png")


def test_what_review_writes(tmp_path, umask):
    desk = desk_for(write_volume(tmp_path / "v.nii.gz"), tmp_path / "work")
    ann = Client(desk)
    layer = ann.act("pick", answer=ann.answered("liver")["id"]).json()["changed"][0]
    ann.post(f"{ann.path}/save", json={"layers": [layer]}).raise_for_status()
    desk.close()
    (log,) = (tmp_path / "work").rglob("events.*")
    assert_usual(tmp_path / "work", umask, log.name, "liver.nii.gz", "liver.json")


def test_dicom_seg(tmp_path, umask):
    write_series(tmp_path / "series", np.zeros((3, 8, 8), np.uint16))
    scan = read_scan(tmp_path / "series", modality="CT")
    mask = np.zeros(scan.shape, bool)
    mask[:, 2:4, 2:4] = True
    (tmp_path / "out").mkdir()
    write_seg(tmp_path / "out" / "seg.dcm", {"liver": mask}, scan, algorithm="test")
    assert_usual(tmp_path / "out", umask, "seg.dcm")


def test_datasets(tmp_path, umask):
    write_phantom_dataset(tmp_path / "set", cases=3, shape=(16, 32, 32))
    assert_usual(tmp_path / "set", umask, "dataset.json", "phantom000.nii.gz")


def test_nobody_sets_permissions_of_their_own():
    """umask() would change that of other threads for a moment; what tempfile makes beside a result is its owner's."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func).rpartition(".")[2]
                at = f"{path.name}:{node.lineno}"
                assert called not in ("umask", "mkstemp"), at
                assert called != "chmod" or path.name == "files.py", at
                assert called != "mkdtemp" or all(k.arg != "dir" for k in node.keywords), at
