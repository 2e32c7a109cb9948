"""Images per second of training, on two cores: what each part of the engine gives, and an older delineate beside it.

    python benchmarks/engine.py --data ../shared/data/btcv_ct
    git worktree add /tmp/before REVISION; python benchmarks/engine.py --before /tmp/before/src

The image encoder of `progidiff`, preset tiny at 128² (which older ones have too) and small at 256², learns BTCV slices;
every way in a process of its own with two threads, one after another, `--rounds` times; medians. `--before` is the src
folder of an older one, which is given the same slices, network and loss loop as it has them. Needs an idle machine.
Writes benchmarks/results/engine.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

RESULT = Path(__file__).parent / "results" / "engine.json"
WAYS: dict[str, dict[str, Any]] = {
    "float32, drawn in between": {"precision": "float32", "ahead": 0},
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16, compiled": {"precision": "bfloat16", "compiled": True},
}
SIZES = {128: "tiny", 256: "small"}


def main() -> None:
    """Measure and print; with --one, be one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/btcv_ct"))
    parser.add_argument("--before", type=Path, help="src folder of an older delineate")
    parser.add_argument("--images", type=int, default=160, help="timed, after as many that are not")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measured(args, **json.loads(args.one))))
        return
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(args.rounds):
        for size in SIZES:
            ways = {**({"before": None} if args.before and size == 128 else {}), **WAYS}
            for name, engine in ways.items():
                row = rows.setdefault(f"{size}², {name}", {"images_per_second": [], "cpu_seconds_an_image": []})
                for key, value in in_a_process(args, size, engine).items():
                    row[key].append(round(value, 4))
    for row in rows.values():
        row |= {key: {"median": median(values), "all": values} for key, values in row.items()}
    result = {"threads": args.threads, "images": args.images, "command": " ".join(["python", *sys.argv]), "rows": rows}
    sys.path.insert(0, str(Path(__file__).parents[1] / "src"))
    from delineate.storage.files import write_json

    write_json(RESULT, result)
    for name, row in rows.items():
        print(f"{name:40} {row['images_per_second']['median']:7.2f} images/s")


def in_a_process(args: argparse.Namespace, size: int, engine: dict[str, Any] | None) -> dict[str, float]:
    """One measurement; an `engine` of None is the older one's."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    if engine is None:
        environment["PYTHONPATH"] = str(args.before)
    command = [sys.executable, __file__, "--data", str(args.data), "--images", str(args.images)]
    command += ["--threads", str(args.threads), "--one", json.dumps({"size": size, "engine": engine})]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measured(args: argparse.Namespace, size: int, engine: dict[str, Any] | None) -> dict[str, float]:
    """Images per second and CPU seconds an image, of the second half of a training."""
    import torch

    from delineate import open_dataset
    from delineate.data.slices import build_slices
    from delineate.systems import SYSTEMS
    from delineate.training.loop import Budget, Run, train_phases

    torch.set_num_threads(args.threads)
    bank = build_slices([open_dataset(args.data)], "val", size)
    system = SYSTEMS["progidiff"].make(SIZES[size], size, bank.vocabulary, seed=0, modalities=bank.modalities)
    how: dict[str, Any] = {}
    if engine is not None:
        from delineate.training.engine import Engine

        how["engine"] = Engine(**engine)
    clock: list[tuple[int, float, float]] = []
    how["on_step"] = lambda phase, state, spent: clock.append(
        (state.images_seen, time.perf_counter(), time.process_time())
    )
    with tempfile.TemporaryDirectory() as folder:
        train_phases(system.phases(bank)[:1], Run(Budget(images=4 * args.images), Path(folder), 0, **how))
    start = next(entry for entry in clock if entry[0] >= args.images)
    images, seconds, cpu = (b - a for a, b in zip(start, clock[-1], strict=True))
    return {"images_per_second": images / seconds, "cpu_seconds_an_image": cpu / images}


if __name__ == "__main__":
    main()
