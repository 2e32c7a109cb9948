"""What a person has made of a case so far: its layers, as the fold of an event log; undo and redo without end.

Every event holds the voxels it changed, so a replay runs no model and no algorithm, and undo is the same change again.
Undo and redo are events too; a new change forgets what could have been redone, and nothing ever leaves the log.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from delineate.errors import DelineateError
from delineate.review.runs import NOTHING, gained_and_lost, unpack, voxels_of, xor

COLOURS = 64  # numbers that the page has colours for, in turn


class NotHere(DelineateError):
    """An id that names nothing here."""


class WorkError(DelineateError):
    """An action that cannot be done with the work as it is."""


@dataclass
class Layer:
    """A mask by name.

    Attributes:
        id: for ever the same.
        name: as the person calls it.
        colour: a number that the page has a colour for.
        toggles: the mask; see `delineate.review.runs`.
        present: False once it is removed, or its making is undone.
        stem: of its files on disk, once it was saved; and the `saved_name` and `saved_content` it had then.
    """

    id: str
    name: str
    colour: int
    toggles: np.ndarray = field(default_factory=lambda: NOTHING)
    present: bool = True
    stem: str | None = None
    saved_name: str | None = None
    saved_content: str | None = None

    @property
    def voxels(self) -> int:
        """How many voxels are inside."""
        return voxels_of(self.toggles)

    @property
    def content(self) -> str:
        """A hash of the mask."""
        return hashlib.sha256(self.toggles.astype("<u4").tobytes()).hexdigest()

    @property
    def saved(self) -> bool:
        """Whether the mask as it is now is what was saved last."""
        return self.saved_content == self.content


@dataclass(frozen=True)
class Past:
    """An event as history tells it: what was logged, without the voxels; how many came and went; a line for people."""

    event: Mapping[str, Any]
    text: str
    gained: int = 0
    lost: int = 0


class Work:
    """The layers of one case by one person.

    Attributes:
        shape: of the scan.
        past: every event, in order.
        revision: number of the last event that changed anything; saving changes nothing.
    """

    def __init__(self, shape: tuple[int, int, int], events: Iterable[Mapping[str, Any]] = ()):
        self.shape = shape
        self.size = prod(shape)
        self.past: list[Past] = []
        self.revision = 0
        self._layers: dict[str, Layer] = {}
        self._flips: dict[int, np.ndarray] = {}
        self._done: list[int] = []
        self._undone: list[int] = []
        for event in events:
            self.apply(event)

    @property
    def layers(self) -> list[Layer]:
        """Those that are there, oldest first."""
        return [layer for layer in self._layers.values() if layer.present]

    def layer(self, layer: str) -> Layer:
        """A layer by its id.

        Raises:
            NotHere: no such layer, or no longer.
        """
        found = self._layers.get(layer)
        if found is None or not found.present:
            raise NotHere(f"no layer '{layer}' here; look at the case again")
        return found

    def new_layer(self, name: str) -> tuple[str, dict[str, Any]]:
        """The id of a layer to be made, and what its event must tell."""
        used = {layer.colour for layer in self.layers}
        colour = next((c for c in range(COLOURS) if c not in used), len(self._layers) % COLOURS)
        return f"l{len(self._layers) + 1}", {"name": name, "colour": colour}

    def free_name(self, name: str) -> str:
        """The name, with a number behind it where a layer has it already."""
        used = {layer.name for layer in self.layers}
        return next(n for k in range(1, len(used) + 2) if (n := name if k == 1 else f"{name} {k}") not in used)

    def undoable(self, kind: str) -> int:
        """The number of the event that "undo" or "redo" would be about.

        Raises:
            WorkError: there is none.
        """
        stack = self._done if kind == "undo" else self._undone
        if not stack:
            raise WorkError(f"there is nothing to {kind}")
        return stack[-1]

    def next_text(self, kind: str) -> str | None:
        """The line of the event that "undo" or "redo" would be about; None without one."""
        stack = self._done if kind == "undo" else self._undone
        return self.past[stack[-1] - 1].text if stack else None

    def touched(self, layer: str) -> list[Past]:
        """The events that made a layer what it is: all that were about it but those that were undone."""
        return [self.past[n - 1] for n in self._done if self.past[n - 1].event.get("layer") == layer]

    def stems_of_others(self, layer: str) -> set[str]:
        """File names that belong to other layers, present or not."""
        return {one.stem for one in self._layers.values() if one.stem is not None and one.id != layer}

    def apply(self, event: Mapping[str, Any]) -> None:
        """Go on by one event, as it stands in the log.

        Raises:
            WorkError: it does not fit what came before; the log is not one of this scan.
        """
        try:
            self._apply(event)
        except (KeyError, IndexError, TypeError) as error:
            raise WorkError(
                f"event {event.get('n')} does not fit those before it: the log is not of this scan"
            ) from error

    def _apply(self, event: Mapping[str, Any]) -> None:
        kind, n = event["kind"], event["n"]
        if kind == "saved":
            for one in event["detail"]["layers"]:
                layer = self._layers[one["layer"]]
                layer.stem, layer.saved_name, layer.saved_content = one["stem"], one["name"], one["content"]
            names = ", ".join(one["name"] for one in event["detail"]["layers"])
            self.past.append(Past(event, f"saved {names}"))
            return
        if kind in ("undo", "redo"):
            self._step(kind, event["of"])
            self.past.append(Past(event, f"{kind}: {self.past[event['of'] - 1].text}"))
        else:
            text, gained, lost = self._change(event)
            self._done.append(n)
            self._undone.clear()
            slim = {name: value for name, value in event.items() if name != "flips"}
            self.past.append(Past(slim, text, gained, lost))
        self.revision = n

    def _step(self, kind: str, of: int) -> None:
        here, there = (self._done, self._undone) if kind == "undo" else (self._undone, self._done)
        if not here or here[-1] != of:
            raise KeyError(of)
        there.append(here.pop())
        event = self.past[of - 1].event
        layer, detail = self._layers[event["layer"]], event.get("detail", {})
        layer.toggles = xor(layer.toggles, self._flips.get(of, NOTHING))
        if "new" in detail:
            layer.present = kind == "redo"
        elif event["kind"] == "remove_layer":
            layer.present = kind == "undo"
        elif event["kind"] == "rename_layer":
            layer.name = detail["from"] if kind == "undo" else detail["to"]

    def _change(self, event: Mapping[str, Any]) -> tuple[str, int, int]:
        """Do it; the line that tells of it, voxels gained, voxels lost."""
        kind, name, detail = event["kind"], event["layer"], event.get("detail", {})
        if "new" in detail:
            self._layers[name] = Layer(name, detail["new"]["name"], detail["new"]["colour"])
        layer = self._layers[name]
        flips = unpack(event["flips"], self.size) if "flips" in event else NOTHING
        gained, lost = gained_and_lost(layer.toggles, flips)
        if len(flips):
            self._flips[event["n"]] = flips
            layer.toggles = xor(layer.toggles, flips)
        text = text_of(kind, layer.name, detail)
        if kind == "rename_layer":
            layer.name = detail["to"]
        elif kind == "remove_layer":
            layer.present = False
        elif kind != "add_layer":
            text += f" (+{gained} -{lost})"
        return text, gained, lost


def text_of(kind: str, layer: str, detail: Mapping[str, Any]) -> str:
    """What an event did, for people."""
    match kind:
        case "add_layer":
            return f"new layer {layer}"
        case "rename_layer":
            return f"renamed {detail['from']} to {detail['to']}"
        case "remove_layer":
            return f"removed {layer}"
        case "pick":
            what = "consensus" if detail["proposal"] is None else f"proposal {detail['proposal']}"
            return f"{layer}: {_HOW[detail['how']]} {what} of {detail['answer']}"
        case "combine":
            several = ", ".join(map(str, detail["proposals"]))
            return f"{layer}: {detail['how']} of proposals {several} of {detail['answer']}"
        case "import_layer":
            return f"new layer {layer} from {detail['file']}"
        case "paint":
            return f"{layer}: {detail['tool']}"
        case "fill_between":
            return f"{layer}: filled between slices of axis {detail['axis']}"
        case "smooth":
            return f"{layer}: smoothed by {detail['radius_mm']:g} mm"
        case _:
            return f"{layer}: {_PLAIN[kind]}"


_HOW = {"replace": "replaced by", "add": "added", "subtract": "subtracted", "intersect": "intersected with"}
_PLAIN = {"keep_largest": "kept the largest part", "fill_holes": "filled holes", "clear": "cleared"}
