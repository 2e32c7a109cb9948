"""A file of JSON lines that grows: one line an event, written whole, by several commands at once if need be.

Several machines may write to one over NFS, which appends at what it believes to be the end: so the file is locked.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from delineate.storage.swapping import sync

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class Lines:
    """A file to which lines are added; those that are there stay. Every line begins with `always`."""

    def __init__(self, path: Path, always: Mapping[str, Any]):
        self.path, self.always = path, dict(always)

    def add(self, event: Mapping[str, Any]) -> None:
        """Add a line, and see that it is on the disk. A torn last line of a killed command is ended first."""
        line = json.dumps({**self.always, **event}, allow_nan=False).encode() + b"\n"
        new = not self.path.exists()
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            if fcntl is not None:
                with suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new:
            sync(self.path.parent)
