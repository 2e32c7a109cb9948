"""A real browser on a real server: Chromium without a window, driven by Playwright, and `delineate review` as a process."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from delineate.scans.reading import read_labels, read_scan
from delineate.scans.scan import Scan
from delineate.scans.writing import write_scan

FLAGS = ["--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox"]
SECONDS = 120  # for anything on the page; two shared cores and WebGL in software are slow


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of an installed Chromium or Chrome."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next((path for name in names if (path := shutil.which(name))), None)
    assert found, "no Chromium here; install your system's chromium package, or set CHROMIUM to its path"
    return found


@pytest.fixture(scope="session")
def browser(chromium):
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """An empty page of 1280 by 800; whatever it says on its console as an error fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    page.set_default_timeout(SECONDS * 1000)
    expect.set_options(timeout=SECONDS * 1000)
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(f"uncaught: {error}"))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.said = said  # type: ignore[attr-defined]
    yield page
    context.close()
    assert said == []


@pytest.fixture
def screenshot(tmp_path):
    """Keep a picture of the page under a name, in the folder that SCREENSHOTS names."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"{name}.png")


class Server:
    """`delineate review` as a process."""

    def __init__(self, *arguments: str):
        command = [sys.executable, "-m", "delineate", "review", *arguments, "--no-browser", "--json", "--threads", "2"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the server did not start: {self.stop()}")
        self.said = json.loads(line)
        self.url = self.said["url"]

    @property
    def port(self) -> str:
        """The port it listens on."""
        return self.url.split(":")[2].split("/")[0]

    def kill(self):
        """As a power cut would end it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        for pipe in (self.process.stdout, self.process.stderr):
            pipe.close()

    def stop(self) -> str:
        """As Ctrl-C ends it; what it said on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        _, said = self.process.communicate(timeout=30)
        return said


@pytest.fixture
def serve():
    """A server for the arguments of `delineate review`; stopped at the end, and then without a traceback."""
    servers = []

    def start(*arguments: object) -> Server:
        servers.append(Server(*map(str, arguments)))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.returncode is None:
            said = server.stop()
            assert server.process.returncode == 0, said
            assert "Traceback" not in said


@pytest.fixture(scope="session")
def ct(shared_data, tmp_path_factory) -> Path:
    """A slab of 10 slices of a held-out abdominal CT, with liver, spleen and kidneys."""
    folder = shared_data / "btcv_ct"
    scan = read_scan(folder / "imagesTr" / "case12_0000.nii.gz", modality="CT")
    organs = np.isin(read_labels(folder / "labelsTr" / "case12.nii.gz").voxels, (1, 2, 3, 6)).sum(axis=(0, 1))
    start = int(np.convolve(organs, np.ones(10), mode="valid").argmax())
    affine = scan.affine.copy()
    affine[:3, 3] = (scan.affine @ [0, 0, start, 1])[:3]
    slab = Scan(scan.voxels[..., start : start + 10], affine, "CT", scan.source)
    return write_scan(tmp_path_factory.mktemp("ct") / "abdomen.nii.gz", slab)
