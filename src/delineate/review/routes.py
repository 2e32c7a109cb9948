"""What can be asked over HTTP, under /api; `delineate.review.schema` has the words."""

import asyncio
import gzip
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from delineate.review import schema
from delineate.review.cases import doubt_as_nifti, scan_as_nifti
from delineate.review.desk import Desk, Place, Stale
from delineate.review.runs import encode_runs
from delineate.review.saving import SUFFIXES, Source, file_of
from delineate.storage.files import safe_name

NIFTI = "application/gzip"
RUNS = "application/octet-stream"
STREAM = "text/event-stream"
MEDIA: dict[schema.Format, str] = {"nifti": NIFTI, "png": "image/png", "seg": "application/dicom"}
BEAT = 1.0  # seconds without news after which the state is told again
LOOK = 0.05  # seconds between two looks at it

PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": schema.Problem, "description": "a body that cannot be read"},
    404: {"model": schema.Problem, "description": "an id that names nothing here"},
    409: {"model": schema.Problem, "description": "not as things are now"},
    422: {"model": schema.Problem, "description": "not a request of this kind"},
}
FULL: dict[int | str, dict[str, Any]] = {507: {"model": schema.Problem, "description": "the disk is full or gone"}}

_DATA = {
    "type": "string",
    "contentMediaType": "application/json",
    "contentSchema": {"$ref": "#/components/schemas/Ask"},
}
_EVENT = {"type": "object", "properties": {"data": _DATA}, "required": ["data"]}
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {STREAM: {"schema": _EVENT}}}}


def _holds(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """The description of a response that is no JSON."""
    return {200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in kinds}}}


def _desk(request: Request) -> Desk:
    return request.app.state.desk


def _user(request: Request) -> str:
    return request.state.user


def _place(case: str, desk: Annotated[Desk, Depends(_desk)], user: Annotated[str, Depends(_user)]) -> Place:
    return desk.place(user, case)


At = Annotated[Place, Depends(_place)]
router = APIRouter(prefix="/api", responses=PROBLEMS)


@router.get("/session")
def session(desk: Annotated[Desk, Depends(_desk)], user: Annotated[str, Depends(_user)]) -> schema.Session:
    """Who is here and what there is."""
    return desk.session(user)


@router.get("/cases/{case}")
def work(place: At) -> schema.WorkInfo:
    """All that a page shows of a case."""
    return place.told()


@router.get("/cases/{case}/scan.nii.gz", response_class=Response, responses=_holds(NIFTI))
def scan(place: At) -> Response:
    """The scan."""
    return Response(scan_as_nifti(place.case.scan()), media_type=NIFTI)


@router.get("/cases/{case}/answers/{answer}/consensus", response_class=Response, responses=_holds(RUNS))
def consensus(place: At, answer: str) -> Response:
    """The consensus of an answer, as runs."""
    return _runs(place.answer(answer).toggles(None, place.info.shape), place)


@router.get("/cases/{case}/answers/{answer}/proposals/{k}", response_class=Response, responses=_holds(RUNS))
def proposal(place: At, answer: str, k: int) -> Response:
    """One proposal of an answer, as runs."""
    return _runs(place.answer(answer).toggles(k, place.info.shape), place)


@router.get("/cases/{case}/answers/{answer}/doubt.nii.gz", response_class=Response, responses=_holds(NIFTI))
def doubt(place: At, answer: str) -> Response:
    """Where the proposals of an answer disagree, 0 to 255."""
    found = place.answer(answer).doubt(place.info.shape)
    return Response(doubt_as_nifti(found, place.case.scan()), media_type=NIFTI)


@router.get("/cases/{case}/layers/{layer}", response_class=Response, responses=_holds(RUNS))
def layer(place: At, layer: str) -> Response:
    """A layer, as runs."""
    return _runs(place.work.layer(layer).toggles, place)


@router.get("/cases/{case}/layers/{layer}/file", response_class=Response, responses=_holds(*MEDIA.values()))
def layer_file(place: At, layer: str, format: schema.Format) -> Response:
    """A layer as it is now, as a file to keep."""
    with place.lock:
        found = place.work.layer(layer)
        source = Source(place.case, place.case.scan(), place.user, place.answers)
        data = file_of(found, place.work, source, format)
    headers = {"Content-Disposition": f'attachment; filename="{safe_name(found.name)}{SUFFIXES[format]}"'}
    return Response(data, media_type=MEDIA[format], headers=headers)


@router.post("/cases/{case}/actions", responses={409: {"model": schema.Conflict | schema.Problem}} | FULL)
def act(place: At, request: schema.ActionRequest) -> schema.Changed:
    """Do something to the layers. Once this is answered it is on the disk."""
    try:
        return place.act(request)
    except Stale as error:
        conflict = schema.Conflict(detail=str(error), work=place.told())
        return JSONResponse(conflict.model_dump(mode="json"), 409)  # type: ignore[return-value]  # as declared


@router.post("/cases/{case}/save", responses=FULL)
def save(place: At, request: schema.SaveRequest) -> schema.Saved:
    """Write layers with their provenance."""
    return place.save(request)


@router.get("/cases/{case}/meant")
def meant(place: At, prompt: schema.Words) -> schema.Meant:
    """What words ask for; "kidneys" are two questions."""
    return place.meant(prompt)


@router.post("/cases/{case}/asks", status_code=202)
def ask(place: At, request: schema.AskRequest) -> schema.Ask:
    """Ask for a target; one question at a time."""
    return place.ask(request).told()


@router.get("/cases/{case}/asks/{ask}")
def asked(place: At, ask: str) -> schema.Ask:
    """How far a question is."""
    return place.asking(ask).told()


@router.delete("/cases/{case}/asks/{ask}")
def cancel(place: At, ask: str) -> schema.Ask:
    """Stop answering a question; one that ended stays as it is."""
    asking = place.asking(ask)
    asking.cancel()
    return asking.told()


@router.get("/cases/{case}/asks/{ask}/progress", response_class=StreamingResponse, responses=EVENTS)
def progress(place: At, ask: str) -> StreamingResponse:
    """How far a question is, told at every change until it ends."""
    asking = place.asking(ask)

    async def told() -> AsyncIterator[str]:
        last, at = None, 0.0
        while last is None or last.state == "running":
            now = asking.told()
            if now != last or time.monotonic() - at >= BEAT:
                last, at = now, time.monotonic()
                yield f"data: {now.model_dump_json()}\n\n"
            else:
                await asyncio.sleep(LOOK)

    return StreamingResponse(told(), media_type=STREAM, headers={"X-Accel-Buffering": "no"})


def _runs(toggles: np.ndarray, place: Place) -> Response:
    data = gzip.compress(encode_runs(toggles, place.work.size), compresslevel=1, mtime=0)
    return Response(data, media_type=RUNS, headers={"Content-Encoding": "gzip"})
