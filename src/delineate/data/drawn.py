"""Label files as a dataset holds them: label maps, and regions of DICOM SEG and RT Structure Sets, known by name."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from delineate.errors import ScanError
from delineate.prompts.vocabulary import canonical_name
from delineate.scans.dicom.regions import holds_regions, read_regions
from delineate.scans.reading import label_dtype, read_labels
from delineate.scans.scan import Scan

NOT_TARGETS = "regions that are no targets here"


def read_drawn(path: Path, scan: Scan, labels: Mapping[str, int]) -> Scan:
    """A label file as ids, on its own grid; of regions in DICOM the ids of `labels` of the same names.

    Names are compared as `canonical_name` has them, so that "Kidney_L" and "left kidney" are one. Regions of other
    names become background, with a note; where several share a voxel the smallest of them has it.

    Args:
        path: of the file.
        scan: that it was drawn on.
        labels: target name to id.

    Raises:
        ScanError: it cannot be read; or none of its regions has the name of a target.
    """
    if not holds_regions(path):
        return read_labels(path)
    read = read_regions(path, scan)
    known = [(labels[name], one) for one in read.regions if (name := canonical_name(one.name)) in labels]
    others = [one.name for one in read.regions if canonical_name(one.name) not in labels]
    listed = ", ".join(others[:8]) + (f" and {len(others) - 8} more" if len(others) > 8 else "")
    if not known:
        raise ScanError(
            f"{path}: none of its regions ({listed}) is a target; declare their names in dataset.json, or rename them"
        )
    ids = np.zeros(scan.shape, np.int64)
    for number, one in sorted(known, key=lambda pair: -len(pair[1].voxels)):
        ids.reshape(-1)[one.voxels] = number
    notes = (*read.notes, *((f"{NOT_TARGETS}: {listed}",) if others else ()))
    return Scan(ids.astype(label_dtype(path, ids)), scan.affine, None, path, scan.has_spacing, notes)
