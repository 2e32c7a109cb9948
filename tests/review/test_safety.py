"""Every rule of the guard, each with a request that it lets through and one that it does not."""

import asyncio
import json
import socket
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delineate.review.connections import SERVER_LIMITS
from delineate.review.safety import (
    CONTENT_SECURITY_POLICY,
    HEADERS,
    allowed_hosts,
    cookie_name,
    guard,
    tokens_for,
)

ALICE, BOB = "alice-0123456789abcdef", "bob-0123456789abcdef"
HOST = "127.0.0.1:8765"
BEARER = {"authorization": f"Bearer {ALICE}"}


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def detail(self) -> str:
        return json.loads(self.body)["detail"]


async def echo(scope, receive, send):
    """Tells who asked for what, and how many bytes came."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    told = {"user": scope["state"]["user"], "path": scope["path"], "raw": scope["raw_path"].decode(), "bytes": size}
    sent = [(b"content-type", b"application/json"), (b"access-control-allow-origin", b"*"), (b"x-frame-options", b"X")]
    await send({"type": "http.response.start", "status": 200, "headers": [*sent, (b"Referrer-Policy", b"unsafe-url")]})
    await send({"type": "http.response.body", "body": json.dumps(told).encode()})


def guarded(app=echo, **options):
    options = {"tokens": {ALICE: "alice", BOB: "bob"}, "hosts": allowed_hosts(8765), **options}
    return guard(app, **options)


def ask(app, method="GET", path="/api/session", headers=None, query=b"", parts=(b"",), raw_headers=None) -> Answer:
    """What `app` answers to one request, straight through ASGI."""
    pairs = {"host": HOST, **(headers or {})}
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in pairs.items() if value is not None]
    scope = {
        "type": "http",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": query,
        "headers": encoded if raw_headers is None else raw_headers,
    }
    waiting, sent = list(parts), []

    async def receive():
        if not waiting:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert sent[0]["type"] == "http.response.start"
    assert sum(message["type"] == "http.response.start" for message in sent) == 1
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return Answer(sent[0]["status"], {n.decode().lower(): v.decode() for n, v in sent[0]["headers"]}, body)


def test_a_bearer_token_is_a_user():
    app = guarded()
    assert json.loads(ask(app, headers=BEARER).body)["user"] == "alice"
    assert json.loads(ask(app, headers={"authorization": f"bearer  {BOB} "}).body)["user"] == "bob"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {ALICE[:-1]}"},
        {"authorization": f"Bearer {ALICE}x"},
        {"authorization": f"Basic {ALICE}"},
        {"authorization": ALICE},
        {"authorization": "Bearer nonsense-0123456789", "cookie": f"delineate-8765={ALICE}"},
        {"cookie": f"delineate-9999={ALICE}"},
        {"cookie": f"delineate-8765={ALICE}x; delineate-8765="},
    ],
)
def test_nothing_is_public(headers):
    for path in ("/", "/api/session", "/static/app.js", "/favicon.ico", "/monai/info/"):
        answer = ask(guarded(token_folders=("/monai",)), path=path, headers=headers)
        assert (answer.status, answer.headers["content-type"]) == (401, "application/json")
        assert "delineate review" in answer.detail


def test_the_opened_address_becomes_a_cookie_and_a_clean_address():
    app = guarded()
    opened = ask(app, path="/", query=b"token=" + ALICE.encode())
    assert (opened.status, opened.headers["location"], opened.body) == (303, "/", b"")
    cookie, *attributes = opened.headers["set-cookie"].split("; ")
    assert attributes == ["HttpOnly", "SameSite=Strict", "Path=/"]
    assert json.loads(ask(app, headers={"cookie": f"other=1;{cookie}; more=2"}).body)["user"] == "alice"
    assert ALICE not in opened.headers["location"]


def test_a_redirect_stays_on_this_server():
    for path in ("//evil.example/x", "/\\evil.example", "/a\r\nset-cookie: x"):
        location = ask(guarded(), path=path, query=f"a=b&token={ALICE}".encode()).headers["location"]
        assert location.startswith("/")
        assert not location.startswith("//")
        assert not set("\\\r\n") & set(location)


@pytest.mark.parametrize("query", [b"token=wrong", b"token=", f"token={ALICE}&token={BOB}".encode()])
def test_a_wrong_token_in_the_address_is_refused_even_with_a_cookie(query):
    assert ask(guarded(), path="/", query=query, headers={"cookie": f"delineate-8765={ALICE}"}).status == 401


def test_a_token_in_the_address_of_another_method_is_no_token():
    assert ask(guarded(), "POST", query=b"token=" + ALICE.encode()).status == 401
    assert ask(guarded(), query=b"broken_token=" + ALICE.encode()).status == 401


def test_a_browser_is_told_in_a_page_what_to_do():
    answer = ask(guarded(), path="/", headers={"accept": "text/html,*/*"})
    assert (answer.status, answer.headers["content-type"]) == (401, "text/html; charset=utf-8")
    assert b"<code>delineate review</code>" in answer.body
    assert b"http-equiv" not in answer.body
    followed = {"accept": "text/html", "sec-fetch-site": "cross-site", "sec-fetch-dest": "document"}
    assert b'http-equiv="refresh"' in ask(guarded(), path="/", headers=followed).body


def test_the_token_may_be_a_part_of_the_path_where_that_is_allowed():
    app = guarded(token_folders=("/monai",))
    told = json.loads(ask(app, path=f"/monai/{BOB}/infer/a b").body)
    assert (told["user"], told["path"], told["raw"]) == ("bob", "/monai/infer/a b", "/monai/infer/a%20b")
    for path in (f"/api/{BOB}/x", f"/monai/{BOB}", f"/monai/{BOB}x/info/", f"/monaix/{BOB}/info/", f"/monai//{BOB}/"):
        assert ask(app, path=path).status == 401
    assert ask(guarded(), path=f"/monai/{BOB}/info/").status == 401


@pytest.mark.parametrize("host", ["127.0.0.1:8765", "localhost:8765", "[::1]:8765", "LOCALHOST:8765"])
def test_loopback_names_are_let_in(host):
    assert ask(guarded(), headers={**BEARER, "host": host}).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8765", "127.0.0.1", "127.0.0.1:80", "localhost.:8765", "", "a@localhost:8765", None],
)
def test_other_hosts_are_misdirected(host):
    answer = ask(guarded(), headers={**BEARER, "host": host})
    assert answer.status == 421
    assert "set-cookie" not in ask(guarded(), query=b"token=" + ALICE.encode(), headers={"host": host}).headers


def test_two_host_headers_are_refused():
    pairs = [(b"host", HOST.encode()), (b"host", b"evil.example"), (b"authorization", BEARER["authorization"].encode())]
    assert ask(guarded(), raw_headers=pairs).status == 421


def test_allowed_hosts_know_the_bound_address():
    assert "192.168.0.7:1" in allowed_hosts(1, "192.168.0.7")
    assert "[fe80::1]:1" in allowed_hosts(1, "fe80::1")
    assert "localhost" in allowed_hosts(80)
    assert "localhost" not in allowed_hosts(81)
    assert cookie_name("[::1]:8765") == "delineate-8765"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "BREW"])
def test_state_changes_need_the_own_origin(method):
    app = guarded()
    assert ask(app, method, headers={**BEARER, "origin": f"http://{HOST}"}).status == 200
    assert ask(app, method, headers=BEARER).status == 200  # no browser
    for origin in (
        "http://evil.example",
        "null",
        "",
        "http://localhost:8765",
        f"https://{HOST}",
        "http://127.0.0.1:3000",
    ):
        answer = ask(app, method, headers={**BEARER, "origin": origin})
        assert (answer.status, answer.detail) == (403, "requests from another site are refused")


@pytest.mark.parametrize("site", ["cross-site", "same-site", "strange"])
def test_what_the_browser_calls_another_site_is_refused(site):
    app = guarded()
    told = {**BEARER, "sec-fetch-site": site}
    assert ask(app, "POST", headers={**told, "sec-fetch-dest": "document"}).status == 403
    assert ask(app, headers={**told, "sec-fetch-dest": "image"}).status == 403
    assert ask(app, headers=told).status == 403
    assert ask(app, headers={**told, "sec-fetch-dest": "document"}).status == 200  # a link was followed
    for own in ("same-origin", "none"):
        assert ask(app, "POST", headers={**BEARER, "sec-fetch-site": own}).status == 200


def test_headers_are_on_every_response_and_cors_on_none():
    for answer in (
        ask(guarded(), headers=BEARER),
        ask(guarded()),
        ask(guarded(), headers={"host": "evil.example"}),
        ask(guarded(), query=b"token=" + ALICE.encode()),
        ask(guarded(), "OPTIONS", headers={**BEARER, "origin": "http://evil.example"}),
        ask(guarded(max_body=1), "POST", headers=BEARER, parts=(b"ab",)),
    ):
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
        assert not any(name.startswith("access-control-") for name in answer.headers)
        assert answer.headers["cache-control"] == "no-store"
    assert ask(guarded(), path="/static/x.js", headers=BEARER).headers["cache-control"] == "no-cache"
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY


def test_a_body_is_refused_by_its_stated_length_before_it_is_read():
    async def never(scope, receive, send):
        raise AssertionError("reached the app")

    app = guarded(never, max_body=10)
    for length in ("11", "9" * 30):
        answer = ask(app, "POST", headers={**BEARER, "content-length": length})
        assert (answer.status, answer.headers["connection"]) == (413, "close")
        assert answer.detail == "the body of this request may have 10 bytes at most"
    for length in ("", "-1", "+1", "1.0", "0x1", "1 2", "\u00b2"):
        assert ask(app, "POST", headers={**BEARER, "content-length": length}).status == 400
    assert (
        ask(guarded(max_body=10), "POST", headers={**BEARER, "content-length": "10"}, parts=(b"1" * 10,)).status == 200
    )
    # of a GET nobody reads the body: a client that repeats an earlier length is not turned away
    assert ask(guarded(max_body=10), headers={**BEARER, "content-length": "11"}).status == 200


def test_a_body_without_a_length_is_counted_while_it_is_read():
    app = guarded(max_body=10)
    assert ask(app, "POST", headers=BEARER, parts=(b"12345", b"67890")).status == 200
    answer = ask(app, "POST", headers={**BEARER, "content-length": "3"}, parts=(b"12345", b"67890", b"!", b"more"))
    assert answer.status == 413


def test_reading_stops_at_the_limit():
    seen = []

    async def reader(scope, receive, send):
        while True:
            seen.append((await receive())["body"])

    answer = ask(guarded(reader, max_body=10), "POST", headers=BEARER, parts=(b"12345", b"67890", b"!", b"more"))
    assert (answer.status, seen) == (413, [b"12345", b"67890"])


@pytest.mark.parametrize("swallow", [True, False])
def test_too_much_is_413_whatever_the_app_makes_of_it(swallow):
    async def careless(scope, receive, send):
        try:
            await receive()
        except Exception:
            if not swallow:
                raise
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"oops"})

    assert ask(guarded(careless, max_body=1), "POST", headers=BEARER, parts=(b"ab",)).status == 413


def test_errors_of_the_app_are_its_own():
    async def broken(scope, receive, send):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        ask(guarded(broken), headers=BEARER)


def test_limits_differ_by_path():
    app = guarded(max_body=1, larger={"/monai/": 5, "/monai/session/": 9})
    sizes = {"/api/x": 1, "/monai/infer/m": 5, "/monai/session/": 9}
    for path, size in sizes.items():
        assert ask(app, "POST", path, BEARER, parts=(b"x" * size,)).status == 200
        assert ask(app, "POST", path, BEARER, parts=(b"x" * (size + 1),)).status == 413


def test_websockets_are_refused_and_lifespan_passes():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope["type"])

    async def send(message):
        seen.append(message)

    asyncio.run(guarded(app)({"type": "websocket"}, None, send))
    asyncio.run(guarded(app)({"type": "lifespan"}, None, send))
    assert seen == [{"type": "websocket.close", "code": 1008}, "lifespan"]


def test_tokens_are_long_different_and_fit_an_address():
    made = tokens_for(["alice", "bob"])
    assert sorted(made.values()) == ["alice", "bob"]
    assert min(map(len, made)) >= 43
    guarded(tokens=made)
    for bad in ({}, {"short": "alice"}, {"has space 0123456789": "alice"}, {"semicolon;0123456789": "x"}):
        with pytest.raises(ValueError, match="tokens"):
            guarded(tokens=bad)


NAMES = st.sampled_from(
    [
        b"host",
        b"origin",
        b"cookie",
        b"authorization",
        b"content-length",
        b"sec-fetch-site",
        b"sec-fetch-dest",
        b"accept",
    ]
) | st.binary(max_size=8)
VALUES = st.binary(max_size=40) | st.sampled_from(
    [HOST.encode(), b"Bearer ", b"delineate-8765=", f"Bearer {ALICE}".encode()]
)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(
    st.sampled_from(["GET", "HEAD", "POST", "DELETE", "OPTIONS", "\x00"]),
    st.text(max_size=20).map(lambda text: "/" + text) | st.just(f"/monai/{ALICE}/"),
    st.binary(max_size=40) | st.binary(max_size=20).map(b"token=".__add__),
    st.lists(st.tuples(NAMES, VALUES), max_size=6),
)
def test_strange_requests_are_answered_and_never_with_5xx(method, path, query, headers):
    app = guarded(token_folders=("/monai",), max_body=100)
    answer = ask(app, method, path, query=query, raw_headers=[(b"host", HOST.encode()), *headers], parts=(b"x",) * 3)
    assert answer.status < 500
    allowed = dict(headers).get(b"authorization", b"").lower() == f"bearer {ALICE}".encode() or "monai" in path
    assert answer.status != 200 or allowed
    assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY


@contextmanager
def serving(app, **limits):
    """The port of a real uvicorn with `SERVER_LIMITS`, and other `limits`, around `app(port)`."""
    import uvicorn

    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
        limits = {**SERVER_LIMITS, "timeout_graceful_shutdown": 1, **limits}
        server = uvicorn.Server(uvicorn.Config(app(port), log_level="critical", lifespan="off", **limits))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield port
        finally:
            server.should_exit = True
            thread.join(10)


def guarded_at(app, **options):
    return lambda port: guarded(app, hosts=allowed_hosts(port), **options)


def test_a_stream_is_not_held_back_and_a_client_that_leaves_is_noticed():
    left, go_on = threading.Event(), threading.Event()

    async def stream(scope, receive, send):
        await receive()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"data: 2\n\n", "more_body": True})
        if (await receive())["type"] == "http.disconnect":
            left.set()

    with serving(guarded_at(stream)) as port:
        client = HTTPConnection("127.0.0.1", port, timeout=30)
        client.request("GET", "/progress", headers=BEARER)
        response = client.getresponse()
        assert response.read1(100) == b"data: 1\n\n"  # before the second was even sent
        go_on.set()
        assert response.read1(100) == b"data: 2\n\n"
        response.close()
        client.close()
        assert left.wait(30)


def test_chunked_floods_end_in_413_on_a_real_socket():
    with serving(guarded_at(echo, max_body=100_000)) as port:
        client = HTTPConnection("127.0.0.1", port, timeout=30)
        client.request("POST", "/x", body=iter([b"x" * 70_000] * 2), headers=BEARER, encode_chunked=True)
        response = client.getresponse()
        assert (response.status, response.headers["connection"]) == (413, "close")
        client.close()
        client.request("POST", "/x", body=iter([b"x" * 50_000] * 2), headers=BEARER, encode_chunked=True)
        assert json.loads(client.getresponse().read())["bytes"] == 100_000
        client.close()


def test_the_server_itself_refuses_headers_without_end():
    with serving(guarded_at(echo)) as port, socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(b"GET / HTTP/1.1\r\nhost: localhost\r\nx: ")
        client.sendall(b"x" * (SERVER_LIMITS["h11_max_incomplete_event_size"] + 1))
        assert client.recv(100).startswith(b"HTTP/1.1 400")
