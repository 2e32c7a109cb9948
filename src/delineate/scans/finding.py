"""Where scans lie: files and folders, and what a case is called."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from delineate.errors import ScanError
from delineate.scans.dicom.source import DICOM_SUFFIXES, files_in, is_dicom
from delineate.scans.nifti import NIFTI_SUFFIXES
from delineate.scans.scan import is_scan_file, stem_of
from delineate.storage.files import sha256_of

if TYPE_CHECKING:  # which imports torch
    pass


def find_scans(path: Path) -> list[Path]:
    """The scans that `path` stands for: itself, or all directly in the folder, sorted.

    A folder with DICOM files in it is one scan; so is each such folder directly in a folder.

    Raises:
        ScanError: nothing there, DICOM beside NIfTI, or two scans that would be written to the same case folder.
    """
    path = Path(path)
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder; check the path")
    if path.is_file():
        return [path]
    scans = sorted(p for p in path.iterdir() if p.is_file() and is_scan_file(p))
    if is_dicom(path):
        if volumes := [p.name for p in scans if p.name.endswith(NIFTI_SUFFIXES)]:
            raise ScanError(
                f"{path}: found DICOM beside {len(volumes)} NIfTI files; name one, or part them in two folders"
            )
        return [path]
    scans = sorted([*scans, *(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and is_dicom(p))])
    if not scans:
        raise ScanError(
            f"{path}: no scan in this folder; it is searched for NIfTI, DICOM, PNG, JPEG and TIFF, not below"
        )
    names = [case_name(p) for p in scans]
    for scan, name in zip(scans, names, strict=True):
        if names.count(name) > 1:
            raise ScanError(f"{scan}: another scan of this folder is also called '{name}'; rename one of them")
    return scans


def case_name(path: Path) -> str:
    """The name of a scan's case: a folder's name, or the file's stem without nnU-Net's channel number."""
    path = Path(path)
    if path.is_dir():
        return path.resolve().name or "scan"
    known = is_scan_file(path) or path.suffix.lower() in DICOM_SUFFIXES
    return (stem_of(path) if known else path.name).removesuffix("_0000")  # names of DICOM files are often full of dots


def digest_of(path: Path) -> str:
    """The SHA-256 of a scan: of the file, or for a DICOM folder of its files' own, sorted, whatever they are called."""
    if not path.is_dir():
        return sha256_of(path)
    return hashlib.sha256("".join(sorted(sha256_of(file) for file in files_in(path))).encode()).hexdigest()
