"""A structured report of what was measured, read back by highdicom and element by element."""

import highdicom
import numpy as np
import pydicom
import pytest
from tests.dicom_series import answer_here, write_series

from delineate.errors import ScanError
from delineate.scans.dicom import objects, series
from delineate.scans.dicom.report import Measurements, write_report
from delineate.scans.dicom.seg import write_seg
from delineate.scans.dicom.series import read_series
from delineate.scans.scan import Scan


@pytest.fixture
def seg(tmp_path, monkeypatch):
    for module in (series, objects):
        monkeypatch.setattr(module, "ask_child", answer_here)
    write_series(tmp_path / "s", np.zeros((3, 8, 9), np.int16))
    scan = read_series(tmp_path / "s")
    mask = np.zeros(scan.shape, bool)
    mask[1, 2:5, 2:5] = True
    masks = {"left kidney": mask, "odd thing": ~mask}
    return scan, write_seg(tmp_path / "seg.dcm", masks, scan, algorithm="delineate abc")


def test_each_segment_has_its_measurements_in_their_units(tmp_path, seg):
    scan, path = seg
    told = [
        Measurements("left kidney", 12.34567, 44.5, mean_grey=30.25, std_grey=5.0, grey_unit="HU"),
        Measurements("odd thing", 1.5, mean_grey=7.0, grey_unit=""),
    ]
    report = highdicom.sr.srread(write_report(tmp_path / "r.dcm", path, told, scan, algorithm="delineate abc"))
    groups = report.content.get_volumetric_roi_measurement_groups()
    values = [
        [(m.name.meaning, m.value, m.unit.value, m.unit.scheme_designator) for m in g.get_measurements()]
        for g in groups
    ]
    hounsfield = "[hnsf'U]"
    units = [(12.3457, "mL"), (44.5, "mm"), (30.25, hounsfield), (5.0, hounsfield)]
    assert [(name.lower(), *rest) for name, *rest in values[0]] == [
        (name, *unit, "UCUM")
        for name, unit in zip(
            ("volume", "long axis", "mean attenuation coefficient", "standard deviation of attenuation coefficient"),
            units,
            strict=True,
        )
    ]
    assert [v[1] for v in values[1]] == [1.5]  # greys without a unit are no Hounsfield units
    written = pydicom.dcmread(path)
    for number, (group, name) in enumerate(zip(groups, ("left kidney", "odd thing"), strict=True), start=1):
        assert group.tracking_identifier == name
        item = group.referenced_segment[0].ReferencedSOPSequence[0]
        assert (item.ReferencedSOPInstanceUID, item.ReferencedSegmentNumber) == (written.SOPInstanceUID, number)
    assert (groups[0].finding_type.value, groups[0].finding_sites[0].laterality.meaning) == ("64033007", "Left")
    assert groups[1].finding_type.scheme_designator == "99DELINEATE"


def test_who_says_it_and_that_it_is_no_diagnosis(tmp_path, seg):
    scan, path = seg
    told = pydicom.dcmread(
        write_report(tmp_path / "r.dcm", path, [Measurements("left kidney", 1.0)], scan, algorithm="delineate abc")
    )
    assert (told.Modality, told.PreliminaryFlag, told.VerificationFlag) == ("SR", "PRELIMINARY", "UNVERIFIED")
    said = {
        str(one.ConceptNameCodeSequence[0].CodeMeaning): str(one.get("TextValue", "")) for one in told.ContentSequence
    }
    assert said["Comment"].endswith("Not a diagnosis, and not checked by a person.")
    assert (said["Device Observer Name"], said["Device Observer Model Name"]) == ("delineate", "delineate abc")
    assert told.SeriesDescription == "Measurements: research only, not for diagnosis"
    source = pydicom.dcmread(scan.dicom.files[0])
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID"):
        assert told[keyword].value == source[keyword].value
    evidence = told.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert pydicom.dcmread(path).SeriesInstanceUID in [one.SeriesInstanceUID for one in evidence]


def test_what_cannot_be_reported_is_refused(tmp_path, seg):
    scan, path = seg
    with pytest.raises(ScanError, match=r"of segments of the SEG \(left kidney, odd thing\), not of liver"):
        write_report(tmp_path / "r.dcm", path, [Measurements("liver", 1.0)], scan, algorithm="t")
    with pytest.raises(ScanError, match="at least one measurement"):
        write_report(tmp_path / "r.dcm", path, [], scan, algorithm="t")
    with pytest.raises(ScanError, match="Structured Report refers to DICOM images"):
        write_report(tmp_path / "r.dcm", path, [], Scan(scan.voxels, scan.affine), algorithm="t")
    assert not (tmp_path / "r.dcm").exists()
