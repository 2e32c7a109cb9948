"""What can be reviewed: a scan, a folder of scans, or a folder that `delineate segment` wrote, with its answers."""

import gzip
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import nibabel
import numpy as np

from delineate.errors import ScanError
from delineate.review.answers import Answer, answers_of_run
from delineate.review.schema import CaseInfo, Window
from delineate.scans.finding import Found, Kind, case_name, digest_of, look_for_scans
from delineate.scans.intensity import intensity_range, is_in_hounsfield_units
from delineate.scans.reading import read_scan
from delineate.scans.scan import Scan
from delineate.storage.places import place_for, read_case

CT_WINDOWS = {  # (black, white) in HU, as radiologists set them: level -+ half the width
    "abdomen": (-125.0, 275.0),
    "lung": (-1350.0, 150.0),
    "bone": (-450.0, 1050.0),
    "brain": (0.0, 80.0),
    "liver": (-35.0, 115.0),
    "mediastinum": (-160.0, 240.0),
}
MOST_SCANS = 3  # kept in memory at once


@dataclass(frozen=True, eq=False)
class ReviewCase:
    """A scan to be reviewed and where what is made of it is kept. The scan is read when it is first looked at.

    Attributes:
        id: for the time of one run.
        name: for people.
        file: the scan's.
        place: everything that is made of it goes below, in `review/<user>/`, unless that is another scan's (`folder`).
        sha256: what the file must be; None where nobody has looked at it before.
        reading: how `read_scan` is to read it.
        earlier: answers that `delineate segment` gave, the same for everybody.
    """

    id: str
    name: str
    file: Path
    place: Path
    sha256: str | None = None
    reading: Mapping[str, Any] = field(default_factory=dict)
    earlier: tuple[Answer, ...] = ()
    _lock: Any = field(default_factory=Lock, repr=False)

    @property
    def opened(self) -> bool:
        """Whether `info` is known already."""
        return "info" in self.__dict__

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the scan's file.

        Raises:
            ScanError: it is missing, or is not the file that was segmented.
        """
        if not self.file.exists():
            raise ScanError(f"{self.file}: the scan of '{self.name}' is not there; run from the folder it was named in")
        digest = digest_of(self.file)
        if self.sha256 not in (None, digest):
            raise ScanError(
                f"{self.file}: the scan must be the one that was segmented, but its content changed; segment it again"
            )
        return digest

    @cached_property
    def folder(self) -> Path:
        """`place`, or one beside it where that holds the work on another scan of the same name.

        Raises:
            ScanError: as `digest`; or `delineate segment` replaced the scan that was reviewed here.
        """
        own = place_for(self.place.parent, self.place.name, self.digest)
        if own != self.place and self.sha256 is not None:
            raise ScanError(
                f"{self.place}: holds a review of another scan of this name; move its folder 'review' away, or segment "
                "this scan into another folder"
            )
        return own

    @cached_property
    def info(self) -> CaseInfo:
        """What is told of the case.

        Raises:
            ScanError: the scan cannot be read, or changed.
        """
        with self._lock:
            if self.opened:
                return self.__dict__["info"]
            told = describe(self, self.scan())
            if self.folder != self.place:
                told.notes.append(
                    f"{self.place} holds the work on another scan of this name; this one's is in {self.folder}"
                )
            return told

    def scan(self) -> Scan:
        """The scan; of all cases, the last few are kept.

        Raises:
            ScanError: it cannot be read, or changed.
        """
        with _KEPT_LOCK:
            kept = _KEPT.pop(id(self), None)
            if kept is None:
                _ = self.digest
                kept = self, self._read()
            _KEPT[id(self)] = kept
            while len(_KEPT) > MOST_SCANS:
                del _KEPT[next(iter(_KEPT))]
            return kept[1]

    def _read(self) -> Scan:
        found = Found.at(self.file)
        left_out = () if found.kind is Kind.DICOM else ("series", "fill_gaps")
        return read_scan(found, **{k: v for k, v in self.reading.items() if k not in left_out})


_KEPT: dict[int, tuple[ReviewCase, Scan]] = {}
_KEPT_LOCK = Lock()


def find_cases(
    path: Path, output: Path | None = None, *, on_left_out: Callable[[str], None] = lambda line: None, **reading: Any
) -> list[ReviewCase]:
    """The cases that `path` stands for, in order of their names.

    Args:
        path: a folder that `delineate segment` wrote, one case folder of it, a scan, or a folder of scans.
        output: where to keep what is made of scans; `<stem>-review` in the current folder for None. Cases of a
            `segment` folder keep it in their own folders.
        on_left_out: told, a line each, what lies there and is no case.
        reading: what `read_scan` is told: `modality`, `volume`, `series`, `fill_gaps`; None and False are left out.

    Raises:
        ScanError: nothing to review there, or `output` given for a `segment` folder.
    """
    path, reading = Path(path), _said(reading)
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder; check the path")
    done = sorted(path.glob("[!.]*/case.json")) if path.is_dir() else []  # hidden is what is being built
    if path.is_dir() and not done:
        done = sorted(path.glob("cases/[!.]*/case.json"))  # of `segment --layout bids`
    if (path / "case.json").is_file():
        done = [path / "case.json"]
    if done:
        if output is not None:
            raise ScanError(f"{path}: a folder of `delineate segment` keeps its reviews itself; leave --output out")
        return [_segmented(number, file, reading) for number, file in enumerate(done)]
    looked = look_for_scans(path)
    for line in looked.left_out:
        on_left_out(line)
    scans = looked.scans
    folder = Path(f"{case_name(path)}-review") if output is None else Path(output)
    single = len(scans) == 1 and scans[0].path == path
    return [
        ReviewCase(f"c{n}", scan.name, scan.path, folder if single else folder / scan.name, reading=reading)
        for n, scan in enumerate(scans)
    ]


def _segmented(number: int, done: Path, reading: Mapping[str, Any]) -> ReviewCase:
    """A case that `delineate segment` finished."""
    try:
        entry = read_case(done.parent) or {}
        request = entry["request"]
        file, sha256, name = Path(entry["file"]), entry["sha256"], entry["case"]
        asked = _said({name: request.get(name) for name in ("modality", "volume", "series", "fill_gaps")})
        earlier = answers_of_run(done.parent, entry)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScanError(f"{done}: not a case.json of this release; run `delineate segment` again") from error
    if not file.exists() and (beside := done.parent.parent.parent / file).exists():
        file = beside
    return ReviewCase(f"c{number}", name, file, done.parent, sha256, {**asked, **reading}, earlier)


def _said(reading: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in reading.items() if value is not None and value is not False}


def describe(case: ReviewCase, scan: Scan) -> CaseInfo:
    """What is told of a scan."""
    low, high = float(scan.voxels.min()), float(scan.voxels.max())
    return CaseInfo(
        id=case.id,
        name=case.name,
        flat=scan.is_flat,
        colour=scan.is_colour,
        shape=scan.shape,
        spacing_mm=scan.spacing_mm,
        has_spacing=scan.has_spacing,
        axis_codes=scan.axis_codes,
        modality=scan.modality,
        notes=list(scan.notes),
        intensity=(low, high),
        windows=windows_of(scan),
        dicom=scan.dicom is not None,
    )


def windows_of(scan: Scan) -> list[Window]:
    """Ranges of grey values to choose from, the one to begin with first; colours need none but the whole."""
    whole = Window(name="whole range", low=float(scan.voxels.min()), high=float(scan.voxels.max()))
    if scan.is_colour:
        return [whole]
    hounsfield = is_in_hounsfield_units(scan.voxels, scan.modality)
    low, high = intensity_range(scan.voxels, None)  # by percentiles, whatever the modality
    auto = Window(name="auto", low=low, high=high)
    known = CT_WINDOWS if hounsfield else {}
    return [*(Window(name=name, low=black, high=white) for name, (black, white) in known.items()), auto, whole]


def scan_as_nifti(scan: Scan) -> bytes:
    """The scan as a gzipped NIfTI file: int16 where its values are whole and fit, else float32; colours as RGB24."""
    if scan.is_colour:
        bright = scan.voxels * np.float32(255 / 65535) if scan.voxels.max() > 255 else scan.voxels
        stored = np.ascontiguousarray(np.rint(bright).clip(0, 255).astype(np.uint8))
        stored = stored.view([("R", "u1"), ("G", "u1"), ("B", "u1")])[..., 0]
    else:
        stored = scan.voxels.astype(np.float32)
        if np.abs(stored).max() <= np.iinfo(np.int16).max and np.array_equal(stored, np.rint(stored)):
            stored = stored.astype(np.int16)
    return _nifti(stored, scan, packed=0)  # noise hardly shrinks, and the way is short


def doubt_as_nifti(doubt: np.ndarray, scan: Scan) -> bytes:
    """A doubt in [0, 1] as a gzipped NIfTI file of 0 to 255."""
    return _nifti(np.rint(doubt.clip(0, 1) * 255).astype(np.uint8), scan, packed=1)


def _nifti(stored: np.ndarray, scan: Scan, packed: int) -> bytes:
    image = nibabel.Nifti1Image(stored, scan.affine)
    image.set_sform(scan.affine, scan.space_code)
    image.set_qform(scan.affine, scan.space_code)
    image.header.set_xyzt_units("mm")
    return gzip.compress(image.to_bytes(), compresslevel=packed, mtime=0)
