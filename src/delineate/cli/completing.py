"""What a shell offers for the value of an option, at the press of Tab; read without loading anything heavy."""

import json
from pathlib import Path

from delineate.storage.shipped import house_folder
from delineate.systems import SYSTEMS

HOUSE = "house"


def models(incomplete: str) -> list[str]:
    """The model that ships, and model folders that begin so."""
    typed = Path(incomplete)
    folder = typed if incomplete.endswith("/") else typed.parent
    try:
        there = sorted(one for one in folder.iterdir() if (one / "manifest.json").is_file())
    except OSError:
        there = []
    return [name for name in (HOUSE, *map(str, there)) if name.startswith(incomplete)]


def targets(incomplete: str) -> list[str]:
    """Names that the model that ships knows, after a comma too; with underscores for spaces, at which shells part."""
    before, comma, begun = incomplete.rpartition(",")
    names = ("all", *(one["name"] for one in json.loads((house_folder() / "vocabulary.json").read_text())["concepts"]))
    return [f"{before}{comma}{name}" for name in (one.replace(" ", "_") for one in names) if name.startswith(begun)]


def systems(incomplete: str) -> list[str]:
    """Systems that can be trained."""
    return [name for name in SYSTEMS if name.startswith(incomplete)]


def presets(incomplete: str) -> list[str]:
    """Sizes of any system."""
    known = dict.fromkeys(preset for row in SYSTEMS.values() for preset in row.presets)
    return [name for name in known if name.startswith(incomplete)]
