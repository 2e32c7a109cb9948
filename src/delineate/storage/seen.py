"""What a folder remembers of the datasets that something in it learnt from, so that nobody is scored on them."""

from dataclasses import dataclass

from delineate.storage.schema import Line


@dataclass(frozen=True)
class Seen:
    """An entry of `delineate.data.folds.held_out`: a dataset that was trained on; more fields may follow."""

    name: Line
    fold: Line | None = None
    subjects: Line | None = None
    train: Line | None = None
    test: Line | None = None
