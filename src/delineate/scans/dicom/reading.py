"""One DICOM series becomes one array: which series, which frames, in which order.

This runs in the child process of `delineate.scans.dicom.limits`: `read` is its job of that name.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from delineate.errors import ScanError
from delineate.prompts.anatomy import MODALITY_CODES
from delineate.scans.dicom.headers import (
    NEEDED_BY_SEG,
    Frame,
    Header,
    NotAnImage,
    frames_of,
    numbers,
    printable,
    read_header,
)
from delineate.scans.dicom.order import normal_of, stack
from delineate.scans.dicom.pixels import read_colour, read_frames
from delineate.scans.intensity import HAVE_UNITS

PROJECTIONS = (
    ("PixelSpacing", ""),
    ("ImagerPixelSpacing", " at the detector"),
    ("NominalScannedPixelSpacing", " as scanned"),
)


def read(job: dict[str, Any], folder: Path, allow: Callable[[int], None]) -> dict[str, Any]:
    """Write `folder/voxels.npy`, float32 (K, rows, columns) or (1, rows, columns, 3), and return what belongs to it.

    Args:
        job: "name" (the path as the user gave it), "files", "alone", "series", "volume", "fill_gaps",
            "modality" (its code, if the user said one), "max_voxels".
        folder: for what is written.
        allow: told how many bytes the array takes, once that is known and found allowed.
    """
    headers, notes = _headers(job)
    headers, more = _series(job, headers)
    notes += more
    frames = [frame for header in headers for frame in frames_of(header)]
    first = headers[0]
    told: dict[str, Any] = {
        "modality": first.text("Modality"),
        "missing": [key for key in NEEDED_BY_SEG if any(not h.text(key) for h in headers)],
    }
    placed = [frame for frame in frames if frame.plane is not None and frame.pixel_mm is not None]
    if placed and first.is_grey:
        if len(placed) < len(frames):
            raise ScanError(
                f"{job['name']}: every image of a volume must have a place, {len(frames) - len(placed)} of "
                f"{len(frames)} have none; name one file, or remove those"
            )
        chosen, geometry, more = _volume(job, placed)
    elif placed and len(frames) > 1:
        raise ScanError(
            f"{job['name']}: a volume must be grey, found {len(frames)} images in colour "
            f"({first.text('PhotometricInterpretation')}); name one file, or export them in grey"
        )
    else:
        chosen, geometry, more = _flat(job, frames)
    notes += more
    shape = (len(chosen), first.rows, first.columns) + (() if first.is_grey else (3,))
    if (voxels := int(np.prod(shape))) > job["max_voxels"]:
        raise ScanError(
            f"{job['name']}: at most {job['max_voxels']} voxels are read, this takes {voxels}; crop it first"
        )
    at = geometry.pop("at", ())
    allow(4 * voxels * (2 if at else 1) + 40 * first.rows * first.columns * first.samples)
    out = np.lib.format.open_memmap(folder / "voxels.npy", "w+", np.float32, shape)
    one = chosen[0]
    if first.is_grey or one is None:
        stated = first.text("Modality")
        notes += read_frames(
            chosen, out, (job["modality"] or MODALITY_CODES.get(stated.lower(), stated)) in HAVE_UNITS, at
        )
    else:
        notes += read_colour(one.header, one.number, out)
    out.flush()
    places = [None if f is None else (f.header.number, f.number) for f in chosen]
    return {**told, **geometry, "frames": places, "notes": notes}


def _headers(job: dict[str, Any]) -> tuple[list[Header], list[str]]:
    """The headers of all images; a note on what else lies there."""
    headers: list[Header] = []
    left: Counter[str] = Counter()
    for number, path in enumerate(job["files"]):
        try:
            headers.append(read_header(Path(path), number, job["max_voxels"]))
        except NotAnImage as error:
            if job["alone"]:
                raise
            text = str(error)
            left["no DICOM" if "as DICOM does" in text else text.rpartition("found ")[2].partition(";")[0]] += 1
    if not headers:
        listed = ", ".join(f"{count} x {what}" for what, count in left.most_common(5))
        raise ScanError(f"{job['name']}: a DICOM folder must hold images, found none ({listed}); name another folder")
    notes = [f"left out: {count} x {what}" for what, count in left.most_common(5)]
    if bare := [header for header in headers if not header.marked]:
        how = " and ".join(sorted({header.syntax.name for header in bare}))
        notes.append(f"{len(bare)} files without the mark DICM are taken for DICOM in {how}")
    by_identifier: dict[str, Header] = {}
    for header in headers:  # the same instance twice is a copy
        by_identifier.setdefault(header.text("SOPInstanceUID") or str(header.number), header)
    if len(by_identifier) < len(headers):
        notes.append(f"left out: {len(headers) - len(by_identifier)} copies of images that are there twice")
    return list(by_identifier.values()), notes


def _series(job: dict[str, Any], headers: list[Header]) -> tuple[list[Header], list[str]]:
    """The images of the one series that is there, or that was asked for."""
    groups: dict[str, list[Header]] = {}
    for header in headers:
        groups.setdefault(header.series, []).append(header)
    wanted, name = job["series"], job["name"]
    chosen = headers
    told = Counter(group[0].text("SeriesNumber") for group in groups.values())
    lines = [
        _described(g) + ("" if told[g[0].text("SeriesNumber")] == 1 else f" UID {uid}") for uid, g in groups.items()
    ]
    listed = "; ".join(sorted(lines)[:12]) + (f"; and {len(lines) - 12} more" if len(lines) > 12 else "")
    if wanted is not None:
        found = [g for uid, g in groups.items() if wanted in (uid, g[0].text("SeriesNumber"))]
        if len(found) != 1:
            what = f"{len(found)} series are" if found else "no series is"
            how = "by its UID" if found else "by number or UID"
            raise ScanError(f"{name}: {what} called '{printable(wanted)}'; choose one {how}: {listed}")
        chosen = found[0]
    elif len(groups) > 1:
        raise ScanError(
            f"{name}: a scan is one series, found {len(groups)}; choose one by number or UID with series= (--series): "
            f"{listed}"
        )
    for what, of in (
        ("size", lambda h: f"{h.rows}x{h.columns}"),
        ("kind of pixel", lambda h: h.text("PhotometricInterpretation")),
    ):
        kinds = Counter(of(h) for h in chosen)
        if len(kinds) > 1:
            counts = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(6))
            raise ScanError(f"{name}: images of one series must have one {what}, found {counts}; name one file of it")
    notes = [f"series {_described(chosen)}, of {len(groups)} in the folder"] if len(groups) > 1 else []
    return chosen, notes


def _described(group: Sequence[Header]) -> str:
    first = group[0]
    number, text = first.text("SeriesNumber") or "?", first.text("SeriesDescription")
    kind = ", localiser" if "LOCALIZER" in first.text("ImageType") else ""
    images = sum(h.frames for h in group)
    modality = first.text("Modality") or "no modality"
    return f"{number}{f' {text!r}' if text else ''} ({modality}{kind}, {images} image{'s' if images > 1 else ''})"


def _volume(job: dict[str, Any], frames: list[Frame]) -> tuple[list[Frame | None], dict[str, Any], list[str]]:
    pixel = frames[0].pixel_mm or (1.0, 1.0)
    if any(
        f.pixel_mm is None or max(abs(a - b) for a, b in zip(f.pixel_mm, pixel, strict=True)) > 1e-3 * pixel[0]
        for f in frames
    ):
        raise ScanError(
            f"{job['name']}: images of one series must have one pixel size, found several; name one file of it"
        )
    planes = [frame.plane for frame in frames if frame.plane is not None]
    keys = [10_000 * int(f.header.data.get("InstanceNumber") or 0) + f.number for f in frames]
    options = {"volume": job["volume"], "fill_gaps": job["fill_gaps"]}
    done = stack(job["name"], planes, keys, frames[0].thickness, min(pixel), **options)
    geometry = {
        "placed": True,
        "has_spacing": True,
        "origin": done.origin.tolist(),
        "step": done.step.tolist(),
        "normal": normal_of(planes[0]).tolist(),
        "row": [v * pixel[0] for v in planes[0].along_column],  # the step of one row runs down a column
        "column": [v * pixel[1] for v in planes[0].along_row],
    }
    geometry["at"] = done.at
    return [None if n is None else frames[n] for n in done.order], geometry, list(done.notes)


def _flat(job: dict[str, Any], frames: list[Frame]) -> tuple[list[Frame | None], dict[str, Any], list[str]]:
    notes, number = [], job["volume"]
    if len(frames) > 1 and (number is None or not 0 <= number < len(frames)):
        raise ScanError(
            f"{job['name']}: images without a place in the patient are read one by one, found {len(frames)}; name one "
            f"file, or choose a frame with volume=0 to {len(frames) - 1} (--volume)"
        )
    if len(frames) == 1 and number not in (None, 0):
        raise ScanError(f"{job['name']}: there is image 0 only, asked for {number}; leave volume out")
    frame = frames[number or 0]
    if len(frames) > 1:
        notes.append(f"image {number} of {len(frames)}")
    pixel = None
    for keyword, what in PROJECTIONS:
        if (pixel := numbers(frame.header.data, keyword, 2)) and min(pixel) > 0:
            notes += [f"pixel size{what}"] if what else []
            break
    known = pixel is not None and min(pixel) > 0
    geometry = {"placed": False, "has_spacing": known, "pixel": list(pixel) if pixel and known else [1.0, 1.0]}
    return [frame], geometry, notes
