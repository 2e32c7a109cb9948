"""An image with its geometry, and which files are named like one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from delineate.errors import ScanError
from delineate.scans.dicom.source import DicomSource
from delineate.scans.flat_images import PICTURE_SUFFIXES, TIFF_SUFFIXES
from delineate.scans.geometry import (
    Orientation,
    axis_codes,
    lengths,
    orientation_of,
    spacing_of,
)
from delineate.scans.metaimage import META_SUFFIXES
from delineate.scans.nifti import NIFTI_SUFFIXES, PAIR_SUFFIX
from delineate.scans.nrrd import NRRD_SUFFIXES, SEGMENTATION_SUFFIX
from delineate.storage.hidden import without_hidden

MAX_VOXELS = 1_000_000_000  # of a scan that is read
VOLUME_SUFFIXES = (*NIFTI_SUFFIXES, PAIR_SUFFIX, *NRRD_SUFFIXES, *META_SUFFIXES)
SCAN_SUFFIXES = (*VOLUME_SUFFIXES, *PICTURE_SUFFIXES, *TIFF_SUFFIXES)
_DOUBLE_SUFFIXES = (".nii.gz", SEGMENTATION_SUFFIX)


@dataclass(frozen=True, eq=False, repr=False)
class Scan:
    """An image with its geometry.

    Attributes:
        voxels: (I, J, K), in colour (I, J, K, 3), or of several channels (I, J, K, C), in the file's own array order;
            float32, or whole numbers of 8 or 16 bits as the file holds them: who calculates with them makes them floats
            first. 2-D images are (1, H, W) or (1, H, W, 3).
        affine: (4, 4) float64, voxel index to world mm, RAS+.
        modality: "CT", "MR", "US", ... as declared by who reads it.
        source: The file it came from; of a DICOM series the folder.
        has_spacing: False for PNG, JPEG and TIFF: a pixel is then 1 mm by convention only.
        notes: One line for every decision taken while reading.
        space_code: NIfTI's code of the world space (1 scanner, 2 aligned, 4 MNI), kept in what is written.
        forms: Where voxels lie in the words of a NIfTI header, kept in what is written; only with its `affine`.
        dicom: The instances it was read from, if it comes from DICOM.
        channels: What each of several images side by side shows, such as "T1" and "T2" (`delineate.scans.channels`);
            empty where there is one.
    """

    voxels: np.ndarray
    affine: np.ndarray
    modality: str | None = None
    source: Path | None = None
    has_spacing: bool = True
    notes: tuple[str, ...] = ()
    space_code: int = 1
    forms: Mapping[str, Any] | None = None
    dicom: DicomSource | None = None
    channels: tuple[str, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "affine", np.array(self.affine, dtype=np.float64))
        if self.affine.shape != (4, 4):
            raise ScanError(f"an affine must have shape (4, 4), got {self.affine.shape}")
        wanted = ((len(self.channels),),) if self.channels else ((), (3,))
        if self.voxels.shape[3:] not in wanted or self.voxels.ndim < 3:
            also = f"{len(self.channels)}), one a channel" if self.channels else "3)"
            raise ScanError(f"voxels must have shape (I, J, K) or (I, J, K, {also}, got {self.voxels.shape}")

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.shape[self.is_flat :]))
        place = f" voxels of {lengths(self.spacing_mm)} mm, {self.axis_codes}"
        told = [size + (" pixels" if self.is_flat else place), *["colour"] * self.is_colour]
        told += [" + ".join(self.channels) or self.modality or "no modality told"]
        told += [self.source.name] if self.source else []
        return f"Scan({without_hidden(', '.join(told))})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K): the size of the grid, without the colour axis."""
        i, j, k = self.voxels.shape[:3]
        return i, j, k

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The distance in mm between neighbouring voxels along each array axis."""
        return spacing_of(self.affine)

    @property
    def is_colour(self) -> bool:
        """Whether a voxel holds red, green and blue."""
        return self.voxels.ndim == 4 and not self.channels

    @property
    def shown(self) -> "Scan":
        """What people look at: of several channels the first, else itself."""
        return replace(self, voxels=self.voxels[..., 0], channels=()) if self.channels else self

    @property
    def is_flat(self) -> bool:
        """Whether it is a 2-D image: DICOM without a place, or no volume file, one slice, oriented as `FLAT_AFFINE`."""
        if self.dicom is not None:
            return not self.dicom.placed
        volume = self.source is not None and suffix_of(self.source) in VOLUME_SUFFIXES
        return not volume and self.shape[0] == 1 and orientation_of(self.affine) == Orientation()

    @property
    def axis_codes(self) -> str:
        """The direction in which each array axis grows, such as "LPS"."""
        return axis_codes(self.affine)


def is_scan_file(path: Path | str) -> bool:
    """Whether `path` is named like a file that `read_scan` takes; hidden names ("._x") are not."""
    return not Path(path).name.startswith(".") and suffix_of(path) in SCAN_SUFFIXES


def stem_of(path: Path | str) -> str:
    """The file's name without its suffix, as `suffix_of` has it.

    >>> stem_of("scans/case_0000.nii.gz"), stem_of("case.seg.nrrd"), stem_of("polyp.v2.png")
    ('case_0000', 'case', 'polyp.v2')
    """
    return Path(path).name[: -len(suffix)] if (suffix := suffix_of(path)) else Path(path).name


def suffix_of(path: Path | str) -> str:
    """The suffix in lower case, ".nii.gz" and ".seg.nrrd" being one."""
    name = Path(path).name.lower()
    return next((double for double in _DOUBLE_SUFFIXES if name.endswith(double)), Path(name).suffix)
