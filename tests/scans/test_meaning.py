"""Grey values keep their meaning: one rule for all formats, and a word wherever they were changed or are unknown."""

import nibabel
import numpy as np
import pytest
import tifffile
from tests.dicom_series import answer_here, dataset, set_pixels, write_series

from delineate.cli.segment import of_reading
from delineate.scans.dicom import series as series_module
from delineate.scans.intensity import CT_WINDOW_HU, intensity_range
from delineate.scans.reading import read_scan


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch):
    monkeypatch.setattr(series_module, "ask_child", answer_here)


def body(shape=(6, 48, 48), seed=0):
    """A trunk in air in Hounsfield units: fat around muscle around liver, a lung, a bone; with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : 1j * shape[1], -1 : 1 : 1j * shape[2]]
    at = x**2 + y**2
    plane = np.select([at > 0.8, at > 0.65, (x - 0.4) ** 2 + y**2 < 0.04, (x + 0.4) ** 2 + y**2 < 0.03, at > 0.3],
                      [-1000, -100, -850, 700, 50], 60)  # fmt: skip
    return np.clip(np.rint(plane + rng.normal(0, 12, shape)), -1024, 3071).astype(np.int16)


def nifti(path, voxels, slope=None):
    image = nibabel.Nifti1Image(voxels, np.diag([1.0, 1, 2, 1]))
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    nibabel.save(image, path)
    return path


def said(scan):
    return " ".join(scan.notes)


# --- CT and PET are never turned round


@pytest.mark.parametrize("modality", ["CT", "PT", "NM"])
def test_measured_values_are_never_turned_round_in_dicom(tmp_path, modality):
    write_series(tmp_path / "s", body() + 1024, modality=modality, photometric="MONOCHROME1")
    scan = read_scan(tmp_path / "s")
    np.testing.assert_array_equal(scan.voxels, body())
    assert "MONOCHROME1" not in said(scan)


@pytest.mark.parametrize("options", [{"Modality": "OT"}, {"Modality": None}, {"Modality": "OT", "stated": "ct"}])
def test_nor_are_those_of_ct_that_does_not_say_so(tmp_path, options):
    stated = options.pop("stated", None)
    write_series(tmp_path / "s", body() + 1024, photometric="MONOCHROME1", **options)
    scan = read_scan(tmp_path / "s", modality=stated)
    np.testing.assert_array_equal(scan.voxels, body())
    assert scan.modality == "CT"
    assert ("taken for CT" in said(scan)) == (stated is None)


@pytest.mark.parametrize("modality", ["CR", "DX", "MG", "US"])
def test_pictures_without_units_are_turned_round_and_that_is_said(tmp_path, modality):
    pixels = np.arange(30, dtype=np.uint16).reshape(5, 6)
    set_pixels(dataset(modality), pixels, "MONOCHROME1").save_as(tmp_path / "a.dcm")
    scan = read_scan(tmp_path / "a.dcm")
    np.testing.assert_array_equal(scan.voxels[0], 29 - pixels)
    assert "MONOCHROME1: turned round" in said(scan)
    assert said(read_scan(tmp_path / "a.dcm", modality="PET")).count("turned") == 0


def test_a_tiff_in_which_0_is_white_follows_the_same_rule(tmp_path):
    pixels = np.arange(30, dtype=np.uint16).reshape(5, 6)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    np.testing.assert_array_equal(read_scan(tmp_path / "a.tif", modality="X-ray").voxels[0], 65535 - pixels)
    for modality in ("CT", "PT"):
        np.testing.assert_array_equal(read_scan(tmp_path / "a.tif", modality=modality).voxels[0], pixels)


# --- Hounsfield units are recognised, or their absence is said


@pytest.mark.parametrize("added", [1000, 1024, 32768])
@pytest.mark.parametrize("kind", ["nifti", "dicom", "cropped"])
def test_an_offset_of_declared_ct_is_taken_off_again_and_said(tmp_path, added, kind):
    wanted = np.maximum(body(), 0 - added) if added < 2000 else body()
    if kind == "cropped":  # a liver without any air
        wanted = wanted[:, 20:28, 20:28]
    stored = (wanted.astype(np.int32) + added).astype(np.uint16)
    if kind == "dicom":
        write_series(tmp_path / "s", stored, intercept=None)
        scan = read_scan(tmp_path / "s")
    else:
        scan = read_scan(nifti(tmp_path / "a.nii.gz", stored), modality="computed tomography")
    if kind == "cropped" and added == 1000:  # 24 HU cannot be told without air
        np.testing.assert_allclose(scan.voxels, wanted - 24)
        return
    np.testing.assert_array_equal(scan.voxels, wanted)
    assert f"{added} added to Hounsfield units" in said(scan)
    if kind != "cropped":
        assert intensity_range(scan.voxels, scan.modality) == CT_WINDOW_HU


def test_an_undeclared_offset_is_said_and_the_advice_makes_it_hounsfield_units(tmp_path):
    path = nifti(tmp_path / "a.nii.gz", (body() + 1024).astype(np.uint16))
    scan = read_scan(path)
    assert scan.modality is None
    assert "looks like CT stored with 1024 added" in said(scan)
    assert "say so (--modality CT)" in said(scan)
    told = read_scan(path, modality="CT")  # as it says
    np.testing.assert_array_equal(told.voxels, body())


@pytest.mark.parametrize("low", [-160, -400])
def test_an_undeclared_window_in_hounsfield_units_is_said_and_the_advice_windows_it(tmp_path, low):
    path = nifti(tmp_path / "a.nii.gz", body().clip(low, 240))
    assert f"values go down to {low}, as in CT" in said(read_scan(path))
    scan = read_scan(path, modality="CT")
    assert scan.notes == ()
    assert intensity_range(scan.voxels, scan.modality) == CT_WINDOW_HU


@pytest.mark.parametrize(
    "values",
    [
        body().clip(-100, 240).astype(np.float32),
        ((body().clip(-125, 275) + 125) / 400 * 255).astype(np.uint8),
        ((body().clip(-125, 275) + 125) / 400).astype(np.float32),
        (body().clip(-1000, 1000) / 2000 + 0.5).astype(np.float32),
    ],
    ids=["window", "bytes", "shares", "scaled"],
)
def test_declared_ct_that_is_in_no_hounsfield_units_is_said(tmp_path, values):
    scan = read_scan(nifti(tmp_path / "a.nii.gz", values), modality="CT")
    np.testing.assert_array_equal(scan.voxels, values)
    (note,) = scan.notes
    assert note.endswith(
        "cannot be told to be Hounsfield units: scaled by their own percentiles, not by the window of CT"
    )
    assert intensity_range(scan.voxels, "CT") != CT_WINDOW_HU


@pytest.mark.parametrize("stated", ["MR", "compted tomografy"])
def test_air_in_something_else_is_said(tmp_path, stated):
    scan = read_scan(nifti(tmp_path / "a.nii.gz", body()), modality=stated)
    assert scan.modality == stated
    assert f"as in CT, but {stated} was told" in said(scan)
    assert read_scan(tmp_path / "a.nii.gz", modality="CT").notes == ()


def test_other_volumes_and_pictures_have_nothing_said_of_them(tmp_path):
    rng = np.random.default_rng(0)
    brain = rng.normal(0, 30, (6, 48, 48)) + np.where(np.arange(48) > 12, 800, 20)
    for values in (
        brain,
        brain / brain.std() - brain.mean() / brain.std(),
        brain * 1.4,
        rng.integers(0, 4096, (6, 9, 9)),
    ):
        assert read_scan(nifti(tmp_path / "a.nii.gz", values.astype(np.float32))).notes == ()
    tifffile.imwrite(tmp_path / "a.tif", body()[0])
    assert read_scan(tmp_path / "a.tif").notes == ()


def test_what_reading_decided_reaches_the_terminal_with_the_cases_it_is_about():
    cases = [{"case": name, "notes": ["turned"]} for name in "abcde"] + [{"case": "f", "notes": ["one", "turned"]}]
    assert of_reading([*cases, {"case": "g", "status": "failed"}]) == ["a, b, c and 3 more: turned", "f: one"]


# --- the cases that were once read wrongly


def test_kept_cases_of_ct_are_read_in_hounsfield_units(shared_cases):
    for folder in ("K03_monochrome1_ct/mono1_ct", "K04_ct_not_in_hu/no_Modality", "K04_ct_not_in_hu/no_RescaleSlope"):
        scan = read_scan(shared_cases / folder)
        assert (scan.modality, scan.voxels.min(), scan.voxels.max()) == ("CT", -1000, 275), folder
        assert scan.notes
    path = shared_cases / "K04_ct_not_in_hu" / "hu_plus1024_uint16.nii.gz"
    assert "--modality CT" in said(read_scan(path))
    assert read_scan(path, modality="CT").voxels.min() == -1000
