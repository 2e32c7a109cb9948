"""Where scans lie: files and folders, what they are, and what a case is called."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

from delineate.errors import ScanError
from delineate.scans import metaimage, nifti, nrrd
from delineate.scans.dicom.source import DICOM_SUFFIXES, files_in, is_dicom
from delineate.scans.metaimage import META_SUFFIXES
from delineate.scans.nrrd import NRRD_SUFFIXES
from delineate.scans.scan import SCAN_SUFFIXES, VOLUME_SUFFIXES, is_scan_file, stem_of, suffix_of
from delineate.storage.files import sha256_of
from delineate.storage.places import case_folder_name


class Kind(Enum):
    """What a scan is kept in."""

    NIFTI = "NIfTI"
    NRRD = "NRRD"
    METAIMAGE = "MetaImage"
    PICTURE = "picture"
    DICOM = "DICOM"
    OTHER = "other"


@dataclass(frozen=True)
class Found:
    """A scan that is there, looked at once. What is called `OTHER` is refused when it is read.

    Attributes:
        path: of the file, or of the folder of a DICOM series.
        name: of its case.
        kind: what it is kept in.
    """

    path: Path
    name: str
    kind: Kind

    @classmethod
    def at(cls, path: Path | str) -> "Found":
        """What lies at `path`."""
        path = nifti.header_of(Path(path))
        return cls(path, case_name(path), kind_of(path))

    @cached_property
    def digest(self) -> str:
        """As `digest_of`, when it is first asked for."""
        return digest_of(self.path)


def find_scans(path: Path) -> list[Found]:
    """The scans that `path` stands for: itself, or all directly in the folder, sorted.

    A folder with DICOM files in it is one scan; so is each such folder directly in a folder.

    Raises:
        ScanError: nothing there, DICOM beside NIfTI, or two scans that would be written to the same case folder.
    """
    path = Path(path)
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder; check the path")
    if path.is_file():
        return [Found.at(path)]
    if not path.is_dir():
        raise ScanError(f"{path}: a scan must be a file or a folder, this is a pipe or a device; name a file")
    scans = sorted(p for p in path.iterdir() if p.is_file() and is_scan_file(p))
    own = Found.at(path)
    if own.kind is Kind.DICOM:
        if volumes := [p.name for p in scans if suffix_of(p) in VOLUME_SUFFIXES]:
            raise ScanError(
                f"{path}: found DICOM beside {len(volumes)} volumes in files of their own ({volumes[0]}); name one, or "
                "part them in two folders"
            )
        return [own]
    below = [Found.at(p) for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")]
    series = [found for found in below if found.kind is Kind.DICOM]
    found = sorted([*map(Found.at, scans), *series], key=lambda one: one.path)
    if not found:
        raise ScanError(
            f"{path}: no scan in this folder; it is searched for NIfTI, DICOM, PNG, JPEG and TIFF, not below"
        )
    names = Counter(one.name.casefold() for one in found)  # some file systems do not tell upper from lower case
    for one in found:
        if names[one.name.casefold()] > 1:
            raise ScanError(f"{one.path}: another scan of this folder is also called '{one.name}'; rename one of them")
    return found


def kind_of(path: Path) -> Kind:
    """What a scan is kept in: by the suffix of a file that has a known one, else by the mark of DICOM."""
    suffix = suffix_of(path)
    if suffix in SCAN_SUFFIXES and not path.is_dir():
        known = {**dict.fromkeys(NRRD_SUFFIXES, Kind.NRRD), **dict.fromkeys(META_SUFFIXES, Kind.METAIMAGE)}
        return known.get(suffix, Kind.NIFTI if suffix in VOLUME_SUFFIXES else Kind.PICTURE)
    return Kind.DICOM if is_dicom(path) else Kind.OTHER


def case_name(path: Path) -> str:
    """The name of a scan's case: a folder's name, or the file's stem without nnU-Net's channel number.

    It is one folder's name, whatever the file is called (`storage.places.case_folder_name`).
    """
    path = Path(path)
    if path.is_dir():
        return case_folder_name(path.resolve().name)
    known = is_scan_file(path) or path.suffix.lower() in DICOM_SUFFIXES
    stem = stem_of(path) if known else path.name  # names of DICOM files are often full of dots
    return case_folder_name(stem.removesuffix("_0000"))


def digest_of(path: Path) -> str:
    """The SHA-256 of a scan: of the file; of a header and the file with its voxels; or of the files of a DICOM folder.

    Of several files it is that of their own, sorted, whatever they are called.
    """
    files = files_in(path) if path.is_dir() else files_of(path)
    if len(files) == 1 and not path.is_dir():
        return sha256_of(files[0])
    return hashlib.sha256("".join(sorted(sha256_of(file) for file in files)).encode()).hexdigest()


def files_of(path: Path) -> list[Path]:
    """The files that a scan is kept in: one, or a header and the file with its voxels."""
    path = nifti.header_of(path)
    suffix = suffix_of(path)
    formats = {
        nifti.PAIR_SUFFIX: nifti,
        **dict.fromkeys(NRRD_SUFFIXES, nrrd),
        **dict.fromkeys(META_SUFFIXES, metaimage),
    }
    try:
        data = formats[suffix].data_of(path) if suffix in formats else path
    except (ScanError, OSError):  # whoever reads it is told
        data = path
    return [path] if data == path else [path, data]
