"""CHASE_DB1, retinal vessels outlined by two observers, into a dataset folder.

Source: Fraz et al., An Ensemble Classification-Based Approach Applied to Retinal Blood Vessel Segmentation, IEEE TBME
59(9), 2012. Terms: CC BY 4.0.
"""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from delineate.data.dataset import open_dataset, write_splits
from delineate.errors import DatasetError
from delineate.storage.files import new_folder, write_json

TARGET = "retinal vessels"
OBSERVERS = ("1stHO", "2ndHO")


def write_chase(source: Path, folder: Path) -> Path:
    """Write CHASE_DB1 as a dataset folder with the masks of both observers; returns the folder.

    `masks/` holds the first observer's, the customary truth; `raters/` both. A subject is a child, both eyes of whom
    stay together in `splits.json`, drawn by `write_splits` (the set comes with none). The folder appears whole or not
    at all.

    Args:
        source: `images/Image_<child><L or R>.jpg` and `masks/<image>_1stHO.png`, `_2ndHO.png`, any value above 127
            a vessel.
        folder: where to; must not exist.

    Raises:
        DatasetError: the folder exists, or an image lacks an observer.
    """
    source, folder = Path(source), Path(folder)
    if folder.exists():
        raise DatasetError(f"{folder} exists; name a folder that does not.")
    images = sorted((source / "images").glob("Image_*.jpg"))
    if not images:
        raise DatasetError(f"{source / 'images'} holds no Image_*.jpg; name the folder of CHASE_DB1.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = new_folder(folder.parent)
    try:
        for part in ("images", "masks", "raters"):
            (building / part).mkdir()
        for image in images:
            shutil.copyfile(image, building / "images" / image.name)
            for number, observer in enumerate(OBSERVERS, start=1):
                path = source / "masks" / f"{image.stem}_{observer}.png"
                if not path.is_file():
                    raise DatasetError(f"{path} is missing; every image needs the masks of both observers.")
                with Image.open(path) as file:
                    drawn = np.asarray(file.convert("L")) > 127
                mask = Image.fromarray(drawn.astype(np.uint8) * 255)
                mask.save(building / "raters" / f"{image.stem}_r{number}.png")
                if number == 1:
                    mask.save(building / "masks" / f"{image.stem}.png")
        subjects = {image.stem: image.stem[:-1].removeprefix("Image_") for image in images}
        write_json(building / "subjects.json", subjects)
        labels = {"background": 0, TARGET: 1}
        write_json(building / "dataset.json", {"channel_names": {"0": "fundus"}, "labels": labels})
        write_splits(open_dataset(building))
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return folder
