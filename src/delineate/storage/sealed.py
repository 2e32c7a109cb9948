"""Folders with a manifest: written whole or not at all, and checked file by file before anything in them is read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Annotated

from annotated_types import Predicate

from delineate.errors import ModelError
from delineate.storage.files import sha256_of, write_json
from delineate.storage.schema import Name, Sha256, read_json
from delineate.storage.swapping import swapping

MANIFEST = "manifest.json"
README = "README.md"  # what the Hugging Face Hub shows; people change it there, so it may lie beside and is not read


def _is_inside(name: str) -> bool:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
        raise ValueError("must be a file in the folder")
    return True


Manifest = dict[Annotated[Name, Predicate(_is_inside)], Sha256]


@contextmanager
def sealing(folder: Path, is_older: Callable[[Path], bool], what: str) -> Iterator[Path]:
    """Yield a temporary folder to fill; it is then sealed by a manifest and takes the place of `folder` (`swapping`).

    Args:
        folder: where it goes; an older one of the same kind is replaced.
        is_older: tells whether what lies there is of the same kind.
        what: "model", for messages.

    Raises:
        ModelError: `folder` holds something else.
        BusyError: another command is writing it.
    """
    folder = Path(folder)
    check_free(folder, is_older, what)
    with swapping(folder) as building:
        yield building
        write_json(building / MANIFEST, hashes(building))


def check_free(folder: Path, is_older: Callable[[Path], bool], what: str) -> None:
    """Raise `ModelError` unless nothing is at `folder`, or an empty folder, or an older one of the same kind."""
    if folder.exists() and not is_older(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        article = "an" if what[0] in "aeiou" else "a"
        raise ModelError(f"{folder}: exists and is not {article} {what} folder; choose another name")


def verify(folder: Path, needed: set[str], what: str) -> None:
    """Compare every file with its hash. Raises `ModelError` at a missing, added, changed or unreadable one."""
    told = read_json(folder / MANIFEST, fix=f"copy the {what} again")
    if not isinstance(told, dict) or not needed <= told.keys():
        article = "an" if what[0] in "aeiou" else "a"
        raise ModelError(f"{folder}/{MANIFEST}: not the manifest of {article} {what}; check the path")
    expected = read_manifest(folder, what)
    try:
        found = hashes(folder)
    except OSError as error:
        raise ModelError(f"{error.filename}: cannot be read ({error.strerror}); copy the {what} again") from error
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise ModelError(f"{folder}: '{name}' is missing; copy the {what} again")
        if name not in expected and name != README:
            raise ModelError(f"{folder}: '{name}' is not part of the {what}; remove it or copy the {what} again")
        if name in expected and expected[name] != found[name]:
            raise ModelError(f"{folder}: '{name}' was changed or damaged since it was saved; copy the {what} again")


def read_manifest(folder: Path, what: str) -> dict[str, str]:
    """The hash of every file by its name. Raises `ModelError` where the manifest is none."""
    return read_json(folder / MANIFEST, Manifest, fix=f"copy the {what} again")


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below `folder`, hidden ones and the manifest itself left out."""
    files = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): sha256_of(path)
        for name, path in files.items()
        if name != Path(MANIFEST) and not any(part.startswith(".") for part in name.parts)
    }
