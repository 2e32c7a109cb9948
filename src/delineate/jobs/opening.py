"""Datasets opened for a job, and read as slices."""

from collections.abc import Iterator, Sequence
from typing import Any

from delineate.data.dataset import Dataset
from delineate.data.folds import Fold, fold_of
from delineate.data.named import NamedFolder
from delineate.data.slices import SliceBank, build_slices
from delineate.errors import DatasetError
from delineate.jobs.watch import Watch
from delineate.training.judging import HeldOut


def open_all(folders: Sequence[NamedFolder], fold: Fold | None = None) -> list[Dataset]:
    """The datasets in `folders`, with the splits of `fold` or their own.

    Those without a train split are refused with the way out.
    """
    datasets = [folder.open() for folder in folders]
    if fold is not None:
        return [fold_of(dataset, *fold) for dataset in datasets]
    for dataset in datasets:
        if not dataset.splits:
            raise DatasetError(
                f"{dataset.root}: no splits.json, so nothing says which subjects are held out; write one as "
                '{"train": [...], "val": [...], "test": [...]}, call delineate.data.dataset.write_splits, or use --fold'
            )
    return datasets


def refuse_channels(datasets: Sequence[Dataset], what: str) -> None:
    """Raise `DatasetError` where a dataset's scans have several channels, which is not for what is to be done."""
    if several := [dataset for dataset in datasets if dataset.channels]:
        names = ", ".join(several[0].channels)
        raise DatasetError(f"{several[0].root}: {what} reads scans of one image, and these have channels: {names}")


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
