"""Training state on disk: whole or absent, verified when read, the last two kept.

A checkpoint is a folder `checkpoint-<images seen>` of safetensors and one `state.json` that holds the numbers, the
SHA-256 of every other file, and a digest of itself. It is built beside and put in place whole, so a kill at any
moment leaves the previous ones; a damaged newest one is passed over for the one before.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from delineate.errors import ModelError
from delineate.storage.files import replacing, sha256_of, write_json
from delineate.storage.schema import Count, Name, Sha256, checked, read_json
from delineate.storage.swapping import swapping, sweep
from delineate.storage.weights import read_weights

KEPT = 2
MOST_STATE = 256 << 20  # bytes of state.json, whose log grows with the training
AGAIN = "remove its folder and train again"


@dataclass(eq=False)
class TrainState:
    """All that changes during training, and exactly what a checkpoint holds.

    Attributes:
        module: what learns.
        average: an exponential moving average of its weights; this is what is used afterwards.
        optimizer: its optimiser.
        images_seen: how far training is; together with `seed` it determines every random number of a step.
        seconds: wall time spent so far, over all runs.
        seed: of the whole training.
        log: one entry for each logged step: images seen, seconds, and the loss with its parts.
    """

    module: nn.Module
    average: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    seed: int
    images_seen: int = 0
    seconds: float = 0.0
    log: list[dict[str, float]] = field(default_factory=list)


def new_state(module: nn.Module, *, seed: int, weight_decay: float = 1e-2) -> TrainState:
    """The state before the first step: AdamW, and the average at the weights themselves."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=weight_decay, fused=True)
    return TrainState(module, {k: v.clone() for k, v in module.state_dict().items()}, optimizer, seed)


def save_checkpoint(state: TrainState, folder: Path) -> Path:
    """Write the state as the newest checkpoint in `folder`, drop all but the last two, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"checkpoint-{state.images_seen:010d}"
    with swapping(target) as building:
        save_file(_contiguous(state.module.state_dict()), building / "weights.safetensors")
        save_file(_contiguous(state.average), building / "average.safetensors")
        moments = state.optimizer.state_dict()["state"]
        flat = {f"{i}.{name}": torch.as_tensor(v) for i, entry in moments.items() for name, v in entry.items()}
        save_file(_contiguous(flat), building / "optimizer.safetensors")
        numbers = {
            "images_seen": state.images_seen,
            "seconds": state.seconds,
            "seed": state.seed,
            "threads": torch.get_num_threads(),  # other thread counts sum in another order
            "log": state.log,
            "sha256": {f.name: sha256_of(f) for f in sorted(building.iterdir())},
        }
        write_json(building / "state.json", {**numbers, "digest": _digest(numbers)})
    sweep(folder)  # what was killed while it was written
    for old in checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, oldest first."""
    return sorted(p for p in folder.glob("checkpoint-*") if p.is_dir())


def load_checkpoint(state: TrainState, folder: Path) -> str | None:
    """Bring `state` to the newest sound checkpoint in `folder`.

    Returns:
        A line that says what was resumed, or None where there is nothing to resume.
    """
    passed_over = []
    for path in reversed(checkpoints(folder)):
        numbers = _read_sound(path)
        if numbers is None:
            passed_over.append(path.name)
            continue
        state.module.load_state_dict(load_file(path / "weights.safetensors"))
        loaded = load_file(path / "average.safetensors")
        state.average = {k: v.to(state.average[k].device) for k, v in loaded.items()}
        entries: dict[int, dict[str, Tensor]] = {}
        parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
        for key, value in load_file(path / "optimizer.safetensors").items():
            index, name = key.split(".", 1)
            like = parameters[int(index)]
            # The fused optimiser walks memory: a moment must lie in it as its weight does.
            entries.setdefault(int(index), {})[name] = (
                torch.empty_like(like).copy_(value) if value.shape == like.shape and value.ndim else value
            )
        state.optimizer.load_state_dict({**state.optimizer.state_dict(), "state": entries})
        state.images_seen, state.seconds = numbers["images_seen"], numbers["seconds"]
        state.seed, state.log = numbers["seed"], numbers["log"]
        damaged = f"; damaged and passed over: {', '.join(passed_over)}" if passed_over else ""
        return f"resumed from {path.name}{damaged}"
    return None


BEST = "best"


@dataclass(frozen=True)
class Best:
    """What best.json must hold: of whose average the score is."""

    score: float
    images: Count
    file: Name

    def __post_init__(self):
        if Path(self.file).name != self.file:
            raise ValueError(f"file must be a name in the folder; got '{self.file}'")


@dataclass(frozen=True)
class Numbers:
    """What state.json must hold."""

    images_seen: Count
    seconds: float
    seed: int
    log: list[dict[Name, float]]
    sha256: dict[Name, Sha256]
    digest: Sha256


def keep_if_best(state: TrainState, folder: Path, score: float) -> None:
    """Keep the state's average in `folder` if no average kept there scored as high."""
    written = folder / f"{BEST}.json"
    known = read_json(written, Best, fix=AGAIN) if written.exists() else None
    if known is not None and known.score >= score and known.images <= state.images_seen:
        return
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{BEST}-{state.images_seen:010d}.safetensors"
    with replacing(folder / name) as temporary:
        save_file(_contiguous(state.average), temporary)
    write_json(written, {"score": score, "images": state.images_seen, "file": name})  # whole or not at all
    for old in folder.glob(f"{BEST}-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_best(state: TrainState, folder: Path) -> float | None:
    """Put the best average in `folder` in the place of the state's; returns its score, None where none was kept."""
    written = folder / f"{BEST}.json"
    if not written.exists():
        return None
    known = read_json(written, Best, fix=AGAIN)
    loaded = read_weights(folder / known.file, AGAIN)
    state.average = {k: v.to(state.average[k].device) for k, v in loaded.items()}
    return known.score


def _read_sound(path: Path) -> dict | None:
    """The numbers of a checkpoint whose files all have the hashes written down, else None."""
    try:
        numbers = read_state(path / "state.json")
        sound = numbers.pop("digest") == _digest(numbers)
        sound = sound and all(sha256_of(path / name) == digest for name, digest in numbers["sha256"].items())
    except (OSError, ModelError):
        return None
    return numbers if sound else None


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state.json, as it stands there. Raises `ModelError` where it is none."""
    numbers: dict[str, Any] = read_json(path, dict[str, Any], fix=AGAIN, most_bytes=MOST_STATE)
    checked(numbers, Numbers, path, fix=AGAIN)
    return numbers


def _digest(numbers: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()


def _contiguous(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.detach().contiguous().clone() for k, v in tensors.items()}
