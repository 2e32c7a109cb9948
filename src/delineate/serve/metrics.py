"""What is counted, in the text that Prometheus reads. No name, no prompt and no token is in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest

KIND = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """The counters of a server, in a registry of its own."""

    def __init__(self, gauges: dict[str, tuple[str, Callable[[], float]]], about: dict[str, str]):
        """`gauges` are read when they are asked for: name -> (what it is, its value)."""
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        Info("delineate", "This server and its model", registry=own).info(about)
        names = ("route", "method", "status")
        self._requests = Counter("delineate_requests", "Requests that were answered", names, registry=own)
        self._seconds = Histogram(
            "delineate_request_seconds", "From a request to its whole answer", ("route",), buckets=SECONDS, registry=own
        )
        self._stage = Histogram(
            "delineate_stage_seconds", "Of the work on a scan", ("stage",), buckets=SECONDS, registry=own
        )
        for stage in ("wait", "read", "compute", "write"):
            self._stage.labels(stage)
        for name, (what, value) in gauges.items():
            Gauge(f"delineate_{name}", what, registry=own).set_function(value)

    def answered(self, route: str, method: str, status: int, seconds: float) -> None:
        """A request was answered; `route` is a template, so that there are few of them."""
        self._requests.labels(route, method, status).inc()
        self._seconds.labels(route).observe(seconds)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a part of the work on a scan."""
        started = monotonic()
        try:
            yield
        finally:
            self._stage.labels(name).observe(monotonic() - started)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
