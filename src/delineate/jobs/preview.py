"""What a command would do, for --dry-run: the request as understood, what it is asked of. Nothing is done."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delineate.data.dataset import Dataset, with_splits
from delineate.data.folds import Fold, fold_of
from delineate.data.named import NamedFolder, open_named
from delineate.model_folder import check_free, check_model, fingerprint
from delineate.scans.finding import Found
from delineate.systems import SYSTEMS

if TYPE_CHECKING:  # which import torch
    from delineate.jobs.adapt import AdaptRequest
    from delineate.jobs.evaluate import EvaluateRequest
    from delineate.jobs.parts import Part
    from delineate.jobs.segment import SegmentRequest
    from delineate.jobs.train import TrainRequest

DIVIDED = "none; the subjects would be divided so, and splits.json be written"


def of_segmenting(
    request: "SegmentRequest",
    scans: Sequence[Found],
    asked: Mapping[str, Sequence[str] | str],
    model: Path,
    adapter: Path | None,
    part: "Part | None",
) -> dict[str, Any]:
    """The scans that would be segmented, and what each prompt asks for."""
    chosen = [scan for number, scan in enumerate(scans) if part is None or part.has(number)]
    return {
        "scans": [
            {"case": scan.name, "files": [str(path) for path in (scan.path, *scan.more)], "kind": scan.kind.value}
            for scan in chosen
        ],
        "prompts": {
            prompt: targets if isinstance(targets, str) else list(targets) for prompt, targets in asked.items()
        },
        "request": _plain(asdict(request)),
        **_of_model(model),
        "adapter": None if adapter is None else str(adapter),
        "part": None if part is None else str(part),
    }


def of_training(request: "TrainRequest", output: Path) -> dict[str, Any]:
    """The system, and the datasets with the cases of each split.

    Raises:
        DelineateError: the training would be refused.
    """
    check_free(output)
    row = SYSTEMS[request.system]
    return {
        "system": {"name": request.system, "summary": row.summary, "preset": request.preset},
        "budget": {"minutes": request.minutes, "images": request.images},
        "datasets": [_of_dataset(folder, request.fold) for folder in request.folders],
        "request": _plain(request.to_json()),
    }


def of_evaluating(request: "EvaluateRequest") -> dict[str, Any]:
    """The cases that would be scored. Raises `DelineateError` where there are none to be had."""
    dataset = open_named(request.dataset, request.target, request.modality)
    if request.fold is not None:
        dataset = fold_of(dataset, *request.fold)
    return {
        "dataset": _told(dataset),
        "cases": [case.name for case in dataset.split(request.split)],
        "request": _plain({**asdict(request), "fold": request.fold and str(request.fold)}),
        **_of_model(check_model(request.model)[0]),
    }


def of_adapting(request: "AdaptRequest") -> dict[str, Any]:
    """The dataset that would be learnt from, and the model."""
    return {
        "dataset": _of_dataset(request.folder, None),
        "request": _plain(request.to_json()),
        **_of_model(check_model(request.model)[0]),
    }


def _of_model(folder: Path) -> dict[str, Any]:
    return {"model": {"folder": str(folder), "system": check_model(folder)[1]["system"], "sha256": fingerprint(folder)}}


def _of_dataset(folder: NamedFolder, fold: Fold | None) -> dict[str, Any]:
    dataset = folder.open()
    if fold is not None:
        return {**_told(fold_of(dataset, *fold)), "splits": f"fold {fold}"}
    if not dataset.splits:
        return {**_told(with_splits(dataset)), "splits": DIVIDED}
    return _told(dataset)


def _told(dataset: Dataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "folder": str(dataset.root),
        "modality": dataset.modality,
        "targets": list(dataset.targets),
        "cases": {name: len(dataset.split(name)) for name in dataset.splits} or {"all": len(dataset.split("all"))},
    }


def _plain(value: Any) -> Any:
    """The same as JSON values: paths as text, lists for tuples."""
    return json.loads(json.dumps(value, default=str))
