"""What is whole: small scans, datasets, models and answers, made by the commands before anything is tried."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from fuzzing import server
from fuzzing.series import write_series

HOUSE_PROMPT = "liver"
SMALL = ("--no-pictures", "-n", "1", "--anyway")  # what is made here is no scan that a model knows


class World:
    """A folder of things that are whole; what a trial changes, it copies first.

    Attributes:
        root: the folder.
        documented: exit codes that `delineate --help` lists.
        full: a disk with hardly any room, where one could be made; else None.
        read_only: a disk that cannot be written to, where one could be made; else None.
    """

    def __init__(self, root: Path, documented: set[int], full: Path | None = None, read_only: Path | None = None):
        self.root, self.documented, self.full, self.read_only = root, documented, full, read_only

    def __getitem__(self, part: str) -> Path:
        """Where a part lies, one of `PARTS`; made when it is first asked for."""
        path = self.root / part
        if not (self.root / f".{part}.ready").exists():
            for needed in NEEDS.get(part, ()):
                _ = self[needed]
            PARTS[part](self, path)
            (self.root / f".{part}.ready").touch()
        return path

    def do(self, *arguments: str | Path, code: int = 0, **more: float) -> None:
        """Run a command that must succeed."""
        done = server.run([str(a) for a in arguments], self.root, self.root / ".log", seconds=600, **more)
        if done.code != code:
            raise RuntimeError(f"delineate {' '.join(map(str, arguments))} ended with {done.code}: {done.err[-500:]}")

    def states(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of every file, by its path: no trial may change one."""
        files = [
            p
            for p in sorted(self.root.rglob("*"))
            if p.is_file() and not p.relative_to(self.root).parts[0].startswith(".")
        ]
        return {str(p.relative_to(self.root)): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


def copy_of(source: Path, target: Path) -> Path:
    """A copy of a file or folder that shares its bytes until a file is replaced; use `own` before changing one."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=os.link)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
    return target


def own(path: Path) -> Path:
    """Make a file that shares its bytes with the world's one of its own."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    return path


def samples() -> Path:
    """The scans that ship."""
    from delineate.samples import folder

    return folder()


def _ct(world: World, path: Path) -> None:
    """Three slices of the CT that ships, int16, with a sform and a qform that agree."""
    path.mkdir(parents=True)
    whole: Any = nibabel.load(samples() / "ct" / "images" / "case13.nii.gz")
    voxels = np.asarray(whole.dataobj)[40:232, 20:188, 14:17].astype(np.int16)
    affine = whole.affine.copy()
    affine[:3, 3] = (whole.affine @ [40, 20, 14, 1])[:3]
    image = nibabel.Nifti1Image(voxels, affine)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    for name in ("ct.nii.gz", "ct.nii"):
        nibabel.save(image, path / name)


def _pictures(world: World, path: Path) -> None:
    """A grey ultrasound as PNG and a small colour photo as JPEG."""
    path.mkdir(parents=True)
    shutil.copy(samples() / "breast" / "images" / "benign_48.png", path / "us.png")
    shutil.copy(samples() / "dermoscopy" / "images" / "ISIC_0000034.jpg", path / "skin.jpg")


def _dicom(world: World, path: Path) -> None:
    image: Any = nibabel.load(world["ct"] / "ct.nii")
    voxels = np.asarray(image.dataobj)
    write_series(path, np.moveaxis(voxels, 2, 0).swapaxes(1, 2)[:, ::2, ::2])


def _dataset(world: World, path: Path) -> None:
    from delineate.data.phantom import write_phantom_dataset

    write_phantom_dataset(path, cases=6, shape=(3, 32, 32), missing=())


def _flat(world: World, path: Path) -> None:
    """Eight small pictures in the layout images/ + masks/, with raters for some."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:40, :48]
    for part in ("images", "masks", "raters"):
        (path / part).mkdir(parents=True)
    for n in range(8):
        disc = (y - 12 - n) ** 2 + (x - 20) ** 2 < (6 + n) ** 2
        picture = np.clip(rng.normal(90, 20, (40, 48)) + 90 * disc, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(path / "images" / f"p{n}.png")
        Image.fromarray(disc.astype(np.uint8) * 255).save(path / "masks" / f"p{n}.png")
        for rater in (1, 2):
            Image.fromarray(disc.astype(np.uint8) * 255).save(path / "raters" / f"p{n}_r{rater}.png")
    (path / "dataset.json").write_text(
        json.dumps({"channel_names": {"0": "US"}, "labels": {"background": 0, "disc": 1}})
    )
    names = [f"p{n}" for n in range(8)]
    (path / "splits.json").write_text(json.dumps({"train": names[:4], "val": names[4:6], "test": names[6:]}))


def _scans(world: World, path: Path) -> None:
    """Three scans in a folder, of the dataset's."""
    path.mkdir(parents=True)
    for file in sorted((world["dataset"] / "imagesTr").iterdir())[:3]:
        shutil.copy(file, path / file.name)


def _unfinished(world: World, path: Path) -> None:
    """A training that was asked to stop: `m-training` with a checkpoint."""
    path.mkdir(parents=True)
    done = server.run(UNFINISHED, path, path / ".log", seconds=600, stop_when=None, stop_after=2.5)
    for seconds in (4.0, 6.0, 9.0):
        if done.code == 75 and any((path / "m-training").rglob("checkpoint-*")):
            return
        shutil.rmtree(path / "m-training", ignore_errors=True)
        done = server.run(UNFINISHED, path, path / ".log", seconds=600, stop_after=seconds)
    raise RuntimeError(f"a training could not be stopped on its way: exit code {done.code}: {done.err[-300:]}")


UNFINISHED = ["train", "unet", "../dataset", "-o", "m", "--images", "1500", "--no-calibrate"]

PARTS: dict[str, Callable[[World, Path], None]] = {
    "ct": _ct,
    "pictures": _pictures,
    "dicom": _dicom,
    "dataset": _dataset,
    "flat": _flat,
    "scans": _scans,
    "model": lambda w, p: w.do("train", "unet", w["dataset"], "-o", p, "--images", "48"),
    "adapter": lambda w, p: w.do("adapt", w["model"], w["dataset"], "-o", p, "--images", "16", "--shots", "2"),
    "foundation": lambda w, p: w.do("pretrain", w["dataset"], "-o", p, "--images", "16"),
    "edges": lambda w, p: w.do("pretrain", w["dataset"], "-o", p, "--images", "16", "--edges"),
    "answers": lambda w, p: w.do(
        "segment", w["scans"], "-p", "liver", "-p", "spleen", "-m", w["model"], "-n", "2", "-o", p
    ),
    "unfinished": _unfinished,
}
NEEDS: dict[str, Sequence[str]] = {
    "dicom": ("ct",),
    "scans": ("dataset",),
    "model": ("dataset",),
    "adapter": ("model",),
    "foundation": ("dataset",),
    "edges": ("dataset",),
    "answers": ("scans", "model"),
    "unfinished": ("dataset",),
}
