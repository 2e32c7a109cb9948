"""Options' defaults from a file: `delineate.toml` in the current folder, --config FILE, or $DELINEATE_CONFIG.

    [defaults]              # of every command that has such an option
    threads = 2
    [segment]               # of one
    proposals = 16
    model = "house"

Keys are the long options without their dashes; what is typed comes before. A file that lies in the current folder is
taken without being asked for, and may have come with somebody's data: it cannot say where is written, what is read as
input, who may reach the review page, or on whose machines it runs (`ONLY_ASKED_FOR`). All that is taken is said.
"""

import inspect
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import typer
from typer.core import TyperCommand
from typer.models import OptionInfo

from delineate.cli.telling import say
from delineate.errors import DelineateError

FILE = "delineate.toml"
FOR_ALL = "defaults"
ONLY_ASKED_FOR = frozenset(
    {"output", "input", "log-file", "host", "user", "ray", "tokens", "name", "results", "store", "layer"}
)
NEVER = frozenset({"dry-run"})  # would do nothing, silently, ever after
BUDGETS = ("minutes", "images")
EXCLUSIVE = (BUDGETS, ("verbose", "quiet"))
MOST_BYTES = 64 << 10
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path, as a text"}


@dataclass(frozen=True)
class Settable:
    """An option of a command.

    Attributes:
        parameter: of the function.
        type: of a value, or of each of several.
        many: how many there are: 1, a number, or None for any.
        info: as the function states it.
    """

    parameter: str
    type: type
    many: int | None
    info: OptionInfo

    def __str__(self) -> str:
        """What is allowed, in words."""
        one, low, high = WORDS[self.type], self.info.min, self.info.max
        one += f" from {low:g}" if low is not None else ""
        one += f" to {high:g}" if high is not None else ""
        return one if self.many == 1 else f"a list of {self.many or 'any length'}, each {one}"

    def value(self, given: Any) -> Any:
        """`given` as the command line would have it. Raises ValueError that says what is allowed."""
        several = given if isinstance(given, list) else [given]
        if (self.many == 1 and isinstance(given, list)) or (self.many not in (1, None) and len(several) != self.many):
            raise ValueError(f"must be {self}")
        for one in several:
            if not isinstance(one, {float: (int, float), Path: str}.get(self.type, self.type)):
                raise ValueError(f"must be {self}")
            if isinstance(one, bool) != (self.type is bool):
                raise ValueError(f"must be {self}")
            low, high = self.info.min, self.info.max
            if (self.type in (int, float) and not (low is None or low <= one)) or not (high is None or one <= high):
                raise ValueError(f"must be {self}")
            if self.info.callback is not None and self.many == 1:
                try:
                    self.info.callback(Path(one) if self.type is Path else one)
                except (DelineateError, typer.BadParameter) as error:
                    raise ValueError(str(error)) from error
        return given if self.many == 1 else several


def settable(command: Callable[..., None]) -> dict[str, Settable]:
    """The options of a command by their keys."""
    found = {}
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        type_, *infos = get_args(parameter.annotation) or (str,)
        info = infos[-1] if infos else None
        if not isinstance(info, OptionInfo):
            continue
        names = [name for name in (info.default, *(info.param_decls or ())) if isinstance(name, str)]
        long = next((name for name in names if name.startswith("--")), f"--{parameter.name.replace('_', '-')}")
        [type_] = [one for one in get_args(type_) if one is not NoneType] if NoneType in get_args(type_) else [type_]
        inner, origin = get_args(type_), get_origin(type_)
        many = None if origin is list else len(inner) if origin is tuple else 1
        kind: Any = inner[0] if inner else type_
        found[long[2:]] = Settable(parameter.name, kind, many, info)
    return {name: one for name, one in found.items() if name not in NEVER}


def read_config(file: Path | None, commands: Mapping[str, Callable[..., None]]) -> tuple[Path | None, dict[str, Any]]:
    """The file that is taken, None where there is none, and from it the defaults of each command by parameter.

    Raises:
        DelineateError: it cannot be read, or says something that no option is.
    """
    path = Path(FILE) if file is None else file
    if file is None and not path.is_file():
        return None, {}
    told, own = _read(path), {name: settable(command) for name, command in commands.items()}
    anywhere = {key: one for options in own.values() for key, one in options.items()}
    found: dict[str, dict[str, Any]] = {name: {} for name in own}
    for table, keys in sorted(told.items(), key=lambda item: item[0] != FOR_ALL):
        if not isinstance(keys, dict):
            raise DelineateError(f"{path}: '{table}' stands by itself; options stand below [{FOR_ALL}] or a command")
        if table != FOR_ALL and table not in own:
            raise DelineateError(f"{path}: [{table}] is no command; {_nearest(table, [FOR_ALL, *own])}")
        for key, given in keys.items():
            key = key.replace("_", "-")
            allowed = anywhere if table == FOR_ALL else own[table]
            if key not in allowed:
                raise DelineateError(f"{path}: [{table}] {key}: no such option; {_nearest(key, allowed)}")
            if file is None and key in ONLY_ASKED_FOR:
                raise DelineateError(
                    f"{path}: [{table}] {key}: a file that nobody asked for may not say that; give --config {path}"
                )
            for name in own if table == FOR_ALL else [table]:
                if key in own[name]:
                    try:
                        found[name][own[name][key].parameter] = own[name][key].value(given)
                    except ValueError as error:
                        raise DelineateError(f"{path}: [{table}] {key} = {given!r:.60}: {error}") from error
    return path, found


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise DelineateError(
            f"--config {path}: no such file; see that it is there, or leave it out (DELINEATE_CONFIG, too)"
        )
    if path.stat().st_size > MOST_BYTES:
        raise DelineateError(f"{path}: larger than {MOST_BYTES >> 10} kB, so it holds something else than options")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DelineateError(f"{path}: not TOML: {error}; correct it, or move it away") from error


def _nearest(key: str, known: Iterable[str]) -> str:
    near = get_close_matches(key, known, n=3, cutoff=0.5)
    return f"nearest: {', '.join(near)}" if near else f"there are {', '.join(sorted(known))}"


class Configured(TyperCommand):
    """A command that says which options it took from a file (`ctx.obj`), in a line."""

    def invoke(self, ctx: Any) -> Any:
        """Run it; of two options of which one excludes the other, the one that was typed counts."""
        source = {name: getattr(ctx.get_parameter_source(name), "name", "") for name in ctx.params}
        for one, other in (*EXCLUSIVE, *(pair[::-1] for pair in EXCLUSIVE)):
            if source.get(one) == "COMMANDLINE" and source.get(other) == "DEFAULT_MAP":
                ctx.params[other], source[other] = (None if other in BUDGETS else False), "DEFAULT"
        taken = [
            f"--{name.replace('_', '-')} {ctx.default_map[name]}"
            for name in ctx.default_map or ()
            if source.get(name) == "DEFAULT_MAP"
        ]
        if taken and not ctx.params.get("quiet"):
            say(f"delineate: {ctx.obj} says {', '.join(taken)}")
        return super().invoke(ctx)
