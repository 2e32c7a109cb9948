"""Small real scans with their masks, to try things on: each a dataset folder, under terms that let it ship.

Held-out subjects of public sets, which no model that ships has learnt from; README.md beside this file has origin and
terms. `recipes/samples.py` makes them.

    from delineate import Segmenter, read_scan, samples

    ct = samples.sample("ct")
    Segmenter.load()(read_scan(ct.images[0], modality=ct.modality), ["liver"])
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from delineate.storage.schema import read_json


@dataclass(frozen=True)
class Sample:
    """A few scans of one kind, in a folder that `open_dataset` reads.

    Attributes:
        name: what `sample` takes.
        folder: a dataset in the layout images/ + masks/, with splits.
        title: what it shows, in a line.
        modality: CT, US, …
        targets: what its masks show.
        origin: the set it is from.
        terms: under which it may be passed on.
        attribution: whom to name.
        changes: how it differs from the original.
        sha256: of each scan and mask, by its path in the folder.
    """

    name: str
    folder: Path
    title: str
    modality: str
    targets: tuple[str, ...]
    origin: str
    terms: str
    attribution: str
    changes: str
    sha256: Mapping[str, str]

    @property
    def images(self) -> tuple[Path, ...]:
        """Its scans, in alphabetical order."""
        return tuple(sorted((self.folder / "images").iterdir()))

    @property
    def masks(self) -> tuple[Path, ...]:
        """Their masks, in the same order."""
        return tuple(sorted((self.folder / "masks").iterdir()))


def names() -> tuple[str, ...]:
    """The names of all samples.

    >>> names()
    ('ct', 'dermoscopy', 'breast', 'fetal_head', 'nuclei')
    """
    return tuple(_described())


def sample(name: str) -> Sample:
    """The sample of this name.

    >>> sample("breast").targets
    ('breast lesion',)

    Raises:
        ValueError: there is none.
    """
    described = _described()
    if name not in described:
        raise ValueError(f"'{name}' is not a sample; there are {', '.join(described)}")
    about = described[name]
    told = {key: about[key] for key in ("title", "modality", "origin", "terms", "attribution", "changes", "sha256")}
    return Sample(name=name, folder=folder() / name, targets=tuple(about["targets"]), **told)


def folder() -> Path:
    """Where the samples lie."""
    return Path(str(files(__name__)))


def _described() -> dict[str, dict[str, Any]]:
    return read_json(folder() / "samples.json")
