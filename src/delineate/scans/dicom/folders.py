"""Exports of an archive: folders in folders, patient, study, series; which of them hold images, and what else does.

A glance at the first kilobytes of a file tells what kind of object it is. It needs no library, allocates nothing that
a header asks for, and where it cannot tell it takes the file for an image: whoever reads it looks again.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from delineate.errors import ScanError
from delineate.scans.dicom.source import begins_as_dicom, files_in
from delineate.scans.scan import is_scan_file
from delineate.storage.places import CASE

MOST_FOLDERS = 100_000  # looked at below one folder: an archive of ten thousand patients has as many
UNREADABLE = "what may not be read"
LOCALISER = "localisers"
_START = 4096  # bytes of a file that are read
_STORAGE = "1.2.840.10008.5.1.4.1.1."
_OBJECTS = {  # of classes by how they begin (DICOM PS3.4, B.5): what is no picture of a patient, or none that is read
    "1.2.840.10008.1.3.10": "directories",
    f"{_STORAGE}9.": "waveforms",
    f"{_STORAGE}11.": "presentation states",
    f"{_STORAGE}66.4": "segmentations",
    f"{_STORAGE}66.5": "segmentations",
    f"{_STORAGE}66": "raw data or registrations",
    f"{_STORAGE}67": "value mappings",
    f"{_STORAGE}77.1.6": "whole slides",
    f"{_STORAGE}88.": "reports",
    f"{_STORAGE}104.": "documents",
    f"{_STORAGE}481.1": "",  # radiotherapy images are images
    f"{_STORAGE}481.2": "radiotherapy doses",
    f"{_STORAGE}481.3": "structure sets",
    f"{_STORAGE}481.": "radiotherapy plans or records",
}
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
_IMPLICIT = "1.2.840.10008.1.2"  # the one syntax without the kinds of its values
_NOT_LOOKED_INTO = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"}  # deflated, and big-endian


@dataclass
class Below:
    """What lies below a folder.

    Attributes:
        series: folders with DICOM images directly in them, sorted.
        left_out: folders with other DICOM objects alone, by what these are.
    """

    series: list[Path] = field(default_factory=list)
    left_out: dict[str, list[Path]] = field(default_factory=dict)


def look_below(root: Path) -> Below:
    """The folders below `root` at any depth that hold DICOM, hidden ones and what `delineate` wrote left out.

    Links are followed, and every folder is looked at once, whichever way leads to it.

    Raises:
        ScanError: there are more than `MOST_FOLDERS`.
    """
    found, seen, waiting = Below(), {_identity(root)}, [root]
    while waiting:
        folder = waiting.pop()
        for below in _folders_in(folder, found):
            if (who := _identity(below)) in seen:
                continue
            seen.add(who)
            if len(seen) > MOST_FOLDERS:
                raise ScanError(
                    f"{root}: at most {MOST_FOLDERS} folders are looked at, more lie below; name one of them"
                )
            if _was_written_here(below):
                continue
            waiting.append(below)
            what = holds(below)
            if what == "":
                found.series.append(below)
            elif what is not None:
                found.left_out.setdefault(what, []).append(below)
    found.series.sort()
    return found


def holds(folder: Path) -> str | None:
    """What DICOM lies directly in a folder: "" for images, what else there is in words, None for none."""
    kinds = []
    try:
        for path in files_in(folder):
            if is_scan_file(path) or (kind := kind_of_object(path)) is None:
                continue
            if kind == "":
                return ""
            kinds.append(kind)
    except OSError:
        return UNREADABLE
    return ", ".join(sorted(set(kinds))) if kinds else None


def kind_of_object(path: Path) -> str | None:
    """What a DICOM file is, "" for an image, or None for no DICOM."""
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError:
        return None
    if not begins_as_dicom(start[:132]):
        return None
    if start[128:132] != b"DICM":  # without a preamble: which kind is not told in one place
        return ""
    meta, end = _group(start, 132, 2, explicit=True)
    stated, syntax = (_text(meta.get(element)) for element in (0x0002, 0x0010))
    for begin, kind in _OBJECTS.items():
        if stated.startswith(begin) and (kind or stated == begin):
            return kind
    if syntax in _NOT_LOOKED_INTO:
        return ""
    data, _ = _group(start, end, 8, explicit=syntax != _IMPLICIT)
    return LOCALISER if "LOCALIZER" in _text(data.get(0x0008)).upper().split("\\") else ""


def _group(data: bytes, at: int, group: int, *, explicit: bool) -> tuple[dict[int, bytes], int]:
    """The elements of a group as far as they are there, and where they end."""
    found: dict[int, bytes] = {}
    while at + 8 <= len(data) and int.from_bytes(data[at : at + 2], "little") == group:
        if not explicit:
            begin, length = at + 8, int.from_bytes(data[at + 4 : at + 8], "little")
        elif data[at + 4 : at + 6] in _LONG:
            begin, length = at + 12, int.from_bytes(data[at + 8 : at + 12], "little")
        else:
            begin, length = at + 8, int.from_bytes(data[at + 6 : at + 8], "little")
        if begin + length > len(data):
            break
        found[int.from_bytes(data[at + 2 : at + 4], "little")] = data[begin : begin + length]
        at = begin + length
    return found, at


def _text(value: bytes | None) -> str:
    return (value or b"").decode("latin-1").strip(" \0")


def _was_written_here(folder: Path) -> bool:
    try:
        return (folder / CASE).is_file()
    except OSError:  # it may not be read: `holds` says so
        return False


def _folders_in(folder: Path, found: Below) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        if folder not in found.left_out.get(UNREADABLE, ()):
            found.left_out.setdefault(UNREADABLE, []).append(folder)
        return []
    return [folder / name for name in sorted(names)]


def _identity(folder: Path) -> tuple[int, int]:
    told = folder.stat()
    return told.st_dev, told.st_ino
