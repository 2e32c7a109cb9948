"""Connections that say nothing or too little, on real sockets: closed in time, and in nobody's way."""

import asyncio
import json
import select
import socket
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection

import pytest
from tests.review.test_safety import ALICE, BEARER, echo, guarded_at, serving

from delineate.review.connections import MOST_WAITING, SERVER_LIMITS, Connection

AUTHORIZED = f"authorization: Bearer {ALICE}\r\n"


class Quick(Connection):
    """So that a test waits for a second and not for twenty."""

    head_seconds = 1.0
    body_seconds = 1.0
    body_bytes = 1000
    most_waiting = 20


def head(port: int, method: str = "GET", more: str = "") -> bytes:
    return f"{method} /x HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{more}\r\n".encode()


def connected(port: int, said: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0))
    if said:
        client.sendall(said)
    return client


def asked(port: int, timeout: float = 2) -> dict:
    """What somebody who has a token, and a new connection, is told."""
    client = HTTPConnection("127.0.0.1", port, timeout=timeout)
    client.request("GET", "/api/session", headers=BEARER)
    answer = client.getresponse()
    assert answer.status == 200
    told = json.loads(answer.read())
    client.close()
    return told


def heard(client: socket.socket, words: str) -> bool:
    """Whether the server says so, before it closes."""
    text = b""
    while words.encode() not in text:
        if not (came := client.recv(65536)):
            return False
        text += came
    return True


def closed(client: socket.socket) -> bool:
    """Whether the server has closed the connection; what it said before is read."""
    try:
        while select.select([client], [], [], 0)[0]:
            if not client.recv(65536):
                return True
    except ConnectionError:
        return True
    return False


def seconds_until_closed(client: socket.socket, most: float = 8.0) -> float:
    started = time.monotonic()
    while not closed(client):
        assert time.monotonic() - started < most, "it was left open"
        time.sleep(0.02)
    return time.monotonic() - started


@contextmanager
def trickling(clients: list[socket.socket], every: float = 0.05):
    """A byte on each of the connections now and then, as long as that goes."""
    done = threading.Event()

    def trickle():
        while not done.wait(every):
            for client in clients:
                with suppress(OSError):
                    client.send(b"x")

    thread = threading.Thread(target=trickle, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(10)


def test_two_hundred_half_open_connections_keep_nobody_out():
    """With the limits that are used: those held are as many as the server takes at all."""
    with serving(guarded_at(echo)) as port, ExitStack() as held:
        begun = f"GET / HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nx: ".encode()
        silent = [held.enter_context(connected(port)) for _ in range(70)]
        slow = [held.enter_context(connected(port, begun)) for _ in range(130)]
        assert len(silent + slow) >= SERVER_LIMITS["limit_concurrency"]
        with trickling(slow):
            for _ in range(5):
                started = time.monotonic()
                assert asked(port)["user"] == "alice"
                assert time.monotonic() - started < 1.5
            assert 0 < sum(not closed(client) for client in silent + slow) <= MOST_WAITING


def test_whoever_reconnects_without_end_keeps_nobody_out():
    done = threading.Event()

    def flood(port):
        kept = []
        while not done.is_set():
            try:
                kept.append(connected(port, b"GET / HTTP/1.1\r\n"))
            except OSError:
                continue
            if len(kept) > 250:
                kept.pop(0).close()
        for client in kept:
            client.close()

    with serving(guarded_at(echo)) as port:
        thread = threading.Thread(target=flood, args=(port,), daemon=True)
        thread.start()
        try:
            time.sleep(0.3)
            for _ in range(20):
                assert asked(port)["user"] == "alice"
        finally:
            done.set()
            thread.join(10)


@pytest.mark.parametrize("said", [b"", b"G", b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\nx: "])
def test_a_head_that_is_not_whole_in_time_ends_its_connection(said):
    with (
        serving(guarded_at(echo), http=Quick) as port,
        connected(port, said) as client,
        trickling([client] * bool(said)),
    ):
        assert 0.5 < seconds_until_closed(client) < 2.5


@pytest.mark.slow  # waits
def test_the_next_head_on_a_connection_has_its_own_time():
    with serving(guarded_at(echo), http=Quick) as port, connected(port, head(port, more=AUTHORIZED)) as client:
        assert client.recv(9999).startswith(b"HTTP/1.1 200")
        time.sleep(1.4)  # idle: nothing is begun, so no head is late
        assert not closed(client)
        client.sendall(head(port, more=AUTHORIZED))
        assert client.recv(9999).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET / HTTP")
        with trickling([client]):
            assert 0.5 < seconds_until_closed(client) < 2.5


def test_an_idle_connection_is_closed():
    with (
        serving(guarded_at(echo), http=Quick, timeout_keep_alive=1) as port,
        connected(port, head(port, more=AUTHORIZED)) as client,
    ):
        assert client.recv(9999).startswith(b"HTTP/1.1 200")
        assert 0.5 < seconds_until_closed(client) < 2.5


@pytest.mark.parametrize("every", [0.05, 60])
def test_a_body_that_trickles_or_stops_ends_its_connection(every):
    with (
        serving(guarded_at(echo), http=Quick) as port,
        connected(port, head(port, "POST", f"{AUTHORIZED}content-length: 100000\r\n")) as client,
        trickling([client], every),
    ):
        assert 0.5 < seconds_until_closed(client) < 2.5


@pytest.mark.slow  # waits
def test_a_body_at_its_pace_may_take_its_time():
    with (
        serving(guarded_at(echo), http=Quick) as port,
        connected(port, head(port, "POST", f"{AUTHORIZED}content-length: 20000\r\n")) as client,
    ):
        for _ in range(10):
            client.sendall(b"x" * 2000)
            time.sleep(0.3)
        assert heard(client, '"bytes": 20000')


@pytest.mark.slow  # waits
@pytest.mark.parametrize("expects", ["", "expect: 100-continue\r\n"])
def test_a_body_that_waits_for_us_is_not_late(expects):
    async def slow_to_read(scope, receive, send):
        await asyncio.sleep(2.5)
        await echo(scope, receive, send)

    size = 8_000_000  # more than is taken before somebody reads it
    with (
        serving(guarded_at(slow_to_read), http=Quick) as port,
        connected(port, head(port, "POST", f"{AUTHORIZED}{expects}content-length: {size}\r\n")) as client,
    ):
        if expects:
            assert client.recv(9999).startswith(b"HTTP/1.1 100")
        client.sendall(b"x" * size)
        assert heard(client, f'"bytes": {size}')


def test_the_body_of_a_stranger_is_not_awaited():
    with (
        serving(guarded_at(echo)) as port,
        connected(port, head(port, "POST", "content-length: 100000\r\n")) as client,
    ):
        assert client.recv(9999).startswith(b"HTTP/1.1 401")
        assert seconds_until_closed(client) < 1


@pytest.mark.parametrize("shown", ["bearer", "address"])
def test_whoever_has_shown_a_token_is_not_closed_for_others(shown):
    """An upload and a stream on first requests, and a connection kept alive, in the middle of a flood."""
    go_on = threading.Event()

    async def stream(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"last"})

    async def app(scope, receive, send):
        await (stream if scope["method"] == "GET" else echo)(scope, receive, send)

    with serving(guarded_at(app), http=Quick) as port, ExitStack() as held:
        if shown == "address":
            client = held.enter_context(connected(port))
            client.sendall(f"GET /?token={ALICE} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert client.recv(9999).startswith(b"HTTP/1.1 303")
        else:
            client = held.enter_context(connected(port, head(port, more=AUTHORIZED)))
            assert heard(client, "first")
        upload = held.enter_context(
            connected(port, head(port, "POST", f"{AUTHORIZED}content-length: 10\r\n") + b"12345")
        )
        time.sleep(0.2)
        others = [held.enter_context(connected(port)) for _ in range(3 * Quick.most_waiting)]
        time.sleep(0.2)
        assert sum(not closed(one) for one in others) <= Quick.most_waiting
        upload.sendall(b"67890")
        assert heard(upload, '"bytes": 10')
        go_on.set()
        if shown == "address":
            client.sendall(head(port, more=AUTHORIZED))
        assert heard(client, "last")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have one loopback address")
def test_the_address_that_holds_most_loses_first():
    with serving(guarded_at(echo), http=Quick) as port, ExitStack() as held:
        first = held.enter_context(connected(port, source="127.0.0.2"))
        time.sleep(0.1)
        crowd = [held.enter_context(connected(port, source="127.0.0.3")) for _ in range(Quick.most_waiting + 5)]
        time.sleep(0.3)
        assert not closed(first)  # although it has waited longest
        assert [closed(one) for one in crowd] == [True] * 6 + [False] * (Quick.most_waiting - 1)


def test_what_is_answered_is_the_affair_of_the_guard():
    """Without a token nothing but a refusal, as before; and half a head is told nothing."""
    with serving(guarded_at(echo), http=Quick) as port:
        with connected(port, head(port)) as client:
            assert client.recv(9999).startswith(b"HTTP/1.1 401")
        with connected(port, b"GET / HTTP/1.1\r\n") as client:
            assert seconds_until_closed(client) < 2.5
