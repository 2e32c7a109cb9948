"""Scans in, masks out, over a real socket: what is answered is what `Segmenter` says, and nothing is left behind."""

import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from tests.dicom_series import write_series
from tests.review_world import AFFINE, SHAPE, Bright, write_picture, write_volume
from tests.serve_world import ANN, BEN, refused, served, taken_apart

from delineate.scans.reading import read_scan
from delineate.segmenter import Segmenter
from delineate.serve.service import Limits


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("served"), Limits(a_minute=100_000, upload=4 << 20)) as one:
        yield one


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    return write_volume(tmp_path_factory.mktemp("scans") / "scan.nii.gz")


@pytest.fixture
def nothing_left(server):
    yield
    until = time.monotonic() + 60
    while list(server.service.results.work.iterdir()) or server.service.places.taken:
        assert time.monotonic() < until, list(server.service.results.work.iterdir())
        time.sleep(0.02)


def mask_in(data: bytes) -> np.ndarray:
    image = nibabel.Nifti1Image.from_bytes(gzip.decompress(data))
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-4)
    return np.asarray(image.dataobj)


def test_the_masks_are_those_of_the_segmenter(server, volume, nothing_left):
    told, files = taken_apart(server.segment(volume.read_bytes(), prompt=["liver", "spleen"], n=2, seed=5))
    expected = Segmenter(Bright())(read_scan(volume, modality="MR"), ["liver", "spleen"], n=2, seed=5)
    for name in ("liver", "spleen"):
        np.testing.assert_array_equal(mask_in(files[f"{name}.nii.gz"]) != 0, expected[name].consensus())
        np.testing.assert_array_equal(mask_in(files[f"{name}_proposal_01.nii.gz"]) != 0, expected[name].choose(1))
    assert (told["case"], told["file"], told["status"]) == ("scan", "scan.nii.gz", "done")
    assert told["sha256"] == hashlib.sha256(volume.read_bytes()).hexdigest()
    assert [one["outcome"] for one in told["targets"]] == ["found", "found"]
    assert told["request"]["seed"] == 5
    assert told["model_sha256"] == "f" * 64
    assert {name: hashlib.sha256(files[name]).hexdigest() for name in told["written"]} == told["written"]
    assert set(files) == {*told["written"], "case.json"}


def test_all_that_was_learnt_is_asked_without_a_prompt(server, volume):
    told, files = taken_apart(server.segment(volume.read_bytes(), n=1))
    assert [one["target"] for one in told["targets"]] == ["liver", "spleen"]
    assert "montage.png" not in files


def test_a_picture_comes_back_as_pictures(server, tmp_path):
    picture = write_picture(tmp_path / "p.png")
    _, files = taken_apart(
        server.segment(picture.read_bytes(), "C:\\pictures\\p.png", prompt="liver", n=1, montage="1")
    )
    assert {"liver.png", "labels.png", "montage.png"} <= set(files)


@pytest.fixture(scope="module")
def series(tmp_path_factory):
    """A zip of a small DICOM series, with scripts for names and a DICOMDIR's neighbour that is none."""
    folder = tmp_path_factory.mktemp("dicom") / "s"
    write_series(folder, np.random.default_rng(0).integers(900, 1200, (4, 24, 20)).astype(np.uint16))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, path in enumerate(sorted(folder.iterdir())):
            one = pydicom.dcmread(path)
            one.PatientName = "<script>alert(1)</script>^$(reboot)"
            one.SeriesDescription = "'; rm -rf / #\u202e"
            one.SpecificCharacterSet = "ISO_IR 192"
            made = io.BytesIO()
            one.save_as(made)
            archive.writestr(f"../../../../tmp/{'<b>' * (number % 2)}evil{number}.dcm", made.getvalue())
        archive.writestr("/etc/passwd", b"root::0:0")
        archive.writestr("__MACOSX/._x", b"\0" * 500)
    return packed.getvalue()


def test_a_zip_of_dicom_comes_back_with_objects_and_no_name_of_it_is_used(server, series, tmp_path, nothing_left):
    fields = {"prompt": "liver", "n": 2, "modality": "CT", "dicom": "seg,rtstruct,report"}
    told, files = taken_apart(server.segment(series, "export.zip", **fields))
    for name, kind in (("segmentation.dcm", "SEG"), ("rtstruct.dcm", "RTSTRUCT"), ("report.dcm", "SR")):
        made = pydicom.dcmread(io.BytesIO(files[name]))
        assert (made.Modality, made.PatientID) == (kind, "p1")
    text = json.dumps(told)
    assert "script" not in text
    assert "evil" not in text
    assert str(server.folder) not in text
    assert told["file"] == "export.zip"


def test_objects_that_there_are_not_are_refused(server, series, nothing_left):
    answer = server.segment(series, "export.zip", prompt="liver", dicom="seg,dance")
    assert "DICOM objects are seg, rtstruct, report or none" in refused(answer, 422)


def test_a_job_is_asked_for_now_and_fetched_later_by_its_own_user(server, volume, nothing_left):
    server.system.gate.clear()
    begun = server.segment(volume.read_bytes(), path="/api/jobs", prompt="liver", n=1)
    try:
        assert begun.status_code == 202
        job = begun.json()["id"]
        assert begun.headers["location"] == f"/api/jobs/{job}"
        with server.client() as ann, server.client(BEN) as ben:
            assert ann.get(f"/api/jobs/{job}").json()["state"] == "working"
            assert "being worked on" in refused(ann.get(f"/api/jobs/{job}/result"), 409)
            for way in ("", "/result"):
                assert "no such job" in refused(ben.get(f"/api/jobs/{job}{way}"), 404)
            refused(ben.delete(f"/api/jobs/{job}"), 404)
    finally:
        server.system.gate.set()
    with server.client() as ann:
        until = time.monotonic() + 120
        while (state := ann.get(f"/api/jobs/{job}").json())["state"] == "working":
            assert time.monotonic() < until
            time.sleep(0.02)
        assert state == {"id": job, "state": "done", "share": 1.0, "message": None, "result": f"/api/jobs/{job}/result"}
        told, _ = taken_apart(ann.get(state["result"]))
        assert told["targets"][0]["target"] == "liver"
        assert ann.delete(f"/api/jobs/{job}").status_code == 204
        refused(ann.get(state["result"]), 404)


def test_a_job_can_be_cancelled_and_a_scan_that_cannot_be_read_fails(server, volume, nothing_left):
    server.system.gate.clear()
    try:
        with server.client() as ann:
            job = server.segment(volume.read_bytes(), path="/api/jobs", prompt="liver").json()["id"]
            assert ann.delete(f"/api/jobs/{job}").status_code == 204
            assert ended(ann, job) == ("cancelled", "the job was cancelled")
            job = server.segment(b"nonsense", path="/api/jobs", prompt="liver").json()["id"]
            state, message = ended(ann, job)
            assert state == "failed"
            assert message.startswith("the scan that was sent: ")
            assert message in refused(ann.get(f"/api/jobs/{job}/result"), 409)
    finally:
        server.system.gate.set()


def ended(client, job):
    until = time.monotonic() + 120
    while (told := client.get(f"/api/jobs/{job}").json())["state"] == "working":
        assert time.monotonic() < until
        time.sleep(0.02)
    return told["state"], told["message"]


def test_what_cannot_be_asked_is_refused_before_any_work(server, volume):
    data, before = volume.read_bytes(), server.system.looked
    assert "'flux capacitor'" in refused(server.segment(data, prompt="flux capacitor"), 422)
    assert refused(server.segment(data, prompt="liver", n=0), 422).startswith("n: ")
    assert refused(server.segment(data, prompt="liver", consensus="best"), 422).startswith("consensus: ")
    assert "one kind of picture" in refused(server.segment(data, prompt="liver", modality="CT and MR"), 422)
    assert refused(server.segment(data, prompt="liver\u202e"), 422).startswith("prompt.0: ")
    assert "named like one of" in refused(server.segment(data, "scan.exe"), 422)
    assert server.system.looked == before


def test_several_are_worked_on_and_one_model_answers(server, volume, nothing_left):
    """Their scans are read while another one is computed; what comes out is the same as one after another."""
    data, replies = volume.read_bytes(), {}
    threads = [
        threading.Thread(target=lambda k=k: replies.update({k: server.segment(data, prompt="liver", n=2, seed=k)}))
        for k in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    alone, _ = taken_apart(server.segment(data, prompt="liver", n=2, seed=3))
    for k in range(6):
        told, files = taken_apart(replies[k])
        assert told["request"]["seed"] == k
        assert mask_in(files["liver.nii.gz"]).shape == SHAPE
    assert taken_apart(replies[3])[0]["written"]["liver.nii.gz"] == alone["written"]["liver.nii.gz"]


def test_operation(server, volume):
    with server.client() as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/ready").json() == {"status": "ok"}
        taken_apart(server.segment(volume.read_bytes(), prompt="liver", n=1))
        text = client.get("/metrics").text
        assert 'delineate_requests_total{method="POST",route="/api/segment",status="200"}' in text
        assert "delineate_ready 1.0" in text
        assert "process_resident_memory_bytes" in text
        assert all(word not in text for word in (ANN, "liver", "scan.nii"))
        about = client.get("/api/about").json()
        assert [one["name"] for one in about["names"]] == ["liver", "spleen"]


def test_probes_need_no_token_and_everything_else_does(server):
    with server.client("wrong-0123456789abcdef") as client:
        for path in ("/health", "/ready"):
            assert client.get(path).status_code == 200
        for path in ("/metrics", "/openapi.json", "/api/about", "/api/jobs/x", "/monai/info/", "/nothing"):
            assert "Authorization: Bearer TOKEN" in refused(client.get(path), 401)
        refused(client.post("/health"), 401)
        assert client.get(f"/api/about?token={ANN}").status_code == 401  # addresses end in logs
        assert client.get("/api/about", headers={"cookie": f"delineate-{server.port}={ANN}"}).status_code == 401


def test_a_proxy_s_name_and_pages_are_known_and_no_others(server):
    with server.client() as client:
        behind = {"host": "scans.example.org", "origin": "https://scans.example.org"}
        assert client.post("/api/segment", headers=behind).status_code == 422
        refused(client.post("/api/segment", headers=behind | {"origin": "https://evil.example"}), 403)
        assert "--name" in refused(client.get("/api/about", headers={"host": "evil.example"}), 421)


def test_the_python_of_the_how_to_runs(server, volume):
    page = Path(__file__).parents[2] / "docs" / "how-to" / "serve.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    told = {"DELINEATE_URL": server.url, "DELINEATE_TOKEN": ANN, "SCAN": str(volume)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | told, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "'liver.nii.gz'" in done.stdout
