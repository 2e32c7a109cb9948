"""What all DICOM objects that refer to a series have in common: what they need of it, and how they come to a file.

They are made by the child process of `delineate.scans.dicom.limits`, for it reads headers of strangers; a file takes
its name when it is whole.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from delineate.errors import ScanError
from delineate.scans.dicom.limits import ask_child
from delineate.scans.dicom.source import DicomSource
from delineate.scans.scan import Scan
from delineate.storage.files import replacing

BY = ("automatic", "semiautomatic", "manual")
MADE = "made.dcm"  # what the child writes


def source_of(path: Path, what: str, scan: Scan) -> DicomSource:
    """The instances that an object at `path` is to refer to.

    Raises:
        ScanError: the scan is not from DICOM, or its instances lack an identifier.
    """
    if scan.dicom is None:
        raise ScanError(f"{path}: a {what} refers to DICOM images, but {scan.source} is none; write NIfTI instead")
    if scan.dicom.missing:
        raise ScanError(
            f"{path}: a {what} needs {', '.join(scan.dicom.missing)} of its source, which {scan.source} lacks; write "
            "NIfTI or PNG instead, or export the series again"
        )
    return scan.dicom


def check_masks(path: Path, what: str, masks: Mapping[str, np.ndarray], scan: Scan) -> None:
    """See that masks have names that can be written and the shape of the scan, and that there is one.

    Raises:
        ScanError: one of these does not hold.
    """
    if not masks:
        raise ScanError(f"{path}: a {what} holds at least one segment, got none; nothing was written")
    for name, mask in masks.items():
        if mask.shape != scan.shape:
            raise ScanError(f"{path}: the mask of {name} must have the scan's shape {scan.shape}, got {mask.shape}")
        if not name.strip() or not name.isprintable() or "\\" in name:
            raise ScanError(f"{path}: a segment must have a name in plain characters, got {name!r}")


def make(
    path: Path,
    source: DicomSource,
    job: Mapping[str, Any],
    *,
    array_bytes: int = 0,
    prepare: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any]:
    """Have the child make an object, put it at `path` whole or not at all, and return what the child tells of it.

    Args:
        path: to write.
        source: whose files the child reads.
        job: what is asked of it.
        array_bytes: the most that its arrays may take, beside what is always allowed.
        prepare: puts arrays into the folder that the child is given.

    Raises:
        ScanError: the child refuses, or the file cannot be written.
    """
    told = {"name": str(path), "files": [str(file) for file in source.files], "frames": source.frames, **job}
    try:
        size = sum(file.stat().st_size for file in source.files)
        with tempfile.TemporaryDirectory(prefix="delineate-") as temporary, replacing(path) as final:
            prepare(Path(temporary))
            done = ask_child(told, Path(temporary), size=size, array_bytes=array_bytes + (1 << 30), name=str(path))
            final.write_bytes((Path(temporary) / MADE).read_bytes())
    except OSError as error:
        raise ScanError(
            f"{path}: cannot be written ({error.strerror or error}: {error.filename}); free space, choose "
            "another folder, or put the images back"
        ) from error
    return done
