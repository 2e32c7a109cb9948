"""Folders that are replaced whole: built beside, put in place in one step, and finished by whoever comes next.

    .writing-<name>/          the new folder while it is built; locked by who builds it
    .writing-<name>/.whole    written last: from here on it only has to take its place

What is found there and nobody locks was left by a command that was killed. Where it is whole it takes its place; else
it is removed. So the folder `<name>` is, at any moment and after any crash, the old one or the new one.
"""

import ctypes
import errno
import os
import shutil
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from delineate.errors import BusyError, OutputError
from delineate.storage.files import TEMPORARY, as_usual, new_file

try:
    import fcntl
except ImportError:  # Windows: two commands at work on one folder are not noticed there
    fcntl = None

WHOLE = ".whole"
ASIDE = ".older"
YOUNG = 60.0  # seconds in which a file that nobody locks may still be about to be locked
_HELD: list[int] = []  # descriptors of folders, locked while this process lives
Keep = Callable[[Path], Mapping[str, str]]


def keep_nothing(folder: Path) -> Mapping[str, str]:
    """For folders in which nothing but ours can be."""
    return {}


@contextmanager
def swapping(folder: Path, keep: Keep = keep_nothing) -> Iterator[Path]:
    """Yield an empty folder to fill, which then takes the place of `folder`. If the block raises, nothing changes.

    Args:
        folder: where it goes; folders above it are made.
        keep: what of the older folder is to be had in the new one, by name, and what it is called there. It is moved,
            not copied.

    Raises:
        BusyError: another command is building the same one.
        OSError: it cannot be written.
    """
    folder = Path(os.path.abspath(folder))  # which has a name, also where it was given as "."
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = folder.with_name(f"{TEMPORARY}{folder.name}")
    while True:
        with _own(building):
            if any(building.iterdir()):
                _finish(building, keep)
                continue  # what is there now is another folder, and not yet ours
            try:
                yield building
                as_usual(building)
                _sync_all(building)
                (building / WHOLE).touch()
                sync(building)
                _finish(building, keep)
            except BaseException:
                _remove(building)
                raise
            return


def sweep(parent: Path, keep: Keep = keep_nothing, of: Collection[str] | None = None) -> list[str]:
    """Finish or remove what killed commands left in a folder; the names of the folders that were put in place.

    `of`: of folders of these names alone. Between machines, locks on folders may not be seen (NFS), so that whoever
    shares a folder with others must leave theirs alone.
    """
    finished = []
    for left in sorted(Path(parent).glob(f"{TEMPORARY}*")):
        if of is not None and left.name.removeprefix(TEMPORARY).removesuffix(ASIDE) not in of:
            continue
        try:
            if left.is_dir() and not left.is_symlink():
                with _own(left):
                    if _finish(left, keep):
                        finished.append(left.name.removeprefix(TEMPORARY))
            elif fcntl is not None and time.time() - left.stat().st_mtime > YOUNG and not is_locked(left):
                left.unlink(missing_ok=True)
        except (BusyError, OSError):
            continue
    return finished


def finish(folder: Path, keep: Keep = keep_nothing) -> None:
    """Finish or remove what a killed command left of this one folder.

    Raises:
        BusyError: another command is building it.
    """
    building = folder.with_name(f"{TEMPORARY}{folder.name}")
    for left in (building, building.with_name(f"{building.name}{ASIDE}")):
        if left.is_dir() and not left.is_symlink():
            with _own(left):
                _finish(left, keep)


@contextmanager
def locked(folder: Path, what: str, shared: bool = False) -> Iterator[None]:
    """Within the block no other command is at work in `folder`; with `shared`, none but others that share it.

    Raises:
        BusyError: another one is.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, f"{folder}: another command {what}")
        yield
    finally:
        os.close(descriptor)


@contextmanager
def waiting(file: Path) -> Iterator[None]:
    """Within the block no other command is in one on the same file, which must be there; it is waited for.

    The file is opened for writing, or NFS would not tell other machines of the lock.
    """
    with file.open("r+b") as opened:
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(opened, fcntl.LOCK_EX)
        yield


def hold(folder: Path, what: str) -> None:
    """As `locked`, until this process ends; asked again by it, nothing changes. Of `torchrun`'s the first does it.

    Raises:
        BusyError: another one is.
    """
    if fcntl is None or os.environ.get("RANK", "0") != "0":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    if any(os.path.samestat(os.fstat(descriptor), os.fstat(one)) for one in _HELD):
        os.close(descriptor)
        return
    try:
        _lock(descriptor, fcntl.LOCK_EX, f"{folder}: another command {what}")
    except BaseException:
        os.close(descriptor)
        raise
    _HELD.append(descriptor)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # a file system that knows no such thing
            raise
    finally:
        os.close(descriptor)


def is_locked(file: Path) -> bool:
    """Whether another command holds the lock on a file; where nobody can tell, False."""
    if fcntl is None:
        return False
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def make_folder(folder: Path) -> None:
    """Make a folder, and see that files can be written in it, before any work is done for it.

    Raises:
        OutputError: it cannot be made, or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        new_file(folder).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{folder}: nothing can be written there ({error.strerror}); choose another folder"
        ) from error


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step; False where this system, or this file system, cannot."""
    call = {"linux": "renameat2", "darwin": "renameatx_np"}.get(sys.platform)
    function = getattr(ctypes.CDLL(None, use_errno=True), call, None) if call else None
    if function is None:
        return False
    here = -100 if sys.platform == "linux" else -2  # AT_FDCWD
    if function(here, os.fsencode(one), here, os.fsencode(other), 2) == 0:  # RENAME_EXCHANGE, RENAME_SWAP
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


@contextmanager
def _own(building: Path) -> Iterator[None]:
    """Within the block the folder at `building` is ours to fill, to finish and to remove."""
    while True:
        building.mkdir(exist_ok=True)
        if fcntl is None:
            yield
            return
        try:
            descriptor = os.open(building, os.O_RDONLY)
        except FileNotFoundError:  # removed by who was done
            continue
        try:
            target = building.with_name(building.name.removeprefix(TEMPORARY))
            _lock(descriptor, fcntl.LOCK_EX, f"{target}: another command is writing it")
            if not _is_at(descriptor, building):
                continue
            yield
            return
        finally:
            os.close(descriptor)


def _lock(descriptor: int, how: int, busy: str) -> None:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)  # type: ignore[union-attr]
    except BlockingIOError as error:
        raise BusyError(f"{busy}; wait for it, or choose another folder") from error
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):  # a file system without locks
            raise


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _finish(building: Path, keep: Keep) -> bool:
    """Put a whole folder in place; remove what is not whole. Whether there was a whole one."""
    folder = building.with_name(building.name.removeprefix(TEMPORARY).removesuffix(ASIDE))
    aside = building.with_name(f"{TEMPORARY}{folder.name}{ASIDE}")  # only where folders cannot change places
    whole = (building / WHOLE).is_file()
    if whole:
        older = next((one for one in (folder, aside) if one.is_dir() and not one.is_symlink()), None)
        moved: dict[Path, Path] = {}
        try:
            if older is not None:
                _bring(older, building, keep, moved)
            _put(building, folder, aside)
        except BaseException:
            for was, now in moved.items():
                now.rename(was)
            raise
        sync(folder.parent)
        (folder / WHOLE).unlink(missing_ok=True)
    else:
        if aside.exists() and not folder.exists():
            aside.rename(folder)
        (folder / WHOLE).unlink(missing_ok=True)  # killed when all but this was done
    _remove(building)
    _remove(aside)
    return whole


def _put(building: Path, folder: Path, aside: Path) -> None:
    """The new folder in its place; the older one is in one of the others, or nowhere."""
    if folder.is_symlink():
        folder.unlink()
    if not folder.exists():
        if not aside.exists():
            (building / WHOLE).unlink()  # one step is left
        building.rename(folder)
        return
    (folder / WHOLE).unlink(missing_ok=True)  # or it would look like a new one, now that it becomes the older
    if not exchange(building, folder):
        folder.rename(aside)
        try:
            building.rename(folder)
        except BaseException:
            aside.rename(folder)
            raise


def _bring(older: Path, building: Path, keep: Keep, moved: dict[Path, Path]) -> None:
    """Move what is kept, and write down where it was and is; beside a new file of its name, one gets `-kept`."""
    for name, called in keep(older).items():
        stem, dot, suffixes = called.partition(".") if not called.startswith(".") else (called, "", "")
        number, to = 0, building / called
        while to.exists():
            number += 1
            to = building / f"{stem}-kept{f'-{number}' * (number > 1)}{dot}{suffixes}"
        (older / name).rename(to)
        moved[older / name] = to


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _sync_all(folder: Path) -> None:
    for path in folder.rglob("*"):
        if not path.is_symlink():
            sync(path)
    sync(folder)
