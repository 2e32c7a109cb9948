"""`delineate demo`: both halves of the main job, on real data or on a phantom, with pictures."""

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from delineate.data.dataset import Dataset, open_dataset
from delineate.data.phantom import write_phantom_dataset
from delineate.evaluation.evaluation import evaluate, summarise
from delineate.evaluation.report import print_comparison
from delineate.jobs.segment import SegmentRequest, run_cohort
from delineate.jobs.train import TrainRequest, train_system
from delineate.jobs.watch import Watch
from delineate.model_folder import fingerprint
from delineate.pictures import dice_chart
from delineate.scans.finding import Found
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json

TARGETS = ("liver", "right kidney", "left kidney", "spleen")  # large: the first that a short training learns
SUBJECTS = 2  # held-out subjects that are scored: enough to see, few enough to wait for


def run_demo(
    folder: Path, data: Path | None, *, minutes: float, device: str, watch: Watch, console: Console
) -> list[str]:
    """Segment a held-out scan with the house model, train ProGiDiff and a U-Net briefly, and score all three.

    Args:
        folder: where everything goes.
        data: a dataset with a test split; None makes a phantom dataset in `folder`.
        minutes: of training for each of the two systems.
        device: to compute on.
        watch: told of progress.
        console: where the Dice table is printed.

    Returns:
        Lines that say where the pictures lie.
    """
    started = time.monotonic()
    if data is None:
        data = folder / "phantom"
        if not (data / "dataset.json").exists():
            watch.start("making a phantom dataset")
            write_phantom_dataset(data, cases=10, seed=0)
    everything = open_dataset(data).labels
    targets = [name for name in TARGETS if name in everything] or list(everything)[:4]
    dataset = open_dataset(data, targets=targets)
    house = Segmenter.load(None, device)
    scans = [Found.at(dataset.split("test")[0].image)]
    watch.start(f"segmenting {scans[0].path.name} with the house model")
    request = SegmentRequest(tuple(targets), modality=dataset.modality, maps=True)
    run_cohort(house, scans, request, folder / "house", model_hash=fingerprint(None), on_step=watch.update)

    trained = {}
    for system in ("progidiff", "unet"):
        model = folder / system
        if not (model / "manifest.json").exists():
            asked = TrainRequest(system, [data], target=targets, minutes=minutes)
            train_system(asked, model, device=device, watch=watch)
        trained[f"{system}, {minutes:g} min"] = Segmenter.load(model, device)
    own = next(iter(trained.values()))
    request = SegmentRequest(tuple(targets), modality=dataset.modality)
    own_hash = fingerprint(folder / "progidiff")
    run_cohort(own, scans, request, folder / "trained", model_hash=own_hash, on_step=watch.update)

    summaries = {
        label: _score(label, segmenter, dataset, watch)
        for label, segmenter in {"house model": house, **trained}.items()
    }
    chart = dice_chart(summaries, folder / "dice.png")
    write_json(folder / "dice.json", summaries)
    print_comparison(summaries, console)
    name = next((folder / "house").glob("*/montage.png")).parent.name
    return [
        f"held-out subjects of {dataset.name}; {time.monotonic() - started:.0f} s in all",
        f"house model's masks:  {folder / 'house' / name / 'montage.png'}",
        f"trained here:         {folder / 'trained' / name / 'montage.png'}",
        f"training curves:      {folder / 'progidiff-training' / 'curves.png'}",
        f"Dice:                 {chart}",
    ]


def _score(label: str, segmenter: Segmenter, dataset: Dataset, watch: Watch) -> dict[str, Any]:
    """The summary over the first held-out subjects."""
    watch.start(f"scoring: {label}")
    rows = evaluate(segmenter, dataset, n=5, fusions=("mean",), limit=SUBJECTS, on_step=watch.update)
    return summarise(rows)
