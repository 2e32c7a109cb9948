"""Files that are either whole or not there: written under a temporary name, checked, then renamed.

Their permissions, and those of folders, are what the umask leaves, whoever wrote them: tempfile and some libraries make
files for their owner alone. The umask is never asked for, since that would change it for other threads.
"""

import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


TEMPORARY = ".writing-"  # what is being written begins with it, and what a killed command left


@contextmanager
def replacing(path: Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success `check` it, flush it to disk and rename it to `path`.

    If the block or the check raises, `path` is left as it was and the temporary file is removed. The
    temporary name keeps every suffix of `path`, because several libraries choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = new_file(path.parent, "".join(path.suffixes[-2:]))
    mode = _mode(temporary)
    try:
        with temporary.open("rb") as held:
            _lock(held.fileno())
            yield temporary
            if check is not None:
                check(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        _set_mode(temporary, mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _lock(descriptor: int) -> None:
    """Tell others that the file is being written, or they would take it for what a killed command left."""
    if fcntl is not None:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def new_file(folder: Path, suffix: str = "") -> Path:
    """A new, hidden, empty file in `folder`."""
    while True:
        path = _temporary_name(folder, suffix)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return path
        except FileExistsError:
            continue


def usual_mode(folder: Path) -> int:
    """The permissions that a new file in `folder` gets."""
    path = new_file(folder)
    try:
        return _mode(path)
    finally:
        path.unlink()


def as_usual(folder: Path) -> None:
    """Give all that lies below `folder` the permissions that new files and folders get there."""
    of_files, of_folders = usual_mode(folder), _mode(folder)
    for path in folder.rglob("*"):
        if not path.is_symlink():
            _set_mode(path, of_folders if path.is_dir() else of_files)


def _temporary_name(folder: Path, suffix: str) -> Path:
    return Path(folder) / f"{TEMPORARY}{secrets.token_hex(4)}{suffix}"


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _set_mode(path: Path, mode: int) -> None:
    if _mode(path) != mode:  # where permissions cannot be set they are all alike
        path.chmod(mode)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` (UTF-8), atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON, atomically. NaN and infinity are refused."""
    write_text(path, _json(value))


def sha256_of_json(value: Any) -> str:
    """The SHA-256 of the file that `write_json` would write."""
    return hashlib.sha256(_json(value).encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def safe_name(text: str) -> str:
    """`text` as a file name of letters, digits, '-' and '_': no path can be built from it.

    >>> safe_name("left kidney"), safe_name("../../etc/passwd")
    ('left_kidney', 'etc_passwd')
    """
    return re.sub(r"[^a-z0-9-]+", "_", text.lower()).strip("_")[:80] or "unnamed"
