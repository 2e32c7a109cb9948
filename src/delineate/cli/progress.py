"""One progress line with the time to go, on standard error."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console


class Bar:
    """What a job tells how far it is."""

    def __init__(self, progress: Any):
        self._progress = progress
        self._task = progress.add_task("", total=1.0, note="")

    def start(self, what: str, done: float = 0.0) -> None:
        """Begin a stretch of work."""
        self._progress.reset(self._task, description=what, completed=done, note="")

    def update(self, done: float, note: str = "") -> None:
        """Tell which share of it is done."""
        self._progress.update(self._task, completed=done, note=note)

    def say(self, line: str) -> None:
        """A line for the user, which stays when the bar is gone."""
        self._progress.console.print(f"delineate: {line}", markup=False, soft_wrap=True)


@contextmanager
def progress_bar(console: Console, quiet: bool = False) -> Iterator[Bar]:
    """A bar on `console` that vanishes at the end; `quiet` shows nothing."""
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
    with Progress(*columns, console=console, transient=True, disable=quiet) as progress:
        yield Bar(progress)
