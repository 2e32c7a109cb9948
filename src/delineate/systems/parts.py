"""What most systems do alike: train phase after phase, save each part in a file of its name."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from delineate.data.slices import SliceBank
from delineate.storage.schema import checked
from delineate.storage.weights import load_weights, save_weights
from delineate.training.loop import Run, train_phases

T = TypeVar("T")
FIX = "copy the model again; if another release of delineate made it, train it again"


def configured(config: Mapping[str, Any], kind: type[T], folder: Path, *, below: str = "") -> T:
    """What `asdict` and JSON made of a configuration of a `kind`, every field checked; unknown ones are errors.

    Args:
        config: the part `system_config` of a model's config.json, or what lies in it `below` a field.
        kind: the dataclass, its fields with their ranges.
        folder: of the model, for messages.
        below: the field.
    """
    place = f"system_config.{below}".removesuffix(".")
    return checked(config, kind, folder / "config.json", below=place, fix=FIX, exact=True)


def train(system: Any, bank: SliceBank, run: Run) -> Any:
    """The system, taught by its phases."""
    train_phases(system.phases(bank), run)
    return system


def save(system: Any, folder: Path) -> dict[str, Any]:
    """Write the weights of every part; the configuration comes back."""
    for name, part in system.parts.items():
        save_weights(part, folder / f"{name}.safetensors")
    return asdict(system.config)


def filled(system: Any, folder: Path) -> Any:
    """The system with the weights that `save` wrote."""
    for name, part in system.parts.items():
        load_weights(part, folder / f"{name}.safetensors")
    return system
