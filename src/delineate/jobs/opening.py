"""Datasets opened for a job, and read as slices."""

from collections.abc import Iterator, Sequence
from typing import Any

from delineate.data.dataset import Dataset, with_splits
from delineate.data.folds import Fold, fold_of
from delineate.data.named import NamedFolder
from delineate.data.slices import SliceBank, build_slices
from delineate.errors import DatasetError
from delineate.jobs.watch import Watch
from delineate.storage.files import write_json
from delineate.training.judging import HeldOut


def open_all(folders: Sequence[NamedFolder], fold: Fold | None = None, divide: Watch | None = None) -> list[Dataset]:
    """The datasets in `folders`, with the splits of `fold` or their own.

    Those without splits are refused with the way out; or they are `divided`, and `divide` is told.
    """
    datasets = [folder.open() for folder in folders]
    if fold is not None:
        return [fold_of(dataset, *fold) for dataset in datasets]
    if divide is not None:
        return [divided(dataset, divide) for dataset in datasets]
    for dataset in datasets:
        if not dataset.splits:
            raise DatasetError(
                f"{dataset.root}: no splits.json, so nothing says which subjects are held out; draw one with: "
                f"delineate split {dataset.root}, or use --fold"
            )
    return datasets


def refuse_channels(datasets: Sequence[Dataset], what: str) -> None:
    """Raise `DatasetError` where a dataset's scans have several channels, which is not for what is to be done."""
    if several := [dataset for dataset in datasets if dataset.channels]:
        names = ", ".join(several[0].channels)
        raise DatasetError(f"{several[0].root}: {what} reads scans of one image, and these have channels: {names}")


def divided(dataset: Dataset, watch: Watch) -> Dataset:
    """The dataset with its own splits; where it has none, with those that `delineate split` would draw, which is said.

    They are written into the dataset's folder, so that whatever scores a model later holds out the same subjects. Where
    that cannot be written they are drawn anew each time: the same for the same files.
    """
    if dataset.splits:
        return dataset
    path = dataset.root / "splits.json"
    if path.exists():
        raise DatasetError(f"{path}: names no split; correct or remove it")
    drawn = with_splits(dataset)
    try:
        write_json(path, drawn.splits)
        where = f"written to {path}"
    except OSError as error:
        where = f"{path} cannot be written ({error.strerror}), so they are drawn alike each time"
    counts = ", ".join(f"{len(subjects)} {name}" for name, subjects in drawn.splits.items())
    watch.say(f"{dataset.name}: no splits, so its subjects were divided ({counts}; those alike together): {where}")
    return drawn


def read_bank(
    datasets: Sequence[Dataset],
    size: int,
    watch: Watch,
    shares: Sequence[float] | None = None,
    synthetic: str = "extra",
    rating: str = "consensus",
    apart_mm: float | None = None,
) -> SliceBank:
    """The train split of every dataset, with progress; the rest is as in `build_slices`."""

    def progress(items: Any, total: int) -> Iterator[Any]:
        for done, item in enumerate(items):
            watch.update(done / total)
            yield item

    watch.start("reading the training scans")
    how: dict[str, Any] = {"synthetic": synthetic, "rating": rating, "apart_mm": apart_mm}
    return build_slices(datasets, "train", size, shares=shares, progress=progress, **how)


def held_out_slices(datasets: Sequence[Dataset], bank: SliceBank, watch: Watch) -> HeldOut | None:
    """The val splits, to judge a training on `bank` by; None where no dataset has one."""
    judging = [dataset for dataset in datasets if dataset.split("val")]
    if not judging:
        return None
    watch.start("reading the val scans")
    own = build_slices(judging, "val", bank.size, vocabulary=bank.vocabulary, synthetic="none", apart_mm=bank.apart_mm)
    return HeldOut.of(own)
