"""Shell completion, as bash asks for it: quick, and of what there is."""

import os
import subprocess
import sys

import pytest

from delineate.model_folder import read_vocabulary
from delineate.prompts.understanding import understood
from delineate.systems import SYSTEMS

ASK = """
import sys
sys.argv = ["delineate"]
from delineate.cli.app import main
try:
    main()
finally:
    print([name for name in ("torch", "diffusers", "scipy", "matplotlib") if name in sys.modules])
"""


def offered(*words, cwd=None):
    """What is offered for the last word, and which heavy modules were loaded for it."""
    asked = {
        "COMP_WORDS": "\n".join(("delineate", *words)),
        "COMP_CWORD": str(len(words)),
        "_DELINEATE_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK], env={**os.environ, **asked}, capture_output=True, text=True, check=False, cwd=cwd
    )
    assert "Traceback" not in done.stderr, done.stderr
    *lines, heavy = done.stdout.splitlines()
    assert heavy == "[]"
    return [line for line in lines if line]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["seg"], ["segment"]),
        (["segment", "-m", "hou"], ["house"]),
        (["segment", "-p", "left_"], ["left_kidney", "left_adrenal_gland"]),
        (["segment", "-p", "liver,sple"], ["liver,spleen"]),
        (["train", "prog"], ["progidiff"]),
        (["train", "unet", "data", "--preset", "ti"], ["tiny"]),
        (["study", "ubench", "data", "--system", "mk"], ["mk_unet"]),
    ],
    ids=lambda one: " ".join(one),
)
def test_values_are_offered(words, expected):
    assert set(offered(*words)) == set(expected)


def test_model_folders_are_offered_and_others_are_not(tmp_path):
    for name in ("mine", "misc"):
        (tmp_path / "models" / name).mkdir(parents=True)
    (tmp_path / "models" / "mine" / "manifest.json").write_text("{}")
    assert offered("segment", "--model", "models/mi", cwd=tmp_path) == ["models/mine"]
    assert offered("segment", "--model", "nowhere/", cwd=tmp_path) == []


def test_what_is_offered_for_a_prompt_is_understood():
    vocabulary = read_vocabulary(None)
    for name in vocabulary.names:
        assert understood(name.replace(" ", "_"), vocabulary).targets == (name,)
    assert set(SYSTEMS) >= {"progidiff"}


def test_a_shell_is_told_how(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", ASK.replace('["delineate"]', '["delineate", "--show-completion", "bash"]')],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)},
    )
    assert "_DELINEATE_COMPLETE=complete_bash" in done.stdout
    assert not list(tmp_path.iterdir())
