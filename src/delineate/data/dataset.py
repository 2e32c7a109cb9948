"""A folder of scans with masks as a `Dataset` of named targets, with splits by subject."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from delineate.data.drawn import read_drawn
from delineate.data.layout import (
    IGNORE,
    SPLITS,
    choose_targets,
    declared_channels,
    declared_modality,
    find_files,
    read_declared,
    read_json,
    read_splits,
    read_subjects,
    split_faults,
    summary,
    where_splits_are,
)
from delineate.data.likeness import groups_alike, whole_groups
from delineate.data.synthetic import Origin, read_origins
from delineate.errors import DatasetError
from delineate.prompts.concept import Concept
from delineate.prompts.modality import modality_code
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.channels import grid_difference, read_channels
from delineate.scans.reading import read_scan
from delineate.scans.scan import SCAN_SUFFIXES, Scan
from delineate.storage.files import write_json

IGNORED = -1  # in the place of an id: nobody labelled this voxel


@dataclass(frozen=True)
class Case:
    """One image, whose it is, the file that labels it (None where nobody has), and what single raters drew.

    Of several channels, a file each, `image` is the first and `more` are the others.
    """

    name: str
    subject: str
    image: Path
    labels: Path | None
    raters: tuple[Path, ...] = ()
    more: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """A folder of cases with named targets.

    Attributes:
        root: The folder, resolved.
        name: What `dataset.json` calls it, else the folder's name.
        modality: "CT", "MR", or another word as given; None where unknown.
        labels: Target name (`vocabulary.canonical_name`) to its id in the label files (background left out).
        cases: Sorted by name; synthetic ones are among them.
        splits: Subjects of "train", "val" and "test"; empty where there is no `splits.json`.
        other_ids: Declared ids that `targets` left out; `read` turns them into background.
        origins: What each synthetic case was made from, by name; {} in a dataset of real scans.
        channels: What each of several channels of a scan shows, in their order; () of ordinary ones.
        ignore: The id of voxels that nobody labelled (nnU-Net's "ignore"), which count for nothing; None without one.
        regions: What is made of several of `labels` (nnU-Net's regions), by their names.
        same: Ids of label files that stand for one of `labels`, by that one: parts of a region that nobody tells apart.
    """

    root: Path
    name: str
    modality: str | None
    labels: dict[str, int]
    cases: tuple[Case, ...]
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)
    other_ids: frozenset[int] = frozenset()
    origins: Mapping[str, Origin] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    ignore: int | None = None
    regions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    same: Mapping[int, int] = field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """What can be asked, and scored: labels, then regions."""
        return (*self.labels, *self.regions)

    def declared(self) -> dict[str, int | list[int]]:
        """What a `dataset.json` says of these label files: an id, or the ids of a region; and what is ignored."""
        ids = {
            name: [number, *(o for o, one in self.same.items() if one == number)]
            for name, number in self.labels.items()
        }
        regions = {name: [i for part in parts for i in ids[part]] for name, parts in self.regions.items()}
        told = {name: sorted(own) if len(own) > 1 else own[0] for name, own in (ids | regions).items()}
        return told if self.ignore is None else {**told, IGNORE: self.ignore}

    def truth(self, target: str, ids: np.ndarray) -> np.ndarray:
        """Where the ids that `read` gives show one of `targets`, bool."""
        if target in self.labels:
            return ids == self.labels[target]
        return np.isin(ids, [self.labels[part] for part in self.regions[target]])

    def split(self, name: str) -> tuple[Case, ...]:
        """The real cases of "train", "val" or "test", or of "all"; nobody is scored on synthetic ones.

        Raises:
            DatasetError: There are no splits, or they cannot be trusted (`split_faults` lists why).
        """
        real = tuple(case for case in self.cases if case.name not in self.origins)
        if name == "all":
            return real
        if not self.splits:
            raise DatasetError(
                f"{self.root} has no splits: run delineate split {self.root}, or put a splits.json with train, val and "
                "test lists of subjects there."
            )
        if name not in self.splits:
            raise DatasetError(f"No split '{name}' in {self.root}; there are: all, {', '.join(self.splits)}.")
        if faults := split_faults(self.splits, {case.subject for case in self.cases}):
            more = f" (and {len(faults) - 1} more; see delineate check)" if len(faults) > 1 else ""
            raise DatasetError(f"The splits of {self.root} cannot be trusted: {faults[0]}{more}.")
        subjects = set(self.splits[name])
        return tuple(case for case in real if case.subject in subjects)

    def synthetic(self, name: str) -> tuple[Case, ...]:
        """The synthetic cases that were made from those of `split(name)`; errors as there."""
        sources = {case.name for case in self.split(name)}
        made = (case for case in self.cases if case.name in self.origins)
        return tuple(case for case in made if self.origins[case.name].source in sources)

    def read(self, case: Case) -> tuple[Scan, np.ndarray]:
        """The scan of a case and its labels.

        In a dataset with one declared target, a label file whose only foreground value is 255 (or 1) means
        that target: masks drawn by image programs are 0/255. With more targets every value must be a
        declared id.

        Returns:
            The scan, and an int32 array of `scan.shape`, (I, J, K), that holds 0, ids of `labels`, and `IGNORED`.

        Raises:
            DatasetError: No label file, grids that disagree (both files named), or undeclared ids.
            ScanError: A file cannot be read.
        """
        if case.labels is None:
            raise DatasetError(f"{case.image} has no label file; remove it or label it.")
        scan = self.scan_of(case.image, *case.more)
        return scan, self._read_ids(case.image, scan, case.labels)

    def scan_of(self, *files: Path) -> Scan:
        """The scan in a file, or in a file a channel.

        Raises:
            ScanError: one cannot be read, or they do not share one grid.
        """
        if self.channels:
            return read_channels(files, self.channels)
        return read_scan(files[0], modality=self.modality)

    def read_raters(self, case: Case) -> np.ndarray | None:
        """What each of several raters drew of the one target, or None where there is nothing of the kind.

        Raters are told apart in datasets of one target alone: `raters/NAME_r1.png`, `NAME_r2.png`, …, in that order.
        A rater whose file is empty saw nothing; one who has no file is not counted.

        Returns:
            bool (M, I, J, K), M raters on the grid of the scan; None without files, or with several targets.

        Raises:
            DatasetError: Grids that disagree (both files named), or undeclared ids.
            ScanError: A file cannot be read.
        """
        if not case.raters or not has_raters(self):
            return None
        scan, number = self.scan_of(case.image, *case.more), next(iter(self.labels.values()))
        return np.stack([self._read_ids(case.image, scan, path) == number for path in case.raters])

    def _read_ids(self, image: Path, scan: Scan, path: Path) -> np.ndarray:
        """Int32 ids of a label file on the grid of `scan`, the content of `image`."""
        drawn = read_drawn(path, scan, self.labels)
        if difference := grid_difference(scan, drawn):
            raise DatasetError(
                f"{image} and {path} must share one grid: {difference}. Export the labels on the image's grid."
            )
        ids, unknown = self.ids_of(drawn.voxels)
        if unknown:
            raise DatasetError(
                f"{path} holds {summary(unknown)}, which {self.root.name} does not declare "
                f"(declared: {summary(sorted(self.declared_ids))}). Correct the file, or add the names."
            )
        return ids

    @property
    def declared_ids(self) -> frozenset[int]:
        """Every id that a label file may hold, apart from 0."""
        return self.other_ids.union(self.labels.values(), () if self.ignore is None else (self.ignore,))

    def ids_of(self, values: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Values of a label file as int32 ids of `labels` or `IGNORED`, and those that are no declared id (made 0)."""
        for other, first in self.same.items():
            values = np.where(values == other, first, values)
        present = {int(value) for value in np.unique(values)} - {0}
        if len(self.declared_ids) == 1 and present in ({1}, {255}):
            return (values != 0).astype(np.int32) * next(iter(self.declared_ids)), []
        wanted = set(self.labels.values())
        ids = values.astype(np.int32)
        if present - wanted:
            ids = np.where(np.isin(ids, sorted(wanted)), ids, 0).astype(np.int32)
        if self.ignore in present:
            ids[values == self.ignore] = IGNORED
        return ids, sorted(present - self.declared_ids)

    def vocabulary(self) -> Vocabulary:
        """What a model trained on this dataset learns; of its `regions` it can be asked as well."""
        return Vocabulary.from_names(self.labels, self.modality)

    def region_concepts(self) -> tuple[Concept, ...]:
        """The `regions` as a vocabulary has them."""
        named = Vocabulary.from_names(self.regions, self.modality).concepts if self.regions else ()
        return tuple(replace(concept, parts=self.regions[concept.name]) for concept in named)


def has_raters(dataset: Dataset) -> bool:
    """Whether several readings of any case can be told apart: there are files, and a single target."""
    return len(dataset.labels) == 1 and any(case.raters for case in dataset.cases)


def open_dataset(
    path: str | Path,
    *,
    targets: Mapping[str, int] | Sequence[str] | None = None,
    modality: str | None = None,
    splits: Path | None = None,
) -> Dataset:
    """The dataset in a folder; nothing but names and JSON is read.

    Args:
        path: The folder.
        targets: With a `dataset.json`: the names to keep, or {name: declared id} to keep and rename. Without
            one: the names of ids 1, 2, …, or {name: id}.
        modality: Overrides what `dataset.json` says.
        splits: A splits file to use instead of the folder's `splits.json` or its parent's.

    Raises:
        DatasetError: The folder is not laid out as described above; the message says what to change.
    """
    root = Path(path).resolve()
    files = find_files(root)
    if files.faults:
        raise DatasetError(f"{files.faults[0][0]}: {files.faults[0][1]}.")
    if not files.images:
        raise DatasetError(f"{root / files.image_folder} holds no image ({', '.join(SCAN_SUFFIXES)}).")
    if not files.labels.keys() & files.images.keys():
        name = next(iter(files.images))
        raise DatasetError(
            f"No image in {root / files.image_folder} has a label of the same name in "
            f"{root / files.label_folder}: image '{name}' needs '{name}.*' there."
        )
    description = read_json(root / "dataset.json")
    declared = read_declared(description, root)
    labels, other_ids = choose_targets(declared.labels, targets, root)
    subjects = read_subjects(root, files.images)
    cases = tuple(
        Case(
            name,
            subjects.get(name, name),
            image,
            files.labels.get(name),
            files.raters.get(name, ()),
            files.more.get(name, ()),
        )
        for name, image in files.images.items()
    )
    name = description.get("name")
    return Dataset(
        root=root,
        name=name if isinstance(name, str) and name.strip() else root.name,
        modality=modality_code(modality) or declared_modality(description, root),
        labels=labels,
        cases=cases,
        splits=read_splits(root, splits),
        other_ids=other_ids,
        origins=read_origins(root, splits),
        channels=declared_channels(description, root, files.images.values()),
        ignore=declared.ignore,
        regions={name: parts for name, parts in declared.regions.items() if set(parts) <= set(labels)},
        same=declared.same,
    )


FRACTIONS = (0.7, 0.1, 0.2)  # of train, val and test


def write_splits(dataset: Dataset, fractions: tuple[float, float, float] = FRACTIONS, seed: int = 0) -> Dataset:
    """Draw splits (`with_splits`), write `splits.json`, return the new dataset. An existing split is never replaced.

    Raises:
        DatasetError: The dataset has splits, or as `with_splits`.
    """
    path = dataset.root / "splits.json"
    if dataset.splits or path.exists():
        raise DatasetError(f"{dataset.root} has splits already, by {where_splits_are(dataset.root)}.")
    divided = with_splits(dataset, fractions, seed)
    write_json(path, divided.splits)
    return divided


def with_splits(dataset: Dataset, fractions: tuple[float, float, float] = FRACTIONS, seed: int = 0) -> Dataset:
    """The dataset with its subjects divided at random into train, val and test; nothing is written.

    Every split with a positive fraction gets at least one subject, and subjects whose images are the same or nearly so
    get into one (`delineate.data.likeness`).

    Raises:
        DatasetError: The fractions do not sum to 1, there are too few subjects (or groups), or some cases are made of
            others.
    """
    if min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6 or fractions[0] == 0:
        raise DatasetError(f"Fractions of train, val, test must be positive and sum to 1, not {fractions}.")
    if dataset.origins:
        raise DatasetError(f"{dataset.root} holds synthetic cases; divide the dataset that they were made from.")
    subjects = sorted({case.subject for case in dataset.cases})
    counts = [max(1, round(part * len(subjects))) if part else 0 for part in fractions[1:]]
    if sum(counts) >= len(subjects):
        raise DatasetError(f"{len(subjects)} subjects are too few for fractions {fractions}.")
    place = dict(zip(subjects, np.argsort(np.random.default_rng(seed).permutation(len(subjects))), strict=True))
    groups = groups_alike((case.subject, case.image) for case in dataset.cases)
    left, parts = sorted(groups, key=lambda group: place[group[0]], reverse=True), {}
    for name, count in (("test", counts[1]), ("val", counts[0])):
        parts[name] = whole_groups(left, count)
        left = [group for group in left if group not in parts[name]]
    parts["train"] = left
    if any(part and not parts[name] for name, part in zip(SPLITS, fractions, strict=True)):
        raise DatasetError(f"{len(groups)} groups of subjects that look alike are too few for fractions {fractions}.")
    drawn = {name: tuple(sorted(subject for group in parts[name] for subject in group)) for name in SPLITS}
    return replace(dataset, splits=drawn)
