"""A crew of processes on this machine: `segment --workers N`."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO, Any

from delineate.jobs.handing import Heard
from delineate.jobs.worker import told_of
from delineate.scans.finding import Found

WORKER = (sys.executable, "-P", "-m", "delineate.jobs.worker")  # -P: nothing of the current folder is code
PATIENCE = 10.0  # seconds that an ended process may take


class Processes:
    """See `delineate.jobs.handing.Crew`; a worker is `python -m delineate.jobs.worker`, spoken to by pipes."""

    def __init__(self, begin: Mapping[str, Any], workers: int, command: Sequence[str] = WORKER):
        """Nothing is started yet; `begin` is what `Worker` takes, but for `doing` and `number`."""
        self.command = command
        self.begin, self.workers, self.threads = dict(begin), workers, begin["threads"]
        self.device = begin["device"]
        self.running: dict[int, subprocess.Popen[str]] = {}
        self._heard: queue.SimpleQueue[Heard] = queue.SimpleQueue()

    def hire(self, worker: int, doing: Mapping[str, Any]) -> None:
        """Begin one."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115  whoever listens closes it
        process = self.running[worker] = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        )
        threading.Thread(target=self._listen, args=(worker, process, errors), daemon=True).start()
        self._tell(worker, {**self.begin, "doing": doing, "number": worker})

    def give(self, worker: int, scan: Found, again: bool) -> None:
        """Give it a case."""
        self._tell(worker, {"scan": told_of(scan), "again": again})

    def hear(self) -> Heard:
        """Wait until one has something to say, or is lost."""
        return self._heard.get()

    def end(self) -> None:
        """End all: their standard input ends, and they with it."""
        for process in self.running.values():
            with suppress(OSError):  # it is gone
                process.stdin.close()  # type: ignore[union-attr]
        for process in self.running.values():
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.running.clear()

    def _tell(self, worker: int, what: Mapping[str, Any]) -> None:
        stdin = self.running[worker].stdin
        with suppress(OSError, ValueError):  # it is lost, which is heard by and by
            stdin.write(json.dumps(what) + "\n")  # type: ignore[union-attr]
            stdin.flush()  # type: ignore[union-attr]

    def _listen(self, worker: int, process: subprocess.Popen[str], errors: IO[bytes]) -> None:
        with errors, process.stdout as said:  # type: ignore[union-attr]
            for line in said:
                if line.endswith("\n"):
                    self._heard.put(Heard(worker, json.loads(line)))
            code = process.wait()
            with suppress(OSError):
                process.stdin.close()  # type: ignore[union-attr]
            size = errors.seek(0, os.SEEK_END)
            errors.seek(max(0, size - 2000))
            last = errors.read().decode(errors="replace").strip().splitlines()
        self._heard.put(Heard(worker, None, _why(code, last[-1] if last else "")))


def _why(code: int, last: str) -> str:
    """Why a process ended, in a few words."""
    if code < 0:
        name = signal.Signals(-code).name if -code in [one.value for one in signal.Signals] else f"signal {-code}"
        return f"killed by {name}" + ", as the system does where memory runs out" * (name == "SIGKILL")
    return f"exit code {code}" + (f": {last[:200]}" if last else "")
