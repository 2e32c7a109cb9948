"""An array is the scan that a file of the same voxels is."""

import nibabel
import numpy as np
import pytest
from PIL import Image

from delineate.errors import ScanError
from delineate.scans.arrays import scan_of
from delineate.scans.reading import read_scan
from delineate.scans.scan import Scan

AFFINE = np.array([[-0.8, 0, 0, 10], [0, -0.8, 0, 20], [0, 0, 5, -30], [0, 0, 0, 1.0]])


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32, np.float64, np.int64])
def test_a_volume_is_what_its_nifti_is(tmp_path, dtype):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 250, (5, 6, 7)).astype(dtype)
    if np.dtype(dtype).kind == "f":
        array[0, 0, 0] = np.nan
    before = array.copy()
    stored = array if dtype != np.int64 else array.astype(np.int32)
    nibabel.save(nibabel.Nifti1Image(stored, AFFINE), tmp_path / "a.nii")
    read, made = read_scan(tmp_path / "a.nii", modality="MR"), scan_of(array, AFFINE, modality="MRI")
    assert made.voxels.dtype == read.voxels.dtype
    np.testing.assert_array_equal(made.voxels, read.voxels)
    np.testing.assert_allclose(made.affine, read.affine)
    assert (made.modality, made.has_spacing, made.is_flat) == ("MR", True, False)
    np.testing.assert_array_equal(array, before)  # the caller's own


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 3)])
def test_a_picture_is_what_its_png_is(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    Image.fromarray(array).save(tmp_path / "a.png")
    read, made = read_scan(tmp_path / "a.png"), scan_of(array)
    np.testing.assert_array_equal(made.voxels, read.voxels)
    np.testing.assert_array_equal(made.affine, read.affine)
    assert made.is_flat
    assert read.is_flat
    assert made.is_colour == (len(shape) == 3)


def test_values_of_ct_are_brought_to_hounsfield_units():
    array = np.full((4, 4, 4), 1000.0)
    array[0] = 0
    made = scan_of(array - 1000, (1, 1, 1))
    assert made.modality == "CT"
    assert made.notes == ("taken for CT: values go down to -1000",)
    assert made.voxels.dtype == np.float32


@pytest.mark.parametrize(
    ("array", "affine", "message"),
    [
        (np.zeros((3, 4, 5)), None, r"must be a picture \(H, W\) or \(H, W, 3\), this one has the shape \(3, 4, 5\)"),
        (np.zeros((3, 4)), AFFINE, r"must be a volume \(I, J, K\), this one has the shape \(3, 4\)"),
        (np.zeros((0, 4, 5)), AFFINE, "must hold voxels"),
        (np.zeros((2, 2, 2), complex), AFFINE, "real numbers, this one holds complex128"),
        (np.array([["a"]]), None, "real numbers"),
        (np.full((2, 2, 2), np.nan), AFFINE, "the array: a scan must hold finite values"),
        (np.zeros((2, 2, 2)), np.zeros((4, 4)), "an affine must be 4 x 4 finite numbers"),
        (np.zeros((2, 2, 2)), "1 mm", "an affine must be 4 x 4"),
        (np.zeros((2, 2, 2)), (1, 0, 1), "three positive numbers of mm"),
        (np.zeros((2, 2, 2)), (1, 1e7, 1), "the array: voxels of .* cannot be"),
        (np.zeros((2, 2, 2)), np.array([[1, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "degrees of shear"),
    ],
)
def test_what_is_no_scan_is_refused_in_one_line(array, affine, message):
    with pytest.raises(ScanError, match=message) as caught:
        scan_of(array, affine)
    assert "\n" not in str(caught.value)


def test_scans_say_what_they_are_in_a_line():
    assert repr(scan_of(np.zeros((8, 9, 3), np.uint8))) == "Scan(8 x 9 pixels, colour, no modality told)"
    channels = Scan(np.zeros((2, 3, 4, 2)), AFFINE, channels=("T1", "T\u202e2\n"))
    assert repr(channels) == "Scan(2 x 3 x 4 voxels of 0.8 x 0.8 x 5 mm, LPS, T1 + T 2)"
