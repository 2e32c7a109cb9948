"""Progress, notes and errors: on a terminal, without one, in a file; more, less and as JSON."""

import json
import logging
import re
import sys

import pytest
from rich.console import Console

from delineate.cli import app as cli
from delineate.cli.progress import LATEST, SOONEST, Lines, progress_bar
from delineate.cli.telling import HERE, NOTE, listening, say

LINE = re.compile(r"\d\d:\d\d:\d\d  (.+)")
DATED = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  .+")


@pytest.fixture
def run(monkeypatch, capsys):
    """(exit code, standard output, standard error as it is) of `delineate <arguments>`."""

    def delineate(*arguments):
        monkeypatch.setattr(sys, "argv", ["delineate", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return delineate


@pytest.fixture
def asked(pictures, model, tmp_path):
    return ["segment", pictures, "-o", tmp_path / "out", "-m", model, "-n", 1, "--no-pictures", "-p", "everything"]


def progress_in(err):
    return [found[1] for found in map(LINE.fullmatch, err.splitlines()) if found]


def test_where_there_is_no_terminal_progress_is_lines(run, asked):
    code, out, err = run(*asked)
    assert code == 0
    lines = progress_in(err)
    assert lines[0] == "segment  loading the model"
    assert "segment  case0.png (1 of 2)" in lines
    assert any(line.startswith("segment  case1.png (2 of 2)  50 %") for line in lines)
    assert "delineate: 'everything' was taken for liver and spleen" in err
    assert not progress_in(out)


def test_quiet_leaves_results_and_errors(run, asked, pictures):
    assert run(*asked, "-q")[2] == ""
    code, out, err = run(*asked, "--quiet", "-p", "flux capacitor")
    assert code == 4
    assert "found" in out or "absent" in out
    assert [line.startswith("delineate: 'flux capacitor' is not in") for line in err.splitlines()] == [True]
    code, _, err = run("segment", pictures / "none.png", "-o", "x", "-q")
    assert code == 3
    assert err.count("\n") == 1


def test_json_shows_progress_only_where_it_is_asked_for_and_never_on_standard_output(run, asked):
    _, out, err = run(*asked, "--json")
    assert json.loads(out)["cases"]
    assert progress_in(err) == []
    assert "was taken for" in err
    _, out, err = run(*asked, "--json", "--verbose")
    assert json.loads(out)["cases"]
    assert "segment  loading the model" in progress_in(err)


def test_verbose_tells_every_case(run, asked):
    lines = progress_in(run(*asked, "-v")[2])
    assert any(re.match(r"case0: done, \d+\.\d s: liver", line) for line in lines)
    assert not any(line.startswith("case0:") for line in progress_in(run(*asked)[2]))


def test_the_log_file_gets_every_line_with_its_time(run, asked, tmp_path):
    log = tmp_path / "run.log"
    log.write_text("2026-01-01 00:00:00  what was there\n")
    for more in ([], ["-q"], ["--json"]):
        assert run(*asked, "--log-file", log, *more)[0] == 0
    assert run(*asked, "--log-file", log, "-m", "nowhere")[0] == 6
    lines = log.read_text().splitlines()
    assert all(DATED.fullmatch(line) for line in lines)
    told = [line.split("  ", 1)[1] for line in lines]
    assert told[0] == "what was there"
    assert told.count("segment  case0.png (1 of 2)") == 3
    assert sum("'everything' was taken for liver and spleen" in line for line in told) == 3
    assert told[-1].startswith("delineate: nowhere: ")
    assert not [one for one in logging.getLogger("delineate").handlers if isinstance(one, logging.FileHandler)]


def test_a_log_file_that_cannot_be_written_is_told_before_any_work(run, asked, tmp_path):
    code, _, err = run(*asked, "--log-file", tmp_path)
    assert code == 10
    assert err.startswith(f"delineate: --log-file {tmp_path}: ")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert run(*asked, "-v", "-q")[0] == 2
    (tmp_path / "thesis.txt").write_text("mine")
    assert run(*asked, "--log-file", tmp_path / "thesis.txt")[0] == 10
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_line_in_the_log_is_one_line_and_nothing_that_a_terminal_obeys(run, asked, tmp_path):
    assert run(*asked, "-p", "flux\x1b[31m\ncapacitor", "--log-file", tmp_path / "log")[0] == 4
    text = (tmp_path / "log").read_text()
    assert "\x1b" not in text
    assert all(DATED.fullmatch(line) for line in text.splitlines())


def test_lines_come_now_and_then_and_tell_the_time_to_go(caplog):
    caplog.set_level(NOTE, logger="delineate")
    now = 0.0
    lines = Lines(NOTE, clock=lambda: now)
    lines.start("training: encoder")
    for second in range(1, 3601):
        now = float(second)
        lines.update(second / 7200, "loss 0.1")
    told = [record.getMessage().strip() for record in caplog.records]
    assert told[0] == "training: encoder"
    assert told[1] == "training: encoder  0 %, 1:59:50 to go  loss 0.1"
    assert told[-1].split("  ")[1].startswith("50 %")
    assert 3600 / LATEST < len(told) < 3600 / SOONEST
    lines.start("case 2", done=0.5)  # goes on with the scale of the one before
    assert caplog.records[-1].getMessage().strip() == "case 2  50 %, 1:00:00 to go"
    lines.start("calibrating")
    assert caplog.records[-1].getMessage().strip() == "calibrating"


def test_on_a_terminal_there_is_a_bar_and_no_lines(capsys):
    class Shown:
        def __init__(self):
            self.text = ""

        def write(self, text):
            self.text += text

        def flush(self):
            pass

        def isatty(self):
            return True

    for level, width in ((NOTE, True), (logging.ERROR, False)):
        shown = Shown()
        with listening():
            HERE.setLevel(level)
            with progress_bar(Console(file=shown, force_terminal=True, width=80)) as bar:
                bar.start("segmenting")
                bar.update(0.5)
        assert ("segmenting" in shown.text) == width
    assert capsys.readouterr().err == ""


def test_whoever_listens_hears_nothing_that_a_terminal_obeys(caplog):
    with caplog.at_level(logging.INFO, logger="delineate"):
        say("a\x1b[31mred \ud800 50%s")
    assert caplog.messages == ["a\\x1b[31mred \\ud800 50%s"]
