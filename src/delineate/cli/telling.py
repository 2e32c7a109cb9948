"""What commands tell: results on standard output; progress, notes and errors on standard error, and in a file.

All but results are records of Python's `logging` below the logger "delineate", as is what the package itself tells: a
program that calls it hands that on as it likes. Notes lie between INFO and WARNING: --verbose shows what is below them,
--quiet only what is above.
"""

import functools
import inspect
import json
import logging
import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from delineate.errors import OutputError
from delineate.storage.hidden import HIDDEN

NOTE = 25
ERROR = logging.ERROR
LOG = logging.getLogger("delineate")
TOLD, PROGRESS = LOG.getChild("told"), LOG.getChild("progress")
logging.addLevelName(NOTE, "NOTE")


class Plain(Console):
    """A console that prints what it is told as it is: no markup, and nothing that a terminal would obey."""

    def render_str(self, text: str, **more: Any) -> Text:
        """The text, with control characters, direction marks and lone surrogates written out."""
        return super().render_str(printable(text), **more)


def printable(text: str) -> str:
    """`text` with what a terminal would obey written out; line ends and tabs stay."""
    return "".join(
        one if one in "\n\t" or unicodedata.category(one) not in HIDDEN else one.encode("unicode_escape").decode()
        for one in text
    )


out = Plain(markup=False, emoji=False)
err = Plain(markup=False, emoji=False, stderr=True)


def say(text: str, level: int = NOTE) -> None:
    """A line for the user on standard error, as it is; with the level `ERROR` also where the command is to be quiet."""
    TOLD.log(level, "%s", text)


class _OnTerminal(logging.Handler):
    """Prints records on standard error, what is not told to the user with its time."""

    command = ""  # whose progress it is
    in_json = False  # a line of JSON a record, for programs that collect them

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        told = record.getMessage()
        if self.in_json:
            at = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created))
            about = {"time": at, "level": record.levelname.lower(), "logger": record.name}
            line = json.dumps(about | (getattr(record, "fields", None) or {"message": told}))
            sys.stderr.write(line + "\n")
            return
        at = "" if record.name == TOLD.name else time.strftime("%H:%M:%S  ", time.localtime(record.created))
        err.print(f"{at}{told}", soft_wrap=True, highlight=not at)


class _InFile(logging.Formatter):
    """A line with its date and time, whatever the record holds."""

    def __init__(self):
        super().__init__("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return " ".join(printable(super().format(record)).splitlines())


def _written_out(record: logging.LogRecord) -> bool:
    """Every record, with what a terminal would obey written out, whoever else listens."""
    record.msg, record.args = printable(record.getMessage()), None
    return True


HERE = _OnTerminal(NOTE)
LOG.addHandler(HERE)
for _own in (TOLD, PROGRESS):
    _own.addFilter(_written_out)
    _own.setLevel(logging.INFO)  # whatever is shown of the package's own


@contextmanager
def listening() -> Iterator[None]:
    """A command begins: notes are shown, and what it asks for by `tells` ends with it."""
    before = LOG.level
    LOG.setLevel(logging.INFO)
    try:
        yield
    finally:
        LOG.setLevel(before)
        HERE.setLevel(NOTE)
        HERE.command, HERE.in_json = "", False
        for handler in [one for one in LOG.handlers if isinstance(one.formatter, _InFile)]:
            LOG.removeHandler(handler)
            handler.close()


def listen(verbose: bool, quiet: bool, file: Path | None) -> None:
    """More or less of it, and all of it in a file too. Raises `OutputError` where that cannot be written."""
    HERE.setLevel(logging.DEBUG if verbose else ERROR if quiet else NOTE)
    LOG.setLevel(logging.DEBUG if verbose else logging.INFO)
    if file is None:
        return
    try:
        if file.is_file() and not re.match(rb"$|\d{4}-\d\d-\d\d \d\d:", _start_of(file)):
            raise OutputError(f"--log-file {file}: holds something else than a log; choose another file")
        handler = logging.FileHandler(file, mode="a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise OutputError(f"--log-file {file}: {error.strerror or error}; choose a file that can be written") from error
    handler.setFormatter(_InFile())
    LOG.addHandler(handler)


def as_json_lines() -> None:
    """Let the running command tell everything as lines of JSON on standard error, other libraries' errors too."""
    HERE.in_json = True
    logging.getLogger("uvicorn.error").addHandler(HERE)


def _start_of(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(16)


VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Tell more: every case, every judgement, timings.")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Tell errors alone: no progress, no notes. Exit codes stay.")
]
LogFileOption = Annotated[
    Path | None, typer.Option("--log-file", help="Also append all that is told to this file, each line with its time.")
]
OPTIONS = {"verbose": (VerboseOption, False), "quiet": (QuietOption, False), "log_file": (LogFileOption, None)}


def tells(command: Callable[..., None]) -> Callable[..., None]:
    """The command with --verbose, --quiet and --log-file."""

    @functools.wraps(command)
    def told(verbose: bool, quiet: bool, log_file: Path | None, **given: Any) -> None:
        if verbose and quiet:
            raise typer.BadParameter("give --verbose or --quiet, not both")
        HERE.command = command.__name__.rstrip("_")
        listen(verbose, quiet, log_file)
        command(**given)

    own = inspect.signature(command, eval_str=True)
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)
        for name, (option, default) in OPTIONS.items()
    ]
    told.__signature__ = own.replace(parameters=[*own.parameters.values(), *more])  # type: ignore[attr-defined]
    told.__annotations__ = {name: one.annotation for name, one in told.__signature__.parameters.items()}  # type: ignore[attr-defined]
    return told
