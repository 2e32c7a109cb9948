"""Structured reports through highdicom: measurements of the segments of a SEG, by template 1500, and read back.

`write` is a job of the child process of `delineate.scans.dicom.limits`, since it reads headers of strangers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom
import pydicom
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from delineate import __version__
from delineate.errors import ScanError
from delineate.scans.dicom.headers import printable
from delineate.scans.dicom.objects import MADE
from delineate.scans.dicom.segments import concepts, series_number, sources_of

NOT_A_DIAGNOSIS = "Made by an algorithm for research. Not a diagnosis, and not checked by a person."
DEVICE = generate_uid(entropy_srcs=["delineate", __version__])  # of the observer: the same for a release
UNITS = {  # of UCUM
    "ml": Code("mL", "UCUM", "milliliter"),
    "mm": codes.UCUM.Millimeter,
    "HU": codes.UCUM.HounsfieldUnit,
}
COMMENT = Code("121106", "DCM", "Comment")


def write(job: dict[str, Any], folder: Path, allow: Callable[[int], None]) -> dict[str, Any]:
    """Write `folder/made.dcm`, and return how many groups it has.

    Args:
        job: "name", "files", "segmentation" (path), "measured" [{of `report.Measurements`}, …], "concepts",
            "algorithm".
        folder: for what is written.
        allow: told how many bytes this takes.
    """
    allow(len(job["files"]) << 14)
    sources = sources_of(job)
    segmentation = pydicom.dcmread(job["segmentation"], stop_before_pixels=True)
    numbers = {str(one.SegmentLabel): int(one.SegmentNumber) for one in segmentation.SegmentSequence}
    groups = []
    for one in job["measured"]:
        if one["name"][:64] not in numbers:
            known = printable(", ".join(numbers), 200)
            raise ScanError(f"{job['name']}: a report is of segments of the SEG ({known}), not of {one['name']}")
        groups.append(_group(one, numbers[one["name"][:64]], job, segmentation, sources[0]))
    made = sr.Comprehensive3DSR(
        evidence=[segmentation, *sources],
        content=_content(groups, job)[0],
        series_instance_uid=highdicom.UID(),
        series_number=series_number(sources[0]) + 2,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="delineate",
        is_complete=True,
        is_final=False,
        manufacturer_model_name="delineate",
        software_versions=__version__,
        device_serial_number="0",
        specific_character_set="ISO_IR 192",
        series_description="Measurements: research only, not for diagnosis",
    )
    path = folder / MADE
    made.preamble = b"\0" * 128
    made.save_as(path)
    content: Any = sr.srread(path).content
    if len(content.get_volumetric_roi_measurement_groups()) != len(groups):
        raise ScanError(f"{job['name']}: the report does not read back the same; nothing was kept, check the disk")
    return {"groups": len(groups), "sop_instance_uid": str(made.SOPInstanceUID)}


def _content(groups: list[Any], job: dict[str, Any]) -> sr.MeasurementReport:
    observer = sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
            uid=DEVICE, name="delineate", manufacturer_name="delineate", model_name=job["algorithm"][:64]
        ),
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.cid100.ImagingProcedure,
        imaging_measurements=groups,
    )
    said = sr.TextContentItem(name=COMMENT, value=NOT_A_DIAGNOSIS, relationship_type=sr.RelationshipTypeValues.CONTAINS)
    report[0].ContentSequence.append(said)
    return report


def _group(
    one: dict[str, Any], number: int, job: dict[str, Any], segmentation: Dataset, source: Dataset
) -> sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    """A segment's measurement group."""
    name = one["name"]
    category, kind, modifier, regions = concepts(job["concepts"].get(name, name))
    series = sr.SourceSeriesForSegmentation(source.SeriesInstanceUID)
    sites = [sr.FindingSite(anatomic_location=region) for region in regions]
    if modifier is not None and not sites:
        sites = [sr.FindingSite(anatomic_location=kind, laterality=modifier)]
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=highdicom.UID(), identifier=name[:64]),
        referenced_segment=sr.ReferencedSegment(
            segmentation.SOPClassUID, segmentation.SOPInstanceUID, number, source_series=series
        ),
        finding_category=category,
        finding_type=kind,
        finding_sites=sites or None,
        algorithm_id=sr.AlgorithmIdentification(name=job["algorithm"], version=__version__),
        measurements=_measurements(one) or None,
    )


def _measurements(one: dict[str, Any]) -> list[sr.Measurement]:
    made = []
    for key, what, unit in (
        ("volume_ml", codes.cid7469.Volume, "ml"),
        ("longest_axial_diameter_mm", codes.cid7470.LongAxis, "mm"),
        ("mean_grey", codes.DCM.MeanAttenuationCoefficient, "HU"),
        ("std_grey", codes.DCM.StandardDeviationOfAttenuationCoefficient, "HU"),
    ):
        value = one[key]
        if value is not None and (unit != "HU" or one["grey_unit"] == "HU"):
            made.append(sr.Measurement(name=what, value=round(value, 4), unit=UNITS[unit]))
    return made
