"""Whether everything says the same version, and what the changelog says of it.

    python recipes/release.py v0.1.0

Needs nothing but Python. Writes build/notes.md, the notes of the release; ends with 1 and a line a fault.
"""

import argparse
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def versions(root: Path = ROOT) -> dict[str, str]:
    """The version that each file states, by its name."""
    package = re.search(r'^__version__ = "(.+)"$', (root / "src/delineate/__init__.py").read_text(), re.MULTILINE)
    citation = re.search(r'^version: "?([^"\n]+)"?$', (root / "CITATION.cff").read_text(), re.MULTILINE)
    return {
        "pyproject.toml": tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"],
        "src/delineate/__init__.py": package[1] if package else "none",
        "CITATION.cff": citation[1] if citation else "none",
    }


def notes(version: str, root: Path = ROOT) -> str:
    """The section of a version in the changelog; empty where there is none."""
    text = (root / "CHANGELOG.md").read_text()
    found = re.search(rf"^## \[?{re.escape(version)}\b.*?\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def faults(tag: str, root: Path = ROOT) -> list[str]:
    """What does not fit the tag, a line each."""
    version = tag.removeprefix("v")
    if not re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag):
        return [f"a tag is v1.2.3, or v1.2.3rc1; got '{tag}'"]
    wrong = [f"{name} says {told}, the tag {version}" for name, told in versions(root).items() if told != version]
    if not notes(version, root):
        wrong.append(f"CHANGELOG.md has no section '## {version}': rename 'Unreleased'")
    return wrong


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tag")
    tag = parser.parse_args().tag
    if wrong := faults(tag):
        sys.exit("\n".join(wrong))
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "notes.md").write_text(notes(tag.removeprefix("v")) + "\n")
    print(f"{tag}: all agree")


if __name__ == "__main__":
    main()
