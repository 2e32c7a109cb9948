"""The server against its own description, as `tests/review/test_openapi.py` has it: made-up requests, never a 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from tests.review.test_openapi import CHECKS, Open, can_be_wrong
from tests.review_world import Bright, answering_by

from delineate.serve.app import ALL_WORK, create_app
from delineate.serve.door import admitted
from delineate.serve.service import Limits, Service


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    made = Service(answering_by(Bright()), tmp_path_factory.mktemp("served"), Limits(a_minute=1_000_000))
    made.load()
    yield made
    made.worker.close()


@pytest.fixture(scope="module")
def app(service):
    return create_app(service)


@pytest.fixture(scope="module")
def schema(app, service):
    asked = admitted(app, service.places, ALL_WORK)
    return schemathesis.openapi.from_asgi("/openapi.json", Open(asked, "ann"))


OPERATIONS = [  # those that the review page does not have
    ("get", "/health"),
    ("get", "/ready"),
    ("get", "/metrics"),
    ("get", "/api/about"),
    ("post", "/api/segment"),
    ("post", "/api/jobs"),
    ("get", "/api/jobs/{job}"),
    ("get", "/api/jobs/{job}/result"),
    ("delete", "/api/jobs/{job}"),
]


def test_every_operation_is_tried_here_or_on_the_review_page(app):
    told = {(method, path) for path, ways in app.openapi()["paths"].items() for method in ways}
    assert told == {*OPERATIONS, *((m, p) for m, p in told if p.startswith("/monai/"))}


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(
    ("method", "path"),
    [  # a job's form is that of /api/segment
        pytest.param(*one, marks=pytest.mark.slow if one == ("post", "/api/jobs") else ()) for one in OPERATIONS
    ],
)
def test_every_request_is_answered_as_described(method, path, mode, schema, app):
    if mode is GenerationMode.NEGATIVE and not can_be_wrong(app.openapi()["paths"][path][method]):
        return

    @settings(max_examples=4, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(schema[path][method].as_strategy(generation_mode=mode))
    def asked(case):
        case.call_and_validate(checks=CHECKS)

    asked()


def test_a_description_says_what_is_sent(app):
    told = app.openapi()
    assert set(told["paths"]["/api/segment"]["post"]["responses"]) >= {"200", "413", "422", "429", "503", "504"}
    fields = next(part for name, part in told["components"]["schemas"].items() if "segment" in name)["properties"]
    assert {"scan", "prompt", "n", "seed", "modality", "seg"} <= set(fields)
