"""Headers of lines of text, as NRRD and MetaImage have them: read to a bound, number by number checked.

A header comes from a stranger: how long it is, what its numbers are and which file it points to are all doubted.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import IO

from delineate.errors import ScanError
from delineate.storage.hidden import hidden_in, without_hidden

LONGEST = 1 << 20  # bytes of a header: a thousand segments, each with its names and codes, take half of it
LARGEST_MM = 1e9  # of a coordinate; a scanner's is below 1e4
MOST_AXES = 16  # as NRRD has it
_UNITS = {"": 1.0, "mm": 1.0, "cm": 10.0, "m": 1e3, "um": 1e-3, "µm": 1e-3, "microns": 1e-3}


def lines_of(path: Path, file: IO[bytes]) -> Iterator[str]:
    """The lines of a file from where it stands, without their ends, to the end of the file.

    Raises:
        ScanError: they go on for more than `LONGEST` bytes, so that this is no header.
    """
    left = LONGEST
    while line := file.readline(left):
        left -= len(line)
        if left <= 0:
            raise ScanError(
                f"{path}: a header must end within {LONGEST} bytes, this one does not; copy or convert the file again"
            )
        yield line.decode("utf-8", "replace").rstrip("\r\n")


def field(path: Path, fields: Mapping[str, str], *names: str) -> str | None:
    """The value of the one field that is called by one of these names; None where there is none of them.

    Raises:
        ScanError: several of them are there, which may contradict one another.
    """
    there = [name for name in names if name in fields]
    if len(there) > 1:
        raise ScanError(f"{path}: its header must say one of {', '.join(there)}, and says all; convert the file again")
    return fields[there[0]] if there else None


def needed(path: Path, fields: Mapping[str, str], *names: str) -> str:
    """As `field`, of what has to be there."""
    value = field(path, fields, *names)
    if value is None:
        raise ScanError(f"{path}: its header must say '{names[0]}', found none; convert the file again")
    return value


def whole_numbers(path: Path, name: str, text: str, count: int | None = None) -> list[int]:
    """The whole numbers in a field, `count` of them, each below 10^15. Raises `ScanError` where it holds others."""
    words = text.split()
    right = 0 < len(words) <= MOST_AXES if count is None else len(words) == count
    if not right or not all(re.fullmatch(r"[+-]?[0-9]{1,15}", word) for word in words):
        raise ScanError(
            f"{path}: '{name}' must be {count or 'some'} whole numbers, found '{excerpt(text)}'; convert the file again"
        )
    return [int(word) for word in words]


def real_numbers(path: Path, name: str, words: Sequence[str], count: int) -> list[float]:
    """`count` finite numbers of a field. Raises `ScanError` where it holds anything else."""
    try:
        values = [float(word) for word in words]
    except ValueError:
        values = []
    if len(values) != count or not all(abs(value) <= LARGEST_MM for value in values):  # NaN is not below either
        raise ScanError(
            f"{path}: '{name}' must be {count} finite numbers, found '{excerpt(' '.join(words))}'; repair the header, "
            "or convert the scan again from its source"
        )
    return values


def millimetres(path: Path, unit: str) -> float:
    """How many mm a unit of a header is. Raises `ScanError` for one that is no length."""
    factor = _UNITS.get(unit.strip().lower())
    if factor is None:
        raise ScanError(f"{path}: lengths must be in mm, cm, m or um, found '{excerpt(unit)}'; convert the file again")
    return factor


def data_beside(path: Path, name: str) -> Path:
    """The file with the voxels of the header at `path`, where the header says `name`.

    Raises:
        ScanError: the name is not that of one file beside the header (paths in a header lead anywhere), or it is not
            there.
    """
    if (
        PureWindowsPath(name).name != name
        or "/" in name
        or name in ("", ".", "..")
        or hidden_in(name)
        or len(name) > 255
    ):
        raise ScanError(
            f"{path}: its voxels must be in one file beside it, the header points to '{excerpt(name)}'; put that file "
            "beside it and its bare name into the header, or save the scan as one file (.nrrd, .mha, .nii.gz)"
        )
    data = path.parent / name
    if not data.is_file():
        raise ScanError(f"{path}: its voxels are in '{excerpt(name)}', which is not beside it; copy both files")
    return data


def excerpt(text: str, length: int = 60) -> str:
    """`text` as it can be shown in one line, cut to some characters."""
    shown = without_hidden(text)
    return shown if len(shown) <= length else f"{shown[:length]}…"
