"""The robustness campaign notices what it is there for, and its short form finds nothing."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from fuzzing import checks, jsons, kills, kinds, server
from fuzzing.trial import Done, Trial, judge

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
DOCUMENTED = {0, 1, 2, 3, 4, 5, 6, 7, 8, 75}
SHORT = ("nifti", "nifti-same", "picture", "names", "model", "answers", "kill-segment-over")


def done(code=0, out="", err="", **more) -> Done:
    return Done(code, 1.0, more.pop("megabytes", 500.0), out, err, **more)


@pytest.mark.parametrize(
    ("end", "outcome"),
    [
        (done(), "answered"),
        (done(4, err="delineate: no such target"), "answered"),
        (done(3, err="delineate: x.nii: cut short"), "refused"),
        (done(3), "silent wrong"),
        (done(1, err="Traceback (most recent call last):\n  ...\nKeyError: 'x'"), "traceback"),
        (done(70, err="delineate: internal error (KeyError)"), "traceback"),
        (done(9, err="what"), "traceback"),
        (done(-11), "traceback"),
        (done(-15, stopped=True), "answered"),
        (done(-9, timed_out=True), "hang"),
        (done(megabytes=5000.0), "memory"),
    ],
)
def test_an_end_is_called_what_it_is(end, outcome):
    assert judge(Trial(["segment"], "x"), end, DOCUMENTED).outcome == outcome


def test_what_is_lost_weighs_more_than_a_traceback():
    trial = Trial(["segment"], "x", [lambda end: ("silent wrong", "no"), lambda end: ("lost", "gone")])
    assert judge(trial, done(1, err="Traceback (most recent call last)"), DOCUMENTED).reason == "gone"


def test_a_fork_ends_as_its_command_does(tmp_path, monkeypatch):
    app = importlib.import_module("delineate.cli.app")  # the name `app` in it is the typer application
    ways = {
        "fine": lambda: print("yes") or 0,
        "raises": lambda: [][0],
        "exits": lambda: sys.exit(3),
        "sleeps": lambda: time.sleep(60),
        "writes": lambda: Path("big").write_bytes(bytes(5000)) and 0,
    }
    monkeypatch.setattr(app, "main", lambda: ways[sys.argv[1]]())
    ends = {name: server.run([name], tmp_path, tmp_path / ".log", seconds=2, largest_file=1000) for name in ways}
    assert (ends["fine"].code, ends["fine"].out) == (0, "yes\n")
    assert "Traceback (most recent call last)" in ends["raises"].err
    assert ends["exits"].code == 3
    assert ends["sleeps"].timed_out
    assert "File too large" in ends["writes"].err
    assert server.aside(lambda: {"a": 1}) == {"a": 1}
    assert server.aside(lambda: os._exit(1)) is None


def test_a_case_is_whole_only_with_all_its_files(tmp_path):
    (tmp_path / "liver.nii.gz").write_bytes(b"mask")
    digest = checks.digest(tmp_path / "liver.nii.gz")
    for written in (["liver.nii.gz"], {"liver.nii.gz": digest}):
        (tmp_path / "case.json").write_text(json.dumps({"written": written}))
        assert checks.case_is_whole(tmp_path) is None
    (tmp_path / "liver.nii.gz").write_bytes(b"else")
    assert "not what case.json says" in str(checks.case_is_whole(tmp_path))
    (tmp_path / "liver.nii.gz").write_bytes(b"")
    assert "empty" in str(checks.case_is_whole(tmp_path))
    (tmp_path / "case.json").write_text('{"written": [], "x": NaN}')
    assert "NaN is not JSON" in str(checks.case_is_whole(tmp_path))


def test_what_a_command_has_no_business_with_is_watched(tmp_path):
    (tmp_path / "scan.nii").write_bytes(b"1")
    check = checks.nothing_else_changed(tmp_path, ("out",))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").write_bytes(b"1")
    assert check(done()) is None
    (tmp_path / "beside").write_bytes(b"1")
    assert check(done()) == ("silent wrong", "wrote beside, outside its output")
    (tmp_path / "scan.nii").unlink()
    assert check(done()) == ("lost", "scan.nii was changed or is gone")


def test_the_same_seed_makes_the_same_changes(tmp_path):
    document = {"a": [1, 2, {"b": "x"}], "c": 0.5}
    assert [jsons.changed(document, Random(n)) for n in range(30)] == [
        jsons.changed(document, Random(n)) for n in range(30)
    ]
    assert document == {"a": [1, 2, {"b": "x"}], "c": 0.5}


def test_every_kind_has_its_share():
    order = kinds.shares(1000, [])
    assert len(set(order)) == 1000
    for name, kind in kinds.KINDS.items():
        total = sum(one.share for one in kinds.KINDS.values())
        assert abs(sum(n == name for n, _ in order) - 1000 * kind.share / total) < 2
    assert len(set(kills.plan(100))) == 100
    assert {name for name, _ in kills.plan(100)} == set(kills.KILLS)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the campaign forks after imports, as Linux can")
@pytest.mark.slow  # `make fuzz-short` runs a longer one in CI
def test_a_short_campaign_finds_no_fault(tmp_path):
    result = tmp_path / "fuzz.json"
    command = [sys.executable, str(SCRIPT), "--inputs", "12", "--kills", "1", "--seed", "1", "--only", *SHORT]
    ended = subprocess.run(
        [*command, "--work", str(tmp_path / "work"), "--result", str(result)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(result.read_text())
    assert told["faults"] == []
    assert (told["inputs"], told["kills"]) == (12, 1)
