"""What jobs have in common: progress told, the request kept, checkpoints found again."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from delineate.errors import DelineateError
from delineate.storage.files import write_json
from delineate.storage.schema import read_json
from delineate.storage.swapping import hold, make_folder
from delineate.training.checkpoint import TrainState, read_state

LOG = logging.getLogger(__name__)


class Watch(Protocol):
    """Who is told how far a job is, and what a person should know of it: a progress bar, or nobody."""

    def start(self, what: str, done: float = 0.0) -> None: ...  # noqa: D102
    def update(self, done: float, note: str = "") -> None: ...  # noqa: D102
    def say(self, line: str) -> None: ...  # noqa: D102


class Nobody:
    """A `Watch` that looks away."""

    def start(self, what: str, done: float = 0.0) -> None:
        """Ignored."""

    def update(self, done: float, note: str = "") -> None:
        """Ignored."""

    def say(self, line: str) -> None:
        """Ignored."""


class Request(Protocol):
    """What a job is asked for: whatever changes its result, and nothing else. Requests are frozen dataclasses."""

    def to_json(self) -> dict[str, Any]:
        """The request as it is kept, the same for the same request from wherever it is made."""
        ...


def reporter(logs: dict[str, list], watch: Watch) -> Callable[[str, TrainState, float], None]:
    """An `on_step` that keeps every stage's log and tells `watch`."""
    judged: dict[str, dict[float, float]] = {}  # of each stage, held-out Dice by images seen

    def on_step(stage: str, state: TrainState, spent: float) -> None:
        if stage not in logs:
            watch.start(f"training: {stage}")
            judged[stage] = {e["images"]: e["val"] for e in state.log if "val" in e}
        logs[stage] = state.log
        recent = state.log[-20:]
        note = f"loss {sum(e['loss'] for e in recent) / len(recent):.3f}" if recent else ""
        val = judged[stage]
        new = {e["images"]: e["val"] for e in recent if "val" in e and e["images"] not in val}
        for images, dice in new.items():
            LOG.info(
                "%s: val Dice %.3f after %d images, best so far %.3f", stage, dice, images, max(dice, *val.values(), 0)
            )
        val.update(new)
        if val:
            note += f", val Dice {val[max(val)]:.3f}, best {max(val.values()):.3f}"
        watch.update(min(1.0, spent), note)

    return on_step


def finished_before(work: Path, logs: dict[str, list]) -> dict[str, list]:
    """The logs of stages that an earlier, stopped run had finished: this one never came by them."""
    states = sorted(work.rglob("checkpoint-*/state.json"), key=lambda path: path.parent.name)
    newest = {path.parent.parent: path for path in states}
    earlier = sorted(newest.values(), key=lambda path: path.stat().st_mtime)
    named = {path.parent.parent.name: path for path in earlier if path.parent.parent.name not in logs}
    return {stage: read_state(path)["log"] for stage, path in named.items()}


def work_folder(output: Path, request: Request, **more: Any) -> Path:
    """The folder of an unfinished training's checkpoints; made, or found with the same request.

    Args:
        output: what is to be written in the end.
        request: what was asked for; kept there as settings.json.
        more: what else must be the same, such as the hash of a model that the request names.

    Raises:
        DelineateError: a training that was asked for otherwise is unfinished there.
        BusyError: another command is at work there.
        OutputError: nothing can be written there.
    """
    work = Path(f"{output}-training")
    written = work / "settings.json"
    settings = json.loads(json.dumps({**request.to_json(), **more}))  # as it comes back: lists for tuples
    begun = any(work.rglob("checkpoint-*"))  # else the earlier call failed at the door, and nothing can be lost
    if begun and written.exists() and read_json(written, error=DelineateError, fix=f"remove {work}") != settings:
        raise DelineateError(
            f"{work}: holds an unfinished training with other settings; repeat those to go on, or remove the folder"
        )
    make_folder(work)
    hold(work, "is at work on it")
    write_json(written, settings)
    return work
