"""`delineate segment` of DICOM: the whole way from a folder of instances to a SEG that lies on them."""

import json
import shutil
import sys

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from tests.dicom_series import answer_here, bundled, dataset, in_world, oblique, set_pixels, write_series
from tests.pacs import a_pacs
from tests.progress import without_progress

from delineate.cli import app as cli
from delineate.data.phantom import make_phantom
from delineate.errors import ScanError
from delineate.jobs.segment import SegmentRequest, run_cohort
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.dicom import objects as dicom_objects
from delineate.scans.dicom import regions as dicom_regions
from delineate.scans.dicom import series as dicom
from delineate.scans.dicom.regions import read_regions
from delineate.scans.dicom.seg import read_seg
from delineate.scans.dicom.web import store
from delineate.scans.finding import Found, Kind, case_name, digest_of, find_scans
from delineate.scans.geometry import spacing_of
from delineate.scans.reading import read_labels, read_scan
from delineate.segmenter import Segmenter
from delineate.systems.system import Drawn


class Bright:
    """Draws what is brighter than the middle: a truth that needs no training."""

    accepts, open_words, about = frozenset(), False, ""
    vocabulary = Vocabulary.from_names(["liver", "right kidney"], "CT")
    size = 32

    def to(self, device):
        return self

    def see(self, view):
        stack = view.stack
        return stack

    def propose(self, seen, target, n, seed, on_step=lambda share: None):
        bright = (seen[:, 1] > (0 if target.concept.name == "liver" else 2)).float()
        return Drawn(torch.stack([bright * (1 - 0.01 * k) for k in range(n)]))


@pytest.fixture(autouse=True)
def here(monkeypatch, request):
    """Jobs run in this process, which is quicker."""
    if "command" not in request.node.name:
        monkeypatch.setattr(dicom, "ask_child", answer_here)
        monkeypatch.setattr(dicom_objects, "ask_child", answer_here)
        monkeypatch.setattr(dicom_regions, "ask_child", answer_here)


@pytest.fixture
def stored():
    """Half of it dark, half bright, in Hounsfield units + 1024."""
    voxels = np.full((5, 32, 32), 924, np.int16)
    voxels[1:4, 8:20, 4:18] = 1224
    return voxels


def run(scans, folder, **more):
    request = SegmentRequest(("liver", "right kidney"), n=2, pictures=False, **more)
    return run_cohort(Segmenter(Bright()), find_scans(scans), request, folder, model_hash="abc")


def test_a_folder_of_instances_is_one_scan_and_gets_a_seg(tmp_path, stored):
    paths = {"PatientID": "../../../tmp/x", "SeriesDescription": "/etc", "StudyID": "../.."}
    write_series(
        tmp_path / "patient 7",
        stored,
        directions=oblique(),
        pixel_mm=(1.0, 1.0),
        names=[f"1.2.3.{k}" for k in range(5)],
        **paths,
    )
    report = run(tmp_path / "patient 7", tmp_path / "out")
    (case,) = report["cases"]
    assert (case["case"], case["status"]) == ("patient 7", "done")
    assert "segmentation.dcm" in case["written"]
    folder = tmp_path / "out" / "patient 7"
    mask = read_labels(folder / "liver.nii.gz")
    assert 300 < mask.voxels.sum() < 700
    (segment,) = read_seg(folder / "segmentation.dcm")  # the kidney was not found
    assert segment.name == "liver"
    place = [
        np.sort(points.round(3), axis=0) for points in (segment.points_mm(), in_world(mask.affine, mask.voxels > 0))
    ]
    np.testing.assert_allclose(*place, atol=2e-3)  # NIfTI holds float32
    assert {p.name for p in tmp_path.iterdir()} == {"patient 7", "out"}  # no path is made of what a file says
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"patient 7", "run.json", "run.jsonl", "statistics.csv"}
    assert json.loads((folder / "case.json").read_text())["sha256"] == digest_of(tmp_path / "patient 7")


@pytest.mark.parametrize(("seg", "kind"), [("fractional", "FRACTIONAL"), (None, None)])
def test_the_kind_of_seg_can_be_chosen(tmp_path, stored, seg, kind):
    write_series(tmp_path / "s", stored)
    run(tmp_path / "s", tmp_path / "out", seg=seg)
    path = tmp_path / "out" / "s" / "segmentation.dcm"
    assert path.exists() == (kind is not None)
    if kind:
        assert pydicom.dcmread(path).SegmentationType == kind


def test_no_seg_is_said_and_is_no_failure(tmp_path, stored):
    write_series(tmp_path / "s", stored, FrameOfReferenceUID=None)
    (case,) = run(tmp_path / "s", tmp_path / "out")["cases"]
    assert case["status"] == "done"
    assert "no DICOM SEG: the source lacks FrameOfReferenceUID" in case["notes"]


def test_resuming_depends_on_the_instances_and_not_on_their_names(tmp_path, stored):
    paths = write_series(tmp_path / "s", stored)
    request = SegmentRequest(("liver",), n=1, pictures=False)

    def again():
        options = {"model_hash": "abc", "resume": True}
        return run_cohort(Segmenter(Bright()), find_scans(tmp_path / "s"), request, tmp_path / "out", **options)[
            "cases"
        ][0]["status"]

    assert again() == "done"
    paths[0].rename(tmp_path / "s" / "another name")
    assert again() == "skipped"
    changed = pydicom.dcmread(paths[1])
    changed.SeriesDescription = "changed"
    changed.save_as(paths[1])
    assert again() == "done"


def test_what_a_folder_stands_for(tmp_path, stored):
    write_series(tmp_path / "all" / "a.b", stored)
    write_series(tmp_path / "all" / "c", stored)
    (tmp_path / "all" / "empty").mkdir()
    found = find_scans(tmp_path / "all")
    assert [(one.name, one.kind) for one in found] == [("a.b", Kind.DICOM), ("c", Kind.DICOM)]
    assert find_scans(tmp_path / "all" / "c") == [Found(tmp_path / "all" / "c", "c", Kind.DICOM)]
    single = tmp_path / "all" / "c" / "000.dcm"
    assert find_scans(single) == [Found(single, "000", Kind.DICOM)]
    assert case_name(single) == "000"
    shutil.copy(single, tmp_path / "1.2.840.5")
    assert case_name(tmp_path / "1.2.840.5") == "1.2.840.5"
    (tmp_path / "all" / "c" / "x.nii.gz").write_bytes(b"x")
    with pytest.raises(ScanError, match="beside 1 files of volumes"):
        find_scans(tmp_path / "all" / "c")


def test_a_broken_series_fails_alone(tmp_path, stored):
    write_series(tmp_path / "all" / "good", stored)
    write_series(tmp_path / "all" / "gap", stored, leave_out=(2,))
    report = run(tmp_path / "all", tmp_path / "out")
    assert {c["case"]: c["status"] for c in report["cases"]} == {"gap": "failed", "good": "done"}
    report = run(tmp_path / "all" / "gap", tmp_path / "out", fill_gaps=True)
    assert report["cases"][0]["status"] == "done"


def test_a_flat_image_is_written_as_png(tmp_path):
    grey = np.full((32, 32), 20, np.uint8)
    grey[8:20, 4:18] = 200
    set_pixels(dataset("CR", FrameOfReferenceUID=None), grey).save_as(tmp_path / "x")
    (case,) = run(tmp_path / "x", tmp_path / "out")["cases"]
    assert {"liver.png", "liver_proposal_00.png"} <= set(case["written"])
    assert read_labels(tmp_path / "out" / "x" / "liver.png").voxels.shape == (1, 32, 32)


@pytest.fixture
def delineate(monkeypatch, capsys):
    """Runs `delineate <arguments>` and gives (exit code, standard output, standard error)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["delineate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, without_progress(captured.err)

    return call


def test_contours_and_a_report_where_they_are_asked_for(tmp_path, stored):
    write_series(tmp_path / "s", stored)
    (case,) = run(tmp_path / "s", tmp_path / "out", dicom=("seg", "rtstruct", "report"), seg="labelmap")["cases"]
    assert {"segmentation.dcm", "rtstruct.dcm", "report.dcm"} <= case["written"].keys()
    folder, scan = tmp_path / "out" / "s", read_scan(tmp_path / "s")
    mask = read_labels(folder / "liver.nii.gz").voxels > 0
    for name in ("segmentation.dcm", "rtstruct.dcm"):
        (region,) = read_regions(folder / name, scan).regions
        assert np.array_equal(region.mask(), mask)
    (group,) = highdicom.sr.srread(folder / "report.dcm").content.get_volumetric_roi_measurement_groups()
    values = {m.name.value: m.value for m in group.get_measurements()}
    (liver,) = [target for target in case["targets"] if target["target"] == "liver"]
    assert values["118565006"] == pytest.approx(liver["consensus_ml"], abs=1e-3)
    assert case["notes"].count("DICOM SEG written as binary") == 0
    (none,) = run(tmp_path / "s", tmp_path / "none", dicom=())["cases"]
    assert not any(name.endswith(".dcm") for name in none["written"])
    code = json.loads((folder / "case.json").read_text())["request"]["dicom"]
    assert code == ["seg", "rtstruct", "report"]


def test_targets_that_overlap_are_no_label_map_and_a_flat_image_has_no_contours(tmp_path, stored):
    stored[2, 10:12, 6:9] = 3000  # the kidney, within the liver
    write_series(tmp_path / "s", stored)
    (case,) = run(tmp_path / "s", tmp_path / "out", seg="labelmap")["cases"]
    overlap = [note for note in case["notes"] if "DICOM SEG written as binary" in note]
    found = [target["outcome"] for target in case["targets"]]
    assert bool(overlap) == (found == ["found", "found"])
    grey = np.full((32, 32), 20, np.uint8)
    grey[8:20, 4:18] = 200
    set_pixels(dataset("CR", PixelSpacing=[1, 1]), grey).save_as(tmp_path / "x")
    (case,) = run(tmp_path / "x", tmp_path / "out", dicom=("seg", "rtstruct", "report"))["cases"]
    assert "no RT Structure Set: the images have no place in the patient" in case["notes"]
    assert {"segmentation.dcm", "report.dcm"} <= case["written"].keys()


def test_the_command_from_a_series_to_a_seg(tmp_path, delineate):
    """The house model, the real child process; two series in one folder, of which one is asked for."""
    phantom = make_phantom(0, shape=(8, 64, 64))
    stored = (phantom.voxels + 1024).astype(np.int16)
    step, *pixel = spacing_of(phantom.affine)
    write_series(tmp_path / "case", stored, pixel_mm=pixel, step_mm=step)
    write_series(tmp_path / "case", stored[:1], SeriesNumber=9, SeriesInstanceUID="1.2.9", names=["scout"])
    asked = ("segment", tmp_path / "case", "-p", "liver", "-n", "1", "-o", tmp_path / "out", "--no-pictures", "--json")
    code, _, err = delineate(*asked)
    assert code == 3
    assert "--series" in err
    assert len(err.strip().splitlines()) == 1
    code, out, err = delineate(*asked, "--series", "3")
    assert code == 0, err
    (case,) = json.loads(out)["cases"]
    assert any(note.startswith("series 3") for note in case["notes"])
    assert case["targets"][0]["outcome"] == "found"
    assert "segmentation.dcm" in case["written"]
    scan = read_scan(tmp_path / "case", series=3)
    assert read_labels(tmp_path / "out" / "case" / "liver.nii.gz").shape == scan.shape
    for wrong in (
        ("--seg", "surface"),
        ("--dicom", "seg,mesh"),
        ("--dicom", "report"),
        ("--seg", "none", "--dicom", "report,seg"),
    ):
        code, _, err = delineate(*asked, *wrong)
        assert code == 2
        assert wrong[-2] in err
    code, _, err = delineate("segment", bundled("rtplan.dcm"), "-p", "liver", "-o", tmp_path / "out2")
    assert code == 3
    assert "a radiotherapy plan" in err
    with a_pacs() as pacs:
        store(pacs.url, sorted((tmp_path / "case").glob("0*")))
        header = pydicom.dcmread(tmp_path / "case" / "000.dcm")
        place = f"{pacs.url}/studies/{header.StudyInstanceUID}/series/{header.SeriesInstanceUID}"
        sent = ("-p", "liver", "-n", "1", "-o", tmp_path / "web", "--no-pictures", "--dicom", "seg,rtstruct,report")
        code, _, err = delineate("segment", place, *sent, "--store", pacs.url)
        assert code == 0, err
        assert f"3 DICOM objects stored at {pacs.url}" in " ".join(err.split())
        assert {told.Modality for told, _ in pacs.held.values()} == {"CT", "SEG", "RTSTRUCT", "SR"}
        pacs.wrong = {"code": 403}
        code, _, err = delineate("segment", place, *sent, "--store", pacs.url, "--resume")
        assert code == 3
        assert "refuses with HTTP 403" in " ".join(err.split())
        code, _, err = delineate("segment", place, *sent)
        assert (code, len(err.strip().splitlines())) == (3, 1)
    shutil.copy(tmp_path / "out" / "case" / "liver.nii.gz", tmp_path / "a.nii.gz")
    code, _, err = delineate("segment", tmp_path / "a.nii.gz", "-p", "liver", "-o", tmp_path / "o", "--series", "3")
    assert code == 2
    assert "for DICOM, and there is none" in " ".join(err.replace("│", " ").split())
