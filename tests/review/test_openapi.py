"""The whole app against its own description: requests that fit it, requests that do not, and never a 5xx.

Every request is sent as it was made up, and once more with ids of things that are there.
"""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from tests.review_world import As, Bright, Client, answering_by, desk_for, write_volume

from delineate.review.app import create_app
from delineate.review.desk import Desk

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
OPERATIONS = [
    pytest.param(method, path, operation, id=f"{method} {path}")
    for path, operations in create_app(Desk([], answering_by(Bright()))).openapi()["paths"].items()
    for method, operation in operations.items()
]


class Open(As):
    """Stays open although every request of schemathesis ends with a shutdown."""

    async def __call__(self, scope, receive, send):
        if scope["type"] != "lifespan":
            return await super().__call__(scope, receive, send)
        for event in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{event}.complete"})


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The description of the app of a desk with a case that has been worked on, and ids of what is there."""
    folder = tmp_path_factory.mktemp("openapi")
    scan = write_volume(folder / "scan.nii.gz")
    desk = desk_for(scan, folder / "out", Bright(), modality="MR")
    client = Client(desk, "ann")
    answer = client.answered("liver", proposals=2)
    layer = client.act("pick", answer=answer["id"]).json()["changed"][0]
    with scan.open("rb") as file:
        session = client.put("/monai/session/", files={"files": ("scan.nii.gz", file)}).json()["session_id"]
    ids = {"case": "c0", "answer": answer["id"], "layer": layer, "ask": "q1", "k": 0, "session": session}
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", Open(create_app(desk), "ann"))
    yield schema, ids | {"model": "delineate", "strategy": "next"}
    desk.close()


def can_be_wrong(operation) -> bool:
    """Whether there are requests that do not fit: any text is an id as far as the description goes."""
    told = operation.get("parameters", ())
    return "requestBody" in operation or any(p["required"] and p["in"] == "query" for p in told)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)
def test_every_request_is_answered_as_described(method, path, operation, mode, world):
    if mode is GenerationMode.NEGATIVE and not can_be_wrong(operation):
        return
    schema, known = world

    @settings(max_examples=15, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(schema[path][method].as_strategy(generation_mode=mode))
    def asked(case):
        case.call_and_validate(checks=CHECKS)
        case.path_parameters = {name: known.get(name, value) for name, value in (case.path_parameters or {}).items()}
        if "image" in (case.query or {}):
            case.query["image"] = "c0"
        case.call_and_validate(checks=CHECKS)

    asked()
