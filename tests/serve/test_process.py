"""`delineate serve` as a process, with the model that ships: what is begun is finished when it is told to end."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from tests.serve_world import ANN, taken_apart

from delineate.samples import sample


@pytest.mark.slow  # loads the model that ships
def test_sigterm_finishes_what_is_begun_and_the_log_is_lines_of_json(tmp_path):
    (tmp_path / "tokens").write_text(f"ann {ANN}\n")
    command = [sys.executable, "-m", "delineate", "serve", "--port", "0", "--json", "--log", "json", "--threads", "1"]
    files = ["--tokens", str(tmp_path / "tokens"), "--results", str(tmp_path / "results")]
    running = subprocess.Popen(
        [*command, *files, "--grace", "600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    try:
        told = json.loads(running.stdout.readline())
        assert (told["token"], told["users"]) == (None, ["ann"])
        client = httpx.Client(base_url=told["url"], headers={"authorization": f"Bearer {ANN}"}, timeout=600)
        while client.get("/ready").status_code != 200:
            time.sleep(0.2)
        (scan,) = sample("ct").images
        found = []

        def ask():
            form = {"prompt": ["liver", "spleen"], "n": 2, "modality": "CT"}
            found.append(client.post("/api/segment", files={"scan": (scan.name, scan.read_bytes())}, data=form))

        asking = threading.Thread(target=ask)
        asking.start()
        while "delineate_places_taken 1.0" not in client.get("/metrics").text:
            time.sleep(0.05)
        running.send_signal(signal.SIGTERM)
        refused = client.get("/ready")
        assert (refused.status_code, refused.json()["detail"]) == (503, "the server is being stopped")
        assert client.post("/api/segment").status_code == 503
        asking.join(600)
        case, _ = taken_apart(found[0])
        assert [one["outcome"] for one in case["targets"]] == ["found", "found"]
        client.close()
        assert running.wait(60) == 0
        lines = [json.loads(line) for line in running.stderr.read().splitlines()]
        assert {"POST /api/segment 200", "POST - 503"} <= {
            f"{line['method']} {line['route']} {line['status']}" for line in lines if line.get("event") == "request"
        }
        assert lines[-1]["message"] == "delineate: stopped"
    finally:
        running.kill()
        running.communicate()
