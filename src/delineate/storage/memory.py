"""How much memory there is, asked before much of it is taken; and what to do when it runs out all the same."""

import gc
import os
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from delineate.errors import DelineateError

try:
    import resource
except ImportError:  # Windows: the machine's memory alone is asked
    resource = None

Result = TypeVar("Result")

SPARE = 256 << 20  # bytes left to everything else
SHRINKS = (1, 4, 64)  # by what batches are divided, one after another
_SHRINK = ContextVar("shrink", default=1)
_WORDS = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "bad_alloc")


class OutOfMemory(DelineateError):
    """There is less memory than the work takes."""

    exit_code = 3


def free_bytes() -> int | None:
    """What this process may still take, in bytes: the least that machine, control group and limits leave; or None."""
    left = [_free_in_machine(), _free_in_group(), *_free_by_limits()]
    return min((one for one in left if one is not None), default=None)


def need(count: int, what: str) -> None:
    """See that there are `count` bytes for `what`, a phrase such as "ct.nii.gz: reading it".

    Raises:
        OutOfMemory: there are fewer; says how many there are.
    """
    if count < SPARE:  # not worth the question
        return
    free = free_bytes()
    if free is not None and count > free - SPARE:
        raise OutOfMemory(
            f"{what} takes about {_gigabytes(count)} of memory and {_gigabytes(max(0, free))} are free here; crop it, "
            "save it with fewer voxels, or give this process more"
        )


def at_once(usual: int) -> int:
    """How many things to work on together, where `usual` is usual: fewer once memory ran out."""
    return max(1, usual // _SHRINK.get())


def in_smaller_batches(work: Callable[[], Result]) -> Result:
    """`work()`; where memory runs out, again with smaller batches (`at_once`).

    Raises:
        OutOfMemory: one at a time is still too much.
    """
    for shrink in SHRINKS:
        token = _SHRINK.set(shrink)
        try:
            return work()
        except Exception as error:
            if not is_out_of_memory(error) or isinstance(error, OutOfMemory):
                raise
        finally:
            _SHRINK.reset(token)
        _forget_caches()
    raise OutOfMemory("memory ran out, with one slice at a time too; crop the scan, or give this process more memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory left: Python's, torch's on any device, or that of a library."""
    if isinstance(error, MemoryError | OutOfMemory) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _WORDS)


def _forget_caches() -> None:
    import torch

    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _free_in_machine() -> int | None:
    """Of the whole machine."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        return int(lines["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None


def _free_in_group() -> int | None:
    """Of the control group that this process is in, and of those above it, as containers and clusters limit them."""
    left = []
    for most, used, cache in _groups():
        try:
            limit, now = int(most.read_text()), int(used.read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
        try:
            told = dict(line.split() for line in cache.read_text().splitlines())
            now -= int(told.get("inactive_file", told.get("total_inactive_file", 0)))  # given back on demand
        except (OSError, ValueError):
            pass
        if limit < 1 << 60:  # version 1 has no word for none
            left.append(limit - now)
    return min(left, default=None)


def _groups() -> list[tuple[Path, Path, Path]]:
    """Files of limit, use and details, of versions 2 and 1."""
    found = []
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    for number, controllers, own in (line for line in lines if len(line) == 3):
        if number != "0" and "memory" not in controllers.split(","):
            continue
        two = number == "0"
        root = Path("/sys/fs/cgroup") if two else Path("/sys/fs/cgroup/memory")
        names = ("memory.max", "memory.current") if two else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        inside = Path(own.lstrip("/"))
        for folder in (inside, *inside.parents):
            found.append((root / folder / names[0], root / folder / names[1], root / folder / "memory.stat"))
    return found


def _free_by_limits() -> list[int]:
    """By `ulimit -v` and `ulimit -d`."""
    if resource is None:
        return []
    try:
        told = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    except OSError:
        return []
    left = []
    for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and used in told:
            left.append(most - (int(told[used].split()[0]) << 10))
    return left
