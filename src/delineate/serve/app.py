"""The app of a server, and what surrounds it: `guarded` is what uvicorn runs."""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio.to_thread
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from delineate import __version__
from delineate.errors import ScanError
from delineate.review.desk import Busy, Desk
from delineate.review.log import LogError
from delineate.review.monai_desk import Compute
from delineate.review.monai_label import FOLDER
from delineate.review.monai_label import router as monai_router
from delineate.review.problems import problem, tell_problems
from delineate.review.safety import App, Receive, Scope, Send, guard
from delineate.review.schema import Problem
from delineate.review.work import NotHere
from delineate.serve.door import PROBES, admitted, watched
from delineate.serve.jobs import Jobs, NotYet
from delineate.serve.metrics import KIND
from delineate.serve.places import Ending, Full, Gone, TooLong, TooOften, errand_of
from delineate.serve.routes import WORK, Alive, router
from delineate.serve.service import Service
from delineate.storage.memory import OutOfMemory

STATUS = {
    NotHere: 404,
    Busy: 409,
    LogError: 409,
    NotYet: 409,
    OutOfMemory: 413,
    ScanError: 422,
    TooOften: 429,
    Full: 503,
    Ending: 503,
    Gone: 499,  # as nginx logs it; nobody is told
    TooLong: 504,
}
ALL_WORK = (*WORK, ("POST", f"{FOLDER}/infer/"), ("PUT", f"{FOLDER}/session/"))
THREADS = 20  # for what needs no place
REFUSED = {
    401: "a token is needed: send the header Authorization: Bearer TOKEN",
    421: "this server is not known by that name; start it with --name NAME for every name that it is asked by",
}


def create_app(service: Service, on_failure: Callable[[Exception], None] = lambda error: None) -> FastAPI:
    """The app of a service. Who asks must be in `scope["state"]["user"]`; `guarded` puts them there.

    Args:
        service: that answers.
        on_failure: told why the model cannot be loaded, which begins when the app does.
    """
    desk, jobs = Desk([], service.answering), Jobs(service)

    @asynccontextmanager
    async def living(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = service.places.most + THREADS
        service.load_in_background(on_failure)
        yield
        service.worker.close()

    app = FastAPI(
        title="delineate serve",
        version=__version__,
        description="Masks of what is named in a scan, with their doubt. A research tool, not a medical device.",
        lifespan=living,
        openapi_url="/openapi.json",
        docs_url=None,  # their pages would be fetched from another server
        redoc_url=None,
    )
    tell_problems(app, STATUS)
    app.add_exception_handler(Exception, _fault)

    @contextmanager
    def working(request: Request) -> Iterator[Compute]:
        errand = errand_of(request.state)
        with service.inside(errand):
            yield lambda work: service.compute(errand, work)

    @app.get("/health", tags=["Operation"])
    async def health() -> Alive:
        """Whether the server answers at all. Needs no token."""
        return Alive()

    @app.get("/ready", tags=["Operation"], responses={503: {"model": Problem}})
    async def ready() -> Alive:
        """Whether it takes work: the model is loaded, and it is not being stopped. Needs no token."""
        if service.places.ending:
            raise Ending("the server is being stopped", 10)
        if not service.ready:
            raise Ending("the model is being loaded", 2)
        return Alive()

    @app.get(
        "/metrics",
        tags=["Operation"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    )
    async def metrics() -> Response:
        """What is counted, for Prometheus."""
        return Response(service.metrics.text(), headers={"content-type": KIND})

    app.include_router(router(service, jobs))
    app.include_router(monai_router(desk, working))
    return app


def guarded(
    app: App, service: Service, *, tokens: Mapping[str, str], hosts: frozenset[str], origins: frozenset[str]
) -> App:
    """`app` behind all rules. Probes are let in without a token: they tell nothing.

    Args:
        app: as `create_app` makes it.
        service: its service.
        tokens: token -> user.
        hosts: the Host headers to accept, as `review.safety.allowed_hosts`.
        origins: of pages that are handed out under this server's name by a proxy.
    """
    inner = admitted(app, service.places, ALL_WORK)
    larger = {path: service.limits.upload for _, path in ALL_WORK}
    rules: dict[str, Any] = {"origins": origins, "pages": False, "refused": REFUSED, "token_folders": (FOLDER,)}
    outer = guard(inner, tokens=tokens, hosts=hosts, larger=larger, **rules)

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        probe = scope["type"] == "http" and scope["path"] in PROBES and scope["method"] == "GET"
        await (inner if probe else outer)(scope, receive, send)

    return watched(dispatch, service.metrics)


def _fault(request: Request, error: Exception) -> JSONResponse:
    """A fault of ours, in a line that tells no more than its kind; the log tells the rest."""
    return problem(500, f"a fault of the server ({type(error).__name__}), which its log tells")
