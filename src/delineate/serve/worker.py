"""Who computes: one thread with the one model; and how many scans are held in memory around it.

A second thread that computes would gain nothing: torch spreads one forward pass over the cores that there are, and two
at once would share them, with twice the memory. What is not the network's (reading a file, unpacking, writing masks)
goes on in the threads of other requests meanwhile. One thread, always the same, because OpenMP gives every thread that
computes a pool of its own.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

from delineate.serve.places import Errand

Result = TypeVar("Result")
LOOK_EVERY = 0.1  # seconds: how soon a request that waits notices that nobody wants it any more


class Worker:
    """One thread that computes, in the order in which it is asked.

    Attributes:
        idle: whether it computes nothing at the moment.
    """

    def __init__(self):
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.idle = True

    def __call__(self, errand: Errand, work: Callable[[Callable[[float], None]], Result]) -> Result:
        """What `work` returns, done in the thread; it is told whom to tell how far it is.

        Raises:
            DelineateError: the errand was stopped, or took too long; the work itself ends at its next step.
        """

        def done() -> Result:
            errand.check()
            self.idle = False
            try:
                return work(errand.on_step)
            finally:
                self.idle = True

        future = self._pool.submit(done)
        while not wait([future], LOOK_EVERY).done:
            try:
                errand.check()
            except BaseException:
                future.cancel()
                raise
        return future.result()

    def close(self) -> None:
        """End the thread once nothing is left to be done."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Turnstile:
    """At most so many at once, in the order in which they came."""

    def __init__(self, most: int):
        self._free, self._waiting, self._lock = most, deque[threading.Event](), threading.Lock()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @contextmanager
    def passing(self, check: Callable[[], None]) -> Iterator[None]:
        """Be one of them; `check` is called now and then while waiting, and what it raises ends that."""
        mine = threading.Event()
        with self._lock:
            if self._free and not self._waiting:
                self._free -= 1
                mine.set()
            else:
                self._waiting.append(mine)
        try:
            while not mine.wait(LOOK_EVERY):
                check()
        except BaseException:
            with self._lock:
                if mine.is_set():
                    self._next()
                else:
                    self._waiting.remove(mine)
            raise
        try:
            yield
        finally:
            with self._lock:
                self._next()

    def _next(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self._free += 1
