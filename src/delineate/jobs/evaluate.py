"""A model scored on a dataset: the whole job behind `delineate evaluate`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delineate.adapters.folder import read_adapter
from delineate.data.dataset import Dataset, with_splits
from delineate.data.folds import Fold, fold_of, is_of, learnt_from_train, refuse_seen, trained_on
from delineate.data.layout import nnunet_splits_in_words
from delineate.data.named import open_named
from delineate.data.twins import twins_learnt_from
from delineate.errors import DatasetError, DelineateError
from delineate.evaluation.protocols import PROTOCOLS
from delineate.jobs.watch import Nobody, Watch
from delineate.model_folder import check_model, fingerprint
from delineate.scans.finding import digest_of
from delineate.segmenter import Segmenter
from delineate.storage.files import sha256_of, write_json


@dataclass(frozen=True)
class EvaluateRequest:
    """A model to be scored on a split of a dataset.

    Attributes:
        dataset: named as in `delineate.jobs.train.TrainRequest`.
        model: its folder; None for the model that ships.
        adapter: folder of an adapter on the model.
        protocol: what is measured, one of `PROTOCOLS`.
        split: "train", "val", "test" or "all".
        n: masks for each target.
        seed: of the masks.
        target: as in `TrainRequest`.
        modality: as in `TrainRequest`.
        fold: the splits are those of this fold.

    Raises:
        DelineateError: no such protocol.
    """

    dataset: Path | str
    model: Path | None = None
    adapter: Path | None = None
    protocol: str = "overlap"
    split: str = "test"
    n: int = 8
    seed: int = 0
    target: Sequence[str] | None = None
    modality: str | None = None
    fold: Fold | None = None

    def __post_init__(self):
        if self.protocol not in PROTOCOLS:
            raise DelineateError(f"--protocol is one of {', '.join(PROTOCOLS)}; got '{self.protocol}'")


def evaluate_model(
    request: EvaluateRequest, output: Path, *, device: str = "cpu", watch: Watch = Nobody()
) -> dict[str, Any]:
    """Score a model; writes report.json, rows.csv and a picture into `output`, and returns the report.

    A model that was trained on the dataset in another fold is refused, as is one that was trained with a fold where
    none is given here, or the reverse: it would be scored on its own training subjects.
    """
    model, adapter, split, fold = request.model, request.adapter, request.split, request.fold
    dataset = open_named(request.dataset, request.target, request.modality)
    if fold is not None:
        dataset = fold_of(dataset, *fold)
    elif line := nnunet_splits_in_words(dataset.root):
        watch.say(line)
    training = check_model(model)[1]["training"]
    if fold is None and not dataset.splits and split != "all":
        dataset = _as_trained(dataset, trained_on(training))
    refuse_seen(trained_on(training), dataset, fold, "the model")
    if fold is None and (line := twins_learnt_from(trained_on(training), dataset, split)):
        watch.say(line)
    without_labels = training.get("unlabelled", {}).get("sha256", ())
    learnt_from = {"the model": without_labels}
    if adapter is not None:
        learnt_from[str(adapter)] = read_adapter(adapter).training.get("learnt_from", ())
    for who, digests in learnt_from.items():
        seen_too = [c.name for c in dataset.split(split) if digest_of(c.image) in set(digests)] if digests else []
        if seen_too:
            raise DelineateError(
                f"{who}: learnt from {len(seen_too)} of these scans ({seen_too[0]}); score it on others (--split)"
            )
    segmenter = Segmenter.load(model, device, adapter)
    watch.start(f"scoring the {split} split of {dataset.name}")
    if not dataset.split(split):
        raise DatasetError(f"{dataset.root}: the {split} split is empty; choose another, or correct splits.json")
    how = PROTOCOLS[request.protocol]
    rows = how.rows(segmenter, dataset, split=split, n=request.n, seed=request.seed, on_step=watch.update)
    if not rows:
        raise DatasetError(
            f"{dataset.root}: the model knows none of its targets ({', '.join(dataset.targets)}); "
            "see what it knows with: delineate prompts"
        )
    report = {
        "dataset": dataset.name,
        "protocol": request.protocol,
        "calibrated_on": None if segmenter.calibration is None else dict(segmenter.calibration.about),
        "split": split,
        "fold": None if fold is None else str(fold),
        "model_sha256": fingerprint(model),
        **({} if adapter is None else {"adapter_sha256": sha256_of(Path(adapter) / "manifest.json")}),
        "proposals": request.n,
        "seed": request.seed,
        **how.summarise(rows),
    }
    output.mkdir(parents=True, exist_ok=True)
    how.write(rows, output / "rows.csv")
    how.draw(dataset.name, report, output / how.picture)
    write_json(output / "report.json", report)
    return report


def _as_trained(dataset: Dataset, seen: Sequence[Mapping[str, Any]]) -> Dataset:
    """A dataset without splits, divided as it was for the model where that learnt from it (`jobs.opening.divided`)."""
    if not any(is_of(entry, dataset) for entry in seen):
        return dataset
    drawn = with_splits(dataset)
    return drawn if any(learnt_from_train(entry, drawn) for entry in seen) else dataset
