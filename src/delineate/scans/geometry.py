"""Where a voxel lies: array axes, world axes (mm, RAS+), and the one order that the networks see.

World coordinates exist only here and where files are read; everything else counts voxels of a canonical array.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path

import nibabel
import numpy as np

from delineate.errors import ScanError

CANONICAL = "SPL"
"""Axis 0 grows to Superior (slices), 1 to Posterior (rows), 2 to patient Left (columns): `array[k]` is an
axial slice as a radiologist sees it."""

FLAT_AFFINE = np.array([[0, 0, -1, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=np.float64)
"""The affine given to 2-D images, (1, rows, columns) at 1 mm: their orientation is the identity."""
FLAT_AFFINE.setflags(write=False)

RAS_FROM_LPS = np.diag([-1.0, -1.0, 1.0])
"""What turns world coordinates of DICOM, ITK and 3D Slicer's files into RAS, and back."""
RAS_FROM_LPS.setflags(write=False)

SILENT_COSINE = 1e-3
"""Columns this near to orthogonal (0.06 degrees) are float32 rounding, not shear."""

PLAUSIBLE_MM = (0.005, 200.0)
"""Sides of a voxel: beyond these a metre or a micrometre was written where a millimetre was meant, as a rule."""

POSSIBLE_MM = (1e-6, 1e4)
"""Sides of a voxel: from a nanometre, for microscopes, to ten metres, for a header in the wrong unit."""

MAX_SHEAR_DEGREES = 2.0
"""Beyond this a box of voxels is no box any more: spacings, distances and volumes would be wrong."""


@dataclass(frozen=True)
class Orientation:
    """How an array's first three axes were permuted and flipped to become `CANONICAL`.

    Canonical axis `a` is the array's axis `order[a]`, reversed if `flips[a]`.
    """

    order: tuple[int, int, int] = (0, 1, 2)
    flips: tuple[bool, bool, bool] = (False, False, False)

    @property
    def _slices(self) -> tuple[slice, ...]:
        return tuple(slice(None, None, -1 if flip else None) for flip in self.flips)


def orientation_of(affine: np.ndarray) -> Orientation:
    """The permutation and flips that bring an array with this (4, 4) affine nearest to `CANONICAL`.

    Oblique grids are not resampled: each array axis goes to the world axis closest to it.

    >>> orientation_of(FLAT_AFFINE) == Orientation()
    True
    >>> orientation_of(np.eye(4))
    Orientation(order=(2, 1, 0), flips=(False, True, True))
    """
    here = nibabel.orientations.io_orientation(affine)  # a row an array axis: world axis, direction
    wanted = nibabel.orientations.axcodes2ornt(tuple(CANONICAL))
    order = [int(np.flatnonzero(here[:, 0] == world)[0]) for world in wanted[:, 0]]
    flips = [bool(here[axis, 1] != sign) for axis, sign in zip(order, wanted[:, 1], strict=True)]
    return Orientation((order[0], order[1], order[2]), (flips[0], flips[1], flips[2]))


def to_canonical(array: np.ndarray, orientation: Orientation) -> np.ndarray:
    """A view of `array` (I, J, K, ...) with its first three axes in `CANONICAL` order; later axes are kept.

    Flipped axes have negative strides, which torch does not take: `np.ascontiguousarray` copies.
    """
    rest = range(3, array.ndim)
    return array.transpose(*orientation.order, *rest)[orientation._slices]


def from_canonical(array: np.ndarray, orientation: Orientation) -> np.ndarray:
    """The exact inverse of `to_canonical`: a view of a canonical `array` in the file's own axis order."""
    rest = range(3, array.ndim)
    return array[orientation._slices].transpose(*np.argsort(orientation.order), *rest)


def spacing_of(affine: np.ndarray) -> tuple[float, float, float]:
    """The distance in mm between neighbouring voxels along each array axis: the lengths of the columns."""
    i, j, k = (float(length) for length in np.linalg.norm(np.asarray(affine)[:3, :3], axis=0))
    return i, j, k


def canonical_spacing(affine: np.ndarray, orientation: Orientation) -> tuple[float, float, float]:
    """The (slice, row, column) spacing in mm of the canonical array."""
    spacing = spacing_of(affine)
    slices, rows, columns = orientation.order
    return spacing[slices], spacing[rows], spacing[columns]


def axis_codes(affine: np.ndarray) -> str:
    """The direction in which each array axis grows, such as "LPS"."""
    return "".join(nibabel.orientations.aff2axcodes(affine))


def checked_spacing(spacing_mm: Sequence[float]) -> tuple[float, float, float]:
    """`spacing_mm` as three positive floats, or a `ScanError`."""
    if len(spacing_mm) != 3 or not all(np.isfinite(value) and value > 0 for value in spacing_mm):
        raise ScanError(f"an assumed spacing must be three positive numbers of mm, got {tuple(spacing_mm)}")
    i, j, k = (float(value) for value in spacing_mm)
    return i, j, k


def implausible_notes(path: Path | str, spacing_mm: Sequence[float]) -> list[str]:
    """A note where voxels are no size that scanners make; a `ScanError` where they are none that anything makes."""
    if not (POSSIBLE_MM[0] <= min(spacing_mm) and max(spacing_mm) <= POSSIBLE_MM[1]):
        raise ScanError(
            f"{path}: voxels of {lengths(spacing_mm)} mm cannot be, so no volume or distance would be true; repair the "
            "header, or convert the scan again from its source"
        )
    if PLAUSIBLE_MM[0] <= min(spacing_mm) and max(spacing_mm) <= PLAUSIBLE_MM[1]:
        return []
    return [f"voxels of {lengths(spacing_mm)} mm are implausible: see that the header counts in the unit it names"]


def lengths(spacing_mm: Iterable[float]) -> str:
    """As people write them: "0.8 x 0.8 x 5"."""
    return " x ".join(f"{size:.4g}" for size in spacing_mm)


def check_size(path: Path, shape: Sequence[int], max_voxels: int) -> None:
    """A `ScanError` if a grid of this shape has more than `max_voxels`."""
    if prod(shape) > max_voxels:
        size = " x ".join(str(length) for length in shape)
        raise ScanError(
            f"{path}: at most {max_voxels} voxels are read, the header asks for {size}; crop or downsample it, "
            "or raise max_voxels if the file is trusted"
        )


def affine_of_header(
    path: Path,
    header: nibabel.Nifti1Header,
    shape: tuple[int, int, int],
    assume_spacing_mm: Sequence[float] | None = None,
) -> tuple[np.ndarray, int, list[str]]:
    """The affine (4, 4) of a NIfTI header, the code of its world space, and a note for every decision.

    The rule: the sform if its code is above 0, else the qform, else `assume_spacing_mm` with axes taken as R,
    A, S, else refused. Where both forms are set and disagree, the sform holds and a note gives the size of
    the difference; they are refused if they differ by a voxel or more at some corner of the grid *and* name
    other axis codes or another handedness, because then left and right may be exchanged. `pixdim` counts only
    for the qform; where it contradicts an sform, or voxels are no size that scanners make, a note says so. Columns up
    to `MAX_SHEAR_DEGREES` from orthogonal get a note, beyond it are refused;
    oblique is fine. A header in metres or micrometres is brought to mm with a note; one that names no unit is
    taken as mm.
    """
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    notes: list[str] = []
    if sform_code > 0:
        affine, code = _in_mm(header, np.asarray(header.get_sform())), sform_code
        _check_affine(path, affine, "sform")
        notes += shear_notes(path, affine) + _pixdim_notes(header, affine)
        if qform_code > 0:
            notes += _compare_forms(path, header, affine, shape)
    elif qform_code > 0:
        affine, code = _qform_of(path, header), qform_code
    elif assume_spacing_mm is not None:
        spacing = checked_spacing(assume_spacing_mm)
        notes.append(f"no geometry in the header: spacing {spacing} mm assumed, axes taken as R, A, S")
        return np.diag([*spacing, 1.0]), 1, notes
    else:
        raise ScanError(
            f"{path}: the header must say where the voxels lie, but sform_code and qform_code are both 0; "
            "write the affine into the file, or give assume_spacing_mm if the axes are known to be R, A, S"
        )
    unit, factor = unit_of(header)
    if factor != 1:
        notes.append(f"the header counts in {unit}: brought to mm, times {factor:g}")
    notes += implausible_notes(path, spacing_of(affine))
    return affine, code, [*notes, *unused_spacing_notes(assume_spacing_mm)]


def affine_of_axes(
    path: Path, steps_mm: np.ndarray, origin_mm: np.ndarray, to_ras: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """The affine (4, 4) of a grid whose axes the file gives as vectors, and notes.

    Args:
        path: what messages name.
        steps_mm: (3, 3), in column a the way from a voxel to the next along array axis a, in the file's own space.
        origin_mm: (3,) the centre of the first voxel, in the same space.
        to_ras: (3, 3), what turns that space into RAS.

    Raises:
        ScanError: an axis has no length, voxels are no size that anything has, or axes are not at right angles.
    """
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = to_ras @ steps_mm, to_ras @ origin_mm
    affine += 0.0  # no zero is negative
    _check_affine(path, affine, "grid")
    notes = implausible_notes(path, spacing_of(affine))
    return affine, [*shear_notes(path, affine), *notes]


def assumed_affine(path: Path, assume_spacing_mm: Sequence[float] | None, found: str) -> tuple[np.ndarray, list[str]]:
    """The affine of a file that does not say where its voxels lie (`found` tells what it says), and a note.

    Raises:
        ScanError: no spacing is assumed.
    """
    if assume_spacing_mm is None:
        raise ScanError(
            f"{path}: the header must say where the voxels lie, found {found}; save it in a program that writes it, "
            "or give assume_spacing_mm if the axes are known to be R, A, S"
        )
    spacing = checked_spacing(assume_spacing_mm)
    return np.diag([*spacing, 1.0]), [f"{found} in the header: spacing {spacing} mm assumed, axes taken as R, A, S"]


def unused_spacing_notes(assume_spacing_mm: Sequence[float] | None) -> list[str]:
    """A note where a spacing was given for a file that has its own geometry."""
    if assume_spacing_mm is None:
        return []
    return [f"assumed spacing {tuple(assume_spacing_mm)} not used: the file has its own geometry"]


def _pixdim_notes(header: nibabel.Nifti1Header, sform: np.ndarray) -> list[str]:
    """A note where the sizes of voxels contradict the sform; sizes that are none say nothing."""
    told, used = np.array(header["pixdim"][1:4], np.float64) * unit_of(header)[1], np.array(spacing_of(sform))
    told = np.where((told > 0) & np.isfinite(told) & (np.arange(3) < int(header["dim"][0])), told, used)
    if np.allclose(told, used, rtol=0.01):
        return []
    return [
        f"pixdim says that voxels are {lengths(told)} mm, the sform {lengths(used)} mm: the sform is used; if it is "
        "wrong, so are all volumes and distances"
    ]


def unit_of(header: nibabel.Nifti1Header) -> tuple[str, float]:
    """The header's unit of length, and how many mm it is (nifti1.h: the three lowest bits of xyzt_units)."""
    return {1: ("metres", 1e3), 3: ("micrometres", 1e-3)}.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))


def _in_mm(header: nibabel.Nifti1Header, affine: np.ndarray) -> np.ndarray:
    scaled = affine.astype(np.float64)
    scaled[:3] *= unit_of(header)[1]
    return scaled


def _check_affine(path: Path, affine: np.ndarray, name: str) -> None:
    if not np.isfinite(affine).all() or min(spacing_of(affine)) <= 0:
        rows = np.array2string(affine[:3], separator=", ", precision=4).replace("\n", "")
        raise ScanError(
            f"{path}: the {name} must be finite with no zero column, found {rows}; repair the header, or "
            "convert the scan again from its source"
        )


def _qform_of(path: Path, header: nibabel.Nifti1Header) -> np.ndarray:
    header = header.copy()
    pixdim = header["pixdim"]
    pixdim[0] = -1 if pixdim[0] < 0 else 1  # the standard: a qfac that is not negative is 1
    for axis in range(int(header["dim"][0]), 3):  # an axis that a 2-D file does not have needs no size
        pixdim[1 + axis] = pixdim[1 + axis] if pixdim[1 + axis] > 0 else 1
    sizes = [float(value) for value in pixdim[1:4]]
    if not all(np.isfinite(value) and value > 0 for value in sizes):
        raise ScanError(
            f"{path}: pixdim must be three positive voxel sizes, found {sizes}; repair the header, "
            "or convert the scan again from its source"
        )
    try:
        affine = _in_mm(header, np.asarray(header.get_qform()))
    except ValueError as error:
        raise ScanError(
            f"{path}: the qform must hold a rotation, but its quaternion is none ({error}); repair the "
            "header, or convert the scan again from its source"
        ) from error
    _check_affine(path, affine, "qform")
    return affine


def _compare_forms(
    path: Path, header: nibabel.Nifti1Header, sform: np.ndarray, shape: tuple[int, int, int]
) -> list[str]:
    try:
        qform = _qform_of(path, header)
    except ScanError as error:
        return [f"sform used, qform unreadable: {str(error).removeprefix(f'{path}: ')}"]
    corners = np.array(list(product(*[(0, size - 1) for size in shape], [1])), np.float64)
    distance = float(np.linalg.norm(corners @ (sform - qform)[:3].T, axis=1).max())
    voxels = distance / min(spacing_of(sform))
    codes, other = axis_codes(sform), axis_codes(qform)
    mirrored = np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0
    if voxels >= 1 and (codes != other or mirrored):
        raise ScanError(
            f"{path}: sform and qform must agree on orientation, but the sform says {codes} and the qform "
            f"{other} (up to {distance:.1f} mm apart{', mirrored' if mirrored else ''}); find out which is "
            "right, and set the code of the other to 0"
        )
    if voxels < 0.01:  # float32 quaternions round
        return []
    return [f"sform and qform differ by up to {distance:.3g} mm ({voxels:.3g} voxels): the sform is used"]


def shear_notes(path: Path | str, affine: np.ndarray) -> list[str]:
    """A note where axes are not quite orthogonal; a `ScanError` where they are far from it."""
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = float(np.abs(directions.T @ directions - np.eye(3)).max())
    degrees = float(np.degrees(np.arcsin(min(cosine, 1.0))))
    if degrees > MAX_SHEAR_DEGREES:
        raise ScanError(
            f"{path}: the axes of the grid must be orthogonal to within {MAX_SHEAR_DEGREES:g} degrees, "
            f"found {degrees:.1f} degrees of shear (a tilted gantry?); resample it first, for example with "
            "nibabel.processing.resample_to_output"
        )
    return [f"axes {degrees:.2f} degrees from orthogonal: shear ignored"] if cosine > SILENT_COSINE else []
