"""Headers that contradict themselves are told; what is written opens wherever its scan did."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.dicom_series import answer_here, write_series
from tests.scans.test_geometry import affine_with

from delineate.errors import ScanError
from delineate.scans.dicom import series as series_module
from delineate.scans.reading import read_labels, read_scan
from delineate.scans.writing import write_labels, write_map

SHAPE = (4, 5, 6)
MASK = np.random.default_rng(0).random(SHAPE) > 0.5


def write(path, affine, *, qform=None, codes=(1, 1), pixdim=None, unit=2):
    """A scan whose sform is `affine`; its qform too, or `qform`; codes of the qform and the sform."""
    image = nibabel.Nifti1Image(np.arange(120, dtype=np.int16).reshape(SHAPE), affine)
    image.set_sform(affine, codes[1])
    if codes[0]:
        image.set_qform(affine if qform is None else qform, codes[0])
    else:
        image.header["qform_code"] = 0
    if pixdim is not None:
        image.header["pixdim"][1:4] = pixdim
    image.header["xyzt_units"] = unit
    nibabel.save(image, path)
    return path


def sheared(degrees, spacing=(1.2, 1.2, 5.0)):
    affine = np.diag([*spacing, 1.0])
    affine[1, 2] = spacing[2] * np.tan(np.radians(degrees))
    return affine


def opened(path):
    """How SimpleITK places a file."""
    image = SimpleITK.ReadImage(str(path))
    return np.array([*image.GetSpacing(), *image.GetOrigin(), *image.GetDirection()])


# --- what is told


def test_pixdim_that_contradicts_the_sform_is_told(tmp_path):
    path = write(tmp_path / "a.nii.gz", np.eye(4), codes=(0, 1), pixdim=(1.237, 1.237, 5))
    (note,) = read_scan(path).notes
    assert "pixdim says that voxels are 1.237 x 1.237 x 5 mm, the sform 1 x 1 x 1 mm" in note
    assert read_scan(path).spacing_mm == (1, 1, 1)


@pytest.mark.parametrize("pixdim", [(1, 1, 1), (0, 0, 0), (1, np.nan, 1), (1.004, 1, 1), (1, -1, 1)])
def test_pixdim_that_agrees_or_says_nothing_is_not(tmp_path, pixdim):
    assert read_scan(write(tmp_path / "a.nii.gz", np.eye(4), codes=(0, 1), pixdim=pixdim)).notes == ()


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize(("unit", "side"), [(1, "1200"), (3, "0.0012")])
def test_voxels_of_a_metre_or_a_micrometre_are_told_and_mending_the_unit_helps(tmp_path, codes, unit, side):
    path = write(tmp_path / "a.nii.gz", np.diag([1.2, 1.2, 5, 1]), codes=codes, unit=unit)
    notes = read_scan(path).notes
    assert any(f"voxels of {side} x {side} x" in note and "the unit it names" in note for note in notes)
    assert read_scan(write(tmp_path / "b.nii.gz", np.diag([1.2, 1.2, 5, 1]), codes=codes)).notes == ()  # as it says


def test_metres_that_are_named_as_none_are_told(tmp_path):
    (note,) = read_scan(write(tmp_path / "a.nii.gz", np.diag([0.0012, 0.0012, 0.005, 1]))).notes
    assert "implausible" in note


def test_dicom_is_asked_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(series_module, "ask_child", answer_here)
    write_series(tmp_path / "s", np.zeros((6, 5, 4), np.int16), pixel_mm=(700, 700))
    assert any("implausible" in note for note in read_scan(tmp_path / "s").notes)


def test_forms_that_differ_are_told(tmp_path):
    moved = np.eye(4)
    moved[0, 3] = 0.5
    (note,) = read_scan(write(tmp_path / "a.nii.gz", moved, qform=np.eye(4))).notes
    assert note == "sform and qform differ by up to 0.5 mm (0.5 voxels): the sform is used"


# --- what is written


CASES = {
    "straight": {"affine": sheared(0)},
    "sheared, its qform sound": {"affine": sheared(0.5), "qform": sheared(0)},
    "hardly sheared": {"affine": sheared(0.05), "qform": sheared(0)},
    "two spaces": {"affine": sheared(0), "codes": (1, 4)},
    "qform only": {"affine": sheared(0), "codes": (2, 0)},
    "sform only": {"affine": sheared(0), "codes": (0, 1)},
    "pixdim is another": {"affine": np.eye(4), "codes": (0, 1), "pixdim": (1.237, 1.237, 5)},
    "oblique, to the left": {"affine": affine_with("LPS", oblique_degrees=20)},
    "mirrored": {"affine": affine_with("RPS")},
    "metres": {"affine": np.diag([0.0012, 0.0012, 0.005, 1]), "unit": 1},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_masks_and_maps_open_in_itk_where_their_scan_did(tmp_path, name, suffix):
    source = write(tmp_path / f"scan{suffix}", **CASES[name])
    scan, wanted = read_scan(source), opened(source)
    for written in (
        write_labels(tmp_path / f"mask{suffix}", MASK, scan),
        write_map(tmp_path / f"map{suffix}", MASK * 0.25, scan),
    ):
        np.testing.assert_allclose(opened(written), wanted, rtol=1e-5, atol=1e-5)
        back = read_scan(written)
        np.testing.assert_allclose(back.affine, scan.affine, rtol=1e-6, atol=1e-5)
        header, first = nibabel.load(written).header, nibabel.load(source).header
        for code in ("qform_code", "sform_code"):
            assert int(header[code]) == int(first[code])
    np.testing.assert_array_equal(
        SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(tmp_path / f"mask{suffix}"))).T, MASK
    )


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([(0, 1), (1, 0), (1, 1), (2, 4)]),
    st.tuples(*[st.floats(0.1, 9)] * 3),
    st.floats(-40, 40),
    st.floats(0, 1.9),
)
def test_any_scan_that_itk_opens_has_masks_that_it_opens(tmp_path_factory, codes, spacing, turn, shear):
    folder = tmp_path_factory.mktemp("forms")
    straight = affine_with("LPS", spacing, turn)
    leaning = np.eye(4)
    leaning[1, 2] = np.tan(np.radians(shear)) * spacing[2] / spacing[1]
    leaning = straight @ leaning
    source = write(folder / "scan.nii", leaning if codes[1] else straight, qform=straight, codes=codes)
    scan = read_scan(source)
    written = write_labels(folder / "mask.nii", MASK, scan)
    np.testing.assert_array_equal(read_labels(written).affine, scan.affine)
    try:
        wanted = opened(source)
    except RuntimeError:  # what ITK refuses of the scan it may refuse of the mask
        return
    np.testing.assert_allclose(opened(written), wanted, rtol=1e-5, atol=1e-5)


def test_a_scan_that_was_moved_is_not_written_where_it_was(tmp_path):
    scan = read_scan(write(tmp_path / "a.nii.gz", np.eye(4)))
    moved = replace(scan, affine=np.diag([2.0, 2, 2, 1]))
    assert read_labels(write_labels(tmp_path / "m.nii.gz", MASK, moved)).spacing_mm == (2, 2, 2)


def test_kept_cases_are_told_and_open(shared_cases, tmp_path):
    scan = read_scan(shared_cases / "K07_sform_vs_pixdim" / "acdc_style.nii.gz")
    assert any("pixdim says" in note for note in scan.notes)
    for source in sorted((shared_cases / "K08_itk_unreadable_output").glob("*.nii.gz")):
        scan = read_scan(source)
        written = write_labels(tmp_path / source.name, scan.voxels > 0, scan)
        np.testing.assert_allclose(opened(written), opened(source), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("size", [1e30, 1e5, 1e-7, 1e-30])
def test_voxels_of_a_size_that_cannot_be_are_refused(tmp_path, size):
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.diag([size, 1, 1, 1]))
    nibabel.save(image, tmp_path / "scan.nii")
    with pytest.raises(ScanError, match=r"scan\.nii: (voxels of .* mm cannot be|the sform must be finite)"):
        read_scan(tmp_path / "scan.nii")
