"""What `provenance.json` says of a dataset folder: which cases are synthetic, and which real ones they were made from.

    {"synthetic": {"case00_syn0": {"source": "case00", "variant": 0, "slices": [2, 18], ...}, ...}, ...}

A synthetic scan shows slices of its source, on the same in-plane grid, with the labels that the source has there.
Nobody may be scored on one, and none may come from a subject that is held out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delineate.data.layout import FIX, find_files, read_json, read_splits, read_subjects
from delineate.errors import DatasetError
from delineate.storage.schema import checked
from delineate.storage.seen import Seen

PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class Origin:
    """What a synthetic case was made from.

    Attributes:
        source: name of the real case.
        variant: its number among those of one source.
        slices: first and end (half-open) of the source's axial slices, in the order of `grid.stack_of`.
    """

    source: str
    variant: int
    slices: tuple[int, int]


def read_origins(root: Path, splits: Path | None = None) -> dict[str, Origin]:
    """The synthetic cases of a dataset folder by name; {} where there is no `provenance.json`.

    Entries whose image is gone are left out: whoever wants fewer variants may remove their files.

    Args:
        root: the folder.
        splits: a splits file to use instead of the folder's own.

    Raises:
        DatasetError: the file is damaged, or a synthetic case has a source that is not there, that is synthetic
            itself, that is another subject, or that is held out.
    """
    root = Path(root)
    path = root / PROVENANCE
    if not path.is_file():
        return {}
    entries = read_json(path).get("synthetic")
    if not isinstance(entries, dict):
        raise DatasetError(f'{path} must hold {{"synthetic": {{case: {{"source": …, …}}}}}}; bring back the file.')
    images = find_files(root).images
    origins = {name: _origin(path, name, entry) for name, entry in entries.items() if name in images}
    subjects, home = read_subjects(root, images), {}
    for split, members in read_splits(root, splits).items():
        home |= dict.fromkeys(members, split)
    for name, origin in origins.items():
        if origin.source not in images or origin.source in origins:
            raise DatasetError(
                f"{path}: '{name}' was made from '{origin.source}', which is no real case here; "
                f"bring back the image of '{origin.source}', or remove that of '{name}'."
            )
        subject = subjects.get(origin.source, origin.source)
        if subjects.get(name, name) != subject:
            raise DatasetError(
                f"{root / 'subjects.json'}: synthetic '{name}' belongs to the subject of '{origin.source}': "
                f"it must say '{subject}', not '{subjects.get(name, name)}'."
            )
        if home.get(subject, "train") != "train":
            raise DatasetError(
                f"{path}: synthetic '{name}' was made from '{origin.source}', whose subject '{subject}' is in "
                f"'{home[subject]}'; synthesise from the train split alone."
            )
    return origins


def held_out_by_source(root: Path) -> list[dict[str, Any]]:
    """What the maker of the synthetic cases was trained on, as `folds.held_out` tells it; [] where it is not told.

    It is the entry "held_out" of `provenance.json`: a model that learns from synthetic cases knows what their maker
    knew, and may be scored on nobody else.
    """
    seen = read_json(path := Path(root) / PROVENANCE).get("held_out", [])
    checked(seen, list[Seen], path, below="held_out", error=DatasetError, fix=FIX)
    return seen


def _origin(path: Path, name: str, entry: Any) -> Origin:
    """One entry of the table."""
    entry = entry if isinstance(entry, Mapping) else {}
    source, variant, slices = entry.get("source"), entry.get("variant"), entry.get("slices")
    whole = isinstance(slices, list) and len(slices) == 2 and all(type(value) is int for value in slices)
    if not (
        isinstance(source, str) and len(source) <= 200 and type(variant) is int and whole and 0 <= slices[0] < slices[1]
    ):
        raise DatasetError(
            f'{path}: \'{name}\' must have a "source", a "variant" and "slices" [first, end], as in '
            f'{{"source": "case00", "variant": 0, "slices": [0, 20]}}; bring back the file.'
        )
    return Origin(source, variant, (slices[0], slices[1]))
