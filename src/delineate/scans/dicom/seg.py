"""DICOM SEG out: masks or probabilities of a scan that came from DICOM, on the frames of its own instances."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from delineate.errors import ScanError
from delineate.scans.dicom.objects import BY, check_masks, make, source_of
from delineate.scans.scan import Scan

KINDS = ("binary", "fractional", "labelmap")
WHAT = "DICOM SEG"


def write_seg(
    path: Path | str,
    masks: Mapping[str, np.ndarray],
    scan: Scan,
    *,
    kind: str = "binary",
    algorithm: str,
    by: str = "automatic",
    description: str | None = None,
    concepts: Mapping[str, str] | None = None,
    keep_empty: bool = False,
    compress: bool = True,
) -> Path:
    """Write masks as one DICOM SEG, a segment each, and return the path.

    The segments lie on the frames of the scan's own instances, exactly; those of a series with a tilted gantry are
    moved back within their slices first. Slices that fill a gap have no instance and are left out. The names of
    `delineate.prompts.anatomy` get SNOMED CT codes with their side, others a code of the scheme 99DELINEATE; all get
    the colours of `delineate.prompts.colours`. Patient and study are those of the source. The file is read back and
    compared before it takes its name.

    Args:
        path: to write; it does not depend on anything in the source.
        masks: by name: bool (I, J, K) = `scan.shape`; for fractional, floats in [0, 1], stored in steps of 1/255.
        scan: as `read_scan` or `series.read_series` gave it.
        kind: "binary", "fractional" (probabilities), or "labelmap": one number a pixel, so that no two may overlap.
        algorithm: what made them, such as the name of the model.
        by: "automatic", "semiautomatic" (corrected by hand) or "manual".
        description: of the series; usually the names.
        concepts: for a name that is no target's own, such as "liver 2", which target it shows.
        keep_empty: whether a mask without any voxel may become a segment.
        compress: whether pixels of 8 and 16 bits are stored as runs (RLE lossless); DICOM has no runs of single bits,
            so that "binary" never is.

    Raises:
        ScanError: the scan is not from DICOM or its instances lack an identifier; shapes, types or values do not fit;
            masks that overlap in a labelmap; empty masks without `keep_empty`; nothing to write; it cannot be written
            or does not read back.
    """
    path, source = Path(path), source_of(Path(path), WHAT, scan)
    if kind not in KINDS or by not in BY:
        raise ValueError(f"kind is one of {', '.join(KINDS)} and by one of {', '.join(BY)}; got '{kind}' and '{by}'")
    masks = {name: np.asarray(mask) for name, mask in masks.items()}
    check_masks(path, WHAT, masks, scan)
    if kind == "labelmap" and (pair := overlapping(masks)) is not None:
        raise ScanError(
            f"{path}: segments of a labelmap may not overlap, {pair[0]} and {pair[1]} do; write kind='binary'"
        )
    job = {
        "job": "segment",
        "segments": list(masks),
        "concepts": dict(concepts or {}),
        "kind": kind,
        "compress": compress,
        "algorithm": algorithm,
        "by": by,
        "spacing_mm": scan.spacing_mm if scan.has_spacing else None,
        "description": (description or f"Segmentation: {', '.join(masks)}")[:64],
    }
    shape = (len(masks), scan.shape[0], *source.size)

    def prepare(folder: Path) -> None:
        stored = np.lib.format.open_memmap(folder / "masks.npy", "w+", np.uint8, shape)
        for number, (name, mask) in enumerate(masks.items()):  # one at a time, since they are large
            stored[number] = _levels(path, name, mask, scan, kind)
            if not keep_empty and not stored[number].any():
                raise ScanError(f"{path}: a segment must have a voxel, {name} has none; leave it out, or keep_empty")
        stored.flush()

    make(path, source, job, array_bytes=50 * int(np.prod(shape)), prepare=prepare)
    return path


def overlapping(masks: Mapping[str, np.ndarray]) -> tuple[str, str] | None:
    """The names of two bool masks that share a voxel; None where none do."""
    covered: np.ndarray | None = None
    for name, mask in masks.items():
        if covered is not None and (covered & mask).any():
            return next(other for other in masks if (masks[other] & mask).any()), name
        covered = mask.copy() if covered is None else covered | mask
    return None


def _levels(path: Path, name: str, mask: np.ndarray, scan: Scan, kind: str) -> np.ndarray:
    """What is stored, uint8 (K, rows, columns) on the frames of the source: 0 and 1, or 0 to 255."""
    if scan.dicom is None:
        raise ValueError("no DICOM scan")
    if mask.dtype == bool:
        return scan.dicom.to_frames(mask).astype(np.uint8) * (255 if kind == "fractional" else 1)
    if kind != "fractional" or mask.dtype.kind != "f":
        raise ScanError(
            f"{path}: the mask of {name} must be bool, got {mask.dtype}; cut it at 0.5, or write kind='fractional'"
        )
    low, high = float(mask.min()), float(mask.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # rounding passes, NaN does not
        raise ScanError(f"{path}: the probabilities of {name} must lie in [0, 1], got {low:g} to {high:g}")
    return np.rint(scan.dicom.to_frames(mask).clip(0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Segment:
    """A segment that was read back.

    Attributes:
        name: its label.
        code: (value, scheme, meaning) of its type.
        values: (F, rows, columns), bool or float32 in [0, 1], of every frame that is stored, along the normal.
        affines: (F, 4, 4) RAS+ mm, from (0, row, column) of each frame.
    """

    name: str
    code: tuple[str, str, str]
    values: np.ndarray
    affines: np.ndarray

    def points_mm(self) -> np.ndarray:
        """Where its voxels (from 0.5 on) lie, (N, 3) RAS+ mm."""
        frames, rows, columns = np.nonzero(self.values >= 0.5)
        index = np.stack([np.zeros_like(rows), rows, columns, np.ones_like(rows)])
        return np.einsum("nij,jn->ni", self.affines[frames], index)[:, :3]


def read_seg(path: Path | str) -> list[Segment]:
    """The segments of a DICOM SEG with a place in the patient. For files of one's own: it runs without limits."""
    import highdicom

    seg = highdicom.seg.segread(Path(path))
    shared, pixels = seg.SharedFunctionalGroupsSequence[0], seg.pixel_array
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    frames = []
    for frame in seg.PerFrameFunctionalGroupsSequence:
        number, affine = _of(frame, shared, "SegmentIdentification").ReferencedSegmentNumber, _affine(frame, shared)
        frames.append({"number": number, "affine": affine, "height": float(affine[:3, 0] @ affine[:3, 3])})
    out = []
    for number, told in enumerate(seg.SegmentSequence, start=1):
        own = sorted(
            (i for i in range(len(frames)) if frames[i]["number"] == number), key=lambda i: frames[i]["height"]
        )
        affines = np.array([frames[i]["affine"] for i in own]).reshape(-1, 4, 4)
        stored = pixels[own]
        values = (
            stored.astype(bool) if seg.SegmentationType == "BINARY" else stored / np.float32(seg.MaximumFractionalValue)
        )
        kind = told.SegmentedPropertyTypeCodeSequence[0]
        code = (str(kind.CodeValue), str(kind.CodingSchemeDesignator), str(kind.CodeMeaning))
        out.append(Segment(str(told.SegmentLabel), code, values, affines))
    return out


def _of(frame: Any, shared: Any, name: str) -> Any:
    """A functional group of a frame: its own or the one that all share."""
    return (frame.get(f"{name}Sequence") or shared.get(f"{name}Sequence"))[0]


def _affine(frame: Any, shared: Any) -> np.ndarray:
    down, across = (float(v) for v in _of(frame, shared, "PixelMeasures").PixelSpacing)
    directions = np.array(_of(frame, shared, "PlaneOrientation").ImageOrientationPatient, np.float64)
    affine = np.eye(4)
    affine[:3, 1], affine[:3, 2] = directions[3:] * down, directions[:3] * across
    affine[:3, 0] = np.cross(directions[:3], directions[3:])
    affine[:3, 3] = np.array(_of(frame, shared, "PlanePosition").ImagePositionPatient, np.float64)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
