"""Where a scan that was read from DICOM comes from: its instances, and the way of a mask back onto their frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
"""Of single files; most DICOM files have none, and `is_dicom` looks inside."""


@dataclass(frozen=True, eq=False)
class DicomSource:
    """The instances behind a scan.

    Slice k of the scan is frame `frames[k][1]` (from 0) of the file `files[frames[k][0]]`.

    Attributes:
        files: the instances used, in the order of the slices.
        frames: (file, frame) of every slice; None for a slice that fills a gap.
        placed: whether the frames have a place in the patient; without one the scan is a flat image.
        missing: identifiers that the instances lack and a DICOM SEG needs, such as "FrameOfReferenceUID".
        size: rows and columns of a frame.
        shifts: float64 (K, 2), for a series with a tilted gantry: where (row, column) the first pixel of a frame lies
            in slice k of the scan, which was resampled onto an orthogonal grid. None: at (0, 0).
    """

    files: tuple[Path, ...]
    frames: tuple[tuple[int, int] | None, ...]
    placed: bool
    missing: tuple[str, ...]
    size: tuple[int, int]
    shifts: np.ndarray | None = None

    def to_frames(self, values: np.ndarray) -> np.ndarray:
        """A mask or map (K, I, J) of the scan on the frames of its source, (K, rows, columns), in slice order.

        Only a tilted series needs interpolation, linear within the slice; bool masks are then cut at one half.
        """
        if self.shifts is None:
            return values
        moved = shifted(values.astype(np.float32), self.shifts, self.size, 0.0)
        return moved >= 0.5 if values.dtype == bool else moved


def is_dicom(path: Path | str) -> bool:
    """Whether `path` is a DICOM file, or a folder with one directly in it: by what it begins with, not by the name."""
    path = Path(path)
    if path.is_dir():
        return any(_is_marked(file) for file in files_in(path))
    return path.is_file() and _is_marked(path)


def files_in(folder: Path) -> list[Path]:
    """The plain files directly in a folder, sorted by name; hidden ones are left out."""
    return sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))


def _is_marked(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return begins_as_dicom(file.read(132))
    except OSError:
        return False


def begins_as_dicom(start: bytes) -> bool:
    """Whether the first 132 bytes of a file are those of DICOM: the mark, or without preamble a first short element."""
    if start[128:] == b"DICM":
        return True
    group, element, length, short = (
        int.from_bytes(start[a : a + n], "little") for a, n in ((0, 2), (2, 2), (4, 4), (6, 2))
    )
    explicit = start[4:6] in (b"UL", b"CS", b"UI", b"DA", b"LO", b"SH")
    known = element in {2: (0, 2, 16), 8: (0, 1, 5, 8, 18, 19, 20, 22, 24, 32)}.get(group, ())
    return len(start) == 132 and known and (short if explicit else length) <= 128


def straight(
    step: np.ndarray, in_plane: np.ndarray, size: Sequence[int], count: int
) -> tuple[np.ndarray, tuple[int, int]]:
    """How sheared slices lie on an orthogonal grid: their shifts (K, 2) in pixels, and the grid's rows and columns.

    The grid has the slices' own pixels and directions and is just large enough to hold every one of them; the shift is
    where the first pixel of slice k lies in it.

    Args:
        step: (3,) mm from slice to slice.
        in_plane: (2, 3) mm, the steps of one row and of one column.
        size: rows and columns of a slice.
        count: of slices.
    """
    pixels = in_plane @ step / (in_plane**2).sum(axis=1)  # of shear, each slice
    shifts = np.arange(count)[:, None] * pixels
    shifts = shifts - shifts.min(axis=0)
    grown = np.ceil(shifts.max(axis=0) - 1e-6).astype(int)
    return shifts, (size[0] + int(grown[0]), size[1] + int(grown[1]))


def shifted(slices: np.ndarray, shifts: np.ndarray, size: tuple[int, int], fill: float) -> np.ndarray:
    """Read float32 slices at displaced pixels, linearly: `out[k, r, c] = slices[k, r + s0, c + s1]`, s = shifts[k].

    Args:
        slices: float32 (K, I, J).
        shifts: (K, 2) rows and columns.
        size: rows and columns of what comes out.
        fill: where a slice has no pixel.
    """
    out = np.full((len(slices), *size), fill, np.float32)
    for k, (down, right) in enumerate(shifts):
        lines, inside_rows = _along(slices[k], down, size[0])
        both, inside_columns = _along(lines.T, right, size[1])
        out[k] = np.where(np.outer(inside_rows, inside_columns), both.T, fill)
    return out


def _along(values: np.ndarray, shift: float, length: int) -> tuple[np.ndarray, np.ndarray]:
    """`values` read along axis 0 at 0 + shift, 1 + shift, …; and which of these points lie inside."""
    at = np.arange(length) + shift
    inside = (at > -0.5) & (at < len(values) - 0.5)
    at = at.clip(0, len(values) - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, len(values) - 1)
    part = (at - low).astype(np.float32)[:, None]
    return values[low] * (1 - part) + values[high] * part, inside
