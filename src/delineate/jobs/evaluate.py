"""A model scored on a dataset: the whole job behind `delineate evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delineate.adapters.folder import read_adapter
from delineate.data.folds import Fold, fold_of, refuse_seen, trained_on
from delineate.data.named import open_named
from delineate.errors import DatasetError, DelineateError
from delineate.evaluation.protocols import PROTOCOLS
from delineate.jobs.watch import Nobody, Watch
from delineate.model_folder import check_model, fingerprint
from delineate.segmenter import Segmenter
from delineate.storage.files import sha256_of, write_json


def evaluate_model(
    path: Path | str,
    output: Path,
    model: Path | None,
    *,
    adapter: Path | None = None,
    protocol: str = "overlap",
    split: str = "test",
    n: int = 8,
    seed: int = 0,
    target: Sequence[str] | None = None,
    modality: str | None = None,
    fold: str | None = None,
    device: str = "cpu",
    watch: Watch = Nobody(),
) -> dict[str, Any]:
    """Score a model on a split of a dataset, named as in `train_system`, by one of `PROTOCOLS`.

    Writes report.json, rows.csv and a picture into `output`, and returns the report. With `fold` ("1/4") the splits are
    those of that fold. A model that was trained on the dataset in another fold is refused, as is one that was trained
    with a fold where none is given here, or the reverse: it would be scored on its own training subjects.
    """
    if protocol not in PROTOCOLS:
        raise DelineateError(f"--protocol is one of {', '.join(PROTOCOLS)}; got '{protocol}'")
    dataset = open_named(path, target, modality)
    part = None if fold is None else Fold.parse(fold)
    if part is not None:
        dataset = fold_of(dataset, *part)
    refuse_seen(trained_on(check_model(model)[1]["training"]), dataset, part, "the model")
    if adapter is not None:
        learnt_from = set(read_adapter(adapter).training.get("learnt_from", ()))
        if seen_too := [case.name for case in dataset.split(split) if sha256_of(case.image) in learnt_from]:
            raise DelineateError(
                f"{adapter}: learnt from {len(seen_too)} of these scans ({seen_too[0]}); score it on others (--split)"
            )
    segmenter = Segmenter.load(model, device, adapter)
    watch.start(f"scoring the {split} split of {dataset.name}")
    if not dataset.split(split):
        raise DatasetError(f"{dataset.root}: the {split} split is empty; choose another, or correct splits.json")
    how = PROTOCOLS[protocol]
    rows = how.rows(segmenter, dataset, split=split, n=n, seed=seed, on_step=watch.update)
    if not rows:
        raise DatasetError(
            f"{dataset.root}: the model knows none of its targets ({', '.join(dataset.labels)}); "
            "see what it knows with: delineate prompts"
        )
    report = {
        "dataset": dataset.name,
        "protocol": protocol,
        "calibrated_on": None if segmenter.calibration is None else dict(segmenter.calibration.about),
        "split": split,
        "fold": None if part is None else str(part),
        "model_sha256": fingerprint(model),
        **({} if adapter is None else {"adapter_sha256": sha256_of(Path(adapter) / "manifest.json")}),
        "proposals": n,
        "seed": seed,
        **how.summarise(rows),
    }
    output.mkdir(parents=True, exist_ok=True)
    how.write(rows, output / "rows.csv")
    how.draw(dataset.name, report, output / how.picture)
    write_json(output / "report.json", report)
    return report
