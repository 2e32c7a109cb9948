"""Packed folders are told of in one line, and never unpacked."""

import shlex
import struct
import subprocess
import tarfile
import zipfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.scans.test_scan import nifti, refusal
from tests.scans.test_unfolding import frugal

from delineate.errors import ScanError
from delineate.scans.archives import in_words, is_archive
from delineate.scans.finding import find_scans, look_for_scans
from delineate.scans.reading import read_labels

ENDINGS = [".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar", ".ZIP", ".Tar.GZ"]


def zipped(path, *names, content=b"x"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_packed_is_refused_with_the_way_to_unpack_it(tmp_path, ending):
    path = tmp_path / f"my scans{ending}"
    path.write_bytes(b"whatever")
    assert is_archive(path)
    for read in (find_scans, read_labels):
        refusal(path, "packed folders are not read: ", f"name '{tmp_path}/my scans'", read=read)
    refusal(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_what_is_no_packed_folder(tmp_path):
    assert not any(is_archive(tmp_path / name) for name in ("a.nii.gz", "a.gz", ".a.zip", "zip", "a.zip.txt", "a.nrrd"))


def test_a_zip_says_what_it_holds(tmp_path):
    path = zipped(
        tmp_path / "a.zip", "sub/", "sub/a.nii.gz", "sub/b.dcm", "c.txt", "__MACOSX/._a.nii.gz", "d.nrrd", "e.mha"
    )
    refusal(
        path,
        "a zip of 6 files, among them a.nii.gz, b.dcm, d.nrrd; packed folders are not read: unzip",
        read=find_scans,
    )
    assert in_words(zipped(tmp_path / "b.zip", "IM1", "IM2")).startswith(
        "a zip of 2 files (IM1, IM2, …), none named like"
    )
    assert in_words(zipped(tmp_path / "c.zip")).startswith("an empty zip")
    assert in_words(zipped(tmp_path / "d.zip", "one.png")).startswith("a zip of 1 file, among them one.png")
    said = in_words(zipped(tmp_path / "e.zip", "../../\x1b[2J\u202egnp.exe.png", "x" * 500 + ".png"))
    assert said.isprintable()
    assert len(said) < 400


def test_the_way_to_unpack_it_works(tmp_path):
    scan = nifti(tmp_path / "ct.nii.gz")
    path = tmp_path / "it's all.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        archive.add(scan, "ct.nii.gz")
    command = in_words(path).partition("not read: ")[2].partition(", then name ")
    subprocess.run(["sh", "-c", command[0]], check=True)
    (found,) = find_scans(type(tmp_path)(shlex.split(command[2])[0]))
    assert np.array_equal(read_labels(found.path).voxels, read_labels(scan).voxels)


def test_in_a_folder_it_is_left_out_and_said(tmp_path):
    for n in range(5):
        zipped(tmp_path / f"p{n}.zip", "a.nii.gz")
    with pytest.raises(ScanError, match=r"no scan in this folder.*p0\.zip: left out: a zip of 1 file") as caught:
        find_scans(tmp_path)
    assert "\n" not in str(caught.value)
    nifti(tmp_path / "ct.nii.gz")
    looked = look_for_scans(tmp_path)
    assert [one.name for one in looked.scans] == ["ct"]
    assert len(looked.left_out) == 3
    assert looked.left_out[0].startswith(f"{tmp_path / 'p0.zip'}: left out: a zip of 1 file, among them a.nii.gz;")
    assert len(list(tmp_path.iterdir())) == 6


def test_a_zip_that_unpacks_to_a_disk_is_not_unpacked(tmp_path):
    path = zipped(tmp_path / "bomb.zip", "a.nii", content=bytes(64 << 20))
    with frugal():
        assert "a zip of 1 file, among them a.nii" in in_words(path)


def test_a_directory_that_claims_gigabytes_is_not_read(tmp_path):
    path = zipped(tmp_path / "a.zip", "a.nii")
    content = bytearray(path.read_bytes())
    end = content.rindex(b"PK\5\6")
    struct.pack_into("<I", content, end + 12, 2**31)
    path.write_bytes(bytes(content))
    with frugal():
        assert "cannot be read" in in_words(path)
    with path.open("r+b") as file:  # as long as it claims, on disks that keep no zeros
        file.truncate(2**31)
        file.seek(2**31)
        file.write(bytes(content[end:]))
    with frugal():
        assert "cannot be read" in in_words(path)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_whatever_a_zip_holds_there_is_a_line(tmp_path, data):
    content = bytearray(zipped(tmp_path / "good.zip", "a.nii", "b/c.dcm", "Ä.png").read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    (tmp_path / "odd.zip").write_bytes(content)
    assert in_words(tmp_path / "odd.zip").isprintable()
