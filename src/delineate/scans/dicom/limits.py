"""A child process with limits, for files from strangers: what goes wrong in there stays there.

DICOM is a large format, decoded by libraries in C; a small file can ask for gigabytes. So headers and pixels are read
by `python -m delineate.scans.dicom.child`, which may use only so much memory, time and disk. Question and answer are
JSON, arrays are .npy in a temporary folder; nothing is unpickled.
"""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from delineate.errors import ModelError, ScanError
from delineate.storage.memory import OutOfMemory
from delineate.storage.schema import Count, read_json

HEADROOM = 1 << 30  # bytes for Python, numpy, pydicom and small change; the arrays come on top
SECONDS = 120  # and one more for each MiB of files
LONGEST_ANSWER = 64 << 20
DOING = {"segment": "writing the SEG", "structures": "writing the contours", "report": "writing the report"}


@dataclass(frozen=True)
class Answer:
    """What a child may answer."""

    refused: str | None = None
    memory: Count | None = None
    done: dict[str, Any] | None = None


def ask_child(job: dict[str, Any], folder: Path, *, size: int, array_bytes: int, name: str) -> dict[str, Any]:
    """Let a child process do a job of `delineate.scans.dicom.child`, and return its answer.

    Args:
        job: JSON values; "job" names it.
        folder: empty; arrays are exchanged there.
        size: bytes of the files that are read: they add to the limits.
        array_bytes: the most that arrays may take.
        name: what messages begin with.

    Raises:
        ScanError: what the child refuses; or it was stopped by a limit, or died; or the extra `dicom` is not installed.
    """
    if any(find_spec(module) is None for module in ("pydicom", "highdicom")):
        raise ScanError(f"{name}: DICOM needs pydicom and highdicom; install them with: pip install 'delineate[dicom]'")
    doing = DOING.get(job["job"], "reading")
    seconds = SECONDS + size // (1 << 20)
    limits = {"memory": HEADROOM + 3 * size, "most_memory": HEADROOM + 3 * size + array_bytes, "seconds": seconds}
    (folder / "job.json").write_text(json.dumps(job | {"limits": limits}))
    command = [
        sys.executable,
        "-P",
        "-m",
        "delineate.scans.dicom.child",
        str(folder),
    ]  # -P: no module from the current folder
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with (folder / "stderr.txt").open("wb") as complaints:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=complaints,
                stderr=complaints,
                env=os.environ | quiet,
                timeout=2 * seconds,
            )
        except subprocess.TimeoutExpired as error:
            raise ScanError(
                f"{name}: {doing} took more than {2 * seconds} s and was stopped; the file may be a trap"
            ) from error
    answer = _answer(folder / "answer.json")
    if "refused" in answer:
        raise ScanError(str(answer["refused"]))
    if "given" in answer:
        raise OutOfMemory(
            f"{name}: {doing} takes up to {answer['memory'] >> 20} MiB of memory and this process may use "
            f"{answer['given'] >> 20} (ulimit -v); raise that"
        )
    if "memory" in answer:
        raise ScanError(
            f"{name}: {doing} took more memory than its header accounts for ({answer['memory'] >> 20} MiB) and was "
            "stopped; the file is damaged or a trap: export it again"
        )
    if done.returncode or "done" not in answer:
        raise ScanError(f"{name}: {doing} failed ({_death(done.returncode, folder / 'stderr.txt')}); export it again")
    return answer["done"]


def _answer(path: Path) -> dict[str, Any]:
    try:
        read_json(path, Answer, most_bytes=LONGEST_ANSWER)
        return read_json(path, most_bytes=LONGEST_ANSWER)
    except ModelError:  # of a process that was stopped while it wrote, or that its scan took over
        return {}


def _death(code: int, complaints: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return "too much computing time" if name == "SIGXCPU" else f"its process was ended by {name}"
    with complaints.open("rb") as file:
        file.seek(max(0, complaints.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").strip().splitlines()
    said = "".join(c if c.isprintable() else " " for c in lines[-1])[:160] if lines else ""
    return said or f"its process ended with code {code}"
