"""Scans and label maps out of files: NIfTI, NRRD, MetaImage, DICOM series, PNG, JPEG, TIFF, on their own grid.

Files come from strangers: every header is checked against the file's size before any voxel is allocated, and
every refusal is one line of `ScanError` that names the file, what must hold, what was found and what to do.
The formats themselves are read by `delineate.scans.nifti`, `delineate.scans.nrrd`, `delineate.scans.metaimage`,
`delineate.scans.flat_images` and `delineate.scans.dicom.series`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from delineate.errors import ScanError
from delineate.prompts.modality import modality_code
from delineate.scans import flat_images, nifti
from delineate.scans.archives import in_words, is_archive
from delineate.scans.dicom.source import DICOM_SUFFIXES
from delineate.scans.finding import Found, Kind
from delineate.scans.flat_images import read_flat
from delineate.scans.geometry import FLAT_AFFINE, checked_spacing
from delineate.scans.intensity import HAVE_UNITS, in_hounsfield_units, is_narrow
from delineate.scans.metaimage import META_SUFFIXES, read_metaimage
from delineate.scans.nifti import header_of, read_nifti
from delineate.scans.nrrd import NRRD_SUFFIXES, SEGMENTATION_SUFFIX, read_nrrd
from delineate.scans.scan import MAX_VOXELS, SCAN_SUFFIXES, VOLUME_SUFFIXES, Scan, suffix_of
from delineate.scans.volumes import Stored

_VOLUME_READERS = {**dict.fromkeys(NRRD_SUFFIXES, read_nrrd), **dict.fromkeys(META_SUFFIXES, read_metaimage)}


def read_scan(
    path: Found | Path | str,
    *,
    modality: str | None = None,
    volume: int | None = None,
    assume_spacing_mm: Sequence[float] | None = None,
    max_voxels: int = MAX_VOXELS,
    series: str | int | None = None,
    fill_gaps: bool = False,
) -> Scan:
    """The image in `path` in the file's own array order: whole numbers of 16 bits as stored, all else as float32.

    NIfTI: `scl_slope` and `scl_inter` are applied. NaN and infinite voxels become the smallest finite value
    and are counted in a note; a trailing axis of size 1 is dropped with a note. Which affine is trusted is
    written in `delineate.scans.geometry.affine_of_header`: the sform before the qform, with a note if they differ;
    metres and micrometres become mm, with a note. A pair is named by its `.hdr` or its `.img`.
    NRRD, MetaImage: axes are turned from the space that the file names (L, P, S as a rule) to R, A, S; a file that
    names none is refused, or read with `assume_spacing_mm`. Voxels may lie in one file beside the header.
    PNG, JPEG, TIFF: 8 and 16 bits keep their values; alpha is dropped and the EXIF orientation applied, with
    notes. DICOM: see `delineate.scans.dicom.series.read_series`.

    Args:
        path: A file whose suffix is in `SCAN_SUFFIXES`, a DICOM file, or a folder with a DICOM series.
        modality: CT, MR, US, ... in any usual spelling (`delineate.prompts.modality`). None where it is not known: a
            volume with values down to -500 or below is then taken for CT, with a note. CT is brought to Hounsfield
            units, or a note says that it is in none (`delineate.scans.intensity`).
        volume: Which volume of a 4-D file, from 0.
        assume_spacing_mm: Spacing along the array's axes (for 2-D images: slice, row, column), used only
            where the file holds no geometry.
        max_voxels: The most voxels that are read; what a file asks for beyond it is refused.
        series: DICOM only: which series of a folder, by number or UID.
        fill_gaps: DICOM only: make up missing slices from their neighbours, and resample uneven ones.

    Raises:
        ScanError: In one line, if the file is missing, a directory, empty or of another suffix; damaged, cut
            short or not what its suffix says; larger than `max_voxels` or than its own bytes can hold;
            without voxels; complex, 128-bit, or a volume in colour; a segmentation (`.seg.nrrd`); 4-D without
            `volume`, or of several pages; without any finite value; without geometry (both NIfTI codes 0, no named
            space in NRRD, no spacing in MetaImage), with a zero or NaN affine, a bad pixdim
            where it is needed, forms that disagree on orientation, or more than 2 degrees of shear.
    """
    found = path if isinstance(path, Found) else Found.at(path)
    path = found.path
    if found.kind is Kind.DICOM or (suffix_of(path) in DICOM_SUFFIXES and path.exists()):
        from delineate.scans.dicom.series import read_series

        options: dict[str, Any] = {"series": series, "fill_gaps": fill_gaps, "volume": volume, "max_voxels": max_voxels}
        return read_series(path, modality=modality, **options)
    if series is not None or fill_gaps:
        raise ScanError(f"{path}: a series and the filling of gaps are for DICOM, this is none; leave them out")
    if suffix_of(path) == SEGMENTATION_SUFFIX:
        raise ScanError(f"{path}: a scan must be an image, this holds segments; name the scan they were drawn on")
    modality = modality_code(modality)
    stored = _read(path, volume, assume_spacing_mm, max_voxels, measured=modality in HAVE_UNITS)
    voxels, notes = finite(path, _scaled(stored))
    voxels, modality, more = in_hounsfield_units(voxels, modality, stored.has_spacing)
    notes = (*stored.notes, *notes, *more)
    return Scan(voxels, stored.affine, modality, path, stored.has_spacing, notes, stored.space_code, stored.forms)


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
    path = header_of(Path(path))
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
    labels = np.asarray(values, label_dtype(path, values))
    return Scan(labels, stored.affine, None, path, stored.has_spacing, notes, stored.space_code, stored.forms)


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _read(
    path: Path,
    volume: int | None,
    spacing: Sequence[float] | None,
    max_voxels: int,
    *,
    as_labels: bool = False,
    measured: bool = False,
) -> Stored:
    suffix = suffix_of(path)
    if path.is_dir():
        raise ScanError(
            f"{path}: a scan must be a file or a DICOM series, found a directory without one; name a file inside it"
        )
    if not path.exists():
        raise ScanError(f"{path}: no such file; check the path")
    if is_archive(path):
        raise ScanError(f"{path}: {in_words(path)}")
    if suffix == ".img":
        raise ScanError(f"{path}: a .img file needs its header {path.stem}.hdr beside it; copy both files")
    if suffix not in SCAN_SUFFIXES:
        raise ScanError(
            f"{path}: the suffix must be one of {', '.join(SCAN_SUFFIXES)}, or the file DICOM, found '{suffix}'; "
            "convert the file first"
        )
    if path.stat().st_size == 0:
        raise ScanError(f"{path}: a scan must hold data, found an empty file; copy or convert it again")
    is_volume = suffix in VOLUME_SUFFIXES
    if not is_volume and volume not in (None, 0):
        raise ScanError(f"{path}: a 2-D image holds volume 0 only, asked for {volume}; leave volume out")
    damage = nifti.DAMAGE if is_volume else flat_images.DAMAGE
    try:
        if is_volume:
            return _VOLUME_READERS.get(suffix, read_nifti)(path, volume, spacing, max_voxels)
        pixels, notes = read_flat(path, max_voxels, as_labels, measured)
    except damage as error:
        raise ScanError(
            f"{path}: a file must be readable to its end, but this one is damaged or not what its suffix says "
            f"({first_line(error)}); copy or convert it again"
        ) from error
    if spacing is None:
        return Stored(pixels[None], FLAT_AFFINE, tuple(notes), has_spacing=False)
    spacing = checked_spacing(spacing)
    notes.append(f"spacing {spacing} mm as given by the caller")
    return Stored(pixels[None], FLAT_AFFINE * [*spacing, 1.0], tuple(notes))


def _scaled(stored: Stored) -> np.ndarray:
    """Voxels as they are meant; slice by slice, so that the float64 in between stays small."""
    values, slope, inter = stored.values, stored.slope, stored.inter
    if (slope, inter) == (1.0, 0.0) and is_narrow(values.dtype):
        return np.asarray(values, np.uint8 if values.dtype == bool else values.dtype.newbyteorder("="))
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 is infinite, and counted as such
        if (slope, inter) == (1.0, 0.0):
            return values.astype(np.float32)
        voxels = np.empty(values.shape, np.float32, order="F")
        for k in range(values.shape[2]):
            voxels[:, :, k] = values[:, :, k].astype(np.float64) * slope + inter
    return voxels


def finite(source: Path | str, voxels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """The voxels, changed in place: what is not finite becomes the smallest finite value; a note if there was any."""
    if voxels.dtype.kind != "f":
        return voxels, ()
    slabs = np.array_split(voxels, max(1, voxels.nbytes >> 26), axis=-1 if voxels.flags.f_contiguous else 0)
    if all(np.isfinite(slab).all() for slab in slabs):  # piece by piece: a scan may fill most of the memory
        return voxels, ()
    broken = ~np.isfinite(voxels)
    count = int(broken.sum())
    if count == voxels.size:
        raise ScanError(f"{source}: a scan must hold finite values, found only NaN or infinity; convert it again")
    smallest = voxels[~broken].min()
    voxels[broken] = smallest
    return voxels, (f"{count} NaN or infinite voxels replaced by the smallest finite value, {smallest:g}",)


def label_dtype(path: Path, labels: np.ndarray) -> type:
    """The narrowest of uint8, uint16 and int32 that holds all labels. Raises `ScanError` where none does."""
    low, high = labels.min(), labels.max()
    for dtype in (np.uint8, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    raise ScanError(f"{path}: labels must fit into 32 bits, found {low} to {high}; renumber them")
