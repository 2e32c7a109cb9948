"""What a training decides from its data, written into the model: grid, pixel size, treatment of intensities."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import numpy as np

from delineate.data.dataset import Dataset
from delineate.scans.geometry import canonical_spacing, orientation_of
from delineate.scans.grid import Fit, canonical_fit, is_in_hounsfield_units

LOOKED_AT = 8  # cases of each dataset: medians of these are medians enough
STEP = 32  # what every network's depth divides
APART_MM = 5.0  # of the neighbours that a 2-D network sees beside a slice; coarser scans give the next slice


@dataclass(frozen=True)
class DatasetPlan:
    """One dataset on the grid.

    Attributes:
        shape: median rows and columns of an axial slice.
        pixel_mm: median size of a grid pixel; None for images without spacing.
        intensities: "HU window" or "percentiles", see `delineate.scans.grid.normalise`.
    """

    shape: tuple[int, int]
    pixel_mm: float | None
    intensities: str


@dataclass(frozen=True)
class Plan:
    """The grid of a training, and how each dataset lies on it.

    `size` is the smallest multiple of 32 that holds the longer side of the median slice of the dataset with the
    largest slices, but no more than the preset allows: small images are not blown up, large ones are scaled down.
    `apart_mm` is how far the neighbours of a slice are away (`delineate.scans.grid.stack_of`).
    """

    size: int
    datasets: dict[str, DatasetPlan]
    apart_mm: float = APART_MM

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)


def make_plan(datasets: Sequence[Dataset], most: int) -> Plan:
    """Look at a few training scans of every dataset and decide; `most` is the preset's grid."""
    sides, looked = [], {}
    for dataset in datasets:
        cases = dataset.split("train")
        picked = [cases[i] for i in np.linspace(0, len(cases) - 1, min(LOOKED_AT, len(cases))).round().astype(int)]
        scans = [dataset.read(case)[0] for case in picked]
        fits = [canonical_fit(scan, most) for scan in scans]
        shape = (round(median(f.shape[0] for f in fits)), round(median(f.shape[1] for f in fits)))
        sides.append(max(shape))
        looked[dataset.name] = (scans, fits, shape)
    size = min(most, max(2 * STEP, -(-max(sides) // STEP) * STEP))
    plans = {}
    for name, (scans, fits, shape) in looked.items():
        pixels = [_pixel_mm(scan, fit) * most / size for scan, fit in zip(scans, fits, strict=True) if scan.has_spacing]
        windowed = any(is_in_hounsfield_units(scan.shown.voxels, scan.modality) for scan in scans)
        pixel = round(median(pixels), 3) if pixels else None
        plans[name] = DatasetPlan(shape, pixel, "HU window" if windowed else "percentiles")
    return Plan(size, plans)


def _pixel_mm(scan: Any, fit: Fit) -> float:
    _, row, column = canonical_spacing(scan.affine, orientation_of(scan.affine))
    return max(fit.shape[0] * row, fit.shape[1] * column) / fit.size
