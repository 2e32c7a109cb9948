"""The HTTP side: the app of a desk, and how problems are told. Who may ask at all is decided by `safety`, before."""

import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from delineate import __version__
from delineate.errors import DelineateError, ScanError
from delineate.review.desk import Busy, Desk
from delineate.review.log import LogError
from delineate.review.monai_label import router as monai_router
from delineate.review.routes import router
from delineate.review.work import NotHere
from delineate.storage.hidden import without_hidden

STATIC = Path(__file__).parent / "static"
STATUS = {NotHere: 404, Busy: 409, LogError: 409, ScanError: 409}  # any other problem of the user's: 422


def create_app(desk: Desk) -> FastAPI:
    """The app of a desk. Every request's user must be in `scope["state"]["user"]`; `safety.guard` puts them there."""

    @asynccontextmanager
    async def closing(app: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    app = FastAPI(
        title="delineate review",
        version=__version__,
        description="Look at answers, ask again, correct and keep masks. A research tool, not a medical device.",
        lifespan=closing,
        openapi_url="/api/openapi.json",
        docs_url=None,  # their pages would be fetched from another server
        redoc_url=None,
    )
    app.state.desk = desk
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(DelineateError, _not_possible)
    app.add_exception_handler(OSError, _not_written)
    app.include_router(router)
    app.include_router(monai_router(desk))
    mimetypes.add_type("text/javascript", ".js")  # a system's own table may say otherwise, and browsers obey
    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False), name="static")

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8")

    return app


def _problem(status: int, line: str) -> JSONResponse:
    return JSONResponse({"detail": without_hidden(line)}, status)


def _not_valid(request: Request, error: Any) -> JSONResponse:
    """The first thing that is wrong with a request, in one line, without repeating what was sent."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return _problem(422, f"{place or 'the request'}: {first['msg']}"[:500])


def _not_possible(request: Request, error: Any) -> JSONResponse:
    return _problem(next((status for kind, status in STATUS.items() if isinstance(error, kind)), 422), str(error))


def _not_written(request: Request, error: Any) -> JSONResponse:
    return _problem(507, f"it could not be written, and nothing has changed: {error.strerror or error}")
