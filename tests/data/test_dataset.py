import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from tests.data.test_likeness import as_jpeg, saved, scene

from delineate.data import open_dataset, write_splits
from delineate.data.twins import twins_across
from delineate.errors import DatasetError

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
AFFINE = np.diag([-1.5, -1.5, 3.0, 1.0])


def volume(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def organ_volumes(root, names=("a", "b", "c"), suffix="_0000", **description):
    rng = np.random.default_rng(0)
    for number, name in enumerate(names):
        labels = np.zeros((6, 5, 4), np.uint8)
        labels[1:3, 1:3, 1:3] = 1
        labels[3:5, 1 + number % 3, 1] = 2
        volume(root / "imagesTr" / f"{name}{suffix}.nii.gz", rng.normal(size=(6, 5, 4)).astype(np.float32))
        volume(root / "labelsTr" / f"{name}.nii.gz", labels)
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "Liver": 1, "left_kidney": 2}}
    (root / "dataset.json").write_text(json.dumps(described | description))
    return root


def pictures(root, names=("a", "b", "c"), ending="", value=255):
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(names):
        mask = np.zeros((8, 9), np.uint8)
        mask[2:5, 2 : 4 + number] = value
        Image.fromarray((mask // 2 + 10 * number).astype(np.uint8)).save(root / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "masks" / f"{name}{ending}.png")
    return root


def test_opens_an_nnunet_folder_and_reads_it_on_the_grid_of_the_scan(tmp_path):
    dataset = open_dataset(organ_volumes(tmp_path / "set", names=("b", "a")))
    assert (dataset.name, dataset.modality, dataset.labels) == ("set", "CT", {"liver": 1, "left kidney": 2})
    assert [case.name for case in dataset.cases] == [case.subject for case in dataset.cases] == ["a", "b"]
    scan, labels = dataset.read(dataset.cases[0])
    assert scan.shape == labels.shape == (6, 5, 4)
    assert scan.modality == "CT"
    assert labels.dtype == np.int32
    assert set(np.unique(labels)) == {0, 1, 2}
    assert set(dataset.vocabulary().names) == set(dataset.labels)


def test_opens_an_msd_folder_whatever_its_count_of_cases_says(tmp_path):
    root = organ_volumes(tmp_path, suffix="", numTraining=999, training=[{"image": "../../etc/passwd"}])
    described = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver"}, "name": "Task"}
    (root / "dataset.json").write_text(json.dumps(described))
    dataset = open_dataset(root)
    assert (dataset.name, dataset.modality, dataset.labels) == ("Task", "MR", {"liver": 1})
    assert [case.image.parent.name for case in dataset.cases] == ["imagesTr"] * 3


@pytest.mark.parametrize(
    ("stated", "modality"),
    [
        ("CT", "CT"),
        ("MRI", "MR"),
        ("T2", "MR"),
        ("T1w", "MR"),
        ("FLAIR", "MR"),
        ("zscore", None),
        ("US", "US"),
        ("t2-spir", "MR"),
    ],
)
def test_modality_is_read_from_the_channel(tmp_path, stated, modality):
    assert open_dataset(organ_volumes(tmp_path, channel_names={"0": stated})).modality == modality
    assert open_dataset(tmp_path, modality="PET").modality == "PET"


def test_targets_choose_and_rename_and_make_the_rest_background(tmp_path):
    root = organ_volumes(tmp_path)
    kept = open_dataset(root, targets=["left kidney"])
    assert kept.labels == {"left kidney": 2}
    assert set(np.unique(kept.read(kept.cases[0])[1])) == {0, 2}
    assert open_dataset(root, targets={"Hepar nodule": 1}).labels == {"hepar nodule": 1}
    with pytest.raises(DatasetError, match="declares no 'spleen'; it declares liver, left kidney"):
        open_dataset(root, targets=["spleen"])
    with pytest.raises(DatasetError, match="declares no 7"):
        open_dataset(root, targets={"liver": 7})


@pytest.mark.parametrize("ending", ["", "_mask", "_segmentation"])
@pytest.mark.parametrize("value", [1, 255])
def test_pictures_pair_by_name_and_255_means_the_only_target(tmp_path, ending, value):
    dataset = open_dataset(pictures(tmp_path, ending=ending, value=value), targets=["breast lesion"])
    scan, labels = dataset.read(dataset.cases[1])
    assert dataset.labels == {"breast lesion": 1}
    assert scan.shape == labels.shape == (1, 8, 9)
    assert labels.sum() == 3 * 3
    assert dataset.modality is None


def test_pictures_without_a_named_target_are_refused_with_the_option_to_use(tmp_path):
    with pytest.raises(DatasetError, match='--target "breast lesion"'):
        open_dataset(pictures(tmp_path))


def test_a_value_of_255_among_several_targets_is_no_id(tmp_path):
    dataset = open_dataset(pictures(tmp_path), targets=["polyp", "tool"])
    with pytest.raises(DatasetError, match=r"a\.png holds 255, which .* does not declare \(declared: 1, 2\)"):
        dataset.read(dataset.cases[0])


def test_hidden_and_foreign_files_are_ignored(tmp_path):
    root = organ_volumes(tmp_path)
    for name in ("._a_0000.nii.gz", "notes.txt"):
        (root / "imagesTr" / name).write_bytes(b"x")
    assert len(open_dataset(root).cases) == 3


def test_an_image_without_labels_is_a_case_that_cannot_be_read(tmp_path):
    root = organ_volumes(tmp_path)
    (root / "labelsTr" / "b.nii.gz").unlink()
    dataset = open_dataset(root)
    assert dataset.cases[1].labels is None
    with pytest.raises(DatasetError, match=r"b_0000\.nii\.gz has no label file"):
        dataset.read(dataset.cases[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"array": np.ones((6, 5, 3), np.uint8)}, r"a_0000\.nii\.gz and .*labelsTr/a\.nii\.gz .*6 × 5 × 4 against 6 × 5 × 3"),
        ({"affine": np.diag([-1.5, -1.5, 5.0, 1.0])}, r"a_0000\.nii\.gz and .*a\.nii\.gz .*1\.5 × 1\.5 × 3 against 1\.5 × 1\.5 × 5"),
        ({"affine": AFFINE + np.eye(4)[:, [1, 2, 3, 0]] * [0, 0, 0, 4]}, r"corners lie up to 4 mm apart"),
    ],
)  # fmt: skip
def test_grids_that_disagree_name_both_files(tmp_path, change, message):
    root = organ_volumes(tmp_path)
    volume(root / "labelsTr" / "a.nii.gz", **({"array": np.ones((6, 5, 4), np.uint8)} | change))
    dataset = open_dataset(root)
    with pytest.raises(DatasetError, match=message):
        dataset.read(dataset.cases[0])


def test_rounding_in_an_affine_is_no_disagreement(tmp_path):
    root = organ_volumes(tmp_path)
    volume(root / "labelsTr" / "a.nii.gz", np.ones((6, 5, 4), np.uint8), AFFINE * (1 + 1e-3))
    dataset = open_dataset(root)
    assert dataset.read(dataset.cases[0])[1].sum() == 120


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"labels": {"liver": 1, "Liver ": 2}}, "a name and an id used once"),
        ({"labels": {"liver": 1, "spleen": 1}}, "a name and an id used once"),
        ({"labels": {"liver": 1.5}}, "must be a whole number"),
        ({"labels": ["liver"]}, "'labels' must be an object"),
        ({"labels": {"background": 0}}, "does not say what its masks show"),
        ({"channel_names": {"0": "T1", "1": "T2"}}, r"channel 1 \(T2\) of 'a' is not there; add a_0001"),
    ],
)
def test_descriptions_that_cannot_be_followed_are_refused_with_advice(tmp_path, description, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset(organ_volumes(tmp_path, **description))


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff"])
def test_damaged_json_is_named(tmp_path, text):
    organ_volumes(tmp_path)
    (tmp_path / "dataset.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        open_dataset(tmp_path)


def test_folders_that_are_no_dataset_say_what_must_be_there(tmp_path):
    with pytest.raises(DatasetError, match="is not a folder"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"imagesTr/ and labelsTr/ .* or images/ and masks/"):
        open_dataset(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(DatasetError, match="holds no image"):
        open_dataset(tmp_path)
    Image.new("L", (3, 3)).save(tmp_path / "images" / "a.png")
    with pytest.raises(DatasetError, match="image 'a' needs"):
        open_dataset(tmp_path)


def test_ambiguous_names_and_channels_that_nobody_named_are_refused(tmp_path):
    root = pictures(tmp_path / "pictures")
    Image.new("L", (9, 8)).save(root / "masks" / "b_mask.png")
    with pytest.raises(DatasetError, match=r"b_mask\.png: a second mask of 'b'"):
        open_dataset(root, targets=["polyp"])
    (root / "masks" / "b_mask.png").rename(root / "images" / "b.tif")
    with pytest.raises(DatasetError, match=r"b\.tif: the same name as b\.png"):
        open_dataset(root, targets=["polyp"])
    root = organ_volumes(tmp_path / "volumes")
    (root / "imagesTr" / "a_0000.nii.gz").rename(root / "imagesTr" / "a_0001.nii.gz")
    with pytest.raises(DatasetError, match=r"a_0001\.nii\.gz: dataset\.json has no such channel"):
        open_dataset(root)


def test_splits_come_from_the_folder_its_parent_or_the_caller(tmp_path):
    root = organ_volumes(tmp_path / "set")
    with pytest.raises(DatasetError, match="has no splits"):
        open_dataset(root).split("train")
    assert len(open_dataset(root).split("all")) == 3
    (tmp_path / "splits.json").write_text(
        json.dumps({"set": {"train": ["a", "c"], "val": [], "test": ["b"]}, "other": {}})
    )
    dataset = open_dataset(root)
    assert [case.name for case in dataset.split("train")] == ["a", "c"]
    assert dataset.split("val") == ()
    with pytest.raises(DatasetError, match="No split 'tset'"):
        dataset.split("tset")
    (root / "splits.json").write_text(json.dumps({"train": ["b"], "val": ["c"], "test": ["a"]}))
    assert [case.name for case in open_dataset(root).split("test")] == ["a"]
    given = open_dataset(root, splits=tmp_path / "splits.json")
    assert [case.name for case in given.split("test")] == ["b"]


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": ["a", "a"]}, "'a' is named twice in 'train'"),
        ({"train": ["a"], "test": ["b", "a"]}, "'a' is in both 'train' and 'test'"),
        ({"train": ["a", "z"]}, "'z' of 'train' has no case"),
    ],
)
def test_splits_that_leak_or_miss_are_refused(tmp_path, splits, message):
    (organ_volumes(tmp_path) / "splits.json").write_text(json.dumps(splits))
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path).split("train")


def test_splits_of_another_form_are_refused(tmp_path):
    (organ_volumes(tmp_path) / "splits.json").write_text(json.dumps({"train": "a"}))
    with pytest.raises(DatasetError, match="must hold"):
        open_dataset(tmp_path)


def test_splits_are_by_subject_and_seeded(tmp_path):
    names = [f"p{person}{side}" for person in range(10) for side in "LR"]
    root = organ_volumes(tmp_path, names=names)
    (root / "subjects.json").write_text(json.dumps({name: name[:-1] for name in names}))
    dataset = write_splits(open_dataset(root), seed=3)
    assert [len(dataset.split(name)) for name in ("train", "val", "test")] == [14, 2, 4]
    assert open_dataset(root) == dataset
    with pytest.raises(DatasetError, match="has splits already"):
        write_splits(dataset)
    (root / "splits.json").unlink()
    assert write_splits(open_dataset(root), seed=3) == dataset
    (root / "splits.json").unlink()
    assert write_splits(open_dataset(root), seed=4) != dataset


def test_splits_need_enough_subjects_and_fractions_of_one(tmp_path):
    dataset = open_dataset(organ_volumes(tmp_path, names=("a", "b")))
    with pytest.raises(DatasetError, match="2 subjects are too few"):
        write_splits(dataset)
    with pytest.raises(DatasetError, match="sum to 1"):
        write_splits(dataset, (0.5, 0.1, 0.1))
    assert len(write_splits(dataset, (0.5, 0.0, 0.5)).split("train")) == 1


def test_splits_keep_together_what_looks_alike(tmp_path):
    """Of twenty subjects one is like the next, in tens of two; two splits each get at least a pair."""
    root = pictures(tmp_path / "set", names=[f"n{number:02d}" for number in range(20)])
    for number in range(20):
        (root / "images" / f"n{number:02d}.png").unlink()
        save = as_jpeg if number % 2 else saved
        save(root / "images" / f"n{number:02d}.png", scene(number // 2))
    opened = open_dataset(root, targets=["polyp"])
    for seed in range(4):
        dataset = write_splits(opened, seed=seed)
        assert twins_across(dataset) == {}
        assert [len(dataset.splits[name]) for name in ("train", "val", "test")] == [14, 2, 4]
        assert open_dataset(root, targets=["polyp"]) == dataset
        (root / "splits.json").unlink()


def test_splits_that_likeness_leaves_no_room_for_are_refused(tmp_path):
    root = pictures(tmp_path / "set", names=["a", "b", "c", "d"])
    for name in "abcd":
        saved(root / "images" / f"{name}.png", scene(ord(name) // 99))  # a and b show one thing, c and d another
    opened = open_dataset(root, targets=["polyp"])
    with pytest.raises(DatasetError, match="2 groups of subjects that look alike are too few for fractions"):
        write_splits(opened, (0.4, 0.3, 0.3))
    assert not (root / "splits.json").exists()
    assert [len(part) for part in write_splits(opened, (0.5, 0, 0.5)).splits.values()] == [2, 0, 2]


def test_subjects_of_unknown_cases_are_refused(tmp_path):
    (organ_volumes(tmp_path) / "subjects.json").write_text(json.dumps({"A": "person"}))
    with pytest.raises(DatasetError, match=r"subjects\.json must map"):
        open_dataset(tmp_path)


def test_a_relative_path_finds_the_parents_splits(tmp_path, monkeypatch):
    root = organ_volumes(tmp_path / "set")
    (tmp_path / "splits.json").write_text(json.dumps({"set": {"train": ["a"]}}))
    monkeypatch.chdir(root)
    assert len(open_dataset(os.curdir).split("train")) == 1


REAL = [
    ("btcv_ct", {}, "CT", 13, 24, (15, 5, 4)),
    ("chaos_mr_t2", {}, "MR", 4, 16, (8, 1, 7)),
    ("hippocampus", {}, "MR", 2, 70, (48, 7, 15)),
    ("busi", {"targets": ["breast lesion"], "modality": "US"}, "US", 1, 149, (104, 14, 31)),
    ("isic2018", {"targets": ["skin lesion"]}, None, 1, 600, (420, 60, 120)),
    ("dsb2018_he", {"targets": ["nucleus"]}, None, 1, 91, (63, 9, 19)),
]


@pytest.mark.parametrize(("name", "options", "modality", "targets", "cases", "parts"), REAL)
def test_real_datasets_open_and_read(name, options, modality, targets, cases, parts):
    if not (DATA / name).is_dir():
        pytest.skip(f"no real data at {DATA / name}")
    dataset = open_dataset(DATA / name, **options)
    assert (dataset.modality, len(dataset.labels), len(dataset.cases)) == (modality, targets, cases)
    assert tuple(len(dataset.split(part)) for part in ("train", "val", "test")) == parts
    scan, labels = dataset.read(dataset.cases[0])
    assert scan.shape == labels.shape
    assert 0 < labels.max() <= targets


def test_masks_of_several_raters_are_not_guessed():
    if not (DATA / "chase_db1").is_dir():
        pytest.skip(f"no real data at {DATA / 'chase_db1'}")
    with pytest.raises(DatasetError, match=r"No image in .* has a label of the same name"):
        open_dataset(DATA / "chase_db1", targets=["vessel"])
