"""ProGiDiff beside a plain U-Net on BTCV CT, trained for the same wall time, scored on the held-out test patients.

    python benchmarks/btcv.py --data ../shared/data/btcv_ct --minutes 35 --work runs/btcv

Both trainings run at the same time, each in a process of its own with half of the threads, so that whatever
else the machine does hits both alike. ProGiDiff's time includes its foundation and its image encoder.
Writes benchmarks/results/btcv.json. Run again, it goes on where it was.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from delineate import Segmenter, open_dataset
from delineate.data.dataset import Dataset
from delineate.data.slices import build_slices, slices_of
from delineate.diffusion.codec import VaeCodec, ceiling
from delineate.evaluation.alone import EstimateAlone
from delineate.evaluation.evaluation import evaluate, summarise
from delineate.evaluation.report import print_comparison
from delineate.foundation.foundation import Foundation
from delineate.metrics.overlap import paired_interval
from delineate.pictures import dice_chart
from delineate.scans.grid import to_scan_grid
from delineate.storage.files import write_json
from delineate.systems.diffusion.progidiff import ProGiDiff

RESULT = Path(__file__).parent / "results" / "btcv.json"
NINE = (  # TransUNet's eight organs, and the inferior vena cava
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "pancreas",
)


def main() -> None:
    """Train both, score both, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/btcv_ct"))
    parser.add_argument("--minutes", type=float, default=35.0)
    parser.add_argument("--work", type=Path, default=Path("runs/btcv"))
    parser.add_argument("--proposals", type=int, default=20)
    parser.add_argument("--split", default="test", help="val while choosing, test for the result")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="sampling steps instead of the model's own")
    parser.add_argument("--sampler", help="sampler instead of the model's own")
    parser.add_argument("--ablate", action="store_true", help="also score proposals drawn without the foundation")
    args = parser.parse_args()
    train_side_by_side(args)
    dataset = open_dataset(args.data)
    models = {name: Segmenter.load(args.work / name) for name in ("unet", "progidiff")}
    ours = models["progidiff"].system
    changed = {k: v for k, v in {"steps": args.steps, "sampler": args.sampler}.items() if v is not None}
    ours.config = replace(ours.config, **changed)
    models["encoder alone"] = Segmenter(EstimateAlone(ours), models["progidiff"].modalities)
    if args.ablate:
        untrusting = copy.copy(ours)
        untrusting.control = copy.deepcopy(ours.control)
        torch.nn.init.constant_(untrusting.control.trust.bias, -100.0)
        models["posterior alone"] = Segmenter(untrusting, models["progidiff"].modalities)
    rows = {
        name: evaluate(model, dataset, split=args.split, n=args.proposals, seed=args.seed)
        for name, model in models.items()
    }
    summaries = {name: summarise(r) for name, r in rows.items()}
    result = {
        "command": " ".join(["python", *sys.argv]),
        "split": args.split,
        "subjects": sorted({r.case for r in rows["unet"]}),
        "minutes_each": args.minutes,
        "threads_each": threads_each(),
        "proposals": args.proposals,
        "steps": ours.config.steps,
        "sampler": ours.config.sampler,
        "trust": trust(ours, dataset),
        "training": {name: stages(args.work / name) for name in ("unet", "progidiff")},
        "summaries": summaries,
        "progidiff_minus_unet": difference(rows["progidiff"], rows["unet"]),
        "nine_targets": {name: nine(s) for name, s in summaries.items()},
        "codec_ceilings": ceilings(dataset, models["progidiff"].system.foundation, args.split),
    }
    name = f"{args.split}-{ours.config.sampler}-{ours.config.steps}.json"
    write_json(RESULT if args.split == "test" else args.work / name, result)
    dice_chart(summaries, args.work / f"dice-{args.split}.png")
    from rich.console import Console

    print_comparison(summaries, Console())
    print(json.dumps({k: v for k, v in result.items() if k not in ("summaries", "codec_ceilings")}, indent=2))


@torch.no_grad()
def trust(system: ProGiDiff, dataset: Dataset) -> dict[int, float]:
    """How much weight the steered foundation has beside the posterior, by time; on slices of the val split."""
    bank = build_slices([dataset], "val", system.size)
    batch = bank.draw(8, 4, torch.Generator().manual_seed(0), augment=False)
    text = system.foundation.encode_text(list(bank.vocabulary.names))
    features = system.control.encoder(batch.image)
    image, concept = torch.arange(8).repeat_interleave(4), batch.concepts.flatten()
    probability = system.control.estimate(features, text.pooled)[image, 1 + concept].exp()[:, None]
    hint = system.control.hint(features[image], probability, text.pooled[concept], system.foundation.codec)
    zero, one = torch.zeros_like(hint.estimate), torch.ones_like(hint.estimate)
    times = (999, 749, 499, 249, 49)
    return {t: system.control.combine(one, zero, torch.full((32,), t), hint).mean().item() for t in times}


def stages(model: Path) -> dict:
    """Images and seconds of each training stage."""
    return json.loads((model / "config.json").read_text())["training"]["stages"]


def threads_each() -> int:
    """Half of the cores."""
    return max(1, (os.cpu_count() or 2) // 2)


def train_side_by_side(args: argparse.Namespace) -> None:
    """Both trainings at once, each with half of the threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads_each())}
    running = []
    for name in ("unet", "progidiff"):
        if (args.work / name / "manifest.json").exists():
            continue
        command = [sys.executable, "-m", "delineate", "train", name, str(args.data), "-o", str(args.work / name)]
        command += ["--minutes", str(args.minutes), "--seed", str(args.seed), "--threads", str(threads_each())]
        running.append(subprocess.Popen(command, env=environment))
    for process in running:
        if process.wait() != 0:
            sys.exit(process.returncode)


def difference(ours: list, theirs: list) -> dict:
    """Consensus Dice against the U-Net's, paired by subject and by (subject, target)."""
    key = {(r.case, r.target): r.consensus["mean"]["dice"] for r in theirs if r.present}
    pairs = [(r.case, r.consensus["mean"]["dice"], key[r.case, r.target]) for r in ours if r.present]
    cases = sorted({c for c, _, _ in pairs})
    a = np.array([np.mean([x for c, x, _ in pairs if c == case]) for case in cases])
    b = np.array([np.mean([y for c, _, y in pairs if c == case]) for case in cases])
    by_subject = paired_interval(a, b)
    by_pair = paired_interval(np.array([x for _, x, _ in pairs]), np.array([y for _, _, y in pairs]))
    names = ("difference", "low", "high")
    return {
        "by_subject": {"n": len(a), **dict(zip(names, map(float, by_subject), strict=True))},
        "by_subject_and_target": {"n": len(pairs), **dict(zip(names, map(float, by_pair), strict=True))},
    }


def nine(summary: dict) -> dict:
    """Means over the nine larger targets."""
    targets = [t for name, t in summary["targets"].items() if name in NINE]
    return {k: float(np.mean([t[k] for t in targets])) for k in ("single_dice", "consensus_dice", "oracle_dice")}


def ceilings(dataset: Dataset, foundation: Foundation, split: str) -> dict:
    """The best Dice any model can reach, per target.

    `grid`: truth to the working grid and back to the scan's voxels; `unshuffle` and `vae`: of each codec, on the grid.
    """
    bank = build_slices([dataset], split, 128)
    vae = VaeCodec(foundation.vae)
    counts: dict[str, list[int]] = {name: [0, 0] for name in dataset.labels}
    for case in dataset.split(split):
        scan, labels = dataset.read(case)
        on_grid = slices_of(dataset, case, bank.vocabulary, 128)[1]
        for i, name in enumerate(bank.vocabulary.names):
            back = to_scan_grid((on_grid == i + 1).float()[None], scan)[0] >= 0.5
            truth = labels == dataset.labels[name]
            counts[name][0] += 2 * int((back & truth).sum())
            counts[name][1] += int(back.sum() + truth.sum())
    out = {}
    for i, name in enumerate(bank.vocabulary.names):
        masks = (bank.labels == i + 1).numpy()
        masks = masks[masks.any((1, 2))]
        if len(masks):
            codecs = {"unshuffle": ceiling(foundation.codec, masks), "vae": ceiling(vae, masks)}
            out[name] = {"grid": counts[name][0] / counts[name][1], **codecs}
    return out


if __name__ == "__main__":
    main()
