"""Who answers in `delineate segment`: a segmenter in this process, processes of this machine, or a Ray cluster."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import typer

from delineate import __version__
from delineate.cli.telling import ERROR, say

if TYPE_CHECKING:  # which import torch
    from delineate.jobs.handing import Crew
    from delineate.segmenter import Segmenter

STOPPED = 75  # EX_TEMPFAIL: the same command goes on


def answering(
    model: Path,
    adapter: Path | None,
    device: str,
    threads: int | None,
    workers: int | None,
    ray: str | None,
    bids: Path | None,
) -> "Segmenter | Crew":
    """Who does the cases.

    Args:
        model: its folder.
        adapter: its folder.
        device: as `options.compute` gives it; for a Ray cluster as it was asked for.
        threads: of each worker. By default those of this machine are divided among its processes; on a cluster one.
        workers: how many; None for this process itself, and on a cluster for as many as there is room for.
        ray: the address of a cluster.
        bids: the root of that layout, where masks are laid out so too.
    """
    if workers is None and ray is None:
        from delineate.segmenter import Segmenter

        return Segmenter.load(model, device, adapter)
    own = 1 if ray is not None or workers is None else max(1, _processors() // workers)
    begin = {
        "current": os.getcwd(),
        "release": __version__,
        "model": str(model.absolute()),
        "adapter": None if adapter is None else str(adapter.absolute()),
        "device": device,
        "threads": threads or own,
        "bids": None if bids is None else str(bids),
    }
    if ray is not None:
        from delineate.jobs.on_ray import OnRay

        return OnRay(ray, begin, workers)
    from delineate.jobs.processes import Processes

    return Processes(begin, workers or 1)


def _processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the block Ctrl-C and SIGTERM stop the work at once; what is finished stays, and the exit code is 75."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()
    previous = signal.signal(signal.SIGTERM, stop) if here else None
    try:
        yield
    except KeyboardInterrupt:
        say("delineate: stopped; finished cases stay, and the same command with --resume goes on", ERROR)
        raise typer.Exit(STOPPED) from None
    finally:
        if here:
            signal.signal(signal.SIGTERM, previous)
