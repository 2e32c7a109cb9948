"""A dataset's subjects divided into train, val and test: the job behind `delineate split`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delineate.data.dataset import FRACTIONS, write_splits
from delineate.data.likeness import groups_alike
from delineate.data.named import parse_named

ANY = "target"  # what masks show does not matter here


@dataclass(frozen=True)
class SplitRequest:
    """A dataset to be divided.

    Attributes:
        dataset: its folder.
        fractions: of the subjects in train, val and test.
        seed: of the draw.
    """

    dataset: Path | str
    fractions: tuple[float, float, float] = FRACTIONS
    seed: int = 0


def split_dataset(request: SplitRequest) -> dict[str, Any]:
    """Write `splits.json` into the dataset's folder and return, as JSON, who is where and who stays together.

    Raises:
        DatasetError: as `delineate.data.dataset.write_splits`.
    """
    named = parse_named(request.dataset)
    says = (named.folder / "dataset.json").is_file()
    dataset = parse_named(request.dataset, None if says or named.targets else [ANY]).open()
    dataset = write_splits(dataset, request.fractions, request.seed)
    groups = groups_alike((case.subject, case.image) for case in dataset.cases)
    return {
        "splits": str(dataset.root / "splits.json"),
        "seed": request.seed,
        "subjects": {name: list(subjects) for name, subjects in dataset.splits.items()},
        "cases": {name: len(dataset.split(name)) for name in dataset.splits},
        "alike": [list(group) for group in groups if len(group) > 1],
    }
