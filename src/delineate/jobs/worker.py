"""One worker of a crew: a segmenter in memory, and a case at a time. As a process: `python -m delineate.jobs.worker`.

The process hears and says lines of JSON: first `{"begin": …}`, answered by `{"ready": …}` or `{"refused": …}`, then
`{"scan": …, "again": …}`, each answered by `{"entry": …}`. When its standard input ends it ends at once, whatever it is
at: what it was building is not whole, and swept by the next command.
"""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delineate.errors import DelineateError, ModelError
from delineate.scans.finding import Found, Kind

if TYPE_CHECKING:  # which imports torch
    from delineate.jobs.segment import Doing


def told_of(scan: Found) -> dict[str, Any]:
    """A scan as JSON values."""
    return {"path": str(scan.path), "name": scan.name, "kind": scan.kind.value, "more": [str(p) for p in scan.more]}


def scan_of(told: Mapping[str, Any]) -> Found:
    """The scan that was told of."""
    more = tuple(Path(path) for path in told["more"])
    return Found(Path(told["path"]), told["name"], Kind(told["kind"]), more)


class Worker:
    """Does cases one after another, as `run_cohort` without a crew does them."""

    def __init__(self, begin: Mapping[str, Any]):
        """Load the segmenter.

        Args:
            begin: `current` (the command's folder), `model`, `adapter`, `device`, `threads`, `bids` (the root of that
                layout, or None), `doing` (as `jobs.segment.Doing.to_json`), `release` and `number`.

        Raises:
            DelineateError: it is not the model, or not the release, that the command has.
        """
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as `cli.app.main` has it; read when torch is loaded
        import torch

        from delineate import __version__
        from delineate.adapters.folder import fingerprint as adapter_fingerprint
        from delineate.model_folder import fingerprint
        from delineate.segmenter import Segmenter

        if begin["release"] != __version__:
            raise ModelError(f"the command is of delineate {begin['release']}, a worker of {__version__}; install one")
        if not Path(begin["current"]).is_dir():
            raise DelineateError(f"a worker has no folder {begin['current']}; all machines need the same paths")
        os.chdir(begin["current"])
        torch.set_num_threads(begin["threads"])
        device = begin["device"]
        if device == "cuda" and torch.cuda.device_count() > 1:
            device = f"cuda:{begin['number'] % torch.cuda.device_count()}"
        adapter = begin["adapter"]
        self.segmenter = Segmenter.load(begin["model"], device, adapter)
        self.doing = doing_of(begin)
        own = fingerprint(begin["model"]), None if adapter is None else adapter_fingerprint(adapter)
        if own != (self.doing.signature["model_sha256"], self.doing.signature["adapter_sha256"]):
            raise ModelError(
                f"{adapter or begin['model']}: a worker finds another model there; copy it to all machines"
            )

    @property
    def ready(self) -> dict[str, Any]:
        """What is said when it can work."""
        return {"pid": os.getpid()}

    def do(self, scan: Found, again: bool) -> dict[str, Any]:
        """The entry of a case, whatever becomes of it."""
        from delineate.jobs.segment import do_case

        return do_case(self.segmenter, scan, self.doing, again=again)


def doing_of(begin: Mapping[str, Any]) -> "Doing":
    """What is the same for every case, as it was told."""
    from delineate.jobs import bids
    from delineate.jobs.segment import Doing, SegmentRequest

    told = dict(begin["doing"])
    request = SegmentRequest.of_json(told["request"])
    lay_out = {} if begin["bids"] is None else {"lay_out": partial(bids.lay_out, Path(begin["bids"]))}
    return Doing(told["run"], request, Path(told["folder"]), told["signature"], told["resume"], **lay_out)


def begun(begin: Mapping[str, Any]) -> tuple[Worker | None, dict[str, Any]]:
    """The worker, and that it is ready; or None, and why not."""
    try:
        worker = Worker(begin)
    except DelineateError as error:
        return None, {"refused": str(error), "exit_code": error.exit_code}
    return worker, {"ready": worker.ready}


def main() -> None:
    """Work until standard input ends. What libraries print goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which then ends this
    said = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    heard: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(heard.put,), daemon=True).start()

    def say(what: Mapping[str, Any]) -> None:
        said.write(json.dumps(what) + "\n")
        said.flush()

    worker, first = begun(json.loads(heard.get()))
    say(first)
    while worker is not None:
        asked = json.loads(heard.get())
        say({"entry": worker.do(scan_of(asked["scan"]), asked["again"])})


def _listen(put: Callable[[str], None]) -> None:
    for line in sys.stdin:
        put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
