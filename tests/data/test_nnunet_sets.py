"""Valid sets of nnU-Net, MSD and of people who follow them more or less: read, or refused with advice that helps."""

import json
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from delineate.data.augmented import AugmentedDataset
from delineate.data.check import check_dataset
from delineate.data.dataset import IGNORED, open_dataset
from delineate.data.layout import read_declared, read_json
from delineate.data.slices import NO_LABEL, UNLABELLED, build_slices
from delineate.errors import DatasetError
from delineate.evaluation.evaluation import consensus_dice, evaluate
from delineate.evaluation.protocols.lines import answers
from delineate.evaluation.trivial import TRIVIAL
from delineate.segmenter import Segmenter
from delineate.synthesis.distance import image_set
from delineate.training.judging import HeldOut


def volumes(root, names=("a", "b", "c", "d"), number="_0000", ids=(1,), **described):
    """A set of small volumes in the layout of nnU-Net, with `dataset.json` as told."""
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for name in names:
        voxels, labels = rng.integers(-1000, 500, (8, 8, 4), dtype=np.int16), np.zeros((8, 8, 4), np.uint8)
        for place, value in enumerate(ids):
            labels[2:5, 2:5, place] = value
        for folder, array, end in (("imagesTr", voxels, number), ("labelsTr", labels, "")):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), root / folder / f"{name}{end}.nii.gz")
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}} | described
    described = {key: value for key, value in described.items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def pictures(root, names, colours=3):
    """A set of four pictures in the layout of nnU-Net, whose channels are called `names`."""
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    for name in "abcd":
        pixels = rng.integers(0, 255, (16, 16, colours), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "imagesTr" / f"{name}_0000.png")
        mask = np.zeros((16, 16), np.uint8)
        mask[3:9, 3:9] = 1
        Image.fromarray(mask).save(root / "labelsTr" / f"{name}.png")
    described = {"channel_names": dict(enumerate(names)), "labels": {"background": 0, "polyp": 1}}
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def read_all(root):
    """The dataset, each of its cases read, after a check without any finding."""
    assert check_dataset(root).problems == []
    dataset = open_dataset(root)
    for case in dataset.cases:
        scan, labels = dataset.read(case)
        assert scan.shape == labels.shape
        assert labels.any()
    return dataset


# --- channels


@pytest.mark.parametrize(
    "names", [("Red", "Green", "Blue"), ("rgb_to_0_1",) * 3, ("R", "G", "B"), ("zscore",) * 3, ("a", "b", "c")]
)
def test_three_channels_of_a_picture_are_its_colours_whatever_they_are_called(tmp_path, names):
    dataset = read_all(pictures(tmp_path / "set", names))
    assert dataset.modality is None
    assert dataset.read(dataset.cases[0])[0].is_colour


def test_colours_may_all_name_one_kind_of_picture_and_alpha_is_a_fourth(tmp_path):
    assert read_all(pictures(tmp_path / "set", ("endoscopy",) * 3)).modality == "endoscopy"
    dataset = open_dataset(pictures(tmp_path / "more", ("red", "green", "blue", "alpha"), colours=4))
    assert dataset.read(dataset.cases[0])[0].is_colour


def several(root, names=("T1", "T2", "FLAIR"), **described):
    """The same with a file a channel, whose voxels differ."""
    volumes(root, channel_names=dict(enumerate(names)), **described)
    for path in list((root / "imagesTr").iterdir()):
        image = nibabel.load(path)
        for number in range(1, len(names)):
            voxels = np.asanyarray(image.dataobj) // (1 + number)
            other = path.with_name(path.name.replace("_0000", f"_{number:04d}"))
            nibabel.save(nibabel.Nifti1Image(voxels.astype(np.int16), image.affine), other)
    return root


def test_several_channels_are_one_scan_as_nnunet_reads_them(tmp_path):
    dataset = read_all(several(tmp_path / "set"))
    assert (dataset.channels, dataset.modality) == (("T1", "T2", "FLAIR"), "MR")
    case = dataset.cases[0]
    assert [path.name for path in (case.image, *case.more)] == [f"a_000{k}.nii.gz" for k in range(3)]
    scan = dataset.read(case)[0]
    assert scan.channels == dataset.channels
    for number, path in enumerate((case.image, *case.more)):
        assert np.array_equal(scan.voxels[..., number], np.asanyarray(nibabel.load(path).dataobj))


def test_channels_are_in_the_order_of_their_numbers(tmp_path):
    root = several(tmp_path / "set")
    described = json.loads((root / "dataset.json").read_text())
    described["channel_names"] = dict(reversed(described["channel_names"].items()))
    (root / "dataset.json").write_text(json.dumps(described))
    assert open_dataset(root).channels == ("T1", "T2", "FLAIR")


def test_a_decathlon_set_holds_its_channels_in_one_file(tmp_path):
    root = volumes(tmp_path / "set", number="", channel_names=None, modality={"0": "FLAIR", "1": "T1gd"})
    for path in (root / "imagesTr").iterdir():
        voxels = np.asanyarray(nibabel.load(path).dataobj)
        nibabel.save(nibabel.Nifti1Image(np.stack([voxels, voxels // 2], axis=-1), np.eye(4)), path)
    dataset = read_all(root)
    assert dataset.channels == ("FLAIR", "T1gd")
    scan = dataset.read(dataset.cases[0])[0]
    assert scan.voxels.shape == (8, 8, 4, 2)
    assert np.array_equal(scan.voxels[..., 1], scan.voxels[..., 0] // 2)


def test_one_volume_where_channels_were_promised_is_told(tmp_path):
    root = volumes(tmp_path / "set", number="", channel_names=None, modality={"0": "FLAIR", "1": "T1gd"})
    said = check_dataset(root).problems[0].what
    assert "FLAIR, T1gd are a file each, NAME_0000, NAME_0001, …, or one file with a volume each" in said


def test_channels_of_other_kinds_have_no_modality_together(tmp_path):
    dataset = open_dataset(several(tmp_path / "set", ("CT", "PET")))
    assert (dataset.modality, dataset.read(dataset.cases[0])[0].modality) == (None, None)


def test_what_is_wrong_with_channels_is_said_of_the_file(tmp_path):
    root = several(tmp_path / "set", ("T1", "T2"))
    images = root / "imagesTr"
    (images / "a_0001.nii.gz").unlink()
    with pytest.raises(DatasetError, match=r"a_0000\.nii\.gz: channel 1 \(T2\) of 'a' is not there; add a_0001"):
        open_dataset(root)
    shutil.copy(images / "a_0000.nii.gz", images / "a_0001.nii.gz")
    shutil.copy(images / "a_0000.nii.gz", images / "a_0002.nii.gz")
    with pytest.raises(DatasetError, match=r"a_0002\.nii\.gz: dataset\.json has no such channel in 'channel_names'"):
        open_dataset(root)
    (images / "a_0002.nii.gz").unlink()
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 5), np.int16), np.eye(4)), images / "b_0001.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.full((8, 8, 4), 7, np.int16), np.eye(4)), images / "c_0001.nii.gz")
    told = {problem.file: problem.what for problem in check_dataset(root).problems}
    assert "share one grid" in told["imagesTr/b_0000.nii.gz"]
    assert "b_0001.nii.gz" in told["imagesTr/b_0000.nii.gz"]
    assert told["imagesTr/c_0001.nii.gz"] == "every voxel is 7"


@pytest.mark.parametrize("names", [("T1", "T1"), ("T1", " "), [f"c{k}" for k in range(40)]])
def test_channels_have_names_of_their_own_and_are_not_too_many(tmp_path, names):
    with pytest.raises(DatasetError, match="32 at most, each with a name of its own"):
        open_dataset(volumes(tmp_path / "set", channel_names=dict(enumerate(names))))


def test_sets_of_other_channels_are_not_learnt_together(tmp_path):
    one, other = several(tmp_path / "one", ("T1", "T2")), several(tmp_path / "other", ("T2", "T1"))
    splits = '{"train": ["a", "b"], "val": ["c"], "test": ["d"]}'
    (one / "splits.json").write_text(splits)
    (other / "splits.json").write_text(splits)
    bank = build_slices([open_dataset(one)], "train", 64)
    assert bank.images.shape[1:] == (2, 64, 64)
    assert bank.channels == ("T1", "T2")
    with pytest.raises(DatasetError, match="same channels in the same order"):
        build_slices([open_dataset(one), open_dataset(other)], "train", 64)


@pytest.mark.parametrize(
    ("described", "modality"),
    [
        ({"channel_names": ["CT"]}, "CT"),
        ({"channel_names": None, "modality": ["MR"]}, "MR"),
        ({"channel_names": None, "modality": "CT"}, "CT"),
        ({"channel_names": {"0": "computed tomography"}}, "CT"),
        ({"channel_names": {"0": "CTA"}}, "CT"),
        ({"channel_names": []}, None),
        ({"channel_names": None}, None),
    ],
)
def test_a_modality_may_be_a_list_or_spelt_out(tmp_path, described, modality):
    root = volumes(tmp_path / "set", **described)
    dataset = read_all(root)
    assert dataset.modality == modality
    assert dataset.read(dataset.cases[0])[0].modality == modality or "CT"  # by its values


@pytest.mark.parametrize("stated", [{"0": 0}, [1], [["CT"]], [{"0": "CT"}], 7, {"0": "PET-CT"}])
def test_a_modality_of_another_type_is_refused_and_the_advice_helps(tmp_path, stated):
    root = volumes(tmp_path / "set", channel_names=stated)
    (problem,) = check_dataset(root).problems
    assert problem.file == "dataset.json"
    with pytest.raises(DatasetError, match="one kind of picture" if "PET" in str(stated) else '{"0": "CT"}'):
        open_dataset(root)
    (root / "dataset.json").write_text('{"channel_names": {"0": "CT"}, "labels": {"liver": 1}}')
    assert read_all(root).modality == "CT"


# --- names


NUMBERED = ("img_0000", "img_0001", "img_0002", "img_0003")


@pytest.mark.parametrize("described", [{"channel_names": None, "modality": {"0": "CT"}}, {}], ids=["v1", "v2"])
def test_numbered_names_whose_labels_are_numbered_too_are_cases(tmp_path, described):
    root = volumes(tmp_path / "set", NUMBERED, number="", **described)
    assert tuple(case.name for case in read_all(root).cases) == NUMBERED
    assert len(set(image_set(root, size=16).scans)) == 4  # nor are they channels to others who read the folder
    (root / "labelsTr" / "img_0002.nii.gz").unlink()
    assert [case.labels is None for case in open_dataset(root).cases] == [False, False, True, False]


def test_numbered_names_with_a_channel_number_behind_are_cases(tmp_path):
    assert tuple(case.name for case in read_all(volumes(tmp_path / "set", NUMBERED)).cases) == NUMBERED


# --- JSON


def test_json_with_a_byte_order_mark_is_read_wherever_a_set_holds_some(tmp_path):
    root = volumes(tmp_path / "set")
    (root / "splits.json").write_text('{"train": ["p1", "p2"], "val": [], "test": ["p3"]}')
    (root / "subjects.json").write_text('{"a": "p1", "b": "p1", "c": "p2", "d": "p3"}')
    for name in ("dataset.json", "splits.json", "subjects.json"):
        (root / name).write_bytes(b"\xef\xbb\xbf" + (root / name).read_bytes())
    dataset = read_all(root)
    assert dataset.labels == {"liver": 1}
    assert [case.name for case in dataset.split("train")] == ["a", "b", "c"]


def test_nnunets_own_splits_are_followed_where_there_are_no_others_and_that_is_said(tmp_path):
    root = volumes(tmp_path / "set")
    folds = [{"train": ["a", "b", "c"], "val": ["d"]}, {"train": ["d"], "val": ["a", "b", "c"]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    dataset = open_dataset(root)
    assert dataset.splits == {"train": ("a", "b", "c"), "val": ("d",)}
    told = {problem.file: problem for problem in check_dataset(root).problems if "fold 0" in problem.what}
    assert told["splits_final.json"].severity == "warning"
    (root / "splits.json").write_text('{"train": ["a"], "val": ["b"], "test": ["c", "d"]}')
    assert open_dataset(root).splits["test"] == ("c", "d")
    assert check_dataset(root).problems == []


@pytest.mark.parametrize("folds", ["[]", "{}", '["a"]', '[{"train": "a"}]', "[["])
def test_damaged_splits_of_nnunet_are_named(tmp_path, folds):
    root = volumes(tmp_path / "set")
    (root / "splits_final.json").write_text(folds)
    with pytest.raises(DatasetError, match=r"splits_final\.json"):
        open_dataset(root)


IGNORING = {"background": 0, "liver": 1, "ignore": 2}


def test_voxels_that_are_to_be_ignored_are_neither_target_nor_background(tmp_path):
    dataset = read_all(volumes(tmp_path / "set", ids=(1, 2), labels=IGNORING))
    assert (dataset.labels, dataset.ignore) == ({"liver": 1}, 2)
    ids = dataset.read(dataset.cases[0])[1]
    assert np.unique(ids).tolist() == [IGNORED, 0, 1]
    assert (ids[2:5, 2:5, 1] == IGNORED).all()
    renamed = open_dataset(dataset.root, targets={"spleen": 1})
    assert (renamed.labels, renamed.ignore) == ({"spleen": 1}, 2)


def test_an_ignored_255_is_not_taken_for_a_drawn_mask(tmp_path):
    dataset = open_dataset(volumes(tmp_path / "set", ids=(255,), labels=IGNORING | {"ignore": 255}))
    assert np.unique(dataset.read(dataset.cases[0])[1]).tolist() == [IGNORED, 0]
    told = [problem.what for problem in check_dataset(dataset.root).problems]
    assert told.count("no voxel is labelled") == 4
    assert not any("undeclared" in what for what in told)


def test_a_slice_of_which_nearly_all_is_ignored_is_no_inverted_mask(tmp_path):
    root = volumes(tmp_path / "set", ids=(1,), labels=IGNORING)
    for path in (root / "labelsTr").iterdir():
        labels = np.asanyarray(nibabel.load(path).dataobj)
        nibabel.save(nibabel.Nifti1Image(np.where(labels == 1, 1, 2).astype(np.uint8), np.eye(4)), path)
    read_all(root)


@pytest.mark.parametrize("labels", [{"background": 0, "liver": 1, "ignore": 0}, {"liver": 1, "ignore": 1}])
def test_an_id_for_ignored_voxels_is_its_own(tmp_path, labels):
    with pytest.raises(DatasetError, match="ignore"):
        open_dataset(volumes(tmp_path / "set", labels=labels))


def test_ignored_voxels_of_a_volume_come_to_slices_and_to_scores_as_such(tmp_path):
    dataset = open_dataset(volumes(tmp_path / "set", ids=(1, 2), labels=IGNORING))
    (root := dataset.root / "splits.json").write_text('{"train": ["a"], "val": ["b"], "test": ["c", "d"]}')
    dataset = open_dataset(root.parent)
    bank = build_slices([dataset], "train", 64)
    shown = [sorted(set(one.flatten().tolist())) for one in bank.labels]
    assert shown == [[0, 1], [0, UNLABELLED], [0], [0]]
    batch = replace(bank, augmentation="none").draw(64, 1, torch.Generator().manual_seed(0))
    assert (batch.labels == NO_LABEL).any()
    assert torch.equal(batch.known[:, 0], batch.labels >= 0)
    everywhere = torch.ones(len(bank), 64, 64, dtype=torch.long)
    held = HeldOut(bank)
    found = held.dice(lambda image, possible: everywhere[: len(image)])["liver"]
    known = bank.labels != UNLABELLED
    assert found == pytest.approx(float(2 * (bank.labels == 1).sum() / ((bank.labels == 1).sum() + known.sum())))


def test_what_is_to_be_ignored_is_so_for_every_rater(tmp_path):
    root = volumes(tmp_path / "set", ids=(1, 2), labels=IGNORING)
    (root / "splits.json").write_text('{"train": ["a", "b", "c"], "val": [], "test": ["d"]}')
    (root / "raters").mkdir()
    for name in "abcd":
        for rater in (1, 2):
            shutil.copy(root / "labelsTr" / f"{name}.nii.gz", root / "raters" / f"{name}_r{rater}.nii.gz")
    bank = replace(build_slices([open_dataset(root)], "train", 64, rating="random"), augmentation="none")
    assert torch.equal(bank.readings == UNLABELLED, (bank.labels == UNLABELLED)[:, None].expand_as(bank.readings))
    batch = bank.draw(32, 1, torch.Generator().manual_seed(0))
    assert (batch.labels == NO_LABEL).any()
    assert batch.present.all()


def test_names_that_labels_cannot_tell_apart_are_refused(tmp_path):
    names = {
        f"structure {letter}{number}": 26 * number + place
        for number in range(10)
        for place, letter in enumerate("abcdefghijklmnopqrstuvwxyz", 1)
    }
    root = volumes(tmp_path / "set", labels={"background": 0, **names})
    (root / "splits.json").write_text('{"train": ["a", "b"], "val": ["c"], "test": ["d"]}')
    with pytest.raises(DatasetError, match="260 names are more than a slice's labels can tell apart, 252 at most"):
        build_slices([open_dataset(root)], "train", 64)


def test_an_enlarged_dataset_keeps_what_is_to_be_ignored(tmp_path):
    root = volumes(tmp_path / "set", ids=(1, 2), labels=IGNORING)
    (root / "splits.json").write_text('{"train": ["a", "b"], "val": ["c"], "test": ["d"]}')
    dataset = open_dataset(root)
    larger = AugmentedDataset(tmp_path / "larger", dataset, flat=False)
    larger.add_real(dataset.cases[0])
    nibabel.save(nibabel.load(dataset.cases[0].image).slicer[:, :, :2], tmp_path / "drawn.nii.gz")
    larger.add_synthetic("a_syn0", dataset.cases[0], tmp_path / "drawn.nii.gz", (0, 2))
    larger.finish({"synthetic": {}}, "CT")
    again = open_dataset(tmp_path / "larger")
    assert again.ignore == 2
    for case in again.cases:
        assert (again.read(case)[1] == IGNORED).any()


@pytest.mark.parametrize(
    ("folder", "modality", "cases"),
    [
        ("K10_rgb_channel_names/png_Red", None, 4),
        ("K11_modality_list/chan_list", "CT", 4),
        ("K12_v1_numbered_names/v1_numeric_names", "CT", 4),
        ("K18_json_bom/bom", "CT", 4),
    ],
)
def test_kept_cases_are_read(shared_cases, folder, modality, cases):
    report = check_dataset(shared_cases / folder)
    assert report.ok
    assert report.cases == cases
    dataset = open_dataset(shared_cases / folder)
    assert (dataset.modality, len(dataset.cases)) == (modality, cases)
    for case in dataset.cases:
        dataset.read(case)


def test_nothing_is_right_or_wrong_where_nobody_labelled(tmp_path, phantom_dataset):
    """One mask for all scans is wrong beside the liver; where all of that is to be ignored, only what it misses counts."""
    dataset = open_dataset(phantom_dataset, targets=["liver"])
    segmenter = Segmenter(TRIVIAL["mean mask"](build_slices([dataset], "train", 64)), (None,))
    case = dataset.split("test")[0]
    truth = dataset.read(case)[1] == dataset.labels["liver"]
    found = segmenter(dataset.read(case)[0], ["liver"], n=2, anyway=True)["liver"].consensus()
    ignoring = replace(dataset, ignore=max(dataset.declared_ids) + 1)
    labels = nibabel.load(case.labels)
    ignored = np.where(truth, dataset.labels["liver"], ignoring.ignore).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(ignored, labels.affine), tmp_path / "labels.nii.gz")
    case = replace(case, labels=tmp_path / "labels.nii.gz")
    ignoring = replace(ignoring, cases=(case,), splits={"test": (case.subject,)})
    inside = float(2 * (found & truth).sum() / ((found & truth).sum() + truth.sum()))
    assert found[~truth].any()
    assert consensus_dice(segmenter, ignoring, n=2) == {case.name: {"liver": pytest.approx(inside)}}
    [row] = evaluate(segmenter, ignoring, n=2, fusions=("mean",))
    assert row.consensus["mean"]["dice"] == pytest.approx(inside)
    [answered] = answers(segmenter, ignoring, [case], ["liver"], 2, 0)
    assert not (answered.masks() & ~truth).any()
    assert not answered.probability()[~truth].any()


BRATS = {"background": 0, "whole tumour": [1, 2, 3], "tumour core": [2, 3], "enhancing tumour": [3]}


@pytest.mark.parametrize(
    ("labels", "parts", "regions"),
    [
        (
            BRATS,
            {"enhancing tumour": 3, "whole tumour outside tumour core": 1, "tumour core outside enhancing tumour": 2},
            {"whole tumour": {1, 2, 3}, "tumour core": {2, 3}},
        ),
        (
            {"background": 0, "kidney and masses": [1, 2, 3], "masses": [2, 3], "tumour": 2},
            {"tumour": 2, "kidney and masses outside masses": 1, "masses outside tumour": 3},
            {"kidney and masses": {1, 2, 3}, "masses": {2, 3}},
        ),
        (
            {"background": 0, "left": [1, 2], "right": [2, 3]},
            {"left alone": 1, "left and right": 2, "right alone": 3},
            {"left": {1, 2}, "right": {2, 3}},
        ),
        (
            {"background": 0, "organ": [1, 2, 3], "core": [3]},
            {"core": 3, "organ outside core": 1},
            {"organ": {1, 2, 3}},
        ),
        ({"background": 0, "organ": [2, 1]}, {"organ": 1}, {}),
    ],
)
def test_regions_are_read_as_nnunet_reads_them(tmp_path, labels, parts, regions):
    """Each is where its ids are; what is learnt are parts that exclude each other."""
    root = volumes(tmp_path / "set", ids=(1, 2, 3), labels=labels)
    if max(id for ids in labels.values() for id in (ids if isinstance(ids, list) else [ids])) < 3:
        for path in (root / "labelsTr").iterdir():
            ids = np.asanyarray(nibabel.load(path).dataobj)
            nibabel.save(nibabel.Nifti1Image(np.minimum(ids, 2), np.eye(4)), path)
    dataset = read_all(root)
    assert dataset.labels == parts
    assert set(dataset.targets) == {*parts, *regions}
    case = dataset.cases[0]
    stored, ids = np.asanyarray(nibabel.load(case.labels).dataobj), dataset.read(case)[1]
    for name, wanted in labels.items():
        if name != "background":
            wanted = wanted if isinstance(wanted, list) else [wanted]
            assert np.array_equal(dataset.truth(name, ids), np.isin(stored, wanted))
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "dataset.json").write_text(json.dumps({"labels": dataset.declared()}))
    again = read_declared(read_json(tmp_path / "again" / "dataset.json"), tmp_path)
    assert (again.labels, again.regions, again.same) == (dataset.labels, dataset.regions, dataset.same)
    for concept in dataset.region_concepts():
        assert {i for part in concept.parts for i in [parts[part]]} <= regions[concept.name]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": []}, "ids of 'a' must be different whole numbers"),
        ({"a": [1, 1]}, "ids of 'a' must be different whole numbers"),
        ({"a": [0, 1]}, "ids of 'a' must be different whole numbers"),
        ({"a": [1, [2]]}, "ids of 'a' must be different whole numbers"),
        ({"a": [1, 2], "b": [2, 1]}, "'b' = .* is what another name stands for"),
        ({"a": [1, 2], "A": [1]}, "must be a name used once"),
        ({"a": 1, "b": [1]}, "what another name stands for"),
        ({"a": [1, 2], "ignore": 2}, "id 2 is both 'ignore' and of 'a'"),
        ({"a": [1, 2], "ignore": [3]}, "a name used once, and of a target"),
    ],
)
def test_regions_that_say_nothing_clear_are_refused(tmp_path, labels, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset(volumes(tmp_path / "set", labels={"background": 0, **labels}))
