"""UniSegDiff's ablations in small: its Tables 4 (targets), 5 (thresholds) and 6 (components), and our own choices.

    python benchmarks/unisegdiff.py --data ../shared/data --work runs/ablations

All variants are the same code with other switches, trained on the five sets of benchmarks/lesions.py for the same
number of images on a 64² grid, and scored on the *validation* subjects with the prompt "lesion". Variants with a
pre-trained condition network share one, trained once; a variant without gives as many more to the denoiser's loss
instead. Writes benchmarks/results/unisegdiff.json. Run again, it goes on where it was.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from lesions import gather

from delineate.data.slices import build_slices
from delineate.diffusion.stages import Clamp, Stages, Strategy
from delineate.evaluation.evaluation import evaluate, summarise
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.storage.weights import load_weights, save_weights
from delineate.systems.diffusion import unisegdiff
from delineate.systems.diffusion.unisegdiff import UniSegDiffConfig
from delineate.training.loop import Budget, Run

RESULT = Path(__file__).parent / "results" / "unisegdiff.json"
LETTER = UniSegDiffConfig(
    64, stages=Stages(), start="nothing", noise="white", chains="own", skip_below=0.0
)  # of the paper, as far as it goes
SCRATCH = replace(LETTER, pretrained=False, cross_attention=False)
OURS = UniSegDiffConfig(size=64, skip_below=0.0)


def uniform(target: str) -> Stages:
    """A hundred DDIM steps of one decoder."""
    return Stages(Strategy.UNIFORM, target, interval=10)


def one_step(target: str) -> Stages:
    """The last time alone."""
    return Stages(Strategy.ONE_STEP, target)


# Tables of variants. Noise from one step needs signal at the last time, hence the linear schedule there.
TABLES: dict[str, dict[str, UniSegDiffConfig]] = {
    "4 targets": {
        "uniform, noise": replace(LETTER, stages=uniform("noise")),
        "uniform, mask": replace(LETTER, stages=uniform("mask")),
        "one step, noise": replace(LETTER, stages=one_step("noise"), schedule="linear"),
        "one step, mask": replace(LETTER, stages=one_step("mask")),
        "staged": LETTER,
    },
    "6 components": {
        "uniform, mask": replace(SCRATCH, stages=uniform("mask")),
        "+ staged": SCRATCH,
        "+ pre-training": replace(LETTER, cross_attention=False),
        "+ DCA": LETTER,
    },
    "our choices": {
        "letter of the paper": LETTER,
        "linear schedule": replace(LETTER, schedule="linear"),
        "time before noising clamped": replace(LETTER, stages=Stages(clamp=Clamp.SAMPLE)),
        "time not clamped": replace(LETTER, stages=Stages(clamp=Clamp.NONE)),
        "pyramid noise": replace(LETTER, noise="pyramid"),
        "smooth noise": replace(LETTER, noise="smooth"),
        "start at the posterior": replace(LETTER, start="posterior"),
        "ours": OURS,
    },
    "5 thresholds": {
        "700, none": replace(LETTER, stages=Stages(high=699, low=-1)),
        "600, none": replace(LETTER, stages=Stages(high=599, low=-1)),
        "500, none": replace(LETTER, stages=Stages(high=499, low=-1)),
        "600, 400": replace(LETTER, stages=Stages(low=399)),
        "600, 300": LETTER,
        "600, 200": replace(LETTER, stages=Stages(low=199)),
    },
}


def main() -> None:
    """Train what is missing, score it, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/ablations"))
    parser.add_argument(
        "--images", type=int, default=4000, help="for the denoiser, and as many for the condition network"
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--proposals", type=int, default=8)
    parser.add_argument("--limit", type=int, default=40, help="validation cases of each set")
    parser.add_argument("--workers", type=int, default=2, help="how many trainings at once, a thread each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", action="store_true", help="tables of what is finished, without training")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a variant and a seed, in a process of its own
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        return run_one(args, args.one[0], int(args.one[1]))
    if args.report:
        return report(args, args.seeds)
    gather(args.data, args.work)
    names = list(distinct())
    for seed in range(args.seeds):
        queue(args, [("condition", seed)])
        queue(args, [(name, seed) for name in names])
        report(args, seed + 1)


def distinct() -> dict[str, UniSegDiffConfig]:
    """Every configuration once, under a file name made of its first label."""
    named: dict[str, UniSegDiffConfig] = {}
    for table, variants in TABLES.items():
        for label, config in variants.items():
            if config not in named.values():
                named[slug(table, label)] = config
    return named


def slug(table: str, label: str) -> str:
    """A file name."""
    return "".join(c if c.isalnum() else "-" for c in f"{table} {label}")


def path_of(args: argparse.Namespace, name: str, seed: int) -> Path:
    """Where the scores of a variant are."""
    return args.work / f"seed{seed}" / f"{name}.json"


def queue(args: argparse.Namespace, jobs: list[tuple[str, int]]) -> None:
    """The unfinished jobs, `--workers` at a time."""
    waiting = [job for job in jobs if not path_of(args, *job).exists()]
    running: list[tuple[tuple[str, int], subprocess.Popen]] = []
    while waiting or running:
        while waiting and len(running) < args.workers:
            job = waiting.pop(0)
            print("training", *job, flush=True)
            command = [sys.executable, *sys.argv, "--one", job[0], str(job[1])]
            running.append((job, subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})))
        time.sleep(1)
        for job, process in [r for r in running if r[1].poll() is not None]:
            running.remove((job, process))
            if process.returncode != 0:
                sys.exit(f"{job} failed; run again to go on")


def run_one(args: argparse.Namespace, name: str, seed: int) -> None:
    """Train one variant (or the shared condition network) and score it."""
    datasets = list(gather(args.data, args.work).values())
    bank = build_slices(datasets, "train", LETTER.size)
    shared = args.work / f"seed{seed}" / "condition.safetensors"
    config = OURS if name == "condition" else distinct()[name]
    system = unisegdiff.build(config, bank.vocabulary, seed=seed).to(args.device)
    if name == "condition":
        how: dict[str, Any] = {"share": 1.0, "images": args.images}
    elif config.pretrained:
        load_weights(system.condition, shared)
        how = {"share": 0.0, "images": args.images}
    else:
        how = {"share": 0.0, "images": 2 * args.images}
    unisegdiff.CONDITION_SHARE = how["share"]
    start = time.perf_counter()
    folder = args.work / f"seed{seed}" / f"{name}-training"
    logs: dict[str, list] = {}
    unisegdiff.train(
        system,
        bank,
        Run(
            Budget(images=how["images"]),
            folder,
            seed=seed,
            on_step=lambda stage, state, spent: logs.update({stage: state.log}),
        ),
    )
    entry: dict[str, Any] = {"seconds": time.perf_counter() - start, "images": how["images"]}
    if name == "condition":
        save_weights(system.condition, shared)
    else:
        entry |= {"config": asdict(config), "evaluations": len(config.stages.times())}
        entry |= scores(args, system, bank.modalities, datasets, config)
    write_json(path_of(args, name, seed), entry)


def scores(args: argparse.Namespace, system: Any, modalities: tuple, datasets: list, config: UniSegDiffConfig) -> dict:
    """MDice and mIoU of each set: single chains, fused, oracle; GED."""
    segmenter = Segmenter(system, modalities)
    n = 2 if config.stages.strategy is Strategy.UNIFORM else args.proposals
    sets = {}
    for dataset in datasets:
        lesions = replace(dataset, labels={"lesion": next(iter(dataset.labels.values()))})
        summary = summarise(evaluate(segmenter, lesions, split="val", n=n, limit=args.limit))
        own = summary["targets"]["lesion"]
        kept = ("single_dice", "single_iou", "mean_dice", "majority_dice", "staple_dice", "oracle_dice", "ged")
        sets[dataset.name] = {k: own[k] for k in kept}
    means = {k: fmean(s[k] for s in sets.values()) for k in next(iter(sets.values()))}
    return {"proposals": n, "sets": sets, "mean": means}


def report(args: argparse.Namespace, seeds: int) -> None:
    """The tables, means over sets and seeds."""
    from rich.console import Console
    from rich.table import Table

    names = {config: name for name, config in distinct().items()}
    result: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "split": "val", "seeds": seeds, "tables": {}}
    result["images"] = args.images
    result["condition_images"] = json.loads(path_of(args, "condition", 0).read_text())["images"]
    console = Console(width=140)
    for table, variants in TABLES.items():
        shown = Table(f"Table {table}", "evaluations", "single", "± seeds", "IoU", "mean", "STAPLE", "oracle", "GED²")
        result["tables"][table] = {}
        for label, config in variants.items():
            paths = [path_of(args, names[config], seed) for seed in range(seeds)]
            if not all(path.exists() for path in paths):
                continue
            runs = [json.loads(path.read_text()) for path in paths]
            keys = runs[0]["mean"]
            entry = {k: fmean(r["mean"][k] for r in runs) for k in keys}
            spread = stdev(r["mean"]["single_dice"] for r in runs) if seeds > 1 else float("nan")
            result["tables"][table][label] = {
                "evaluations": runs[0]["evaluations"],
                "proposals": runs[0]["proposals"],
                **entry,
                "by_seed": [r["mean"]["single_dice"] for r in runs],
                "sets": runs[0]["sets"],
            }
            cells = [entry[k] for k in ("single_dice", "single_iou", "mean_dice", "staple_dice", "oracle_dice", "ged")]
            shown.add_row(
                label, str(runs[0]["evaluations"]), f"{cells[0]:.3f}", f"{spread:.3f}", *map("{:.3f}".format, cells[1:])
            )
        console.print(shown)
    write_json(RESULT, result)


if __name__ == "__main__":
    main()
