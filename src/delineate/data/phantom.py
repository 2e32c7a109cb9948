"""Phantoms: small synthetic abdomens with named organs, for tests, tutorials and checks that need no patient.

Anatomy is drawn in millimetres from ellipsoids and tubes that vary with the seed and are bent by a smooth
random deformation, so one seed is one person at any resolution and in both modalities. Phantoms show that a
machine works; they say nothing about how well it does on patients.

Arrays are ordered (slice, row, column) with axis codes SPL: slices go up, rows go to the back, columns to the
patient's left. `voxels[s]` is the usual radiological picture, the patient's right on the image's left.
`write_phantom_dataset` stores LPS, as scanners' NIfTI files are.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel
import numpy as np
from scipy import ndimage

from delineate.data.abdomen import CODES, draw_abdomen, ellipsoid, render, waves
from delineate.errors import DatasetError
from delineate.storage.files import new_folder, write_json

PHANTOM_LABELS: dict[str, int] = {
    "spleen": 1,
    "right kidney": 2,
    "left kidney": 3,
    "gallbladder": 4,
    "liver": 5,
    "stomach": 6,
    "aorta": 7,
    "inferior vena cava": 8,
    "pancreas": 9,
}
LESION_ID = 10  # "lesion" in a phantom dataset that has them
FIELD_OF_VIEW_MM = (240.0, 360.0, 360.0)  # up, back, left

_ANATOMY, _LOOK, _LESIONS, _MISSING, _RATERS = range(5)  # independent random streams of one seed


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic abdomen.

    Attributes:
        voxels: float32 (I, J, K), axis codes SPL; HU for CT, arbitrary units ≥ 0 for MR.
        labels: uint8 (I, J, K), 0 and ids of `PHANTOM_LABELS`; a lesion keeps its organ's id here.
        affine: float64 (4, 4), voxel index to world mm, RAS+.
        modality: "CT" or "MR".
        lesions: uint8 (I, J, K), lesion n has the value n.
        raters: bool (R, I, J, K), what R simulated readers draw as lesion (some see none); None without.
    """

    voxels: np.ndarray
    labels: np.ndarray
    affine: np.ndarray
    modality: Literal["CT", "MR"]
    lesions: np.ndarray
    raters: np.ndarray | None = None


def make_phantom(
    seed: int,
    *,
    modality: Literal["CT", "MR"] = "CT",
    shape: tuple[int, int, int] = (48, 96, 96),
    spacing_mm: tuple[float, float, float] | None = None,
    lesions: int = 0,
    missing: Sequence[str] = (),
    missing_chance: float = 0.5,
    raters: int = 0,
    centre_mm: float = 0.0,
) -> Phantom:
    """The abdomen of person `seed`; the same arguments give the same bytes on one processor.

    Args:
        seed: Who it is. CT and MR of one seed show the same anatomy.
        modality: "CT" (HU, Gaussian noise) or "MR" (T2 contrast, bias field, Rician noise).
        shape: Slices, rows, columns.
        spacing_mm: Between slices, rows, columns; by default the whole abdomen fits, whatever the shape.
        lesions: How many to put into liver, spleen and kidneys.
        missing: Organs that this person lacks with probability `missing_chance` each (1 leaves them out).
        missing_chance: See `missing`.
        raters: How many readers draw the lesions.
        centre_mm: Height of the middle slice; 0 is about the first lumbar vertebra, positive is up.
    """
    if modality not in ("CT", "MR") or min(shape) < 1 or not set(missing) <= set(PHANTOM_LABELS):
        raise ValueError(f"no phantom for modality={modality!r}, shape={shape}, missing={missing}")
    spacing = spacing_mm or tuple(extent / max(n, 2) for extent, n in zip(FIELD_OF_VIEW_MM, shape, strict=True))
    offsets = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
    z, y, x = np.meshgrid(offsets[0] + centre_mm, *offsets[1:], indexing="ij", sparse=True)
    grid = np.stack(np.broadcast_arrays(x, y, z)).astype(np.float32)  # left, back, up

    draw = np.random.default_rng([seed, _MISSING])
    absent = {name for name in missing if draw.random() < missing_chance}
    tissue, organ = draw_abdomen(grid, np.random.default_rng([seed, _ANATOMY]), absent)
    ids = np.zeros(len(CODES), np.uint8)
    for name, number in PHANTOM_LABELS.items():
        ids[CODES[name]] = number
    labels = ids[organ]
    found, level_mm = _lesions(grid, labels, lesions, spacing, np.random.default_rng([seed, _LESIONS]))
    voxels = render(grid, tissue, found, modality, spacing, np.random.default_rng([seed, _LOOK]))
    drawn = _raters(grid, level_mm, raters, np.random.default_rng([seed, _RATERS])) if raters else None

    affine = np.zeros((4, 4))
    affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = spacing[0], -spacing[1], -spacing[2], 1
    affine[:3, 3] = -offsets[2][0], -offsets[1][0], offsets[0][0] + centre_mm
    return Phantom(voxels, labels, affine, modality, found, drawn)


def make_phantom_image(
    seed: int,
    *,
    modality: Literal["CT", "MR"] = "CT",
    shape: tuple[int, int] = (96, 96),
    height_mm: float | None = None,
    **options,
) -> Phantom:
    """One axial slice of person `seed` as a phantom of shape (1, H, W).

    Args:
        seed: Who it is.
        modality: "CT" or "MR".
        shape: Rows, columns.
        height_mm: Height of the slice; by default drawn between -30 and 50, where most organs are.
        **options: `lesions`, `missing`, `missing_chance`, `raters` of `make_phantom`.
    """
    if height_mm is None:
        height_mm = float(np.random.default_rng([seed, 99]).uniform(-30, 50))
    spacing = (5.0, FIELD_OF_VIEW_MM[1] / shape[0], FIELD_OF_VIEW_MM[2] / shape[1])
    return make_phantom(seed, modality=modality, shape=(1, *shape), spacing_mm=spacing, centre_mm=height_mm, **options)


def write_phantom_dataset(
    folder: str | Path,
    *,
    cases: int = 12,
    modality: Literal["CT", "MR"] = "CT",
    seed: int = 0,
    shape: tuple[int, int, int] = (48, 96, 96),
    lesions: int = 0,
    missing: Sequence[str] = ("gallbladder",),
    missing_chance: float = 0.25,
) -> Path:
    """Write phantoms `seed`, `seed + 1`, … as an nnU-Net dataset with splits (70, 10, 20 %).

    The folder, returned, appears whole or not at all. With `lesions`, label `LESION_ID`
    ("lesion") lies over the organs.

    Raises:
        DatasetError: The folder exists, or there are fewer than 3 cases (one a split).
    """
    folder = Path(folder)
    if folder.exists():
        raise DatasetError(f"{folder} exists; name a folder that does not.")
    if cases < 3:
        raise DatasetError(f"A phantom dataset needs at least 3 cases (train, val, test), not {cases}.")
    names = [f"phantom{number:03d}" for number in range(cases)]
    labels = {"background": 0, **PHANTOM_LABELS, **({"lesion": LESION_ID} if lesions else {})}
    tests, vals = max(1, round(0.2 * cases)), max(1, round(0.1 * cases))
    trains = cases - tests - vals
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = new_folder(folder.parent)
    try:
        for part in ("imagesTr", "labelsTr"):
            (building / part).mkdir()
        for number, name in enumerate(names):
            phantom = make_phantom(
                seed + number,
                modality=modality,
                shape=shape,
                lesions=lesions,
                missing=missing,
                missing_chance=missing_chance,
            )
            drawn = np.where(phantom.lesions > 0, LESION_ID, phantom.labels).astype(np.uint8)
            _save(
                building / "imagesTr" / f"{name}_0000.nii.gz",
                np.round(phantom.voxels).astype(np.int16),
                phantom,
            )
            _save(building / "labelsTr" / f"{name}.nii.gz", drawn, phantom)
        write_json(
            building / "dataset.json",
            {
                "name": folder.name,
                "channel_names": {"0": modality},
                "labels": labels,
                "numTraining": cases,
                "file_ending": ".nii.gz",
            },
        )
        write_json(
            building / "splits.json",
            {"train": names[:trains], "val": names[trains : trains + vals], "test": names[trains + vals :]},
        )
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _save(path: Path, array: np.ndarray, phantom: Phantom) -> None:
    """Write an SPL array as LPS NIfTI."""
    affine = phantom.affine[:, [2, 1, 0, 3]]
    image = nibabel.Nifti1Image(array.transpose(2, 1, 0), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _lesions(
    grid: np.ndarray, labels: np.ndarray, count: int, spacing: tuple[float, ...], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Put lesions deep into organs; return them numbered, and the distance to their surface in mm."""
    found = np.zeros(labels.shape, np.uint8)
    nearest_mm = np.full(labels.shape, np.inf, np.float32)
    hosts = [PHANTOM_LABELS[name] for name in ("liver", "liver", "liver", "spleen", "right kidney", "left kidney")]
    for number in range(1, count + 1):
        host, radius_mm = rng.choice(hosts), rng.uniform(7, 16)
        place, turn, wave_seed = rng.random(), rng.uniform(-90, 90), rng.integers(2**32)
        stretch = rng.uniform(0.8, 1.25, 3)
        inside = labels == host if (labels == host).any() else np.isin(labels, hosts)
        inside &= found == 0
        if not inside.any():
            continue  # a slice without such an organ
        deep_mm = np.asarray(
            ndimage.distance_transform_edt(inside, spacing if len(labels) > 1 else (1e6, *spacing[1:]))
        )
        spots = np.flatnonzero(deep_mm >= min(0.8 * radius_mm, deep_mm.max()))
        index = np.unravel_index(spots[int(place * len(spots))], labels.shape)
        level = ellipsoid(grid, grid[(slice(None), *index)], radius_mm * stretch, turn)
        level = level + np.float32(0.12 * radius_mm) * waves(grid, np.random.default_rng(wave_seed), 24.0)
        level[index] = min(level[index], -0.5)  # a lesion has at least its middle voxel
        found[(level < 0) & inside] = number
        nearest_mm = np.minimum(nearest_mm, np.where(inside | (level > 0), level, np.float32(np.inf)))
    return found, nearest_mm


def _raters(grid: np.ndarray, level_mm: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """What `count` readers draw: each has a habit (wide or narrow), an unsteady hand, and may see nothing."""
    drawn = np.zeros((count, *level_mm.shape), bool)
    for reader in drawn:
        sees, habit_mm = rng.random() > 0.15, rng.normal(0, 1.5)
        hand_mm = np.float32(1.2) * waves(grid, rng, 26.0)
        if sees:
            reader[:] = level_mm + hand_mm + np.float32(habit_mm) < 0
    return drawn
