"""How far a command is: a bar on a terminal; lines with the time where there is none, and in the log file.

With --json no progress is shown, unless --verbose asks for it: its lines then go to standard error too.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console

from delineate.cli.telling import HERE, NOTE, PROGRESS, say

SOONEST, LATEST = 10.0, 60.0  # seconds between two lines of one stretch of work,
GROWING = 0.05  # and in between this share of the time it has taken so far


class Lines:
    """Tells how far a job is in lines of a log: one when a stretch of work begins, and then one now and then."""

    def __init__(self, level: int, clock: Callable[[], float] = time.monotonic):
        self._level, self._clock = level, clock
        self._what, self._began, self._told = "", clock(), clock()

    def start(self, what: str, done: float = 0.0) -> None:
        """Begin a stretch of work; one that does not begin at 0 goes on with the scale of the one before."""
        self._what, now = what, self._clock()
        if not done:
            self._began = now
        self._tell(now, done, "")

    def update(self, done: float, note: str = "") -> None:
        """Tell which share of it is done, if it is time to."""
        now = self._clock()
        if now - self._told >= min(LATEST, max(SOONEST, GROWING * (now - self._began))):
            self._tell(now, done, note)

    def _tell(self, now: float, done: float, note: str) -> None:
        self._told, spent = now, now - self._began
        to_go = f", {in_time(spent * (1 - done) / done)} to go" if done and spent >= 1 else ""
        share = f"{100 * done:.0f} %{to_go}" if done else ""
        PROGRESS.log(self._level, "%s", "  ".join(filter(None, (HERE.command, self._what, share, note))))


def in_time(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any.

    >>> in_time(72.4), in_time(36_000)
    ('01:12', '10:00:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:02d}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class Bar:
    """What a job tells how far it is: a bar, if it is shown, and `Lines`."""

    def __init__(self, progress: Any, lines: Lines):
        self._progress, self._lines = progress, lines
        self._task = progress.add_task("", total=1.0, note="")

    def start(self, what: str, done: float = 0.0) -> None:
        """Begin a stretch of work."""
        self._progress.reset(self._task, description=what, completed=done, note="")
        self._lines.start(what, done)

    def update(self, done: float, note: str = "") -> None:
        """Tell which share of it is done."""
        self._progress.update(self._task, completed=done, note=note)
        self._lines.update(done, note)

    def say(self, line: str) -> None:
        """A line for the user, which stays when the bar is gone."""
        say(f"delineate: {line}")


@contextmanager
def progress_bar(console: Console, quiet: bool = False) -> Iterator[Bar]:
    """A bar on `console` that vanishes at the end, or lines where it is no terminal; `quiet` shows neither."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    terminal = console.is_terminal and not console.is_dumb_terminal
    lines = Lines(logging.INFO if quiet or terminal else NOTE)
    shown = terminal and not quiet and HERE.level <= NOTE
    with Progress(*columns, console=console, transient=True, disable=not shown) as progress:
        yield Bar(progress, lines)
