"""DICOM RT Structure Set out: masks of a scan that came from DICOM, as contours on the images of its series."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from delineate.errors import ScanError
from delineate.scans.dicom.objects import BY, check_masks, make, source_of
from delineate.scans.scan import Scan

WHAT = "DICOM RT Structure Set"


def write_rtstruct(
    path: Path | str,
    masks: Mapping[str, np.ndarray],
    scan: Scan,
    *,
    algorithm: str,
    by: str = "automatic",
    concepts: Mapping[str, str] | None = None,
) -> Path:
    """Write masks as one RT Structure Set, a region of interest each, and return the path.

    Contours lie in the planes of the scan's own images, between the centres of pixels (`delineate.scans.dicom.contours`
    says how; holes are keyholes), in steps of 0.1 µm. In a series with a tilted gantry they are moved within the plane,
    and nothing is interpolated. Slices that fill a gap have no image and are left out. The file is read back before it
    takes its name: the contours, filled, must be the masks.

    Args:
        path: to write; it does not depend on anything in the source.
        masks: by name: bool (I, J, K) = `scan.shape`.
        scan: as `read_scan` or `series.read_series` gave it.
        algorithm: what made them, such as the name of the model.
        by: "automatic", "semiautomatic" (corrected by hand) or "manual".
        concepts: for a name that is no target's own, such as "liver 2", which target it shows.

    Raises:
        ScanError: the scan is not from DICOM, has no place in the patient, or its instances lack an identifier; shapes
            or types do not fit; an empty mask; nothing to write; it cannot be written or does not read back.
    """
    path, source = Path(path), source_of(Path(path), WHAT, scan)
    if by not in BY:
        raise ValueError(f"by is one of {', '.join(BY)}; got '{by}'")
    if not source.placed:
        raise ScanError(f"{path}: contours lie in the patient, but {scan.source} has no place there; write PNG instead")
    masks = {name: np.asarray(mask) for name, mask in masks.items()}
    check_masks(path, WHAT, masks, scan)
    for name, mask in masks.items():
        if mask.dtype != bool:
            raise ScanError(f"{path}: the mask of {name} must be bool, got {mask.dtype}; cut it at 0.5")
        if not mask.any():
            raise ScanError(f"{path}: a region must have a voxel, {name} has none; leave it out")
    job = {
        "job": "structures",
        "segments": list(masks),
        "concepts": dict(concepts or {}),
        "algorithm": algorithm,
        "by": by,
        "shifts": None if source.shifts is None else source.shifts.tolist(),
    }

    def prepare(folder: Path) -> None:
        stored = np.lib.format.open_memmap(folder / "masks.npy", "w+", bool, (len(masks), *scan.shape))
        for number, mask in enumerate(masks.values()):
            stored[number] = mask
        stored.flush()

    make(path, source, job, array_bytes=8 * len(masks) * int(np.prod(scan.shape)), prepare=prepare)
    return path
