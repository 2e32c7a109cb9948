"""What the documents say is true: their code runs, their commands and files exist."""

import os
import re
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml
from typer.main import get_command

import delineate
from delineate.cli.app import app
from delineate.storage.shipped import house_folder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def test_the_python_of_the_readme_runs(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("found ")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_in_a_page_exists_with_its_options(page):
    commands = get_command(app).commands
    for line in re.findall(r"^(?:\$ )?delineate (.+?)(?:\s+#.*)?$", page.read_text(), re.MULTILINE):
        name, *words = line.split()
        if name.startswith("-"):
            continue
        assert name in commands, f"{page.name}: delineate {line}"
        known = {option for parameter in commands[name].params for option in parameter.opts + parameter.secondary_opts}
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert used <= known | {"--help"}, f"{page.name}: delineate {line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_architecture_page_names_every_file():
    text = (ROOT / "docs" / "architecture.md").read_text()
    names = {p.name for p in (ROOT / "src" / "delineate").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert {name for name in names if name not in text} == set()


def test_the_house_model_is_small_and_says_where_it_comes_from():
    folder = house_folder()
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    assert size <= 25 * 2**20
    card = (folder / "card.md").read_text()
    assert "Not a medical device" in card
    assert "| trained on" in card
    assert not list(folder.rglob("*.bin")) + list(folder.rglob("*.pt")) + list(folder.rglob("*.pkl"))


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "results").glob("*.json")), ids=lambda path: path.stem)
def test_results_name_no_place_on_somebody_s_machine(path):
    """Commands are told as anybody can repeat them."""
    assert not re.findall(r'(?:^|[\s"=])(/(?!/)[\w.-]+/[\w./-]+)', path.read_text(encoding="utf-8"))


def pages_of(node) -> set[str]:
    """Every page that a site's `nav` names."""
    if isinstance(node, str):
        return {node}
    return set().union(*map(pages_of, node.values() if isinstance(node, dict) else node))


def test_the_site_names_every_page():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    there = {
        p.relative_to(ROOT / "docs").as_posix() for kind in ("md", "ipynb") for p in (ROOT / "docs").rglob(f"*.{kind}")
    }
    assert pages_of(config["nav"]) == there


def test_the_reference_tells_of_every_public_name():
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "reference").glob("*.md")]
    told = set(re.findall(r"^::: (\S+)$", "\n".join(pages), re.MULTILINE))
    for name, home in delineate._HOME.items():
        assert {home, f"{home}.{name}"} & told, name
    for name in told:  # and of nothing that is not there
        resolve_name(name)


def test_a_program_that_uses_the_package_is_type_checked_with_every_public_name():
    text = (ROOT / "tests" / "consumer.py").read_text(encoding="utf-8")
    assert "tests/consumer.py" in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert [name for name in delineate.__all__ if not re.search(rf"\b{name}\b", text)] == []


@pytest.mark.parametrize("page", ["index.md", "how-to/share.md"])
def test_the_python_of_the_pages_for_programs_runs(page, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    before = Path.cwd()
    os.chdir(tmp_path)
    try:
        exec(compile(code, page, "exec"), {"__name__": "__main__"})
    finally:
        os.chdir(before)
