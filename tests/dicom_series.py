"""DICOM series made for tests: any plane, order, tilt and kind of pixel, as plain files or as one enhanced object."""

import json
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

SOP = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "SR": "1.2.840.10008.5.1.4.1.1.88.11",
}
ENHANCED = {"CT": "1.2.840.10008.5.1.4.1.1.2.1", "MR": "1.2.840.10008.5.1.4.1.1.4.1"}
AXIAL = ((1, 0, 0), (0, 1, 0))
CORONAL = ((1, 0, 0), (0, 0, -1))
SAGITTAL = ((0, 1, 0), (0, 0, -1))
FEET_UP = ((1, 0, 0), (0, -1, 0))  # the normal points to the feet


def oblique(degrees=(20.0, -35.0, 10.0)):
    """Directions of rows and columns that lie along no axis."""
    x, y, z = np.radians(degrees)
    about_x = [[1, 0, 0], [0, np.cos(x), -np.sin(x)], [0, np.sin(x), np.cos(x)]]
    about_y = [[np.cos(y), 0, np.sin(y)], [0, 1, 0], [-np.sin(y), 0, np.cos(y)]]
    about_z = [[np.cos(z), -np.sin(z), 0], [np.sin(z), np.cos(z), 0], [0, 0, 1]]
    turned = np.array(about_z) @ about_y @ about_x
    return tuple(turned[:, 0]), tuple(turned[:, 1])


def dataset(modality="CT", **more) -> FileDataset:
    """One instance of a patient who does not exist, without pixels; `more` are elements by keyword, None removes one."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    made.SOPClassUID = SOP.get(modality, SOP["CT"])
    made.SOPInstanceUID = generate_uid()
    made.PatientID, made.PatientName, made.PatientBirthDate, made.PatientSex = "p1", "Nobody^Real", "", "O"
    made.StudyInstanceUID, made.SeriesInstanceUID, made.FrameOfReferenceUID = (
        f"1.2.826.0.1.3680043.8.498.{n}" for n in (1, 2, 3)
    )
    made.StudyDate, made.StudyTime, made.StudyID, made.AccessionNumber = "20261122", "101112", "s1", ""
    made.ReferringPhysicianName, made.Modality, made.SeriesNumber = "", modality, 3
    for keyword, value in more.items():
        if value is None:
            delattr(made, keyword)
        else:
            setattr(made, keyword, value)
    made.file_meta.MediaStorageSOPClassUID = made.get("SOPClassUID", SOP["CT"])
    made.file_meta.MediaStorageSOPInstanceUID = made.get("SOPInstanceUID", "1.2.3")
    return made


def set_pixels(made: Dataset, pixels: np.ndarray, photometric="MONOCHROME2") -> Dataset:
    """Give a dataset uncompressed pixels, (rows, columns) or (frames, rows, columns), or with three colours last."""
    colour = pixels.shape[-1] == 3 and photometric == "RGB"
    made.Rows, made.Columns = pixels.shape[-3:-1] if colour else pixels.shape[-2:]
    made.SamplesPerPixel, made.PhotometricInterpretation = (3 if colour else 1), photometric
    if colour:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = 8 * pixels.dtype.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(pixels.dtype.kind == "i")
    made.PixelData = pixels.tobytes() + (b"\0" if pixels.nbytes % 2 else b"")
    made["PixelData"].VR = "OB" if pixels.dtype.itemsize == 1 else "OW"
    return made


def positions(count, directions, step_mm, origin, shear=(0.0, 0.0)) -> np.ndarray:
    """(K, 3) mm LPS: where slices lie that are `step_mm` apart along the normal and sheared by mm along rows, columns."""
    row, column = np.array(directions, float)
    step = np.cross(row, column) * step_mm + row * shear[0] + column * shear[1]
    return np.array(origin, float) + np.arange(count)[:, None] * step


def write_series(
    folder: Path,
    voxels: np.ndarray,
    *,
    directions=AXIAL,
    pixel_mm=(0.8, 0.7),
    step_mm=2.5,
    origin=(-30.0, -20.0, 100.0),
    shear=(0.0, 0.0),
    modality="CT",
    intercept=-1024,
    names=None,
    leave_out=(),
    photometric="MONOCHROME2",
    **more,
) -> list[Path]:
    """Write voxels (K, rows, columns) as a file a slice, and return their paths in slice order."""
    folder.mkdir(parents=True, exist_ok=True)
    places, paths = positions(len(voxels), directions, step_mm, origin, shear), []
    names = names or [f"{k:03d}.dcm" for k in range(len(voxels))]
    for k, (values, place, name) in enumerate(zip(voxels, places, names, strict=True)):
        if k in leave_out:
            continue
        made = dataset(modality, InstanceNumber=k + 1, SliceThickness=step_mm)
        made.ImagePositionPatient, made.ImageOrientationPatient = place.tolist(), np.ravel(directions).tolist()
        made.PixelSpacing = list(pixel_mm)
        if intercept is not None:
            made.RescaleSlope, made.RescaleIntercept = 1, intercept
        set_pixels(made, values, photometric)
        for keyword, value in more.items():
            if value is None:
                made.pop(keyword, None)
            else:
                setattr(made, keyword, value)
        made.save_as(folder / name)
        paths.append(folder / name)
    return paths


def write_enhanced(
    path: Path,
    voxels,
    *,
    directions=AXIAL,
    pixel_mm=(0.8, 0.7),
    step_mm=2.5,
    origin=(0, 0, 0),
    order=None,
    modality="CT",
    slope=2.0,
    shear=(0.0, 0.0),
):
    """Write voxels (K, rows, columns) as one enhanced multi-frame object, its frames in `order`."""
    order = list(range(len(voxels))) if order is None else order
    places = positions(len(voxels), directions, step_mm, origin, shear)
    made = dataset(modality, InstanceNumber=1, SOPClassUID=ENHANCED[modality])
    made.file_meta.MediaStorageSOPClassUID = ENHANCED[modality]
    made.NumberOfFrames = len(voxels)
    set_pixels(made, np.stack([voxels[k] for k in order]))
    shared, measures, plane, scaling = Dataset(), Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(pixel_mm), step_mm
    plane.ImageOrientationPatient = np.ravel(directions).tolist()
    scaling.RescaleSlope, scaling.RescaleIntercept, scaling.RescaleType = slope, -1024, "HU"
    shared.PixelMeasuresSequence = Sequence([measures])
    shared.PlaneOrientationSequence = Sequence([plane])
    shared.PixelValueTransformationSequence = Sequence([scaling])
    made.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for k in order:
        frame, place, content = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = places[k].tolist()
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", k + 1, [k + 1]
        frame.PlanePositionSequence, frame.FrameContentSequence = Sequence([place]), Sequence([content])
        frames.append(frame)
    made.PerFrameFunctionalGroupsSequence = Sequence(frames)
    made.save_as(path)
    return path


def answer_here(job, folder, *, size, array_bytes, name):
    """In place of `dicom_limits.ask_child`: the same job in this process, without limits, for tests of what is read."""
    from delineate.errors import ScanError
    from delineate.scans.dicom.child import answer

    class Free:
        allowed = 0

        def allow(self, more):
            pass

    told = json.loads(json.dumps(answer(json.loads(json.dumps(job)), folder, Free())))
    if "refused" in told:
        raise ScanError(told["refused"])
    return told["done"]


def in_world(affine: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(N, 3) mm: where the voxels of a mask lie."""
    return (affine @ np.c_[np.argwhere(mask), np.ones(int(mask.sum()))].T).T[:, :3]


def bundled(name: str) -> Path:
    """A file or folder inside the pydicom wheel; nothing is ever downloaded."""
    return Path(pydicom.__file__).parent / "data" / "test_files" / name
