"""The whole way through a real archive, where Orthanc is installed: store, fetch, write, store, and what a viewer is told."""

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import requests
import SimpleITK
from tests.dicom_series import in_world, oblique, write_series

from delineate.scans.dicom.regions import read_regions
from delineate.scans.dicom.report import Measurements, write_report
from delineate.scans.dicom.rtstruct import write_rtstruct
from delineate.scans.dicom.seg import write_seg
from delineate.scans.dicom.series import read_series
from delineate.scans.dicom.web import LOGIN, Address, fetch, store

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
ORTHANC = shutil.which("Orthanc")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        ORTHANC is None or not PLUGIN.exists(), reason="Orthanc and its DICOMweb plug-in are not installed"
    ),
]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture
def archive(tmp_path, monkeypatch):
    monkeypatch.setenv(LOGIN, "doc:secret")
    port, kept = free_port(), tmp_path / "archive"
    told = {
        "StorageDirectory": str(kept),
        "IndexDirectory": str(kept),
        "HttpPort": port,
        "DicomServerEnabled": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {"doc": "secret"},
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (tmp_path / "orthanc.json").write_text(json.dumps(told))
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen([str(ORTHANC), str(tmp_path / "orthanc.json")], stdout=log, stderr=log) as running,
    ):
        try:
            until = time.monotonic() + 60
            while time.monotonic() < until:
                try:
                    requests.get(f"http://127.0.0.1:{port}/dicom-web/studies", auth=("doc", "secret"), timeout=5)
                    break
                except requests.ConnectionError:
                    time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/dicom-web"
        finally:
            running.terminate()


def test_a_study_goes_round_and_a_viewer_finds_all_of_it(tmp_path, archive):
    voxels = np.random.default_rng(0).integers(0, 2000, (12, 40, 44)).astype(np.int16)
    files = write_series(tmp_path / "s", voxels, directions=oblique())
    store(archive, files)
    source = pydicom.dcmread(files[0])
    scan = read_series(fetch(Address(archive, source.StudyInstanceUID, source.SeriesInstanceUID), tmp_path / "got"))
    assert np.array_equal(scan.voxels, voxels - 1024)
    index = np.indices(scan.shape) - np.array([5.5, 20, 22])[:, None, None, None]
    ball = (index[0] * 2.5) ** 2 + index[1] ** 2 + index[2] ** 2 < 12**2
    masks = {"liver": ball & (index[1] ** 2 + index[2] ** 2 > 9), "spleen": ~ball}
    options = {"algorithm": "delineate"}
    made = [
        write_seg(tmp_path / "seg.dcm", masks, scan, **options),
        write_rtstruct(tmp_path / "rt.dcm", masks, scan, **options),
        write_seg(tmp_path / "map.dcm", masks, scan, kind="labelmap", **options),
    ]
    made.append(write_report(tmp_path / "r.dcm", made[0], [Measurements("liver", 3.25)], scan, **options))
    assert store(archive, made) == 4
    back = {}
    for path in made:
        told = pydicom.dcmread(path, stop_before_pixels=True)
        (back[path.stem],) = fetch(
            Address(archive, told.StudyInstanceUID, told.SeriesInstanceUID), tmp_path / "back"
        ).iterdir()
    for name in ("seg", "rt", "map"):
        for one, mask in zip(read_regions(back[name], scan).regions, masks.values(), strict=True):
            assert np.array_equal(one.mask(), mask)
    volume = highdicom.seg.segread(back["seg"]).get_volume(combine_segments=False)
    theirs = in_world(volume.affine, volume.array[..., 0] > 0) @ np.diag([-1.0, -1, 1])
    ours = in_world(scan.affine, masks["liver"])
    np.testing.assert_allclose(*(points[np.lexsort(points.round(3).T)] for points in (theirs, ours)), atol=1e-4)
    frames = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(back["seg"])))
    assert np.array_equal(frames > 0, pydicom.dcmread(back["seg"]).pixel_array > 0)
    (group,) = highdicom.sr.srread(back["r"]).content.get_volumetric_roi_measurement_groups()
    assert group.get_measurements()[0].value == 3.25

    def asked(path):
        answer = requests.get(f"{archive}/studies/{source.StudyInstanceUID}/{path}", auth=("doc", "secret"), timeout=20)
        return [pydicom.Dataset.from_json(one, lambda uri: b"") for one in answer.json()]

    series = {one.Modality: one.SeriesInstanceUID for one in asked("series")}
    assert series.keys() == {"CT", "SEG", "RTSTRUCT", "SR"}
    (seg,) = asked(f"series/{pydicom.dcmread(made[0], stop_before_pixels=True).SeriesInstanceUID}/metadata")
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == series["CT"]
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    assert len(seg.PerFrameFunctionalGroupsSequence) == seg.NumberOfFrames
    assert all(one.RecommendedDisplayCIELabValue for one in seg.SegmentSequence)
    (contours,) = asked(f"series/{series['RTSTRUCT']}/metadata")
    assert contours.ReferencedFrameOfReferenceSequence[0].FrameOfReferenceUID == source.FrameOfReferenceUID
    (report,) = asked(f"series/{series['SR']}/metadata")
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
