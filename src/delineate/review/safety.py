"""Who may talk to the review server: tokens, Host, Origin, sizes of bodies, headers. Plain ASGI: streams stay so.

What it keeps out, and by which rule:

* another person on the machine or the network: every request needs a token, and a token is a user;
* a page of another site in the same browser: the cookie is SameSite=Strict, state changes need the own Origin, and what
  the browser itself calls cross-site (or of another port of this machine) is refused unless it opens a page;
* a site that points its name at this machine (DNS rebinding): the Host must be one that was allowed;
* floods: a body is refused by its stated length before it is read, and by its true length while it is read. What comes
  before a whole request is the affair of `delineate.review.connections`.
"""

import hmac
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from hashlib import sha256
from html import escape
from typing import Any
from urllib.parse import parse_qsl, quote

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MIB = 1024**2
MAX_BODY = 16 * MIB  # a brush stroke over a large volume is some hundred kilobytes of JSON
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
OPENED = "open the address that `delineate review` printed"
REFUSED = {401: f"a token is needed: {OPENED}", 421: f"this server is not known by that name; {OPENED}"}
READING = frozenset({"GET", "HEAD", "OPTIONS"})  # methods that change nothing
BODIES = frozenset({"POST", "PUT", "PATCH"})

ADMITTED = (
    "delineate.admitted"  # the ASGI extension of a server that wants to know which connections have shown a token
)

# 'unsafe-inline' and 'unsafe-eval' are not here: no page of ours needs them.
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}


def tokens_for(users: Iterable[str]) -> dict[str, str]:
    """A new secret token for every user: token -> user. 256 random bits, letters that a URL and a cookie can hold."""
    return {secrets.token_urlsafe(32): user for user in users}


def allowed_hosts(port: int, *bound: str) -> frozenset[str]:
    """The Host headers to accept on `port`: the loopback names and the addresses `bound` to.

    >>> sorted(allowed_hosts(8765, "192.168.0.7"))
    ['127.0.0.1:8765', '192.168.0.7:8765', '[::1]:8765', 'localhost:8765']
    """
    names = {*LOOPBACK, *(f"[{name}]" if ":" in name and not name.startswith("[") else name for name in bound)}
    return frozenset(f"{name.lower()}:{port}" for name in names) | (names if port == 80 else frozenset())


def guard(
    app: App,
    *,
    tokens: Mapping[str, str],
    hosts: frozenset[str],
    max_body: int = MAX_BODY,
    larger: Mapping[str, int] | None = None,
    token_folders: tuple[str, ...] = (),
    origins: frozenset[str] = frozenset(),
    pages: bool = True,
    refused: Mapping[int, str] = REFUSED,
) -> App:
    """`app` behind the rules of this module; the user is in `scope["state"]["user"]` (`request.state.user`).

    A refusal is one line of JSON, `{"detail": …}`, or a short page where a browser asks for a page.

    Args:
        app: any ASGI app; websockets are refused.
        tokens: token -> user, as `tokens_for` makes them.
        hosts: see `allowed_hosts`.
        max_body: bytes that a request may send.
        larger: other limits for paths that start with a prefix, such as those of uploads; the longest prefix counts.
        token_folders: such as "/monai": there the token may be a part of the path, "/monai/<token>/info/", for clients
            that are given an address and can send nothing else. The app sees "/monai/info/".
        origins: of pages that may change something besides those of this server, such as those that a proxy hands out
            under the name that both have; whoever serves one is trusted as this server is.
        pages: whether a browser is let in by the opened address, and by a cookie from then on.
        refused: what is told, by status, to whoever has no token (401) or asks by another name (421).
    """
    if not tokens or any(len(token) < 16 or quote(token, safe="") != token for token in tokens):
        raise ValueError("tokens must be given, 16 or more letters each, of those that a URL can hold; see tokens_for")
    known = tuple((_digest(token), user) for token, user in tokens.items())
    return _Guard(app, known, hosts, max_body, larger, token_folders, origins, pages, refused)


class _BodyTooLarge(Exception):
    """Raised into the app while it reads; whatever it makes of it, the answer is 413."""


@dataclass(eq=False)
class _Refusal(Exception):
    status: int
    detail: str


@dataclass(frozen=True)
class _Guard:
    app: App
    tokens: tuple[tuple[bytes, str], ...]
    hosts: frozenset[str]
    max_body: int
    larger: Mapping[str, int] | None
    token_folders: tuple[str, ...]
    origins: frozenset[str]
    pages: bool
    refused: Mapping[int, str]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008})
        send = _with_headers(send, scope["path"])
        try:
            host = self._host(scope)
            _check_origin(scope, host, self.origins)
            cookie = cookie_name(host)
            if self.pages and (token := self._token_in_url(scope)) is not None:
                _admit(scope)
                return await _redirect(scope, send, cookie, token)
            scope, user = self._user_in_path(scope)
            user = user or self._user(scope, cookie)
            if user is None:
                raise _Refusal(401, self.refused[401])
            _admit(scope)
            limit = self._limit(scope["path"])
            _check_length(scope, limit)
        except _Refusal as refusal:
            return await _refuse(scope, send, refusal)
        return await self._pass_on({**scope, "state": {**scope.get("state", {}), "user": user}}, receive, send, limit)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """The app, which is cut off once more than `limit` bytes have come in."""
        read, started = 0, False

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > limit:
                raise _BodyTooLarge
            return message

        async def forward(message: Message) -> None:
            nonlocal started
            if read > limit and not started:
                return  # the app's own words about a body that was cut off
            started = True
            await send(message)

        try:
            await self.app(scope, counted, forward)
        except Exception:
            if read <= limit:
                raise
        if read > limit and not started:
            await _refuse(scope, send, _too_large(limit))

    def _host(self, scope: Scope) -> str:
        named = _values(scope, b"host")
        host = named[0].decode("latin-1").lower() if len(named) == 1 else ""
        if host not in self.hosts:
            raise _Refusal(421, self.refused[421])
        return host

    def _user_of(self, token: bytes) -> str | None:
        """Every token is compared, in constant time, so that the time taken tells nothing."""
        digest, found = sha256(token).digest(), None
        for known, user in self.tokens:
            if hmac.compare_digest(known, digest):
                found = user
        return found

    def _user(self, scope: Scope, cookie: str) -> str | None:
        for value in _values(scope, b"authorization"):
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer":
                return self._user_of(token.strip())
        for header in _values(scope, b"cookie") if self.pages else ():
            for pair in header.split(b";"):
                name, _, token = pair.strip().partition(b"=")
                if name == cookie.encode() and (user := self._user_of(token)) is not None:
                    return user
        return None

    def _user_in_path(self, scope: Scope) -> tuple[Scope, str | None]:
        """The user of a token in the path, and the scope without it."""
        for folder in self.token_folders:
            if scope["path"].startswith(folder + "/"):
                token, slash, rest = scope["path"][len(folder) + 1 :].partition("/")
                if slash and (user := self._user_of(token.encode("utf-8", "replace"))) is not None:
                    path = f"{folder}/{rest}"
                    return {**scope, "path": path, "raw_path": quote(path, errors="replace").encode()}, user
        return scope, None

    def _token_in_url(self, scope: Scope) -> str | None:
        """The right token of an opened address; None where there is none in it. A wrong one is refused."""
        if scope["method"] != "GET" or b"token=" not in scope.get("query_string", b""):
            return None
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if not given:
            return None
        if len(given) > 1 or self._user_of(given[0].encode("utf-8", "replace")) is None:
            raise _Refusal(
                401, "this token is not one of this run; open the address that `delineate review` printed last"
            )
        return given[0]

    def _limit(self, path: str) -> int:
        prefixes = [prefix for prefix in self.larger or {} if path.startswith(prefix)]
        return (self.larger or {})[max(prefixes, key=len)] if prefixes else self.max_body


def _admit(scope: Scope) -> None:
    """Tell the server, where it wants to know, that this connection has shown a right token."""
    if (extension := scope.get("extensions", {}).get(ADMITTED)) is not None:
        extension["tell"]()


def cookie_name(host: str) -> str:
    """The name of the cookie on `host`: cookies know no ports, so the port is in the name."""
    return f"delineate-{host.rpartition(':')[2] if ':' in host else 80}"


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()


def _values(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key.lower() == name]


def _check_origin(scope: Scope, host: str, origins: frozenset[str]) -> None:
    """Refuse what another site asks for: by Fetch Metadata where the browser sends them, else by Origin."""
    if scope["method"] not in READING:
        for origin in _values(scope, b"origin"):
            if origin.decode("latin-1").lower() not in {f"{scope.get('scheme', 'http')}://{host}", *origins}:
                raise _Refusal(403, "requests from another site are refused")
    for site in _values(scope, b"sec-fetch-site"):
        opens_page = scope["method"] == "GET" and _values(scope, b"sec-fetch-dest") == [b"document"]
        if site not in (b"same-origin", b"none") and not opens_page:
            raise _Refusal(403, "requests from another site are refused")


def _check_length(scope: Scope, limit: int) -> None:
    # a GET may state a length that is not its own: MONAI Label's client repeats that of the request before
    for length in _values(scope, b"content-length") if scope["method"] in BODIES else ():
        if not length.isdigit():
            raise _Refusal(400, "the Content-Length must be a number")
        if len(length) > 18 or int(length) > limit:
            raise _too_large(limit)


def _too_large(limit: int) -> _Refusal:
    return _Refusal(413, f"the body of this request may have {limit:,} bytes at most")


def _with_headers(send: Send, path: str) -> Send:
    """`send`, with our headers on every response, in place of any of the same name, and without CORS headers."""
    ours = dict(HEADERS)
    ours["cache-control"] = "no-cache" if path.startswith("/static/") else "no-store"
    added = [(name.encode(), value.encode()) for name, value in ours.items()]
    ours_names = {name for name, _ in added}

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            kept = [
                (name, value)
                for name, value in message.get("headers", ())
                if name.lower() not in ours_names and not name.lower().startswith(b"access-control-")
            ]
            message = {**message, "headers": [*kept, *added]}
        await send(message)

    return sending


async def _redirect(scope: Scope, send: Send, cookie: str, token: str) -> None:
    """To the same page without the token, which becomes a cookie."""
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    headers = {
        "location": "/"
        + quote(scope["path"].lstrip("/\\"), errors="replace"),  # one slash, so that it names no other host
        "set-cookie": f"{cookie}={token}; HttpOnly; SameSite=Strict; Path=/{secure}",
        "content-length": "0",
    }
    await _respond(send, 303, headers, b"")


async def _refuse(scope: Scope, send: Send, refusal: _Refusal) -> None:
    wants_page = scope["method"] == "GET" and any(b"text/html" in value for value in _values(scope, b"accept"))
    if wants_page:
        body, kind = _page(scope, refusal).encode(), "text/html; charset=utf-8"
    else:
        body, kind = (json.dumps({"detail": refusal.detail}) + "\n").encode(), "application/json"
    headers = {"content-type": kind, "content-length": str(len(body)), "connection": "close"}  # the body is not read
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    await _respond(send, refusal.status, headers, b"" if scope["method"] == "HEAD" else body)


def _page(scope: Scope, refusal: _Refusal) -> str:
    # A link on another site was followed: the browser keeps the strict cookie back, but sends it from a page of ours.
    followed = refusal.status == 401 and _values(scope, b"sec-fetch-site") in ([b"cross-site"], [b"same-site"])
    again = '<meta http-equiv="refresh" content="0">' if followed and not scope.get("query_string") else ""
    detail = escape(refusal.detail).replace("`delineate review`", "<code>delineate review</code>")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>delineate</title>{again}</head>'
        f"<body><h1>This page is closed</h1><p>{detail[0].upper()}{detail[1:]}.</p></body></html>\n"
    )


async def _respond(send: Send, status: int, headers: Mapping[str, str], body: bytes) -> None:
    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
