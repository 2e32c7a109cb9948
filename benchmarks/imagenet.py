"""What an encoder that learnt from ImageNet is worth on few and many medical images: against itself from scratch.

    python benchmarks/imagenet.py --data ../shared/data --work runs/imagenet                   trains and scores on val
    python benchmarks/imagenet.py --data ../shared/data --work runs/imagenet --split test      once, at the very end
    python benchmarks/imagenet.py --how-long                                                   times a few steps of each

Kvasir-SEG, ISIC 2018 and BUSI with 20, 60 and all of their training images (drawn by the seed, the same for every row):
`efficientnet` from ImageNet, the same from chance, the plain U-Net, and one mask for all. Every training sees equally
many images. Each row's learning rate is chosen on val, by the mean over seeds, for each set and number of images; test
is scored with what was chosen, and no more. Dice is of one proposal, over images that show the target and over all.

Writes every run into benchmarks/results/imagenet.json as it is done, with the tables; runs that are there are skipped,
and one that was stopped goes on from its checkpoint in --work. Needs pip install 'delineate[pretrained]'.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Generator

from delineate.data.dataset import Dataset
from delineate.data.named import open_named
from delineate.data.slices import SliceBank, build_slices
from delineate.data.twins import without_twins
from delineate.evaluation.evaluation import evaluate
from delineate.evaluation.trivial import OneMask
from delineate.metrics.overlap import mean_interval
from delineate.model_folder import is_model, save_model
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.systems import SYSTEMS
from delineate.training.loop import Budget, Run, train_phases

RESULT = Path(__file__).parent / "results" / "imagenet.json"
SETS = {
    "kvasir_seg": ("polyp", "endoscopy"),
    "isic2018": ("skin lesion", "dermoscopy"),
    "busi": ("breast lesion", "US"),
}
COUNTS = ("20", "60", "all")
ROWS = {"from ImageNet": ("efficientnet", "imagenet"), "from scratch": ("efficientnet", None), "U-Net": ("unet", None)}
BASELINE = "one mask for all"
STEPS = 6  # that --how-long times of each row, after two that it does not


def opened(data: Path, name: str) -> Dataset:
    """A set with its given splits, without training images like a held-out one."""
    target, modality = SETS[name]
    return without_twins(open_named(data / name, [target], modality))


def drawn(bank: SliceBank, count: str, seed: int) -> SliceBank:
    """As many of the training images as `count` says, by the seed."""
    if count == "all":
        return bank
    order = torch.randperm(len(bank), generator=Generator().manual_seed(seed))
    return bank.subset(order[: int(count)].sort().values)


def trained(name: str, bank: SliceBank, rate: float, run: Run, device: str) -> Any:
    """A row's system after the budget of `run`, at this learning rate."""
    row, init = SYSTEMS[ROWS[name][0]], ROWS[name][1]
    system = row.make("tiny", bank.size, bank.vocabulary, seed=run.seed, modalities=bank.modalities, init=init)
    system.to(device)
    train_phases([replace(p, hyper=replace(p.hyper, learning_rate=rate)) for p in system.phases(bank)], run)
    return system


def scored(segmenter: Segmenter, dataset: Dataset, split: str) -> dict[str, float]:
    """Mean Dice over images that show the target, and over all of them."""
    rows = evaluate(segmenter, dataset, split=split, n=1, fusions=("mean",))
    shown = [row.single["dice"] for row in rows if row.present]
    return {"dice": round(fmean(shown), 4), "dice_of_all": round(fmean(row.single["dice"] for row in rows), 4)}


def interval(values: Sequence[float]) -> list[float]:
    """Mean and 95 % of Student's t; of one value, the mean alone."""
    mean, low, high = mean_interval(np.array(values))
    return [round(v, 4) for v in (mean, low, high) if v is not None]


def key_of(dataset: str, count: str, name: str, rate: float | None, seed: int) -> str:
    """Of a run in the JSON file, and its folder in --work; the baseline has no rate."""
    rates = [] if rate is None else [f"{rate:g}"]
    return "/".join([dataset, count, name.replace(" ", "-"), *rates, str(seed)])


def jobs_of(
    args: argparse.Namespace, dataset: str, runs: dict[str, Any]
) -> Iterator[tuple[str, str, float | None, int]]:
    """Number of images, row, rate and seed of what is to be scored on a set: all on val, on test what was chosen."""
    for count, name in product(args.counts, (*ROWS, BASELINE)):
        rates: list[float | None] = [None] if name == BASELINE else args.rates
        if args.split == "test":
            rates = [chosen(args, dataset, count, name, runs)]
        for rate in rates:
            for seed in args.seeds:
                yield count, name, rate, seed


def chosen(args: argparse.Namespace, dataset: str, count: str, name: str, runs: dict[str, Any]) -> float | None:
    """The learning rate with the best val Dice over all seeds."""
    if name == BASELINE:
        return None

    def on_val(rate: float) -> float:
        keys = [key_of(dataset, count, name, rate, seed) for seed in args.seeds]
        if missing := [key for key in keys if "val" not in runs.get(key, {})]:
            sys.exit(f"{missing[0]} is not yet scored on val; run without --split test first")
        return fmean(runs[key]["val"]["dice"] for key in keys)

    return max(args.rates, key=on_val)


def one(
    args: argparse.Namespace, key: str, name: str, rate: float | None, bank: SliceBank, dataset: Dataset, seed: int
):
    """The scores of a run on the split, and how long its training took, if it was trained here."""
    if rate is None:
        untaught: Any = OneMask(bank)
        return {args.split: scored(Segmenter(untaught), dataset, args.split)}
    folder, told = args.work / key, {}
    if not is_model(folder):
        started, run = time.monotonic(), Run(Budget(images=args.images), Path(f"{folder}-training"), seed)
        system = trained(name, bank, rate, run, args.device)
        told = {"seconds": round(time.monotonic() - started, 1)}
        about = {"images": args.images, "seed": seed, "learning_rate": rate, "init": ROWS[name][1]}
        save_model(folder, Segmenter(system, bank.modalities), ROWS[name][0], training=about, card=f"{key}\n")
    return {args.split: scored(Segmenter.load(folder, args.device), dataset, args.split), **told}


def tables(args: argparse.Namespace, runs: dict[str, Any]) -> dict[str, Any]:
    """Per set and number of images each row's Dice, and what ImageNet adds; intervals are over seeds."""
    result: dict[str, Any] = {}
    for dataset, count in product(args.sets, args.counts):
        rows: dict[str, Any] = {}
        of_seeds: dict[str, list[float]] = {}
        for name in (*ROWS, BASELINE):
            rate = chosen(args, dataset, count, name, runs)
            scores = [runs[key_of(dataset, count, name, rate, seed)][args.split] for seed in args.seeds]
            of_seeds[name] = [score["dice"] for score in scores]
            rows[name] = {
                "dice": interval(of_seeds[name]),
                "dice_of_all": interval([score["dice_of_all"] for score in scores]),
                **({} if rate is None else {"learning_rate": rate}),
            }
        first = of_seeds["from ImageNet"]
        for other in ("from scratch", "U-Net"):
            rows[f"from ImageNet minus {other}"] = interval(
                [a - b for a, b in zip(first, of_seeds[other], strict=True)]
            )
        result[f"{dataset}, {count}"] = rows
    return result


def how_long(args: argparse.Namespace, bank: SliceBank) -> None:
    """Time a few steps of each row, and say what the whole will take on this machine as busy as it is now."""
    each = {}
    for name in ROWS:
        stamps: list[float] = []
        run = Run(
            Budget(images=8 * (STEPS + 2)),
            args.work / "how-long" / name.replace(" ", "-") / str(time.time_ns()),
            on_step=lambda phase, state, spent, stamps=stamps: stamps.append(time.monotonic()),
        )
        trained(name, bank, args.rates[0], run, args.device)
        each[name] = (stamps[-1] - stamps[1]) / (8 * STEPS)
        print(f"{name:16} {1000 * each[name]:7.1f} ms an image")
    trainings = len(args.sets) * len(args.counts) * len(args.seeds) * len(args.rates)
    hours = trainings * args.images * sum(each.values()) / 3600
    whole = f"{trainings * len(ROWS)} trainings of {args.images} images"
    print(f"{whole}: {hours:.1f} h on {args.device}, one thread, and scoring")


def main() -> None:
    """Train what is missing, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/imagenet"), help="models and checkpoints")
    parser.add_argument("--result", type=Path, default=RESULT, help="the JSON file")
    parser.add_argument("--images", type=int, default=2000, help="seen by every training")
    parser.add_argument("--size", type=int, default=128, help="pixels along a side")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--counts", nargs="+", choices=COUNTS, default=list(COUNTS), help="training images")
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-3, 3e-4], help="learning rates to choose from")
    parser.add_argument("--split", choices=("val", "test"), default="val")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--how-long", action="store_true", help="only say how long the whole will take")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.how_long:
        return how_long(args, build_slices([opened(args.data, args.sets[-1])], "train", args.size))
    about = {"images": args.images, "size": args.size, "threads": 1, "preset": "tiny"}
    kept = json.loads(args.result.read_text()) if args.result.is_file() else {"about": about, "runs": {}}
    if kept["about"] != about:
        sys.exit(f"{args.result}: holds runs of {kept['about']}, not of {about}; choose another --result and --work")
    runs = kept["runs"]
    for name_of_set in args.sets:
        dataset = opened(args.data, name_of_set)
        bank = build_slices([dataset], "train", args.size)
        for count, name, rate, seed in jobs_of(args, name_of_set, runs):
            key = key_of(name_of_set, count, name, rate, seed)
            if args.split in runs.get(key, {}):
                continue
            told = one(args, key, name, rate, drawn(bank, count, seed), dataset, seed)
            runs[key] = runs.get(key, {}) | told
            write_json(args.result, kept)
            print(f"{key}: {told[args.split]['dice']:.4f}", flush=True)
    kept[args.split] = tables(args, runs)
    write_json(args.result, kept)
    for heading, rows in kept[args.split].items():
        print(heading)
        for name, row in rows.items():
            print(f"  {name:32} {row['dice'] if isinstance(row, dict) else row}")


if __name__ == "__main__":
    main()
