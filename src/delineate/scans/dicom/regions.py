"""SEG and RT Structure Sets in: what somebody drew elsewhere, as masks on the voxels of a scan."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from delineate.errors import ScanError
from delineate.scans.dicom.folders import kind_of_object
from delineate.scans.dicom.limits import ask_child
from delineate.scans.geometry import RAS_FROM_LPS
from delineate.scans.scan import MAX_VOXELS, Scan

KINDS = ("segmentations", "structure sets")  # of `folders.kind_of_object`


@dataclass(frozen=True, eq=False)
class Region:
    """A segment of a SEG, or a region of interest of a structure set.

    Attributes:
        name: as the file has it, on one line and without characters that are not seen; no two of a file are alike.
        voxels: int64, sorted: where it lies, counted in the scan's array (C order).
        shape: of the scan.
        code: (value, scheme, meaning) of what it shows, if the file says so.
    """

    name: str
    voxels: np.ndarray
    shape: tuple[int, int, int]
    code: tuple[str, str, str] | None = None

    def mask(self) -> np.ndarray:
        """Its voxels, bool (I, J, K)."""
        mask = np.zeros(self.shape, bool)
        mask.reshape(-1)[self.voxels] = True
        return mask


@dataclass(frozen=True, eq=False)
class Regions:
    """What a file holds, and a line for every decision that was taken in reading it."""

    regions: tuple[Region, ...]
    notes: tuple[str, ...]


def holds_regions(path: Path | str) -> bool:
    """Whether a file is a DICOM SEG or a structure set, by its first bytes."""
    return Path(path).is_file() and kind_of_object(Path(path)) in KINDS


def read_regions(path: Path | str, scan: Scan) -> Regions:
    """The regions of a DICOM SEG or RT Structure Set, on the voxels of a scan.

    Frames of a SEG must have the scan's own pixels, in whatever order; where they lie between its voxels, the nearest
    counts, with a note. Fractional ones are cut at one half. Contours are filled by the rule of even and odd (holes as
    keyholes, or as contours in one another) on the slice that is nearest; they must lie in slices. Points and open
    contours are left out, as are empty regions, with a note each.

    The file is read by a child process with limits (`delineate.scans.dicom.limits`): a trap ends in one line.

    Args:
        path: of the file.
        scan: that it was drawn on: of the same frame of reference, where both name one.

    Raises:
        ScanError: in one line: neither a SEG nor a structure set; another frame of reference; other pixels, or contours
            across the slices; coordinates that are no numbers; nothing drawn; a damaged file, or a trap.
    """
    path = Path(path)
    if not path.is_file():
        raise ScanError(f"{path}: no such file; check the path")
    affine = np.array(scan.affine)
    affine[:3] = RAS_FROM_LPS @ affine[:3]
    job = {
        "job": "masks",
        "name": str(path),
        "files": [str(path)],
        "series": None if scan.dicom is None else str(scan.dicom.files[0]),
        "affine": affine.tolist(),
        "shape": scan.shape,
        "max_voxels": MAX_VOXELS,
    }
    with tempfile.TemporaryDirectory(prefix="delineate-") as temporary:
        size = path.stat().st_size
        told = ask_child(job, Path(temporary), size=size, array_bytes=44 * MAX_VOXELS, name=str(path))
        voxels = np.load(Path(temporary) / "voxels.npy", allow_pickle=False)
    ends = np.cumsum([one["count"] for one in told["regions"]])
    parts = np.split(voxels, ends[:-1])
    regions = tuple(
        Region(one["name"], part, scan.shape, None if one["code"] is None else tuple(one["code"]))
        for one, part in zip(told["regions"], parts, strict=True)
    )
    return Regions(regions, tuple(told["notes"]))
