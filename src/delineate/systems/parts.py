"""What most systems do alike: train phase after phase, save each part in a file of its name."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from delineate.data.slices import SliceBank
from delineate.storage.weights import load_weights, save_weights
from delineate.training.loop import Run, train_phases


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
