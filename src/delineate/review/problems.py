"""How problems are told over HTTP: a status and one line, whatever went wrong."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from delineate.errors import DelineateError
from delineate.storage.hidden import without_hidden


def tell_problems(app: FastAPI, statuses: Mapping[type[DelineateError], int]) -> None:
    """Let an app tell every problem in a line of JSON, `{"detail": …}`.

    Args:
        app: to be told.
        statuses: of problems of the user's; the first kind that fits counts, any other is 422. One that says when it
            would be worth while to ask again (`retry_after`, in seconds) says so in a header.
    """

    def not_possible(request: Request, error: Any) -> JSONResponse:
        status = next((status for kind, status in statuses.items() if isinstance(error, kind)), 422)
        after = getattr(error, "retry_after", None)
        return problem(status, str(error), {} if after is None else {"retry-after": str(after)})

    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(DelineateError, not_possible)
    app.add_exception_handler(OSError, _not_written)


def problem(status: int, line: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The answer that tells of a problem."""
    return JSONResponse({"detail": without_hidden(line)}, status, headers)


def _not_valid(request: Request, error: Any) -> JSONResponse:
    """The first thing that is wrong with a request, in one line, without repeating what was sent."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return problem(422, f"{place or 'the request'}: {first['msg']}"[:500])


def _not_written(request: Request, error: Any) -> JSONResponse:
    return problem(507, f"it could not be written, and nothing has changed: {error.strerror or error}")
