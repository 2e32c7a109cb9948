"""The event log of one case by one person: a line of JSON an event, on the disk before anybody is told.

    {"n": 7, "time": "2026-11-22T10:00:00Z", "kind": "paint", "layer": "l1", "detail": {}, "flips": "", "crc": 1}

`crc` is the CRC-32 of the line without it. Lines are only ever appended, each with an fsync, so a crash can tear the
last one alone. Such a line was acknowledged to nobody: it is set aside beside the log (`events.torn`). Any other damage
is refused, because what follows it would be built on sand.
"""

import io
import json
import os
import zlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from delineate.errors import DelineateError

try:
    import fcntl
except ImportError:  # Windows: two servers on one folder are not noticed there
    fcntl = None

_CRC = b',"crc":'


class LogError(DelineateError):
    """An event log is damaged, or another server has it open."""


def encode(event: Mapping[str, Any]) -> bytes:
    """An event as a line of the log."""
    body = json.dumps(event, separators=(",", ":"), allow_nan=False).encode("ascii")
    return body[:-1] + _CRC + str(zlib.crc32(body)).encode() + b"}\n"


def decode(line: bytes) -> dict[str, Any] | None:
    """The event of a line of the log; None where its checksum does not hold."""
    text, _, crc = line.rstrip(b"\n").rpartition(_CRC)
    body = text + b"}"
    if not crc.endswith(b"}") or crc[:-1] != str(zlib.crc32(body)).encode():
        return None
    event = json.loads(body)
    return event if isinstance(event, dict) else None


class Log:
    """An open log: its `events` so far, and `append`. Holds a lock on the file until `close`.

    Raises:
        LogError: the log is damaged before its last line, or open elsewhere.
    """

    def __init__(self, path: Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        self._file = self.path.open("ab+", buffering=0)
        try:
            self._lock()
            if new:
                _flush_folder(self.path.parent)
            self.events = self._read()
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LogError(f"{self.path}: another `delineate review` has this case open; end that one first") from error

    def _read(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        data = self._file.read()
        events: list[dict[str, Any]] = []
        good = 0
        for line in io.BytesIO(data):
            event = decode(line)
            if event is None or event.get("n") != len(events) + 1:
                if good + len(line) < len(data) or event is not None:
                    raise LogError(
                        f"{self.path}: line {len(events) + 1} is damaged, so what follows it cannot be trusted; put a "
                        "copy of the file in its place, or move it away to start anew"
                    )
                self._set_aside(line, good)
                break
            good += len(line)
            events.append(event)
            if not line.endswith(b"\n"):  # whole but for its end
                self._write(b"\n")
        return events

    def _set_aside(self, torn: bytes, good: int) -> None:
        with self.path.with_suffix(".torn").open("ab") as file:
            file.write(torn + b"\n")
        self._file.truncate(good)
        os.fsync(self._file.fileno())

    def append(self, kind: str, **rest: Any) -> dict[str, Any]:
        """Write an event and return it once it is on the disk; where that fails the log is as it was.

        Args:
            kind: of the event.
            rest: JSON values; None is left out.

        Raises:
            OSError: the disk is full or gone.
        """
        event: dict[str, Any] = {"n": len(self.events) + 1, "time": now(), "kind": kind}
        event |= {name: value for name, value in rest.items() if value is not None}
        size = os.fstat(self._file.fileno()).st_size
        try:
            self._write(encode(event))
        except OSError:
            self._file.truncate(size)
            raise
        self.events.append(event)
        return event

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def now() -> str:
    """The time, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
