"""LIDC-IDRI, lung nodules outlined by up to four radiologists, from one npz into a dataset folder.

Source: Armato et al., The Lung Image Database Consortium (LIDC) and Image Database Resource Initiative (IDRI),
Medical Physics 38, 2011. Terms: CC BY 3.0.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from PIL import Image

from delineate.data.layout import read_splits
from delineate.errors import DatasetError
from delineate.storage.files import new_folder, write_json

TARGET = "lung nodule"


def write_lidc(
    npz: Path,
    splits: Path,
    folder: Path,
    per_split: Mapping[str, int] | None = None,
    *,
    empty_slots: bool = False,
) -> Path:
    """Write LIDC's crops as a dataset folder with the masks of every rater; returns the folder.

    `images/<stem>.png`; `masks/<stem>.png`, the consensus: what at least half of the raters drew;
    `raters/<stem>_r<slot>.png`, one a rater who drew (slots count from 1; `Dataset.read_raters` reads them);
    `subjects.json`, `splits.json`, `dataset.json`. A stem is "patient_nodule_slice", a subject is a patient. An
    empty slot does not say whether that rater saw nothing or never looked. By default it counts as nobody; with
    `empty_slots` as a rater who saw nothing, as in the experiments of the Probabilistic U-Net (Kohl et al. 2018).

    The folder appears whole or not at all.

    Args:
        npz: `image` uint8 (N, H, W); `masks` uint8 (N, raters, H, W / 8), bits packed along the last axis
            (`np.packbits`), zeros in a slot that nobody filled; `names` (N,) as "patient/nodule/slice".
        splits: JSON of {"train": [patients], "val": [...], "test": [...]}, alone or under the name of the npz's
            folder. Crops of patients in no split are left out.
        folder: where to; must not exist.
        per_split: at most so many patients of a split, the first by name; a split not named here is kept whole.
        empty_slots: whether an empty slot is written as an empty mask.

    Raises:
        DatasetError: the folder exists, a file is not as described, or no crop belongs to a split.
    """
    npz, folder = Path(npz), Path(folder)
    if folder.exists():
        raise DatasetError(f"{folder} exists; name a folder that does not.")
    images, packed, names = _read(npz)
    patients = [name.split("/")[0] for name in names]
    there, limit = set(patients), per_split or {}
    kept = {
        split: sorted(there.intersection(members))[: limit.get(split)]
        for split, members in read_splits(npz.resolve().parent, splits).items()
    }
    wanted = {patient for members in kept.values() for patient in members}
    if not wanted:
        raise DatasetError(f"{splits} puts no patient of {npz} into a split; see that it is the file of this set.")
    subjects = {
        name.replace("/", "_"): patient for name, patient in zip(names, patients, strict=True) if patient in wanted
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = new_folder(folder.parent)
    try:
        for part in ("images", "masks", "raters"):
            (building / part).mkdir()
        for number, name in enumerate(names):
            if patients[number] not in wanted:
                continue
            stem = name.replace("/", "_")
            _save(building / "images" / f"{stem}.png", images[number])
            slots = np.unpackbits(packed[number], axis=-1)
            raters = {slot: drawn for slot, drawn in enumerate(slots, start=1) if empty_slots or drawn.any()}
            consensus = 2 * sum(raters.values(), np.zeros(images.shape[1:], int)) >= max(1, len(raters))
            _save(building / "masks" / f"{stem}.png", consensus * np.uint8(255))
            for slot, drawn in raters.items():
                _save(building / "raters" / f"{stem}_r{slot}.png", drawn * np.uint8(255))
        write_json(building / "subjects.json", subjects)
        write_json(building / "splits.json", kept)
        write_json(building / "dataset.json", {"channel_names": {"0": "CT"}, "labels": {"background": 0, TARGET: 1}})
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder


def _read(npz: Path) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Images, packed masks and names of the file; raises DatasetError unless they fit together."""
    try:
        with np.load(npz, allow_pickle=False) as file:
            images, packed, names = file["image"], file["masks"], [str(name) for name in file["names"]]
    except (OSError, KeyError, ValueError, BadZipFile) as problem:
        raise DatasetError(f"{npz} must be an npz of image, masks and names: {problem}.") from problem
    count, *space = images.shape
    fits = len(space) == 2 and packed.ndim == 4 and images.dtype == packed.dtype == np.uint8 and len(names) == count
    if not fits or (len(packed), *packed.shape[2:]) != (count, space[0], -(-space[1] // 8)) or space[1] % 8:
        raise DatasetError(
            f"{npz} must hold image uint8 (N, H, W), masks uint8 (N, raters, H, W / 8) and N names, "
            f"not {images.dtype} {images.shape}, {packed.dtype} {packed.shape} and {len(names)} names."
        )
    if len({name.replace("/", "_") for name in names}) < count:
        raise DatasetError(f"{npz} names two crops alike; every name must be another patient/nodule/slice.")
    return images, packed, names


def _save(path: Path, grey: np.ndarray) -> None:
    Image.fromarray(grey).save(path, compress_level=1)
