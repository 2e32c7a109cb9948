"""What UniSegDiff's ways of drawing cost and how good they are: its Table 7, with multiplications beside the images/s.

    python benchmarks/paths.py --work runs/lesions

Cost at 256×256, one image, one prompt, from the scan on the grid to the fused mask: one chain and twenty fused (mean),
for the fast path (three evaluations a chain), the published path (twelve), shared chains and uniform DDIM of 100 steps,
beside MONAI's BasicUNet 64…1024 (the figure to beat) and our own U-Net and MedNeXt; the `tiny` networks. All are timed
in turn, round after round, in one process; medians. Quality, Dice and GED², of the model that benchmarks/lesions.py
trained, on the same test cases by every path. Writes benchmarks/results/paths.json.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from cost import SIZE, macs
from lesions import gather
from monai.networks.nets import BasicUNet

from delineate.diffusion.stages import Stages, Strategy
from delineate.evaluation.evaluation import evaluate, summarise
from delineate.networks import NETWORKS
from delineate.prompts.vocabulary import Vocabulary
from delineate.proposals.fusion import FUSIONS
from delineate.scans.grid import View
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.systems import plain
from delineate.systems.diffusion import unisegdiff
from delineate.systems.diffusion.unisegdiff import UniSegDiff, UniSegDiffConfig
from delineate.systems.system import Asked

RESULT = Path(__file__).parent / "results" / "paths.json"
N = 20
PATHS: dict[str, dict[str, Any]] = {
    "fast, rapid stage shared": {"stages": Stages(interval=300), "chains": "rapid"},
    "fast": {"stages": Stages(interval=300), "chains": "own"},
    "five evaluations": {"stages": Stages(interval=100), "chains": "own"},
    "published": {"stages": Stages(), "chains": "own"},
    "shared to 299": {"stages": Stages(), "chains": "shared"},
}
DDIM = {"stages": Stages(Strategy.UNIFORM, "mask", interval=10), "chains": "own"}


def main() -> None:
    """Measure both, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/lesions"))
    parser.add_argument("--seed", type=int, default=0, help="whose model")
    parser.add_argument("--split", default="test", help="val while choosing, test for the result")
    parser.add_argument("--limit", type=int, default=20, help="cases of each set")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    result = {**before, "torch": torch.__version__, "proposals": N}
    if args.rounds:
        result["threads_of_cost"] = torch.get_num_threads()
        result["cost"] = cost(args.rounds, args.device)
    if args.limit:
        result["quality"] = {"split": args.split, "cases_a_set": args.limit, **quality(args)}
    write_json(RESULT, result)
    print(json.dumps(result, indent=2))


def cost(rounds: int, device: str) -> dict[str, Any]:
    """Milliseconds, images/s and GMAC of one image; ratios to BasicUNet."""
    torch.manual_seed(0)
    vocabulary = Vocabulary.from_names(["polyp", "skin lesion", "breast lesion", "lung nodule", "nuclei"])
    image = torch.rand(1, 3, SIZE, SIZE) * 2 - 1
    target = Asked(vocabulary.concepts[0], "polyp")
    basic = BasicUNet(2, 3, 2, features=(64, 128, 256, 512, 1024, 64)).eval().to(device)

    @torch.no_grad()
    def forward() -> None:
        basic(image.to(device)).cpu()

    def drawing(system: Any, n: int) -> Callable[[], None]:
        system.to(device)
        return lambda: FUSIONS["mean"](system.propose(system.see(View(image)), target, n, 0).probabilities.numpy())

    works: dict[str, Callable[[], None]] = {"BasicUNet 64…1024": forward}
    for network in NETWORKS:
        widths, blocks = NETWORKS[network].presets["tiny"]
        config = plain.PlainConfig(SIZE, widths, network, blocks)
        works[f"{network} (tiny)"] = drawing(plain.build(config, vocabulary), 1)
    for label, path in {**PATHS, "uniform DDIM, 100 steps": DDIM}.items():
        config = UniSegDiffConfig(size=SIZE, skip_below=0.0, **path)
        system = unisegdiff.build(config, vocabulary)
        works[f"{label}, 1 chain"] = drawing(system, 1)
        if path is not DDIM:
            works[f"{label}, {N} fused"] = drawing(system, N)
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    giga = {name: macs(work) for name, work in works.items()}
    first = next(iter(works))
    return {
        name: {
            "ms": round(1000 * median(seconds[name]), 1),
            "images_a_second": round(1 / median(seconds[name]), 3),
            "gmac": round(giga[name], 2),
            "ms_ratio": round(median(seconds[name]) / median(seconds[first]), 3),
            "gmac_ratio": round(giga[name] / giga[first], 3),
        }
        for name in works
    }


def quality(args: argparse.Namespace) -> dict[str, Any]:
    """Means over the five sets by every path, and of posteriors drawn without the denoiser's networks."""
    segmenter = Segmenter.load(args.work / f"seed{args.seed}" / "unisegdiff", args.device)
    trained: Any = segmenter.system
    idle = copy.deepcopy(trained.denoiser)
    idle.answer_nothing()
    variants = {label: (path, trained.denoiser) for label, path in PATHS.items()}
    variants["fast, denoiser idle (posterior alone)"] = (PATHS["fast"], idle)
    datasets = gather(args.data, args.work)
    out = {}
    for label, (path, denoiser) in variants.items():
        system = UniSegDiff(replace(trained.config, **path), trained.learnt, trained.condition, denoiser)
        start = time.perf_counter()
        sets = {}
        for name, dataset in datasets.items():
            asked = Segmenter(system, segmenter.modalities)
            summary = summarise(evaluate(asked, dataset, split=args.split, n=N, limit=args.limit))
            sets[name] = next(iter(summary["targets"].values()))
        keys = ("single_dice", "mean_dice", "majority_dice", "staple_dice", "oracle_dice", "ged")
        out[label] = {k: fmean(s[k] for s in sets.values()) for k in keys}
        out[label] |= {f"{name} ged": s["ged"] for name, s in sets.items()}
        out[label]["seconds"] = time.perf_counter() - start
        print(label, {k: round(v, 3) for k, v in out[label].items()}, flush=True)
    return out


if __name__ == "__main__":
    main()
