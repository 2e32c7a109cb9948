"""A small DICOM series of a patient who does not exist."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

CT = "1.2.840.10008.5.1.4.1.1.2"
STEP_MM = 6.0


def write_series(folder: Path, voxels: np.ndarray, elements: Mapping[str, Any] | None = None) -> None:
    """Write voxels (slices, rows, columns) as CT files; `elements` replace the usual ones, and None leaves one out."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    folder.mkdir(parents=True, exist_ok=True)
    for k, plane in enumerate(voxels):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        usual: dict[str, Any] = {
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
            "SliceThickness": STEP_MM,
            "PixelSpacing": [2.4, 2.4],
            "ImagePositionPatient": [-100.0, -80.0, 40.0 + k * STEP_MM],
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
        for keyword, value in {**usual, **(elements or {})}.items():
            if value is not None:
                setattr(made, keyword, value)
        made.PixelData = np.ascontiguousarray(plane.astype(np.int16)).tobytes()
        made["PixelData"].VR = "OW"
        meta.MediaStorageSOPClassUID = UID(CT)
        meta.MediaStorageSOPInstanceUID = made.get("SOPInstanceUID", "1.2.3")
        made.save_as(folder / f"{k:03d}.dcm")
