"""Exports of an archive: every series of every patient is found, whatever lies beside."""

import os
import shutil

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian
from tests.dicom_series import dataset, write_series

from delineate.errors import ScanError
from delineate.review.cases import find_cases
from delineate.scans.dicom import folders
from delineate.scans.dicom.folders import holds, kind_of_object, look_below
from delineate.scans.finding import Kind, find_scans, look_for_scans
from delineate.scans.reading import read_scan

VOXELS = np.arange(3 * 8 * 8, dtype=np.int16).reshape(3, 8, 8)
STORAGE = "1.2.840.10008.5.1.4.1.1."


def single(path, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    made = dataset(**more)
    pydicom.dcmwrite(path, made, enforce_file_format=True)
    return path


@pytest.fixture
def export(tmp_path):
    """Two patients, three series, a DICOMDIR, a localiser, a report and other objects."""
    root = tmp_path / "EXPORT"
    write_series(root / "PAT1" / "ST0" / "SE1", VOXELS, names=["IM1", "IM2", "IM3"])
    write_series(root / "PAT1" / "ST0" / "SE2", VOXELS + 1)
    write_series(root / "PAT2" / "ST0" / "SE1", VOXELS + 2)
    write_series(root / "PAT1" / "ST0" / "SE0", VOXELS[:1], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    single(root / "PAT1" / "ST0" / "SE2" / "report", modality="SR")
    single(root / "PAT1" / "ST0" / "SR1" / "report", modality="SR")
    single(root / "PAT2" / "ST0" / "SEG" / "a.dcm", modality="SEG", SOPClassUID=f"{STORAGE}66.4")
    single(root / "PAT2" / "ST0" / "RT" / "a.dcm", modality="RTSTRUCT", SOPClassUID=f"{STORAGE}481.3")
    single(root / "DICOMDIR", SOPClassUID="1.2.840.10008.1.3.10")
    (root / "PAT2" / "README.txt").write_text("nothing")
    return root


def test_every_series_is_a_scan_with_a_name_of_its_own(export):
    looked = look_for_scans(export)
    assert [(one.name, one.kind) for one in looked.scans] == [
        (name, Kind.DICOM) for name in ("PAT1-ST0-SE1", "PAT1-ST0-SE2", "PAT2-ST0-SE1")
    ]
    assert [int(read_scan(one).voxels.min()) for one in looked.scans] == [-1024, -1023, -1022]
    said = " ".join(looked.left_out)
    for words in (
        "left out: localisers (PAT1/ST0/SE0)",
        "left out: reports (PAT1/ST0/SR1)",
        "left out: segmentations (PAT2/ST0/SEG)",
        "left out: structure sets (PAT2/ST0/RT)",
    ):
        assert words in said
    assert len(looked.left_out) == 4
    assert [one.name for one in find_scans(export / "PAT2")] == ["ST0-SE1"]
    assert [one.name for one in find_scans(export / "PAT1" / "ST0")] == ["SE1", "SE2"]
    told = []
    assert [case.name for case in find_cases(export, on_left_out=told.append)] == [one.name for one in looked.scans]
    assert tuple(told) == looked.left_out


def test_what_was_written_of_it_is_no_part_of_it(export):
    case = export / "PAT1" / "out" / "PAT1-ST0-SE1"
    write_series(case / "deeper", VOXELS)
    single(case / "segmentation.dcm", SOPClassUID=f"{STORAGE}66.4")
    (case / "case.json").write_text("{}")
    write_series(export / ".hidden", VOXELS)
    assert len(find_scans(export)) == 3


def test_series_beside_images_and_files_of_other_kinds(export):
    shutil.copytree(export / "PAT2" / "ST0" / "SE1", export / "PAT1" / "ST0" / "SE1" / "again")
    assert [one.name for one in find_scans(export / "PAT1" / "ST0" / "SE1")] == ["SE1", "again"]
    (export / "flat.png").write_bytes(b"x")
    assert [one.name for one in find_scans(export)][-1] == "flat"
    assert [one.path for one in find_scans(export / "PAT2" / "ST0" / "SE1")] == [export / "PAT2" / "ST0" / "SE1"]


def test_names_that_would_be_the_same_are_told_apart(tmp_path):
    for way in ("a-b/c", "a/b-c", "A/B-C", "x" * 150 + "/s", "x" * 150 + "/t"):
        write_series(tmp_path / way, VOXELS)
    names = [one.name for one in find_scans(tmp_path)]
    assert len({name.casefold() for name in names}) == 5
    assert all(len(name.encode()) <= 100 for name in names)
    assert names == [one.name for one in find_scans(tmp_path)]


def test_links_that_lead_round_in_circles(export):
    (export / "PAT1" / "loop").symlink_to(export)
    (export / "PAT1" / "ST0" / "SE1" / "self").symlink_to(".")
    (export / "again").symlink_to(export / "PAT2")
    (export / "gone").symlink_to(export / "nowhere")
    found = find_scans(export)
    assert len(found) == 3
    assert {one.path.resolve() for one in found} == {one.resolve() for one in export.glob("PAT*/ST0/SE[12]")}


def test_folders_without_end_are_not_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MOST_FOLDERS", 20)
    for n in range(19):
        (tmp_path / f"f{n}").mkdir()
    assert look_below(tmp_path).series == []
    (tmp_path / "f0" / "deeper").mkdir()
    with pytest.raises(ScanError, match="at most 20 folders are looked at, more lie below; name one of them"):
        find_scans(tmp_path)


def test_a_folder_that_may_not_be_read_is_said(export, monkeypatch):
    real = os.scandir

    def forbidding(folder):
        if folder == export / "PAT2":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(folders.os, "scandir", forbidding)
    looked = look_for_scans(export)
    assert [one.name for one in looked.scans] == ["PAT1-ST0-SE1", "PAT1-ST0-SE2"]
    assert "left out: what may not be read (PAT2)" in " ".join(looked.left_out)


def test_nothing_but_other_objects(export, tmp_path):
    shutil.copytree(export / "PAT2" / "ST0" / "RT", tmp_path / "rt" / "a")
    with pytest.raises(
        ScanError, match=r"no scan in this folder.*DICOM also below; left out: structure sets \(a\)"
    ) as caught:
        find_scans(tmp_path / "rt")
    assert "\n" not in str(caught.value)
    with pytest.raises(ScanError, match="found none"):  # by its name, it is read and told what it is
        read_scan(find_scans(tmp_path / "rt" / "a")[0])
    assert find_scans(export / "PAT1" / "ST0" / "SE0")[0].kind is Kind.DICOM


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        ({"modality": "CT"}, ""),
        ({"modality": "US"}, ""),
        ({"modality": "SR"}, "reports"),
        ({"SOPClassUID": f"{STORAGE}11.1"}, "presentation states"),
        ({"SOPClassUID": f"{STORAGE}1"}, ""),
        ({"SOPClassUID": f"{STORAGE}1.1"}, ""),
        ({"SOPClassUID": f"{STORAGE}481.1"}, ""),
        ({"SOPClassUID": f"{STORAGE}481.2"}, "radiotherapy doses"),
        ({"SOPClassUID": f"{STORAGE}481.5"}, "radiotherapy plans or records"),
        ({"SOPClassUID": f"{STORAGE}66"}, "raw data or registrations"),
        ({"SOPClassUID": f"{STORAGE}104.1"}, "documents"),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, ""),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localisers"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SpecificCharacterSet": "ISO_IR 192"}, "localisers"),
    ],
    ids=str,
)
def test_what_an_object_is(tmp_path, changed, kind):
    path = single(tmp_path / "a", **changed)
    assert kind_of_object(path) == kind
    whole = pydicom.dcmread(path)
    whole.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    pydicom.dcmwrite(tmp_path / "b", whole, implicit_vr=True, little_endian=True)
    assert kind_of_object(tmp_path / "b") == kind
    whole.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    pydicom.dcmwrite(tmp_path / "c", whole, implicit_vr=False, little_endian=False)
    assert kind_of_object(tmp_path / "c") in (kind, "")
    content = path.read_bytes()
    for end in range(132, len(content), 7):  # cut anywhere
        (tmp_path / "d").write_bytes(content[:end])
        assert kind_of_object(tmp_path / "d") in (kind, "")
    (tmp_path / "d").write_bytes(b"\xff" * 128 + b"DICM" + b"\xff" * 4000)
    assert kind_of_object(tmp_path / "d") == ""


def test_what_is_no_dicom(tmp_path):
    (tmp_path / "a").write_bytes(b"text" * 100)
    assert kind_of_object(tmp_path / "a") is None
    assert kind_of_object(tmp_path / "nowhere") is None
    assert holds(tmp_path) is None
    single(tmp_path / "b.png")  # by its name it is a picture
    assert holds(tmp_path) is None
