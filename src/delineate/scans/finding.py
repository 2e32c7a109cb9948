"""Where scans lie: files and folders, what they are, and what a case is called."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path

from delineate.errors import ScanError
from delineate.scans import metaimage, nifti, nrrd
from delineate.scans.archives import in_words, is_archive
from delineate.scans.dicom.folders import holds, look_below
from delineate.scans.dicom.source import DICOM_SUFFIXES, files_in, is_dicom
from delineate.scans.metaimage import META_SUFFIXES
from delineate.scans.nrrd import NRRD_SUFFIXES, SEGMENTATION_SUFFIX
from delineate.scans.scan import SCAN_SUFFIXES, VOLUME_SUFFIXES, is_scan_file, stem_of, suffix_of
from delineate.storage.files import sha256_of
from delineate.storage.hidden import without_hidden
from delineate.storage.places import case_folder_name

MOST_PACKED = 3  # archives of a folder that are told of


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
        more: the files of its further channels, in their order.
    """

    path: Path
    name: str
    kind: Kind
    more: tuple[Path, ...] = ()

    @classmethod
    def at(cls, path: Path | str) -> "Found":
        """What lies at `path`."""
        path = nifti.header_of(Path(path))
        return cls(path, case_name(path), kind_of(path))

    @cached_property
    def digest(self) -> str:
        """As `digest_of`, when it is first asked for; of several channels that of theirs, in their order."""
        if not self.more:
            return digest_of(self.path)
        return hashlib.sha256("".join(map(digest_of, (self.path, *self.more))).encode()).hexdigest()


@dataclass(frozen=True)
class Looked:
    """What a path was found to stand for.

    Attributes:
        scans: sorted by path.
        left_out: what else lies there that somebody might take for a scan, a line each.
    """

    scans: list[Found]
    left_out: tuple[str, ...] = ()


def find_scans(path: Path) -> list[Found]:
    """The scans that `path` stands for, as `look_for_scans`."""
    return look_for_scans(path).scans


def look_for_scans(path: Path) -> Looked:
    """The scans that `path` stands for: itself, or all files directly in the folder and all DICOM in it or below.

    Every folder with DICOM images directly in it is one scan, at any depth (an export: patient, study, series); its
    name is the way to it.

    Raises:
        ScanError: nothing there, a packed folder (which is never unpacked here; those in a folder are left out), DICOM
            beside files of volumes, or two scans that would be written to the same case folder.
    """
    path = Path(path)
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder; check the path")
    if path.is_file() and is_archive(path):
        raise ScanError(f"{path}: {in_words(path)}")
    if path.is_file():
        return Looked([Found.at(path)])
    if not path.is_dir():
        raise ScanError(f"{path}: a scan must be a file or a folder, this is a pipe or a device; name a file")
    lying = sorted(p for p in path.iterdir() if p.is_file())
    files = [p for p in lying if is_scan_file(p)]
    segments = [p for p in files if suffix_of(p) == SEGMENTATION_SUFFIX]
    scans = [Found.at(p) for p in files if p not in segments]
    below = look_below(path)
    if holds(path) == "":
        if volumes := [p.name for p in files if suffix_of(p) in VOLUME_SUFFIXES]:
            raise ScanError(
                f"{path}: found DICOM beside {len(volumes)} files of volumes ({volumes[0]}); name one, or part them in "
                "two folders"
            )
        scans = [Found.at(path)]
    left_out = {"segmentations of 3D Slicer": segments, **below.left_out}
    packed = [f"{p}: left out: {in_words(p)}" for p in lying if is_archive(p)][:MOST_PACKED]
    lines = (*(_left_out(path, what, these) for what, these in left_out.items() if these), *packed)
    found = sorted([*scans, *_series(path, below.series)], key=lambda one: one.path)
    if not found and is_dicom(path):
        return Looked([Found.at(path)], lines)  # whoever reads it is told what it holds
    if not found:
        raise ScanError(
            f"{path}: no scan in this folder; files of {', '.join(SCAN_SUFFIXES)} are looked for directly in it, and "
            f"DICOM also below{'; ' * bool(lines)}{'; '.join(line.removeprefix(f'{path}: ') for line in lines)}"
        )
    names = Counter(one.name.casefold() for one in found)  # some file systems do not tell upper from lower case
    for one in found:
        if names[one.name.casefold()] > 1:
            raise ScanError(f"{one.path}: another scan of this folder is also called '{one.name}'; rename one of them")
    return Looked(found, lines)


def by_channel(scans: Sequence[Found], channels: Sequence[str]) -> list[Found]:
    """Scans of several channels, of which `scans` are files: `NAME_0000`, `NAME_0001`, … are one.

    Of a single file the others are looked for beside it. A file without a number stays: it may hold them all.

    Raises:
        ScanError: a channel is not there.
    """
    numbered: dict[tuple[Path, str], dict[int, Path]] = {}
    whole = []
    files = scans[0].path.parent.iterdir() if len(scans) == 1 and scans[0].path.is_file() else (s.path for s in scans)
    wanted = {_channel_of(scan.path)[:2] for scan in scans}
    for path in sorted(files):
        folder, name, number = _channel_of(path)
        if is_scan_file(path) and number is not None and number < len(channels) and (folder, name) in wanted:
            numbered.setdefault((folder, name), {})[number] = path
    for scan in scans:
        if _channel_of(scan.path)[2] is None or scan.path.is_dir():
            whole.append(scan)
    for (folder, name), own in numbered.items():
        if lacking := [k for k in range(len(channels)) if k not in own]:
            k = lacking[0]
            raise ScanError(
                f"{folder / name}: the model reads {len(channels)} channels ({', '.join(channels)}), and {channels[k]} "
                f"is not there; add {name}_{k:04d}.*"
            )
        first, *others = (own[k] for k in range(len(channels)))
        whole.append(Found(first, case_name(first), kind_of(first), tuple(others)))
    return sorted(whole, key=lambda one: one.path)


def _channel_of(path: Path) -> tuple[Path, str, int | None]:
    """The folder, the name without its channel's number, and that number; None without one."""
    found = re.fullmatch(r"(.+)_(\d{4})", stem_of(path))
    return (path.parent, found[1], int(found[2])) if found else (path.parent, stem_of(path), None)


def _series(root: Path, folders: Sequence[Path]) -> list[Found]:
    """Series below `root`, each with a name that tells it from the others: that of its folder, or the way to it."""
    ways = {folder: folder.relative_to(root).parts for folder in folders}
    names = {f: case_name(f) if len(way) == 1 else case_folder_name("-".join(way)) for f, way in ways.items()}
    count = Counter(name.casefold() for name in names.values())
    for folder, way in ways.items():
        if len(way) > 1 and count[names[folder].casefold()] > 1:  # a-b/c and a/b-c
            digest = hashlib.sha256("/".join(way).encode(errors="surrogatepass")).hexdigest()[:8]
            names[folder] = case_folder_name(f"{'-'.join(way)}-{digest}")
    return [Found(folder, name, Kind.DICOM) for folder, name in names.items()]


def _left_out(root: Path, what: str, paths: Sequence[Path]) -> str:
    shown = ", ".join(without_hidden(str(p.relative_to(root))) for p in paths[:3])
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"{root}: left out: {what} ({shown}{more})"


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
