"""`delineate serve`."""

import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delineate.cli.options import (
    AdapterOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    ThreadsOption,
    number,
)
from delineate.cli.review import HIGHEST_PORT, LOOPBACK, answering_of, listening_on, names_of
from delineate.cli.telling import as_json_lines, out, say
from delineate.errors import DelineateError

if TYPE_CHECKING:
    import socket

    from delineate.serve.service import Service

LOGS = ("text", "json")
MIB, GIB = 1 << 20, 1 << 30


class ServeError(DelineateError):
    """The server cannot be started."""


def serve(
    model: ModelOption = None,
    adapter: AdapterOption = None,
    tokens: Annotated[
        Path | None,
        typer.Option(
            envvar="DELINEATE_TOKENS_FILE",
            help="File with a line `name token` for each who may ask; else the variable DELINEATE_TOKENS, with such "
            "lines. Without either a token is made and printed.",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others can reach what is not loopback.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=HIGHEST_PORT, help="0 takes one that is free.")] = 8000,
    name: Annotated[
        list[str] | None,
        typer.Option(help="A name by which others ask for it, as behind a proxy: scans.example.org; repeat for more."),
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(help="Folder for answers of jobs and what is being made (else a temporary one, gone at the end)."),
    ] = None,
    waiting: Annotated[int, typer.Option(min=1, max=256, help="Requests worked on or waiting; more get a 503.")] = 16,
    minutes: Annotated[float, number(0.01, 1440, "For a request, waiting included.")] = 10.0,
    rate: Annotated[int, typer.Option(min=1, max=1_000_000, help="Requests a token may make a minute.")] = 600,
    upload_mib: Annotated[int, typer.Option(min=1, max=1 << 20, help="MiB that a request may send.")] = 512,
    keep_hours: Annotated[float, number(0.001, 10_000, "How long answers of jobs are kept.")] = 1.0,
    keep_gib: Annotated[float, number(0.001, 100_000, "GiB that they may take together; the oldest goes.")] = 4.0,
    grace: Annotated[float, number(0, 3600, "Seconds that what is begun gets on SIGTERM.")] = 30.0,
    log: Annotated[str, typer.Option(help="What lines on standard error look like: text or json.")] = "text",
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Answer scans over HTTP for other programs: several at once, one model in memory, MONAI Label's protocol too."""
    if log not in LOGS:
        raise typer.BadParameter(f"--log is one of {', '.join(LOGS)}; got '{log}'")
    _need_extra()
    from delineate.serve.service import Limits, Service
    from delineate.storage.swapping import locked, make_folder

    users, made = _tokens(tokens)
    if log == "json":
        as_json_lines()
    answering = answering_of(model, adapter, threads, device)
    folder = results if results is not None else Path(tempfile.mkdtemp(prefix="delineate-serve-"))
    keep = {"keep_seconds": keep_hours * 3600, "keep_bytes": int(keep_gib * GIB)}
    limits = Limits(waiting, minutes * 60, rate, upload_mib * MIB, grace=grace, **keep)
    try:
        make_folder(folder)
        with locked(folder, "serves from it"):
            service = Service(answering, folder, limits)
            tempfile.tempdir = str(service.results.work)  # uploads lie on the same disk, and are swept with the rest
            _run(service, users, made, listening_on(host, port), host, name or [], as_json)
    finally:
        tempfile.tempdir = None
        if results is None:
            shutil.rmtree(folder, ignore_errors=True)
    _leave()


def _leave() -> None:
    """End at once: all is written, a thread that computes cannot be ended otherwise, and torch takes seconds to go."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _need_extra() -> None:
    try:
        import fastapi  # noqa: F401  # whether it is there
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ServeError(
            f"`delineate serve` needs more packages ({error.name}); run: pip install 'delineate[serve]'"
        ) from error


def _tokens(file: Path | None) -> tuple[dict[str, str], str | None]:
    """Who may ask, token -> name; and the token that was made where none was given."""
    from delineate.review.safety import tokens_for
    from delineate.serve.tokens import VARIABLE, TokenError, parse_tokens, read_tokens

    if file is not None:
        try:
            return read_tokens(file), None
        except OSError as error:
            raise TokenError(f"--tokens {file}: {error.strerror or error}; name a file that can be read") from error
    if given := os.environ.pop(VARIABLE, ""):  # what is started from here need not know them
        return parse_tokens(given, VARIABLE), None
    made = tokens_for(["token-1"])
    return made, next(iter(made))


def _run(
    service: "Service",
    users: dict[str, str],
    made: str | None,
    listening: "socket.socket",
    host: str,
    public: list[str],
    as_json: bool,
) -> None:
    """Listen until Ctrl-C or SIGTERM, and then finish what is begun."""
    import uvicorn

    from delineate.review.connections import SERVER_LIMITS
    from delineate.review.safety import allowed_hosts
    from delineate.serve.app import create_app, guarded
    from delineate.serve.places import Ending

    failed: list[Exception] = []

    def on_failure(error: Exception) -> None:
        failed.append(error)
        server.should_exit = True

    port = listening.getsockname()[1]
    names = names_of(host)
    asked_by = {one.lower() for one in public}
    hosts = allowed_hosts(port, *names) | asked_by | {f"{one}:{port}" for one in asked_by if ":" not in one}
    origins = frozenset(f"https://{one}" for one in asked_by)
    app = guarded(create_app(service, on_failure), service, tokens=users, hosts=hosts, origins=origins)
    own: dict[str, Any] = {**SERVER_LIMITS, "timeout_graceful_shutdown": 10}
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", log_config=None, **own))

    def finish() -> None:
        if not service.places.empty(service.limits.grace):
            service.places.stop_all(Ending("the server is being stopped; ask again when it is back", 10))
            service.places.empty(5)
        server.should_exit = True

    def stop(*told: object) -> None:
        if service.places.ending:  # told twice: at once
            server.should_exit = True
            return
        service.places.ending = True
        threading.Thread(target=finish, daemon=True).start()

    server.handle_exit = stop  # type: ignore[method-assign]  # uvicorn's own stops listening at once, so nobody could be told
    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, stop)
    shown = f"[{names[0]}]" if ":" in names[0] else names[0]
    url = f"http://{shown}:{port}"
    if as_json:
        sys.stdout.write(json.dumps({"url": url, "token": made, "users": sorted(users.values())}) + "\n")
        sys.stdout.flush()
    else:
        out.print(url, soft_wrap=True)
        if made is not None:
            out.print(f"token: {made}", soft_wrap=True)
    if host not in LOOPBACK:
        say(f"delineate: others can reach {shown}, and nothing is encrypted; put a proxy with TLS in front of it")
    server.run(sockets=[listening])
    if failed:
        raise failed[0]
    say("delineate: stopped")
