"""A model carried to another kind of scan by a few labelled ones: who needs how many, and what it costs.

    python benchmarks/adapt.py --ct runs/btcv --lesions runs/lesions/seed0

Needs a folder with progidiff/ and unet/, trained on BTCV CT for half an hour each (`delineate train`), and the models
that benchmarks/lesions.py trained. Three questions, a phase each:

mr      BTCV CT to CHAOS MR (liver, both kidneys, spleen): every kind of adapter, fine-tuning and training from scratch,
        for ProGiDiff and the U-Net, on 1, 3, 5 and all 8 training patients, three draws; and CT with the adapter on.
colour  Polyps of Kvasir-SEG to the same colonoscope seen badly: a colour cast, blur and vignetting made here
        (`worse`, of two strengths), from 5 images; UniSegDiff and the U-Net.
ranks   the other ranks of LoRA at the other numbers of shots.
bias    Dice and doubt in MR against the strength of a simulated bias field, with and without the remedies.

Every arm (but scratch-long) learns for the same number of steps from the same scans, stops by the same held-out
subject, and is scored on the test subjects once. Jobs run --workers at a time, a thread each; run again, it goes on
where it was.
Writes benchmarks/results/adapt.json and docs/pictures/adapt.png.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from delineate import Segmenter, open_dataset
from delineate.adapters import ADAPTERS, AdapterConfig
from delineate.adapters.adapter import attach
from delineate.adapters.folder import in_half, is_adapter
from delineate.calibration.calibrators import auroc
from delineate.data.augmentation import AUGMENTATIONS, Augmentation
from delineate.data.dataset import Dataset
from delineate.few_shot.learning import look_at, train_adapter, training_slices
from delineate.few_shot.shots import draw_shots, only
from delineate.jobs.adapt import AdaptRequest, adapt, with_names
from delineate.metrics.overlap import dice, hd95_mm, mean_interval
from delineate.pictures import contour, new_figure, write_figure
from delineate.scans.bias import biased
from delineate.scans.flat_images import write_flat
from delineate.scans.geometry import orientation_of, to_canonical
from delineate.scans.preparation import Habits, Preparation
from delineate.scans.reading import read_scan
from delineate.scans.scan import Scan
from delineate.storage.files import write_json
from delineate.systems import plain
from delineate.systems.diffusion import progidiff, unisegdiff
from delineate.training.loop import Budget

RESULT = Path(__file__).parent / "results" / "adapt.json"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "adapt.png"
SLICES = PICTURE.with_name("adapt_slices.png")
SHOTS = ("1", "3", "5", "all")
LORA = {f"lora-{rank}": AdapterConfig("lora", rank, float(rank)) for rank in (4, 8, 16)}
KINDS = LORA | {
    "salt": AdapterConfig("salt"),
    "decoder": AdapterConfig("decoder"),
    "full": AdapterConfig("full"),
    "scratch": AdapterConfig("full"),  # the same training of the same network, from untrained weights
    "scratch-long": AdapterConfig("full"),  # with so many times the images
}
LONG = 5
ARMS = {  # of CT to MR: what is run at every number of shots, and what at 5 alone
    "progidiff": (("lora-8", "salt", "full", "scratch"), ("lora-4", "lora-16", "decoder")),
    "unet": (("full", "scratch"), ("lora-8",)),
}
COLOUR_ARMS = ("lora-8", "salt", "full", "scratch")
COLOUR_STRENGTHS = (0.5, 1.0)
SCRATCH_RATE = 1e-3  # that of every training from nothing in this package
STRENGTHS = (0.0, 0.3, 0.6, 0.8)
REMEDIES = {  # augmentation, N4
    "none": ("nnunet", False),
    "n4": ("nnunet", True),
    "augmentation": ("nnunet and bias", False),
    "both": ("nnunet and bias", True),
}
PROPOSALS = 1
OUTLIER = 0.3  # Dice below the same organ's without a field by more than this


def main() -> None:
    """Run the phases asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--ct", type=Path, default=Path("runs/btcv"), help="folder with progidiff/ and unet/")
    parser.add_argument("--lesions", type=Path, default=Path("runs/lesions/seed0"), help="with unisegdiff/ and unet/")
    parser.add_argument("--work", type=Path, default=Path("runs/adapt"))
    parser.add_argument("--images", type=int, default=600, help="training images of every arm")
    parser.add_argument("--draws", type=int, default=3, help="of the shots, with seeds 0, 1, …")
    parser.add_argument("--workers", type=int, default=2, help="jobs at once, a thread each")
    parser.add_argument("--phase", nargs="*", default=["mr", "colour", "bias", "ranks", "report"])
    parser.add_argument("--job", help=argparse.SUPPRESS)  # one job, in a process of its own
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.job:
        return run_job(args, args.job)
    mr = [f"mr/{s}/none/0/0" for s in ARMS]
    draws = range(args.draws)
    for draw in draws:  # whole draws first: a stopped run leaves a table of fewer draws, not of fewer arms
        for k in ("5", "3", "1", "all"):
            chosen = [(s, arm) for s, (always, at_five) in ARMS.items() for arm in always + at_five * (k == "5")]
            mr += [f"mr/{s}/{arm}/{k}/{draw}" for s, arm in chosen]
    mr += [f"mr/{s}/scratch-long/{k}/0" for k in ("5", "all") for s in ARMS]
    more = [f"mr/progidiff/{arm}/{k}/{d}" for d in draws for k in ("1", "3", "all") for arm in ("lora-4", "lora-16")]
    both = [(s, strength) for strength in COLOUR_STRENGTHS for s in ("unisegdiff", "unet")]
    colour = [f"colour/{s}/none/{strength}/0" for s, strength in both]
    colour += [f"colour/{s}/{arm}/{strength}/{d}" for d in draws for s, strength in both for arm in COLOUR_ARMS]
    jobs = {"mr": mr, "ranks": more, "colour": colour, "bias": [f"bias/{remedy}" for remedy in REMEDIES]}
    for phase in args.phase:
        if phase == "report":
            report(args)
        else:
            queue(args, jobs[phase])


def queue(args: argparse.Namespace, jobs: Sequence[str]) -> None:
    """Run the jobs that are not done, so many at once."""

    def run(job: str) -> None:
        words = [sys.executable, __file__, "--job", job, "--data", args.data, "--ct", args.ct]
        words += ["--lesions", args.lesions, "--work", args.work, "--images", args.images]
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
        print(job, "done" if done.returncode == 0 else f"FAILED\n{done.stderr[-2000:]}", flush=True)

    with ThreadPoolExecutor(args.workers) as pool:
        list(pool.map(run, [job for job in jobs if not result_path(args, job).exists()]))


def result_path(args: argparse.Namespace, job: str) -> Path:
    """Where a job's figures go."""
    return args.work / "figures" / f"{job}.json"


def run_job(args: argparse.Namespace, job: str) -> None:
    """One job: its figures into its own JSON file."""
    phase, *rest = job.split("/")
    figures = {"mr": mr_job, "colour": colour_job, "bias": bias_job}[phase](args, *rest)
    write_json(result_path(args, job), {"job": job, **figures})


# CT to MR.


def mr_job(args: argparse.Namespace, system: str, arm: str, shots: str, draw: str) -> dict[str, Any]:
    """Adapt a CT model to MR, score it on the test patients and on CT."""
    base = Segmenter.load(args.ct / system)
    mr = open_dataset(args.data / "chaos_mr_t2")
    ct = open_dataset(args.data / "btcv_ct", targets=list(mr.labels))
    if arm == "none":
        return {"mr": scores(base, mr), "ct": scores(base, ct)}
    figures, adapted = adapt_once(args, base, mr, arm, None if shots == "all" else int(shots), int(draw))
    figures["mr"] = scores(adapted, mr)
    if not arm.startswith("scratch") and shots in ("5", "all") and draw == "0":
        figures["ct"] = scores(adapted, ct)
    return figures


def adapt_once(
    args: argparse.Namespace,
    base: Segmenter,
    dataset: Dataset,
    arm: str,
    shots: int | None,
    draw: int,
    augmentation: str = "nnunet",
    preparation: Preparation = Preparation(),
) -> tuple[dict[str, Any], Segmenter]:
    """Train one arm; what it cost, and the adapted segmenter with the adapter merged into it."""
    config, new = KINDS[arm], arm.startswith("scratch")
    rate = SCRATCH_RATE if new else ADAPTERS[config.kind].learning_rate
    budget = Budget(args.images * (LONG if arm == "scratch-long" else 1))
    dataset, _ = with_names(dataset, base.vocabulary, {})
    if new:
        base = Segmenter(untrained(base, draw), base.modalities)
    drawn = draw_shots(dataset, shots, hold_out="val", seed=draw)
    vocabulary = base.vocabulary.merged(dataset.vocabulary())
    adapted = attach(base.system, config, vocabulary, seed=draw)
    few = only(dataset, drawn.drawn)
    bank = training_slices(few, adapted.system.learnt, base.system.size, preparation, None, augmentation, draw)
    habits = Habits(preparation, dataset.modality)
    held = look_at(dataset, drawn.held_out[:20], preparation)  # of 50 polyps 20 are asked
    work = (
        args.work
        / "training"
        / f"{type(base.system).__name__}-{dataset.name}-{arm}-{shots}-{draw}-{augmentation}-{preparation.n4}"
    )
    started, processor = time.monotonic(), time.process_time()
    checks = train_adapter(adapted, base, bank, held, habits, budget, work, rate=rate, seed=draw)
    seconds, processor = time.monotonic() - started, time.process_time() - processor
    in_half(adapted)
    shutil.rmtree(work)
    own = sum(p.numel() for p in adapted.own.values())
    whole = sum(p.numel() for part in base.system.parts.values() for p in part.parameters())
    figures = {
        "shots": list(drawn.drawn),
        "checks": checks,
        "seconds": round(seconds, 1),
        "processor_seconds": round(processor, 1),
        "own_parameters": own,
        "share": own / whole,
    }
    merged = replace_system(base.adapted(adapted, habits), adapted.merged())
    return figures, merged


def untrained(base: Segmenter, seed: int) -> Any:
    """The same system with nothing learnt; ProGiDiff keeps its foundation, frozen as ever."""
    system = base.system
    if isinstance(system, plain.Plain):
        return plain.build(system.config, system.vocabulary, seed=seed)
    if isinstance(system, progidiff.ProGiDiff):
        return progidiff.build(system.config, system.foundation, system.vocabulary, seed=seed)
    assert isinstance(system, unisegdiff.UniSegDiff)
    return unisegdiff.build(system.config, system.learnt, seed=seed)


def replace_system(segmenter: Segmenter, system: Any) -> Segmenter:
    """The same habits with another system."""
    return Segmenter(system, segmenter.modalities, habits=segmenter.habits)


def scores(segmenter: Segmenter, dataset: Dataset, split: str = "test") -> list[dict[str, Any]]:
    """Dice, HD95 (mm) and doubt of every present target of every case of a split."""
    return [row for case in dataset.split(split) for row in case_scores(segmenter, dataset, case)]


def case_scores(segmenter: Segmenter, dataset: Dataset, case: Any, change=lambda scan: scan) -> list[dict[str, Any]]:
    """The same of one case, whose scan is changed first."""
    scan, ids = dataset.read(case)
    names = [name for name, value in dataset.labels.items() if (ids == value).any()]
    rows = []
    for answer in segmenter(change(scan), names, n=PROPOSALS) if names else ():
        truth, mask = ids == dataset.labels[str(answer.name)], answer.consensus()
        row = {"case": case.name, "target": answer.name, "dice": dice(mask, truth), "doubt": answer.doubt}
        rows.append(row | {"hd95_mm": hd95_mm(mask, truth, scan.spacing_mm), "found": answer.outcome.value == "found"})
    return rows


# Polyps, seen badly.


def worse(scan: Scan, strength: float) -> Scan:
    """The same picture by a bad colonoscope: a green cast, paler, blurred, dark in the corners, of less contrast.

    At strength 1 blur is 1.5 % of the side, 30 % of the colour is left, and a person can hardly see the polyp.
    """
    s, grey = strength, scan.voxels.astype(np.float32) / 255
    rows, columns = grey.shape[1:3]
    sigma = 0.015 * s * max(rows, columns)
    grey = np.stack([gaussian_filter(grey[0, :, :, c], sigma) for c in range(3)], axis=-1)[None]
    grey = grey.mean(-1, keepdims=True) * 0.7 * s + grey * (1 - 0.7 * s)
    grey = grey * np.array([1 - 0.45 * s, 1.0, 1 - 0.2 * s], dtype=np.float32)
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    corner = (1 - 0.5 * s * (x**2 + y**2) / 2).astype(np.float32)[None, :, :, None]
    grey = 0.15 * s + (1 - 0.3 * s) * (grey * corner) ** (1 + 0.4 * s)
    return replace(scan, voxels=(grey.clip(0, 1) * 255).round().astype(np.uint8))


def worse_folder(args: argparse.Namespace, strength: float) -> Dataset:
    """Kvasir-SEG with every image changed by `worse`, written once."""
    folder = args.work / f"kvasir_worse_{strength}"
    if not (folder / "splits.json").exists():
        original = open_dataset(args.data / "kvasir_seg", targets=["polyp"])
        splits = json.loads((args.data / "splits.json").read_text())["kvasir_seg"]
        wanted = {s for part in splits.values() for s in part}
        (folder / "images").mkdir(parents=True, exist_ok=True)
        if not (folder / "masks").exists():
            (folder / "masks").symlink_to((args.data / "kvasir_seg" / "masks").resolve())
        for case in original.cases:
            if case.subject in wanted:
                write_flat(folder / "images" / f"{case.name}.png", worse(read_scan(case.image), strength).voxels[0])
        write_json(folder / "splits.json", splits)
    return open_dataset(folder, targets=["polyp"], modality="endoscopy")


def colour_job(args: argparse.Namespace, system: str, arm: str, strength: str, draw: str) -> dict[str, Any]:
    """Adapt a model that knows polyps to `worse`, score it there and on what it knew."""
    base = Segmenter.load(args.lesions / system)
    target = worse_folder(args, float(strength))
    known = replace(open_dataset(args.data / "kvasir_seg", targets=["polyp"]), modality="endoscopy")
    if arm == "none":
        return {"worse": scores(base, target), "known": scores(base, known)}
    figures, adapted = adapt_once(args, base, target, arm, 5, int(draw))
    figures["worse"] = scores(adapted, target)
    if arm != "scratch":
        figures["known"] = scores(adapted, known)
    return figures


# Bias fields.


def bias_job(args: argparse.Namespace, remedy: str) -> dict[str, Any]:
    """Adapt ProGiDiff to 5 MR patients with a remedy, score it under fields of several strengths."""
    augmentation, n4 = REMEDIES[remedy]
    plainly, shades = AUGMENTATIONS["nnunet"], [AUGMENTATIONS[name].shade for name in ("nnunet", "bias")]

    def both(grey: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        for shade in shades:
            grey = shade(grey, generator) if shade else grey
        return grey

    AUGMENTATIONS["nnunet and bias"] = Augmentation(plainly.place, both)
    base, mr = Segmenter.load(args.ct / "progidiff"), open_dataset(args.data / "chaos_mr_t2")
    preparation = Preparation(n4)
    figures, adapted = adapt_once(args, base, mr, "lora-8", 5, 0, augmentation, preparation)
    figures["usual"] = scores(adapted, mr, "val")
    figures["rows"] = [
        {"strength": strength, **row}
        for number, case in enumerate(mr.split("test"))
        for strength in STRENGTHS
        for row in case_scores(adapted, mr, case, lambda scan, s=strength, n=number: biased(scan, s, seed=n))
    ]
    return figures


# What it comes to.


def report(args: argparse.Namespace) -> None:
    """Tables of what is done so far, as JSON and in words."""
    found = {
        path.relative_to(args.work / "figures").with_suffix("").as_posix(): json.loads(path.read_text())
        for path in sorted((args.work / "figures").rglob("*.json"))
    }
    table: dict[str, Any] = {"images": args.images, "threads_each": 1, "proposals": PROPOSALS}
    table["mr"] = arms_table(found, "mr", "mr", "ct")
    table["mr_differences"] = differences(found)
    table["colour"] = arms_table(found, "colour", "worse", "known")
    table["bias"] = {remedy: bias_table(found[f"bias/{remedy}"]) for remedy in REMEDIES if f"bias/{remedy}" in found}
    write_json(RESULT, table)
    for phase in ("mr", "colour"):
        print(f"\n{phase}: Dice (spread over draws), HD95 mm, on the source, share of weights, seconds")
        for key, row in table[phase].items():
            print(f"{key:28s}", *(f"{row[k]}" if row[k] is not None else "-" for k in row if k != "targets"))
    print(json.dumps({k: table[k] for k in ("mr_differences", "bias")}, indent=1))
    picture(table)
    slices(args)
    print(RESULT, PICTURE, SLICES)


def by_case(rows: Sequence[Mapping[str, Any]], key: str = "dice") -> dict[str, float]:
    """The mean over targets of every case."""
    return {case: fmean(r[key] for r in rows if r["case"] == case) for case in dict.fromkeys(r["case"] for r in rows)}


def arms_table(found: Mapping[str, Any], phase: str, target: str, source: str) -> dict[str, Any]:
    """A row for every system, arm and number of shots: means over draws, and how far these differ."""
    table: dict[str, Any] = {}
    for key in dict.fromkeys(k.rpartition("/")[0] for k in found if k.startswith(f"{phase}/")):
        runs = [found[k] for k in sorted(found) if k.rpartition("/")[0] == key]
        means = [fmean(by_case(run[target]).values()) for run in runs]
        there = [fmean(by_case(run[source]).values()) for run in runs if source in run]
        names = dict.fromkeys(r["target"] for r in runs[0][target])
        table[key.removeprefix(f"{phase}/")] = {
            "dice": round(fmean(means), 3),
            "spread": round(stdev(means), 3) if len(means) > 1 else None,
            "hd95_mm": round(fmean(fmean(by_case(run[target], "hd95_mm").values()) for run in runs), 1),
            "source_dice": round(fmean(there), 3) if there else None,
            "share": round(runs[0]["share"], 4) if "share" in runs[0] else None,
            "seconds": round(fmean(run["processor_seconds"] for run in runs), 1) if "share" in runs[0] else None,
            "draws": len(runs),
            "targets": {
                name: round(fmean(r["dice"] for run in runs for r in run[target] if r["target"] == name), 3)
                for name in names
            },
        }
    return table


def differences(found: Mapping[str, Any]) -> dict[str, Any]:
    """Paired over draws and test patients: arm minus arm, with a bootstrap over patients."""
    pairs = {
        "LoRA r8 minus scratch, k 5": ("progidiff/lora-8/5", "progidiff/scratch/5"),
        "LoRA r8 minus full, k 5": ("progidiff/lora-8/5", "progidiff/full/5"),
        "LoRA r8 minus SALT, k 5": ("progidiff/lora-8/5", "progidiff/salt/5"),
        "LoRA r16 minus r4, k 5": ("progidiff/lora-16/5", "progidiff/lora-4/5"),
        "LoRA r8, k 1 minus scratch, k 5": ("progidiff/lora-8/1", "progidiff/scratch/5"),
        "LoRA r8, k 5 minus scratch, all": ("progidiff/lora-8/5", "progidiff/scratch/all"),
        "LoRA r8, k 5 minus full, all": ("progidiff/lora-8/5", "progidiff/full/all"),
        "ProGiDiff LoRA r8 minus U-Net LoRA r8, k 5": ("progidiff/lora-8/5", "unet/lora-8/5"),
        "ProGiDiff LoRA r8 minus U-Net full, k 5": ("progidiff/lora-8/5", "unet/full/5"),
    }
    table = {}
    for name, (one, other) in pairs.items():
        draws = [d for d in map(str, range(9)) if f"mr/{one}/{d}" in found and f"mr/{other}/{d}" in found]
        if draws:
            gains = [
                {
                    c: v - by_case(found[f"mr/{other}/{d}"]["mr"])[c]
                    for c, v in by_case(found[f"mr/{one}/{d}"]["mr"]).items()
                }
                for d in draws
            ]
            each = np.array([fmean(gain[case] for gain in gains) for case in gains[0]])
            table[name] = [round(float(x), 3) for x in mean_interval(each)] + [len(draws)]
    return table


def bias_table(run: Mapping[str, Any]) -> dict[str, Any]:
    """Dice, outliers and what doubt says of them, by strength."""
    rows, most = run["rows"], {r["target"]: 1.5 * r["doubt"] for r in run["usual"]}
    clean = {(r["case"], r["target"]): r["dice"] for r in rows if r["strength"] == 0}
    table: dict[str, Any] = {}
    for strength in STRENGTHS:
        some = [r for r in rows if r["strength"] == strength]
        odd = [r for r in some if clean[r["case"], r["target"]] - r["dice"] > OUTLIER]
        table[str(strength)] = {
            "dice": round(fmean(by_case(some).values()), 3),
            "hd95_mm": round(fmean(by_case(some, "hd95_mm").values()), 1),
            "doubt": round(fmean(r["doubt"] for r in some), 3),
            "n": len(some),
            "outliers": len(odd),
            "outliers_flagged": sum(r["doubt"] > most[r["target"]] or not r["found"] for r in odd),
            "others_flagged": sum(r["doubt"] > most[r["target"]] or not r["found"] for r in some if r not in odd),
        }
    doubt = np.array([r["doubt"] if r["found"] else 1.0 for r in rows])
    bad = np.array([clean[r["case"], r["target"]] - r["dice"] > OUTLIER for r in rows])
    table["auroc_of_doubt"] = round(auroc(doubt, bad), 3) if 0 < bad.sum() < len(bad) else None
    return table


def picture(table: Mapping[str, Any]) -> None:
    """Dice against shots for the main arms, and against the strength of a bias field."""
    figure = new_figure(9.0, 3.4)
    left, right = figure.subplots(1, 2)
    lines = {
        "progidiff/lora-8": ("ProGiDiff, LoRA r8", "o-"),
        "progidiff/salt": ("ProGiDiff, SALT", "s-"),
        "progidiff/full": ("ProGiDiff, every weight", "^-"),
        "progidiff/scratch": ("ProGiDiff, from scratch", "o--"),
        "unet/full": ("U-Net, every weight", "v-"),
        "unet/scratch": ("U-Net, from scratch", "v--"),
    }
    for key, (label, style) in lines.items():
        there = [(i, table["mr"][f"{key}/{k}"]) for i, k in enumerate(SHOTS) if f"{key}/{k}" in table["mr"]]
        heights, spreads = [row["dice"] for _, row in there], [row["spread"] or 0.0 for _, row in there]
        left.errorbar([i for i, _ in there], heights, spreads, fmt=style, label=label, markersize=4, capsize=2)
    for system, label in (("progidiff", "ProGiDiff as it is"), ("unet", "U-Net as it is")):
        if f"{system}/none/0" in table["mr"]:
            grey = "0.4" if system == "progidiff" else "0.7"
            left.axhline(table["mr"][f"{system}/none/0"]["dice"], color=grey, linewidth=0.8, label=label)
    left.set_xticks(range(len(SHOTS)), [f"{k}" for k in SHOTS])
    left.set(xlabel="MR patients learnt from", ylabel="Dice, 7 test patients", ylim=(0, 1))
    for remedy, rows in table["bias"].items():
        label = {"none": "no remedy", "n4": "N4", "augmentation": "bias augmentation", "both": "both"}[remedy]
        right.plot(STRENGTHS, [rows[str(s)]["dice"] for s in STRENGTHS], "o-", label=label, markersize=4)
    right.set(xlabel="strength of the bias field", ylabel="Dice, LoRA r8 of 5 patients", ylim=(0, 1))
    for axis in (left, right):
        axis.grid(alpha=0.3)
        axis.legend(fontsize=6)
    write_figure(figure, PICTURE)


def slices(args: argparse.Namespace) -> None:
    """Three test patients in MR: the truth, the CT model as it is, and with an adapter of five patients."""
    base, mr = args.ct / "progidiff", open_dataset(args.data / "chaos_mr_t2")
    adapter = args.work / "shown"
    if not is_adapter(adapter):
        adapt(AdaptRequest(base, args.data / "chaos_mr_t2", shots=5, images=args.images), adapter)
    models = {
        "CT model": Segmenter.load(base),
        "with adapter, 5 patients": Segmenter.load(base, adapter=adapter),
    }
    cases, colours = (
        mr.split("test")[:3],
        dict(zip(mr.labels, ("#E69F00", "#56B4E9", "#009E73", "#CC79A7"), strict=True)),
    )
    figure = new_figure(9.0, 9.0)
    axes = figure.subplots(len(cases), 3)
    for row, case in zip(axes, cases, strict=True):
        scan, ids = mr.read(case)
        orientation = orientation_of(scan.affine)
        shown = to_canonical(ids, orientation)
        at = int(
            np.argmax(
                [sum(bool((plane == v).any()) for v in mr.labels.values()) + (plane > 0).mean() for plane in shown]
            )
        )
        masks = {"truth": {name: ids == value for name, value in mr.labels.items()}}
        for title, model in models.items():
            masks[title] = {str(a.name): a.consensus() for a in model(scan, list(mr.labels), n=PROPOSALS)}
        for axis, (title, drawn) in zip(row, masks.items(), strict=True):
            axis.imshow(to_canonical(scan.voxels, orientation)[at], cmap="gray")
            for name, mask in drawn.items():
                contour(axis, to_canonical(mask, orientation)[at], colours[name], 1.5)
            scores = [dice(mask, masks["truth"][name]) for name, mask in drawn.items()]
            axis.set_title(title if title == "truth" else f"{title}: Dice {fmean(scores):.2f}", fontsize=8)
            axis.axis("off")
    write_figure(figure, SLICES)


if __name__ == "__main__":
    main()
