"""The one door through which JSON comes in: its size, its text and every field are checked, and a fault is one line.

A file of JSON is a stranger's, whatever its hash says. What it may hold is written as types beside the code that reads
it: dataclasses whose fields have ranges (`Annotated[int, Interval(ge=1, le=64)]`), which pydantic checks. Fields that
are not named are let through where a format may grow, and refused where `exact` is set.
"""

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, overload

from annotated_types import Interval, Len, Predicate

from delineate.errors import DelineateError, ModelError

T = TypeVar("T")

COPY = "copy the model again"
MOST_BYTES = 4 << 20  # of a file: the largest that is written here, a model's list of rivals, has a hundredth of it
MOST_DEPTH = 32
LARGEST = 2**63  # of whole numbers: beyond it neither arrays nor files can count
SHOWN = 60  # characters of a value in a message


def _is_line(text: str) -> bool:
    if any(c < " " or "\x7f" <= c <= "\x9f" or c in "\u2028\u2029" for c in text):
        raise ValueError("must be one line without control characters")
    return True


def _is_hash(text: str) -> bool:
    if len(text) != 64 or not set(text) <= set("0123456789abcdef"):
        raise ValueError("must be a SHA-256, 64 digits and letters a-f")
    return True


Line = Annotated[str, Len(0, 2000), Predicate(_is_line)]
Name = Annotated[str, Len(1, 200), Predicate(_is_line)]
Sha256 = Annotated[str, Predicate(_is_hash)]
Count = Annotated[int, Interval(ge=0, lt=LARGEST)]
Share = Annotated[float, Interval(ge=0, le=1)]
Side = Annotated[int, Interval(ge=8, le=2048)]  # of a working grid, in pixels
Channels = Annotated[int, Interval(ge=1, le=8192)]  # of a layer
MOST_CHANNELS = 32  # of a scan
SliceChannels = Annotated[int, Interval(ge=1, le=MOST_CHANNELS)]  # of what a network sees of a scan
Widths = Annotated[tuple[Channels, ...], Len(1, 12)]  # of the levels of a network


@overload
def read_json(
    path: Path, *, error: type[DelineateError] = ..., fix: str = ..., most_bytes: int = ..., exact: bool = ...
) -> Any: ...
@overload
def read_json(
    path: Path,
    shape: type[T],
    *,
    error: type[DelineateError] = ...,
    fix: str = ...,
    most_bytes: int = ...,
    exact: bool = ...,
) -> T: ...
def read_json(
    path: Path,
    shape: Any = None,
    *,
    error: type[DelineateError] = ModelError,
    fix: str = COPY,
    most_bytes: int = MOST_BYTES,
    exact: bool = False,
) -> Any:
    """What a JSON file holds, as a value of the type `shape`; as plain values where that is None.

    No more than `most_bytes` are read, as UTF-8 with or without a byte order mark. NaN, infinities, numbers that no
    machine counts to, keys that stand twice, nests deeper than `MOST_DEPTH`, control characters and halves of
    characters are refused.

    Args:
        path: the file.
        shape: a dataclass, or another type that pydantic knows, with ranges. Nothing is converted: "3" is no number.
        error: what is raised.
        fix: what a reader of the message should do.
        most_bytes: of the file.
        exact: whether fields that `shape` does not name are refused.

    Raises:
        DelineateError: as `error` says, one line that names the file, the field and the fix.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise error(f"{path}: there is no such file; {fix}")
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror}); {fix}") from problem
    if len(data) > most_bytes:
        raise error(f"{path}: larger than {most_bytes} bytes, which no such file is; {fix}")
    try:
        text = data.decode("utf-8-sig")
        value = json.loads(
            text, parse_constant=_constant, parse_int=_whole, parse_float=_finite, object_pairs_hook=_once
        )
        if fault := _odd_text(value):
            raise ValueError(fault)
    except RecursionError as problem:
        raise error(f"{path}: not JSON (nested too deeply); {fix}") from problem
    except UnicodeDecodeError as problem:
        raise error(f"{path}: not JSON (not UTF-8 at byte {problem.start}); {fix}") from problem
    except ValueError as problem:
        reason = " ".join(str(problem).split())[:200]
        raise error(f"{path}: not JSON ({reason}); {fix}") from problem
    return value if shape is None else checked(value, shape, path, error=error, fix=fix, exact=exact)


def checked(
    value: Any,
    shape: type[T],
    path: Path,
    *,
    below: str = "",
    error: type[DelineateError] = ModelError,
    fix: str = COPY,
    exact: bool = False,
) -> T:
    """Plain JSON values as a value of the type `shape`: what a file holds, or the part of it `below` a field.

    Raises:
        DelineateError: as in `read_json`.
    """
    from pydantic import ValidationError  # here and below, as commands that read no JSON need not wait for it

    try:
        text = json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as problem:
        raise error(f"{path}: not JSON ({problem}); {fix}") from problem
    try:
        return _types(shape).validate_json(text, strict=True, extra="forbid" if exact else None)
    except ValidationError as problem:
        first = problem.errors(include_url=False)[0]
        place = ".".join(filter(None, [below, *_known_steps(value, first["loc"])]))
        field = f"field '{place:.200}': " if place else ""
        raise error(f"{path}: {field}{_said(first)}; {fix}") from None
    except DelineateError as problem:  # of a value that checks itself
        raise error(f"{path}: {' '.join(str(problem).split()).removesuffix('.')}; {fix}") from problem


@cache
def _types(shape: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(shape)


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(number := int(digits)) > LARGEST:
        raise ValueError(f"the number {digits[:12]}… is too large")
    return number


def _finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"the number {digits[:12]} is too large")
    return number


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{json.dumps(twice)[:SHOWN]} stands there twice")
    return found


def _odd_text(value: Any) -> str | None:
    """Why parsed JSON cannot be used, whatever it means; None where it can."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [inside for one in level for inside in _inside(one)]
        for text in level:
            if isinstance(text, str) and any(c < " " and c not in "\t\n\r" for c in text):
                return f"a control character in {json.dumps(text)[:SHOWN]}"
            if isinstance(text, str) and any("\ud800" <= c <= "\udfff" or "\x7f" <= c <= "\x9f" for c in text):
                return f"half a character, or a control character, in {json.dumps(text)[:SHOWN]}"
        if not level:
            return None
    return "nested too deeply"


def _inside(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def _known_steps(value: Any, steps: tuple[int | str, ...]) -> Iterator[str]:
    """The way to a fault, without what is not in the file: pydantic also names the branches of unions."""
    for step in steps:
        inside: Any = value
        try:
            value = inside[step]
        except (KeyError, IndexError, TypeError):
            if step != steps[-1] or not isinstance(value, dict) or step == "[key]":
                continue
        yield "".join(c if c.isprintable() else "?" for c in str(step))


def _said(fault: Any) -> str:
    """A fault of pydantic's in the words of this house."""
    kind, limit = fault["type"], fault.get("ctx", {})
    match kind:
        case "missing" | "missing_argument":
            return "is missing"
        case "extra_forbidden" | "unexpected_keyword_argument":
            return "is not known here"
        case "value_error":
            return " ".join(str(limit["error"]).split())[:300]  # which may quote what was given
        case "greater_than_equal":
            said = f"must be at least {limit['ge']:g}"
        case "less_than_equal":
            said = f"must be at most {limit['le']:g}"
        case "too_long" | "string_too_long":
            said = f"must have at most {limit['max_length']} entries or characters"
        case "too_short" | "string_too_short":
            said = f"must have at least {limit['min_length']} entries or characters"
        case _:
            said = " ".join(fault["msg"].split()).replace("Input should", "must").replace("valid array", "list")
    return f"{said}, got {_shown(fault['input'])}"


def _shown(value: Any) -> str:
    match value:
        case dict():
            return "an object"
        case list():
            return f"a list of {len(value)}"
        case _:
            text = json.dumps(value, default=str, ensure_ascii=False)
            return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
