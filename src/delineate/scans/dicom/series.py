"""DICOM in: a series of images, or one image, as a `Scan`.

Files are read by a child process with limits (`delineate.scans.dicom.limits`): a trap ends in one line.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from delineate.errors import ScanError
from delineate.prompts.anatomy import MODALITY_CODES
from delineate.prompts.modality import modality_code
from delineate.scans.dicom.limits import ask_child
from delineate.scans.dicom.source import DicomSource, files_in, is_dicom, shifted, straight
from delineate.scans.geometry import FLAT_AFFINE, RAS_FROM_LPS, implausible_notes, spacing_of
from delineate.scans.intensity import in_hounsfield_units
from delineate.scans.scan import MAX_VOXELS, Scan

__all__ = ["is_dicom", "read_series"]

TILTED = 0.1  # pixels over the whole stack: less shear than this is rounding


def read_series(
    path: Path | str,
    *,
    series: str | int | None = None,
    fill_gaps: bool = False,
    modality: str | None = None,
    volume: int | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Scan:
    """The DICOM series in a folder, or one DICOM file, as float32 voxels.

    The array is (slices, rows, columns): rows and columns as stored, slices in the order of their positions along
    row direction × column direction, whatever the files are called. An axial series thus grows to S, P and L.
    Oblique series keep their exact place. A tilted gantry is undone: slices are moved within their plane onto an
    orthogonal grid, with a note. Images without a place in the patient (radiographs, ultrasound, photographs) are
    flat, (1, rows, columns) or in colour (1, rows, columns, 3).

    Values are rescaled (CT: Hounsfield units, or a note says that they are none); padding gets the smallest real
    value; MONOCHROME1 is turned round so that large is bright, CT and PET excepted. Every decision is a note.
    `Scan.dicom` remembers the instances, for `seg.write_seg`.

    Args:
        path: a folder (files directly in it are read) or a file.
        series: number or UID, where a folder holds several.
        fill_gaps: make up missing slices from their neighbours, and resample uneven ones, instead of refusing them.
        modality: in any usual spelling, in place of the one in the files.
        volume: which of several images at every position (echoes, time points), or which frame of a flat one.
        max_voxels: the most voxels that are read.

    Raises:
        ScanError: in one line: no DICOM, several series, a gap, several planes, several images at a place, colours in a
            volume, something that is no image, a damaged file, one that would take more than its header accounts for;
            or pydicom is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder; check the path")
    alone = not path.is_dir()
    files = [path] if alone else files_in(path)
    if not files:
        raise ScanError(f"{path}: a DICOM folder must hold files, found none directly in it; name another folder")
    job = {
        "job": "read",
        "name": str(path),
        "files": [str(file) for file in files],
        "alone": alone,
        "series": None if series is None else str(series).strip(),
        "volume": volume,
        "fill_gaps": fill_gaps,
        "modality": modality_code(modality),
        "max_voxels": max_voxels,
    }
    with tempfile.TemporaryDirectory(prefix="delineate-") as temporary:
        size = sum(file.stat().st_size for file in files)
        told = ask_child(job, Path(temporary), size=size, array_bytes=44 * max_voxels, name=str(path))
        voxels = np.load(Path(temporary) / "voxels.npy", allow_pickle=False)
    return _scan(path, files, told, voxels, modality_code(modality))


def _scan(path: Path, files: list[Path], told: dict[str, Any], voxels: np.ndarray, modality: str | None) -> Scan:
    used = list(dict.fromkeys(place[0] for place in told["frames"] if place is not None))
    frames = tuple(None if place is None else (used.index(place[0]), place[1]) for place in told["frames"])
    size, notes, shifts = (voxels.shape[1], voxels.shape[2]), list(told["notes"]), None
    if told["placed"]:
        affine, shifts, grown = _placed(told, size, len(voxels))
        if shifts is not None:
            low = float(voxels.min())
            voxels = shifted(voxels, -shifts, grown, low)
            step, normal = np.array(told["step"]), np.array(told["normal"])
            tilt = np.degrees(np.arctan2(np.linalg.norm(step - (step @ normal) * normal), step @ normal))
            notes.append(
                f"gantry tilted by {tilt:.1f} degrees: slices moved within their plane onto an orthogonal grid, "
                f"{grown[0]} x {grown[1]} instead of {size[0]} x {size[1]}, {low:g} outside"
            )
    else:
        affine = FLAT_AFFINE * [1.0, *told["pixel"], 1.0]
    source = DicomSource(tuple(files[n] for n in used), frames, told["placed"], tuple(told["missing"]), size, shifts)
    stated = told["modality"]
    named = modality or MODALITY_CODES.get(stated.lower(), stated if stated not in ("", "OT") else None)
    voxels, named, more = in_hounsfield_units(voxels, named, told["placed"])
    notes += (*more, *(implausible_notes(path, spacing_of(affine)) if told["has_spacing"] else ()))
    return Scan(voxels, affine, named, path, told["has_spacing"], tuple(notes), dicom=source)


def _placed(
    told: dict[str, Any], size: tuple[int, int], count: int
) -> tuple[np.ndarray, np.ndarray | None, tuple[int, int]]:
    """The affine (4, 4) RAS+ of the scan; shifts of a tilted series, None of a straight one; rows and columns."""
    origin, step, normal = (np.array(told[key], np.float64) for key in ("origin", "step", "normal"))
    in_plane = np.array([told["row"], told["column"]], np.float64)
    shifts, grown = straight(step, in_plane, size, count)
    if count > 1 and shifts.max() > TILTED:
        origin = origin - shifts[0] @ in_plane
        step = (step @ normal) * normal
    else:
        shifts, grown = None, size
    affine = np.eye(4)
    affine[:3, :3] = RAS_FROM_LPS @ np.column_stack([step, *in_plane])
    affine[:3, 3] = RAS_FROM_LPS @ origin
    return affine, shifts, grown
