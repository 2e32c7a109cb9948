"""The server in the shape of MONAI Label, so that its clients (3D Slicer's extension, its Python client) can ask it.

Their way: `GET info/` tells of models and labels; a scan is one of the server's (`activelearning/next` names it,
`datastore/image` sends it) or is sent to a `session/`; `infer/<model>` answers with a label map; `datastore/label`
keeps one that a person corrected. Here a case is known by its id, no path ever leaves or enters, and what is kept goes
into the person's own layers, with its provenance.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Body, Depends, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response

from delineate import __version__
from delineate.review import schema
from delineate.review.cases import scan_as_nifti
from delineate.review.desk import Desk
from delineate.review.monai_desk import (
    CLICKS,
    WORDS,
    Compute,
    LabelParams,
    MonaiDesk,
    MonaiError,
    Params,
    label_file,
    read_params,
    seg_file,
)
from delineate.review.uploads import SESSION_SECONDS, Session, labels_sent, scan_sent
from delineate.review.work import NotHere
from delineate.scans.scan import Scan
from delineate.storage.files import safe_name

FOLDER = "/monai"  # clients are given http://127.0.0.1:PORT/monai/TOKEN; see `safety.guard`
MAX_UPLOAD = 1024**3  # bytes of a request that sends a scan or a label map, which goes to the disk as it comes
LARGER = {f"{FOLDER}/{part}/": MAX_UPLOAD for part in ("datastore", "infer", "session")}
STRATEGY = "next"
BINARY = {"schema": {"type": "string", "format": "binary"}}
OBJECT = {"schema": {"type": "object"}}
KINDS = ("multipart/form-data", "application/json", "application/octet-stream", "application/dicom")

Json = dict[str, Any]
ParamsText = Annotated[str, Form(max_length=1_000_000)]


def _user(request: Request) -> str:
    return request.state.user


User = Annotated[str, Depends(_user)]


Working = Callable[[Request], AbstractContextManager[Compute]]


def router(desk: Desk, working: Working | None = None) -> APIRouter:
    """The endpoints, below `FOLDER`, of a desk.

    Args:
        desk: its cases, and who answers.
        working: what surrounds the work on a scan, from reading it to writing the answer; says who computes. None: one
            question a person, and one at a time.
    """
    at = MonaiDesk(desk)

    @contextmanager
    def one_at_a_time(request: Request) -> Iterator[Compute]:
        yield lambda work: at.alone(request.state.user, work)

    working = working or one_at_a_time
    problems: Mapping[int | str, Json] = {status: {"model": schema.Problem} for status in (400, 404, 409, 422)}
    routes = APIRouter(prefix=FOLDER, tags=["MONAI Label"], responses=dict(problems))

    @routes.get("/auth/")
    def auth() -> Json:
        """Whether a client has to log in: whoever gets here has shown a token."""
        return {"enabled": False}

    @routes.get("/info/")
    def info(user: User) -> Json:
        """Models, labels and cases."""
        return _info(at, user)

    @routes.post("/activelearning/{strategy}")
    def sample(strategy: str, user: User, params: Annotated[Json | None, Body()] = None) -> Json:
        """The next case that this person has kept no mask of; nothing where there is none."""
        if strategy != STRATEGY:
            raise NotHere(f"no such strategy here; there is '{STRATEGY}'")
        case = at.next_case(user)
        # no "path": clients would look for it on their own disk
        return {} if case is None else {"id": case, "name": f"{safe_name(desk.cases[case].name)}.nii.gz"}

    @routes.get("/datastore/")
    def datastore(user: User, output: Literal["stats", "all"] = "stats") -> Json:
        """How many cases there are, or which."""
        if output == "stats":
            return at.status(user)
        objects = {
            id_: {"image": {"ext": ".nii.gz", "info": {"name": case.name}}, "labels": {}}
            for id_, case in desk.cases.items()
        }
        return {"name": "delineate", "description": "cases of delineate review", "objects": objects}

    @routes.get("/datastore/image", response_class=Response, responses={200: {"content": {"application/gzip": BINARY}}})
    def image(image: str) -> Response:
        """The scan of a case, as NIfTI."""
        return Response(scan_as_nifti(_case(desk, image)), media_type="application/gzip")

    @routes.put("/datastore/label")
    def keep(image: str, user: User, label: UploadFile, params: ParamsText = "{}") -> Json:
        """Keep a label map: each name becomes a layer of this person, saved with its provenance."""
        told = read_params(LabelParams, params)
        scan = _case(desk, image)
        labels = labels_sent(label.file, label.filename, scan)
        return {"image": image, "label": image, "layers": at.keep(desk.place(user, image), labels, told.label_info)}

    @routes.put("/session/")
    def open_session(request: Request, user: User, files: list[UploadFile]) -> Json:
        """Send a scan, to be asked about for a while."""
        if len(files) != 1:
            raise MonaiError(f"a session is one file; got {len(files)}. Send a volume as NIfTI")
        with working(request):
            session = at.sessions.add(user, scan_sent(files[0].file, files[0].filename))
        return {"session_id": session.id, "session_info": _told(session)}

    @routes.get("/session/{session}")
    def session(session: str, user: User) -> Json:
        """A session that is still open."""
        return _told(at.sessions.get(user, session))

    @routes.delete("/session/{session}")
    def close_session(session: str, user: User) -> Json:
        """Forget a scan."""
        return _told(at.sessions.remove(user, session))

    answered: dict[int | str, Json] = {
        200: {"content": {kind: OBJECT if kind == "application/json" else BINARY for kind in KINDS}}
    }

    @routes.post("/infer/{model}", response_class=Response, responses=answered)
    def infer(
        request: Request,
        model: str,
        user: User,
        image: str = "",
        session_id: str = "",
        output: Literal["image", "json", "all", "dicom_seg"] = "all",
        params: ParamsText = "{}",
        file: UploadFile | None = None,
    ) -> Response:
        """The label map of a case, of a scan in a session, or of one that is sent along."""
        asked = read_params(Params, params)
        with working(request) as compute:
            if file is not None:
                scan = scan_sent(file.file, file.filename)
                key = f"sent {secrets.token_hex(8)}"
            elif session_id:
                scan, key = at.sessions.get(user, session_id).scan, f"session {session_id}"
            else:
                scan, key = _case(desk, image), image
            labels, told = at.infer(key, scan, model, asked, compute)
            return _answer(labels, told, scan, output, asked)

    return routes


def _answer(labels: np.ndarray, told: Json, scan: Scan, output: str, asked: Params) -> Response:
    """A label map in the shape that was asked for."""
    if output == "json":
        return JSONResponse(told)
    if output == "dicom_seg":
        return Response(seg_file(labels, scan, told["label_names"]), media_type="application/dicom")
    name, data = f"label{asked.result_extension}", label_file(labels, scan, asked.result_extension)
    if output == "all":
        return _multipart(told, data, name)
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(data, media_type="application/octet-stream", headers=headers)


def _case(desk: Desk, case: str) -> Scan:
    if case not in desk.cases:
        raise NotHere("no such case here; 'datastore/?output=all' lists those there are")
    return desk.cases[case].scan()


def _told(session: Session) -> Json:
    times = {"create_ts": int(session.made), "last_access_ts": int(session.used), "expiry": int(SESSION_SECONDS)}
    return {"name": session.id, "meta": {}, **times}


def _info(at: MonaiDesk, user: str) -> Json:
    config = {"prompt": "", "proposals": 8, "seed": 0}
    values = {name: value for value, name in enumerate(at.names, start=1)}
    about = {"labels": values, "dimension": 3}
    words = "The names in 'prompt' (liver, spleen), or all that fit the scan: the consensus of several proposals."
    clicks = "One name, known or not, corrected by clicks inside and outside of it."
    return {
        "name": "delineate",
        "description": "Masks by name with their doubt. A research tool, not a medical device.",
        "version": __version__,
        "labels": list(at.names),
        "models": {
            WORDS: {"type": "segmentation", **about, "description": words, "config": config},
            CLICKS: {
                "type": "deepgrow",
                **about,
                "description": clicks,
                "config": {name: config[name] for name in ("proposals", "seed")},
            },
        },
        "trainers": {},
        "strategies": {STRATEGY: {"description": "The next case without a saved mask of yours", "config": {}}},
        "scoring": {},
        "train_stats": {},
        "datastore": at.status(user),
    }


def _multipart(told: dict[str, Any], image: bytes, name: str) -> Response:
    """JSON and a file as multipart/form-data, as MONAI Label's clients take a label map apart."""
    boundary = secrets.token_hex(16)
    parts = (
        ('name="params"', "application/json", json.dumps(told).encode()),
        (f'name="image"; filename="{name}"', "application/octet-stream", image),
    )
    body = b"".join(
        f"--{boundary}\r\nContent-Disposition: form-data; {about}\r\nContent-Type: {kind}\r\n\r\n".encode()
        + data
        + b"\r\n"
        for about, kind, data in parts
    )
    return Response(body + f"--{boundary}--\r\n".encode(), media_type=f"multipart/form-data; boundary={boundary}")
