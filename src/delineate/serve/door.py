"""What surrounds the app of a server: a line and a count for every request, a place for those that are worked on.

From the outside: `watched`, then `review.safety.guard`, then `admitted`, then the app. Plain ASGI: streams stay so.
"""

import asyncio
import json
import logging
import time
import traceback
from pathlib import Path
from typing import Any

from delineate.review.problems import problem
from delineate.review.safety import App, Message, Receive, Scope, Send
from delineate.serve.metrics import Metrics
from delineate.serve.places import TOO_LONG, Errand, Full, Gone, Places, Refused, TooOften

LOG = logging.getLogger(__name__)
NOTE = 25  # between INFO and WARNING, as `cli.telling` has it
PROBES = ("/health", "/ready")  # for whoever watches over the server: they tell nothing, so they need no token
QUIET = (*PROBES, "/metrics")  # asked every few seconds, for ever
STATUS: dict[type[Refused], int] = {Full: 503, TooOften: 429}


def watched(app: App, metrics: Metrics) -> App:
    """`app`, of whose every answer a line is logged, and counted.

    The line holds the route's template and never a path, which may hold a token, nor anything that was sent.
    """

    async def watching(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        note: dict[str, Any] = {"route": "-", "user": "-", "id": "-"}
        status, sent, got, started = 0, 0, 0, time.monotonic()

        async def receiving() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            return message

        async def sending(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
            sent += len(message.get("body", b""))
            await send(message)

        try:
            await app({**scope, "state": {**scope.get("state", {}), "note": note}}, receiving, sending)
        finally:
            seconds = time.monotonic() - started
            metrics.answered(note["route"], scope["method"], status, seconds)
            fields = {
                "event": "request",
                "method": scope["method"],
                "route": note["route"],
                "status": status,
                "seconds": round(seconds, 3),
                "received": got,
                "sent": sent,
                "user": note["user"],
                "id": note["id"],
            }
            level = logging.INFO if note["route"] in QUIET else NOTE
            LOG.log(level, "%s", line_of(fields), extra={"fields": fields})

    return watching


def admitted(app: App, places: Places, work: tuple[tuple[str, str], ...]) -> App:
    """`app`, whose requests for work get a place first, or are refused before a byte of them is read.

    The errand is in `scope["state"]["errand"]`. It is stopped when whoever asked goes away.

    Args:
        app: behind the guard, which says who asks.
        places: there are.
        work: (method, prefix of the path) of the requests that need one.
    """

    async def admitting(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        note, user = scope["state"].get("note", {}), scope["state"].get("user", "-")
        note["user"] = user
        try:
            if not any(scope["method"] == method and scope["path"].startswith(path) for method, path in work):
                return await _answering(app, scope, receive, send)
            try:
                errand = places.take(user)
            except Refused as refusal:
                headers = {"retry-after": str(refusal.retry_after), "connection": "close"}  # the body is not read
                answer = problem(STATUS.get(type(refusal), 503), str(refusal), headers)
                return await answer(scope, receive, send)
            note["id"] = errand.id
            scope["state"]["errand"] = errand
            visit = _Visit(receive, errand)

            async def sending(message: Message) -> None:
                if visit.late:
                    return  # the app's own words about a body that was given up
                if message["type"] == "http.response.start" and not errand.kept:
                    places.leave(errand)
                await send(message)

            try:
                await _answering(app, scope, visit.receive, sending)
                if visit.late:
                    await problem(504, TOO_LONG, {"connection": "close"})(scope, receive, send)
            finally:
                visit.end()
                if not errand.kept:
                    places.leave(errand)
        finally:
            note["route"] = getattr(scope.get("route"), "path", note.get("route", "-"))

    return admitting


class _Visit:
    """What comes in on a request: its body, and then the news that the other end is gone, which is waited for.

    Attributes:
        late: whether its body took longer than its errand may.
    """

    def __init__(self, receive: Receive, errand: Errand):
        self._receive, self._errand = receive, errand
        self._watch: asyncio.Task[None] | None = None
        self._gone = asyncio.Event()
        self.late = False

    async def receive(self) -> Message:
        """The next message, for the app. A body that takes longer than its errand may is given up."""
        if self._watch is not None:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        try:
            message = await asyncio.wait_for(self._receive(), self._errand.until - time.monotonic())
        except TimeoutError:
            self.late, message = True, {"type": "http.disconnect"}
        if message["type"] == "http.disconnect":
            self._end()
        elif not message.get("more_body", False):
            self._watch = asyncio.create_task(self._until_gone())
        return message

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._end()

    def _end(self) -> None:
        if not self._errand.kept:
            self._errand.stop(Gone("whoever asked has gone"))
        self._gone.set()

    def end(self) -> None:
        """Wait no longer."""
        if self._watch is not None:
            self._watch.cancel()


async def _answering(app: App, scope: Scope, receive: Receive, send: Send) -> None:
    """The app; a fault of ours has been answered with a line by then, and is logged with another one."""
    try:
        await app(scope, receive, send)
    except Exception as error:
        tell_of_fault(error)


def tell_of_fault(error: Exception) -> None:
    """Log what kind of fault it is, and where. What it says may hold what was sent: that is for --verbose alone."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    LOG.error("internal error (%s at %s:%s)", type(error).__name__, Path(frame.filename).name, frame.lineno)
    LOG.debug("%s", "".join(traceback.format_exception(error)))


def line_of(fields: dict[str, Any]) -> str:
    """Fields as a line for people.

    >>> line_of({"event": "request", "status": 200, "user": "ward 3"})
    'event=request status=200 user="ward 3"'
    """
    return " ".join(f"{name}={json.dumps(v) if ' ' in str(v) else v}" for name, v in fields.items())
