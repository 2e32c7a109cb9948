"""Stored DICOM pixels become values: decoded, rescaled, padding masked, MONOCHROME1 turned round.

This runs in the child process of `delineate.scans.dicom.limits`.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby, pairwise

import numpy as np
from pydicom.pixels import apply_color_lut, apply_modality_lut, get_decoder, iter_pixels

from delineate.errors import ScanError
from delineate.scans.dicom.headers import Frame, Header, numbers, printable, read_whole
from delineate.scans.intensity import AIR_HU


def read_frames(
    frames: Sequence[Frame | None], out: np.ndarray, measured: bool, at: Sequence[float | None] = ()
) -> list[str]:
    """Fill float32 `out` (K, rows, columns) with the frames, and return a note for every decision.

    None is a slice between others that is filled in from its neighbours; where frames lie `at` places between slices,
    all slices are. MONOCHROME1 says how values are shown: it turns round pictures, and neither values that were
    `measured` (CT, PET) nor those of CT that does not say so.
    """
    notes: list[str] = []
    scalings = {(f.slope, f.intercept) for f in frames if f is not None}
    if any("ModalityLUTSequence" in f.header.data for f in frames if f is not None):
        notes.append("values through the modality lookup table of the file")
    elif len(scalings) > 1:
        notes.append(f"rescaled image by image, {len(scalings)} scalings")
    elif scalings != {(1.0, 0.0)}:
        slope, intercept = next(iter(scalings))
        notes.append(f"rescaled: stored value * {slope:g} + {intercept:g}")
    padded = 0
    real = [(k, frame) for k, frame in enumerate(frames) if frame is not None]
    for _, group in groupby(real, key=lambda item: item[1].header.number):
        of_file = list(group)
        header = of_file[0][1].header
        decoded = decode(header, [frame.number for _, frame in of_file])
        for (k, frame), stored in zip(of_file, decoded, strict=True):
            if stored.shape != out.shape[1:]:
                raise ScanError(
                    f"{header.path}: the pixels have the shape {stored.shape}, the header says {out.shape[1:]}"
                )
            out[k] = _valued(stored, frame)
            padding = _padding(stored, header)
            if padding is not None:
                out[k][padding] = np.nan
                padded += int(padding.sum())
    broken = int(sum((~np.isfinite(out[k])).sum() for k, _ in real)) - padded
    low, high = _ends(out, [k for k, _ in real], real[0][1].header)
    if real[0][1].header.text("PhotometricInterpretation") == "MONOCHROME1" and not measured and low > AIR_HU:
        for k, _ in real:
            out[k] = low + high - out[k]
        notes.append("MONOCHROME1: turned round, so that large is bright")
    if padded or broken:
        for k, _ in real:
            out[k][~np.isfinite(out[k])] = low
    if padded:
        notes.append(f"{padded} padding voxels set to the smallest real value, {low:g}")
    if broken:
        notes.append(f"{broken} NaN or infinite voxels set to the smallest finite value, {low:g}")
    _fill(out, [k for k, _ in real], at)
    return notes


def read_colour(header: Header, number: int, out: np.ndarray) -> list[str]:
    """Fill float32 `out` (1, rows, columns, 3) with one frame in colour, as red, green and blue; return notes."""
    kind = header.text("PhotometricInterpretation")
    (stored,) = decode(header, [number])
    notes = [f"colours: {kind} made RGB"] if kind != "RGB" else []
    if kind == "PALETTE COLOR":
        stored = apply_color_lut(stored, read_whole(header.path, stop_before_pixels=True))[..., :3]
    if stored.shape != out.shape[1:]:
        raise ScanError(f"{header.path}: the pixels have the shape {stored.shape}, the header says {out.shape[1:]}")
    out[0] = stored
    return notes


def decode(header: Header, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """Stored values of some frames, one after the other, each (rows, columns) or (rows, columns, 3).

    Raises:
        ScanError: no decoder for the transfer syntax; pixels absent, cut short or damaged.
    """
    try:
        decoder = get_decoder(header.syntax)
        able, lacking = decoder.is_available, "; ".join(decoder.missing_dependencies)
    except NotImplementedError:
        able, lacking = False, "no decoder is known"
    if not able:
        raise ScanError(
            f"{header.path}: pixels in {printable(header.syntax.name)} cannot be decoded here ({printable(lacking)}); "
            "decompress the file, for example with dcmdjpeg, or install pylibjpeg"
        )
    try:
        yield from iter_pixels(header.path if header.marked else read_whole(header.path), indices=list(wanted))
    except MemoryError:
        raise
    except Exception as error:  # every decoder has errors of its own
        said = printable(str(error).rpartition("plugins:")[2] or type(error).__name__, 160)
        raise ScanError(
            f"{header.path}: the pixels must be readable, these are absent, cut short, damaged or of a kind that is "
            f"not decoded here ({said}); copy or export the file again, or decompress it with dcmdjpeg"
        ) from error


def _valued(stored: np.ndarray, frame: Frame) -> np.ndarray:
    if "ModalityLUTSequence" in frame.header.data:
        return apply_modality_lut(stored, frame.header.data)
    if (frame.slope, frame.intercept) == (1.0, 0.0):
        return stored
    return stored.astype(np.float64) * frame.slope + frame.intercept


def _padding(stored: np.ndarray, header: Header) -> np.ndarray | None:
    first = numbers(header.data, "PixelPaddingValue", 1)
    if first is None:
        return None
    last = numbers(header.data, "PixelPaddingRangeLimit", 1) or first
    low, high = sorted((first[0], last[0]))
    found = (stored >= low) & (stored <= high)
    return found if found.any() else None


def _ends(out: np.ndarray, slices: Sequence[int], header: Header) -> tuple[float, float]:
    """The smallest and the largest finite value."""
    ends = [(v.min(), v.max()) for k in slices if (v := out[k][np.isfinite(out[k])]).size]
    if not ends:
        raise ScanError(f"{header.path}: a scan must hold values, found only padding; name another series")
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def _fill(out: np.ndarray, real: Sequence[int], at: Sequence[float | None]) -> None:
    """Fill the slices between those in `real` linearly from the two around them; all where those lie `at` others."""
    if at:
        frames, places = out[list(real)], [at[k] or 0.0 for k in real]
        for k, above in enumerate(np.searchsorted(places, range(len(out))).clip(1, len(places) - 1)):
            part = (k - places[above - 1]) / (places[above] - places[above - 1])
            out[k] = frames[above - 1] * (1 - part) + frames[above] * part
        return
    for below, above in pairwise(real):
        for k in range(below + 1, above):
            part = (k - below) / (above - below)
            out[k] = out[below] * (1 - part) + out[above] * part
