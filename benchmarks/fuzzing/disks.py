"""Two disks that refuse: one with hardly any room, one that cannot be written to; where this user may mount such."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small_disks(work: Path) -> Iterator[tuple[Path | None, Path | None]]:
    """Yield where they are, None for one that could not be had; they are gone afterwards."""
    full, read_only = _mounted(work / "full", "size=64k"), _mounted(work / "read_only", "size=64k,ro")
    try:
        yield full, read_only
    finally:
        for disk in filter(None, (full, read_only)):
            subprocess.run(["umount", "-l", disk], capture_output=True, check=False)


def _mounted(path: Path, options: str) -> Path | None:
    path.mkdir(parents=True, exist_ok=True)
    subprocess.run(["umount", "-l", path], capture_output=True, check=False)
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, check=False)
    except OSError:
        return None
    return path if done.returncode == 0 else None
