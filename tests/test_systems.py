import inspect
import re
import subprocess
import sys

import pytest
import torch

from delineate.captions import captions
from delineate.systems import SYSTEMS
from delineate.systems.system import Target


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


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_saved_system_proposes_the_same_to_the_bit(name, trained, two_organ_bank, tmp_path):
    entry, system = SYSTEMS[name], trained[name].system
    config = entry.save(system, tmp_path)
    again = entry.load(tmp_path, config, system.vocabulary)
    assert again.size == system.size == 64
    assert {p.suffix for p in tmp_path.rglob("*") if p.is_file()} <= {".safetensors", ".json", ".txt"}
    stack = two_organ_bank.images[12:15].float() / 127.5 - 1
    for concept in system.vocabulary.concepts:
        target = Target(concept, captions(concept, "CT")[0])
        before = system.propose(system.see(stack), target, 2, 7)
        assert before.std() > 0
        assert torch.equal(again.propose(again.see(stack), target, 2, 7), before)


@pytest.mark.parametrize("name", SYSTEMS)
def test_proposals_are_probabilities_and_progress_ends_with_all(name, trained, two_organ_bank):
    system, told = trained[name].system, []
    concept = system.vocabulary.concepts[0]
    stack = two_organ_bank.images[:15].float() / 127.5 - 1
    drawn = system.propose(system.see(stack), Target(concept, concept.name), 3, 0, told.append)
    assert drawn.shape[0] in (1, 3)
    assert drawn.shape[1:] == (15, 64, 64)
    assert drawn.device.type == "cpu"
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert told == sorted(told)
    assert not told or told[-1] == 1.0


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_has_the_protocol_s_methods(name, trained):
    system = trained[name].system
    parameters = list(inspect.signature(system.propose).parameters)
    assert parameters == ["seen", "target", "n", "seed", "on_step"]
    assert system.to("cpu") is system
