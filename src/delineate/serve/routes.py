"""The endpoints of a server: a scan and prompts in, a zip out; at once, or as a job."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.responses import FileResponse, Response
from pydantic import StringConstraints
from starlette.background import BackgroundTask

from delineate import __version__
from delineate.errors import PromptError
from delineate.jobs.dicom import parsed
from delineate.jobs.segment import SegmentRequest
from delineate.prompts.listing import ALL, listed
from delineate.prompts.modality import modality_code
from delineate.prompts.prompt import Prompt
from delineate.prompts.understanding import understood
from delineate.prompts.vocabulary import unknown_prompt_message
from delineate.review.schema import SEEN, Exact, Model, Problem, Seen, Term
from delineate.serve.jobs import Jobs, JobState
from delineate.serve.places import errand_of
from delineate.serve.service import Service

API = "/api"
WORK = (("POST", f"{API}/segment"), ("POST", f"{API}/jobs"))
ZIPPED = "application/zip"
MOST_PROMPTS = 100
PROBLEMS: dict[int | str, Any] = {
    status: {"model": Problem, "description": why}
    for status, why in {
        400: "The request cannot be taken apart",
        401: "No token, or not one that is known",
        404: "There is no such thing here",
        409: "It is not done",
        413: "Larger than this server takes",
        422: "It cannot be answered: the line says why",
        429: "The token asks more often than it may; see Retry-After",
        503: "Too many wait, or the server is being stopped; see Retry-After",
        504: "It took longer than it may",
        507: "The server's disk is full",
    }.items()
}
ANSWER: dict[int | str, Any] = {
    200: {
        "description": "Masks, their label map, `case.json` and, for DICOM, the objects that were asked for",
        "content": {ZIPPED: {"schema": {"type": "string", "format": "binary"}}},
    }
}

Scan = Annotated[
    UploadFile, File(description="NIfTI, NRRD, MetaImage, PNG, JPEG, TIFF, DICOM, or a zip of the files of one series.")
]
Text = Annotated[str, StringConstraints(max_length=200), Seen, SEEN]
Words = Annotated[str, StringConstraints(max_length=5000), Seen, SEEN]  # a list with commas, as in a command


class About(Exact):
    """What a server has."""

    version: str
    model: Model
    names: list[Term]


class Alive(Exact):
    """The server answers."""

    status: Literal["ok"] = "ok"


def _user(request: Request) -> str:
    return request.state.user


User = Annotated[str, Depends(_user)]


def router(service: Service, jobs: Jobs) -> APIRouter:
    """The endpoints below `API`."""
    routes = APIRouter(prefix=API, tags=["Segmentation"], responses=PROBLEMS)
    vocabulary = service.answering.vocabulary

    def asked(
        prompt: Annotated[
            list[Words] | None,
            Form(max_length=MOST_PROMPTS, description="Targets in words; all that fit the scan without."),
        ] = None,
        n: Annotated[int, Form(ge=1, le=64, description="Proposals a target.")] = 8,
        seed: Annotated[int, Form(ge=0, le=2**31 - 1)] = 0,
        modality: Annotated[Text | None, Form(description="CT, MR, US, …")] = None,
        consensus: Annotated[Literal["mean", "majority", "staple"], Form()] = "mean",
        maps: Annotated[bool, Form(description="Also maps of probability and doubt.")] = False,
        montage: Annotated[bool, Form(description="Also a picture.")] = False,
        anyway: Annotated[bool, Form(description="Also what was not learnt in such scans.")] = False,
        volume: Annotated[int | None, Form(ge=0, le=10**6, description="Which volume of several.")] = None,
        series: Annotated[Text | None, Form(description="Which DICOM series of several, by number or UID.")] = None,
        seg: Annotated[
            Literal["binary", "fractional", "labelmap", "none"], Form(description="What a DICOM SEG holds.")
        ] = "binary",
        dicom: Annotated[
            Words, Form(description="What is written of a DICOM series, with commas: seg, rtstruct, report; or none.")
        ] = "seg",
    ) -> SegmentRequest:
        kind = modality_code(modality or None)
        words = listed([one for one in prompt or [] if one.strip()] or [ALL], vocabulary, kind)
        if len(words) > MOST_PROMPTS:
            raise PromptError(f"a request has at most {MOST_PROMPTS} prompts, this one {len(words)}; ask in turn")
        meant = {one: understood(Prompt(one).text, vocabulary, kind) for one in words if one != ALL}
        lost = {one: told.nearest for one, told in meant.items() if not told.targets and not told.by_scan}
        if len(lost) == len(words):
            raise PromptError(" ".join(unknown_prompt_message(one, near, "") for one, near in lost.items()))
        kind_of_seg = None if seg == "none" else seg
        more: dict[str, Any] = {"seg": kind_of_seg, "dicom": parsed(dicom, kind_of_seg)}
        more |= {"series": series or None, "anyway": anyway}
        return SegmentRequest(words, n, seed, consensus, maps, kind, volume, montage, **more)

    @routes.get("/about")
    def about() -> About:
        """The version, the model, and the names that it can be asked for."""
        names = [
            Term(name=c.name, synonyms=list(c.synonyms), modalities=list(c.modalities)) for c in vocabulary.concepts
        ]
        return About(version=__version__, model=service.answering.model, names=names)

    @routes.post("/segment", response_class=Response, responses=ANSWER)
    def segment(request: Request, scan: Scan, ask: Annotated[SegmentRequest, Depends(asked)]) -> FileResponse:
        """Outline what is named in a scan, and wait for it."""
        errand = errand_of(request.state)
        path = service.segment(errand, service.bring(errand, scan.file, scan.filename), ask)
        return _file(path, BackgroundTask(path.unlink, missing_ok=True))

    @routes.post("/jobs", status_code=202)
    def begin(
        request: Request, response: Response, scan: Scan, ask: Annotated[SegmentRequest, Depends(asked)]
    ) -> JobState:
        """Outline what is named in a scan, and come back for it."""
        errand = errand_of(request.state)
        state = jobs.begin(errand, service.bring(errand, scan.file, scan.filename), ask)
        response.headers["location"] = f"{API}/jobs/{state.id}"
        return state

    @routes.get("/jobs/{job}")
    def state(job: str, user: User) -> JobState:
        """How a job stands."""
        return jobs.state(user, job)

    @routes.get("/jobs/{job}/result", response_class=Response, responses=ANSWER)
    def result(job: str, user: User) -> FileResponse:
        """What a job has made, for as long as it is kept."""
        return _file(jobs.result(user, job).path)

    @routes.delete("/jobs/{job}", status_code=204)
    def drop(job: str, user: User) -> None:
        """Stop a job, or forget what it has made."""
        jobs.drop(user, job)

    return routes


def _file(path: Any, after: BackgroundTask | None = None) -> FileResponse:
    return FileResponse(path, media_type=ZIPPED, filename="delineate.zip", background=after)
