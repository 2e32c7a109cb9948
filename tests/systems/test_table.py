import re
import subprocess
import sys

import pytest

from delineate.systems import SYSTEMS


def test_the_table_of_systems_needs_no_torch():
    code = "import sys, delineate.systems; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_says_what_it_is_and_whom_it_follows(name):
    entry = SYSTEMS[name]
    assert len(entry.summary) > 20
    assert re.search(r"\b20\d\d\b", entry.source)
    assert "\n" not in entry.summary + entry.source


@pytest.mark.parametrize("name", SYSTEMS)
def test_grids_divide_by_what_every_network_needs(name):
    assert "tiny" in SYSTEMS[name].presets
    assert all(size % 32 == 0 for size in SYSTEMS[name].presets.values())
