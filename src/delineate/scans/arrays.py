"""Arrays that a program already holds, as scans: what a file with the same voxels would be read as."""

from typing import Any

import numpy as np

from delineate.errors import ScanError
from delineate.prompts.modality import modality_code
from delineate.scans.geometry import FLAT_AFFINE, checked_spacing, implausible_notes, shear_notes, spacing_of
from delineate.scans.intensity import in_hounsfield_units, is_narrow
from delineate.scans.reading import finite
from delineate.scans.scan import MAX_VOXELS, Scan

HERE = "the array"  # what messages call it


def scan_of(array: Any, affine: Any = None, *, modality: str | None = None) -> Scan:
    """The scan that an array shows; the array is not changed, and what it shares with the scan must not be later.

    >>> import numpy as np
    >>> scan_of(np.zeros((64, 64, 10), np.int16), (0.8, 0.8, 5.0), modality="CT")
    Scan(64 x 64 x 10 voxels of 0.8 x 0.8 x 5 mm, RAS, CT)

    Args:
        array: a volume (I, J, K), as nibabel gives one; SimpleITK's arrays are (K, J, I), turn them by `.T`. Or,
            without an affine, a picture (H, W), or (H, W, 3) in colour. Whatever NumPy takes for an array of numbers.
        affine: (4, 4), from voxel index to world mm, RAS+, as `nibabel.load(…).affine`. Or three numbers, the spacing
            in mm along the axes, which then grow to the right, the front and the head. None for a picture.
        modality: CT, MR, US, … in any usual spelling; what it means: `delineate.scans.reading.read_scan`.

    Raises:
        ScanError: another shape, no numbers, nothing finite, or an affine that is none.
    """
    voxels = np.asarray(array)
    if voxels.dtype.kind not in "biuf":
        raise ScanError(f"an array must hold real numbers, this one holds {voxels.dtype}; convert it first")
    if voxels.size > MAX_VOXELS:
        raise ScanError(
            f"an array must have {MAX_VOXELS:,} voxels at most, this one has {voxels.size:,}; crop it first"
        )
    if not voxels.size:
        raise ScanError(f"an array must hold voxels, this one has the shape {voxels.shape}")
    flat = affine is None
    if flat and not (voxels.ndim == 2 or (voxels.ndim == 3 and voxels.shape[2] == 3)):
        raise ScanError(
            f"without an affine an array must be a picture (H, W) or (H, W, 3), this one has the shape {voxels.shape}; "
            "give a volume's affine, or its spacing in mm along each axis"
        )
    if not flat and voxels.ndim != 3:
        raise ScanError(
            f"with an affine an array must be a volume (I, J, K), this one has the shape {voxels.shape}; "
            "take one volume of several, and leave the affine out for a picture"
        )
    where = FLAT_AFFINE if flat else _affine(affine)
    notes = [] if flat else [*shear_notes(HERE, where), *implausible_notes(HERE, spacing_of(where))]
    if is_narrow(voxels.dtype):
        voxels = np.asarray(voxels, np.uint8 if voxels.dtype == bool else voxels.dtype.newbyteorder("="))
    else:
        with np.errstate(over="ignore"):  # beyond float32 is infinite, and counted as such
            voxels = np.array(voxels, np.float32, copy=True)
    modality = modality_code(modality)
    voxels, more = finite(HERE, voxels)
    voxels, modality, told = in_hounsfield_units(voxels, modality, not flat)
    return Scan(voxels[None] if flat else voxels, where, modality, None, not flat, (*notes, *more, *told))


def _affine(given: Any) -> np.ndarray:
    """A 4 x 4 affine as given, or that of a spacing. Raises `ScanError` where it is neither."""
    try:
        affine = np.asarray(given, np.float64)
    except (TypeError, ValueError):
        affine = np.empty(0)
    if affine.shape == (3,):
        return np.diag([*checked_spacing(affine.tolist()), 1.0])
    ok = affine.shape == (4, 4) and bool(np.isfinite(affine).all()) and bool((affine[3] == (0, 0, 0, 1)).all())
    if not ok or np.linalg.matrix_rank(affine[:3, :3]) < 3:
        raise ScanError(
            "an affine must be 4 x 4 finite numbers with the last row 0 0 0 1 and three directions, or a spacing of "
            f"three numbers of mm; got {' '.join(str(given).split()):.80}"
        )
    return affine
