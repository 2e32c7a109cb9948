"""Cohorts by processes, by a Ray cluster of this machine and in parts: killed in the middle, and nothing is lost."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections import Counter

import numpy as np
import pytest
import typer
from PIL import Image
from tests.jobs.crews import Killing

from delineate.cli.workers import answering, stoppable
from delineate.data.phantom import make_phantom_image
from delineate.errors import DelineateError
from delineate.jobs.on_ray import OnRay
from delineate.jobs.segment import SegmentRequest, run_cohort
from delineate.model_folder import fingerprint
from delineate.scans.finding import find_scans

REQUEST = SegmentRequest(("liver", "spleen"), n=3, pictures=False)
COMMAND = [sys.executable, "-m", "delineate"]
MANY = 12


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    for number in range(MANY):
        voxels = make_phantom_image(number, shape=(40, 48)).voxels[0]
        grey = np.interp(voxels, (-150, 250), (0, 255)).astype(np.uint8)
        picture = Image.fromarray(grey)
        if number == 0:  # long enough at work to be killed at it
            picture = picture.resize((1440, 1200))
        picture.save(folder / f"case{number:02d}.png")
    return folder


def hashes(report):
    return {case["case"]: case["written"] for case in report["cases"]}


def told(folder):
    return [json.loads(line) for line in (folder / "run.jsonl").read_text().splitlines()]


def whole(folder, report):
    """Each case once in the report and in its run's lines, nothing left behind."""
    lines = [one for one in told(folder) if one["run"] == told(folder)[-1]["run"]]
    assert Counter(one["case"] for one in lines if "case" in one) == {f"case{k:02d}": 1 for k in range(MANY)}
    assert [case["case"] for case in report["cases"]] == [f"case{k:02d}" for k in range(MANY)]
    assert {case["status"] for case in report["cases"]} == {"done"}
    assert not list(folder.glob(".writing-*"))
    assert len((folder / "statistics.csv").read_text().splitlines()) == 1 + 2 * MANY


def test_sigterm_is_75_and_says_how_to_go_on(capsys):
    before = signal.getsignal(signal.SIGTERM)

    @stoppable()
    def work():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with pytest.raises(typer.Exit) as stopped:
        work()
    assert stopped.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) == before


def test_ray_is_an_extra_and_a_file_that_nobody_asked_for_names_no_cluster(
    delineate, pictures, model, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.chdir(tmp_path)
    asked = ["segment", pictures, "-o", tmp_path / "out", "-m", model, "-p", "liver"]
    code, _, err = delineate(*asked, "--ray", "local")
    assert code == 2
    assert "--ray needs Ray: pip install 'delineate[ray]'" in err
    (tmp_path / "delineate.toml").write_text('[segment]\nray = "stranger:6379"\n')
    code, _, err = delineate(*asked)
    assert code == 2
    assert "ray" in err


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("x", "--ray is auto, local or HOST:PORT of the cluster's head; got 'x'"),
        ("ray://127.0.0.1:10001", "--ray is auto, local or HOST:PORT"),
        ("127.0.0.1:1", "--ray 127.0.0.1:1: nobody answers there"),
        ("127.0.0.1:99999999", "--ray 127.0.0.1:99999999: nobody answers there"),
    ],
)
def test_a_cluster_that_is_none_is_told_in_words(address, why, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    with pytest.raises(DelineateError, match=re.escape(why)):
        OnRay(address, {"threads": 1, "device": "cpu"}, None)


@pytest.mark.slow
@pytest.mark.parametrize("ray", [None, "local"], ids=["processes", "ray"])
def test_a_worker_is_killed_and_nothing_is_lost_or_done_twice(many, model, tmp_path, ray):
    if ray and importlib.util.find_spec("ray") is None:
        pytest.skip("it needs the extra ray")
    scans, home = find_scans(many), os.path.expanduser("~/.ray")
    there = os.path.exists(home)
    plain = run_cohort(
        answering(model, None, "cpu", 1, None, None, None),
        scans,
        REQUEST,
        tmp_path / "plain",
        model_hash=fingerprint(model),
    )
    crew = Killing(answering(model, None, "cpu", 1, 2, ray, None), tmp_path / "crew")
    if ray:
        assert addresses_of(crew.crew) == {"127.0.0.1"}
    report = run_cohort(crew, scans, REQUEST, tmp_path / "crew", model_hash=fingerprint(model))
    assert crew.killed == ["case00"]
    assert crew.hired == 3  # the lost one was replaced
    assert Counter(name for name, _ in crew.given) == {f"case{k:02d}": 1 + (k == 0) for k in range(MANY)}
    assert [name for name, again in crew.given if again] == ["case00"]
    whole(tmp_path / "crew", report)
    assert hashes(report) == hashes(plain)  # to the bit
    assert os.path.exists(home) == there


def addresses_of(crew):
    """Where the processes of a cluster of this machine listen."""
    ours = set[str]()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                line = file.read()
            if crew._folder.encode() in line or line.startswith(b"ray::"):
                ours |= {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        except OSError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}") as file:
            for words in map(str.split, file.read().splitlines()[1:]):
                if words[3] == "0A" and f"socket:[{words[9]}]" in ours:
                    four = words[1].split(":")[0][-8:]
                    found.add(".".join(str(int(four[i : i + 2], 16)) for i in (6, 4, 2, 0)))
    return found


@pytest.mark.slow
def test_a_command_with_workers_stops_when_asked_and_goes_on(many, model, tmp_path):
    out = tmp_path / "out"
    asked = [*COMMAND, "segment", many, "-o", out, "-m", model, "-p", "liver, spleen", "-n", "3", "--no-pictures"]
    asked += ["--workers", "2", "--threads", "1"]
    with subprocess.Popen(asked, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as command:
        while not (out / "case01").exists():
            assert command.poll() is None
            time.sleep(0.01)
        command.send_signal(signal.SIGTERM)
        err = command.communicate(timeout=60)[1]
    assert command.returncode == 75, err
    assert "the same command with --resume goes on" in err
    assert not list(out.glob(".writing-*"))
    done = {path.parent.name for path in out.glob("case*/case.json")}
    assert 0 < len(done) < MANY
    subprocess.run([*asked, "--resume"], check=True, capture_output=True)
    report = json.loads((out / "run.json").read_text())
    assert {case["case"] for case in report["cases"] if case["status"] == "skipped"} == done
    assert len(report["cases"]) == MANY
    assert {case["status"] for case in report["cases"]} == {"skipped", "done"}


@pytest.mark.slow
def test_parts_at_once_one_of_them_killed_and_run_again(many, model, tmp_path):
    out = tmp_path / "out"
    asked = [*COMMAND, "segment", many, "-o", out, "-m", model, "-p", "liver, spleen", "-n", "3", "--no-pictures"]
    asked += ["--threads", "1", "--resume", "--part"]
    parts = [
        subprocess.Popen([*asked, f"{number}/2"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        for number in (1, 2)
    ]
    while not (out / "case03").exists():  # the second of part 2
        time.sleep(0.01)
    parts[1].kill()
    assert parts[1].wait() == -signal.SIGKILL
    assert parts[0].wait() == 0
    assert not (out / "run.json").exists()
    subprocess.run([*asked, "2/2"], check=True, capture_output=True)
    report = json.loads((out / "run.json").read_text())
    assert [case["case"] for case in report["cases"]] == [f"case{k:02d}" for k in range(MANY)]
    assert {case["status"] for case in report["cases"]} == {"done", "skipped"}
    assert len((out / "statistics.csv").read_text().splitlines()) == 1 + 2 * MANY
    lines = Counter(one["case"] for one in told(out) if one.get("status") == "done")
    assert set(lines.values()) == {1}  # nothing is done twice
    assert not list(out.glob(".writing-*"))
