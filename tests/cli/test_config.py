"""Defaults of options from a TOML file: what is typed comes before, what is wrong is told, what is taken is said."""

import json

import pytest
import typer
from tests.cli.test_app import one_line

from delineate.cli import app as cli
from delineate.cli.config import NEVER, ONLY_ASKED_FOR, settable

CALLBACKS = {one.name or one.callback.__name__: one.callback for one in cli.app.registered_commands}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DELINEATE_CONFIG", raising=False)

    def write(text, name="delineate.toml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def planned(delineate, *arguments, before=()):
    code, out, err = delineate(*before, *arguments, "--dry-run")
    assert code == 0, err
    return json.loads(out)["request"], err


def test_every_option_of_every_command_can_be_set():
    commands = typer.main.get_command(cli.app).commands
    assert set(commands) == set(CALLBACKS)
    for name, command in commands.items():
        options = {opt[2:] for p in command.params for opt in p.opts if opt.startswith("--") and p.name != "help"}
        assert set(settable(CALLBACKS[name])) == options - NEVER, name


def test_a_file_in_the_current_folder_gives_defaults_and_what_is_typed_wins(delineate, here, pictures, model, tmp_path):
    here(f"[segment]\nproposals = 5\nmaps = true\n[defaults]\nseed = 3\nmodel = '{model}'")
    asked = ["segment", pictures, "-o", tmp_path / "out"]
    request, err = planned(delineate, *asked)
    assert (request["n"], request["seed"], request["maps"]) == (5, 3, True)
    line = one_line(err)
    assert line.startswith("delineate: delineate.toml says ")
    assert "--proposals 5" in line
    request, err = planned(delineate, *asked, "-n", 2, "--seed", 4)
    assert (request["n"], request["seed"], request["maps"]) == (2, 4, True)
    assert "--proposals" not in one_line(err)
    assert planned(delineate, *asked, "-q")[1] == ""


def test_a_file_that_is_asked_for_comes_instead_and_may_say_more(
    delineate, here, pictures, model, tmp_path, monkeypatch
):
    here("[segment]\nproposals = 5")
    mine = here(f'[segment]\nmodel = "{model}"\nprompt = ["liver"]\noutput = "there"', "mine.toml")
    request, err = planned(delineate, "segment", pictures, before=("--config", mine))
    assert request["prompts"] == ["liver"]
    assert request["n"] == 8
    assert "--output there" in err
    monkeypatch.setenv("DELINEATE_CONFIG", str(mine))
    assert planned(delineate, "segment", pictures)[0]["prompts"] == ["liver"]


def test_of_two_that_exclude_one_another_the_typed_one_counts(delineate, here, phantom_dataset, tmp_path):
    here("[train]\nminutes = 30")
    asked = ["train", "unet", phantom_dataset, "-o", tmp_path / "m"]
    assert planned(delineate, *asked)[0]["minutes"] == 30
    request, _ = planned(delineate, *asked, "--images", 8)
    assert (request["minutes"], request["images"]) == (None, 8)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[segment]\nproposal = 3", "[segment] proposal: no such option; nearest: proposals"),
        ("[segmnt]\nproposals = 3", "[segmnt] is no command; nearest: segment"),
        ("[defaults]\nnothing-like-it = 3", "no such option; there are"),
        ("proposals = 3", "'proposals' stands by itself"),
        ('[segment]\nproposals = "many"', "[segment] proposals = 'many': must be a whole number from 1 to 64"),
        ("[segment]\nproposals = 65", "must be a whole number from 1 to 64"),
        ("[segment]\nproposals = true", "must be a whole number"),
        ("[segment]\nproposals = [3]", "must be a whole number"),
        ("[segment]\nmaps = 1", "must be true or false"),
        ("[segment]\nmodel = 3", "must be a path, as a text"),
        ("[segment]\nprompt = [3]", "must be a list of any length, each a text"),
        ("[segment]\nmissed-at-most = '500%'", "a share is written as"),
        ("[train]\nminutes = nan", "must be a number"),
        ("[split]\nfractions = [0.5, 0.5]", "must be a list of 3, each a number"),
        ("[segment]\ndry-run = true", "no such option"),
        ("[segment\n", "not TOML"),
    ],
)
def test_what_is_wrong_is_one_line_with_file_key_and_what_is_allowed(delineate, here, text, words):
    here(text)
    code, out, err = delineate("segment", "scan.png", "-o", "out")
    assert (code, out) == (2, "")
    line = one_line(err)
    assert "delineate.toml" in line
    assert words in line
    assert delineate("segment", "--help")[0] == 0  # help is always to be had


@pytest.mark.parametrize("key", sorted(ONLY_ASKED_FOR))
def test_a_file_that_came_with_a_folder_cannot_say_where_is_written_or_who_may_come(delineate, here, key):
    command = next(name for name, one in CALLBACKS.items() if key in settable(one))
    here(f'[{command}]\n{key} = "x"')
    code, _, err = delineate("systems")
    assert code == 2
    assert "give --config delineate.toml" in one_line(err)


def test_a_file_that_is_not_there_or_no_text(delineate, here, tmp_path):
    assert "no such file" in one_line(delineate("--config", "none.toml", "systems")[2])
    (tmp_path / "delineate.toml").write_bytes(b"\xff\xfe")
    assert "not TOML" in one_line(delineate("systems")[2])
    (tmp_path / "delineate.toml").write_text("#" * 70_000)
    assert "larger than 64 kB" in one_line(delineate("systems")[2])
    (tmp_path / "delineate.toml").unlink()
    (tmp_path / "delineate.toml").mkdir()  # somebody's folder
    assert delineate("systems")[0] == 0
