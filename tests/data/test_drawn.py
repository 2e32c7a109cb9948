"""A dataset of DICOM series, labelled by SEG and structure sets: ids by the names of regions."""

import json

import numpy as np
import pytest
from tests.dicom_series import answer_here, write_series

from delineate.data.check import check_dataset
from delineate.data.dataset import open_dataset
from delineate.errors import ScanError
from delineate.scans.dicom import objects, regions, series
from delineate.scans.dicom.rtstruct import write_rtstruct
from delineate.scans.dicom.seg import write_seg
from delineate.scans.dicom.series import read_series


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """Two series: one labelled by contours, with a table among them, one by a SEG."""
    for module in (series, objects, regions):
        monkeypatch.setattr(module, "ask_child", answer_here)
    (tmp_path / "masks").mkdir()
    masks = {}
    for number, name in enumerate(("pat.1", "pat2")):
        voxels = np.random.default_rng(number).integers(0, 99, (4, 8, 9)).astype(np.int16)
        write_series(
            tmp_path / "images" / name, voxels, SeriesInstanceUID=f"1.2.{number}", FrameOfReferenceUID=f"1.3.{number}"
        )
        scan = read_series(tmp_path / "images" / name)
        liver, kidney = np.zeros(scan.shape, bool), np.zeros(scan.shape, bool)
        liver[1:3, 1:6, 1:6], kidney[2, 2:4, 2:4] = True, True
        masks[name] = {"Liver": liver, "Kidney_L": kidney}
        write, more = (write_rtstruct, {"table": ~liver}) if number == 0 else (write_seg, {})
        write(tmp_path / "masks" / f"{name}.dcm", masks[name] | more, scan, algorithm="t")
    told = {"labels": {"background": 0, "liver": 1, "left kidney": 2}, "channel_names": {"0": "CT"}}
    (tmp_path / "dataset.json").write_text(json.dumps(told))
    return tmp_path, masks


def test_regions_are_ids_by_name_and_the_smaller_lies_on_top(dataset):
    root, masks = dataset
    opened = open_dataset(root)
    assert [case.name for case in opened.cases] == ["pat.1", "pat2"]
    for case in opened.cases:
        scan, ids = opened.read(case)
        assert scan.dicom is not None
        liver, kidney = masks[case.name].values()
        assert np.array_equal(ids, np.where(kidney, 2, np.where(liver, 1, 0)))


def test_check_reads_them_and_tells_of_other_regions(dataset):
    report = check_dataset(dataset[0])
    assert report.ok, report.problems
    assert {name: told["cases"] for name, told in report.targets.items()} == {"liver": 2, "left kidney": 2}
    (told,) = [problem for problem in report.problems if "no targets here" in problem.what]
    assert (told.file, told.severity) == ("masks/pat.1.dcm", "warning")
    assert "table" in told.what


def test_no_region_with_the_name_of_a_target_is_an_error(dataset):
    root, _ = dataset
    (root / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "spleen": 1}, "channel_names": {"0": "CT"}})
    )
    opened = open_dataset(root)
    with pytest.raises(ScanError, match=r"none of its regions \(Liver, Kidney_L, table\) is a target"):
        opened.read(opened.cases[0])
    assert not check_dataset(root).ok
