"""Phrases that nobody listed: a small network that reads them, made by `recipes/words.py`.

A word is the mean of what its letters, in threes to fives, stand for: a slip of the pen changes a few of them. Words
look at their neighbours, a phrase is a weighted mean, and what it means is the nearest of some five thousand things:
the concepts, their parts, and what lies near them in words or in the body, so that "splenic artery" is nobody's spleen.
NumPy alone: no command has to wait for more.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from delineate.prompts.matching import key_of, raw_words
from delineate.storage.schema import read_json

LONGEST = 24  # words that are read; the rest is not
GRAMS = (3, 4, 5)
WEIGHTS, THINGS = "reader.safetensors", "things.json"


class Thing(NamedTuple):
    """What a phrase can mean: a name and what kind of thing it is.

    `kind` is "concept"; "part" of the concept that `name` says; or "other", which no concept is.
    """

    name: str
    kind: str


class Reading(NamedTuple):
    """A thing that a phrase may mean, and its share in [0, 1] of all that it may."""

    thing: Thing
    share: float


@cache
def pieces(word: str, count: int) -> tuple[int, ...]:
    """The places in a table of `count` rows of a word and of its runs of letters."""
    marked = f"<{word}>"
    runs = [marked[i : i + n] for n in GRAMS for i in range(len(marked) - n + 1)]
    return tuple(zlib.crc32(run.encode()) % count for run in (marked, *runs))


@dataclass(frozen=True, eq=False)
class Reader:
    """The network and what it tells apart.

    Attributes:
        weights: "table" (rows, D); of L layers "before.l", "here.l", "after.l" (D, D), what a word hears of its
            neighbours and itself; "heed" (D,); "out" (D, D); "things" (T, D), of length 1; "scale" ().
        things: T of them.
    """

    weights: dict[str, np.ndarray]
    things: tuple[Thing, ...]

    @classmethod
    def load(cls, folder: Path | None = None) -> "Reader":
        """What the recipe wrote; without a folder the one that ships."""
        folder = folder or Path(str(files("delineate"))) / "prompts" / "words"
        weights = {name: value.astype(np.float32) for name, value in load_file(folder / WEIGHTS).items()}
        things = read_json(folder / THINGS)
        return cls(weights, tuple(Thing(name, kind) for kind, names in things.items() for name in names))

    def vector(self, text: str) -> np.ndarray:
        """(D,) of length 1; zeros where there are no words."""
        words, table = raw_words(text)[:LONGEST], self.weights["table"]
        if not words:
            return np.zeros(table.shape[1], np.float32)
        x = np.stack([table[list(pieces(word, len(table)))].mean(axis=0) for word in words])
        for layer in range(self._layers):
            padded = np.pad(x, ((1, 1), (0, 0)))
            heard = padded[:-2] @ self.weights[f"before.{layer}"] + padded[2:] @ self.weights[f"after.{layer}"]
            x = x + np.tanh(heard + x @ self.weights[f"here.{layer}"])
        heed = np.exp(x @ self.weights["heed"])
        mean = (heed / heed.sum()) @ x
        out = mean + np.tanh(mean @ self.weights["out"])
        return out / np.linalg.norm(out)

    def read(self, text: str, own: Iterable[str] = ()) -> list[Reading]:
        """What `text` may mean, the likeliest first: all things known, and `own` names that are not among them."""
        known = self._keys
        new = [name for name in own if key_of(name) not in known]
        vector, things = self.vector(text), self.weights["things"]
        if not vector.any():
            return []
        cosine = things @ vector
        if new:
            cosine = np.concatenate([cosine, np.stack([self.vector(name) for name in new]) @ vector])
        share = np.exp(self.weights["scale"] * (cosine - cosine.max()))
        share /= share.sum()
        all_things: Sequence[Thing] = [*self.things, *(Thing(name, "concept") for name in new)]
        order = np.argsort(-share)[:20]
        return [Reading(all_things[i], float(share[i])) for i in order]

    @property
    def _layers(self) -> int:
        return sum(name.startswith("here.") for name in self.weights)

    @cached_property
    def _keys(self) -> set[frozenset[str]]:
        return {key_of(thing.name) for thing in self.things if thing.kind != "part"}


@cache
def house_reader() -> Reader:
    """The one that ships."""
    return Reader.load()
