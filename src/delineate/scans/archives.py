"""Packed folders: told at a glance what they hold and how to unpack them; never unpacked here.

A few kilobytes can unpack to a disk's worth, and names in an archive lead anywhere. Of a zip its directory is read, to
a bound; of other archives nothing.
"""

import shlex
import zipfile
from io import FileIO
from pathlib import Path, PurePosixPath

from delineate.scans.dicom.source import DICOM_SUFFIXES
from delineate.scans.scan import is_scan_file
from delineate.storage.hidden import without_hidden

LARGEST_DIRECTORY = 8 << 20  # bytes: of a hundred thousand files, which take as many MB of memory
_SHOWN = 3  # names
_UNPACK = {  # how each is unpacked into a folder
    **dict.fromkeys((".zip",), "unzip {file} -d {folder}"),
    **dict.fromkeys(
        (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst"), "mkdir {folder} && tar -xf {file} -C {folder}"
    ),
    ".7z": "7z x {file} -o{folder}",
    ".rar": "unrar x {file} {folder}/",
}


class Bounded(FileIO):
    """A file of which no piece longer than a directory may be is read at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        """The next bytes. Raises `BadZipFile` where more are asked for than a directory may have."""
        if size is not None and size > LARGEST_DIRECTORY:
            raise zipfile.BadZipFile("its directory is too large")
        return super().read(size if size is not None and size >= 0 else LARGEST_DIRECTORY)


def is_archive(path: Path) -> bool:
    """Whether a file is named like a packed folder; hidden ones are not."""
    return not path.name.startswith(".") and _suffix_of(path) is not None


def in_words(path: Path) -> str:
    """What a packed folder holds, as far as that is seen without unpacking it, and what to do: the end of one line."""
    suffix = _suffix_of(path) or ""
    folder = path.with_name(path.name[: -len(suffix)] or "scans")
    how = _UNPACK[suffix].format(file=shlex.quote(str(path)), folder=shlex.quote(str(folder)))
    held = _held_by_zip(path) if suffix == ".zip" else f"a packed folder ({suffix})"
    return f"{held}; packed folders are not read: {how}, then name {shlex.quote(str(folder))}"


def _suffix_of(path: Path) -> str | None:
    name = path.name.lower()
    return next((suffix for suffix in sorted(_UNPACK, key=len, reverse=True) if name.endswith(suffix)), None)


def _held_by_zip(path: Path) -> str:
    try:
        with Bounded(path) as file, zipfile.ZipFile(file) as archive:  # reads its directory, nothing else
            names = [entry.filename for entry in archive.infolist()]
    except (OSError, ValueError, EOFError, NotImplementedError, zipfile.BadZipFile, zipfile.LargeZipFile):
        return "a zip whose directory cannot be read (damaged, or too large)"
    names = [name for name in names if not name.endswith("/")]  # those are folders
    shown = [PurePosixPath(name).name for name in names]
    scans = [name for name in shown if is_scan_file(name) or name.lower().endswith(DICOM_SUFFIXES)]
    told = ", ".join(without_hidden(name)[:60] for name in (scans or shown)[:_SHOWN])
    count = f"{len(names)} file{'s' * (len(names) != 1)}"
    if not names:
        return "an empty zip"
    return f"a zip of {count}, among them {told}" if scans else f"a zip of {count} ({told}, …), none named like a scan"
