import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pydicom
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dicom_series import (
    AXIAL,
    CORONAL,
    FEET_UP,
    SAGITTAL,
    answer_here,
    bundled,
    dataset,
    in_world,
    oblique,
    positions,
    set_pixels,
    write_enhanced,
    write_series,
)

from delineate.errors import ScanError
from delineate.scans.dicom import series as dicom
from delineate.scans.dicom.series import is_dicom, read_series
from delineate.scans.geometry import FLAT_AFFINE
from delineate.scans.reading import read_scan

LPS = np.diag([-1.0, -1, 1])
ANY_PLANE = {"axial": AXIAL, "coronal": CORONAL, "sagittal": SAGITTAL, "feet up": FEET_UP, "oblique": oblique()}


@pytest.fixture(autouse=True)
def here(monkeypatch):
    """Jobs run in this process, which is quicker; `test_dicom_limits.py` is about the child."""
    monkeypatch.setattr(dicom, "ask_child", answer_here)


@pytest.fixture
def voxels():
    return np.random.default_rng(0).integers(0, 2000, (6, 12, 14)).astype(np.int16)


def refusal(path, *words, **options):
    with pytest.raises(ScanError) as caught:
        read_series(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    return text


@pytest.mark.parametrize("plane", ANY_PLANE)
def test_every_voxel_keeps_its_value_and_its_place(tmp_path, voxels, plane):
    """World coordinates by DICOM's own equation (PS3.3 C.7.6.2.1.1), against the affine."""
    directions = ANY_PLANE[plane]
    write_series(tmp_path / "s", voxels, directions=directions)
    scan = read_series(tmp_path / "s")
    np.testing.assert_array_equal(scan.voxels, voxels.astype(np.float32) - 1024)
    row, column = np.array(directions, float)
    for k, r, c in [(0, 0, 0), (5, 11, 13), (2, 7, 3)]:
        start = positions(6, directions, 2.5, (-30.0, -20.0, 100.0))[k]
        lps = start + row * 0.7 * c + column * 0.8 * r  # PixelSpacing: rows 0.8 apart, columns 0.7
        np.testing.assert_allclose(scan.affine @ [k, r, c, 1], [*LPS @ lps, 1], atol=1e-6)
    np.testing.assert_allclose(scan.spacing_mm, (2.5, 0.8, 0.7), atol=1e-6)
    assert (scan.modality, scan.is_flat, scan.has_spacing, scan.source) == ("CT", False, True, tmp_path / "s")
    assert scan.voxels.dtype == np.float32


@pytest.mark.parametrize("plane", ["axial", "oblique", "a real one"])
def test_another_library_sees_the_same_voxels_at_the_same_places(tmp_path, voxels, plane):
    """SimpleITK, whose DICOM reader is another one (GDCM)."""
    folder = bundled("dicomdirtests/98892001/CT5N")
    if plane != "a real one":
        folder = tmp_path / "s"
        write_series(folder, voxels, directions=ANY_PLANE[plane])
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    theirs, ours = reader.Execute(), read_series(folder)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(theirs), ours.voxels)
    for k, r, c in [(0, 0, 0), (4, 11, 3), (2, 5, 9)]:
        place = theirs.TransformIndexToPhysicalPoint((c, r, k))
        np.testing.assert_allclose(LPS @ place, (ours.affine @ [k, r, c, 1])[:3], atol=1e-4)


def test_an_axial_series_is_already_in_canonical_order(tmp_path, voxels):
    write_series(tmp_path / "s", voxels)
    assert read_series(tmp_path / "s").axis_codes == "SPL"


@settings(max_examples=12, deadline=None)
@given(order=st.permutations(range(6)))
def test_names_of_files_say_nothing(tmp_path_factory, order):
    voxels = np.random.default_rng(1).integers(0, 2000, (6, 5, 4)).astype(np.int16)
    folder = tmp_path_factory.mktemp("shuffled")
    write_series(folder, voxels, names=[f"IM{n}" for n in order], directions=oblique())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dicom, "ask_child", answer_here)
        scan = read_series(folder)
    np.testing.assert_array_equal(scan.voxels, voxels.astype(np.float32) - 1024)
    np.testing.assert_allclose(np.linalg.norm(scan.affine[:3, :3], axis=0), (2.5, 0.8, 0.7), atol=1e-6)
    assert scan.dicom is not None
    assert [file.name for file in scan.dicom.files] == [f"IM{n}" for n in order]


def test_a_real_series_from_a_scanner():
    scan = read_scan(bundled("dicomdirtests/98892001/CT5N"))
    assert scan.shape == (5, 16, 16)
    np.testing.assert_allclose(scan.spacing_mm, (2.5, 0.488281, 0.488281))
    assert scan.modality == "CT"
    assert scan.axis_codes == "SPL"


def test_hounsfield_units_of_a_real_ct():
    scan = read_scan(bundled("CT_small.dcm"))
    assert (scan.voxels.min(), scan.voxels.max()) == (128 - 1024, 2191 - 1024)
    assert not scan.is_flat  # it has a place in the patient: a volume of one slice
    assert "rescaled: stored value * 1 + -1024" in scan.notes


SAME_IMAGE = [
    "MR_small.dcm",
    *(f"MR_small_{k}.dcm" for k in ("RLE", "bigendian", "expb", "implicit", "jp2klossless", "jpeg_ls_lossless")),
]


@pytest.mark.parametrize("name", SAME_IMAGE[1:])
def test_every_encoding_of_one_image_gives_the_same_scan(name):
    plain, other = read_scan(bundled(SAME_IMAGE[0])), read_scan(bundled(name))
    np.testing.assert_array_equal(other.voxels, plain.voxels)
    np.testing.assert_array_equal(other.affine, plain.affine)
    assert other.modality == "MR"


def test_padding_becomes_the_smallest_real_value(tmp_path, voxels):
    voxels[:, :3] = -2000
    write_series(tmp_path / "s", voxels, PixelPaddingValue=-2000)
    scan = read_series(tmp_path / "s")
    real = voxels[:, 3:].min() - 1024
    assert (scan.voxels[:, :3] == real).all()
    assert any(f"{6 * 3 * 14} padding voxels" in note for note in scan.notes)


def test_only_padding_is_refused(tmp_path, voxels):
    write_series(tmp_path / "s", np.full_like(voxels, -2000), PixelPaddingValue=-2000)
    refusal(tmp_path / "s", "only padding")


def test_monochrome1_is_turned_round(tmp_path, voxels):
    write_series(tmp_path / "one", voxels, photometric="MONOCHROME1", modality="MR", intercept=None)
    scan = read_series(tmp_path / "one")
    np.testing.assert_array_equal(scan.voxels, voxels.min() + voxels.max() - voxels.astype(np.float32))
    assert any("MONOCHROME1" in note for note in scan.notes)


def test_a_real_radiograph_is_flat_and_bright_where_it_should_be():
    path = bundled("dicomdirtests/77654033/CR1/6154")
    scan = read_scan(path)
    stored = pydicom.dcmread(path).pixel_array
    assert scan.is_flat
    assert scan.modality == "XR"
    assert np.corrcoef(scan.voxels.ravel(), stored.ravel())[0, 1] < -0.999


def test_slices_rescaled_one_by_one(tmp_path, voxels):
    for k, path in enumerate(write_series(tmp_path / "s", voxels, modality="PT")):
        one = pydicom.dcmread(path)
        one.RescaleSlope, one.RescaleIntercept = 0.5 * (k + 1), 0
        one.save_as(path)
    scan = read_series(tmp_path / "s")
    np.testing.assert_allclose(scan.voxels, voxels * 0.5 * np.arange(1, 7)[:, None, None])
    assert scan.modality == "PET"
    assert any("6 scalings" in note for note in scan.notes)


def test_two_series_are_listed_and_one_is_chosen(tmp_path, voxels):
    write_series(tmp_path, voxels, SeriesDescription="thin \x1b[31m", names=[f"a{k}" for k in range(6)])
    write_series(tmp_path, voxels[:3] + 1, SeriesInstanceUID="1.2.9", SeriesNumber=7, names=[f"b{k}" for k in range(3)])
    text = refusal(tmp_path, "found 2", "3 'thin [31m' (CT, 6 images)", "7 (CT, 3 images)", "--series")
    assert "\x1b" not in text
    for wanted in (7, "7", "1.2.9"):
        assert read_series(tmp_path, series=wanted).shape[0] == 3
    refusal(tmp_path, "no series is called '8'", "7 (CT", series=8)


def test_series_that_share_a_number_are_told_by_their_uid(tmp_path, voxels):
    write_series(tmp_path, voxels, names=[f"a{k}" for k in range(6)])
    write_series(tmp_path, voxels[:3], SeriesInstanceUID="1.2.9", names=[f"b{k}" for k in range(3)])
    refusal(tmp_path, "UID 1.2.9")
    refusal(tmp_path, "2 series are called '3'", "UID 1.2.9", series=3)


def test_a_gap_is_named_and_filled_only_if_asked(tmp_path, voxels):
    write_series(tmp_path / "s", voxels, leave_out=(3,))
    refusal(tmp_path / "s", "1 gap", "after 105.00 mm, 5.00 mm wide", "--fill-gaps")
    scan = read_series(tmp_path / "s", fill_gaps=True)
    assert scan.shape == voxels.shape
    np.testing.assert_allclose(scan.voxels[3], (voxels[2] / 2.0 + voxels[4] / 2.0) - 1024)
    np.testing.assert_array_equal(scan.voxels[4], voxels[4].astype(np.float32) - 1024)
    assert any("1 missing slices filled" in note for note in scan.notes)
    assert scan.dicom is not None
    assert scan.dicom.frames[3] is None


def test_a_real_gap_too_wide_to_fill():
    folder = bundled("dicomdirtests/77654033/CT2")
    refusal(folder, "after -99.48 mm, 202.50 mm wide", "161 slices are missing", fill_gaps=True)


def test_uneven_slices_are_refused(tmp_path, voxels):
    paths = write_series(tmp_path / "s", voxels)
    one = pydicom.dcmread(paths[3])
    one.ImagePositionPatient[2] += 1.0
    one.save_as(paths[3])
    refusal(tmp_path / "s", "evenly spaced", "1.5 to 3.5 mm", "--fill-gaps")


def test_slices_beside_the_line_are_refused(tmp_path, voxels):
    paths = write_series(tmp_path / "s", voxels)
    one = pydicom.dcmread(paths[3])
    one.ImagePositionPatient[0] += 1.0
    one.save_as(paths[3])
    refusal(tmp_path / "s", "1.00 mm beside")


def test_real_localisers_and_rotations_are_refused_in_words():
    refusal(bundled("dicomdirtests/98892001/CT2N"), "1 sagittal", "1 coronal", "localiser")
    refusal(bundled("dicomdirtests/98892003/MR700"), "7 images", "rotating")


def test_mixed_planes_are_refused_in_words(tmp_path, voxels):
    write_series(tmp_path, voxels, names=[f"a{k}" for k in range(6)])
    write_series(tmp_path, voxels, directions=CORONAL, names=[f"b{k}" for k in range(6)])
    refusal(tmp_path, "2 orientations", "6 axial, 6 coronal", "several planes")


def test_several_images_at_every_place_want_a_choice(tmp_path, voxels):
    write_series(tmp_path, voxels, names=[f"a{k}" for k in range(6)])
    for k, path in enumerate(write_series(tmp_path, voxels + 1, names=[f"b{k}" for k in range(6)])):
        one = pydicom.dcmread(path)
        one.InstanceNumber = 7 + k
        one.save_as(path)
    refusal(tmp_path, "2 at each of 6", "volume=0 to 1")
    for volume in (0, 1):
        np.testing.assert_array_equal(read_series(tmp_path, volume=volume).voxels, voxels - 1024.0 + volume)
    shutil.copy(tmp_path / "a0", tmp_path / "copy of a0")  # the same instance is one image
    assert any("1 copies" in note for note in read_series(tmp_path, volume=0).notes)


def test_images_of_several_sizes_are_refused(tmp_path, voxels):
    write_series(tmp_path, voxels, names=[f"a{k}" for k in range(6)])
    write_series(tmp_path, voxels[:, :6], origin=(-30, -20, 130), names=[f"b{k}" for k in range(6)])
    refusal(tmp_path, "6 x 12x14", "6 x 6x14")


def test_a_tilted_gantry_is_undone(tmp_path):
    """A field linear in the patient's own coordinates must come out linear in them: no slice is displaced."""
    slope = np.array([3.0, -2.0, 1.5])
    shear = (0.3, -1.1)
    places = positions(9, AXIAL, 2.0, (10, 20, 30), shear)
    r, c = np.mgrid[:20, :22]
    field = np.stack([slope @ p + slope[0] * 0.7 * c + slope[1] * 0.8 * r for p in places])
    stored = np.rint(20 * field).astype(np.int16)
    write_series(
        tmp_path / "s",
        stored,
        step_mm=2.0,
        origin=(10, 20, 30),
        shear=shear,
        intercept=None,
        RescaleSlope="0.05",
        RescaleIntercept=0,
    )
    scan = read_series(tmp_path / "s")
    directions = scan.affine[:3, :3] / scan.spacing_mm
    np.testing.assert_allclose(directions.T @ directions, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(scan.spacing_mm, (2, 0.8, 0.7))
    assert any(f"tilted by {np.degrees(np.arctan(np.hypot(*shear) / 2)):.1f} degrees" in note for note in scan.notes)
    world = in_world(scan.affine, np.ones(scan.shape, bool)) @ LPS
    expected = (world @ slope).reshape(scan.shape)
    difference = np.abs(scan.voxels - expected)
    seen = scan.voxels != scan.voxels.min()
    assert seen.mean() > 0.5
    assert np.quantile(difference[seen], 0.9) < 0.06  # stored in steps of 0.05
    assert scan.dicom is not None
    back = scan.dicom.to_frames(np.ones(scan.shape, np.float32))
    assert back.shape == stored.shape
    assert (back == 1).all()  # the grid holds every pixel of every slice


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_an_enhanced_object_is_a_volume(tmp_path, voxels, modality):
    path = write_enhanced(tmp_path / "e.dcm", voxels, order=[3, 0, 5, 1, 4, 2], modality=modality, directions=oblique())
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.voxels, voxels * 2.0 - 1024)
    np.testing.assert_allclose(scan.spacing_mm, (2.5, 0.8, 0.7), atol=1e-6)
    assert scan.modality == modality
    assert scan.dicom is not None
    assert scan.dicom.frames == tuple((0, k) for k in (1, 3, 5, 0, 4, 2))


def test_flat_images_and_their_spacing(tmp_path):
    grey = np.random.default_rng(0).integers(0, 255, (10, 12)).astype(np.uint8)
    made = set_pixels(dataset("CR", PixelSpacing=[0.2, 0.1]), grey)
    made.save_as(tmp_path / "spaced")
    scan = read_scan(tmp_path / "spaced")
    assert scan.is_flat
    assert scan.shape == (1, 10, 12)
    np.testing.assert_allclose(scan.affine, FLAT_AFFINE * [1, 0.2, 0.1, 1])
    set_pixels(dataset("US"), grey).save_as(tmp_path / "unspaced.dcm")
    scan = read_scan(tmp_path / "unspaced.dcm")
    assert not scan.has_spacing
    assert scan.modality == "US"
    np.testing.assert_array_equal(scan.voxels[0], grey)


def test_colour_is_for_single_images(tmp_path):
    rgb = np.random.default_rng(0).integers(0, 255, (4, 5, 3)).astype(np.uint8)
    set_pixels(dataset("US"), rgb, "RGB").save_as(tmp_path / "one.dcm")
    scan = read_scan(tmp_path / "one.dcm")
    assert scan.is_colour
    assert scan.is_flat
    np.testing.assert_array_equal(scan.voxels[0], rgb)
    for k in range(3):
        made = set_pixels(dataset("US", InstanceNumber=k), rgb, "RGB")
        made.ImagePositionPatient, made.ImageOrientationPatient = [0, 0, k], np.ravel(AXIAL).tolist()
        made.PixelSpacing = [1, 1]
        (tmp_path / "many").mkdir(exist_ok=True)
        made.save_as(tmp_path / "many" / str(k))
    refusal(tmp_path / "many", "grey", "3 images in colour", "name one file")


def test_a_cine_wants_one_frame(tmp_path):
    clip = np.random.default_rng(0).integers(0, 255, (4, 5, 6)).astype(np.uint8)
    set_pixels(dataset("US", NumberOfFrames=4), clip).save_as(tmp_path / "clip.dcm")
    refusal(tmp_path / "clip.dcm", "one by one", "volume=0 to 3")
    np.testing.assert_array_equal(read_series(tmp_path / "clip.dcm", volume=2).voxels[0], clip[2])


def test_what_is_no_image_is_left_out_of_a_folder_and_refused_alone(tmp_path, voxels):
    write_series(tmp_path, voxels)
    dataset("SR").save_as(tmp_path / "report.dcm")
    shutil.copy(bundled("rtplan.dcm"), tmp_path)
    (tmp_path / "README.txt").write_text("hello")
    scan = read_series(tmp_path)
    assert scan.shape == voxels.shape
    assert any("a report" in note for note in scan.notes)
    assert any("a radiotherapy plan" in note for note in scan.notes)
    assert any("no DICOM" in note for note in scan.notes)
    refusal(tmp_path / "report.dcm", "must be an image, found a report")


def test_kinds_of_pixel_are_not_mixed(tmp_path, voxels):
    paths = write_series(tmp_path, voxels)
    one = pydicom.dcmread(paths[3])
    one.PhotometricInterpretation = "MONOCHROME1"
    one.save_as(paths[3])
    refusal(tmp_path, "one kind of pixel", "5 x MONOCHROME2, 1 x MONOCHROME1")


def test_a_damaged_file_of_a_series_is_named(tmp_path, voxels):
    paths = write_series(tmp_path, voxels)
    paths[2].write_bytes(paths[2].read_bytes()[:-50])
    refusal(tmp_path, "002.dcm", "cut short")


def test_missing_identifiers_do_not_stop_reading(tmp_path, voxels):
    write_series(tmp_path, voxels, FrameOfReferenceUID=None, PatientID=None)
    scan = read_series(tmp_path)
    assert scan.dicom is not None
    assert scan.dicom.missing == ("FrameOfReferenceUID",)


def test_a_modality_can_be_given(tmp_path, voxels):
    write_series(tmp_path, voxels, Modality="OT", intercept=None)
    assert read_series(tmp_path).modality is None
    assert read_series(tmp_path, modality="mri").modality == "MR"


def test_what_is_dicom_is_told_by_its_mark(tmp_path, voxels):
    (tmp_path / "a.dcm").write_bytes(b"not at all")
    assert not is_dicom(tmp_path / "a.dcm")
    assert not is_dicom(tmp_path)
    assert not is_dicom(tmp_path / "nothing")
    write_series(tmp_path, voxels, names=[f"1.2.{k}" for k in range(6)])
    assert is_dicom(tmp_path)
    assert is_dicom(tmp_path / "1.2.0")


def test_doors_say_what_is_missing(tmp_path):
    refusal(tmp_path / "nowhere", "no such file")
    refusal(tmp_path, "found none")
    (tmp_path / "a.dcm").write_bytes(b"x" * 300)
    with pytest.raises(ScanError, match="begin as DICOM does"):
        read_scan(tmp_path / "a.dcm")
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(ScanError, match="for DICOM"):
        read_scan(tmp_path / "a.png", fill_gaps=True)


SWEEP = """
import json, sys, tempfile, warnings
from pathlib import Path
from delineate.scans.dicom.child import Limits, answer
limits = Limits({"memory": 3 << 30, "most_memory": 3 << 30, "seconds": 100})
for path in sys.argv[1:]:
    job = {"job": "read", "name": path, "files": [path], "alone": True, "series": None, "volume": None, "fill_gaps": False,
           "modality": None, "max_voxels": 10**8}
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps([path, answer(job, Path(folder), limits)]), flush=True)
"""


def test_every_file_that_comes_with_pydicom_gives_a_scan_or_one_line():
    """200 real and broken files, in one child: nothing else is raised, nothing hangs."""
    files = [
        p for p in sorted(bundled("").rglob("*")) if p.is_file() and (p.suffix == ".dcm" or "dicomdirtests" in p.parts)
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, *map(str, files)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers = dict(json.loads(line) for line in done.stdout.splitlines())
    assert len(answers) == len(files) > 150
    for path, told in answers.items():
        assert set(told) in ({"done"}, {"refused"}), (path, told)
        assert "\n" not in str(told.get("refused", ""))
        assert "AttributeError" not in str(told), path
        assert "KeyError" not in str(told), path
    read = {path.rpartition("/")[2] for path, told in answers.items() if "done" in told}
    assert {
        "CT_small.dcm",
        "MR_small.dcm",
        "693_J2KI.dcm",
        "examples_palette.dcm",
        "SC_rgb_rle.dcm",
    } <= read
    refused = {path.rpartition("/")[2]: told["refused"] for path, told in answers.items() if "refused" in told}
    for name, word in {
        "rtplan.dcm": "radiotherapy plan",
        "rtdose.dcm": "radiotherapy dose",
        "liver_1frame.dcm": "a segmentation",
        "waveform_ecg.dcm": "must be an image",
        "image_dfl.dcm": "deflated",
        "MR_truncated.dcm": "cut short",
        "no_meta.dcm": "begin as DICOM does",
        "meta_missing_tsyntax.dcm": "transfer syntax",
        "JPEG-lossy.dcm": "12-bit",
        "DICOMDIR": "list of other files",
        "examples_ybr_color.dcm": "one by one",
    }.items():
        assert word in refused[name], (name, refused.get(name))
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 60
