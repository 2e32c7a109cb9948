"""Masks of others as layers: DICOM SEG, RT Structure Sets and label maps, put into a person's work once each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from delineate.errors import ScanError
from delineate.review.actions import MOST_LAYERS
from delineate.review.desk import Place
from delineate.review.runs import pack, toggles_of
from delineate.scans.channels import grid_difference
from delineate.scans.dicom.regions import holds_regions, read_regions
from delineate.scans.reading import read_labels
from delineate.scans.scan import Scan, stem_of
from delineate.storage.files import sha256_of
from delineate.storage.hidden import without_hidden

IMPORTED = "import_layer"  # what history calls it
LONGEST_NAME = 70


def read_layers(path: Path, scan: Scan) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
    """The masks in a file by name, as toggles (`delineate.review.runs`) on the grid of `scan`, and notes of reading.

    A value of a label map has no name but its number, behind that of the file.

    Raises:
        ScanError: it cannot be read, lies on another grid, holds nothing or more than a case can have.
    """
    if holds_regions(path):
        read = read_regions(path, scan)
        named = [
            (one.name, toggles_of(one.mask())) for one in read.regions[:MOST_LAYERS]
        ]  # one at a time: they are large
        count, notes = len(read.regions), list(read.notes)
    else:
        labels = read_labels(path)
        if difference := grid_difference(scan, labels):
            raise ScanError(f"{path}: a layer must lie on the scan's own grid: {difference}; export it on that")
        values = [int(value) for value in np.unique(labels.voxels) if value]
        stem = stem_of(path)
        names = [stem if len(values) == 1 else f"{stem} {value}" for value in values[:MOST_LAYERS]]
        named = [(name, toggles_of(labels.voxels == value)) for name, value in zip(names, values, strict=False)]
        count, notes = len(values), list(labels.notes)
    if not count or count > MOST_LAYERS:
        raise ScanError(f"{path}: a file of layers holds 1 to {MOST_LAYERS} masks, found {count}; name another file")
    return named, notes


def put_layers(place: Place, path: Path, named: Sequence[tuple[str, np.ndarray]]) -> list[str]:
    """Add masks to a person's layers, and return the names they got; none where this very file was added before.

    Raises:
        ScanError: there would be more layers than a case can have.
        OSError: it cannot be written.
    """
    digest = sha256_of(path)
    with place.lock:
        work, added = place.work, []
        done = {
            past.event["detail"]["mask"]
            for past in work.past
            if past.event["kind"] == IMPORTED and past.event["detail"]["sha256"] == digest
        }
        left = [(number, *one) for number, one in enumerate(named) if number not in done]
        if len(work.layers) + len(left) > MOST_LAYERS:
            raise ScanError(f"{path}: a case has {MOST_LAYERS} layers at most; remove some first")
        for number, name, toggles in left:
            layer, new = work.new_layer(work.free_name(without_hidden(name)[:LONGEST_NAME] or "layer"))
            detail = {"new": new, "file": without_hidden(path.name), "sha256": digest, "mask": number}
            work.apply(place.log.append(IMPORTED, layer=layer, detail=detail, flips=pack(toggles)))
            added.append(new["name"])
        return added
