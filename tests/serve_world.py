"""A server on a real socket for tests of `delineate serve`: a segmenter that needs no training, tokens, a client."""

import io
import json
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from tests.review.test_safety import serving
from tests.review_world import Bright, answering_by

from delineate.review.safety import allowed_hosts
from delineate.serve.app import create_app, guarded
from delineate.serve.service import Limits, Service

ANN, BEN = "ann-0123456789abcdef", "ben-0123456789abcdef"
TOKENS = {ANN: "ann", BEN: "ben"}
PROXY = "https://scans.example.org"


@dataclass
class Served:
    """A server and those who ask it."""

    service: Service
    system: Bright
    port: int
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, token: str = ANN, **headers: str) -> httpx.Client:
        own = {"authorization": f"Bearer {token}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return httpx.Client(base_url=self.url, headers=own, timeout=300)

    def segment(self, data: bytes, name: str = "scan.nii.gz", token: str = ANN, path: str = "/api/segment", **fields):
        """What is answered to a scan that is sent."""
        with self.client(token) as client:
            return client.post(path, files={"scan": (name, data)}, data={"modality": "MR", **fields})


@contextmanager
def served(folder: Path, limits: Limits = Limits(), system: Bright | None = None, **more):
    system = system or Bright()
    service = Service(answering_by(system), folder, limits)
    service.load()

    def app(port):
        names = allowed_hosts(port) | {"scans.example.org"}
        return guarded(create_app(service), service, tokens=TOKENS, hosts=names, origins=frozenset({PROXY}))

    with serving(app, **more) as port:
        yield Served(service, system, port, folder)
    service.worker.close()


def taken_apart(reply: httpx.Response) -> tuple[dict, dict[str, bytes]]:
    """`case.json` of an answer, and all its files."""
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(reply.content)) as packed:
        files = {name: packed.read(name) for name in packed.namelist()}
    return json.loads(files["case.json"]), files


def refused(reply: httpx.Response, status: int) -> str:
    """The one line of a refusal."""
    assert reply.status_code == status, reply.text
    line = reply.json()["detail"]
    assert line == " ".join(line.split())
    assert 10 < len(line) < 600
    return line
