import gzip
import io
import os
import re
import struct
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from test_geometry import ALL_48, affine_with

from delineate import nifti as nifti_module
from delineate.errors import ScanError
from delineate.scan import (
    FLAT_AFFINE,
    SCAN_SUFFIXES,
    Orientation,
    Scan,
    is_scan_file,
    orientation_of,
    read_labels,
    read_scan,
    stem_of,
    to_canonical,
    write_labels,
    write_map,
)

EXAMPLES = 150
DATA = Path(__file__).parent.parent / "../shared/data"
SHAPE = (4, 5, 6)
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 14, SHAPE, dtype=np.uint8)


def nifti(path, array=None, affine=None, codes=(1, 1), **fields):
    """A NIfTI file whose header fields are then overwritten, behind nibabel's back."""
    array = np.arange(120, dtype=np.int16).reshape(SHAPE) if array is None else array
    affine = np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine
    image = nibabel.Nifti1Image(array, affine, dtype=array.dtype)
    image.set_qform(affine, codes[0])
    image.set_sform(affine, codes[1])
    nibabel.save(image, path)
    zipped = str(path).endswith(".gz")
    content = bytearray(gzip.decompress(path.read_bytes()) if zipped else path.read_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    path.write_bytes(gzip.compress(bytes(content)) if zipped else bytes(content))
    return path


def refusal(path, *wanted, read=read_scan, **options):
    with pytest.raises(ScanError, match=re.escape(path.name)) as caught:
        read(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in wanted:
        assert part in message
    return message


def volume(affine=None, shape=SHAPE):
    return Scan(np.zeros(shape, np.float32), np.eye(4) if affine is None else affine)


def flat(height=5, width=6):
    return Scan(np.zeros((1, height, width), np.float32), FLAT_AFFINE, has_spacing=False)


# --- names


def test_names():
    assert [stem_of(f"a/case_0000{suffix}") for suffix in SCAN_SUFFIXES] == ["case_0000"] * len(SCAN_SUFFIXES)
    assert stem_of("X.NII.GZ") == "X"
    assert stem_of("polyp.v2.png") == "polyp.v2"
    assert is_scan_file("a/X.NII.GZ")
    assert not any(is_scan_file(name) for name in ("a.dcm", "a.gz", "._a.nii.gz", "nii.gz"))


# --- whatever comes in leaves on the same grid


@pytest.mark.parametrize("degrees", [0, 17, 44])
@pytest.mark.parametrize("codes", ALL_48, ids="".join)
def test_labels_come_back_on_the_same_grid(tmp_path, codes, degrees):
    affine = affine_with(codes, oblique_degrees=degrees)
    source = read_scan(nifti(tmp_path / "image.nii", LABELS, affine))
    assert source.notes == ()
    if degrees < 40:
        assert source.axis_codes == "".join(codes)
    assert np.allclose(source.spacing_mm, (0.7, 1.5, 4.0))
    back = read_labels(write_labels(tmp_path / "labels.nii", LABELS, source))
    assert back.notes == ()
    assert np.array_equal(back.affine, source.affine)
    assert np.array_equal(back.voxels, LABELS)
    header = nibabel.load(tmp_path / "labels.nii").header
    assert np.allclose(header.get_qform(), header.get_sform(), atol=1e-3)
    assert int(header["qform_code"]) == int(header["sform_code"]) == 1


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL"])
def test_the_most_superior_voxel_of_a_file_is_in_the_last_canonical_slice(tmp_path, codes):
    affine = affine_with(codes)
    heights = (np.stack([*np.indices(SHAPE), np.ones(SHAPE)], -1) @ affine.T)[..., 2]
    image = read_scan(nifti(tmp_path / "a.nii.gz", heights.astype(np.float32), affine))
    canonical = to_canonical(image.voxels, orientation_of(image.affine))
    assert (canonical[-1] == canonical.max()).all()
    assert (np.diff(canonical, axis=0) > 0).all()


@pytest.mark.parametrize(("codes", "kept"), [((2, 2), 2), ((1, 0), 1), ((0, 4), 4), ((1, 2), 2)])
def test_the_space_code_is_kept(tmp_path, codes, kept):
    source = read_scan(nifti(tmp_path / "a.nii.gz", codes=codes))
    assert source.space_code == kept
    back = read_labels(write_labels(tmp_path / "b.nii.gz", LABELS, source))
    assert back.space_code == kept
    assert np.allclose(back.affine, source.affine)


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_every_number_type_and_byte_order(tmp_path, kind, dtype, byte_order):
    array = RNG.integers(0, 100, SHAPE).astype(byte_order + dtype)
    image = kind(array, np.eye(4), kind.header_class(endianness=byte_order), dtype=array.dtype)
    image.set_sform(np.eye(4), 1)
    nibabel.save(image, tmp_path / "a.nii")
    assert np.array_equal(read_scan(tmp_path / "a.nii").voxels, array.astype(np.float32))
    assert np.array_equal(read_labels(tmp_path / "a.nii").voxels, array.astype(np.uint8))


def test_a_dimension_too_long_for_nifti_1_is_written_as_nifti_2(tmp_path):
    long = np.zeros((40000, 1, 1), np.uint8)
    assert np.array_equal(
        read_labels(write_labels(tmp_path / "a.nii", long, volume(shape=long.shape))).voxels, long
    )


def test_a_slightly_sheared_grid_is_written_without_a_contradicting_qform(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = np.tan(np.radians(1.5))
    source = read_scan(nifti(tmp_path / "a.nii", affine=affine, codes=(0, 1)))
    assert "1.50 degrees from orthogonal" in source.notes[0]
    back = read_labels(write_labels(tmp_path / "b.nii", LABELS, source))
    assert back.notes == source.notes
    assert np.array_equal(back.affine, source.affine)


# --- values


def test_scaling_is_applied_and_an_unset_slope_is_not(tmp_path):
    stored = np.arange(120).reshape(SHAPE)
    scaled = read_scan(nifti(tmp_path / "a.nii.gz", scl_slope=2, scl_inter=-1000))
    assert scaled.voxels.dtype == np.float32
    assert np.array_equal(scaled.voxels, stored * 2 - 1000)
    for slope in (np.nan, 0, np.inf):
        path = nifti(tmp_path / "b.nii", scl_slope=slope, scl_inter=5)
        assert np.array_equal(read_scan(path).voxels, stored)
    refusal(nifti(tmp_path / "c.nii", scl_slope=1, scl_inter=np.nan), "scl_inter must be finite")


def test_nan_and_infinity_are_replaced_and_counted(tmp_path):
    array = np.full(SHAPE, 7.0)
    array[0, 0, :4] = np.nan, np.inf, -np.inf, 1e300
    array[1, 1, 1] = -3
    read = read_scan(nifti(tmp_path / "a.nii", array))
    assert read.voxels[0, 0, :4].tolist() == [-3] * 4
    assert read.notes == ("4 NaN or infinite voxels replaced by the smallest finite value, -3",)
    refusal(nifti(tmp_path / "b.nii", np.full(SHAPE, np.nan)), "only NaN or infinity")


def test_four_dimensions(tmp_path):
    array = RNG.random((*SHAPE, 3)).astype(np.float32)
    path = nifti(tmp_path / "a.nii.gz", array)
    refusal(path, "found 3 volumes", "volume=0 to 2")
    refusal(path, "found 3 volumes", read=read_labels)
    refusal(path, "volume must be from 0 to 2, asked for 3", volume=3)
    for index in range(3):
        read = read_scan(path, volume=index)
        assert np.array_equal(read.voxels, array[..., index])
        assert read.notes == (f"volume {index} of 3",)
    single = read_scan(nifti(tmp_path / "b.nii", array[..., :1]))
    assert np.array_equal(single.voxels, array[..., 0])
    assert single.notes == ("4-D with one volume: read as 3-D",)
    refusal(nifti(tmp_path / "c.nii", array[..., None, :]), "3-D or 4-D")
    refusal(nifti(tmp_path / "d.nii"), "volume must be from 0 to 0", volume=1)
    two = read_scan(
        nifti(tmp_path / "e.nii", array[..., 0, 0], codes=(1, 0), pixdim=[1, 2, 2, 0, 0, 0, 0, 0])
    )
    assert (two.shape, two.notes) == ((4, 5, 1), ("a 2-D NIfTI read as one slice",))


@pytest.mark.parametrize(("highest", "dtype"), [(255, "u1"), (256, "u2"), (65535, "u2"), (65536, "i4")])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".png", ".tif"])
def test_label_types_at_their_boundaries(tmp_path, highest, dtype, suffix):
    labels = np.zeros((1, 5, 6), np.int64)
    labels[0, 2, 3] = highest
    like = flat()
    if suffix == ".png" and highest > 65535:
        with pytest.raises(ScanError, match="PNG holds labels 0 to 65535"):
            write_labels(tmp_path / "a.png", labels, like)
        return
    back = read_labels(write_labels(tmp_path / f"a{suffix}", labels, like))
    assert back.voxels.dtype == np.dtype(dtype)
    assert np.array_equal(back.voxels, labels)
    assert back.is_flat == (suffix in (".png", ".tif"))


def test_negative_labels_need_int32_and_huge_ones_are_refused(tmp_path):
    labels = np.full(SHAPE, -1)
    assert read_labels(write_labels(tmp_path / "a.nii", labels, volume())).voxels.dtype == np.int32
    with pytest.raises(ScanError, match="fit into 32 bits"):
        write_labels(tmp_path / "a.nii", np.full(SHAPE, 2**31), volume())


@pytest.mark.parametrize(("suffix", "on"), [(".nii.gz", 1), (".png", 255), (".tiff", 255)])
def test_bool_masks(tmp_path, suffix, on):
    mask = RNG.random((1, 5, 6)) > 0.5
    assert np.array_equal(read_labels(write_labels(tmp_path / f"m{suffix}", mask, flat())).voxels, mask * on)


def test_float_labels(tmp_path):
    whole = read_labels(nifti(tmp_path / "a.nii", LABELS.astype(np.float64)))
    assert whole.voxels.dtype == np.uint8
    assert np.array_equal(whole.voxels, LABELS)
    scaled = read_labels(nifti(tmp_path / "b.nii", LABELS * np.uint8(10), scl_slope=0.1, scl_inter=0))
    assert np.array_equal(scaled.voxels, LABELS)
    halves = LABELS.astype(np.float32)
    halves[0, 0, :2] = 0.5
    refusal(nifti(tmp_path / "c.nii", halves), "whole numbers, found 0.5 and 1 more", read=read_labels)
    for value in (np.nan, np.inf):
        halves[0, 0, :2] = value
        refusal(nifti(tmp_path / "d.nii", halves), "whole numbers", read=read_labels)


def test_maps(tmp_path):
    values = RNG.random((1, 5, 6))
    for suffix in (".nii.gz", ".tif"):
        assert np.array_equal(
            read_scan(write_map(tmp_path / f"p{suffix}", values, flat())).voxels, values.astype(np.float32)
        )
    png = read_scan(write_map(tmp_path / "p.png", values, flat())).voxels
    assert np.abs(png / 255 - values).max() <= 0.5 / 255 + 1e-6
    for bad in (np.nan, 1.01, -0.1, np.inf):
        with pytest.raises(ScanError, match=r"p\.png: a map must lie in \[0, 1\]"):
            write_map(tmp_path / "p.png", np.full((1, 5, 6), bad), flat())


def test_same_labels_same_bytes(tmp_path):
    once = write_labels(tmp_path / "a.nii.gz", LABELS, volume()).read_bytes()
    assert write_labels(tmp_path / "a.nii.gz", LABELS, volume()).read_bytes() == once


# --- NIfTI that must be refused


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
    refusal(
        nifti(tmp_path / "same.nii", srow_y=[1, 0, 0, 0], srow_x=[1, 0, 0, 0], codes=(0, 1)), "zero column"
    )


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
    refusal(
        nifti(tmp_path / "flip.nii", srow_x=[-1, 0, 0, 3]), "sform says LAS and the qform RAS", "mirrored"
    )
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


# --- paths


def test_paths(tmp_path):
    refusal(tmp_path / "none.nii.gz", "no such file")
    refusal(tmp_path, "found a directory")
    for name in ("slice.dcm", "a.hdr", "noending", "a.gz"):
        path = tmp_path / name
        path.write_bytes(b"x")
        refusal(path, *SCAN_SUFFIXES)


# --- pictures


def picture(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_pictures_keep_their_values(tmp_path, suffix, dtype):
    array = RNG.integers(0, np.iinfo(dtype).max, (5, 6), dtype=dtype)
    read = read_scan(picture(tmp_path / f"a{suffix}", array), modality="US")
    assert read.voxels.dtype == np.float32
    assert np.array_equal(read.voxels[0], array)
    assert (read.modality, read.has_spacing, read.is_flat, read.is_colour) == ("US", False, True, False)
    assert orientation_of(read.affine) == Orientation()
    assert read.notes == ()
    assert read.shape == (1, 5, 6)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_colour_pictures(tmp_path, suffix):
    array = RNG.integers(0, 255, (5, 6, 3), dtype=np.uint8)
    read = read_scan(picture(tmp_path / f"a{suffix}", array))
    assert read.is_colour
    assert read.shape == (1, 5, 6)
    if suffix != ".jpg":
        assert np.array_equal(read.voxels[0], array)
        refusal(tmp_path / f"a{suffix}", "found colours", read=read_labels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_dropped_with_a_note(tmp_path, suffix, channels):
    array = RNG.integers(0, 255, (5, 6, channels), dtype=np.uint8)
    read = read_scan(picture(tmp_path / f"a{suffix}", array))
    assert np.array_equal(read.voxels[0], array[..., 0] if channels == 2 else array[..., :3])
    assert read.notes == ("alpha channel dropped",)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation_is_pillows(tmp_path, turn, suffix):
    array = RNG.integers(0, 255, (5, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = turn
    path = picture(tmp_path / f"a{suffix}", array, exif=exif)
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    read = read_scan(path)
    assert np.array_equal(read.voxels[0], wanted)
    assert read.notes == (() if turn == 1 else (f"EXIF orientation {turn} applied",))


def png(path, depth, colour, rows):
    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    channels = {0: 1, 2: 3}[colour]
    width = len(rows[0]) * 8 // depth // channels
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    )
    return path


def test_png_masks_stay_as_stored(tmp_path):
    mask = (RNG.random((5, 6)) > 0.5).astype(np.uint8)
    for high in (1, 255):
        assert np.array_equal(
            read_labels(picture(tmp_path / "a.png", mask * np.uint8(high))).voxels[0], mask * high
        )
    grey = read_labels(picture(tmp_path / "rgb.png", np.stack([mask * np.uint8(7)] * 3, -1)))
    assert np.array_equal(grey.voxels[0], mask * 7)
    assert grey.notes == ("three equal channels reduced to one",)
    one_bit = read_labels(picture(tmp_path / "bits.png", mask.astype(bool)))
    assert np.array_equal(one_bit.voxels[0], mask)
    assert one_bit.voxels.dtype == np.uint8
    four_bits = read_labels(png(tmp_path / "four.png", 4, 0, [bytes([0x01, 0x2F])]))
    assert four_bits.voxels.tolist() == [[[0, 1, 2, 15]]]
    two_bits = read_labels(png(tmp_path / "two.png", 2, 0, [bytes([0b00011011])]))
    assert two_bits.voxels.tolist() == [[[0, 1, 2, 3]]]


def test_palettes_give_indices_to_labels_and_colours_to_scans(tmp_path):
    indices = RNG.integers(0, 4, (5, 6), dtype=np.uint8)
    colours = [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255]
    image = Image.fromarray(indices)
    image.putpalette(colours)
    for name, bits in [("a.png", 2), ("b.png", 8), ("c.tif", None)]:
        image.save(tmp_path / name, **({"bits": bits} if bits else {}))
        assert np.array_equal(read_labels(tmp_path / name).voxels[0], indices)
        assert np.array_equal(read_scan(tmp_path / name).voxels[0], np.array(colours).reshape(-1, 3)[indices])


def test_sixteen_bit_colour_png(tmp_path):
    path = png(tmp_path / "deep.png", 16, 2, [bytes(range(12))])
    assert read_scan(path).notes == ("16-bit colour PNG read with 8 bits",)
    refusal(path, "16-bit mask must be grey", read=read_labels)


def test_jpeg_masks_are_noted(tmp_path):
    read = read_labels(picture(tmp_path / "a.jpg", np.zeros((16, 16), np.uint8)))
    assert "lossy" in read.notes[0]


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (6, 5), (0, 255, 0, 0)).save(tmp_path / "a.jpg")
    read = read_scan(tmp_path / "a.jpg")
    assert read.is_colour
    assert read.notes == ("CMYK colours converted to RGB",)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_pictures_cut_short_empty_or_of_garbage(tmp_path, suffix):
    whole = picture(tmp_path / f"a{suffix}", RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)).read_bytes()
    path = tmp_path / f"cut{suffix}"
    for kept in (len(whole) // 3, len(whole) * 9 // 10):
        path.write_bytes(whole[:kept])
        refusal(path, "copy")
    for content in (b"", b"\0" * 500, b"text " * 99, whole[:20]):
        path.write_bytes(content)
        refusal(path)


def test_large_pictures_are_bounded_by_max_voxels_and_pillows_limit_is_put_back(tmp_path, monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    for suffix in (".png", ".jpg", ".tif"):
        path = picture(tmp_path / f"a{suffix}", np.zeros((50, 40), np.uint8))
        refusal(path, "at most 1999 voxels", max_voxels=1999)
        read_scan(path, max_voxels=2000)
    assert limit == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow alone would refuse
    assert read_scan(tmp_path / "a.png").shape == (1, 50, 40)


def test_several_pages_or_frames(tmp_path):
    pages = np.zeros((3, 5, 6), np.uint8)
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="minisblack")
    refusal(tmp_path / "pages.tif", "one 2-D page")
    tifffile.imwrite(tmp_path / "ij.tif", pages, imagej=True)
    refusal(tmp_path / "ij.tif", "one 2-D page")
    frames = [Image.fromarray(page + np.uint8(n)) for n, page in enumerate(pages)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    refusal(tmp_path / "moving.png", "found an animation")


def test_kinds_of_tiff(tmp_path):
    array = RNG.random((5, 6)).astype(np.float32)
    array[0, 0] = np.nan
    tifffile.imwrite(tmp_path / "f.tif", array)
    read = read_scan(tmp_path / "f.tif")
    assert np.array_equal(read.voxels[0], np.nan_to_num(array, nan=np.nanmin(array)))
    assert len(read.notes) == 1
    planes = RNG.integers(0, 255, (3, 5, 6), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "p.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_scan(tmp_path / "p.tif").voxels[0], np.moveaxis(planes, 0, -1))
    tifffile.imwrite(tmp_path / "w.tif", planes[0], photometric="miniswhite")
    assert np.array_equal(read_scan(tmp_path / "w.tif").voxels[0], 255 - planes[0])
    assert np.array_equal(read_labels(tmp_path / "w.tif").voxels[0], planes[0])
    tifffile.imwrite(tmp_path / "c.tif", array.astype(np.complex64))
    refusal(tmp_path / "c.tif", "integers or floats")


def test_the_spacing_of_a_picture_can_be_given(tmp_path):
    read = read_scan(
        picture(tmp_path / "a.png", np.zeros((5, 6), np.uint8)), assume_spacing_mm=(1, 0.5, 0.25)
    )
    assert read.spacing_mm == (1, 0.5, 0.25)
    assert read.has_spacing
    assert read.is_flat
    refusal(tmp_path / "a.png", "volume 0 only", volume=2)


# --- writing


@pytest.mark.parametrize("write", [write_labels, write_map])
def test_what_cannot_be_written(tmp_path, write):
    with pytest.raises(ScanError, match=r"a\.nii: .*shape \(4, 5, 6\), got \(4, 5\)"):
        write(tmp_path / "a.nii", np.zeros((4, 5), np.uint8), volume())
    with pytest.raises(ScanError, match=r"a\.png: for a volume the suffix must be one of \.nii\.gz, \.nii,"):
        write(tmp_path / "a.png", LABELS, volume())
    with pytest.raises(ScanError, match=r"a\.jpg: for a 2-D image"):
        write(tmp_path / "a.jpg", np.zeros((1, 5, 6), np.uint8), flat())
    with pytest.raises(ScanError, match="labels must be integers or bool, got float64"):
        write_labels(tmp_path / "a.nii", np.zeros(SHAPE), volume())
    assert list(tmp_path.iterdir()) == []


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_labels(tmp_path / "a.nii.gz", LABELS, volume())
    before = path.read_bytes()

    def full_disk(image, target):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    def flipped_bit(image, target):
        save(nibabel.Nifti1Image(np.asarray(image.dataobj) ^ 1, image.affine), target)

    def moved(image, target):
        save(nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine + np.eye(4)), target)

    def cut(image, target):
        save(image, target)
        os.truncate(target, 60)

    save = nibabel.save
    for failing, message in [
        (full_disk, "No space left on device.*untouched"),
        (flipped_bit, "does not read back the same"),
        (moved, "does not read back the same"),
        (cut, "cannot be read"),
    ]:
        monkeypatch.setattr(nibabel, "save", failing)
        with pytest.raises(ScanError, match=f"a\\.nii\\.gz.*{message}") as caught:
            write_labels(path, LABELS + np.uint8(1), volume())
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_scan_checks_its_parts():
    with pytest.raises(ScanError, match="voxels must have shape"):
        Scan(np.zeros((5, 6)), np.eye(4))
    with pytest.raises(ScanError, match="voxels must have shape"):
        Scan(np.zeros((5, 6, 7, 2)), np.eye(4))
    with pytest.raises(ScanError, match="affine must have shape"):
        Scan(np.zeros(SHAPE), np.eye(3))
    assert not volume().is_flat
    assert flat().is_flat


# --- anything at all


def one_line_or_scan(path):
    for read in (read_scan, read_labels):
        scan = message = None
        try:
            scan = read(path, max_voxels=100_000)
        except ScanError as error:
            message = str(error)
        if scan is None:
            assert "\n" not in message
            assert path.name in message
        else:
            assert np.isfinite(scan.voxels).all()
            assert np.isfinite(scan.affine).all()
            assert len(scan.axis_codes) == 3


def whole_file(suffix):
    if suffix.startswith(".nii"):
        content = nibabel.Nifti1Image(
            LABELS.astype(np.float32), affine_with("LPS", oblique_degrees=5)
        ).to_bytes()
        return gzip.compress(content, mtime=0) if suffix == ".nii.gz" else content
    buffer = io.BytesIO()
    Image.fromarray(LABELS[0]).save(buffer, {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF"}[suffix])
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".png", ".jpg", ".tif"])
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_give_one_line_or_a_sound_scan(tmp_path, suffix, data):
    content = bytearray(whole_file(suffix))
    head = min(len(content), 352)
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, head - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(bytes(content[: data.draw(st.integers(head // 2, len(content)))]))
    one_line_or_scan(path)


GEOMETRY_FIELDS = (
    *("srow_x", "srow_y", "srow_z", "pixdim", "quatern_b", "qoffset_x"),
    *("scl_slope", "scl_inter", "vox_offset"),
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(GEOMETRY_FIELDS),
        st.floats(width=32),
        max_size=3,
    ),
    st.integers(-1, 5),
    st.integers(-1, 5),
)
def test_any_geometry_in_the_header(tmp_path, fields, qform_code, sform_code):
    path = nifti(tmp_path / "any.nii", qform_code=qform_code, sform_code=sform_code, **fields)
    one_line_or_scan(path)


# --- real files


@pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not here")
@pytest.mark.parametrize("folder", ["btcv_ct", "chaos_mr_t2", "hippocampus"])
def test_real_volumes_round_trip(tmp_path, folder):
    path = sorted((DATA / folder / "labelsTr").glob("*.nii.gz"))[0]
    labels = read_labels(path)
    assert labels.axis_codes == "LPS"
    back = read_labels(write_labels(tmp_path / "a.nii.gz", labels.voxels, labels))
    assert np.array_equal(back.voxels, np.asarray(nibabel.load(path).dataobj))
    assert np.array_equal(back.affine, nibabel.load(path).affine)
