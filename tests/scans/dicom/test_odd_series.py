"""Series that are odd and usual all the same: number 0, no preamble, slices at uneven steps."""

import shutil

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from tests.dicom_series import answer_here, write_series

from delineate.errors import ScanError
from delineate.scans.dicom import series as series_module
from delineate.scans.dicom.headers import printable
from delineate.scans.dicom.seg import write_seg
from delineate.scans.dicom.series import is_dicom
from delineate.scans.finding import find_scans
from delineate.scans.reading import read_scan


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(series_module, "ask_child", answer_here)


def ramp(count=6):
    """Values that grow by 100 a slice: linear along the normal, so that resampling is exact."""
    return (np.arange(count)[:, None, None] * 100 + np.zeros((count, 12, 14))).astype(np.int16)


def at_heights(folder, heights):
    """Slices at these heights in mm, whose values are 10 times their height."""
    values = np.asarray(heights) * 10
    stored = (np.rint(values)[:, None, None] + np.zeros((1, 12, 14))).astype(np.int16)
    paths = write_series(folder, stored, intercept=None, modality="MR")
    for path, height in zip(paths, heights, strict=True):
        one = pydicom.dcmread(path)
        one.ImagePositionPatient[2] = float(height)
        one.save_as(path)
    return paths


# --- numbers that are 0


def test_zero_is_a_number():
    assert [printable(value) for value in (0, 0.0, None, "", "0")] == ["0", "0.0", "", "", "0"]


def test_series_0_is_listed_and_taken(tmp_path):
    write_series(tmp_path, ramp(), SeriesNumber=1, SeriesInstanceUID="1.2.1", names=[f"a{k}" for k in range(6)])
    write_series(tmp_path, ramp(4), SeriesNumber=0, SeriesInstanceUID="1.2.0", names=[f"b{k}" for k in range(4)])
    with pytest.raises(ScanError, match=r"found 2; choose one by number .*: 0 \(CT, 4 images\); 1 \(CT, 6 images\)"):
        read_scan(tmp_path)
    for series in (0, "0"):  # as it says
        assert read_scan(tmp_path, series=series).shape[0] == 4
    assert read_scan(tmp_path, series=1).shape[0] == 6


# --- no preamble


def stripped(folder, keep_meta, syntax):
    """Rewrite every file without its first 132 bytes, and without file meta information unless that is kept."""
    for path in folder.iterdir():
        one = pydicom.dcmread(path)
        one.file_meta.TransferSyntaxUID = syntax
        one.save_as(path, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=True, enforce_file_format=True)
        content = path.read_bytes()[132:]
        if not keep_meta:
            content = content[12 + int.from_bytes(content[8:12], "little") :]  # (0002,0000) says how long it is
        path.write_bytes(content)


@pytest.mark.parametrize("keep_meta", [True, False])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_files_without_preamble_are_read_and_that_is_said(tmp_path, keep_meta, syntax):
    folder = tmp_path / "s"
    write_series(folder, ramp())
    wanted = read_scan(folder)
    stripped(folder, keep_meta, syntax)
    assert is_dicom(folder)
    assert [found.kind.name for found in find_scans(folder)] == ["DICOM"]
    scan = read_scan(folder)
    np.testing.assert_array_equal(scan.voxels, wanted.voxels)
    np.testing.assert_array_equal(scan.affine, wanted.affine)
    assert f"6 files without the mark DICM are taken for DICOM in {syntax.name}" in scan.notes
    np.testing.assert_array_equal(read_scan(folder / "002.dcm").voxels[0], wanted.voxels[2])
    mask = scan.voxels > -800
    written = write_seg(tmp_path / "seg.dcm", {"liver": mask}, scan, algorithm="test")
    assert pydicom.dcmread(written).SegmentSequence[0].SegmentLabel == "liver"


@pytest.mark.parametrize(
    "content",
    [b"\x08\x00\x05\x00", b"\x08\0\x05\0CS\xff\xff" + b"x" * 200, b"text " * 99, b"\x02\0\0\0UL\x04\0" + b"\0" * 9],
)
def test_what_only_begins_like_it_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(ScanError, match=r"a\.dcm: "):
        read_scan(tmp_path / "a.dcm")


# --- uneven steps


UNEVEN = {
    "2.5, then 7.5": [0, 2.5, 5, 7.5, 15, 22.5, 30, 37.5],
    "3, then 5": [0, 3, 6, 9, 14, 19, 24],
    "one moved": [0, 2.5, 5, 8.5, 10, 12.5],
    "5, then 8, then 5": [0, 5, 10, 18, 26, 31, 36],
}


@pytest.mark.parametrize("name", UNEVEN)
def test_uneven_slices_are_resampled_where_the_refusal_says_how(tmp_path, name):
    heights = UNEVEN[name]
    at_heights(tmp_path / "s", heights)
    with pytest.raises(ScanError, match="--fill-gaps"):
        read_scan(tmp_path / "s")
    scan = read_scan(tmp_path / "s", fill_gaps=True)  # as it says
    centres = scan.affine[2, 3] + np.arange(scan.shape[0]) * scan.affine[2, 0]
    np.testing.assert_allclose(centres[[0, -1]], [heights[0], heights[-1]], atol=1e-9)
    np.testing.assert_allclose(scan.voxels[:, 5, 5], 10 * centres, atol=1e-3)  # linear in height, wherever it lies
    assert scan.spacing_mm[0] <= np.diff(heights).min() + 1e-9
    assert scan.dicom is not None
    assert sorted(place[0] for place in scan.dicom.frames if place is not None) == list(range(len(heights)))
    for k, place in enumerate(scan.dicom.frames):
        if place is not None:
            assert abs(heights[place[0]] - centres[k]) <= scan.spacing_mm[0] / 2 + 1e-9


def test_parts_in_folders_of_their_own_are_read_as_the_refusal_says(tmp_path):
    heights = UNEVEN["3, then 5"]
    for path, height in zip(at_heights(tmp_path / "all", heights), heights, strict=True):
        part = tmp_path / ("first" if height <= 9 else "second")
        part.mkdir(exist_ok=True)
        shutil.copy(path, part)
    with pytest.raises(ScanError, match="put those of one spacing into a folder of their own"):
        read_scan(tmp_path / "all")
    assert [read_scan(tmp_path / part).spacing_mm[0] for part in ("first", "second")] == [3, 5]


@pytest.mark.parametrize("heights", [[0, 2.5, 5, 300, 302.5, 305], [0, 2.5, 5, 301, 303.6, 306.2]])
def test_a_hole_is_not_made_up_and_the_advice_helps(tmp_path, heights):
    paths = at_heights(tmp_path / "all", heights)
    with pytest.raises(ScanError, match="Put the slices of each part into a folder of their own"):
        read_scan(tmp_path / "all", fill_gaps=True)
    for n, path in enumerate(paths):
        part = tmp_path / f"part{n // 3}"
        part.mkdir(exist_ok=True)
        shutil.copy(path, part)
    assert [read_scan(tmp_path / f"part{n}").shape[0] for n in (0, 1)] == [3, 3]


# --- the cases that were once refused


def test_kept_cases_are_read(shared_cases):
    assert read_scan(shared_cases / "K13_series_zero" / "localizer_other_series", series=0).shape[0] >= 1
    scan = read_scan(shared_cases / "K14_no_preamble" / "no_preamble")
    assert (scan.modality, scan.shape) == ("CT", (8, 257, 257))
    folder = shared_cases / "K15_variable_spacing" / "variable_spacing"
    with pytest.raises(ScanError, match="--fill-gaps"):
        read_scan(folder)
    assert read_scan(folder, fill_gaps=True).shape[0] > 8
