"""Scans without labels as training slices."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from delineate.data.augmentation import AUGMENTATIONS, freedom
from delineate.scans.finding import Found
from delineate.scans.grid import stack_of
from delineate.scans.reading import read_scan


@dataclass(frozen=True, eq=False)
class UnlabelledBank:
    """All slices of some scans.

    Attributes:
        images: (N, 3, S, S) uint8.
        mirrored: (N,) uint8: how it may be mirrored and turned, `delineate.data.augmentation.freedom`.
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
    found: Sequence[Found],
    size: int,
    *,
    modality: str | None = None,
    augmentation: str = "default",
    on_scan: Callable[[float], None] = lambda share: None,
) -> UnlabelledBank:
    """Scans on the working grid of `size` pixels; one that cannot be read ends it.

    Args:
        found: the scans.
        size: pixels along a side of the grid.
        modality: of all of them.
        augmentation: of what is drawn.
        on_scan: told the share that is read.

    Raises:
        ScanError: one cannot be read.
    """
    images, mirrored = [], []
    for done, one in enumerate(found, start=1):
        scan = read_scan(one, modality=modality)
        images.append(((stack_of(scan, size) + 1) * 127.5).round().to(torch.uint8))
        free = freedom(scan.is_flat, scan.modality or modality)
        mirrored.append(torch.full((len(images[-1]),), free, dtype=torch.uint8))
        on_scan(done / len(found))
    return UnlabelledBank(torch.cat(images), torch.cat(mirrored), augmentation)
