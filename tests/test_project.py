"""Files by which others join: forms, workflows, releases, pictures; what they name exists."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from delineate import __version__

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
KINDS = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def recipe(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "recipes" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_what_is_there_with_few_rights_and_fixed_actions(path):
    told = parsed(path)
    assert told["permissions"] == {"contents": "read"}
    steps = [step for job in told["jobs"].values() for step in job["steps"]]
    assert all(job["timeout-minutes"] for job in told["jobs"].values())
    for step in steps:
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", step["uses"])  # a tag may be moved
    commands = [step["run"].split()[0] for step in steps if "run" in step]
    assert ".ci/run" in commands
    for command in commands:
        assert command == "gh" or ((ROOT / command).is_file() and (ROOT / command).stat().st_mode & 0o111)
    (version,) = {step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", "")}
    assert f'requires-python = ">={version}"' in (ROOT / "pyproject.toml").read_text()
    assert not re.search(r"\$\{\{\s*github\.(event|head_ref)", path.read_text())  # strangers' words in a shell


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms_are_as_they_are_to_be(path):
    told = parsed(path)
    assert {"name", "description", "body"} <= told.keys()
    ids = [part["id"] for part in told["body"] if "id" in part]
    assert len(set(ids)) == len(ids)
    for part in told["body"]:
        assert part["type"] in KINDS
        attributes = part["attributes"]
        assert attributes["value"] if part["type"] == "markdown" else attributes["label"]
        assert part["type"] not in ("dropdown", "checkboxes") or attributes["options"]
    assert any(part["type"] != "markdown" for part in told["body"])


def test_ci_runs_targets_that_the_makefile_has():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    pages = [ROOT / ".ci" / "run", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "how-to" / "release.md"]
    used = {word for page in pages for word in re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", page.read_text())}
    assert {"test", "pictures"} <= used <= targets


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md"])
def test_what_the_pages_for_others_link_to_is_there(name):
    text = (ROOT / name).read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (ROOT / link).exists(), link
    for path in re.findall(r"`((?:src|docs|tests|benchmarks|recipes|cli|jobs|networks|scans|prompts)/[\w/.-]*)`", text):
        assert (ROOT / path).exists() or (ROOT / "src" / "delineate" / path).exists(), path


def test_the_citation_is_of_this_version():
    told = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert told["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= told.keys()
    assert told["version"] == __version__
    assert told["license"] == "Apache-2.0"
    assert all({"type", "title", "authors"} <= one.keys() for one in told["references"])


def test_a_tag_that_fits_nothing_is_refused_in_words(tmp_path):
    release = recipe("release")
    assert set(release.versions().values()) == {__version__}
    assert release.faults("latest") == ["a tag is v1.2.3, or v1.2.3rc1; got 'latest'"]
    wrong = release.faults("v9.9.9")
    assert len(wrong) == 4
    assert f"pyproject.toml says {__version__}, the tag 9.9.9" in wrong
    for name in release.versions():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "CHANGELOG.md").write_text(
        f"## Unreleased\n\n- b\n\n## {__version__}, 2027-01-15\n\n- a\n\n## 0.0.1\n\n- z\n"
    )
    assert release.faults(f"v{__version__}", tmp_path) == []
    assert release.notes(__version__, tmp_path) == "- a"
    done = subprocess.run([ROOT / ".ci" / "release", "--check", "v9.9.9"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the tag 9.9.9" in done.stderr


def test_every_picture_is_made_by_one_command_or_says_how_and_none_is_stale():
    pictures = recipe("pictures")
    there = {path.name for path in (ROOT / "docs" / "pictures").glob("*.png")}
    assert there == {*pictures.MADE, *pictures.OTHERS}
    assert [name for name in pictures.MADE if pictures.stale(name)] == []  # make pictures
    for name, (_, page) in pictures.OTHERS.items():
        assert name in (ROOT / page).read_text(), name
    functions = {
        node.name for node in ast.parse((ROOT / "recipes" / "pictures.py").read_text()).body if hasattr(node, "name")
    }
    assert {function.__name__ for function, _ in pictures.MADE.values()} <= functions
    used = "".join(page.read_text() for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
    assert [name for name in there if f"pictures/{name}" not in used] == []


def test_a_picture_that_is_not_made_here_says_how(monkeypatch):
    pictures = recipe("pictures")
    monkeypatch.setattr(sys, "argv", ["pictures.py", "lesions.png"])
    with pytest.raises(SystemExit, match="make lesions"):
        pictures.main()
