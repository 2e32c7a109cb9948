"""Writing an enlarged dataset: the real cases of the train and val splits, and synthetic ones made from train cases.

A folder like any other (nnU-Net v2 layout for volumes, images/ and masks/ for flat images), so that whatever reads
datasets trains on it. A synthetic case belongs to the subject it was made from; `provenance.json` says which, and
`splits_final.json` tells nnU-Net the same, or its own folds would put a case and its likeness on both sides.
"""

import gzip
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from delineate.data.dataset import IGNORED, Case, Dataset
from delineate.data.synthetic import PROVENANCE
from delineate.errors import DatasetError
from delineate.scans.geometry import from_canonical, orientation_of, to_canonical
from delineate.scans.nifti import NIFTI_SUFFIXES
from delineate.scans.reading import read_scan
from delineate.scans.scan import VOLUME_SUFFIXES, Scan, stem_of, suffix_of
from delineate.scans.writing import write_labels, write_scan
from delineate.storage.files import write_json


def slab_of(scan: Scan, first: int, end: int) -> tuple[slice, slice, slice]:
    """Where the canonical axial slices `first` to `end` (half-open) lie in the scan's own array."""
    orientation = orientation_of(scan.affine)
    within = np.zeros(to_canonical(np.empty(scan.shape, dtype=bool), orientation).shape, dtype=bool)
    within[first:end] = True
    found = np.argwhere(from_canonical(within, orientation))
    low, high = found.min(axis=0), found.max(axis=0) + 1
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return i, j, k


def cropped(scan: Scan, where: tuple[slice, slice, slice]) -> Scan:
    """The part of a scan, at its place in the world."""
    affine = scan.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array([part.start for part in where])
    return replace(scan, voxels=scan.voxels[where], affine=affine)


class AugmentedDataset:
    """An enlarged dataset that is being written, in `folder`.

    `add` cases, then `finish`. Nothing of the test split, and nothing made from the val or test split, gets in.
    """

    def __init__(self, folder: Path, dataset: Dataset, *, flat: bool):
        self.folder, self.dataset, self.flat = folder, dataset, flat
        self.images, self.masks = ("images", "masks") if flat else ("imagesTr", "labelsTr")
        self.subjects: dict[str, str] = {}
        self.train_subjects = set(dataset.splits["train"])
        for part in (self.images, self.masks):
            (folder / part).mkdir(parents=True, exist_ok=True)

    def image_path(self, name: str, suffix: str = ".png") -> Path:
        """Where the image of a case belongs."""
        return self.folder / self.images / (f"{name}{suffix}" if self.flat else f"{name}_0000.nii.gz")

    def add_real(self, case: Case) -> None:
        """Copy a real case as it is, volumes as NIfTI; labels that the dataset leaves out become background."""
        suffix = suffix_of(case.image)
        target = self.image_path(case.name, case.image.name.removeprefix(stem_of(case.image)))
        if suffix in VOLUME_SUFFIXES and suffix not in NIFTI_SUFFIXES:  # the folder is one of NIfTI
            write_scan(target, read_scan(case.image))
        else:
            _copied(case.image, target)
        self._add_labels(case, case.name, None)
        self.subjects[case.name] = case.subject

    def add_synthetic(self, name: str, source: Case, image: Path, slices: tuple[int, int]) -> None:
        """Copy a drawn image in, with the labels of these slices of its source.

        Raises:
            DatasetError: the source is not a training subject, or a case has this name already.
        """
        if source.subject not in self.train_subjects:
            raise DatasetError(
                f"{source.image}: a synthetic scan must come from a training subject, not from '{source.subject}'"
            )
        if name in self.subjects:
            raise DatasetError(f"{source.image}: a case called '{name}' is there already; rename it")
        suffix = image.name.removeprefix(stem_of(image))
        shutil.copyfile(image, self.image_path(name, suffix))
        self._add_labels(source, name, slices)
        self.subjects[name] = source.subject

    def finish(self, provenance: Mapping[str, Any], modality: str | None) -> None:
        """Write what describes the folder."""
        names = sorted(self.subjects)
        splits = {part: list(self.dataset.splits.get(part, ())) for part in ("train", "val")} | {"test": []}
        write_json(
            self.folder / "dataset.json",
            {
                "name": f"{self.dataset.name} with synthetic scans",
                "channel_names": {"0": modality or ""},
                "labels": {"background": 0, **self.dataset.declared()},
                "numTraining": len(names),
                "file_ending": ".png" if self.flat else ".nii.gz",
            },
        )
        write_json(self.folder / "subjects.json", self.subjects)
        write_json(self.folder / "splits.json", splits)
        train = [name for name in names if self.subjects[name] in self.train_subjects]
        write_json(
            self.folder / "splits_final.json", [{"train": train, "val": [name for name in names if name not in train]}]
        )
        write_json(self.folder / PROVENANCE, dict(provenance))

    def _add_labels(self, case: Case, name: str, slices: tuple[int, int] | None) -> None:
        if case.labels is None:
            raise DatasetError(f"{case.image} has no label file; remove it or label it.")
        suffix = case.labels.name.removeprefix(stem_of(case.labels))
        target = self.folder / self.masks / (f"{name}{suffix}" if self.flat else f"{name}.nii.gz")
        part = None if self.flat else slices
        if part is None and not self.dataset.other_ids and (self.flat or suffix_of(case.labels) in NIFTI_SUFFIXES):
            _copied(case.labels, target)
            return
        scan, ids = self.dataset.read(case)
        if part is not None:
            where = slab_of(scan, *part)
            scan, ids = cropped(scan, where), ids[where]
        write_labels(target, np.where(ids == IGNORED, self.dataset.ignore or 0, ids), scan)


def _copied(source: Path, target: Path) -> None:
    """Copy a file, zipped on the way if only the target's name says so."""
    if target.name.endswith(".gz") and not source.name.endswith(".gz"):
        with source.open("rb") as read, gzip.open(target, "wb") as written:
            shutil.copyfileobj(read, written)
    else:
        shutil.copyfile(source, target)
