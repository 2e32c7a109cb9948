import json
import socket
import subprocess
import sys

import pytest
from tests.review_world import write_volume
from typer.testing import CliRunner

from delineate.cli import review as cli_review
from delineate.cli.app import app
from delineate.errors import ModelError, ScanError


@pytest.fixture
def served(monkeypatch):
    """What would be served."""
    found = {}

    def serve(cases, answering, users, host, port, **more):
        found.update(cases=cases, answering=answering, users=users, host=host, port=port, **more)

    monkeypatch.setattr(cli_review, "_serve", serve)
    return found


def review(*arguments):
    return CliRunner().invoke(app, ["review", *map(str, arguments)], catch_exceptions=True)


def test_options_reach_the_server(served, tmp_path):
    scan = write_volume(tmp_path / "v.nii.gz")
    done = review(
        scan, "-o", tmp_path / "w", "--port", 8080, "--user", "ann", "--user", "bob", "--modality", "us", "--no-browser"
    )
    assert done.exit_code == 0, done.output
    assert (served["users"], served["host"], served["port"], served["browser"]) == (
        ["ann", "bob"],
        "127.0.0.1",
        8080,
        False,
    )
    assert served["cases"][0].folder == tmp_path / "w"
    assert served["cases"][0].info.modality == "US"
    assert served["answering"].model.name == "house"
    assert "liver" in served["answering"].vocabulary.names
    assert len(served["answering"].asked["model_sha256"]) == 64


def test_usage_that_cannot_be_is_refused_before_anything_is_served(served, tmp_path):
    scan = write_volume(tmp_path / "v.nii.gz")
    assert review(scan, "--user", "ann b", "--user", "Ann-b!").exit_code == 0  # "ann_b" and "ann-b"
    served.clear()
    twins = review(scan, "--user", "ann b", "--user", "Ann_B")
    assert twins.exit_code == 2
    assert "must differ" in twins.output
    for name, found in (("ann\u202e", "U+202E"), ("a\x1b[2Jn", "U+001B"), (" ", "none")):
        hidden = review(scan, "--user", name)
        assert hidden.exit_code == 2
        assert found in hidden.output
    assert isinstance(review(tmp_path / "nothing").exception, ScanError)
    assert isinstance(review(scan, "--model", tmp_path).exception, ModelError)
    assert not served


def test_a_scan_that_is_gone_is_named_and_the_others_are_served(served, tmp_path):
    from tests.review_world import Bright

    from delineate.jobs.segment import SegmentRequest, run_cohort
    from delineate.scans.finding import Found
    from delineate.segmenter import Segmenter

    scans = [write_volume(tmp_path / f"v{n}.nii.gz", n) for n in range(2)]
    run_cohort(
        Segmenter(Bright()),
        list(map(Found.at, scans)),
        SegmentRequest(("liver",), n=1, pictures=False),
        tmp_path / "out",
        model_hash="m",
    )
    scans[0].unlink()
    done = review(tmp_path / "out")
    assert done.exit_code == 0
    assert "v0.nii.gz: the scan of 'v0' is not there; the other cases can be opened" in done.output
    scans[1].unlink()
    assert isinstance(review(tmp_path / "out").exception, ScanError)


def test_a_port_that_is_taken_is_told_in_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(cli_review.ReviewError, match=r"cannot listen on 127\.0\.0\.1, port .*another --port"):
            cli_review.listening_on("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(cli_review.ReviewError, match=r"cannot listen on no\.such\.host\.invalid"):
        cli_review.listening_on("no.such.host.invalid", 0)


def test_on_all_addresses_the_machine_goes_by_its_own_names():
    assert cli_review.names_of("127.0.0.1") == ["127.0.0.1"]
    assert cli_review.names_of("0.0.0.0")[0] == socket.gethostname()


def test_without_the_extra_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(cli_review.ReviewError, match=r"pip install 'delineate\[review\]'"):
        cli_review._need_extra()


def test_help_needs_neither_the_server_nor_torch():
    code = (
        "import sys, json; sys.argv = ['delineate', 'review', '--help']\n"
        "from delineate.cli.app import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print(json.dumps([n for n in ('torch', 'fastapi', 'uvicorn', 'delineate.review.app', 'scipy') if n in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_without_the_viewer_the_fix_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(cli_review, "VIEWER", tmp_path / "none.js")
    done = review(write_volume(tmp_path / "v.nii.gz"))
    assert isinstance(done.exception, cli_review.ReviewError)
    assert "install npm" in str(done.exception)
