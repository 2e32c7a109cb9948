import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from delineate.data import open_dataset
from delineate.data.check import check_dataset
from delineate.data.phantom import write_phantom_dataset
from delineate.errors import DatasetError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SHAPE = (32, 32, 8)  # as stored, LPS


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check") / "good"
    return write_phantom_dataset(folder, cases=6, shape=SHAPE[::-1], missing=())


@pytest.fixture
def root(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "set"))


def image(root, number):
    return root / "imagesTr" / f"phantom00{number}_0000.nii.gz"


def label(root, number):
    return root / "labelsTr" / f"phantom00{number}.nii.gz"


def change(path, alter=lambda array: array, affine=lambda affine: affine):
    old = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(alter(np.asanyarray(old.dataobj).copy()), affine(old.affine)), path)


def told(report, file, what, severity="error"):
    found = [p for p in report.problems if p.file == file and what in p.what and p.severity == severity and p.fix]
    assert len(found) == 1, report.problems
    return found[0]


def only(report, file, what, severity="error"):
    assert len(report.problems) == 1, report.problems
    return told(report, file, what, severity)


def with_value(value):
    def alter(array):
        array = array.astype(np.float32) if isinstance(value, float) else array
        array[0, 0, :3] = value
        return array

    return alter


def test_a_good_dataset_has_no_problems_and_is_counted(good):
    seen = []
    report = check_dataset(good, progress=lambda done, total: seen.append((done, total)))
    assert report.problems == []
    assert report.ok
    assert seen[-1] == (6, 6)
    dataset = open_dataset(good)
    liver = [(dataset.read(case)[1] == dataset.labels["liver"]).sum() for case in dataset.cases]
    assert report.targets["liver"] == {"cases": 6, "voxels": sum(liver)}
    assert json.loads(json.dumps(report.to_json()))["cases"] == 6


LABEL = "labelsTr/phantom002.nii.gz"
IMAGE = "imagesTr/phantom002_0000.nii.gz"
BREAKS = {
    "damaged image": (lambda r: image(r, 2).write_bytes(b"no NIfTI"), IMAGE, "", "error"),
    "cut label": (lambda r: label(r, 2).write_bytes(label(r, 2).read_bytes()[:200]), LABEL, "", "error"),
    "no label": (lambda r: label(r, 2).unlink(), IMAGE, "no label file 'phantom002.*'", "error"),
    "no image": (lambda r: image(r, 2).unlink(), LABEL, "no image 'phantom002'", "error"),
    "shape": (lambda r: change(label(r, 2), lambda a: a[:, :, :-1]), LABEL, "shape 32 × 32 × 8 against 32 × 32 × 7", "error"),
    "spacing": (lambda r: change(label(r, 2), affine=lambda a: a @ np.diag([1, 1, 2, 1])), LABEL, "corners lie up to", "error"),
    "ids": (lambda r: change(label(r, 2), with_value(77)), LABEL, "undeclared ids: 77", "error"),
    "255": (lambda r: change(label(r, 2), with_value(255)), LABEL, "undeclared ids: 255", "error"),
    "fractions": (lambda r: change(label(r, 2), with_value(0.5)), LABEL, "whole numbers", "error"),
    "empty": (lambda r: change(label(r, 2), np.zeros_like), LABEL, "no voxel is labelled", "warning"),
    "constant": (lambda r: change(image(r, 2), np.ones_like), IMAGE, "every voxel is 1", "error"),
    "NaN": (lambda r: change(image(r, 2), lambda a: np.where(a < -900, np.nan, a.astype(np.float32))), IMAGE, "", "warning"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_each_break_is_found_and_named(root, name):
    spoil, file, what, severity = BREAKS[name]
    spoil(root)
    report = check_dataset(root)
    # a removed image also leaves its subject in the splits without a case
    problems = [problem for problem in report.problems if problem.file != "splits.json"]
    assert len(problems) == 1, problems
    told(report, file, what, severity)
    assert report.ok == (severity == "warning")
    assert str(root) not in problems[0].what


def test_all_breaks_are_found_in_one_pass(root):
    image(root, 0).write_bytes(b"x")
    change(label(root, 1), with_value(99))
    label(root, 2).unlink()
    change(label(root, 3), lambda a: a[1:])
    report = check_dataset(root)
    assert len(report.problems) == 4
    assert "0 or one of 1, 2" in told(report, "labelsTr/phantom001.nii.gz", "99").fix


def test_the_advice_for_255_says_which_ids_to_write(root):
    change(label(root, 2), with_value(255))
    assert "datasets of one target; here write the ids 1, 2" in only(check_dataset(root), LABEL, "255").fix


def test_spacing_outliers_are_remarked_on(root):
    for path in (image(root, 2), label(root, 2)):
        change(path, affine=lambda a: a @ np.diag([1, 1, 5, 1]))
    only(check_dataset(root), IMAGE, "mm is usual", "warning")


def test_a_declared_label_that_is_never_seen_is_a_warning(root):
    described = json.loads((root / "dataset.json").read_text())
    described["labels"]["esophagus"] = 20
    (root / "dataset.json").write_text(json.dumps(described))
    only(check_dataset(root), "dataset.json", "(id 20) is in no label file", "warning")


def test_duplicates_are_a_warning_in_one_split_and_an_error_in_two(root):
    for one, two in ((0, 1), (0, 5)):
        for part in (image, label):
            shutil.copy(part(root, one), part(root, two))
    report = check_dataset(root)
    assert len(report.problems) == 2
    told(report, "imagesTr/phantom001_0000.nii.gz", "the same bytes as phantom000_0000.nii.gz", "warning")
    told(report, "imagesTr/phantom005_0000.nii.gz", "is in 'train' while this is in 'test'")


def test_faults_of_the_splits_are_named(root):
    names = [f"phantom00{number}" for number in range(6)]
    (root / "splits.json").write_text(json.dumps({"train": [*names[:3], "ghost"], "val": [names[0]]}))
    report = check_dataset(root)
    assert len(report.problems) == 4
    told(report, "splits.json", "'ghost' of 'train' has no case")
    told(report, "splits.json", "'phantom000' is in both 'train' and 'val'")
    told(report, "splits.json", "3 subjects are in no split: phantom003", "warning")
    told(report, "splits.json", "no split 'test'", "warning")


def test_a_description_that_cannot_be_read_does_not_stop_the_rest(root):
    (root / "dataset.json").write_text('{"channel_names": {"0": "CT"}, "labels": {"tumour": [1, 1]}}')
    image(root, 2).write_bytes(b"x")
    report = check_dataset(root)
    assert len(report.problems) == 2
    told(report, "dataset.json", "ids of 'tumour' must be different whole numbers")
    told(report, IMAGE, "")


def test_masks_without_a_target_and_jpeg_masks_are_told(tmp_path):
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    for name in "ab":
        Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(tmp_path / "images" / f"{name}.png")
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "masks" / "a.png")
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "masks" / "b.jpg")
    told(check_dataset(tmp_path), "dataset.json", "--target")
    report = check_dataset(tmp_path, targets=["polyp"])
    assert report.targets == {"polyp": {"cases": 1, "voxels": 16}} or report.targets["polyp"]["cases"] == 2
    assert "PNG" in only(report, "masks/b.jpg", "undeclared ids").fix


def test_a_folder_of_neither_layout_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="must hold imagesTr/"):
        check_dataset(tmp_path)


@pytest.mark.parametrize(("name", "options"), [("hippocampus", {}), ("busi", {"targets": ["breast lesion"]})])
def test_real_data_has_no_errors(name, options):
    if not (DATA / name).is_dir():
        pytest.skip(f"no real data at {DATA / name}")
    report = check_dataset(DATA / name, **options)
    assert [problem for problem in report.problems if problem.severity == "error"] == []
    assert report.cases == len(open_dataset(DATA / name, **options).cases)
