"""RT Structure Sets through pydicom: contours on the images of a series, filled again and compared.

`write` is a job of the child process of `delineate.scans.dicom.limits`, since it reads headers of strangers. highdicom
has no such object; rt-utils draws through the centres of pixels and stacks slices along their normal, tilted or not.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

from delineate.errors import ScanError
from delineate.prompts.colours import rgb_of
from delineate.scans.dicom.codes import ANATOMY
from delineate.scans.dicom.contours import filled, outlines
from delineate.scans.dicom.headers import Frame, frames_of, read_header
from delineate.scans.dicom.objects import MADE
from delineate.scans.dicom.segments import concepts, describe_equipment, series_number, sources_of
from delineate.scans.scan import MAX_VOXELS

DETACHED_STUDY = "1.2.840.10008.3.1.2.3.1"  # the class that PS3.3, C.8.8.5.2 asks for, retired as it is


def write(job: dict[str, Any], folder: Path, allow: Callable[[int], None]) -> dict[str, Any]:
    """Write `folder/made.dcm` from `folder/masks.npy`, and return how many contours it has.

    Args:
        job: "name", "files", "frames" [[file, frame] | null, …], "segments" [name, …], "concepts", "algorithm", "by",
            "shifts" [[rows, columns], …] | null of a tilted series.
        folder: holds bool (segments, K, I, J), the masks on the slices of the scan.
        allow: told how many bytes this takes.
    """
    masks = np.load(folder / "masks.npy", mmap_mode="r", allow_pickle=False)
    allow(5 * masks.size + 400 * masks[0, 0].size)
    sources = sources_of(job)
    frames = [_frame(job, place) for place in job["frames"]]
    made = _empty(sources[0], job)
    images = [_image(source) for source in sources]
    made.ReferencedFrameOfReferenceSequence = Items([_referenced(sources[0], images)])
    for number, name in enumerate(job["segments"], start=1):
        region, drawn, observed = _region(number, name, job, made.FrameOfReferenceUID)
        contours = []
        for k in np.flatnonzero(masks[number - 1].any(axis=(1, 2))):
            if (frame := frames[k]) is None:  # a slice made up between two others has no image to lie on
                continue
            shift = np.zeros(2) if job["shifts"] is None else np.array(job["shifts"][k])
            contours += [_contour(p - shift, frame, images, job["frames"][k]) for p in outlines(masks[number - 1, k])]
        if not contours:
            raise ScanError(f"{job['name']}: {name} lies on made-up slices only, which have no image; leave it out")
        for n, contour in enumerate(contours, start=1):
            contour.ContourNumber = n
        drawn.ContourSequence = Items(contours)
        made.StructureSetROISequence.append(region)
        made.ROIContourSequence.append(drawn)
        made.RTROIObservationsSequence.append(observed)
    path = folder / MADE
    made.save_as(path, enforce_file_format=True)
    _compare(job, path, masks, frames)
    return {
        "contours": sum(len(drawn.ContourSequence) for drawn in made.ROIContourSequence),
        "sop_instance_uid": str(made.SOPInstanceUID),
    }


def _frame(job: dict[str, Any], place: Sequence[int] | None) -> Frame | None:
    if place is None:
        return None
    return frames_of(read_header(Path(job["files"][place[0]]), place[0], MAX_VOXELS))[place[1]]


def _empty(source: Dataset, job: dict[str, Any]) -> Dataset:
    """A structure set of the patient and study of `source`, without regions."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = RTStructureSetStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: names may be written in any script
    for keyword in (
        *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime"),
        *("StudyID", "AccessionNumber", "ReferringPhysicianName", "FrameOfReferenceUID"),
    ):
        setattr(made, keyword, source.get(keyword, ""))
    made.PositionReferenceIndicator = source.get("PositionReferenceIndicator", "")
    made.Modality, made.SeriesInstanceUID = "RTSTRUCT", generate_uid()
    made.SeriesNumber, made.InstanceNumber = series_number(source) + 1, 1
    made.SeriesDescription = f"Contours: {', '.join(job['segments'])}"[:64]
    describe_equipment(made)
    made.OperatorsName = ""
    made.StructureSetLabel, made.StructureSetName = "DELINEATE", f"Contours: {', '.join(job['segments'])}"[:64]
    made.StructureSetDescription = f"Research only, not for diagnosis or treatment. By {job['algorithm']}"[:1024]
    made.StructureSetDate, made.StructureSetTime = made.InstanceCreationDate, made.InstanceCreationTime
    made.ApprovalStatus = "UNAPPROVED"
    made.StructureSetROISequence, made.ROIContourSequence = Items(), Items()
    made.RTROIObservationsSequence = Items()
    return made


def _image(source: Dataset) -> Dataset:
    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    return image


def _referenced(source: Dataset, images: Sequence[Dataset]) -> Dataset:
    """The series that contours are drawn on."""
    frame, study, series = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID, series.ContourImageSequence = source.SeriesInstanceUID, Items(images)
    study.ReferencedSOPClassUID, study.ReferencedSOPInstanceUID = DETACHED_STUDY, source.StudyInstanceUID
    study.RTReferencedSeriesSequence = Items([series])
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = source.FrameOfReferenceUID, Items([study])
    return frame


def _region(number: int, name: str, job: dict[str, Any], frame_uid: str) -> tuple[Dataset, Dataset, Dataset]:
    """What is said of a region in the three lists of a structure set."""
    region, drawn, observed = Dataset(), Dataset(), Dataset()
    known = job["concepts"].get(name, name)
    category, kind, modifier, _ = concepts(known)
    region.ROINumber, region.ReferencedFrameOfReferenceUID, region.ROIName = number, frame_uid, name[:64]
    region.ROIGenerationAlgorithm = job["by"].upper()
    region.ROIGenerationDescription = job["algorithm"][:64]
    drawn.ReferencedROINumber, drawn.ROIDisplayColor = number, list(rgb_of(known))
    observed.ObservationNumber, observed.ReferencedROINumber = number, number
    observed.ROIObservationLabel = name[:16].strip()
    code = _code(kind)
    if modifier is not None:
        code.SegmentedPropertyTypeModifierCodeSequence = Items([_code(modifier)])
    observed.RTROIIdentificationCodeSequence = Items([code])
    observed.RTROIInterpretedType = "ORGAN" if category == getattr(codes.SCT, ANATOMY) else ""
    observed.ROIInterpreter = ""
    return region, drawn, observed


def _code(code: Any) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item


def _contour(polygon: np.ndarray, frame: Frame, images: Sequence[Dataset], place: Sequence[int]) -> Dataset:
    """A polygon, in rows and columns of a frame, in the patient."""
    origin, rows, columns = _axes(frame)
    points = origin + polygon[:, :1] * rows + polygon[:, 1:] * columns
    contour, image = Dataset(), Dataset()
    image.update(images[place[0]])
    if frame.header.frames > 1:
        image.ReferencedFrameNumber = place[1] + 1
    contour.ContourImageSequence = Items([image])
    contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(points)
    contour.ContourData = [f"{value:.4f}" for value in points.ravel()]
    return contour


def _axes(frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first pixel of a frame, and the steps of a row and of a column: (3,) mm LPS each."""
    if frame.plane is None or frame.pixel_mm is None:
        raise ScanError(f"{frame.header.path}: an image must have a place in the patient for contours to lie on")
    return (
        np.array(frame.plane.position),
        np.array(frame.plane.along_column) * frame.pixel_mm[0],
        np.array(frame.plane.along_row) * frame.pixel_mm[1],
    )


def _compare(job: dict[str, Any], path: Path, masks: np.ndarray, frames: Sequence[Frame | None]) -> None:
    """Read the file back, fill its contours slice by slice, and compare with what was to be written."""
    back = pydicom.dcmread(path)
    slices = {tuple(place): k for k, place in enumerate(job["frames"]) if place is not None}
    order = [str(source.SOPInstanceUID) for source in sources_of(job)]
    for number, drawn in enumerate(back.ROIContourSequence):
        polygons: dict[int, list[np.ndarray]] = {}
        for contour in drawn.ContourSequence:
            image = contour.ContourImageSequence[0]
            place = (order.index(image.ReferencedSOPInstanceUID), int(image.get("ReferencedFrameNumber", 1)) - 1)
            k = slices[place]
            if (frame := frames[k]) is None:
                continue
            origin, rows, columns = _axes(frame)
            away = np.array(contour.ContourData, np.float64).reshape(-1, 3) - origin
            shift = np.zeros(2) if job["shifts"] is None else np.array(job["shifts"][k])
            in_pixels = np.stack([away @ rows / (rows @ rows), away @ columns / (columns @ columns)], axis=1)
            polygons.setdefault(k, []).append(in_pixels + shift)
        for k, mask in enumerate(masks[number]):
            if frames[k] is not None and not np.array_equal(filled(polygons.get(k, []), mask.shape), mask):
                raise ScanError(f"{job['name']}: the contours do not read back the same; nothing was kept")
