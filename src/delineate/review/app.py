"""The HTTP side: the app of a desk. Who may ask at all is decided by `safety`, before."""

import mimetypes
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

from delineate import __version__
from delineate.errors import ScanError
from delineate.review.desk import Busy, Desk
from delineate.review.log import LogError
from delineate.review.monai_label import router as monai_router
from delineate.review.problems import tell_problems
from delineate.review.routes import router
from delineate.review.work import NotHere

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
    tell_problems(app, STATUS)
    app.include_router(router)
    app.include_router(monai_router(desk))
    mimetypes.add_type("text/javascript", ".js")  # a system's own table may say otherwise, and browsers obey
    app.mount("/static", StaticFiles(directory=STATIC, check_dir=False), name="static")

    @app.get("/", include_in_schema=False)
    def index() -> Response:
        return FileResponse(STATIC / "index.html", media_type="text/html; charset=utf-8")

    return app
