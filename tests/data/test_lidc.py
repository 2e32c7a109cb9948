import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delineate.data import open_dataset
from delineate.data.check import check_dataset
from delineate.data.lidc import write_lidc
from delineate.errors import DatasetError

NAMES = ["p1/nodule-0/slice-3", "p1/nodule-1/slice-7", "p2/nodule-0/slice-2", "p3/nodule-0/slice-1"]
SPLITS = {"train": ["p1", "elsewhere"], "val": ["p2"], "test": ["p3"]}


def disc(radius, centre=8):
    rows, columns = np.mgrid[:16, :16]
    return (rows - centre) ** 2 + (columns - centre) ** 2 <= radius**2


@pytest.fixture
def source(tmp_path):
    """Four crops of 16 × 16; slots of the first: small, large, empty, medium. Nobody drew anything in the second."""
    slots = np.zeros((4, 4, 16, 16), bool)
    slots[0, 0], slots[0, 1], slots[0, 3] = disc(2), disc(5), disc(3)
    slots[2, 1], slots[2, 2] = disc(4), disc(2)
    slots[3] = disc(3)
    folder = tmp_path / "lidc4"
    folder.mkdir()
    image = np.random.default_rng(0).integers(0, 255, (4, 16, 16), dtype=np.uint8)
    np.savez_compressed(folder / "lidc4.npz", image=image, masks=np.packbits(slots, axis=-1), names=np.array(NAMES))
    (tmp_path / "splits.json").write_text(json.dumps({"other": {"train": ["x"]}, "lidc4": SPLITS}))
    return folder / "lidc4.npz", tmp_path / "splits.json"


@pytest.fixture
def written(source, tmp_path):
    return write_lidc(*source, tmp_path / "out" / "lidc")


def test_images_consensus_and_every_rater_who_drew(written):
    dataset = open_dataset(written)
    assert (dataset.name, dataset.modality, dataset.labels) == ("lidc", "CT", {"lung nodule": 1})
    first, nobody, two, all_alike = dataset.cases
    scan, labels = dataset.read(first)
    assert scan.shape == labels.shape == (1, 16, 16)
    assert np.array_equal(labels[0] == 1, disc(3))  # two of the three who drew
    raters = dataset.read_raters(first)
    assert raters.dtype == bool
    assert np.array_equal(raters, np.stack([disc(2), disc(5), disc(3)])[:, None])
    assert [path.name for path in first.raters] == [f"{first.name}_r{slot}.png" for slot in (1, 2, 4)]
    assert not dataset.read(nobody)[1].any()
    assert dataset.read_raters(nobody) is None
    assert np.array_equal(dataset.read(two)[1][0] == 1, disc(4))  # one of two is half
    assert len(dataset.read_raters(all_alike)) == 4


def test_splits_are_by_patient_and_name_only_patients_that_are_there(written):
    dataset = open_dataset(written)
    assert {case.subject for case in dataset.cases} == {"p1", "p2", "p3"}
    assert [case.name for case in dataset.split("train")] == ["p1_nodule-0_slice-3", "p1_nodule-1_slice-7"]
    assert [len(dataset.split(part)) for part in ("val", "test")] == [1, 1]
    assert dataset.splits["train"] == ("p1",)


def test_a_limit_takes_the_first_patients_of_a_split(source, tmp_path):
    npz, splits = source
    splits.write_text(json.dumps({"train": ["p3", "p2", "p1"], "test": []}))  # lists alone will do
    dataset = open_dataset(write_lidc(npz, splits, tmp_path / "few", per_split={"train": 1}))
    assert {case.subject for case in dataset.cases} == {"p1"}
    assert {path.parent.parent for case in dataset.cases for path in case.raters} == {dataset.root}


def test_the_check_reads_rater_masks_too(written):
    report = check_dataset(written)
    assert [(problem.file, problem.what) for problem in report.problems] == [
        ("masks/p1_nodule-1_slice-7.png", "no voxel is labelled")
    ]
    assert report.targets["lung nodule"]["cases"] == 3  # cases, not raters
    spoilt = written / "raters" / "p3_nodule-0_slice-1_r2.png"
    Image.new("L", (5, 5)).save(spoilt)
    shutil.copy(written / "masks" / "p2_nodule-0_slice-2.png", written / "raters" / "p9_r1.png")
    shutil.copy(written / "masks" / "p2_nodule-0_slice-2.png", written / "raters" / "p2_nodule-0_slice-2.png")
    Image.fromarray(np.eye(16, dtype=np.uint8) * 7).save(written / "raters" / "p2_nodule-0_slice-2_r2.png")
    told = {(p.file, p.severity): p.what for p in check_dataset(written).problems}
    assert len(told) == 5
    assert "1 × 16 × 16 against 1 × 5 × 5" in told["raters/p3_nodule-0_slice-1_r2.png", "error"]
    assert "undeclared ids: 7" in told["raters/p2_nodule-0_slice-2_r2.png", "error"]
    assert "no image" in told["raters/p9_r1.png", "warning"]
    assert "no image" in told["raters/p2_nodule-0_slice-2.png", "warning"]


def test_rater_masks_off_the_grid_or_with_other_ids_are_refused(written):
    dataset = open_dataset(written)
    case = dataset.cases[3]
    Image.new("L", (5, 5)).save(case.raters[1])
    with pytest.raises(DatasetError, match=r"slice-1\.png and .*_r2\.png must share one grid"):
        dataset.read_raters(case)
    Image.fromarray(np.eye(16, dtype=np.uint8) * 7).save(case.raters[1])
    with pytest.raises(DatasetError, match=r"_r2\.png holds 7"):
        dataset.read_raters(case)


def test_a_rater_whose_file_is_empty_counts_as_one_who_saw_nothing(written):
    dataset = open_dataset(written)
    Image.new("L", (16, 16)).save(dataset.cases[3].raters[1])
    assert dataset.read_raters(dataset.cases[3]).any(axis=(1, 2, 3)).tolist() == [True, False, True, True]


def test_several_targets_have_no_raters(written):
    (written / "dataset.json").write_text(json.dumps({"labels": {"lung nodule": 1, "vessel": 2}}))
    dataset = open_dataset(written)
    assert dataset.cases[0].raters
    assert dataset.read_raters(dataset.cases[0]) is None


def test_tens_of_raters_come_in_the_order_of_their_numbers(written):
    for number in (10, 9, 11):
        shutil.copy(
            written / "raters" / "p3_nodule-0_slice-1_r1.png", written / f"raters/p3_nodule-0_slice-1_r{number}.png"
        )
    numbers = [path.stem.split("_r")[-1] for path in open_dataset(written).cases[3].raters]
    assert numbers == ["1", "2", "3", "4", "9", "10", "11"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": None}, "must be an npz of image, masks and names: 'names is not a file"),
        ({"names": np.array(["p1/a"] * 4)}, "names two crops alike"),
        ({"names": np.array(["p1/a"])}, "and 1 names"),
        ({"masks": np.zeros((4, 4, 16, 3), np.uint8)}, r"not uint8 \(4, 16, 16\), uint8 \(4, 4, 16, 3\)"),
        ({"image": np.zeros((4, 16, 16))}, r"not float64"),
        ({"names": np.array(["q1/a", "q2/a", "q3/a", "q4/a"])}, "puts no patient of"),
    ],
)
def test_files_that_are_not_as_described_leave_nothing_behind(source, tmp_path, change, message):
    npz, splits = source
    with np.load(npz) as file:
        content = dict(file) | change
    np.savez(npz, **{key: value for key, value in content.items() if value is not None})
    with pytest.raises(DatasetError, match=message):
        write_lidc(npz, splits, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"lidc4", "splits.json"}


def test_a_damaged_file_and_a_folder_that_is_taken_are_refused(source, tmp_path, monkeypatch):
    npz, splits = source
    with pytest.raises(DatasetError, match=r"lidc4 exists; name a folder that does not"):
        write_lidc(npz, splits, npz.parent)
    monkeypatch.setattr("delineate.data.lidc._save", lambda path, grey: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_lidc(npz, splits, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"lidc4", "splits.json"}  # whole or not at all
    npz.write_bytes(b"PK nonsense")
    with pytest.raises(DatasetError, match="must be an npz"):
        write_lidc(npz, splits, tmp_path / "out")


def test_the_real_set(shared_data: Path, tmp_path):
    npz = shared_data / "lidc4" / "lidc4.npz"
    if not npz.is_file():
        pytest.skip(f"no real data at {npz}")
    limits = {"train": 3, "val": 1, "test": 1}
    dataset = open_dataset(write_lidc(npz, shared_data / "splits.json", tmp_path / "lidc", limits))
    assert [len(members) for members in dataset.splits.values()] == [3, 1, 1]
    for case in dataset.cases:
        raters = dataset.read_raters(case)
        assert len(raters) in (3, 4)
        consensus = dataset.read(case)[1] == 1
        assert np.array_equal(consensus, raters.mean(axis=0) >= 0.5)


def test_an_empty_slot_may_be_a_rater_who_saw_nothing(source, tmp_path):
    dataset = open_dataset(write_lidc(*source, tmp_path / "lidc", empty_slots=True))
    raters = [dataset.read_raters(case) for case in dataset.cases]
    assert [len(r) for r in raters] == [4, 4, 4, 4]
    assert [int(r.any((1, 2, 3)).sum()) for r in raters] == [3, 0, 2, 4]
    assert int(dataset.read(dataset.cases[0])[1].sum()) == int(disc(3).sum())  # two of four is half
    assert np.array_equal(dataset.read(dataset.cases[2])[1][0] == 1, disc(2))  # where two of four agree
