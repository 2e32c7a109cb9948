"""Files that are either whole or not there: written under a temporary name, checked, then renamed."""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success `check` it, flush it to disk and rename it to `path`.

    If the block or the check raises, `path` is left as it was and the temporary file is removed. The
    temporary name keeps every suffix of `path`, because several libraries choose the format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".writing-", suffix="".join(path.suffixes[-2:]), dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if check is not None:
            check(temporary)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
