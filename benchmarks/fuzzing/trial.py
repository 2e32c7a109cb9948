"""One thing that is tried, what came of it, and what that is called."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GIGABYTES = 4.0  # the most memory that a trial may take
SECONDS = 60.0  # the longest that it may take

FAULTS = ("traceback", "hang", "memory", "silent wrong", "lost")
OUTCOMES = ("answered", "refused", *FAULTS)

INTERNAL_ERROR = 70  # the exit code of what nobody foresaw
ANSWERS = {0, 1, 4, 8, 75, 130}  # done, some failed, unknown prompt, no guarantee, stopped on request


@dataclass(frozen=True)
class Done:
    """A process that has ended.

    Attributes:
        code: its exit code; minus the signal that ended it.
        seconds: from start to end.
        megabytes: its peak memory, its children's included.
        out: standard output.
        err: standard error.
        timed_out: it was still there after the time allowed, and was ended.
        stopped: it was asked to stop (SIGTERM) on the way.
    """

    code: int
    seconds: float
    megabytes: float
    out: str
    err: str
    timed_out: bool = False
    stopped: bool = False


Verdict = tuple[str, str]  # a fault and its reason
Check = Callable[[Done], Verdict | None]


@dataclass
class Trial:
    """A command that is tried.

    Attributes:
        arguments: what follows `delineate`.
        what: what is odd about it, in words.
        checks: asked afterwards, in order; the first that complains is heard.
        about: JSON values of the input, for the record.
        stop_after: seconds after which it is politely asked to stop (SIGTERM); for what would go on for hours.
        stop_when: text on standard output at which it is asked to stop; for servers.
        largest_file: bytes at which writing fails, as on a full disk.
        seconds: allowed.
        touches: folders that the command may write to, from the trial's own folder.
        hard_limit: its addresses are limited as `ulimit -v` does it, for its children too.
        adds_anywhere: it may also write new files beside them, since it was told to write right there.
    """

    arguments: list[str]
    what: str
    checks: list[Check] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    stop_after: float | None = None
    stop_when: str | None = None
    largest_file: int | None = None
    seconds: float = SECONDS
    touches: tuple[str, ...] = ("out", "out-training")
    adds_anywhere: bool = False
    hard_limit: bool = False

    @property
    def command(self) -> str:
        """As one would type it."""
        return printable("delineate " + shlex.join(self.arguments))[:600]


@dataclass(frozen=True)
class Judged:
    """What came of a trial: one of `OUTCOMES`, and why."""

    outcome: str
    reason: str = ""


def judge(trial: Trial, done: Done, documented: set[int]) -> Judged:
    """What came of a trial, the worst first.

    Args:
        trial: with its checks.
        done: how its process ended.
        documented: exit codes that `delineate --help` lists.
    """
    said = done.out + done.err
    if done.timed_out:
        return Judged("hang", f"still there after {trial.seconds:.0f} s")
    if done.megabytes > GIGABYTES * 1000:
        return Judged("memory", f"{done.megabytes:.0f} MB")
    found = {fault: reason for check in trial.checks for fault, reason in [check(done) or ("", "")] if fault}
    if "lost" in found:
        return Judged("lost", found["lost"])
    if "Traceback (most recent call last)" in said:
        return Judged("traceback", last_line_of(said))
    if done.code == INTERNAL_ERROR or "internal error" in said:
        return Judged("traceback", last_line_of(said))
    if done.stopped and done.code == -15:  # asked to before it listened
        return Judged("answered", "stopped on request")
    if done.code < 0:
        return Judged("traceback", f"ended by signal {-done.code}: {last_line_of(said)}")
    if done.code not in documented | {0, 130}:
        return Judged("traceback", f"exit code {done.code} is not documented: {last_line_of(said)}")
    for fault, reason in found.items():
        return Judged(fault, reason)
    if done.code in ANSWERS:
        return Judged("answered", f"exit code {done.code}")
    if not done.err.strip():
        return Judged("silent wrong", f"exit code {done.code} without a word on standard error")
    return Judged("refused", last_line_of(done.err))


def last_line_of(text: str) -> str:
    """The last line that says something, shortened."""
    lines = [line for line in text.splitlines() if line.strip(" ╭╮╰╯─│")]
    return printable(lines[-1].strip())[:300] if lines else ""


def printable(text: str) -> str:
    """The text with what a terminal would obey made visible."""
    return text.encode("utf-8", "backslashreplace").decode().translate({n: f"\\x{n:02x}" for n in (*range(32), 127)})


def relative(path: Path, folder: Path) -> str:
    """A path as it is shown in records: from the trial's folder where it lies there."""
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path)
