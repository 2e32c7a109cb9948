"""A small DICOM series of a patient who does not exist."""

from pathlib import Path
from typing import Any

import numpy as np

CT = "1.2.840.10008.5.1.4.1.1.2"


def write_series(folder: Path, voxels: np.ndarray, *, pixel_mm: float = 2.4, step_mm: float = 6.0, **more: Any) -> None:
    """Write voxels (slices, rows, columns), int16, as a CT file a slice; `more` are elements, None leaves one out."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    for k, plane in enumerate(voxels):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        elements: dict[str, Any] = {
            "SOPClassUID": CT,
            "SOPInstanceUID": f"1.2.826.0.1.3680043.8.498.9.{k + 1}",
            "PatientID": "p1",
            "PatientName": "Nobody^Real",
            "PatientBirthDate": "",
            "PatientSex": "O",
            "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.1",
            "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.2",
            "FrameOfReferenceUID": "1.2.826.0.1.3680043.8.498.3",
            "StudyDate": "20261122",
            "StudyTime": "101112",
            "StudyID": "s1",
            "AccessionNumber": "",
            "ReferringPhysicianName": "",
            "Modality": "CT",
            "SeriesNumber": 3,
            "InstanceNumber": k + 1,
            "SliceThickness": step_mm,
            "PixelSpacing": [pixel_mm, pixel_mm],
            "ImagePositionPatient": [-100.0, -80.0, 40.0 + k * step_mm],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "RescaleSlope": 1,
            "RescaleIntercept": 0,
            "Rows": plane.shape[0],
            "Columns": plane.shape[1],
            "SamplesPerPixel": 1,
            "PhotometricInterpretation": "MONOCHROME2",
            "BitsAllocated": 16,
            "BitsStored": 16,
            "HighBit": 15,
            "PixelRepresentation": 1,
        }
        for keyword, value in (elements | more).items():
            if value is not None:
                setattr(made, keyword, value)
        made.PixelData = np.ascontiguousarray(plane.astype(np.int16)).tobytes()
        made["PixelData"].VR = "OW"
        meta.MediaStorageSOPClassUID = CT
        meta.MediaStorageSOPInstanceUID = made.get("SOPInstanceUID", "1.2.3")
        made.save_as(folder / f"{k:03d}.dcm")
