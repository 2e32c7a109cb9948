"""What proposals cost beside a U-Net: milliseconds and MACs at 256×256, one prompt, one slice, CPU.

    python benchmarks/cost.py

(a) one forward of MONAI's BasicUNet 64…1024, the figure to beat; (b) 1, 8 and 20 proposals fused into a consensus,
from the scan on the grid to the mean mask, scan encoding and text included; the house model's networks run at a
256×256 working grid. All are timed in turn, round after round, in one process; medians. Writes
benchmarks/results/cost.json.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from monai.networks.nets import BasicUNet
from torch.utils.flop_counter import FlopCounterMode

from delineate import Segmenter
from delineate.prompts.captions import captions
from delineate.proposals.fusion import FUSIONS
from delineate.scans.grid import View
from delineate.storage.files import write_json
from delineate.systems.system import Asked

RESULT = Path(__file__).parent / "results" / "cost.json"
SIZE = 256


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", type=Path, help="model folder; without it the house model")
    args = parser.parse_args()
    system = Segmenter.load(args.model).system
    system.config = replace(system.config, size=SIZE, skip_below=0.0)  # draw even where nothing is to be seen
    network = BasicUNet(2, 1, 2, features=(64, 128, 256, 512, 1024, 64)).eval()
    torch.manual_seed(0)
    image, grey = torch.randn(1, 3, SIZE, SIZE).clamp(-1, 1), torch.randn(1, 1, SIZE, SIZE)
    concept = system.vocabulary.concepts[0]
    target = Asked(concept, captions(concept, None)[0])

    @torch.no_grad()
    def unet() -> None:
        network(grey)

    def proposals(n: int) -> Callable[[], None]:
        def work() -> None:
            FUSIONS["mean"](system.propose(system.see(View(image)), target, n, 0).probabilities.numpy())

        return work

    works = {"basic_unet": unet, **{f"proposals_{n}": proposals(n) for n in (1, 8, 20)}}
    giga = {name: macs(work) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(args.rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    rows = {
        name: {
            "ms": round(1000 * median(seconds[name]), 1),
            "gmac": round(giga[name], 2),
            "ms_ratio": round(median(seconds[name]) / median(seconds["basic_unet"]), 3),
            "gmac_ratio": round(giga[name] / giga["basic_unet"], 3),
        }
        for name in works
    }
    result = {
        "size": SIZE,
        "steps": system.config.steps,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "processor": platform.processor() or platform.machine(),
        "rounds": args.rounds,
        "rows": rows,
    }
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


def macs(work: Callable[[], None]) -> float:
    """Giga multiply-accumulates of the convolutions, matrix products and attentions in `work`."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2e9


if __name__ == "__main__":
    main()
