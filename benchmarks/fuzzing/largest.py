"""The ten largest inputs, one after another: seconds and peak memory of each, and whether it was answered."""

import gzip
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import nibabel
import numpy as np
from PIL import Image

from fuzzing import checks, server
from fuzzing.trial import GIGABYTES, Trial, judge
from fuzzing.world import World, copy_of

SECONDS = 900.0
LESION = ("-p", "skin lesion", "--anyway")
ORGAN = ("-p", "liver", "--modality", "CT", "--anyway")


def table(world: World, work: Path, tell: Callable[[dict[str, Any]], None]) -> list[dict[str, Any]]:
    """A row an input; the inputs are removed again."""
    rows = []
    for name, (make, arguments) in LARGEST.items():
        folder = work / "largest"
        folder.mkdir(parents=True, exist_ok=True)
        scan = server.aside(lambda make=make, folder=folder: str(make(folder, world)), seconds=SECONDS)
        if scan is None:
            raise RuntimeError(f"{name}: could not be made")
        kilobytes = sum(p.stat().st_size for p in [Path(scan), *Path(scan).rglob("*")] if p.is_file()) // 1000
        trial = Trial(["segment", scan, *arguments, "-o", "out"], name, [checks.cases_are_whole(folder / "out")])
        trial.seconds = SECONDS
        done = server.run(trial.arguments, folder, folder / ".log", seconds=SECONDS)
        judged = judge(trial, done, world.documented)
        row = {"id": f"largest {name}", "outcome": judged.outcome, "reason": judged.reason, "what": name}
        row |= {"kilobytes": kilobytes, "seconds": done.seconds, "mb": done.megabytes, "command": trial.command}
        row["within"] = done.megabytes <= GIGABYTES * 1000
        tell(row)
        rows.append(row)
        server.remove(folder)
    return rows


def _nifti_of_zeros(side: int, dtype: type, folder: Path, world: World) -> Path:
    """A cube of zeros, written piece by piece."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((side, side, side))
    header.set_data_dtype(dtype)
    header.set_zooms((0.5, 0.5, 0.5))
    header.set_sform(np.diag([0.5, 0.5, 0.5, 1.0]), 1)
    header["vox_offset"] = 352
    path = folder / "zeros.nii.gz"
    slab = bytes(side * side * np.dtype(dtype).itemsize)
    with gzip.open(path, "wb", 1) as file:
        file.write(bytes(header.binaryblock) + bytes(4))
        for _ in range(side):
            file.write(slab)
    return path


def _png(side: int, folder: Path, world: World) -> Path:
    """A square grey PNG of zeros, of kilobytes."""
    path, packer = folder / "zeros.png", zlib.compressobj(9)
    row = bytes(side + 1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)))
        for _ in range(side):
            if data := packer.compress(row):
                file.write(chunk(b"IDAT", data))
        file.write(chunk(b"IDAT", packer.flush()) + chunk(b"IEND", b""))
    return path


def _tiff(side: int, folder: Path, world: World) -> Path:
    """A square grey TIFF of zeros whose strips of 500 rows are all the same bytes."""
    path, strip = folder / "zeros.tif", zlib.compress(bytes(500 * side), 9)
    count, start = side // 500, 8
    lists = start + len(strip)
    entries = [  # tag, type (3 short, 4 long), count, value
        *((256, 4, 1, side), (257, 4, 1, side), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1)),
        *((273, 4, count, lists), (277, 3, 1, 1), (278, 4, 1, 500), (279, 4, count, lists + 4 * count)),
    ]
    numbers = struct.pack(f"<{2 * count}I", *([start] * count), *([len(strip)] * count))
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *e) for e in entries) + bytes(4)
    path.write_bytes(b"II*\0" + struct.pack("<I", lists + len(numbers)) + strip + numbers + directory)
    return path


def _photo(width: int, height: int, folder: Path, world: World) -> Path:
    """A photo as a phone takes it: the small one that ships, enlarged."""
    path = folder / "photo.jpg"
    with Image.open(world["pictures"] / "skin.jpg") as opened:
        opened.resize((width, height)).save(path, quality=85)
    return path


def _ct(shape: tuple[int, int, int], folder: Path, world: World) -> Path:
    """A CT of the usual size or above it: the one that ships, repeated."""
    image: Any = nibabel.load(world["ct"] / "ct.nii")
    voxels = np.asarray(image.dataobj)
    index = [
        np.arange(n) * voxels.shape[a] // n if a < 2 else np.arange(n) % voxels.shape[2] for a, n in enumerate(shape)
    ]
    path = folder / "ct.nii"
    nibabel.save(nibabel.Nifti1Image(voxels[np.ix_(*index)].astype(np.int16), np.diag([-0.7, -0.7, 1.0, 1.0])), path)
    return path


def _folder_of_many(count: int, folder: Path, world: World) -> Path:
    place = folder / "many"
    place.mkdir()
    scan = sorted(world["scans"].iterdir())[0]
    for number in range(count):
        copy_of(scan, place / f"scan{number:04d}.nii.gz")
    return place


def _noise(width: int, height: int, folder: Path, world: World) -> Path:
    path = folder / "noise.png"
    values = np.frombuffer(Random(0).randbytes(width * height), np.uint8).reshape(height, width)
    Image.fromarray(values).save(path, compress_level=1)
    return path


Make = Callable[[Path, World], Path]
LARGEST: dict[str, tuple[Make, tuple[str, ...]]] = {
    "1000³ zeros, int16 NIfTI": (lambda f, w: _nifti_of_zeros(1000, np.int16, f, w), (*ORGAN, "-n", "2")),
    "900³ zeros, float64 NIfTI": (lambda f, w: _nifti_of_zeros(900, np.float64, f, w), (*ORGAN, "-n", "2")),
    "30000² PNG": (lambda f, w: _png(30000, f, w), (*LESION, "-n", "2")),
    "20000² PNG": (lambda f, w: _png(20000, f, w), (*LESION, "-n", "2")),
    "31000² TIFF": (lambda f, w: _tiff(31000, f, w), (*LESION, "-n", "2")),
    "48-megapixel photo, 8 proposals": (lambda f, w: _photo(8000, 6000, f, w), (*LESION, "-n", "8")),
    "100-megapixel photo": (lambda f, w: _photo(11600, 8700, f, w), (*LESION, "-n", "2")),
    "CT of 512 × 512 × 1000": (lambda f, w: _ct((512, 512, 1000), f, w), (*ORGAN, "-n", "8")),
    "noise of 9000 × 9000": (lambda f, w: _noise(9000, 9000, f, w), (*LESION, "-n", "8", "--maps")),
    "a folder of 200 scans": (
        lambda f, w: _folder_of_many(200, f, w),
        ("-p", "liver", "-n", "1", "--no-pictures", "--anyway"),
    ),
}
