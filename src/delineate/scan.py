"""Images and label maps in and out of files: NIfTI, DICOM series, PNG, JPEG, TIFF pictures, on their own grid.

Files come from strangers: every header is checked against the file's size before any voxel is allocated, and
every refusal is one line of `ScanError` that names the file, what must hold, what was found and what to do.
The formats themselves are read and written by `delineate.nifti`, `delineate.flat_images` and `delineate.dicom.series`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from delineate import anatomy, flat_images, nifti
from delineate.dicom.source import DICOM_SUFFIXES, DicomSource, is_dicom
from delineate.errors import ScanError
from delineate.files import replacing
from delineate.flat_images import PICTURE_SUFFIXES, TIFF_SUFFIXES, read_flat, write_flat
from delineate.geometry import (
    CANONICAL,
    FLAT_AFFINE,
    Orientation,
    axis_codes,
    canonical_spacing,
    checked_spacing,
    from_canonical,
    orientation_of,
    spacing_of,
    to_canonical,
)
from delineate.nifti import NIFTI_SUFFIXES, Stored, read_nifti, write_nifti

__all__ = [
    "CANONICAL",
    "FLAT_AFFINE",
    "MAX_VOXELS",
    "SCAN_SUFFIXES",
    "Orientation",
    "Scan",
    "canonical_spacing",
    "from_canonical",
    "is_scan_file",
    "orientation_of",
    "read_labels",
    "read_scan",
    "stem_of",
    "to_canonical",
    "write_labels",
    "write_map",
    "write_scan",
]

SCAN_SUFFIXES = (*NIFTI_SUFFIXES, *PICTURE_SUFFIXES, *TIFF_SUFFIXES)
MAX_VOXELS = 1_000_000_000


AIR_HU = -500
"""No other modality stores such values as a rule; CT shows air near -1000."""


@dataclass(frozen=True, eq=False)
class Scan:
    """An image with its geometry.

    Attributes:
        voxels: (I, J, K), or in colour (I, J, K, 3), in the file's own array order.
            2-D images are (1, H, W) or (1, H, W, 3).
        affine: (4, 4) float64, voxel index to world mm, RAS+.
        modality: "CT", "MR", "US", ... as declared by who reads it.
        source: The file it came from; of a DICOM series the folder.
        has_spacing: False for PNG, JPEG and TIFF: a pixel is then 1 mm by convention only.
        notes: One line for every decision taken while reading.
        space_code: NIfTI's code of the world space (1 scanner, 2 aligned, 4 MNI), kept in what is written.
        dicom: The instances it was read from, if it comes from DICOM.
    """

    voxels: np.ndarray
    affine: np.ndarray
    modality: str | None = None
    source: Path | None = None
    has_spacing: bool = True
    notes: tuple[str, ...] = ()
    space_code: int = 1
    dicom: DicomSource | None = None

    def __post_init__(self):
        object.__setattr__(self, "affine", np.array(self.affine, dtype=np.float64))
        if self.affine.shape != (4, 4):
            raise ScanError(f"an affine must have shape (4, 4), got {self.affine.shape}")
        if self.voxels.shape[3:] not in ((), (3,)) or self.voxels.ndim < 3:
            raise ScanError(f"voxels must have shape (I, J, K) or (I, J, K, 3), got {self.voxels.shape}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K): the size of the grid, without the colour axis."""
        i, j, k = self.voxels.shape[:3]
        return i, j, k

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The distance in mm between neighbouring voxels along each array axis."""
        return spacing_of(self.affine)

    @property
    def is_colour(self) -> bool:
        """Whether a voxel holds red, green and blue."""
        return self.voxels.ndim == 4

    @property
    def is_flat(self) -> bool:
        """Whether it is a 2-D image: DICOM without a place, or not NIfTI, one slice, oriented as `FLAT_AFFINE`."""
        if self.dicom is not None:
            return not self.dicom.placed
        nifti = self.source is not None and _suffix_of(self.source) in NIFTI_SUFFIXES
        return not nifti and self.shape[0] == 1 and orientation_of(self.affine) == Orientation()

    @property
    def axis_codes(self) -> str:
        """The direction in which each array axis grows, such as "LPS"."""
        return axis_codes(self.affine)


def is_scan_file(path: Path | str) -> bool:
    """Whether `path` is named like a file that `read_scan` takes; hidden names ("._x") are not."""
    return not Path(path).name.startswith(".") and _suffix_of(path) in SCAN_SUFFIXES


def stem_of(path: Path | str) -> str:
    """The file's name without its suffix, ".nii.gz" being one.

    >>> stem_of("scans/case_0000.nii.gz"), stem_of("polyp.v2.png")
    ('case_0000', 'polyp.v2')
    """
    return Path(path).name[: -len(suffix)] if (suffix := _suffix_of(path)) else Path(path).name


def read_scan(
    path: Path | str,
    *,
    modality: str | None = None,
    volume: int | None = None,
    assume_spacing_mm: Sequence[float] | None = None,
    max_voxels: int = MAX_VOXELS,
    series: str | int | None = None,
    fill_gaps: bool = False,
) -> Scan:
    """The image in `path` as float32 voxels, in the file's own array order.

    NIfTI: `scl_slope` and `scl_inter` are applied. NaN and infinite voxels become the smallest finite value
    and are counted in a note; a trailing axis of size 1 is dropped with a note. Which affine is trusted is
    written in `delineate.geometry.affine_of_header`: the sform before the qform, with a note if they differ;
    metres and micrometres become mm, with a note.
    PNG, JPEG, TIFF: 8 and 16 bits keep their values; alpha is dropped and the EXIF orientation applied, with
    notes. DICOM: see `delineate.dicom.series.read_series`.

    Args:
        path: A file whose suffix is in `SCAN_SUFFIXES`, a DICOM file, or a folder with a DICOM series.
        modality: CT, MR, US, ... in any usual spelling. None where it is not known: a volume with values down to
            -500 or below is then taken for CT in Hounsfield units, with a note.
        volume: Which volume of a 4-D file, from 0.
        assume_spacing_mm: Spacing along the array's axes (for 2-D images: slice, row, column), used only
            where the file holds no geometry.
        max_voxels: The most voxels that are read; what a file asks for beyond it is refused.
        series: DICOM only: which series of a folder, by number or UID.
        fill_gaps: DICOM only: make up missing slices from their neighbours instead of refusing them.

    Raises:
        ScanError: In one line, if the file is missing, a directory, empty or of another suffix; damaged, cut
            short or not what its suffix says; larger than `max_voxels` or than its own bytes can hold;
            without voxels; complex, RGB NIfTI or 128-bit; 4-D without `volume`, or of several pages; without
            any finite value; without geometry (both NIfTI codes 0), with a zero or NaN affine, a bad pixdim
            where it is needed, forms that disagree on orientation, or more than 2 degrees of shear.
    """
    path = Path(path)
    if _is_read_as_dicom(path):
        from delineate.dicom.series import read_series

        options: dict[str, Any] = {"series": series, "fill_gaps": fill_gaps, "volume": volume, "max_voxels": max_voxels}
        return read_series(path, modality=modality, **options)
    if series is not None or fill_gaps:
        raise ScanError(f"{path}: a series and the filling of gaps are for DICOM, this is none; leave them out")
    stored = _read(path, volume, assume_spacing_mm, max_voxels)
    voxels, notes = _finite(path, _scaled(stored))
    notes = stored.notes + notes
    if modality is not None:
        modality = anatomy.MODALITY_CODES.get(modality.strip().lower(), modality.strip())
    elif stored.has_spacing and voxels.min() <= AIR_HU:
        modality = "CT"
        notes += (f"taken for CT: values go down to {voxels.min():g}",)
    return Scan(voxels, stored.affine, modality, path, stored.has_spacing, notes, stored.space_code)


def read_labels(
    path: Path | str,
    *,
    assume_spacing_mm: Sequence[float] | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Scan:
    """The label map in `path`, as the smallest of uint8, uint16 and int32 that holds its values.

    Values stay as stored (a PNG mask of 0 and 255 is not made 0 and 1). Floats are accepted where each is
    within 1e-4 of a whole number. An RGB mask with equal channels is reduced to one; a palette image gives
    its indices.

    Raises:
        ScanError: As `read_scan`; and for fractional or NaN values, colours, values beyond int32.
    """
    path = Path(path)
    stored = _read(path, None, assume_spacing_mm, max_voxels, as_labels=True)
    values, notes = stored.values, stored.notes
    if values.ndim == 4:
        if (values != values[..., :1]).any():
            raise ScanError(f"{path}: a mask must hold one number a pixel, found colours; save class indices instead")
        values, notes = values[..., 0], (*notes, "three equal channels reduced to one")
    if (stored.slope, stored.inter) != (1.0, 0.0):
        values = values.astype(np.float64) * stored.slope + stored.inter
    if values.dtype.kind == "f":
        whole = np.rint(values)
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, and NaN is not whole
            # not exactly: scl_slope is a float32, and 255 * (1 / 255) is not quite 1
            broken = ~(np.abs(values - whole) <= 1e-4)
        if broken.any():
            raise ScanError(
                f"{path}: labels must be whole numbers, found {values[broken][0]:g} and "
                f"{int(broken.sum()) - 1} more; threshold a probability map, or resample labels with "
                "nearest neighbours"
            )
        values = whole
    labels = np.asarray(values, _label_dtype(path, values))
    return Scan(labels, stored.affine, None, path, stored.has_spacing, notes, stored.space_code)


def write_labels(path: Path | str, labels: np.ndarray, like: Scan) -> Path:
    """Write `labels` on the grid of `like`, and return the path.

    The dtype follows the values: uint8 up to 255, uint16 up to 65535, else int32 (not in PNG). A bool mask
    becomes 0 and 1 in NIfTI, 0 and 255 in PNG and TIFF. The file is read back and compared before it takes
    its name; if anything fails, a file that was there stays as it was.

    Args:
        path: ".nii" or ".nii.gz"; for flat scans also ".png", ".tif" or ".tiff".
        labels: Integer or bool, (I, J, K) = `like.shape`.
        like: The scan that the labels belong to.

    Raises:
        ScanError: If shape, dtype, values or suffix do not fit, or the file cannot be written.
    """
    path, labels = Path(path), np.asarray(labels)
    suffix = _checked_target(path, labels, like)
    if labels.dtype.kind not in "biu":
        raise ScanError(f"{path}: labels must be integers or bool, got {labels.dtype}; round or threshold them first")
    stored = labels.astype(_label_dtype(path, labels))
    if labels.dtype == bool and suffix not in NIFTI_SUFFIXES:
        stored *= 255
    if suffix == ".png" and stored.dtype == np.int32:
        raise ScanError(f"{path}: PNG holds labels 0 to 65535, got {labels.min()} to {labels.max()}; write .tif")
    return _write(path, stored, like, read_labels)


def write_map(path: Path | str, values: np.ndarray, like: Scan) -> Path:
    """Write a map in [0, 1], such as a probability or a doubt, on the grid of `like`, and return the path.

    NIfTI and TIFF hold float32; PNG holds 8 bits, 0 to 255. Checked and renamed as by `write_labels`.

    Args:
        path: ".nii" or ".nii.gz"; for flat scans also ".png", ".tif" or ".tiff".
        values: Floats in [0, 1], (I, J, K) = `like.shape`.
        like: The scan that the map belongs to.

    Raises:
        ScanError: If shape, values or suffix do not fit, or the file cannot be written.
    """
    path, values = Path(path), np.asarray(values, np.float32)
    suffix = _checked_target(path, values, like)
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # rounding passes, NaN does not
        raise ScanError(f"{path}: a map must lie in [0, 1], got {low:g} to {high:g}; clip or normalise it first")
    values = values.clip(0, 1)
    return _write(path, np.rint(values * 255).astype(np.uint8) if suffix == ".png" else values, like, read_scan)


def write_scan(path: Path | str, scan: Scan) -> Path:
    """Write a scan, and return the path.

    NIfTI holds whole numbers in 16 bits where these suffice, everything else as float32. PNG and TIFF hold whole
    numbers from 0 on, in 8 bits or 16 (in colour 8): values are rounded and clipped. Checked and renamed as by
    `write_labels`.

    Args:
        path: ".nii" or ".nii.gz"; for flat scans also ".png", ".tif" or ".tiff".
        scan: what to write; in colour only for flat scans.

    Raises:
        ScanError: If values or suffix do not fit, or the file cannot be written.
    """
    path, values = Path(path), np.asarray(scan.voxels, np.float32)
    suffix = _checked_target(path, values[..., 0] if scan.is_colour else values, scan)
    if scan.is_colour and suffix in NIFTI_SUFFIXES:
        raise ScanError(f"{path}: a colour image is written as PNG or TIFF")
    if suffix not in NIFTI_SUFFIXES:
        values = np.rint(values).clip(0, 255 if scan.is_colour or values.max() <= 255 else 65535)
        stored = values.astype(np.uint8 if values.max() <= 255 else np.uint16)
    else:
        whole = np.array_equal(values, np.rint(values)) and np.abs(values).max(initial=0) <= np.iinfo(np.int16).max
        stored = values.astype(np.int16 if whole else np.float32)
    return _write(path, stored, scan, read_scan)


def _is_read_as_dicom(path: Path) -> bool:
    suffix = _suffix_of(path)
    if not path.exists() or (suffix in SCAN_SUFFIXES and path.is_file()):
        return False
    return suffix in DICOM_SUFFIXES or is_dicom(path)


def _suffix_of(path: Path | str) -> str:
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read(
    path: Path, volume: int | None, spacing: Sequence[float] | None, max_voxels: int, as_labels: bool = False
) -> Stored:
    suffix = _suffix_of(path)
    if path.is_dir():
        raise ScanError(
            f"{path}: a scan must be a file or a DICOM series, found a directory without one; name a file inside it"
        )
    if not path.exists():
        raise ScanError(f"{path}: no such file; check the path")
    if suffix not in SCAN_SUFFIXES:
        raise ScanError(
            f"{path}: the suffix must be one of {', '.join(SCAN_SUFFIXES)}, or the file DICOM, found '{suffix}'; "
            "convert the file first"
        )
    if path.stat().st_size == 0:
        raise ScanError(f"{path}: a scan must hold data, found an empty file; copy or convert it again")
    is_nifti = suffix in NIFTI_SUFFIXES
    if not is_nifti and volume not in (None, 0):
        raise ScanError(f"{path}: a 2-D image holds volume 0 only, asked for {volume}; leave volume out")
    damage = nifti.DAMAGE if is_nifti else flat_images.DAMAGE
    try:
        if is_nifti:
            return read_nifti(path, volume, spacing, max_voxels)
        pixels, notes = read_flat(path, max_voxels, as_labels)
    except damage as error:
        raise ScanError(
            f"{path}: a file must be readable to its end, but this one is damaged or not what its suffix says "
            f"({_line(error)}); copy or convert it again"
        ) from error
    if spacing is None:
        return Stored(pixels[None], FLAT_AFFINE, tuple(notes), has_spacing=False)
    spacing = checked_spacing(spacing)
    notes.append(f"spacing {spacing} mm as given by the caller")
    return Stored(pixels[None], FLAT_AFFINE * [*spacing, 1.0], tuple(notes))


def _scaled(stored: Stored) -> np.ndarray:
    """float32 voxels; slice by slice, so that the float64 in between stays small."""
    values, slope, inter = stored.values, stored.slope, stored.inter
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 is infinite, and counted as such
        if (slope, inter) == (1.0, 0.0):
            return values.astype(np.float32)
        voxels = np.empty(values.shape, np.float32, order="F")
        for k in range(values.shape[2]):
            voxels[:, :, k] = values[:, :, k].astype(np.float64) * slope + inter
    return voxels


def _finite(path: Path, voxels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    broken = ~np.isfinite(voxels)
    count = int(broken.sum())
    if count == 0:
        return voxels, ()
    if count == voxels.size:
        raise ScanError(f"{path}: a scan must hold finite values, found only NaN or infinity; convert it again")
    smallest = voxels[~broken].min()
    voxels[broken] = smallest
    return voxels, (f"{count} NaN or infinite voxels replaced by the smallest finite value, {smallest:g}",)


def _label_dtype(path: Path, labels: np.ndarray) -> type:
    low, high = labels.min(), labels.max()
    for dtype in (np.uint8, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    raise ScanError(f"{path}: labels must fit into 32 bits, found {low} to {high}; renumber them")


def _checked_target(path: Path, array: np.ndarray, like: Scan) -> str:
    suffix = _suffix_of(path)
    accepted = (*NIFTI_SUFFIXES, ".png", *TIFF_SUFFIXES) if like.is_flat else NIFTI_SUFFIXES
    if suffix not in accepted:
        kind = "a 2-D image" if like.is_flat else "a volume"
        raise ScanError(f"{path}: for {kind} the suffix must be one of {', '.join(accepted)}, found '{suffix}'")
    if array.shape != like.shape or not array.size:
        raise ScanError(f"{path}: what is written must have the scan's shape {like.shape}, got {array.shape}")
    return suffix


def _write(path: Path, array: np.ndarray, like: Scan, read: Callable[..., Scan]) -> Path:
    def check(temporary: Path) -> None:
        try:
            back = read(temporary, max_voxels=array.size)
        except ScanError as error:
            raise ScanError(f"{path}: what was written cannot be read ({_line(error)}); nothing was kept") from error
        # NIfTI holds the affine as float32: a micrometre at a metre
        same_place = not is_nifti or np.allclose(back.affine, like.affine, rtol=1e-5, atol=1e-4)
        if not np.array_equal(back.voxels, array) or not same_place:
            raise ScanError(f"{path}: what was written does not read back the same; nothing was kept, check the disk")

    is_nifti = _suffix_of(path) in NIFTI_SUFFIXES
    try:
        with replacing(path, check) as temporary:
            if is_nifti:
                write_nifti(temporary, array, like.affine, like.space_code)
            else:
                write_flat(temporary, array[0])
    except OSError as error:
        raise ScanError(
            f"{path}: cannot be written ({_line(error)}); free space or choose another folder. What was "
            "there is untouched"
        ) from error
    return path
