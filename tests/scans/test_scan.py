import gzip
import io
import os
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.scans.test_geometry import ALL_48, affine_with

from delineate.errors import ScanError
from delineate.scans.finding import Found, Kind, digest_of
from delineate.scans.geometry import FLAT_AFFINE, orientation_of, to_canonical
from delineate.scans.nifti import write_nifti
from delineate.scans.reading import read_labels, read_scan
from delineate.scans.scan import SCAN_SUFFIXES, Scan, is_scan_file, stem_of
from delineate.scans.writing import write_labels, write_map, write_scan

EXAMPLES = 150
DATA = Path(__file__).resolve().parents[3] / "shared/data"
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
    assert np.array_equal(read_labels(write_labels(tmp_path / "a.nii", long, volume(shape=long.shape))).voxels, long)


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


def test_whole_numbers_of_16_bits_stay_as_they_are_stored_and_all_else_becomes_float32(tmp_path):
    for dtype in (np.uint8, np.int16, np.uint16, ">i2"):
        array = RNG.integers(0, 200, SHAPE).astype(dtype)
        read = read_scan(nifti(tmp_path / "a.nii", array), modality="MR")
        assert read.voxels.dtype == np.dtype(dtype).newbyteorder("=")
        assert np.array_equal(read.voxels, array)
    for dtype in (np.int32, np.float64):
        assert read_scan(nifti(tmp_path / "a.nii", array.astype(dtype))).voxels.dtype == np.float32


def test_hounsfield_units_that_were_stored_without_a_sign_do_not_wrap_round(tmp_path):
    array = np.full((8, 8, 8), 0, np.uint16)
    array[2:7, 2:7, 2:7] = 1024 + 40
    read = read_scan(nifti(tmp_path / "a.nii", array), modality="CT")
    assert read.voxels.min() < -900
    assert read.voxels.max() == pytest.approx(40, abs=25)


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
    two = read_scan(nifti(tmp_path / "e.nii", array[..., 0, 0], codes=(1, 0), pixdim=[1, 2, 2, 0, 0, 0, 0, 0]))
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


# --- paths


def test_paths(tmp_path):
    refusal(tmp_path / "none.nii.gz", "no such file")
    refusal(tmp_path, "found a directory")
    for name in ("a.xyz", "noending", "a.gz"):
        path = tmp_path / name
        path.write_bytes(b"x")
        refusal(path, *SCAN_SUFFIXES)


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

    def full_disk(target, array, affine, code, *more):
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    def flipped_bit(target, array, affine, code, *more):
        write_nifti(target, np.asarray(array) ^ 1, affine, code)

    def moved(target, array, affine, code, *more):
        write_nifti(target, array, affine + np.eye(4), code)

    def cut(target, *stored):
        write_nifti(target, *stored)
        os.truncate(target, 60)

    for failing, message in [
        (full_disk, "No space left on device.*untouched"),
        (flipped_bit, "does not read back the same"),
        (moved, "does not read back the same"),
        (cut, "cannot be read"),
    ]:
        monkeypatch.setattr("delineate.scans.writing.write_nifti", failing)
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
        content = nibabel.Nifti1Image(LABELS.astype(np.float32), affine_with("LPS", oblique_degrees=5)).to_bytes()
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


@pytest.mark.parametrize(("lowest", "expected"), [(-1024, "CT"), (-500, "CT"), (-20, None), (0, None)])
def test_a_volume_with_air_in_hounsfield_units_is_taken_for_ct(tmp_path, lowest, expected):
    voxels = np.zeros((4, 5, 6), np.int16)
    voxels[1, 2, 3] = lowest
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2.0, 2, 3, 1])), tmp_path / "scan.nii.gz")
    scan = read_scan(tmp_path / "scan.nii.gz")
    assert scan.modality == expected
    assert any("taken for CT" in note for note in scan.notes) == (expected == "CT")


@pytest.mark.parametrize(
    ("stated", "code"), [("ct", "CT"), ("MRI", "MR"), (" US ", "US"), ("ultrasound", "US"), ("odd", "odd")]
)
def test_a_modality_is_known_by_its_usual_spellings(tmp_path, stated, code):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.int16), np.diag([2.0, 2, 3, 1])), tmp_path / "scan.nii.gz")
    assert read_scan(tmp_path / "scan.nii.gz", modality=stated).modality == code


# Scans that are written


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("codes", ALL_48[::7], ids="".join)
def test_a_volume_is_written_at_its_place(tmp_path, suffix, codes):
    for voxels, stored in (
        (RNG.integers(-1024, 3000, SHAPE).astype(np.float32), np.int16),
        (RNG.normal(0, 300, SHAPE).astype(np.float32), np.float32),
        (np.full(SHAPE, 40000, np.float32), np.float32),  # whole, but not in 16 bits
    ):
        scan = Scan(voxels, affine_with(codes), "CT", space_code=2)
        path = write_scan(tmp_path / f"x{suffix}", scan)
        back = read_scan(path, modality="CT")
        assert np.array_equal(back.voxels, voxels)
        assert nibabel.load(path).get_data_dtype() == stored
        np.testing.assert_allclose(back.affine, scan.affine, atol=1e-4)
        assert back.space_code == 2


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
@pytest.mark.parametrize(("highest", "mode"), [(255, "L"), (256, "I;16"), (65535, "I;16")])
def test_a_grey_image_is_written_in_the_bits_it_needs(tmp_path, suffix, highest, mode):
    voxels = np.linspace(0, highest, 30).round().reshape(1, 5, 6).astype(np.float32)
    path = write_scan(tmp_path / f"x{suffix}", Scan(voxels, FLAT_AFFINE, has_spacing=False))
    assert np.array_equal(read_scan(path).voxels, voxels)
    with Image.open(path) as image:
        assert image.mode == mode


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_colour_image_keeps_its_colours(tmp_path, suffix):
    voxels = RNG.integers(0, 256, (1, 5, 6, 3)).astype(np.float32)
    path = write_scan(tmp_path / f"x{suffix}", Scan(voxels, FLAT_AFFINE, has_spacing=False))
    assert np.array_equal(read_scan(path).voxels, voxels)
    with Image.open(path) as image:
        assert image.mode == "RGB"
    write_scan(path, Scan(voxels + 0.3, FLAT_AFFINE, has_spacing=False))  # rounded
    assert np.array_equal(read_scan(path).voxels, voxels)
    write_scan(path, Scan(3 * voxels - 100, FLAT_AFFINE, has_spacing=False))  # clipped
    assert np.array_equal(read_scan(path).voxels, (3 * voxels - 100).clip(0, 255))


def test_what_a_scan_cannot_be_written_as(tmp_path):
    with pytest.raises(ScanError, match="a colour image is written as PNG or TIFF"):
        write_scan(tmp_path / "x.nii.gz", Scan(np.zeros((1, 4, 5, 3), np.float32), FLAT_AFFINE, has_spacing=False))
    for suffix in (".png", ".jpg", ".dcm"):
        with pytest.raises(ScanError, match="for a volume the suffix must be one of"):
            write_scan(tmp_path / f"x{suffix}", Scan(np.zeros(SHAPE, np.float32), np.eye(4)))
    with pytest.raises(ScanError, match="for a 2-D image the suffix"):
        write_scan(tmp_path / "x.jpg", Scan(np.zeros((1, 4, 5), np.float32), FLAT_AFFINE, has_spacing=False))
    assert not list(tmp_path.iterdir())


def test_a_scan_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = write_scan(tmp_path / "x.nii.gz", Scan(np.ones(SHAPE, np.float32), np.eye(4)))
    before = path.read_bytes()

    def fail(*given, **more):
        raise OSError("No space left on device")

    monkeypatch.setattr("delineate.scans.writing.write_nifti", fail)
    with pytest.raises(ScanError, match=r"x\.nii\.gz: cannot be written"):
        write_scan(path, Scan(np.zeros(SHAPE, np.float32), np.eye(4)))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.nii.gz"]


def test_what_was_found_is_not_looked_at_again(tmp_path, monkeypatch):
    path = tmp_path / "a_0000.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.ones((3, 3, 3), np.int16), np.eye(4)), path)
    found = Found.at(path)
    assert (found.path, found.name, found.kind) == (path, "a", Kind.NIFTI)
    digest = found.digest
    assert digest == digest_of(path)
    monkeypatch.setattr("delineate.scans.finding.kind_of", None)
    monkeypatch.setattr("delineate.scans.finding.digest_of", None)
    assert found.digest == digest
    assert np.array_equal(read_scan(found).voxels, np.ones((3, 3, 3)))
    (tmp_path / "notes.dcm").write_text("no mark")
    monkeypatch.undo()
    assert Found.at(tmp_path / "notes.dcm").kind is Kind.OTHER
