"""The child process that `delineate.scans.dicom.limits` starts: `python -m delineate.scans.dicom.child FOLDER`.

It reads `job.json`, sets its own limits before it imports a library, does the job, and leaves `answer.json`:
{"done": …}, {"refused": one line} or {"memory": bytes allowed}, with "given" where this process may use fewer.
"""

import errno
import json
import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

JOBS = {  # by name: the module beside this one and its function
    "read": ("reading", "read"),
    "segment": ("segments", "write"),
    "structures": ("structures", "write"),
    "report": ("measurements", "write"),
    "masks": ("unpacking", "read"),
}


class Limits:
    """The memory, time and disk that this process may use; none where the system has no such limits."""

    def __init__(self, told: dict[str, int]):
        """Set them: computing time at once, memory to what headers need."""
        self.allowed, self.most = told["memory"], told["most_memory"]
        try:
            import resource
        except ImportError:  # Windows
            self.resource = None
            return
        self.resource = resource
        self._limit(resource.RLIMIT_CPU, told["seconds"], told["seconds"] + 5)
        self._limit(resource.RLIMIT_FSIZE, self.most, self.most)
        self._limit(resource.RLIMIT_CORE, 0, 0)
        self._set()

    def allow(self, more: int) -> None:
        """Allow `more` bytes, for arrays whose size is known and was checked."""
        self.allowed = min(self.allowed + more, self.most)
        self._set()

    def _set(self) -> None:
        if self.resource is not None:
            self._limit(self.resource.RLIMIT_AS, self.allowed, self.most)

    def _limit(self, which: int, soft: int, hard: int) -> None:
        """Set a limit, no higher than the one that this process was given (`ulimit`)."""
        given = self.resource.getrlimit(which)[1]  # type: ignore[union-attr]
        if given != self.resource.RLIM_INFINITY:  # type: ignore[union-attr]
            hard = min(hard, given)
        self.resource.setrlimit(which, (min(soft, hard), hard))  # type: ignore[union-attr]

    def told(self) -> dict[str, int]:
        """What to say when memory ran out: what was allowed, and "given" where that is less."""
        if self.resource is None:
            return {"memory": self.allowed}
        given = self.resource.getrlimit(self.resource.RLIMIT_AS)[0]
        return {"memory": self.allowed} | ({"given": given} if given < self.allowed else {})


def main(folder: Path) -> None:
    """Do the job in `folder`."""
    job: dict[str, Any] = json.loads((folder / "job.json").read_text())
    limits = Limits(job["limits"])
    (folder / "answer.json").write_text(json.dumps(answer(job, folder, limits)))


def answer(job: dict[str, Any], folder: Path, limits: Limits) -> dict[str, Any]:
    """The answer to a job."""
    from delineate.errors import ScanError

    warnings.simplefilter("ignore")
    try:
        module, function = JOBS[job["job"]]
        do = getattr(import_module(f"delineate.scans.dicom.{module}"), function)
        return {"done": do(job, folder, limits.allow)}
    except ScanError as error:
        return {"refused": " ".join(str(error).split())}
    except (MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:  # what mapping a file says of too little memory
            raise
        return limits.told()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
