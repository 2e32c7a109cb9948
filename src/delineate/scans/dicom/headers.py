"""DICOM headers, read without their pixels: what kind of object, which series, where each frame lies.

This runs in the child process of `delineate.scans.dicom.limits`; nothing here decodes an image.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset, FileDataset
from pydicom.filereader import read_dataset, read_file_meta_info
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from delineate.errors import ScanError
from delineate.scans.dicom.order import Plane
from delineate.scans.dicom.source import begins_as_dicom

DEFLATED = {"1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.205"}
RLE = "1.2.840.10008.1.2.5"
RLE_LIMIT = 64  # two bytes of PackBits stand for at most 128
NEEDED_BY_SEG = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
KINDS = {  # of modality: what else has pixels and is no picture of a patient
    "SEG": "a segmentation",
    "RTDOSE": "a radiotherapy dose",
    "RTSTRUCT": "a radiotherapy structure set",
    "RTPLAN": "a radiotherapy plan",
    "SR": "a report",
    "KO": "a key object selection",
    "PR": "a presentation state",
    "DOC": "a document",
    "REG": "a registration",
    "RWV": "a value mapping",
    "ECG": "a waveform",
    "SM": "a whole slide",
}
TAGS = [
    *("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID", "Modality"),
    *("SeriesNumber", "SeriesDescription", "InstanceNumber", "ImageType", "SpecificCharacterSet", "SliceThickness"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "PhotometricInterpretation"),
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "ImagerPixelSpacing"),
    *("NominalScannedPixelSpacing", "TotalPixelMatrixColumns", "RescaleSlope"),
    *("RescaleIntercept", "ModalityLUTSequence", "PixelPaddingValue", "PixelPaddingRangeLimit", "PixelRepresentation"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DirectoryRecordSequence"),
]


class NotAnImage(ScanError):
    """A DICOM file that holds something else: left out of a folder, refused alone."""


@dataclass(frozen=True, eq=False)
class Header:
    """What one file says before its pixels.

    Attributes:
        path: of the file.
        number: its place in the list of files that was asked for.
        data: the elements of `TAGS`.
        syntax: the transfer syntax.
        marked: whether it begins with a preamble and the mark DICM; the syntax of other files may be a guess.
        frames, rows, columns, samples: its size.
    """

    path: Path
    number: int
    data: Dataset
    syntax: UID
    marked: bool
    frames: int
    rows: int
    columns: int
    samples: int

    def text(self, keyword: str) -> str:
        """An element as one printable line of at most 64 characters."""
        return printable(self.data.get(keyword))

    @property
    def series(self) -> str:
        """What tells one series from another."""
        return self.text("SeriesInstanceUID")

    @property
    def is_grey(self) -> bool:
        """Whether a pixel is one number that stands for itself."""
        return self.samples == 1 and self.text("PhotometricInterpretation").startswith("MONOCHROME")


@dataclass(frozen=True)
class Frame:
    """One frame: its header, its number there from 0, its place (None if it has none), its pixel, its scaling."""

    header: Header
    number: int
    plane: Plane | None
    pixel_mm: tuple[float, float] | None
    thickness: float | None
    slope: float
    intercept: float


def printable(value: Any, length: int = 64) -> str:
    """Text from a file, made safe to show: one line, no control characters, at most `length` characters."""
    if isinstance(value, MultiValue | list | tuple):
        value = "\\".join(str(v) for v in value)
    return re.sub(
        r"\s+", " ", "".join(c if c.isprintable() else " " for c in ("" if value is None else str(value)))
    ).strip()[:length]


def read_header(path: Path, number: int, max_voxels: int) -> Header:
    """The header of one file, checked against the file's own size and `max_voxels`.

    Raises:
        NotAnImage: no DICOM, or DICOM without an image of a patient in it.
        ScanError: deflated; without a transfer syntax; larger than allowed or than its bytes can hold; damaged.
    """
    with path.open("rb") as file:
        start = file.read(132)
        if not begins_as_dicom(start):
            raise NotAnImage(f"{path}: a DICOM file must begin as DICOM does, this one does not; name another file")
        marked = start[128:] == b"DICM"
    try:
        meta = read_file_meta_info(path) if marked else _bare_meta(path)
        syntax = UID(str(meta.get("TransferSyntaxUID", "")))
        if syntax in DEFLATED:
            raise ScanError(
                f"{path}: deflated DICOM is not read, since it can expand a thousandfold before any check; convert it, "
                "for example with dcmconv +te"
            )
        if not syntax and marked:
            raise ScanError(f"{path}: a DICOM file must name its transfer syntax, this one does not; export it again")
        data = read_whole(path, stop_before_pixels=True, specific_tags=list(TAGS))
        return replace(_checked(path, number, data, data.file_meta.TransferSyntaxUID, max_voxels), marked=marked)
    except (ScanError, MemoryError):
        raise
    except Exception as error:  # damaged headers raise nearly anything
        raise ScanError(f"{path}: the DICOM header must be readable, this one is damaged ({_line(error)})") from error


def read_whole(path: Path | str, **options: Any) -> FileDataset:
    """A file's elements, also without a preamble; a transfer syntax that it does not name is guessed by pydicom."""
    data = pydicom.dcmread(path, force=True, **options)
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        plain = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else plain
    return data


def _bare_meta(path: Path) -> Dataset:
    """The file meta information at the very beginning of a file; none where it begins with something else."""
    with path.open("rb") as file:
        return read_dataset(file, False, True, stop_when=lambda tag, vr, size: tag.group != 2)


def _checked(path: Path, number: int, data: Dataset, syntax: UID, max_voxels: int) -> Header:
    modality, kind = printable(data.get("Modality")), UID(str(data.get("SOPClassUID", ""))).name
    if "DirectoryRecordSequence" in data or kind == "Media Storage Directory Storage":
        raise NotAnImage(f"{path}: a scan must be images, found a list of other files (DICOMDIR); give their folder")
    rows, columns = (whole(data, key, 0) for key in ("Rows", "Columns"))
    if modality in KINDS or "TotalPixelMatrixColumns" in data or whole(data, "BitsAllocated", 0) == 1:
        found = KINDS.get(modality) or ("a whole slide" if "TotalPixelMatrixColumns" in data else "a mask")
        raise NotAnImage(f"{path}: a scan must be an image, found {found}; name the images it belongs to")
    if rows < 1 or columns < 1:
        raise NotAnImage(f"{path}: a scan must be an image, found no rows ({printable(kind)})")
    frames, samples = whole(data, "NumberOfFrames", 1), whole(data, "SamplesPerPixel", 1)
    header = Header(path, number, data, syntax, True, max(frames, 1), rows, columns, samples)
    size, bits = path.stat().st_size, whole(data, "BitsAllocated", 16)
    voxels = header.frames * rows * columns * samples
    asked = f"{header.frames} x {rows} x {columns}" + (f" x {samples}" if samples > 1 else "")
    if samples not in (1, 3):
        raise ScanError(f"{path}: a pixel must hold one value or three colours, found {samples} samples")
    if voxels > max_voxels:
        raise ScanError(f"{path}: at most {max_voxels} voxels are read, the header asks for {asked}; crop it first")
    expands = RLE_LIMIT if syntax == RLE else None if syntax.is_encapsulated else 1
    halves = 2 if "422" in header.text("PhotometricInterpretation") else 1  # stored with half the colours
    if expands is not None and voxels * bits // 8 > expands * size * halves:
        raise ScanError(
            f"{path}: the header asks for {asked} at {bits} bits, but a file of {size} bytes cannot hold them; it was "
            "cut short or its header is wrong: copy it again"
        )
    return header


def frames_of(header: Header) -> list[Frame]:
    """Every frame of a file with its place; those of an enhanced object from its functional groups."""
    data = header.data
    if "PerFrameFunctionalGroupsSequence" not in data or not len(data.PerFrameFunctionalGroupsSequence):
        return [_frame(header, n, [data]) for n in range(header.frames)]
    groups = data.PerFrameFunctionalGroupsSequence
    if len(groups) != header.frames:
        raise ScanError(
            f"{header.path}: every frame must be described, found {header.frames} frames and {len(groups)} descriptions"
        )
    shared = list(data.get("SharedFunctionalGroupsSequence") or [])
    macros = ("PlanePosition", "PlaneOrientation", "PixelMeasures", "PixelValueTransformation")
    made = []
    for n, own in enumerate(groups):
        items: list[Dataset] = []
        for name in macros:
            for group in (own, *shared):
                if found := group.get(f"{name}Sequence"):
                    items.append(found[0])
                    break
        made.append(_frame(header, n, [*items, data]))
    return made


def _frame(header: Header, number: int, items: Sequence[Dataset]) -> Frame:
    """A frame from the first of `items` that has each element; of a plain multi-frame file none has a place."""

    def told(keyword: str, count: int) -> tuple[float, ...] | None:
        return next((found for item in items if (found := numbers(item, keyword, count)) is not None), None)

    position, directions = told("ImagePositionPatient", 3), told("ImageOrientationPatient", 6)
    plane = None
    if position is not None and directions is not None and (header.frames == 1 or len(items) > 1):
        plane = _plane(header.path, position, directions)
    pixel = told("PixelSpacing", 2)
    slope, intercept = told("RescaleSlope", 1), told("RescaleIntercept", 1)
    thickness = told("SliceThickness", 1)
    return Frame(
        header,
        number,
        plane,
        (pixel[0], pixel[1]) if pixel and min(pixel) > 0 else None,
        thickness[0] if thickness and thickness[0] > 0 else None,
        slope[0] if slope and slope[0] != 0 else 1.0,
        intercept[0] if intercept else 0.0,
    )


def _plane(path: Path, position: tuple[float, ...], directions: tuple[float, ...]) -> Plane:
    row, column = directions[:3], directions[3:]
    lengths = [sum(v * v for v in axis) ** 0.5 for axis in (row, column)]
    cosine = sum(a * b for a, b in zip(row, column, strict=True))
    if max(abs(length - 1) for length in lengths) > 1e-2 or abs(cosine) > 1e-2:
        raise ScanError(
            f"{path}: rows and columns must be at right angles, but ImageOrientationPatient is "
            f"{[round(v, 4) for v in directions]}; export it again from its source"
        )
    x, y, z = position
    first, second = ([v / n for v in axis] for axis, n in zip((row, column), lengths, strict=True))
    return Plane((x, y, z), (first[0], first[1], first[2]), (second[0], second[1], second[2]))


def numbers(item: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """An element as `count` finite numbers; None where it is absent, empty or something else."""
    try:
        value = item.get(keyword)
        found = [float(v) for v in (value if isinstance(value, MultiValue | list) else [value])]
    except (TypeError, ValueError, OverflowError):
        return None
    return tuple(found) if len(found) == count and all(abs(v) < 1e9 for v in found) else None


def whole(item: Dataset, keyword: str, default: int) -> int:
    """An element as a whole number, or `default`."""
    found = numbers(item, keyword, 1)
    return default if found is None else int(found[0])


def _line(error: BaseException) -> str:
    return printable(f"{type(error).__name__}: {error}")
