"""How long a person waits on the review page: `delineate review` as a process, asked over HTTP as the page asks it.

An image of 256 x 256 (a held-out skin lesion), a slab of a held-out CT, and the whole of it with every voxel doubled
along each axis, which makes it as large as CTs are. For each: the first answer, model and all; clicks, each from the
request to the new consensus in hand; brush strokes and undo, from the request to the acknowledgement, which comes after
the disk has them; saving.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np

from delineate.review.runs import decode_runs, mask_of
from delineate.scans.reading import read_scan
from delineate.scans.scan import Scan
from delineate.scans.writing import write_scan
from delineate.storage.files import write_json

CLICKS, STROKES, SLICES = 12, 40, 24


class Server:
    """`delineate review` in a process of its own, and a client for it."""

    def __init__(self, scan: Path, folder: Path, *options: str):
        command = [sys.executable, "-m", "delineate", "review", str(scan), "-o", str(folder), "--no-browser", "--json"]
        self.process = subprocess.Popen([*command, "--threads", "2", *options], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        base, token = json.loads(self.process.stdout.readline())["url"].split("/?token=")
        headers = {"Authorization": f"Bearer {token}"}
        self.http = httpx.Client(base_url=f"{base}/api/cases", headers=headers, timeout=600)
        self.work = self.get("").json()

    def get(self, path: str) -> httpx.Response:
        """What lies below the case."""
        return self.http.get(f"/c0{path}").raise_for_status()

    def ask(self, prompt: str, marks: list[dict], refines: str | None) -> tuple[str, np.ndarray]:
        """The id and the consensus of a new answer."""
        asked = {"prompt": prompt, "proposals": 8, "marks": marks, "refines": refines}
        ask = self.http.post("/c0/asks", json=asked).raise_for_status().json()
        with self.http.stream("GET", f"/c0/asks/{ask['id']}/progress") as lines:
            told = [json.loads(line[5:]) for line in lines.iter_lines() if line.startswith("data:")][-1]
        assert told["state"] == "done", told
        shape = tuple(self.work["case"]["shape"])
        runs = self.get(f"/answers/{told['answer']}/consensus").content
        return told["answer"], mask_of(decode_runs(runs, int(np.prod(shape))), shape)

    def act(self, **action: object) -> None:
        """Do an action; it is on the disk when this returns."""
        body = {"revision": self.work["revision"], "action": action}
        self.work = self.http.post("/c0/actions", json=body).raise_for_status().json()

    def stop(self) -> None:
        """End it as a person would."""
        self.http.close()
        self.process.terminate()
        self.process.wait(30)


def timed(run: Callable[[], object]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - started)


def summary(milliseconds: list[float]) -> dict[str, float]:
    """Median and 95th percentile."""
    high = float(np.percentile(milliseconds, 95))
    return {"median_ms": round(statistics.median(milliseconds), 1), "p95_ms": round(high, 1), "n": len(milliseconds)}


def measure(scan: Path, prompt: str, *options: str) -> dict[str, object]:
    """All figures of one scan."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(scan, Path(folder) / "out", *options)
        try:
            return _measured(server, prompt)
        finally:
            server.stop()


def _measured(server: Server, prompt: str) -> dict[str, object]:
    shape = tuple(server.work["case"]["shape"])
    rng = np.random.default_rng(0)
    found: dict[str, object] = {"shape": shape}
    started = time.perf_counter()
    answer, mask = server.ask(prompt, [], None)
    found["first_answer_ms"] = round(1000 * (time.perf_counter() - started), 1)
    marks, clicks, moved = [], [], []
    for k in range(CLICKS):  # every other click contradicts the answer: outside where it says inside, and the reverse
        where = np.argwhere(mask if k % 2 == 0 else ~mask)
        marks.append({"voxel": rng.choice(where).tolist(), "positive": k % 2 == 1})
        before, started = mask, time.perf_counter()
        answer, mask = server.ask(prompt, marks, answer)
        clicks.append(1000 * (time.perf_counter() - started))
        moved.append(int((mask != before).sum()))
    found["click"] = summary(clicks) | {"voxels_moved_median": statistics.median(moved), "least": min(moved)}
    server.act(kind="pick", answer=answer, proposal=None, layer=None, how="replace")
    layer, size = server.work["layers"][-1]["id"], int(np.prod(shape))
    starts = rng.choice(size - 50, STROKES, replace=False).tolist()
    strokes = [
        timed(lambda at=at: server.act(kind="paint", layer=layer, flips=[[at, 40]], tool="brush")) for at in starts
    ]
    found["stroke"] = summary(strokes)
    found["undo"] = summary([timed(lambda: server.act(kind="undo")) for _ in range(STROKES)])
    found["save_ms"] = round(timed(lambda: server.http.post("/c0/save", json={"layers": None}).raise_for_status()), 1)
    return found


def slab(path: Path, folder: Path) -> Path:
    """The middle slices of a CT."""
    scan = read_scan(path, modality="CT")
    start = (scan.shape[2] - SLICES) // 2
    affine = scan.affine.copy()
    affine[:3, 3] = (scan.affine @ [0, 0, start, 1])[:3]
    return write_scan(folder / "slab.nii.gz", Scan(scan.voxels[..., start : start + SLICES], affine, "CT", path))


def doubled(path: Path, folder: Path) -> Path:
    """A CT with every voxel doubled along each axis."""
    scan = read_scan(path, modality="CT")
    voxels = scan.voxels.repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
    affine = scan.affine @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = (scan.affine @ [-0.25, -0.25, -0.25, 1])[:3]
    return write_scan(folder / "doubled.nii.gz", Scan(voxels, affine, "CT", path))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description="Waiting times on the review page; writes benchmarks/results/review.json."
    )
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the shared data sets")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results/review.json"))
    options = parser.parse_args()
    splits = json.loads((options.data / "splits.json").read_text())
    image = options.data / "isic2018" / "images" / f"{splits['isic2018']['test'][0]}.jpg"
    ct = options.data / "btcv_ct" / "imagesTr" / f"{splits['btcv_ct']['test'][0]}_0000.nii.gz"
    with tempfile.TemporaryDirectory() as folder:
        report = {
            "threads": 2,
            "skin lesion": measure(image, "skin lesion"),
            "liver in a slab of CT": measure(slab(ct, Path(folder)), "liver", "--modality", "CT"),
            "liver in a large CT": measure(doubled(ct, Path(folder)), "liver", "--modality", "CT"),
        }
    write_json(options.output, report)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
