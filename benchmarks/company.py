"""Ours beside U-Net, MedNeXt and nnU-Net on the same patients at equal CPU time; and what each change to ours gave.

    python benchmarks/company.py --data ../shared/data/btcv_ct --work runs/company              trains, scores on val
    python benchmarks/company.py --table ablation --minutes 10 ...                               each change alone
    python benchmarks/company.py ... --split val test                                            once, at the very end

Every training runs in a process of its own with one thread; its budget is that process's CPU time (drawing, learning,
but not reading the scans), counted by what it is worth (`steady.py`), so that what else the machine does hits none.
No run looks at held-out patients. Dice is in 3-D on each scan's own voxels, over the 13 organs of BTCV, mean over the
organs that a patient shows, then over patients; intervals are Student's t over patients of the mean over seeds.

nnU-Net needs an interpreter of its own (`--nnunet PYTHON`, see `company_nnunet.txt`). Runs whose figures are written
are not made again, wherever their models went: stop and go on at will. Writes benchmarks/results/company.json or
learning_ablation.json.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from steady import SteadyClock
from torch import Tensor

from delineate import Segmenter, open_dataset
from delineate.data import augmentation
from delineate.data.dataset import Dataset
from delineate.data.slices import build_slices
from delineate.evaluation.alone import EstimateAlone
from delineate.evaluation.evaluation import consensus_dice
from delineate.evaluation.trivial import TRIVIAL
from delineate.metrics.overlap import dice, mean_interval
from delineate.model_folder import is_model, save_model
from delineate.networks import encoder
from delineate.scans.preparation import Habits
from delineate.storage.files import write_json
from delineate.systems import SYSTEMS
from delineate.systems.diffusion import encoding, prompted
from delineate.training import loop
from delineate.training.engine import Engine
from delineate.training.judging import HeldOut, mean_score
from delineate.training.loop import Budget, Run
from delineate.training.planning import APART_MM

RESULTS = Path(__file__).parent / "results"
PROPOSALS = 8


@dataclass(frozen=True)
class Arm:
    """One way to train.

    Attributes:
        system: a row of `SYSTEMS`.
        preset: of it.
        size: of the working grid.
        coarse: whether half the resolution comes first, where the system does that.
        half_for: the share of the time at half the resolution, where it comes first; None is the package's.
        apart_mm: of a slice's neighbours; None is the next slice.
        precision: of activations.
        old_loss: Dice over all names with 1 added above and below, as it was.
        mild: the augmentation's maps as they were: ±15°, scale 0.8 to 1.25.
        plain: its greys as they were: no curves, no structure with a contrast of its own.
        batch: slices at once.
        sigmoid: each organ against all else, in the place of one softmax; such an arm is scored by its labels alone.
    """

    system: str = "encoder"
    preset: str = "small"
    size: int = 256
    coarse: bool = True
    half_for: float | None = None
    apart_mm: float | None = APART_MM
    precision: str = "bfloat16"
    old_loss: bool = False
    mild: bool = False
    plain: bool = False
    batch: int = 8
    sigmoid: bool = False


@dataclass(frozen=True)
class Foreign:
    """nnU-Net, by `company_nnunet.py`: options of it."""

    options: tuple[str, ...] = ("--bfloat16",)


NONE = Arm(
    "progidiff", "tiny", 128, coarse=False, apart_mm=None, precision="float32", old_loss=True, mild=True, plain=True
)
ALL = Arm()
COMPANY: dict[str, Arm | Foreign] = {
    "ours": ALL,
    "ours, half for two thirds": replace(ALL, half_for=2 / 3),
    "U-Net 256": Arm("unet", "tiny"),
    "U-Net 128": Arm("unet", "tiny", 128),
    "MedNeXt 128": Arm("mednext", "tiny", 128),
    "nnU-Net 2-D, small batch": Foreign(("--bfloat16", "--memory", "1")),
    "nnU-Net 2-D": Foreign(),
    "MedNeXt 256": Arm("mednext", "tiny"),
}
ABLATION: dict[str, Arm | Foreign] = {
    "none": NONE,
    "all": ALL,
    "the loss": replace(NONE, old_loss=False),
    "no generator": replace(NONE, system="encoder"),
    "256 pixels": replace(NONE, size=256),
    "256 pixels, half first": replace(NONE, size=256, coarse=True),
    "five levels, thin": replace(NONE, preset="small"),
    "neighbours in mm": replace(NONE, apart_mm=APART_MM),
    "bfloat16": replace(NONE, precision="bfloat16"),
    "wider augmentation": replace(NONE, mild=False),
    "contrasts of their own": replace(NONE, plain=False),
    "all, plain greys": replace(ALL, plain=True),
    "all, each by itself": replace(ALL, sigmoid=True),
    "all, 4 at once": replace(ALL, batch=4),
    "all, 16 at once": replace(ALL, batch=16),
}
TABLES = {"company": (COMPANY, RESULTS / "company.json"), "ablation": (ABLATION, RESULTS / "learning_ablation.json")}


def main() -> None:
    """Train what is missing, score what is not scored, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/btcv_ct"))
    parser.add_argument("--work", type=Path, default=Path("runs/company"))
    parser.add_argument("--table", choices=TABLES, default="company")
    parser.add_argument("--minutes", type=float, default=20.0, help="of CPU time each")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--arms", nargs="+", help="of the table, in this order; all by default")
    parser.add_argument("--split", choices=("val", "test"), nargs="+", default=["val"])
    parser.add_argument("--at-once", type=int, default=1, help="trainings at a time, a core for each")
    parser.add_argument("--nnunet", type=Path, help="an interpreter that has nnunetv2")
    parser.add_argument("--one", nargs=2, metavar=("ARM", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        train_one(args, args.one[0], int(args.one[1]))
        return
    arms, result = TABLES[args.table]
    if unknown := set(args.arms or ()) - set(arms):
        parser.error(f"--arms of '{args.table}' are {', '.join(arms)}; got {', '.join(sorted(unknown))}")
    told: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {"runs": {}, "trivial": {}}
    jobs = [(arm, seed) for seed in args.seeds for arm in args.arms or arms]
    jobs = [job for job in jobs if not set(args.split) <= told["runs"].get("/".join(map(str, job)), {}).keys()]
    jobs = [job for job in jobs if done(args, *job) or args.nnunet or isinstance(arms[job[0]], Arm)]
    print(f"{len(jobs)} runs of {args.minutes:g} minutes of CPU time, {args.at_once} at a time", flush=True)
    dataset = open_dataset(args.data)
    for split in set(args.split) - told["trivial"].keys():
        told["trivial"][split] = trivial(dataset, split)
    with ThreadPoolExecutor(args.at_once) as pool:
        for (arm, seed), run in zip(jobs, pool.map(lambda job: run_one(args, *job, dataset), jobs), strict=True):
            told["runs"][f"{arm}/{seed}"] = run
            told["command"] = " ".join(["python", *sys.argv])
            told |= {f"table_{split}": table(told, split) for split in args.split}
            write_json(result, told)
    print(json.dumps({split: told[f"table_{split}"] for split in args.split}, indent=2))


def folder_of(args: argparse.Namespace, arm: str, seed: int) -> Path:
    """Where a run keeps its model, or its masks."""
    return args.work / args.table / f"{arm.replace(' ', '-').replace(',', '')}-{seed}"


def done(args: argparse.Namespace, arm: str, seed: int) -> bool:
    """Whether a run came to its end."""
    folder = folder_of(args, arm, seed)
    return is_model(folder / "model") or (folder / "told.json").exists()


def run_one(args: argparse.Namespace, arm: str, seed: int, dataset: Dataset) -> dict[str, Any]:
    """A training in a process of its own, if it was not to its end before; and what came of it."""
    if not done(args, arm, seed):
        train(args, arm, seed)
    started = time.monotonic()
    run = {"minutes": args.minutes} | {split: scored(args, arm, seed, dataset, split) for split in args.split}
    print(f"{arm}, seed {seed}: scored in {time.monotonic() - started:.0f} s", flush=True)
    return run | how_much(args, arm, seed)


def train(args: argparse.Namespace, arm: str, seed: int) -> None:
    """One training, in a process of its own."""
    folder, one = folder_of(args, arm, seed), TABLES[args.table][0][arm]
    folder.mkdir(parents=True, exist_ok=True)
    common = ["--data", str(args.data)]
    if isinstance(one, Arm):
        command = [sys.executable, __file__, "--one", arm, str(seed), "--table", args.table, *common]
        command += ["--work", str(args.work), "--minutes", str(args.minutes)]
    else:
        splits = {s: [case.name for case in open_dataset(args.data).split(s)] for s in ("train", "val", "test")}
        write_json(folder / "splits.json", splits)
        command = [str(args.nnunet), str(Path(__file__).parent / "company_nnunet.py"), *common, *one.options]
        command += ["--splits", str(folder / "splits.json"), "--work", str(args.work / "nnunet")]
        command += ["--out", str(folder), "--seconds", str(60 * args.minutes), "--seed", str(seed)]
    started = time.monotonic()
    with (folder / "log.txt").open("w") as log:
        code = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"}
        ).returncode
    print(f"{arm}, seed {seed}: {time.monotonic() - started:.0f} s, exit {code}", flush=True)
    if code:
        sys.exit(f"{arm}, seed {seed} failed: see {folder / 'log.txt'}; run again to go on")


def train_one(args: argparse.Namespace, name: str, seed: int) -> None:
    """Train an arm of ours and save it."""
    arm, folder = TABLES[args.table][0][name], folder_of(args, name, seed)
    assert isinstance(arm, Arm)
    clock = loop.time = SteadyClock(args.work / "clock.json")  # type: ignore[assignment]
    if arm.old_loss:
        encoding.segmentation_loss = old_loss  # type: ignore[assignment]
    if not arm.coarse:
        prompted.coarse_share = lambda size: 0.0
    elif (share := arm.half_for) is not None:
        prompted.coarse_share = lambda size: share
    if arm.mild:
        augmentation.AUGMENTATIONS["default"] = replace(augmentation.AUGMENTATIONS["default"], place=mild_place)
    if arm.plain:
        plain = {"shade": augmentation._default_shade, "enhance": None}
        augmentation.AUGMENTATIONS["default"] = replace(augmentation.AUGMENTATIONS["default"], **plain)
    if arm.sigmoid:
        encoding.segmentation_loss = loss_of_each  # type: ignore[assignment]
        encoder.PromptedEncoder.estimate = estimate_of_each  # type: ignore[method-assign]
    Engine.batch_size = lambda self, usual, device: arm.batch  # type: ignore[method-assign]
    dataset = open_dataset(args.data)
    bank = build_slices([dataset], "train", arm.size, apart_mm=arm.apart_mm)
    row, logs = SYSTEMS[arm.system], {}

    def on_step(phase: Any, state: Any, spent: float) -> None:
        logs[getattr(phase, "name", phase)] = {"images": state.images_seen, "seconds": round(state.seconds, 1)}

    run = Run(Budget(minutes=args.minutes), folder / "run", seed, engine=Engine(arm.precision), on_step=on_step)
    made = row.make(arm.preset, arm.size, bank.vocabulary, seed=seed, modalities=bank.modalities)
    system = row._file().train(made, bank, run)
    segmenter = Segmenter(system, bank.modalities, habits=Habits(apart_mm=arm.apart_mm))
    val = build_slices([dataset], "val", arm.size, vocabulary=bank.vocabulary, apart_mm=arm.apart_mm)
    on_grid = {name: round(value, 4) for name, value in HeldOut(val).dice(system.labels).items()}
    training = {
        "clock": clock.about(),
        "stages": logs,
        "val_on_grid": {"mean": round(mean_score(on_grid), 4), **on_grid},
    }
    save_model(folder / "model", segmenter, arm.system, training=training, card="")


def old_loss(log_probability: Tensor, labels: Tensor, where: Tensor | None = None) -> Tensor:
    """Cross entropy plus Dice over all names, 1 added above and below."""
    entropy = torch.nn.functional.nll_loss(log_probability, labels)
    probability = log_probability[:, 1:].exp()
    mask = (labels[:, None] == torch.arange(1, 1 + probability.shape[1])[:, None, None]).float()
    both, total = (probability * mask).sum((0, 2, 3)), (probability + mask).sum((0, 2, 3))
    return entropy + (1 - (2 * both + 1) / (total + 1)).mean()


def estimate_of_each(
    self: encoder.PromptedEncoder, features: Any, pooled: Tensor, possible: Tensor | None = None
) -> Tensor:
    """Log-probabilities of every organ by itself, (B, 1 + C, S, S), behind background's one half."""
    logits = torch.nn.functional.logsigmoid(self.head(features.fine, pooled))
    return torch.cat([torch.full_like(logits[:, :1], math.log(0.5)), logits], dim=1)


def loss_of_each(log_probability: Tensor, labels: Tensor, where: Tensor | None = None) -> Tensor:
    """Binary cross entropy and Dice of every organ that the batch shows, else entropy alone."""
    own = log_probability[:, 1:].float()
    mask = (labels[:, None] == torch.arange(1, 1 + own.shape[1])[:, None, None]).float()
    entropy = -(mask * own + (1 - mask) * torch.log1p(-own.exp().clamp(max=1 - 1e-6))).mean((0, 2, 3)).sum()
    both, total, shown = (own.exp() * mask).sum((0, 2, 3)), (own.exp() + mask).sum((0, 2, 3)), mask.sum((0, 2, 3)) > 0
    return entropy + (1 - (2 * both + 1e-5) / (total + 1e-5))[shown].sum() / shown.sum().clamp(min=1)


def mild_place(mirrored: Tensor, generator: torch.Generator) -> Tensor:
    """Rotation ±15°, scale 0.8 to 1.25, shift ±8 %."""
    turn, zoom, *shift = (2 * torch.rand(len(mirrored), generator=generator) - 1 for _ in range(4))
    signs = torch.ones(len(mirrored), 2)
    return augmentation.similarities(15 * turn, 1.25**zoom, signs, 0.16 * torch.stack(shift, dim=1))


Scores = dict[str, dict[str, float]]  # Dice by case and target


def scored(args: argparse.Namespace, arm: str, seed: int, dataset: Dataset, split: str) -> dict[str, Scores]:
    """Of a run that is done: consensus of proposals, and the encoder alone where there is one.

    Nothing of an arm without a softmax: proposals would be drawn by one. Its labels are scored in training.
    """
    folder, one = folder_of(args, arm, seed), TABLES[args.table][0][arm]
    if isinstance(one, Arm) and one.sigmoid:
        return {}
    if not is_model(folder / "model"):
        return {"consensus": of_masks(folder, dataset, split)}
    segmenter = Segmenter.load(folder / "model")
    out = {"consensus": of_segmenter(segmenter, dataset, split)}
    if hasattr(segmenter.system, "estimate"):
        alone: Any = EstimateAlone(segmenter.system)
        bare = Segmenter(alone, segmenter.modalities, habits=segmenter.habits)
        out["encoder alone"] = of_segmenter(bare, dataset, split)
    return out


def of_segmenter(segmenter: Segmenter, dataset: Dataset, split: str) -> Scores:
    """Of the consensus of proposals."""
    return rounded(consensus_dice(segmenter, dataset, split=split, n=PROPOSALS))


def rounded(scores: Scores) -> Scores:
    """To five digits."""
    return {case: {name: round(value, 5) for name, value in own.items()} for case, own in scores.items()}


def of_masks(folder: Path, dataset: Dataset, split: str) -> Scores:
    """Of label images that another program drew, in the dataset's own ids."""
    import nibabel as nib
    import numpy as np

    out: Scores = {}
    for case in dataset.split(split):
        labels = dataset.read(case)[1]
        drawn = np.asanyarray(nib.load(folder / f"{case.name}.nii.gz").dataobj)
        out[case.name] = {
            name: dice(drawn == number, labels == number)
            for name, number in dataset.labels.items()
            if (labels == number).any()
        }
    return rounded(out)


def trivial(dataset: Dataset, split: str) -> dict[str, Scores]:
    """Of the trivial baselines."""
    bank = build_slices([dataset], "train", 256)
    return {name: of_segmenter(Segmenter(make(bank), (None,)), dataset, split) for name, make in TRIVIAL.items()}


def how_much(args: argparse.Namespace, arm: str, seed: int) -> dict[str, Any]:
    """Images and CPU seconds of a run's stages."""
    folder = folder_of(args, arm, seed)
    if is_model(folder / "model"):
        return json.loads((folder / "model" / "config.json").read_text())["training"]
    return json.loads((folder / "told.json").read_text())


def table(told: dict[str, Any], split: str) -> dict[str, Any]:
    """Means of every arm, its organs, and ours minus it, by patient."""
    scores: dict[str, list[Scores]] = {}
    for key, run in told["runs"].items():
        for what, own in run.get(split, {}).items():
            name = key.split("/")[0]
            scores.setdefault(name if what == "consensus" else f"{name}, {what}", []).append(own)
    for name, own in told["trivial"].get(split, {}).items():
        scores[name] = [own]
    by_case = {name: patients(runs) for name, runs in scores.items()}
    first = next((name for name in ("ours", "all") if name in by_case), next(iter(by_case)))
    out = {}
    for name, runs in sorted(scores.items(), key=lambda item: -fmean(by_case[item[0]].values())):
        organs: dict[str, list[float]] = {}
        for target, value in [pair for run in runs for case in run.values() for pair in case.items()]:
            organs.setdefault(target, []).append(value)
        minus = [by_case[first][case] - by_case[name][case] for case in by_case[first]]
        out[name] = {
            "seeds": len(runs),
            "dice": interval(list(by_case[name].values())),
            "each_seed": [round(fmean(fmean(case.values()) for case in run.values()), 4) for run in runs],
            f"{first}_minus": interval(minus),
            "organs": {
                t: round(fmean(c[t] for run in runs for c in run.values() if t in c), 3) for t in sorted(organs)
            },
        }
    return out


def patients(runs: Sequence[Scores]) -> dict[str, float]:
    """Mean Dice of every patient, over organs and seeds."""
    return {case: fmean(fmean(run[case].values()) for run in runs) for case in runs[0]}


def interval(values: Sequence[float]) -> list[float]:
    """Mean and 95 % of Student's t; of one value, the mean alone."""
    mean, low, high = mean_interval(np.array(values))
    return [round(v, 4) for v in (mean, low, high) if v is not None]


if __name__ == "__main__":
    main()
