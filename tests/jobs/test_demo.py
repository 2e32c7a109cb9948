import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from delineate.jobs.demo import DemoRequest, ask, compared
from delineate.jobs.watch import Nobody
from delineate.metrics.overlap import dice
from delineate.prompts.prompt import Prompt
from delineate.prompts.vocabulary import Vocabulary
from delineate.proposals.proposals import Proposals
from delineate.proposals.target import Outcome, TargetProposals

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "recipes").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


ALL_HELP = """
import contextlib, io, json, runpy, sys, traceback
said = {}
for script in sys.argv[1:]:
    out = io.StringIO()
    sys.argv = [script, "--help"]
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(script, run_name="__main__")
            code = None
        except SystemExit as stop:
            code = stop.code
        except Exception:
            code = traceback.format_exc()
    said[script] = [code, out.getvalue()]
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def help_of():
    """What every script says to --help; one Python for all, since each needs torch."""
    paths = [str(ROOT / "benchmarks"), str(ROOT / "recipes"), *map(str, filter(None, [os.environ.get("PYTHONPATH")]))]
    done = subprocess.run(
        [sys.executable, "-c", ALL_HELP, *map(str, SCRIPTS)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_every_script_says_what_it_does(script, help_of):
    code, said = help_of[str(script)]
    assert code == 0
    assert "Writes" in said or "writes" in said


class Knows:
    """A segmenter that finds the left half of whatever it knows the word of."""

    def __init__(self, *words):
        self.vocabulary = Vocabulary.from_names(words, None)

    def __call__(self, scan, prompts, *, n, anyway, on_step):
        half = np.zeros((n, *scan.shape), np.float16)
        half[..., : scan.shape[-1] // 2] = 1
        found = {"outcome": Outcome.FOUND, "score": 0.9, "drawn": half}
        unknown = {"outcome": Outcome.UNKNOWN_PROMPT}
        answers = []
        for word in prompts:
            known = word in self.vocabulary.names
            answers.append(TargetProposals(Prompt(word), word if known else None, **(found if known else unknown)))
        on_step(1.0)
        return Proposals(scan, tuple(answers))


REQUEST = DemoRequest(proposals=1, images=2)


def test_held_out_scans_are_asked_and_scored():
    answers = ask(Knows("nuclei"), "nuclei", REQUEST, Nobody(), "")
    assert len(answers) == 6
    for one in answers:
        assert one.found.keys() == one.truth.keys() == {"nuclei"}
        assert one.dice["nuclei"] == dice(one.found["nuclei"], one.truth["nuclei"])
    rows = compared(answers, {"found": answers})
    assert [tile.title for tile in rows["found"]] == [f"found, Dice {one.dice['nuclei']:.2f}" for one in answers]


def test_a_word_that_is_not_known_is_said_to_be_so():
    [one] = ask(Knows("liver"), "fetal_head", REQUEST, Nobody(), "")
    assert one.dice == {"fetal head": None}
    assert [tile.title for tile in compared([one], {"found": [one]})["found"]] == ["unknown prompt"]


def test_of_many_organs_only_known_ones_are_asked():
    [one] = ask(Knows("liver", "aorta"), "ct", REQUEST, Nobody(), "", ("liver", "spleen"))
    assert list(one.truth) == ["liver"]


@pytest.mark.slow
def test_the_demo_runs_and_leaves_what_it_names(tmp_path):
    command = [sys.executable, "-m", "delineate", "demo", "-o", str(tmp_path / "demo"), "--images", "40"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    named = [Path(word) for word in done.stdout.split() if word.endswith(".png")]
    assert len(named) == 4
    assert all(path.stat().st_size > 5000 for path in named)
    figures = json.loads((tmp_path / "demo" / "dice.json").read_text())
    assert figures["house model"]["liver"] > 0.8
    assert figures["before"].keys() == figures["after"].keys()
