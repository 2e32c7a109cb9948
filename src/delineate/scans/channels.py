"""Several images of one patient on one grid, as T1 and T2, PET and CT: one scan of several channels."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from delineate.errors import DelineateError, ScanError
from delineate.prompts.anatomy import MODALITIES
from delineate.prompts.modality import modality_code
from delineate.scans.reading import read_scan
from delineate.scans.scan import Scan


def read_channels(files: Sequence[Path], names: Sequence[str]) -> Scan:
    """One scan out of the images of its channels: a file each, or one file that holds a volume each.

    Args:
        files: as many as there are `names`, or one.
        names: what each shows, such as "T1", "FLAIR", "CT"; two or more.

    Raises:
        ScanError: a file cannot be read, or is not on the grid of the first.
    """
    kinds = [modality_of(name) for name in names]
    if len(files) > 1:
        return joined([read_scan(path, modality=kind) for path, kind in zip(files, kinds, strict=True)], names)
    try:
        return joined([read_scan(files[0], modality=kind, volume=k) for k, kind in enumerate(kinds)], names)
    except ScanError as error:
        wanted = f"{', '.join(names)} are a file each, NAME_0000, NAME_0001, …, or one file with a volume each"
        raise ScanError(f"{error} ({wanted})") from error


def joined(scans: Sequence[Scan], names: Sequence[str]) -> Scan:
    """Grey scans of one grid as one scan, which says of each note whose it is.

    Raises:
        ScanError: one is in colour, or not on the grid of the first.
    """
    first = scans[0]
    for scan in scans:
        if scan.is_colour:
            raise ScanError(f"{scan.source}: a channel holds one number a voxel, this image is in colour; convert it")
        if difference := grid_difference(first, scan):
            raise ScanError(
                f"{scan.source}: the channels of a scan share one grid, and beside {first.source} this one has "
                f"{difference}; resample it onto that grid"
            )
    known = {modality_of(name) for name in names}
    modality = known.pop() if len(known) == 1 else None
    notes = tuple(f"{name}: {note}" for name, scan in zip(names, scans, strict=True) for note in scan.notes)
    voxels = np.stack([scan.voxels for scan in scans], axis=-1)
    return replace(first, voxels=voxels, modality=modality, notes=notes, channels=tuple(names))


def modality_of(name: str) -> str | None:
    """The modality that a channel's name tells of: "MR" of T1 or FLAIR; None where it tells of none."""
    try:
        code = modality_code(name)
    except DelineateError:
        return None
    return code if code in MODALITIES else None


def grid_difference(scan: Scan, other: Scan) -> str:
    """How the voxel grids of two images of a patient differ, in words; empty where they agree.

    World positions may differ by a tenth of a voxel at any corner: programs round affines differently. They
    are compared only where both files state a spacing (a PNG has none).
    """
    if scan.shape != other.shape:
        turned = [note for grid in (scan, other) for note in grid.notes if note.startswith("EXIF")]
        said = f" ({turned[0]}: turn both alike, or save both without EXIF)" if turned else ""
        return f"shape {_times(scan.shape)} against {_times(other.shape)} voxels{said}"
    if not (scan.has_spacing and other.has_spacing):
        return ""
    corners = np.array([[i, j, k, 1.0] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    corners[:, :3] *= np.array(scan.shape) - 1
    apart_mm = np.linalg.norm((corners @ (scan.affine - other.affine).T)[:, :3], axis=1).max()
    if apart_mm <= 0.1 * min(scan.spacing_mm):
        return ""
    spacings = [" × ".join(f"{mm:.3g}" for mm in grid.spacing_mm) for grid in (scan, other)]
    return f"corners lie up to {apart_mm:.3g} mm apart (spacing {spacings[0]} against {spacings[1]} mm)"


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape))
