"""Masks, maps and scans into files."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from delineate.errors import ScanError
from delineate.scans.flat_images import TIFF_SUFFIXES, write_flat
from delineate.scans.label_table import CODES, LabelTable
from delineate.scans.nifti import DAMAGE, NIFTI_SUFFIXES, same_nifti, write_nifti
from delineate.scans.reading import first_line, label_dtype, read_labels, read_scan
from delineate.scans.scan import Scan, suffix_of
from delineate.storage.files import replacing


def write_labels(path: Path | str, labels: np.ndarray, like: Scan, table: LabelTable | None = None) -> Path:
    """Write `labels` on the grid of `like`, and return the path.

    The dtype follows the values: uint8 up to 255, uint16 up to 65535, else int32 (not in PNG); with a table it is the
    table's. A bool mask becomes 0 and 1 in NIfTI, 0 and 255 in PNG and TIFF. The file is read back and compared before
    it takes its name; if anything fails, a file that was there stays as it was.

    Args:
        path: ".nii" or ".nii.gz"; for flat scans also ".png", ".tif" or ".tiff".
        labels: Integer or bool, (I, J, K) = `like.shape`.
        like: The scan that the labels belong to.
        table: What the labels stand for: goes into the header of NIfTI.

    Raises:
        ScanError: If shape, dtype, values or suffix do not fit, or the file cannot be written.
    """
    path, labels = Path(path), np.asarray(labels)
    suffix = _checked_target(path, labels, like)
    if labels.dtype.kind not in "biu":
        raise ScanError(f"{path}: labels must be integers or bool, got {labels.dtype}; round or threshold them first")
    if labels.dtype == bool:
        stored = labels.view(np.uint8)
    else:
        stored = labels.astype(label_dtype(path, labels) if table is None else table.dtype, copy=False)
    if labels.dtype == bool and suffix not in NIFTI_SUFFIXES:
        stored = 255 * stored
    if suffix == ".png" and stored.dtype == np.int32:
        raise ScanError(f"{path}: PNG holds labels 0 to 65535, got {labels.min()} to {labels.max()}; write .tif")
    extensions = () if table is None else [(code, table.caret()) for code in CODES]
    return _write(path, stored, like, read_labels, extensions)


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


def _checked_target(path: Path, array: np.ndarray, like: Scan) -> str:
    suffix = suffix_of(path)
    accepted = (*NIFTI_SUFFIXES, ".png", *TIFF_SUFFIXES) if like.is_flat else NIFTI_SUFFIXES
    if suffix not in accepted:
        kind = "a 2-D image" if like.is_flat else "a volume"
        raise ScanError(f"{path}: for {kind} the suffix must be one of {', '.join(accepted)}, found '{suffix}'")
    if array.shape != like.shape or not array.size:
        raise ScanError(f"{path}: what is written must have the scan's shape {like.shape}, got {array.shape}")
    return suffix


def _write(
    path: Path,
    array: np.ndarray,
    like: Scan,
    read: Callable[..., Scan],
    extensions: Sequence[tuple[int, bytes]] = (),
) -> Path:
    def check(temporary: Path) -> None:
        try:
            if is_nifti:
                same = same_nifti(temporary, array, like.affine)
            else:
                back = read(temporary, max_voxels=array.size)
                same = np.array_equal(back.voxels, array)
        except (ScanError, *DAMAGE) as error:
            raise ScanError(
                f"{path}: what was written cannot be read ({first_line(error)}); nothing was kept"
            ) from error
        if not same:
            raise ScanError(f"{path}: what was written does not read back the same; nothing was kept, check the disk")

    is_nifti = suffix_of(path) in NIFTI_SUFFIXES
    try:
        with replacing(path, check) as temporary:
            if is_nifti:
                write_nifti(temporary, array, like.affine, like.space_code, like.forms, extensions)
            else:
                write_flat(temporary, array[0])
    except OSError as error:
        raise ScanError(
            f"{path}: cannot be written ({first_line(error)}); free space or choose another folder. What was "
            "there is untouched"
        ) from error
    return path
