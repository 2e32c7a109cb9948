"""A case on the working grid: its slices, their labels, and what each of several raters drew."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from delineate.data.dataset import IGNORED, Case, Dataset
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.geometry import orientation_of, to_canonical
from delineate.scans.grid import canonical_fit, stack_of
from delineate.scans.scan import Scan

NOBODY = 255  # the label of every pixel of a rater who is not there; a vocabulary has fewer names
UNLABELLED = 254  # the label of a pixel that nobody labelled, which counts for nothing


def slices_of(
    dataset: Dataset,
    case: Case,
    vocabulary: Vocabulary,
    size: int,
    prepare: Callable[[Scan], Scan] = lambda scan: scan,
    apart_mm: float | None = None,
) -> tuple[Tensor, Tensor, bool]:
    """One case on the grid, and whether it is a flat image.

    Images are (S, C, size, size) in [-1, 1] as of `stack_of`, labels (S, size, size) uint8 as in `Batch`.
    """
    scan, ids = dataset.read(case)
    table = np.zeros(max(int(ids.max(initial=0)), *dataset.labels.values()) + 1, dtype=np.uint8)
    for name, value in dataset.labels.items():
        table[value] = 1 + vocabulary.index(name)
    labels = table[ids]
    labels[ids == IGNORED] = UNLABELLED
    return stack_of(prepare(scan), size, apart_mm=apart_mm), _on_grid(scan, labels, size), scan.is_flat


def readings_of(dataset: Dataset, case: Case, vocabulary: Vocabulary, labels: Tensor) -> Tensor:
    """A case's annotations by raters, on the grid of its labels, (S, M, size, size) uint8; `labels` if none did any."""
    drawn = dataset.read_raters(case)
    if drawn is None:
        return labels[:, None]
    scan = dataset.read(case)[0]
    own = np.uint8(1 + vocabulary.index(next(iter(dataset.labels))))
    readings = torch.stack([_on_grid(scan, mask * own, labels.shape[-1]) for mask in drawn], dim=1)
    return readings.masked_fill((labels == UNLABELLED)[:, None], UNLABELLED)


def _on_grid(scan: Scan, labels: np.ndarray, size: int) -> Tensor:
    """Labels uint8 of `scan.shape` on the working grid, (S, size, size)."""
    own = torch.from_numpy(np.ascontiguousarray(to_canonical(labels, orientation_of(scan.affine))))
    fit, wanted = canonical_fit(scan, size), [int(v) for v in np.unique(labels) if v]
    if not wanted:
        return torch.zeros(len(own), size, size, dtype=torch.uint8)
    return torch.cat([fit.labels_to_grid(chunk, wanted) for chunk in own.split(32)])


def side_by_side(readings: Sequence[Tensor]) -> Tensor:
    """Readings of cases, (S, M, size, size) each, with as many raters as any case has."""
    most = max(r.shape[1] for r in readings)
    return torch.cat([F.pad(r, (0, 0, 0, 0, 0, most - r.shape[1]), value=NOBODY) for r in readings])
