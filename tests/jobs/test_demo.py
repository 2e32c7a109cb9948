import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    paths = [str(ROOT / "benchmarks"), *map(str, filter(None, [os.environ.get("PYTHONPATH")]))]
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


@pytest.mark.slow
def test_the_demo_runs_on_a_phantom_and_leaves_what_it_names(tmp_path):
    command = [sys.executable, "-m", "delineate", "demo", "-o", str(tmp_path / "demo"), "--minutes", "0.3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    named = [Path(word) for word in done.stdout.split() if word.endswith(".png")]
    assert len(named) == 4
    assert all(path.stat().st_size > 5000 for path in named)
    figures = json.loads((tmp_path / "demo" / "dice.json").read_text())
    assert len(figures) == 3
    assert all(set(f["targets"]) == {"liver", "right kidney", "left kidney", "spleen"} for f in figures.values())
