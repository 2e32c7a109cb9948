import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted([*(ROOT / "recipes").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.stem)
def test_every_script_says_what_it_does(script):
    done = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Writes" in done.stdout or "writes" in done.stdout


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
