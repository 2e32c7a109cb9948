"""What can be measured of a mask: how much grey it covers, how long it is, in how many pieces, in which slices."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage
from scipy.spatial import ConvexHull
from scipy.spatial.distance import pdist

from delineate.proposals.islands import box_of
from delineate.scans.geometry import orientation_of
from delineate.scans.intensity import is_in_hounsfield_units
from delineate.scans.scan import Scan


@dataclass(frozen=True)
class Measured:
    """What was measured of a mask. Of an empty one, and where something cannot be said, None.

    Attributes:
        mean_grey: of the voxels in it, in the scan's own unit, of its first channel; None in colour.
        std_grey: their standard deviation, in the same unit (of all voxels: divided by their number).
        grey_unit: "HU", or "" for numbers without a unit.
        longest_axial_diameter_mm: the longest straight line between two corners of the mask within one axial slice,
            whichever slice that is, through what is not in the mask too; None where nobody knows how large a pixel is.
        longest_diameter_pixels: the same of such an image.
        components: how many pieces it has; voxels that touch by a corner are in one.
        slice_axis: the axis of the file's array that slices are counted along: the one nearest to the body's.
        first_slice: the first of them with any voxel of it, from 0 on, as the file counts.
        last_slice: the last one.
    """

    mean_grey: float | None = None
    std_grey: float | None = None
    grey_unit: str | None = None
    longest_axial_diameter_mm: float | None = None
    longest_diameter_pixels: float | None = None
    components: int = 0
    slice_axis: int | None = None
    first_slice: int | None = None
    last_slice: int | None = None


def measured(mask: Bool[np.ndarray, "I J K"], scan: Scan) -> Measured:
    """What can be measured of a mask of a scan. Memory is taken for the box around the mask, not for the scan."""
    if not mask.any():
        return Measured()
    box = box_of(mask)
    scan = scan.shown
    inside, axis = mask[box], orientation_of(scan.affine).order[0]
    structure = np.ones((3, 3, 3), bool)
    longest = longest_diameter(inside, axis, scan.affine if scan.has_spacing else np.eye(4))
    grey = None if scan.is_colour else scan.voxels[box][inside]
    where = None if scan.is_flat else box[axis]
    return Measured(
        mean_grey=None if grey is None else float(grey.mean(dtype=np.float64)),
        std_grey=None if grey is None else float(grey.std(dtype=np.float64)),
        grey_unit=None if grey is None else "HU" if is_in_hounsfield_units(scan.voxels, scan.modality) else "",
        longest_axial_diameter_mm=longest if scan.has_spacing else None,
        longest_diameter_pixels=None if scan.has_spacing else longest,
        components=int(ndimage.label(inside, structure)[1]),  # type: ignore[misc, index]
        slice_axis=None if where is None else axis,
        first_slice=None if where is None else where.start,
        last_slice=None if where is None else where.stop - 1,
    )


def longest_diameter(mask: Bool[np.ndarray, "I J K"], axis: int, affine: Float[np.ndarray, "4 4"]) -> float:
    """The longest distance between two corners of a mask within one slice across an axis, in the affine's unit.

    It lies between corners of the convex hull, of which there are few (exact; also on grids that are sheared).
    """
    plane = affine[:3, [a for a in range(3) if a != axis]]
    flat = np.asarray(np.linalg.qr(plane, mode="r"))  # as it lies in its own plane: lengths and angles stay
    longest = 0.0
    for corners in _corners(np.moveaxis(mask, axis, 0)):
        if np.linalg.norm(np.ptp(corners @ flat.T, axis=0)) > longest:
            hull = corners[
                ConvexHull(corners).vertices
            ]  # of pixels: the same ones whatever their shape, and rounded less
            longest = max(longest, float(pdist(hull @ flat.T).max()))
    return longest


def _corners(slices: Bool[np.ndarray, "S R C"]) -> Iterator[Float[np.ndarray, "P 2"]]:
    """The corners of the outermost pixels of every row, a slice after another; empty ones are left out."""
    for one in slices:
        rows = np.flatnonzero(one.any(axis=1))
        if len(rows):
            first, last = one[rows].argmax(axis=1), one.shape[1] - one[rows, ::-1].argmax(axis=1)
            columns = np.concatenate([first, last])
            ends = [np.stack([np.tile(rows, 2) + side, columns], axis=1) for side in (0, 1)]
            yield np.concatenate(ends).astype(np.float64)
