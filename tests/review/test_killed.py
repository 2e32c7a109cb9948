"""The real server, over HTTP on this machine: what it acknowledged is there, whatever happens to it next."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pytest
from tests.review_world import SHAPE, write_volume

from delineate.scans.reading import read_labels
from delineate.storage.files import sha256_of

SIZE = int(np.prod(SHAPE))


class Server:
    """`delineate review` in a process of its own."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "delineate", "review", *map(str, arguments), "--no-browser", "--json"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=20)[1]
        self.told = json.loads(line)
        base, token = self.told["url"].split("/?token=")
        self.http = httpx.Client(base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=30)

    def work(self, case="c0"):
        return self.http.get(f"/api/cases/{case}").raise_for_status().json()

    def act(self, revision, kind, **action):
        body = {"revision": revision, "action": {"kind": kind, **action}}
        return self.http.post("/api/cases/c0/actions", json=body).raise_for_status().json()

    def end(self, how):
        self.process.send_signal(how)
        out, err = self.process.communicate(timeout=30)
        self.http.close()
        return self.process.returncode, out, err


@pytest.fixture
def scan(tmp_path):
    return write_volume(tmp_path / "v.nii.gz")


def test_killed_in_the_middle_of_a_stream_of_actions_nothing_acknowledged_is_lost(scan, tmp_path):
    rng, truth, revision = np.random.default_rng(0), np.zeros(SIZE, bool), 0
    pending, saved = np.zeros(SIZE, bool), None  # what was sent last; the hash that was told last
    file = tmp_path / "work" / "review" / "ann" / "saved" / "x.nii.gz"
    for round_ in range(3):
        server = Server(scan, "-o", tmp_path / "work", "--user", "ann")
        work = server.work() if round_ else server.act(0, "add_layer", name="x")
        runs = np.frombuffer(server.http.get("/api/cases/c0/layers/l1").content, "<u4")
        found = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        if work["revision"] > revision:  # the last action was written, and killed before it was told
            truth = truth ^ pending
        np.testing.assert_array_equal(found, truth)
        if file.exists():
            assert set(np.unique(read_labels(file).voxels)) <= {0, 1}  # whole, whatever it holds
            assert saved in (None, sha256_of(file))
        revision = work["revision"]
        threading.Timer(0.5 + 0.2 * round_, server.process.kill).start()
        try:
            while True:
                start, length = int(rng.integers(SIZE - 9)), int(rng.integers(1, 9))
                pending = np.zeros(SIZE, bool)
                pending[start : start + length] = True
                revision = server.act(revision, "paint", layer="l1", flips=[[start, length]], tool="brush")["revision"]
                truth = truth ^ pending
                if rng.random() < 0.2:
                    saved = None  # until it is told again
                    done = server.http.post("/api/cases/c0/save", json={}).raise_for_status().json()
                    saved = done["files"][0]["sha256"]
        except httpx.TransportError:
            pass
        assert server.end(signal.SIGKILL)[0] == -signal.SIGKILL
        assert revision > 5


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=["terminated", "interrupted"])
def test_stopped_it_ends_well_and_says_nothing(scan, tmp_path, how):
    server = Server(scan, "-o", tmp_path / "work", "--user", "ann", "--user", "bob")
    assert list(server.told["users"]) == ["ann", "bob"]
    assert server.told["users"]["ann"] == server.told["url"]
    bob = httpx.get(server.told["users"]["bob"], follow_redirects=False)
    assert bob.status_code == 303
    assert httpx.get(server.told["url"].split("?")[0] + "api/session").status_code == 401
    assert server.http.get("/api/session").json()["user"] == "ann"
    code, out, err = server.end(how)
    assert (code, out, err) == (0, "", "")


def test_a_second_server_on_the_same_case_is_told_so(scan, tmp_path):
    first, second = (Server(scan, "-o", tmp_path / "work") for _ in range(2))
    first.work()
    reply = second.http.get("/api/cases/c0")
    assert reply.status_code == 409
    assert "another `delineate review` has this case open" in reply.json()["detail"]
    first.end(signal.SIGTERM)
    assert second.work()["layers"] == []
    second.end(signal.SIGTERM)


@pytest.mark.slow  # asks the model that ships
def test_a_question_to_the_house_model_is_answered_and_a_stop_does_not_wait_for_the_next(scan, tmp_path):
    server = Server(scan, "-o", tmp_path / "work", "--modality", "CT")
    ask = server.http.post("/api/cases/c0/asks", json={"prompt": "liver", "proposals": 2}).json()
    with server.http.stream("GET", f"/api/cases/c0/asks/{ask['id']}/progress") as stream:
        last = [line for line in stream.iter_lines() if line][-1]
    assert json.loads(last.removeprefix("data: "))["state"] == "done"
    (answer,) = server.work()["answers"]
    assert answer["target"] == "liver"
    server.http.post("/api/cases/c0/asks", json={"prompt": "spleen", "proposals": 64})
    started = time.monotonic()
    assert server.end(signal.SIGTERM)[0] == 0
    assert time.monotonic() - started < 15
