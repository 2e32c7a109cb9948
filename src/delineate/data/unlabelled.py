"""Scans without labels as training slices."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from delineate.data.augmentation import AUGMENTATIONS
from delineate.errors import DatasetError
from delineate.scans.finding import find_scans
from delineate.scans.grid import stack_of
from delineate.scans.reading import read_scan


@dataclass(frozen=True, eq=False)
class UnlabelledBank:
    """All slices of some scans.

    Attributes:
        images: (N, 3, S, S) uint8.
        mirrored: (N,) bool: may be flipped, because left and right mean nothing in it (flat images).
        augmentation: a key of `delineate.data.augmentation.AUGMENTATIONS`.
    """

    images: Tensor
    mirrored: Tensor
    augmentation: str = "default"

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, size: int, generator: Generator) -> Tensor:
        """`size` slices drawn evenly and augmented, (size, 3, S, S) float32 in [-1, 1]."""
        augmentation = AUGMENTATIONS[self.augmentation]
        index = torch.randint(len(self), (size,), generator=generator)
        maps = augmentation.maps(self.mirrored[index], generator)
        return augmentation.picture(self.images[index].float() / 127.5 - 1, maps, generator)


def read_unlabelled(
    folder: Path,
    size: int,
    *,
    modality: str | None = None,
    augmentation: str = "default",
    progress: Callable[[Iterable[Path], int], Iterable[Path]] = lambda items, _: items,
) -> UnlabelledBank:
    """The scans of a folder on the working grid of `size` pixels; masks that lie there are not looked at.

    Raises:
        DatasetError: there are none.
        ScanError: one cannot be read.
    """
    images, mirrored = [], []
    found = find_scans(folder)
    for path in progress(found, len(found)):
        scan = read_scan(path, modality=modality)
        images.append(((stack_of(scan, size) + 1) * 127.5).round().to(torch.uint8))
        mirrored.append(torch.full((len(images[-1]),), scan.is_flat))
    if not images:
        raise DatasetError(f"{folder}: no scans in this folder; --unlabelled wants a folder of them")
    return UnlabelledBank(torch.cat(images), torch.cat(mirrored), augmentation)
