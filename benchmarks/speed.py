"""What `delineate segment` costs on a large CT: seconds a stage and peak memory, all abdominal organs, CPU.

    python benchmarks/speed.py --label today
    python benchmarks/speed.py --label today --scan ct.nii.gz

The same job as the command runs (`jobs.segment.run_cohort`), once, in this process, with a timer around each stage;
a stage's seconds leave out those of a stage inside of it. Without `--scan` a CT is made: the abdominal phantom, scaled
to 512×512×300 voxels of 0.75×0.75×1 mm. Writes benchmarks/results/speed.json, a row for each `--label`; rows of the
same scan are printed side by side, with ratios to the first.
"""

import argparse
import hashlib
import json
import os
import platform
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch.nn import functional as F

import delineate.jobs.segment as job
import delineate.pictures as pictures
from delineate import Segmenter
from delineate.data.phantom import make_phantom
from delineate.model_folder import check_model, fingerprint
from delineate.proposals.proposals import Proposals
from delineate.scans.finding import find_scans
from delineate.storage.files import write_json

RESULT = Path(__file__).parent / "results" / "speed.json"
SHAPE, SPACING_MM = (512, 512, 300), (0.75, 0.75, 1.0)
ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)


class Stopwatch:
    """Seconds of named stages, each without those inside of it, and the peak memory when it last ended.

    `seconds` of the clock; `cpu_seconds` of the processor, all threads, which hold on a busy machine too.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu_seconds: dict[str, float] = defaultdict(float)
        self.peak_gb: dict[str, float] = {}
        self._inside: list[np.ndarray] = []

    def around(self, owner: Any, name: str, stage: str) -> None:
        """Time every call of `owner.name` as `stage`."""
        function: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **options: Any) -> Any:
            start = now()
            self._inside.append(np.zeros(2))
            try:
                return function(*args, **options)
            finally:
                took = now() - start
                own = took - self._inside.pop()
                self.seconds[stage] += own[0]
                self.cpu_seconds[stage] += own[1]
                if self._inside:
                    self._inside[-1] += took
                self.peak_gb[stage] = peak_gb()

        setattr(owner, name, timed)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", required=True, help="of the row, such as a date or a version")
    parser.add_argument("--scan", type=Path, help="a CT; without it one is made of the phantom")
    parser.add_argument("--model", type=Path, help="model folder; without it the house model")
    parser.add_argument("--target", action="append", help="repeat for several; without it the 13 abdominal organs")
    parser.add_argument("--proposals", type=int, default=8)
    parser.add_argument("--threads", type=int, help="of torch; without it as torch decides")
    parser.add_argument("--keep", type=Path, help="keep what is written in this folder")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        scan = args.scan or made_ct(Path(temporary) / "ct.nii.gz")
        row = measured(
            scan, args.model, tuple(args.target or ORGANS), args.proposals, args.keep or Path(temporary) / "out"
        )
    rows = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    rows[args.label] = row
    write_json(RESULT, rows)
    print(json.dumps(row, indent=2))
    print(side_by_side({label: one for label, one in rows.items() if one["asked"] == row["asked"]}))


def measured(scan: Path, model: Path | None, targets: tuple[str, ...], proposals: int, out: Path) -> dict[str, Any]:
    """One run of the job, as a row."""
    watch = Stopwatch()
    for owner, name, stage in (
        (Segmenter, "load", "load the model"),
        (job, "read_scan", "read"),
        (Segmenter, "look", "to the working grid"),
        (Segmenter, "__call__", "to the scan's grid, fuse"),
        (Proposals, "save", "fuse, write masks"),
        (job, "describe", "describe"),
        (pictures, "montage", "montage"),
    ):
        watch.around(owner, name, stage)
    started = now()
    segmenter = Segmenter.load(model)
    watch.around(segmenter.system, "see", "network: see")
    watch.around(segmenter.system, "propose", "network: propose")
    request = job.SegmentRequest(targets, proposals, modality="CT")
    report = job.run_cohort(
        segmenter, find_scans(scan), request, out, model_hash=fingerprint(check_model(model)[0]), device="cpu"
    )
    (case,) = report["cases"]
    if case["status"] != "done":
        raise SystemExit(case["reason"])
    total, cpu = now() - started
    watch.seconds["rest"] = total - sum(watch.seconds.values())
    watch.cpu_seconds["rest"] = cpu - sum(watch.cpu_seconds.values())
    return {
        "asked": {
            "scan": hashlib.sha256(scan.read_bytes()).hexdigest()[:12],
            "shape": case["shape"],
            "targets": list(targets),
            "proposals": proposals,
            "threads": torch.get_num_threads(),
        },
        "size": segmenter.system.size,
        "outcomes": {t["target"]: t["outcome"] for t in case["targets"]},
        "seconds": {stage: round(value, 2) for stage, value in watch.seconds.items()},
        "cpu_seconds": {stage: round(value, 2) for stage, value in watch.cpu_seconds.items()},
        "peak_gb_after": watch.peak_gb,
        "total_seconds": round(total, 2),
        "total_cpu_seconds": round(cpu, 2),
        "peak_gb": peak_gb(),
        "written_mb": round(sum(f.stat().st_size for f in out.rglob("*") if f.is_file()) / 1e6, 2),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
    }


def made_ct(path: Path) -> Path:
    """The phantom's first case as a CT in Hounsfield units of `SHAPE`, written to `path`."""
    small = make_phantom(0, shape=(100, 128, 128))
    voxels = torch.from_numpy(small.voxels.transpose(2, 1, 0)[:, ::-1].copy())[None, None]  # as scanners store it, LAS
    large = F.interpolate(voxels, SHAPE, mode="trilinear")[0, 0].numpy()
    large += np.random.default_rng(0).normal(0, 8, SHAPE).astype(np.float32)
    stored = np.rint(large).clip(-1024, 3071).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([*SPACING_MM, 1.0])), path)
    return path


def now() -> np.ndarray:
    """Seconds of the clock and of the processor."""
    return np.array([time.perf_counter(), time.process_time()])


def peak_gb() -> float:
    """The most memory that this process had so far, in GB (10^9 bytes)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)


def side_by_side(rows: dict[str, dict[str, Any]]) -> str:
    """A table: a column for each row, with its ratio to the first."""
    first = next(iter(rows.values()))
    stages = list(dict.fromkeys(stage for row in rows.values() for stage in row["cpu_seconds"]))
    lines = [f"{'processor seconds':26}" + "".join(f"{label:>18}" for label in rows)]
    figures = [(stage, [row["cpu_seconds"].get(stage, 0.0) for row in rows.values()]) for stage in stages]
    for key in ("total_cpu_seconds", "total_seconds", "peak_gb"):
        figures.append((key, [row[key] for row in rows.values()]))
    for name, values in figures:
        base = first["cpu_seconds"].get(name, first.get(name, 0.0))
        ratios = (f"{value:.2f}" + (f" ({value / base:.2f})" if base else "") for value in values)
        lines.append(f"{name:26}" + "".join(f"{cell:>18}" for cell in ratios))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
