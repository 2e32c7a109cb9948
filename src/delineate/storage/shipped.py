"""What ships with the package."""

from importlib.resources import files
from pathlib import Path

HOUSE = "house"
HOUSE_SYNTHESIS = "house_synthesis"  # a foundation with an edge control, for `delineate synthesize`


def house_folder() -> Path:
    """Where the model that ships with the package lies."""
    return Path(str(files("delineate"))) / HOUSE
