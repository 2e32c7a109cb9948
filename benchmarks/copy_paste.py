"""Few labels on skin lesions: bidirectional copy-paste beside the same labels alone, and itself without its teacher.

    python benchmarks/copy_paste.py --data ../shared/data --work runs/copy_paste            trains and scores on val
    python benchmarks/copy_paste.py --data ../shared/data --work runs/copy_paste --split test

ISIC 2018, 40 labelled training images drawn by the seed, all other training images unlabelled; a U-Net at 128², every
row for the same number of images. Jobs that are done are skipped. Writes benchmarks/results/copy_paste.json.
"""

import argparse
import time
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from torch import Generator

from delineate.data.named import open_named
from delineate.data.slices import SliceBank, build_slices
from delineate.data.unlabelled import UnlabelledBank
from delineate.evaluation.evaluation import evaluate
from delineate.metrics.overlap import dice, mean_interval
from delineate.model_folder import is_model, save_model
from delineate.schemes import SCHEMES, Streams
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.systems import SYSTEMS
from delineate.training.loop import Budget, Run

RESULT = Path(__file__).parent / "results" / "copy_paste.json"
ROWS = {  # name: labelled images, scheme
    "40 labels": (40, None),
    "40 labels, copy-paste without a teacher": (40, "copypaste"),
    "40 labels, bidirectional copy-paste": (40, "bcp"),
    "all labels": (None, None),
}


def streams_of(bank: SliceBank, count: int | None, seed: int) -> Streams:
    """The labelled slices of a draw, and the rest without labels."""
    order = torch.randperm(len(bank), generator=Generator().manual_seed(seed))
    chosen, rest = order[:count].sort().values, order[count:] if count else order[:0]
    return Streams(bank.subset(chosen), UnlabelledBank(bank.images[rest], bank.mirrored[rest]) if len(rest) else None)


def interval(values: list[float]) -> list[float]:
    """Mean and 95 % of Student's t; of one value, the mean alone."""
    mean, low, high = mean_interval(np.array(values))
    return [round(v, 4) for v in (mean, low, high) if v is not None]


def main() -> None:
    """Train what is missing, score, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/copy_paste"))
    parser.add_argument("--images", type=int, default=4000)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--split", default="val")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = open_named(args.data / "isic2018", ["skin lesion"], "dermoscopy")
    bank = build_slices([dataset], "train", args.size)
    scores: dict[str, list[list[float]]] = {name: [] for name in (*ROWS, "one mask for all")}
    truths = [dataset.read(case)[1] == 1 for case in dataset.split(args.split)]
    for seed in args.seeds:
        for name, (count, scheme) in ROWS.items():
            folder = args.work / f"{name.replace(' ', '-').replace(',', '')}-{seed}"
            if not is_model(folder):
                streams, started = streams_of(bank, count, seed), time.monotonic()
                run = Run(Budget(images=args.images), Path(f"{folder}-training"), seed)
                row = SYSTEMS["unet"]
                if scheme is None:
                    system = row.train(streams.labelled, "tiny", run)
                else:
                    system = SCHEMES[scheme].train(row, streams, "tiny", run)
                told = {"seconds": round(time.monotonic() - started, 1), "images": args.images, "seed": seed}
                save_model(folder, Segmenter(system, bank.modalities), "unet", training=told, card=f"{name}\n")
            rows = evaluate(Segmenter.load(folder), dataset, split=args.split, n=1)
            scores[name].append([row.single["dice"] for row in rows])
            print(f"seed {seed}: {name}: {fmean(scores[name][-1]):.4f}", flush=True)
        common = _constant(streams_of(bank, 40, seed).labelled, truths)
        scores["one mask for all"].append(common)
        print(f"seed {seed}: one mask for all: {fmean(common):.4f}", flush=True)
    means = {name: [fmean(one) for one in of_seeds] for name, of_seeds in scores.items()}
    ours, alone, pasted = (means[name] for name in list(ROWS)[2::-1])
    result = {
        "dataset": "isic2018",
        "split": args.split,
        "images": args.images,
        "size": args.size,
        "threads": 1,
        "seeds": args.seeds,
        "dice": {name: {"seeds": [round(v, 4) for v in v_], "mean": interval(v_)} for name, v_ in means.items()},
        "bcp minus without a teacher": interval([a - b for a, b in zip(ours, alone, strict=True)]),
        "bcp minus 40 labels": interval([a - b for a, b in zip(ours, pasted, strict=True)]),
    }
    for name, value in result["dice"].items():
        print(f"{name:44} {value['mean']}")
    print({k: v for k, v in result.items() if "minus" in k})
    write_json(RESULT.with_name(f"copy_paste_{args.split}.json") if args.split != "test" else RESULT, result)


def _constant(bank: SliceBank, truths: list[np.ndarray]) -> list[float]:
    """Dice of the best constant mask: where a share of the labelled masks agree that maximises their mean Dice."""
    masks = (bank.labels == 1).float()
    mean = masks.mean(0)

    def of(level: float) -> float:
        guess = (mean >= level).float()
        return float((2 * (guess * masks).sum((1, 2)) / (guess.sum() + masks.sum((1, 2))).clamp(min=1)).mean())

    best = mean >= max((level / 20 for level in range(1, 20)), key=of)
    scores = []
    for truth in truths:
        shape = truth.shape[-2:]
        side = max(shape)
        big = torch.nn.functional.interpolate(best[None, None].float(), (side, side))[0, 0] >= 0.5
        top, left = (side - shape[0]) // 2, (side - shape[1]) // 2
        scores.append(dice(big[top : top + shape[0], left : left + shape[1]].numpy()[None], truth))
    return scores


if __name__ == "__main__":
    main()
