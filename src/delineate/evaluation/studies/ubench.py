"""U-Bench, small: networks by Dice, weights, multiplications and milliseconds, at equal training.

After Tang et al. (2025), "U-Bench: A Comprehensive Understanding of U-Net through 100-Variant Benchmarking", arXiv
2510.07041. Decided:

* **U-Score** is ours: theirs is published as a calculator, not as a formula we could read. Accuracy is 0 for the
  trivial baseline and 1 for the best system; a cost scores 1 / (1 + log10(cost / cheapest)), so 1 for the cheapest
  and a half for ten times as much; efficiency is the harmonic mean of the three costs' scores, and the U-Score 100
  times the harmonic mean of accuracy and efficiency. It compares within a study and means nothing across two.
* **Milliseconds** are of one slice through the network in evaluation mode, timed in turn, round after round, in one
  process; medians. **Multiplications** are what torch's counter finds in convolutions and products of matrices.
* **Accuracy** is the mean over datasets of the mean Dice of a target where it is drawn, one proposal; a subject is one
  unit in the interval (Student's t) of the difference to the first system.
"""

import time
from collections.abc import Sequence
from math import log10
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import torch
from matplotlib.ticker import ScalarFormatter
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from delineate.data.dataset import Dataset
from delineate.data.folds import held_out
from delineate.data.slices import SliceBank, build_slices
from delineate.errors import DatasetError, DelineateError
from delineate.evaluation.evaluation import Row, evaluate
from delineate.evaluation.studies import StudyRequest
from delineate.evaluation.trivial import OneMask
from delineate.metrics.overlap import paired_interval
from delineate.model_folder import is_model, save_model
from delineate.pictures import COLOURS, new_figure, write_figure
from delineate.prompts.vocabulary import Vocabulary
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.storage.schema import Name, Share, read_json
from delineate.systems import SYSTEMS
from delineate.training.loop import Budget, Run, polite_stop
from delineate.training.planning import make_plan

BASELINE = "one mask for all"
ROUNDS = 15
COSTS = ("weights", "multiplications", "milliseconds")


def run(request: StudyRequest, folder: Path, *, device: str, watch: Any) -> dict[str, Any]:
    """Train every system on every dataset with every seed, score it, and time all side by side.

    A model or a score that is there already, of the same request, is taken as it is.

    Raises:
        DatasetError: a dataset has no train split, or nothing to score.
        DelineateError: as in training; `Interrupted` after a polite stop.
    """
    names = request.compared
    if odd := [name for name in names if not SYSTEMS[name].pixelwise]:
        able = ", ".join(name for name, row in SYSTEMS.items() if row.pixelwise)
        raise DelineateError(f"ubench compares networks ({able}); {odd[0]} is more than one")
    dice: dict[str, dict[str, dict[str, list[float]]]] = {}
    sizes: dict[str, int] = {}
    jobs = len(names) * len(request.seeds) * len(request.folders)
    done = 0
    for place in request.folders:
        dataset = place.open()
        if not dataset.split("train") or not dataset.split(request.split):
            raise DatasetError(f"{dataset.root}: a study needs a train and a {request.split} split; see splits.json")
        size = request.size or make_plan([dataset], SYSTEMS[names[0]].presets[request.preset]).size
        sizes[dataset.name], bank = size, build_slices([dataset], "train", size)
        told = dice.setdefault(dataset.name, {})
        plain: Any = OneMask(bank)
        told[BASELINE] = _by_subject(evaluate(Segmenter(plain), dataset, split=request.split, n=1), dataset)
        for name in names:
            for seed in request.seeds:
                at = folder / dataset.name / f"{name}-{seed}"
                watch.start(f"{dataset.name}: {name}, seed {seed} ({done + 1} of {jobs})", done=done / jobs)
                scores = _one(request, name, seed, bank, dataset, at, device, watch)
                for subject, value in scores.items():
                    told.setdefault(name, {}).setdefault(subject, []).extend(value)
                done += 1
    watch.start("timing all networks in turn")
    costs = measured(names, request.preset, max(sizes.values()), device)
    return report_of(request, names, sizes, dice, costs)


def _one(
    request: StudyRequest, name: str, seed: int, bank: SliceBank, dataset: Dataset, at: Path, device: str, watch: Any
) -> dict[str, list[float]]:
    """Dice of every subject, of a system that is trained where it is not there yet."""
    written = at.with_name(f"{at.name}.json")
    if written.is_file():
        return read_json(written, dict[Name, list[Share]], fix="remove the file")
    if not is_model(at):
        budget = Budget(request.images, request.minutes)

        def on_step(phase: str, state: Any, spent: float) -> None:
            watch.update(min(1.0, spent), f"loss {state.log[-1]['loss']:.3f}")

        with polite_stop() as should_stop:
            run_of = Run(budget, at.with_name(f"{at.name}-training"), seed, on_step, should_stop)
            system = SYSTEMS[name].train(bank, request.preset, run_of, device=device)
        training: dict[str, Any] = {
            "datasets": [dataset.name],
            "seed": seed,
            "images": request.images,
            "minutes": request.minutes,
        }
        training["held_out"] = held_out([dataset], None)
        segmenter = Segmenter(system, tuple(dict.fromkeys(bank.modalities)))
        save_model(at, segmenter, name, training=training, card=f"{name}, of a study.\n")
    rows = evaluate(Segmenter.load(at, device), dataset, split=request.split, n=1, on_step=watch.update)
    scores = _by_subject(rows, dataset)
    write_json(written, scores)
    return scores


def _by_subject(rows: Sequence[Row], dataset: Dataset) -> dict[str, list[float]]:
    """Each subject's mean Dice over targets that are drawn in it; those without any are left out."""
    subjects = {case.name: case.subject for case in dataset.cases}
    scores: dict[str, list[float]] = {}
    for row in rows:
        if row.present:
            scores.setdefault(subjects[row.case], []).append(row.single["dice"])
    return {subject: [fmean(values)] for subject, values in scores.items()}


def measured(names: Sequence[str], preset: str, size: int, device: str, rounds: int = ROUNDS) -> dict[str, Any]:
    """Weights, multiplications and milliseconds of one slice through each system's network, timed in turn."""
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0)).clamp(-1, 1).to(device)
    made = {n: SYSTEMS[n].make(preset, size, Vocabulary.from_names(["lesion"])).to(device) for n in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    costs: dict[str, Any] = {}
    with torch.no_grad():
        for name, system in made.items():
            with FlopCounterMode(display=False) as counter:
                system.logits(image)
            weights = sum(p.numel() for part in system.parts.values() for p in part.parameters())
            costs[name] = {"weights": weights, "multiplications": counter.get_total_flops() // 2}
        for _ in range(rounds):
            for name, system in made.items():
                started = time.perf_counter()
                system.logits(image)
                if device != "cpu":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - started)
    for name in names:
        costs[name]["milliseconds"] = round(1000 * median(seconds[name]), 3)
    return costs


def report_of(
    request: StudyRequest,
    names: Sequence[str],
    sizes: dict[str, int],
    dice: dict[str, dict[str, dict[str, list[float]]]],
    costs: dict[str, Any],
) -> dict[str, Any]:
    """The report: per system the Dice on each dataset, its costs, the U-Score, and the difference to the first."""
    rows: dict[str, Any] = {}
    for name in (BASELINE, *names):
        of_sets = {d: round(fmean(fmean(v) for v in told[name].values()), 4) for d, told in dice.items()}
        rows[name] = {"dice": of_sets, "mean_dice": round(fmean(of_sets.values()), 4)}
        rows[name] |= costs.get(name, {})
    for name, score in u_scores({n: rows[n] for n in names}, rows[BASELINE]["mean_dice"]).items():
        rows[name]["u_score"] = score
    first = names[0]
    for name in names[1:]:
        rows[name][f"minus_{first}"] = {
            d: [v and round(v, 4) for v in paired_interval(_column(told[name]), _column(told[first]))]
            for d, told in dice.items()
        }
    about = {"threads": torch.get_num_threads(), "torch": torch.__version__, "sizes": sizes}
    subjects = {d: len(told[first]) for d, told in dice.items()}
    kept = {k: v for k, v in request.to_json().items() if k != "datasets"}
    return {"request": kept, **about, "subjects": subjects, "systems": rows}


def _column(scores: dict[str, list[float]]) -> np.ndarray:
    return np.array([fmean(scores[subject]) for subject in sorted(scores)])


def u_scores(rows: dict[str, dict[str, Any]], floor: float) -> dict[str, float]:
    """Our U-Score of every system, from 0 to 100, `floor` being the trivial baseline's Dice; see the top of this file.

    >>> costs = {"weights": 10, "multiplications": 10, "milliseconds": 1.0}
    >>> dear = {"weights": 100, "multiplications": 100, "milliseconds": 10.0}
    >>> u_scores({"small": {"mean_dice": 0.7, **costs}, "large": {"mean_dice": 0.9, **dear}}, floor=0.5)
    {'small': 66.7, 'large': 66.7}
    """

    def harmonic(values: Sequence[float]) -> float:
        return 0.0 if min(values) <= 0 else len(values) / sum(1 / v for v in values)

    best = max(row["mean_dice"] for row in rows.values())
    cheapest = {cost: min(row[cost] for row in rows.values()) for cost in COSTS}
    scores = {}
    for name, row in rows.items():
        accuracy = max(0.0, (row["mean_dice"] - floor) / max(best - floor, 1e-6))
        efficiency = harmonic([1 / (1 + log10(row[cost] / cheapest[cost])) for cost in COSTS])
        scores[name] = round(100 * harmonic([accuracy, efficiency]), 1)
    return scores


def draw(report: dict[str, Any], path: Path) -> Path:
    """Mean Dice against milliseconds; the area of a dot is its weights, the dashed line the trivial baseline."""
    figure = new_figure(6.4, 4.2)
    axis = figure.subplots()
    systems = {name: row for name, row in report["systems"].items() if name != BASELINE}
    for number, (name, row) in enumerate(systems.items()):
        colour = COLOURS[number % len(COLOURS)]
        area = 30 + 250 * (row["weights"] / max(r["weights"] for r in systems.values()))
        label = f"{name}: {row['weights'] / 1e6:.2f} M, U-Score {row['u_score']:.0f}"
        axis.scatter(row["milliseconds"], row["mean_dice"], s=area, color=colour, alpha=0.7, label=label)
    axis.axhline(report["systems"][BASELINE]["mean_dice"], color="#999999", linestyle="--", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xlabel(f"milliseconds a slice, {report['threads']} CPU thread(s)")
    axis.set_ylabel(f"mean Dice over {len(report['sizes'])} datasets")
    axis.margins(0.25)
    axis.grid(alpha=0.3)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(ScalarFormatter())
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return write_figure(figure, path)


def show(report: dict[str, Any], console: Console) -> None:
    """A line a system."""
    table = Table(box=None, pad_edge=False)
    table.add_column("system")
    headings = (*report["sizes"], "mean Dice", "weights", "GMAC", "ms", "U-Score")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, row in report["systems"].items():
        cells = [f"{row['dice'][d]:.3f}" for d in report["sizes"]] + [f"{row['mean_dice']:.3f}"]
        if "weights" in row:
            cells += [f"{row['weights'] / 1e6:.3f} M", f"{row['multiplications'] / 1e9:.2f}"]
            cells += [f"{row['milliseconds']:.1f}", f"{row['u_score']:.0f}"]
        table.add_row(name, *cells, *[""] * (len(headings) - len(cells)))
    console.print(table)
    console.print("U-Score is ours and compares within this study only (delineate.evaluation.studies.ubench).")
