"""A crew of actors of a Ray cluster: `segment --ray ADDRESS`.

All machines see the same folders under the same paths, and have the same release of delineate installed. What goes to
an actor and comes back is plain values, as for a process of `jobs.processes`. Ray restarts nothing by itself: who is
lost, and what becomes of the case, `jobs.handing` decides. Ray sends nobody figures of its use, and a cluster that is
begun here listens to this machine alone, to those who know its token, has no dashboard, and keeps its files in a folder
that goes when it ends.
"""

import importlib
import logging
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from delineate.errors import DelineateError
from delineate.jobs.handing import Heard
from delineate.jobs.worker import Worker, begun, scan_of, told_of
from delineate.scans.finding import Found

LOCAL, AUTO = "local", "auto"
REACHED = 10.0  # seconds in which a cluster's head has to answer
NEEDS = (("CPU", "num_cpus"), ("GPU", "num_gpus"))  # as Ray's resources are called, and what an actor asks of them
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
FIRST = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # Ray's way to say that all is on loopback
ALONE = {FIRST: "0", "RAY_AUTH_MODE": "token"}
STORE = 100 << 20  # bytes of shared memory, of which nothing here needs any
INSTALL = "--ray needs Ray: pip install 'delineate[ray]'"


class Actor:
    """A `Worker` on some machine of the cluster."""

    def __init__(self) -> None:
        self.worker: Worker | None = None

    def begin(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Load the segmenter; what `begun` says."""
        self.worker, said = begun(told)
        return said

    def do(self, scan: Mapping[str, Any], again: bool) -> dict[str, Any]:
        """The entry of a case."""
        assert self.worker is not None
        return {"entry": self.worker.do(scan_of(scan), again)}


class OnRay:
    """See `delineate.jobs.handing.Crew`."""

    def __init__(self, address: str, begin: Mapping[str, Any], workers: int | None):
        """Join the cluster.

        Args:
            address: as `ray.init` takes it: "auto" for the cluster that this machine belongs to, or HOST:PORT; or
                "local", for one of this machine alone that ends with the command.
            begin: what `Worker` takes, but for `doing` and `number`. With the device "auto" a GPU each, where the
                cluster has some.
            workers: how many; by default as many as the cluster has GPUs, or processors for their threads.

        Raises:
            DelineateError: Ray is not installed, the cluster cannot be reached, or is too small.
        """
        check_address(address)
        os.environ.update(QUIET)  # read when Ray is imported, as is what follows
        if address == LOCAL and os.environ.get(FIRST) != ALONE[FIRST]:
            if sys.modules.get("ray") is not None:
                raise DelineateError("--ray local has to import Ray itself, or its cluster would listen to the network")
            os.environ.update(ALONE | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
        try:
            ray: Any = importlib.import_module("ray")  # an extra; where it is not, its types are not either
        except ImportError as error:
            raise DelineateError(INSTALL) from error
        if ":" in address:
            reach(address)
        self.ray, self.begin, self.threads = ray, dict(begin), begin["threads"]
        self.actors: dict[int, Any] = {}
        self._asked: dict[Any, int] = {}
        self._folder = tempfile.mkdtemp(prefix="dl-") if address == LOCAL else None  # sockets have short names
        here: dict[str, Any] = {"address": address}
        if self._folder is not None:
            processors = max(os.cpu_count() or 1, (workers or 1) * self.threads)
            here = {"num_cpus": processors, "object_store_memory": STORE, "include_dashboard": False}
            here |= {"_temp_dir": self._folder, "_node_ip_address": "127.0.0.1"}
        try:
            ray.init(**here, configure_logging=False, logging_level=logging.ERROR, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            self.end()
            why = " ".join(str(error).split())[:300]
            raise DelineateError(
                f"--ray {address}: no cluster can be reached there ({why}); see `ray status`"
            ) from error
        there = ray.cluster_resources()
        if self.begin["device"] == "auto":
            self.begin["device"] = "cuda" if there.get("GPU", 0) >= 1 else "cpu"
        self.device = str(self.begin["device"])
        self.needs = {"num_cpus": self.threads, "num_gpus": float(self.device != "cpu")}
        most = int(min(there.get(name, 0) // self.needs[key] for name, key in NEEDS if self.needs[key]))
        if most < 1:
            self.end()
            told = ", ".join(f"{there.get(name, 0):g} {name}" for name, _ in NEEDS)
            raise DelineateError(f"--ray {address}: a worker of {self.threads} threads does not fit ({told} in all)")
        self.workers = workers or most

    def hire(self, worker: int, doing: Mapping[str, Any]) -> None:
        """Begin one, as soon as the cluster has room."""
        actor = self.ray.remote(max_restarts=0, max_task_retries=0, **self.needs)(Actor).remote()
        self.actors[worker] = actor
        self._asked[actor.begin.remote({**self.begin, "doing": doing, "number": 0})] = worker

    def give(self, worker: int, scan: Found, again: bool) -> None:
        """Give it a case."""
        self._asked[self.actors[worker].do.remote(told_of(scan), again)] = worker

    def hear(self) -> Heard:
        """Wait until one has something to say, or is lost."""
        (answer, *_), _ = self.ray.wait(list(self._asked))
        worker = self._asked.pop(answer)
        try:
            return Heard(worker, self.ray.get(answer))
        except self.ray.exceptions.RayTaskError:
            raise  # a fault of ours
        except self.ray.exceptions.RayError as error:
            self.actors.pop(worker, None)
            return Heard(worker, None, " ".join(str(error).split())[:200])

    def end(self) -> None:
        """End all actors; and the cluster, if it was begun here."""
        if self.ray.is_initialized():
            for actor in self.actors.values():
                self.ray.kill(actor)
            self.ray.shutdown()
        self.actors.clear()
        self._asked.clear()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def check_address(address: str) -> None:
    """See that it is one that can be asked for. Raises `DelineateError`."""
    host, colon, port = address.rpartition(":")
    if address not in (LOCAL, AUTO) and not (colon and re.fullmatch(r"[\w.\-\[\]:]+", host) and port.isdecimal()):
        raise DelineateError(f"--ray is auto, local or HOST:PORT of the cluster's head; got '{address}'")


def reach(address: str) -> None:
    """See that somebody listens there. Raises `DelineateError`."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACHED).close()
    except (OSError, OverflowError) as error:
        raise DelineateError(
            f"--ray {address}: nobody answers there ({error}); see `ray status` on its head"
        ) from error
