"""Commands in forks of a process that has imported everything: a refusal takes a tenth of a second, not four.

The parent never computes (no torch operation, one thread), so a fork finds no lock held and no thread missing. A fork
leads a group of its own, into which the children of `delineate` come too; whoever outlives its time is ended with it.
"""

import importlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzzing.trial import SECONDS, Done

MOST_ADDRESSES = 12 << 30  # bytes: what would need more is refused by the system, so that the machine lives on
MOST_TEXT = 200_000  # characters of output that are looked at
NEEDED = (
    *("torch", "diffusers", "transformers", "matplotlib.pyplot", "scipy.stats", "SimpleITK", "nibabel", "PIL.Image"),
    *("tifffile", "peft", "monai.networks.nets", "delineate.cli.app", "delineate.segmenter", "delineate.pictures"),
    *(f"delineate.jobs.{job}" for job in ("segment", "train", "pretrain", "evaluate", "study", "adapt", "calibrate")),
    *("delineate.jobs.synthesize", "delineate.jobs.demo", "delineate.synthesis.distance", "delineate.review.cases"),
    *(
        "delineate.evaluation.report",
        "delineate.data.check",
        "delineate.adapters.folder",
        "delineate.few_shot.learning",
    ),
    *("delineate.systems.diffusion.spread", "delineate.systems.plain", "delineate.networks.unet"),
    *("delineate.systems.diffusion.progidiff", "delineate.evaluation.studies.ubench", "delineate.prompts.reader"),
)
PREPARE: list[Callable[[], None]] = []  # what a fork does before the command, set by tests


def warm_up() -> set[int]:
    """Import what commands need, without computing; returns the exit codes that `delineate --help` lists."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    os.environ["HF_HUB_OFFLINE"] = "1"
    import re

    import torch

    torch.set_num_threads(1)
    for name in NEEDED:
        importlib.import_module(name)
    from delineate.cli import review
    from delineate.cli.app import EXIT_CODES

    if not review.VIEWER.is_file():  # fetched when the package is built; nobody looks at the page here
        review.VIEWER = Path(__file__)
    return {int(code) for code in re.findall(r"(?:^|[\s;])(\d+) ", EXIT_CODES.removeprefix("Exit codes:"))} - {70}


@dataclass
class Running:
    """A command on its way."""

    pid: int
    started: float
    log: Path

    def finish(
        self,
        seconds: float = SECONDS,
        *,
        stop_after: float | None = None,
        stop_when: str | None = None,
        kill_after: float | None = None,
    ) -> Done:
        """Wait for its end; ask it to stop, or kill it, where that was wished. Children are ended with it."""
        stopped = timed_out = False
        clock = Clock(self.pid, seconds)
        while True:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            now = time.monotonic() - self.started
            if pid:
                break
            if kill_after is not None and now >= kill_after:
                _end(self.pid)
            if now > seconds and not timed_out and clock.is_over(now):
                timed_out = True
                _end(self.pid)
            due = stop_after is not None and now > stop_after
            if not stopped and (due or (stop_when is not None and stop_when in _text(self.log / "out"))):
                stopped = True
                os.kill(self.pid, signal.SIGTERM)
            time.sleep(0.005 if now < 1 or kill_after is not None else 0.03)
        _end(self.pid, gone=True)  # what it started and left behind
        out, err = _text(self.log / "out"), _text(self.log / "err")
        code = os.waitstatus_to_exitcode(status)
        return Done(code, round(now, 2), round(usage.ru_maxrss / 1000, 1), out, err, timed_out, stopped)


class Clock:
    """The time allowed, fair on a machine that others use too: what computes has it as processor time.

    What does nothing for ten seconds after that time has gone by hangs; so does whatever is there after five times it.
    """

    def __init__(self, pid: int, seconds: float):
        """For the group that `pid` leads."""
        self.pid, self.seconds = pid, seconds
        self.looked, self.spent = 0.0, -1.0

    def is_over(self, now: float) -> bool:
        """Whether the time is up, at `now` seconds after the start, which are more than those allowed."""
        if now - self.looked < min(10.0, self.seconds):
            return False
        before, self.spent, self.looked = self.spent, processor_seconds(self.pid), now
        idle = before >= 0 and self.spent - before < 0.05
        return idle or self.spent > self.seconds or now > 5 * self.seconds


def processor_seconds(group: int) -> float:
    """What the processes of a group have computed; 0 where the system does not tell."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            total += sum(map(int, fields[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def start(
    arguments: list[str],
    folder: Path,
    log: Path,
    *,
    largest_file: int | None = None,
    before: Callable[[], None] | None = None,
    addresses: int = MOST_ADDRESSES,
    hard: bool = False,
) -> Running:
    """Run `delineate ARGUMENTS` in `folder`, in a fork; standard output and error go to `log/out` and `log/err`.

    Args:
        arguments: what follows `delineate`.
        folder: the current one.
        log: a folder.
        largest_file: bytes at which writing fails.
        before: called in the fork.
        addresses: bytes that it may map.
        hard: whether it cannot allow its own children more, as under `ulimit -v`.
    """
    log.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    started = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _become(arguments, folder, log, largest_file, before, addresses, hard)
    return Running(pid, started, log)


def run(arguments: list[str], folder: Path, log: Path, **more: Any) -> Done:
    """`start` and `finish` with what of `more` belongs to each."""
    at_start = {k: more.pop(k) for k in ("largest_file", "before", "addresses", "hard") if k in more}
    return start(arguments, folder, log, **at_start).finish(**more)


def aside(question: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """The answer (JSON values) of a function that runs in a fork; None where it dies or takes too long.

    For libraries that start threads, which would be missing in later forks of this process.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            os.setsid()
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            with open(write, "w") as pipe:
                json.dump(question(), pipe)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with open(read) as pipe:
            text = pipe.read()
    except TimeoutError:
        text = ""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _end(pid)
        os.waitpid(pid, 0)
    return json.loads(text) if text else None


def _become(
    arguments: list[str],
    folder: Path,
    log: Path,
    largest_file: int | None,
    before: Callable[[], None] | None,
    addresses: int,
    hard: bool,
) -> None:
    """Be `delineate` from here on; never returns."""
    code = 1
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses if hard else resource.RLIM_INFINITY))
        _redirect(log)
        if largest_file is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
        os.chdir(folder)
        for prepare in (*PREPARE, *([before] if before else [])):
            prepare()
        code = _main(arguments)
    except BaseException:  # what would be a traceback on a terminal is one here
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                code = code or 120  # as Python says where standard output cannot be written
        os._exit(code)


def _main(arguments: list[str]) -> int:
    from delineate.cli import app

    sys.argv = ["delineate", *arguments]
    try:
        app.main()
    except SystemExit as stop:
        if isinstance(stop.code, str):
            sys.stderr.write(stop.code + "\n")
            return 1
        return stop.code or 0
    except KeyboardInterrupt:
        return 130
    return 0


def _redirect(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, name in ((1, "out"), (2, "err")):
        to = os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(to, number)
        os.close(to)
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb", closefd=False), "utf-8", "strict")
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", closefd=False), "utf-8", "backslashreplace", write_through=True)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MOST_TEXT).decode("utf-8", "backslashreplace")
    except OSError:
        return ""


def _end(pid: int, gone: bool = False) -> None:
    """Kill a fork and all that it started; `gone` if itself has ended already, and others may have its number."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has not come to lead its group yet, or nobody is left
        if not gone:
            os.kill(pid, signal.SIGKILL)


def _late(number: int, frame: object) -> None:
    raise TimeoutError


def remove(folder: Path) -> None:
    """Remove a folder and all below it, whatever its permissions."""
    shutil.rmtree(folder, ignore_errors=True)
