"""Lesions of five modalities: UniSegDiff beside U-Net, MedNeXt, one-step latent diffusion and uniform DDIM.

    python benchmarks/lesions.py --data ../shared/data --minutes 10 --work runs/lesions

Polyps (endoscopy), skin lesions (dermoscopy), breast lesions (ultrasound), lung nodules (CT, truth: what half of the
raters drew) and nuclei (H&E); held-out test subjects. Every unified system is trained on all five sets at once for the
same time, U-Net and MedNeXt also on each set alone for a fifth of it ("individual").

The time is turned into images: each system's processor seconds an image on one thread are measured first, in turn, and
the fastest of the rounds counts, so that what else the machine does in the hours of training favours nobody. Two
trainings run side by side with a thread each. Writes benchmarks/results/lesions.json. Run again, it goes on where it
was.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy import stats

from delineate import open_dataset
from delineate.data.dataset import Dataset
from delineate.data.folds import Fold, fold_of
from delineate.data.lidc import write_lidc
from delineate.data.slices import SliceBank
from delineate.evaluation.evaluation import Row, evaluate, summarise
from delineate.jobs.opening import read_bank
from delineate.jobs.train import TrainRequest, train_on
from delineate.jobs.watch import Nobody
from delineate.metrics.overlap import paired_interval
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.systems import SYSTEMS
from delineate.training.loop import Budget, Run

RESULT = Path(__file__).parent / "results" / "lesions.json"
SETS = {
    "kvasir_seg": ("polyp", "endoscopy"),
    "isic2018": ("skin lesion", "dermoscopy"),
    "busi": ("breast lesion", "US"),
    "lidc4": ("lung nodule", "CT"),
    "dsb2018_he": ("nuclei", "histopathology"),
}
UNIFIED = ("unisegdiff", "unet", "mednext", "sdseg", "ddim")
INDIVIDUAL = ("unet", "mednext")
PROPOSALS = {"ddim": 1}  # a hundred steps each: one chain, or the scoring takes hours
FUSIONS = ("mean", "majority", "staple")
SEED_OF_TIMING = 1


def main() -> None:
    """Time, train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, on an idle thread, for each system")
    parser.add_argument("--work", type=Path, default=Path("runs/lesions"))
    parser.add_argument("--preset", default="tiny", choices=("tiny", "large"), help="large: 256², for a GPU")
    parser.add_argument("--proposals", type=int, default=20)
    parser.add_argument("--split", default="test", help="val while choosing, test for the result")
    parser.add_argument("--fold", help="such as 1/4: a fold of a cross-validation by subject instead of splits.json")
    parser.add_argument("--limit", type=int, help="score so many cases of each set only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="how many trainings or scorings at once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", help="these runs alone, such as unisegdiff or unet-busi")
    parser.add_argument("--phase", choices=("train", "score", "report", "all"), default="all")
    parser.add_argument("--run", help=argparse.SUPPRESS)  # one job, in a process of its own
    args = parser.parse_args()
    torch.set_num_threads(1)
    datasets = gather(args.data, args.work)
    if args.fold:
        datasets = {name: fold_of(dataset, *Fold.parse(args.fold)) for name, dataset in datasets.items()}
    runs = {system: (system, list(SETS)) for system in UNIFIED}
    runs |= {f"{system}-{one}": (system, [one]) for system in INDIVIDUAL for one in SETS}
    if args.run:
        return (train_one if args.phase == "train" else score_one)(args, args.run, *runs[args.run], datasets)
    wanted = [name for name in runs if not args.only or name in args.only]
    if args.phase in ("train", "all"):
        timing(args, datasets, list(dict.fromkeys(runs[name][0] for name in wanted)))
    for phase in ("train", "score"):
        if args.phase in (phase, "all"):
            queue(args, phase, wanted)
    if args.phase in ("report", "all"):
        report(args, [name for name in runs if rows_path(args, name).exists()], datasets)


def gather(data: Path, work: Path) -> dict[str, Dataset]:
    """The five sets, LIDC written out with its raters."""
    lidc = work / "lidc4"
    if not lidc.exists():
        write_lidc(data / "lidc4" / "lidc4.npz", data / "splits.json", lidc)
    roots = {name: lidc if name == "lidc4" else data / name for name in SETS}
    return {
        name: open_dataset(roots[name], targets=[target], modality=modality)
        for name, (target, modality) in SETS.items()
    }


def bank_of(args: argparse.Namespace, datasets: Sequence[Dataset]) -> SliceBank:
    """Training slices on the preset's grid, every set drawn as often as any other."""
    return read_bank(datasets, SYSTEMS["unet"].presets[preset_of(args, "unet")], Nobody())


def preset_of(args: argparse.Namespace, system: str) -> str:
    """The preset of a system: each has its own name for the larger one."""
    return "tiny" if args.preset == "tiny" else next(p for p in ("base", "small") if p in SYSTEMS[system].presets)


def timing(
    args: argparse.Namespace, datasets: dict[str, Dataset], systems: Sequence[str], rounds: int = 3, images: int = 96
) -> None:
    """Processor seconds of training an image, for each system: the least of a few rounds in turn. Measured once."""
    path = args.work / "timing.json"
    known: dict[str, list[float]] = json.loads(path.read_text())["rounds"] if path.exists() else {}
    missing: dict[str, list[float]] = {system: [] for system in systems if system not in known}
    if not missing:
        return
    bank = bank_of(args, list(datasets.values()))
    for _ in range(rounds):
        for system, measured in missing.items():
            start = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                SYSTEMS[system].train(
                    bank,
                    preset_of(args, system),
                    Run(Budget(images=images), Path(folder), seed=SEED_OF_TIMING),
                    device=args.device,
                )
            measured.append((time.process_time() - start) / images)
            print(f"{system}: {1000 * measured[-1]:.1f} ms of training an image", flush=True)
    known |= missing
    write_json(path, {"seconds_an_image": {s: min(m) for s, m in known.items()}, "rounds": known})


def images_for(args: argparse.Namespace, system: str, share: float) -> int:
    """How many images a system sees in its time."""
    each = json.loads((args.work / "timing.json").read_text())["seconds_an_image"][system]
    return int(60 * args.minutes * share / each) // 8 * 8


def queue(args: argparse.Namespace, phase: str, names: Sequence[str]) -> None:
    """The unfinished jobs of a phase, `--workers` at a time, each in a process with one thread."""
    done: Callable[[str], Path] = (
        (lambda n: model_path(args, n) / "manifest.json") if phase == "train" else (lambda n: rows_path(args, n))
    )
    waiting = [name for name in names if not done(name).exists()]
    running: dict[str, subprocess.Popen] = {}
    command = [sys.executable, *sys.argv, "--phase", phase, "--run"]
    while waiting or running:
        while waiting and len(running) < args.workers:
            name = waiting.pop(0)
            print(f"{phase}: {name}", flush=True)
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            running[name] = subprocess.Popen([*command, name], env=environment, stdout=subprocess.DEVNULL)
        time.sleep(1)
        for name in [n for n, process in running.items() if process.poll() is not None]:
            if running.pop(name).returncode != 0:
                sys.exit(f"{phase} {name} failed; run again to go on")


def model_path(args: argparse.Namespace, name: str) -> Path:
    """Where a run's model is."""
    return folder_of(args) / name


def rows_path(args: argparse.Namespace, name: str) -> Path:
    """Where a run's scores are."""
    return folder_of(args) / f"{name}-{args.split}-{args.proposals}.json"


def folder_of(args: argparse.Namespace) -> Path:
    """Where a seed's (and a fold's) models and scores are."""
    return args.work / (f"seed{args.seed}" + (f"-fold-{args.fold.replace('/', '-of-')}" if args.fold else ""))


def train_one(args: argparse.Namespace, name: str, system: str, sets: list[str], datasets: dict[str, Dataset]) -> None:
    """One training, to its model folder."""
    chosen, output = [datasets[s] for s in sets], model_path(args, name)
    work = Path(f"{output}-training")
    work.mkdir(parents=True, exist_ok=True)
    images, roots = images_for(args, system, len(sets) / len(SETS)), [d.root for d in chosen]
    request = TrainRequest(system, roots, preset_of(args, system), images=images, seed=args.seed)
    about = {"system": system, "preset": request.preset, "minutes": None, "seed": args.seed, "images": images}
    bank = bank_of(args, chosen)
    train_on(request, bank, output, work, about, [d.name for d in chosen], device=args.device)


def score_one(args: argparse.Namespace, name: str, system: str, sets: list[str], datasets: dict[str, Dataset]) -> None:
    """All proposals of one model on its sets; for UniSegDiff also its condition network alone."""
    segmenter = Segmenter.load(model_path(args, name), args.device)
    n = PROPOSALS.get(system, args.proposals)
    score(args, name, segmenter, n, sets, datasets)
    if system == "unisegdiff":
        alone = Segmenter(ConditionAlone(segmenter.system), segmenter.modalities)
        score(args, "condition network alone", alone, 1, sets, datasets)


def score(
    args: argparse.Namespace, name: str, segmenter: Segmenter, n: int, sets: list[str], datasets: dict[str, Dataset]
) -> None:
    """Rows of one segmenter, and the seconds an image they took."""
    rows, seconds = {}, {}
    for one in sets:
        start = time.perf_counter()
        rows[one] = evaluate(segmenter, datasets[one], split=args.split, n=n, fusions=FUSIONS, limit=args.limit)
        seconds[one] = (time.perf_counter() - start) / len(rows[one])
    write_json(
        rows_path(args, name),
        {"rows": {k: [asdict(r) for r in v] for k, v in rows.items()}, "seconds_an_image": seconds, "proposals": n},
    )


class ConditionAlone:
    """UniSegDiff without its diffusion: the condition network's own probability as the only proposal."""

    def __init__(self, system: Any):
        self.system, self.vocabulary, self.size, self.see = system, system.vocabulary, system.size, system.see

    def propose(self, seen, target, n, seed, on_step=None):  # noqa: D102
        return self.system.estimate(seen, target)[None]


def report(args: argparse.Namespace, names: Sequence[str], datasets: dict[str, Dataset]) -> None:
    """Tables of means and of paired differences, as JSON and on the terminal."""
    rows: dict[str, dict[str, list[Row]]] = {}
    for name in [*names, "condition network alone"]:
        if not rows_path(args, name).exists():
            continue
        kept = {k: [Row(**r) for r in v] for k, v in json.loads(rows_path(args, name).read_text())["rows"].items()}
        label = f"{name.split('-')[0]} individual" if "-" in name else name
        rows[label] = rows.get(label, {}) | kept
    systems = {label: {"sets": {one: figures(own) for one, own in by_set.items()}} for label, by_set in rows.items()}
    for entry in systems.values():
        keys = next(iter(entry["sets"].values()))
        entry["mean"] = {k: fmean(s[k] for s in entry["sets"].values()) for k in keys if k != "n"}
    ours = rows["unisegdiff"]
    result = {
        "command": " ".join(["python", *sys.argv]),
        "split": args.split,
        "cases": {one: len({r.case for r in own}) for one, own in ours.items()},
        "minutes_each": args.minutes,
        "threads_each": 1,
        "timing": json.loads((args.work / "timing.json").read_text()),
        "images": {s: images_for(args, s, 1.0) for s in UNIFIED if s in systems},
        "proposals": {label: PROPOSALS.get(label, args.proposals) for label in systems},
        "seed": args.seed,
        "fold": args.fold,
        "systems": systems,
        "unisegdiff_minus": {
            label: {how: differences(ours, other, how, datasets) for how in ("single", *FUSIONS)}
            for label, other in rows.items()
            if label != "unisegdiff" and set(other) == set(SETS)
        },
    }
    final = args.split == "test" and args.seed == 0 and not args.fold
    write_json(RESULT if final else folder_of(args) / f"lesions-{args.split}.json", result)
    print_tables(result)


def figures(rows: list[Row]) -> dict[str, float]:
    """MDice and mIoU over cases that show the target, single, fused and oracle; and Dice over all cases."""
    means = summarise(rows)
    own = next(iter(means["targets"].values()))
    return {
        "n": own["n"],
        **{k: own[k] for k in ("single_dice", "single_iou", *(f"{f}_dice" for f in FUSIONS), "iou", "oracle_dice")},
        **{f"{f}_iou": fmean(r.consensus[f]["iou"] for r in rows if r.present) for f in FUSIONS},
        "ged": own["ged"],
        "all_cases_dice": own["all_cases"]["consensus_dice"],
        "all_cases_n": own["all_cases"]["n"],
    }


def differences(
    ours: dict[str, list[Row]], theirs: dict[str, list[Row]], how: str, datasets: dict[str, Dataset]
) -> dict[str, Any]:
    """Dice of ours minus that of the other's mean, paired by subject, with 95 % bootstrap intervals."""

    def paired(one: str) -> tuple[np.ndarray, np.ndarray]:
        subject_of = {case.name: case.subject for case in datasets[one].cases}
        other = {r.case: r.consensus["mean"]["dice"] for r in theirs[one] if r.present}
        pairs: dict[str, list[tuple[float, float]]] = {}
        for r in ours[one]:
            if r.present and r.case in other:
                mine = r.single["mean_dice"] if how == "single" else r.consensus[how]["dice"]
                pairs.setdefault(subject_of[r.case], []).append((mine, other[r.case]))
        by_subject = np.array([np.mean(values, axis=0) for values in pairs.values()])
        return by_subject[:, 0], by_subject[:, 1]

    out, names = {}, ("difference", "low", "high")
    for one in SETS:
        a, b = paired(one)
        out[one] = {"n": len(a), **dict(zip(names, map(float, paired_interval(a, b)), strict=True))}
    out["mean"] = dict(zip(names, macro_bootstrap([a - b for a, b in map(paired, SETS)]), strict=True))
    return out


def macro_bootstrap(differences: Sequence[np.ndarray], resamples: int = 10_000) -> tuple[float, float, float]:
    """Mean over sets of the mean difference, and its interval: subjects are drawn within each set."""

    def macro(*sets: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.mean([one.mean(axis=axis) for one in sets], axis=0)

    drawn = stats.bootstrap(differences, macro, n_resamples=resamples, vectorized=True, method="percentile", rng=0)
    return float(macro(*differences)), float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)


def print_tables(result: dict[str, Any]) -> None:
    """What a reader wants to see first."""
    from rich.console import Console
    from rich.table import Table

    table = Table("mDice", *SETS, "mean", "single", "majority", "STAPLE", "oracle", box=None, pad_edge=False)
    for label, entry in result["systems"].items():
        cells = [f"{entry['sets'][one]['mean_dice']:.3f}" if one in entry["sets"] else "" for one in SETS]
        more = ("mean_dice", "single_dice", "majority_dice", "staple_dice", "oracle_dice")
        table.add_row(label, *cells, *(f"{entry['mean'][k]:.3f}" for k in more))
    console = Console(width=150)
    console.print(table)
    for label, by_fusion in result["unisegdiff_minus"].items():
        d = by_fusion["mean"]["mean"]
        console.print(f"unisegdiff - {label}: {d['difference']:+.3f} [{d['low']:+.3f}, {d['high']:+.3f}]")


if __name__ == "__main__":
    main()
