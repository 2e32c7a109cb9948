"""Connections that say nothing, or too little: closed in time, and never in the way of those that have shown a token.

uvicorn limits how long a connection may be idle after an answer, and nothing else: one that never ends its request's
head stays for ever, and counts. So here its protocol is given a clock, and room for newcomers:

* the head of a request must be whole within seconds of its first byte, the first one within seconds of the connection;
* a body must keep coming, at a pace that any line holds;
* a connection waits until it has shown a token. Too many that wait, and the one that has waited longest is closed, of
  the address that holds most of them. Those that have shown a token are counted apart, and none of them is closed.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from delineate.review.safety import ADMITTED, App, Receive, Scope, Send

MOST_WAITING = 100  # connections that have shown no token
MOST_ADMITTED = 100  # those that have; a browser opens six


class Connection(H11Protocol):
    """uvicorn's protocol with a clock. Pass it to `uvicorn.Config` by `SERVER_LIMITS`.

    Attributes:
        head_seconds: for the head of a request, from the connection or from its first byte.
        body_seconds: in which `body_bytes` of a body must come, or its end. Apache's mod_reqtimeout has the same pace.
        most_waiting: connections that have shown no token.
        admitted: whether this one has.
        since: when it came, by the loop's clock.
    """

    head_seconds = 10.0
    body_seconds = 20.0
    body_bytes = 10_000
    most_waiting = MOST_WAITING

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.admitted, self.since = False, 0.0
        self._awaited: Any = None  # h11.IDLE, h11.SEND_BODY: the part of a request for which the clock runs
        self._timer: asyncio.TimerHandle | None = None
        self._came, self._held = 0, False
        self.app = self._told(self.app)

    def _told(self, app: Any) -> App:
        """The app, which learns how to say that a token was right."""

        async def telling(scope: Scope, receive: Receive, send: Send) -> None:
            extensions = {**scope.get("extensions", {}), ADMITTED: {"tell": self.admit}}
            await app({**scope, "extensions": extensions}, receive, send)

        return telling

    def admit(self) -> None:
        """A right token was shown on this connection: it waits no longer."""
        self.admitted = True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Begin to wait for the head of a request, in the place of another one where there are too many."""
        super().connection_made(transport)
        self.since = self.loop.time()
        self._await(h11.IDLE)
        self._make_room()

    def data_received(self, data: bytes) -> None:
        """Pass it on, and see what is awaited now."""
        self._came += len(data)
        super().data_received(data)
        state = self.conn.their_state
        self._await(state if state in (h11.IDLE, h11.SEND_BODY) else None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        super().connection_lost(exc)
        self._await(None)

    def _make_room(self) -> None:
        waiting = [one for one in self.connections if isinstance(one, Connection) and one.waits]
        if len(waiting) > self.most_waiting:
            longest_of_busiest(waiting).transport.abort()

    @property
    def waits(self) -> bool:
        """Whether it is open and has shown no token."""
        return not (self.admitted or self.transport.is_closing())

    @property
    def peer(self) -> str:
        """The address at the other end."""
        return self.client[0] if self.client else ""

    def _await(self, part: Any) -> None:
        """Start the clock for a part of a request, unless it runs for it already; None stops it."""
        if part is self._awaited:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._awaited, self._timer = part, None
        if part is h11.IDLE:
            self._timer = self.loop.call_later(self.head_seconds, self.transport.abort)
        elif part is h11.SEND_BODY:
            self._next_span()

    def _next_span(self) -> None:
        self._came, self._held = 0, self._holds_up()
        self._timer = self.loop.call_later(self.body_seconds, self._look_at_pace)

    def _look_at_pace(self) -> None:
        if self._came >= self.body_bytes or self._held or self._holds_up():
            self._next_span()
        else:
            self.transport.abort()

    def _holds_up(self) -> bool:
        """Whether it is us that the body waits for."""
        return self.flow.read_paused or self.conn.they_are_waiting_for_100_continue


def longest_of_busiest(waiting: Iterable[Connection]) -> Connection:
    """Of the address that holds most of these connections, the one that came first."""
    waiting = list(waiting)
    held = Counter(one.peer for one in waiting)
    most = max(held.values())
    return min((one for one in waiting if held[one.peer] == most), key=lambda one: one.since)


# What comes before any middleware: `uvicorn.Config(app, **SERVER_LIMITS)`.
SERVER_LIMITS: dict[str, Any] = {
    "http": Connection,
    "h11_max_incomplete_event_size": 64 * 1024,  # all headers of a request together
    "limit_concurrency": MOST_WAITING + MOST_ADMITTED,  # waiting ones never fill it
    "backlog": 64,  # as many come in at once; below MOST_WAITING, so that each is read before it can be in the way
    "timeout_keep_alive": 10,
    "timeout_graceful_shutdown": 5,
    "proxy_headers": False,  # nobody else says who is asking, or over what
    "server_header": False,
    "access_log": False,  # it would keep the token of the opened address
    "ws": "none",
}
