"""What was answered, kept as files for a while: so long, and so much, then the oldest goes.

A record beside each says whose it is, so that an answer outlives the server that made it.
"""

import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from delineate.errors import ScanError
from delineate.storage.files import write_json
from delineate.storage.schema import Line, read_json

RESULTS, WORK = "results", "work"


@dataclass(frozen=True)
class Result:
    """An answer in a file, and whose it is."""

    path: Path
    size: int
    made: float
    user: str


@dataclass(frozen=True)
class Record:
    """What is written beside it."""

    user: Line
    made: float


class Results:
    """The answers that are kept below a folder, which one server at a time has for itself.

    Attributes:
        work: a folder for what is being made.
    """

    def __init__(self, folder: Path, seconds: float, most_bytes: int, clock: Callable[[], float] = time.time):
        """They are kept so many seconds, by `clock`, and together take at most so many bytes.

        Raises:
            OSError: the folder cannot be written to.
        """
        self.seconds, self.most_bytes, self._clock = seconds, most_bytes, clock
        self._kept: dict[str, Result] = {}
        self._lock = threading.Lock()
        self.folder, self.work = folder / RESULTS, folder / WORK
        shutil.rmtree(self.work, ignore_errors=True)  # what was being made by a server that was killed
        for own in (self.folder, self.work):
            own.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._read()

    @property
    def bytes(self) -> int:
        """How much all of them take."""
        return sum(one.size for one in list(self._kept.values()))

    def keep(self, name: str, file: Path, user: str) -> Result:
        """Move a user's file here, under a name of ours; older ones make room."""
        with self._lock:
            size = file.stat().st_size
            self._sweep(size)
            path = self.folder / f"{name}.zip"
            file.replace(path)
            self._kept[name] = result = Result(path, size, self._clock(), user)
            write_json(path.with_suffix(".json"), {"user": user, "made": result.made})
            return result

    def get(self, name: str) -> Result | None:
        """What was kept under a name, if it still is."""
        with self._lock:
            self._sweep()
            return self._kept.get(name)

    def drop(self, name: str) -> None:
        """Forget it; whoever is reading the file can read on."""
        with self._lock:
            self._drop(name)

    def _sweep(self, more: int = 0) -> None:
        oldest = self._clock() - self.seconds
        for name in [name for name, one in self._kept.items() if one.made < oldest]:
            self._drop(name)
        while self._kept and self.bytes + more > self.most_bytes:
            self._drop(next(iter(self._kept)))

    def _drop(self, name: str) -> None:
        if (one := self._kept.pop(name, None)) is not None:
            one.path.unlink(missing_ok=True)
            one.path.with_suffix(".json").unlink(missing_ok=True)

    def _read(self) -> None:
        """Find what an earlier server kept, the oldest first; what nobody's record tells of goes."""
        found: dict[str, Result] = {}
        for path in self.folder.glob("*.zip"):
            with suppress(ScanError, OSError):
                told = read_json(path.with_suffix(".json"), Record, error=ScanError)
                found[path.stem] = Result(path, path.stat().st_size, told.made, told.user)
        self._kept = dict(sorted(found.items(), key=lambda one: one[1].made))
        for path in self.folder.iterdir():
            if path.stem not in self._kept:
                path.unlink(missing_ok=True)
        self._sweep()
