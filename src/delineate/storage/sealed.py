"""Folders with a manifest: written whole or not at all, and checked file by file before anything in them is read."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from delineate.errors import ModelError
from delineate.storage.files import as_usual, new_folder, sha256_of, write_json

MANIFEST = "manifest.json"


@contextmanager
def sealing(folder: Path, is_older: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """Yield a temporary folder to fill; it is then sealed by a manifest and takes the place of `folder`.

    Args:
        folder: where it goes; an older one of the same kind is replaced.
        is_older: tells whether what lies there is of the same kind.
        what: "model", for messages.

    Raises:
        ModelError: `folder` holds something else.
    """
    folder = Path(folder)
    check_free(folder, is_older, what)
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = new_folder(folder.parent)
    try:
        yield building
        write_json(building / MANIFEST, hashes(building))
        as_usual(building)
        older = building.with_name(f"{building.name}-older")
        if folder.exists():
            folder.rename(older)
        try:
            building.rename(folder)
        except BaseException:
            if older.exists():
                older.rename(folder)
            raise
        if older.is_symlink():
            older.unlink()
        shutil.rmtree(older, ignore_errors=True)
    finally:
        if building.exists():
            shutil.rmtree(building)


def check_free(folder: Path, is_older: Callable[[Path], bool], what: str) -> None:
    """Raise `ModelError` unless nothing is at `folder`, or an empty folder, or an older one of the same kind."""
    if folder.exists() and not is_older(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        article = "an" if what[0] in "aeiou" else "a"
        raise ModelError(f"{folder}: exists and is not {article} {what} folder; choose another name")


def verify(folder: Path, needed: set[str], what: str) -> None:
    """Compare every file with its hash. Raises `ModelError` at a missing, added or changed one."""
    try:
        expected = json.loads((folder / MANIFEST).read_text())
    except ValueError as error:
        raise ModelError(f"{folder}/{MANIFEST}: not JSON; copy the {what} again") from error
    if not isinstance(expected, dict) or not needed <= expected.keys():
        article = "an" if what[0] in "aeiou" else "a"
        raise ModelError(f"{folder}/{MANIFEST}: not the manifest of {article} {what}; check the path")
    found = hashes(folder)
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise ModelError(f"{folder}: '{name}' is missing; copy the {what} again")
        if name not in expected:
            raise ModelError(f"{folder}: '{name}' is not part of the {what}; remove it or copy the {what} again")
        if expected[name] != found[name]:
            raise ModelError(f"{folder}: '{name}' was changed or damaged since it was saved; copy the {what} again")


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below `folder`, hidden ones and the manifest itself left out."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): sha256_of(path)
        for name, path in files.items()
        if name != Path(MANIFEST) and not any(part.startswith(".") for part in name.parts)
    }
