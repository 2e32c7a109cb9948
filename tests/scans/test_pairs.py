"""NIfTI pairs: a header NAME.hdr and its voxels, NAME.img."""

import nibabel
import numpy as np
import pytest
from tests.scans.test_scan import LABELS, SHAPE, refusal
from tests.scans.test_unfolding import frugal

from delineate.scans.finding import case_name, find_scans
from delineate.scans.reading import read_labels, read_scan


def pair(path, array=LABELS, kind=nibabel.Nifti1Pair, **fields):
    image = kind(array, np.diag([-1.0, -2, 3, 1]), dtype=array.dtype)
    image.set_sform(image.affine, 1)
    nibabel.save(image, path)
    header = image.header_class(path.read_bytes()[: image.header.sizeof_hdr], check=False)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(header.binaryblock)
    return path


@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_a_pair_is_read_by_either_name(tmp_path, kind):
    path = pair(tmp_path / "a.b_0000.hdr", kind=kind)
    if kind is nibabel.Nifti2Pair:
        assert path.stat().st_size == 540
    for one in (path, path.with_suffix(".img")):
        read = read_scan(one)
        assert np.array_equal(read.voxels, LABELS)
        assert (read.axis_codes, read.spacing_mm, read.notes) == ("LPS", (1, 2, 3), ())
        assert np.array_equal(read_labels(one).voxels, LABELS)
        assert [found.name for found in find_scans(one)] == ["a.b"] == [case_name(path)]
    upper = path.with_suffix(".img").rename(tmp_path / "a.b_0000.IMG")
    path = path.rename(tmp_path / "a.b_0000.HDR")
    assert np.array_equal(read_scan(path).voxels, read_scan(upper).voxels)


def test_voxels_may_begin_later_and_be_several_volumes(tmp_path):
    path = pair(tmp_path / "a.hdr", vox_offset=16)
    image = path.with_suffix(".img")
    image.write_bytes(bytes(16) + LABELS.tobytes("F"))
    assert np.array_equal(read_scan(path).voxels, LABELS)
    refusal(pair(path, vox_offset=-16), "cut short or its header is wrong")
    refusal(pair(path, vox_offset=np.nan), "from byte nan")
    four = pair(tmp_path / "t.hdr", np.stack([LABELS, LABELS[::-1]], -1))
    refusal(four, "found 2 volumes")
    assert np.array_equal(read_scan(four, volume=1).voxels, LABELS[::-1])


def test_what_is_refused(tmp_path):
    path = pair(tmp_path / "a.hdr")
    path.with_suffix(".img").write_bytes(LABELS.tobytes("F")[:-1])
    refusal(path, "asks for 120 bytes", "the file has 119 bytes")
    path.with_suffix(".img").unlink()
    refusal(path, "must lie beside it in a.img")
    lone = tmp_path / "b.img"
    lone.write_bytes(LABELS.tobytes())
    refusal(lone, "needs its header b.hdr beside it")
    nibabel.save(nibabel.AnalyzeImage(np.zeros(SHAPE, np.int16), np.eye(4)), tmp_path / "c.hdr")
    refusal(tmp_path / "c.hdr", "Analyze 7.5", "left from right")
    (tmp_path / "d.hdr").write_bytes(b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n")
    (tmp_path / "d.img").write_bytes(b"x")
    refusal(tmp_path / "d.hdr", "must begin with a NIfTI header")
    huge = pair(tmp_path / "e.hdr", dim=[3, 30000, 30000, 300, 1, 1, 1, 1])
    with frugal():
        refusal(huge, "at most 1000000000 voxels")
        refusal(huge, "cut short or its header is wrong", max_voxels=10**15)
