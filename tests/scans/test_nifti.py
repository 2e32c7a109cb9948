import gzip
import os

import nibabel
import numpy as np
import pytest
from tests.scans.test_geometry import affine_with
from tests.scans.test_scan import LABELS, RNG, SHAPE, nifti, refusal, volume

from delineate.errors import ScanError
from delineate.scans import nifti as nifti_module
from delineate.scans.reading import read_labels, read_scan
from delineate.scans.writing import write_labels

# --- what must be refused


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize(
    ("content", "wanted"),
    [(b"", "empty"), (b"hello\n" * 200, "must"), (os.urandom(2000), "must"), (b"\0" * 348, "must")],
    ids=["empty", "text", "garbage", "zeros"],
)
def test_not_nifti_at_all(tmp_path, suffix, content, wanted):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    refusal(path, wanted)
    if suffix == ".nii.gz":
        path.write_bytes(gzip.compress(content))
        refusal(path, "NIfTI header")


def test_names_that_lie_about_compression(tmp_path):
    plain, zipped = nifti(tmp_path / "plain.nii"), nifti(tmp_path / "zipped.nii.gz")
    refusal(plain.rename(tmp_path / "plain.nii.gz"), "found none", "rename it to .nii")
    refusal(zipped.rename(tmp_path / "zipped.nii"), "found gzip data", "rename it to end in .nii.gz")


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_cut_short(tmp_path, suffix, kept):
    path = nifti(tmp_path / f"cut{suffix}", RNG.integers(0, 2**15, (16, 16, 16), dtype=np.int16))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    message = refusal(path, "copy")
    assert "8544 bytes" in message


def test_a_cut_or_wrong_checksum_is_seen(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", RNG.integers(0, 255, (16, 16, 16), dtype=np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    refusal(path, "cut short")
    path.write_bytes(content[:-8] + b"\0\0\0\0" + content[-4:])
    refusal(path, "damaged")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_small_file_that_claims_a_huge_grid_is_refused_unread(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(nifti_module, "array_from_file", lambda *_, **__: pytest.fail("voxels were touched"))
    huge = [3, 32000, 32000, 32000, 1, 1, 1, 1]
    path = nifti(tmp_path / f"huge{suffix}", dim=huge)
    refusal(path, "at most 1000000000 voxels")
    refusal(path, "cut short or its header is wrong", max_voxels=10**15)
    refusal(nifti(tmp_path / f"off{suffix}", vox_offset=1e9), "from byte 1000000000")
    refusal(nifti(tmp_path / f"nan{suffix}", vox_offset=np.nan), "from byte nan")
    refusal(nifti(tmp_path / f"low{suffix}", vox_offset=-16), "at least 352")
    refusal(nifti(tmp_path / f"pair{suffix}", vox_offset=0), "at least 352")
    refusal(nifti(tmp_path / f"time{suffix}", dim=[4, 4, 5, 6, 30000, 1, 1, 1]), "cut short", volume=0)


def test_a_decompression_bomb_is_bounded_by_max_voxels(tmp_path):
    path = nifti(tmp_path / "bomb.nii.gz", np.zeros((200, 200, 200), np.uint8))
    assert path.stat().st_size < 20_000
    refusal(path, "at most 1000000 voxels", max_voxels=1_000_000)
    assert read_scan(path).shape == (200, 200, 200)  # plausible for deflate, so honest zeros pass
    assert read_labels(
        write_labels(tmp_path / "zeros.nii.gz", np.zeros((200, 200, 200), bool), volume(shape=(200,) * 3))
    )


@pytest.mark.parametrize(
    "dim",
    [[3, -4, 5, 6], [3, 4, 0, 6], [0, 4, 5, 6], [8, 4, 5, 6], [-3, 4, 5, 6], [3, -1, 1, 1]],
    ids=str,
)
def test_bad_dimensions(tmp_path, dim):
    refusal(nifti(tmp_path / "dim.nii", dim=[*dim, 1, 1, 1, 1]), "every dimension must be at least 1")


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        (128, "RGB colours"),
        (2304, "RGBA colours"),
        (32, "save the magnitude"),
        (1792, "save the magnitude"),
        (1536, "float32"),
        (1, "datatype code 1"),
        (0, "datatype code 0"),
        (77, "datatype code 77"),
    ],
)
def test_values_that_are_no_plain_numbers(tmp_path, code, wanted):
    refusal(nifti(tmp_path / "kind.nii", datatype=code), "plain integers or floats", wanted)


def test_real_complex_and_rgb_files(tmp_path):
    refusal(nifti(tmp_path / "c.nii", np.zeros(SHAPE, np.complex64)), "complex")
    refusal(nifti(tmp_path / "rgb.nii", np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), "RGB")


# --- geometry that must be refused or noted


def test_no_geometry(tmp_path):
    path = nifti(tmp_path / "a.nii", codes=(0, 0))
    refusal(path, "both 0", "assume_spacing_mm")
    refusal(path, "both 0", read=read_labels)
    for read in (read_scan, read_labels):
        assumed = read(path, assume_spacing_mm=(1, 2, 5))
        assert assumed.spacing_mm == (1, 2, 5)
        assert "assumed" in assumed.notes[0]
    with pytest.raises(ScanError, match="three positive numbers"):
        read_scan(path, assume_spacing_mm=(1, 0, 5))
    known = read_scan(nifti(tmp_path / "b.nii"), assume_spacing_mm=(9, 9, 9))
    assert known.spacing_mm == (1, 2, 3)
    assert "not used" in known.notes[0]


def test_bad_affines(tmp_path):
    zero = dict.fromkeys(("srow_x", "srow_y", "srow_z"), 0)
    refusal(nifti(tmp_path / "zero.nii", **zero), "the sform must be finite with no zero column")
    refusal(nifti(tmp_path / "nan.nii", srow_x=[np.nan, 0, 0, 0]), "the sform must be finite")
    refusal(nifti(tmp_path / "flat.nii", srow_z=[0, 0, 0, 0]), "zero column")
    refusal(nifti(tmp_path / "same.nii", srow_y=[1, 0, 0, 0], srow_x=[1, 0, 0, 0], codes=(0, 1)), "zero column")


@pytest.mark.parametrize("size", [0, np.nan, -2, np.inf])
def test_pixdim_matters_only_to_the_qform(tmp_path, size):
    pixdim = [1, 1, size, 3, 0, 0, 0, 0]
    refusal(nifti(tmp_path / "q.nii", codes=(1, 0), pixdim=pixdim), "pixdim must be three positive")
    noted = read_scan(nifti(tmp_path / "qs.nii", codes=(1, 1), pixdim=pixdim))
    assert "qform unreadable" in noted.notes[0]
    assert "\n" not in noted.notes[0]
    assert "qs.nii" not in noted.notes[0]
    assert read_scan(nifti(tmp_path / "s.nii", codes=(0, 1), pixdim=pixdim)).notes == ()


def test_a_quaternion_that_is_no_rotation(tmp_path):
    refusal(nifti(tmp_path / "q.nii", codes=(1, 0), quatern_b=3.0), "quaternion")
    refusal(nifti(tmp_path / "n.nii", codes=(1, 0), quatern_b=np.nan), "")
    refusal(nifti(tmp_path / "o.nii", codes=(1, 0), qoffset_x=np.nan), "the qform must be finite")


def test_forms_that_disagree(tmp_path):
    near = read_scan(nifti(tmp_path / "near.nii", srow_x=[1, 0, 0, 0.5]))
    assert near.notes == ("sform and qform differ by up to 0.5 mm (0.5 voxels): the sform is used",)
    assert near.affine[0, 3] == 0.5
    far = read_scan(nifti(tmp_path / "far.nii", srow_x=[1, 0, 0, 100]))
    assert "100 mm" in far.notes[0]
    refusal(nifti(tmp_path / "flip.nii", srow_x=[-1, 0, 0, 3]), "sform says LAS and the qform RAS", "mirrored")
    refusal(nifti(tmp_path / "swap.nii", srow_x=[0, 2, 0, 0], srow_y=[1, 0, 0, 0]), "sform says ARS")
    refusal(nifti(tmp_path / "turn.nii", srow_x=[-1, 0, 0, 3], srow_y=[0, -2, 0, 8]), "sform says LPS")


def test_shear_and_oblique(tmp_path):
    for degrees, accepted in [(0.01, True), (1, True), (1.9, True), (2.1, False), (20, False)]:
        affine = np.diag([1.0, 1, 3, 1])
        affine[1, 2] = 3 * np.tan(np.radians(degrees))
        path = nifti(tmp_path / f"shear{degrees}.nii", affine=affine, codes=(0, 1))
        if accepted:
            assert len(read_scan(path).notes) == (degrees > 0.06)
        else:
            refusal(path, "degrees of shear", "resample")
    assert read_scan(nifti(tmp_path / "o.nii", affine=affine_with("LPS", oblique_degrees=30))).notes == ()


# --- units


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1)], ids=["qform", "sform", "both"])
@pytest.mark.parametrize(("unit", "name", "factor"), [(1, "metres", 1000), (3, "micrometres", 0.001)])
def test_metres_and_micrometres_become_mm(tmp_path, codes, unit, name, factor):
    affine = affine_with("LPS", oblique_degrees=20)
    stored = affine.copy()
    stored[:3] /= factor
    read = read_scan(nifti(tmp_path / "a.nii.gz", LABELS, stored, codes, xyzt_units=unit + 8))  # 8: seconds
    assert read.notes == (f"the header counts in {name}: brought to mm, times {factor:g}",)
    assert np.allclose(read.affine, affine, rtol=1e-5, atol=1e-3)
    back = read_labels(write_labels(tmp_path / "b.nii", LABELS, read))
    assert back.notes == ()
    assert np.allclose(back.affine, affine, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("unit", [0, 2, 10, 4])
def test_no_unit_is_mm(tmp_path, unit):
    read = read_scan(nifti(tmp_path / "a.nii", xyzt_units=unit))
    assert (read.spacing_mm, read.notes) == ((1, 2, 3), ())


@pytest.mark.parametrize("code", [5, 6, 128, 1792, 32767])
def test_masks_of_scans_in_spaces_that_nobody_named_are_written(tmp_path, code):
    image = nibabel.Nifti1Image(np.zeros((8, 8, 4), np.int16), np.diag([1, 1, 3, 1]))
    block = image.header.copy()
    block["sform_code"], block["qform_code"], block["vox_offset"] = code, 0, 352
    (tmp_path / "scan.nii").write_bytes(block.binaryblock + bytes(4) + bytes(8 * 8 * 4 * 2))
    scan = read_scan(tmp_path / "scan.nii")
    write_labels(tmp_path / "mask.nii", np.ones(scan.shape, bool), scan)
    written = nibabel.load(tmp_path / "mask.nii")
    assert int(written.header["sform_code"]) == (code if code == 5 else 2)  # "aligned": NIfTI names no such space
    np.testing.assert_allclose(written.affine, image.affine)
