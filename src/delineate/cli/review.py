"""`delineate review`."""

import contextlib
import getpass
import json
import os
import signal
import socket
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from delineate.cli.options import (
    AdapterOption,
    DeviceOption,
    JsonOption,
    ModalityOption,
    ModelOption,
    ThreadsOption,
    VolumeOption,
    compute,
)
from delineate.cli.telling import out, say
from delineate.errors import DelineateError

if TYPE_CHECKING:
    from delineate.review.asking import Answering
    from delineate.review.cases import ReviewCase
    from delineate.review.desk import Desk
    from delineate.segmenter import Segmenter

HIGHEST_PORT = 65535
VIEWER = Path(__file__).parents[1] / "review" / "static" / "vendor" / "niivue.umd.js"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
EVERYWHERE = ("0.0.0.0", "::")


class ReviewError(DelineateError):
    """The review server cannot be started."""


def review(
    path: Annotated[
        Path,
        typer.Argument(
            help="A folder that `delineate segment` wrote, a scan (NIfTI, NRRD, DICOM, PNG, …), or a folder of scans."
        ),
    ],
    model: ModelOption = None,
    adapter: AdapterOption = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to keep what is made of scans (<stem>-review in this folder)."),
    ] = None,
    modality: ModalityOption = None,
    volume: VolumeOption = None,
    series: Annotated[
        str | None, typer.Option(metavar="NUMBER|UID", help="Which series of a DICOM folder that holds several.")
    ] = None,
    fill_gaps: Annotated[
        bool,
        typer.Option("--fill-gaps", help="Make up missing DICOM slices, resample uneven ones."),
    ] = False,
    layer: Annotated[
        list[Path] | None,
        typer.Option(
            help="Masks of others to begin with, for one scan: DICOM SEG, RT Structure Set or label map; repeat it."
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=HIGHEST_PORT, help="0 takes one that is free.")] = 0,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others can reach what is not loopback.")
    ] = "127.0.0.1",
    user: Annotated[
        list[str] | None, typer.Option(help="Who may work here, each by an address of their own; repeat for several.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in the browser.")] = True,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Look at answers on a local page, ask again, correct with a brush, and keep masks with their provenance."""
    _need_extra()
    from delineate.review.cases import find_cases
    from delineate.storage.files import safe_name
    from delineate.storage.hidden import hidden_in

    users = user or [_login()]
    for name in users:
        if (found := hidden_in(name)) is not None or not name.strip():
            raise typer.BadParameter(
                f"--user must be a name that is seen, found {found or 'none'}; name yourself otherwise"
            )
    if len({safe_name(name) for name in users}) < len(users):
        raise typer.BadParameter(f"--user names must differ in letters and digits; got {', '.join(users)}")
    reading = {"modality": modality, "volume": volume, "series": series, "fill_gaps": fill_gaps}
    cases = find_cases(path, output, on_left_out=lambda line: say(f"delineate: {line}"), **reading)
    there = [case for case in cases if case.file.exists()]
    if len(cases) == 1 or not there:
        _ = cases[0].info  # what is wrong with the only scan is said now, in one line
    for case in cases:
        if case not in there:
            say(f"delineate: {case.file}: the scan of '{case.name}' is not there; the other cases can be opened")
    if layer and len(cases) > 1:
        raise typer.BadParameter(f"--layer is for one scan, and there are {len(cases)}; name one of them")
    answering = answering_of(model, adapter, threads, device)
    _serve(cases, answering, users, host, port, layers=layer or (), browser=browser, as_json=as_json)


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container without users
        return "reviewer"


def _need_extra() -> None:
    try:
        import fastapi  # noqa: F401  # whether it is there
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ReviewError(
            f"`delineate review` needs more packages ({error.name}); run: pip install 'delineate[review]'"
        ) from error
    if not VIEWER.is_file():
        raise ReviewError(
            "this installation lacks the viewer of the page, which is fetched by npm when delineate is installed from "
            "its sources; install npm, and install delineate again"
        )


def answering_of(model: Path | None, adapter: Path | None, threads: int | None, device: str) -> "Answering":
    """Who answers; nothing heavy is loaded until somebody asks."""
    from delineate.model_folder import calibration_hash, check_model, fingerprint, read_vocabulary
    from delineate.review.asking import Answering
    from delineate.review.schema import Model

    folder, config = check_model(model)
    vocabulary, adapter_hash = read_vocabulary(folder), None
    if adapter is not None:
        from delineate.adapters.folder import fingerprint as adapter_fingerprint
        from delineate.adapters.folder import read_adapter

        read_adapter(adapter)
        vocabulary, adapter_hash = read_vocabulary(adapter), adapter_fingerprint(adapter)
    if threads is not None or device != "auto":
        compute(threads, device)  # a device that cannot be used is refused now

    def load() -> "Segmenter":
        from delineate.segmenter import Segmenter

        return Segmenter.load(folder, compute(threads, device), adapter)

    name = "house" if model is None else Path(model).name
    asked = {
        "model": name,
        "system": config["system"],
        "model_sha256": fingerprint(folder),
        "adapter_sha256": adapter_hash,
        "calibration_sha256": calibration_hash(folder if adapter is None else adapter),
    }
    return Answering(load, vocabulary, Model(name=name, fingerprint=asked["model_sha256"]), asked)


def _serve(
    cases: Sequence["ReviewCase"],
    answering: "Answering",
    users: Sequence[str],
    host: str,
    port: int,
    *,
    layers: Sequence[Path] = (),
    browser: bool,
    as_json: bool,
) -> None:
    """Listen until Ctrl-C or SIGTERM."""
    import uvicorn

    from delineate.review.app import create_app
    from delineate.review.connections import SERVER_LIMITS
    from delineate.review.desk import Desk
    from delineate.review.monai_label import FOLDER, LARGER
    from delineate.review.safety import allowed_hosts, guard, tokens_for

    listening = listening_on(host, port)
    port = listening.getsockname()[1]
    tokens = tokens_for(users)
    names = names_of(host)
    shown = f"[{names[0]}]" if ":" in names[0] else names[0]
    urls = {name: f"http://{shown}:{port}/?token={token}" for token, name in tokens.items()}
    desk = Desk(cases, answering)
    for file in layers:
        _put(desk, file, users)
    app = guard(
        create_app(desk), tokens=tokens, hosts=allowed_hosts(port, *names), larger=LARGER, token_folders=(FOLDER,)
    )
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **SERVER_LIMITS))
    if host not in LOOPBACK:
        say(f"delineate: others can reach {shown}, and what goes over the network is not encrypted; tunnel it (ssh -L)")
    if as_json:
        sys.stdout.write(json.dumps({"url": urls[users[0]], "users": urls}) + "\n")
        sys.stdout.flush()
    else:
        for name, url in urls.items():
            out.print(url if len(urls) == 1 else f"{name}: {url}", soft_wrap=True, markup=False)
        folders = list(dict.fromkeys(case.folder if len(cases) == 1 else case.place.parent for case in cases))
        say(f"delineate: what is made there is kept in {', '.join(map(str, folders))}; Ctrl-C ends this")
    if browser:
        webbrowser.open(urls[users[0]])

    def stop(*told: object) -> None:  # uvicorn has handlers of its own while it runs, and passes on what they caught
        server.should_exit = True

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, stop)
    server.run(sockets=[listening])
    if not desk.close():
        os._exit(0)  # a thread that loads or computes cannot be ended otherwise; all that was told is on the disk


def _put(desk: "Desk", file: Path, users: Sequence[str]) -> None:
    """The masks in a file as layers of everybody, with a line of what came."""
    from delineate.review.layers import put_layers, read_layers

    (case,) = desk.cases.values()
    named, notes = read_layers(file, case.scan())
    for note in notes:
        say(f"delineate: {file}: {note}")
    for user in users:
        added = put_layers(desk.place(user, case.id), file, named)
        who = f" for {user}" if len(users) > 1 else ""
        again = f"was added before{who}; its layers are as they were left"
        what = f"layers{who}: {', '.join(added)}" if added else again
        say(f"delineate: {file}: {what}")


def names_of(host: str) -> list[str]:
    """What the server may be called by: the address, or, where it listens on all of them, this machine's names."""
    if host not in EVERYWHERE:
        return [host]
    own = socket.gethostname()
    with contextlib.suppress(OSError):
        return list(dict.fromkeys([own, socket.getfqdn(), *socket.gethostbyname_ex(own)[2], host]))
    return [own, host]


def listening_on(host: str, port: int) -> socket.socket:
    """A socket bound to the address; its port is known before anybody is told."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(128)  # the browser may come before the server is up
        except OSError:
            listening.close()
            raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise ReviewError(f"cannot listen on {host}, port {port}: {reason}; choose another --port or --host") from error
    return listening
