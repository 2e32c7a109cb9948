"""A small world for tests of the review server: a scan, a segmenter that needs no training, a desk, a client."""

import threading
import time
from pathlib import Path

import nibabel
import numpy as np
import torch
from PIL import Image
from starlette.testclient import TestClient

from delineate.prompts.vocabulary import Vocabulary
from delineate.review.app import create_app
from delineate.review.asking import Answering
from delineate.review.cases import find_cases
from delineate.review.desk import Desk
from delineate.review.schema import Model
from delineate.segmenter import Segmenter
from delineate.systems.system import Drawn

SHAPE = (20, 16, 6)
AFFINE = np.array([[-2.0, 0, 0, 10], [0, 3.0, 0, -20], [0, 0, 5.0, 7], [0, 0, 0, 1]])
ASKED = {"model": "bright", "model_sha256": "f" * 64, "adapter_sha256": None}


class Bright:
    """Draws what is brighter (liver) or darker (spleen) than the middle, each proposal a little less of it."""

    accepts, open_words, about = frozenset(), False, ""
    vocabulary = Vocabulary.from_names(["liver", "spleen"], "MR")
    size = 32

    def __init__(self):
        self.looked = self.asked = 0
        self.gate = threading.Event()  # a closed gate holds an answer up between its steps
        self.gate.set()

    def to(self, device):
        return self

    def see(self, view):
        stack = view.stack
        self.looked += 1
        return stack

    def propose(self, seen, target, n, seed, on_step=lambda share: None):
        self.asked += 1
        for step in range(4):
            on_step(step / 4)
            while not self.gate.wait(0.02):
                on_step(step / 4)
        sign = 1 if target.concept.name == "liver" else -1
        return Drawn(torch.stack([(sign * seen[:, 1] > 0.1 * k).float() for k in range(n)]))


def write_volume(path: Path, seed: int = 0) -> Path:
    """A small MR volume: noise on a ramp, spaced unevenly, whole numbers."""
    ramp = np.linspace(0, 400, SHAPE[0])[:, None, None] + np.random.default_rng(seed).integers(0, 60, SHAPE)
    nibabel.save(nibabel.Nifti1Image(ramp.astype(np.int16), AFFINE), path)
    return path


def write_picture(path: Path, colour: bool = False) -> Path:
    y, x = np.mgrid[:24, :30]
    grey = ((y - 12) ** 2 + (x - 15) ** 2 < 64).astype(np.uint8) * 200 + 20
    Image.fromarray(np.stack([grey, grey // 2, 255 - grey], -1) if colour else grey).save(path)
    return path


def answering_by(system: Bright) -> Answering:
    return Answering(lambda: Segmenter(system), system.vocabulary, Model(name="bright", fingerprint="f" * 64), ASKED)


def desk_for(path: Path, output: Path | None = None, system: Bright | None = None, **reading) -> Desk:
    return Desk(find_cases(path, output, **reading), answering_by(system or Bright()))


class As:
    """An app whose every request comes from one user, in place of the guard."""

    def __init__(self, app, user):
        self.app, self.user = app, user

    async def __call__(self, scope, receive, send):
        await self.app({**scope, "state": {**scope.get("state", {}), "user": self.user}}, receive, send)


class Client(TestClient):
    """A person at the desk who looks at one case."""

    def __init__(self, desk: Desk, user: str = "ann", case: str = "c0"):
        super().__init__(As(create_app(desk), user), raise_server_exceptions=True)
        self.path = f"/api/cases/{case}"

    def work(self):
        return self.get(self.path).raise_for_status().json()

    def act(self, kind, revision=None, **action):
        revision = self.work()["revision"] if revision is None else revision
        return self.post(f"{self.path}/actions", json={"revision": revision, "action": {"kind": kind, **action}})

    def ask(self, prompt, **more):
        return self.post(f"{self.path}/asks", json={"prompt": prompt, **more})

    def ended(self, ask, seconds=20):
        until = time.monotonic() + seconds
        while (now := self.get(f"{self.path}/asks/{ask}").raise_for_status().json())["state"] == "running":
            assert time.monotonic() < until, now
            time.sleep(0.01)
        return now

    def answered(self, prompt, **more):
        """The answer to a prompt, once it is there."""
        ended = self.ended(self.ask(prompt, **more).raise_for_status().json()["id"])
        assert ended["state"] == "done", ended
        return next(a for a in self.work()["answers"] if a["id"] == ended["answer"])

    def mask(self, path, shape=SHAPE):
        """The mask that a path gives as runs."""
        runs = np.frombuffer(self.get(f"{self.path}/{path}").raise_for_status().content, "<u4")
        return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(shape)
