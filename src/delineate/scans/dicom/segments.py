"""DICOM SEG through highdicom: segments with codes, on the frames of their source, read back and compared.

`write` is a job of the child process of `delineate.scans.dicom.limits`, since it reads headers of strangers.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
from highdicom.seg import SegmentationTypeValues, SegmentDescription
from pydicom.dataset import Dataset, FileDataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import ExplicitVRLittleEndian, RLELossless

from delineate import __version__
from delineate.errors import ScanError
from delineate.prompts.colours import rgb_of
from delineate.scans.dicom.codes import ANATOMY, SCHEME, TERMS, private_code
from delineate.scans.dicom.headers import numbers, read_whole
from delineate.scans.dicom.objects import MADE

EMPTY_IF_ABSENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID")
MAY_BE_EMPTY = (*EMPTY_IF_ABSENT, "StudyDate", "StudyTime", "ReferringPhysicianName")
LEVELS = 255  # of a fractional segment: 8 bits


def write(job: dict[str, Any], folder: Path, allow: Callable[[int], None]) -> dict[str, Any]:
    """Write `folder/made.dcm` from `folder/masks.npy`, and return how many frames it has.

    Args:
        job: "name", "files", "frames" [[file, frame] | null, …], "segments" [name, …], "concepts", "kind", "compress",
            "algorithm", "by", "description", "spacing_mm" (slices, rows, columns; null where it is not known).
        folder: holds uint8 (segments, K, rows, columns): 0 and 1, or 0 to 255 for fractional.
        allow: told how many bytes this takes.
    """
    packed = np.load(folder / "masks.npy", mmap_mode="r", allow_pickle=False)
    allow(20 * packed.size + 40 * packed[0, 0].size)  # highdicom holds floats and copies of them
    sources = sources_of(job)
    stored, places = _by_source(packed, job["frames"], sources)
    kind, fractional = SegmentationTypeValues[job["kind"].upper()], job["kind"] == "fractional"
    values = stored.astype(np.float32) / LEVELS if fractional else stored.astype(bool)
    made = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=values,
        segmentation_type=kind,
        segment_descriptions=[_described(n, name, job) for n, name in enumerate(job["segments"], start=1)],
        series_instance_uid=highdicom.UID(),
        series_number=series_number(sources[0]),
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="delineate",
        manufacturer_model_name="delineate",
        software_versions=__version__,
        device_serial_number="0",
        max_fractional_value=LEVELS,
        content_label="SEGMENTATION",
        content_description="Research only, not for diagnosis",
        pixel_measures=_measures(job["spacing_mm"], sources[0]),
        specific_character_set="ISO_IR 192",  # UTF-8: names may be written in any script
        series_description=job["description"],
        omit_empty_frames=bool(stored.any()),
        transfer_syntax_uid=RLELossless if job["compress"] and job["kind"] != "binary" else ExplicitVRLittleEndian,
    )
    path = folder / MADE
    made.preamble = b"\0" * 128
    made.save_as(path)
    _compare(job["name"], path, stored, places, sources, made)
    return {"frames": int(made.NumberOfFrames), "sop_instance_uid": str(made.SOPInstanceUID)}


def sources_of(job: dict[str, Any]) -> list[FileDataset]:
    """The headers of a series, what may be empty there filled with nothing.

    Raises:
        ScanError: several multi-frame files.
    """
    sources = [read_whole(path, stop_before_pixels=True) for path in job["files"]]
    for source in sources:
        for keyword in MAY_BE_EMPTY:
            if keyword not in source:
                setattr(source, keyword, "")
    if len(sources) > 1 and any("NumberOfFrames" in s and int(s.NumberOfFrames or 1) > 1 for s in sources):
        raise ScanError(
            f"{job['name']}: what is drawn belongs to single images or to one multi-frame file, found several of these"
        )
    return sources


def _by_source(
    packed: np.ndarray, frames: Sequence[Any], sources: Sequence[Dataset]
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """uint8 (frames of the source, rows, columns, segments), and which (file, frame) each of them is."""
    count = int(sources[0].get("NumberOfFrames") or 1) if len(sources) == 1 else len(sources)
    places = [(0, n) for n in range(count)] if len(sources) == 1 else [(n, 0) for n in range(count)]
    stored = np.zeros((count, *packed.shape[2:], packed.shape[0]), np.uint8)
    for k, place in enumerate(frames):
        if place is not None:  # a slice made up between two others has no source to lie on
            stored[places.index(tuple(place))] = np.moveaxis(packed[:, k], 0, -1)
    return stored, places


def _described(number: int, name: str, job: dict[str, Any]) -> SegmentDescription:
    category, kind, modifier, regions = concepts(job["concepts"].get(name, name))
    by = job["by"].upper()
    identification = highdicom.AlgorithmIdentificationSequence(
        name=job["algorithm"][:64], family=codes.cid7162.ArtificialIntelligence, version=__version__
    )
    made = SegmentDescription(
        segment_number=number,
        segment_label=name[:64],
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=by,
        algorithm_identification=None if by == "MANUAL" else identification,
        anatomic_regions=regions or None,
        display_color=highdicom.color.CIELabColor.from_rgb(*rgb_of(job["concepts"].get(name, name))),
    )
    if modifier is not None:
        coded = highdicom.sr.CodedConcept.from_code(modifier)
        made.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [coded]
    return made


def concepts(name: str) -> tuple[Code, Code, Code | None, list[Code]]:
    """Category, type, modifier and regions of a name; a private code where no public one is known."""
    term = TERMS.get(" ".join(name.lower().split()))
    if term is None:
        return getattr(codes.SCT, ANATOMY), Code(private_code(name), SCHEME, name[:64]), None, []
    modifier = None if term.modifier is None else getattr(codes.SCT, term.modifier)
    return (
        getattr(codes.SCT, term.category),
        getattr(codes.SCT, term.kind),
        modifier,
        [getattr(codes.SCT, region) for region in term.regions],
    )


def _measures(spacing_mm: Sequence[float] | None, source: Dataset) -> highdicom.PixelMeasuresSequence | None:
    """The size of a voxel. Some readers want a thickness even where the source gives none: then it is the spacing."""
    if spacing_mm is None:
        return None
    between, rows, columns = spacing_mm
    told = numbers(source, "SliceThickness", 1) or (0.0,)
    return highdicom.PixelMeasuresSequence((rows, columns), told[0] if told[0] > 0 else between, between)


def describe_equipment(made: Dataset) -> None:
    """Say in an object that highdicom did not make what made it, and when."""
    now = datetime.now()
    made.Manufacturer = made.ManufacturerModelName = "delineate"
    made.SoftwareVersions, made.DeviceSerialNumber = __version__, "0"
    made.InstanceCreationDate, made.InstanceCreationTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")


def series_number(source: Dataset) -> int:
    """Behind the source's own, as scanners number what they derive."""
    try:
        return min(100 * int(source.get("SeriesNumber") or 0) + 99, 99_999)
    except (TypeError, ValueError):
        return 99


def _compare(
    name: str,
    path: Path,
    stored: np.ndarray,
    places: Sequence[tuple[int, int]],
    sources: Sequence[Dataset],
    made: Dataset,
) -> None:
    """Read the file back, frame by frame at its source, and compare it with what was to be written."""
    back = highdicom.seg.segread(path)
    options = {
        "segment_numbers": list(range(1, stored.shape[-1] + 1)),
        "combine_segments": False,
        "rescale_fractional": False,
        "assert_missing_frames_are_empty": True,
        "ignore_spatial_locations": True,
    }
    if len(sources) == 1 and len(places) > 1:
        numbers = [n + 1 for _, n in places]
        read = back.get_pixels_by_source_frame(sources[0].SOPInstanceUID, numbers, **options)
    else:
        read = back.get_pixels_by_source_instance([s.SOPInstanceUID for s in sources], **options)
    if not np.array_equal(read, stored) or back.SOPInstanceUID != made.SOPInstanceUID:
        raise ScanError(f"{name}: the DICOM SEG does not read back the same; nothing was kept, check the disk")
