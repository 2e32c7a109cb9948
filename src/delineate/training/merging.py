"""Learning from a scan and a synthetic one of the same labels at once, merged patch by patch.

After DiffBoost (Zhang et al. 2024, arXiv 2310.12868), whose loss is DiceCE(M·f(x_real) + (1 - M)·f(x_syn), y): the
merge is of logits, M is Bernoulli(α) on a grid of cells, and α, the chance of the real patch, is 0.6 with cells of 64
pixels at 384². Beside it the merge of images (CutMix, Yun et al. 2019, arXiv 1905.04899) and the mean of two losses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from delineate.errors import DelineateError

Network = Callable[[Tensor], Tensor]  # images (B, 3, S, S) to logits (B, C, S, S)
Criterion = Callable[[Tensor], Tensor]  # logits to a loss; it knows the labels


@dataclass(frozen=True)
class Merging:
    """How a scan and a synthetic one are merged.

    Attributes:
        mode: a key of `MERGES`, or "none": learn from the real scan alone.
        keep: α, the chance that a patch is the real one, or the weight of the real loss; from 0 to 1.
        cell: side of a patch as a share of the side of the grid, above 0 and up to 1.
    """

    mode: str = "patch"
    keep: float = 0.6
    cell: float = 64 / 384

    def __post_init__(self):
        if self.mode != "none" and self.mode not in MERGES:
            raise ValueError(f"a merge is one of {', '.join(MERGES)}, none; got '{self.mode}'")
        if not 0 <= self.keep <= 1:
            raise ValueError(f"the chance to keep a real patch is from 0 to 1; got {self.keep}")
        if not 0 < self.cell <= 1:
            raise ValueError(f"a cell is a share of the grid's side, above 0 and up to 1; got {self.cell}")

    def __str__(self) -> str:
        cells = f", cells {self.cell:.3g} of the side" if self.mode in CELLULAR else ""
        return f"by {self.mode}, {self.keep:g} real{cells}"

    def pixels(self, size: int) -> int:
        """Side of a cell on a grid of `size` pixels."""
        return max(1, round(self.cell * size))


def merge_mask(count: int, size: int, cell: int, keep: float, generator: Generator) -> Tensor:
    """Where the real scan is kept, (count, 1, size, size) bool: cells of `cell` pixels, each with chance `keep`.

    The grid begins at the first row and column; cells that reach over the last ones are cut.

    Raises:
        ValueError: `keep` is not from 0 to 1, or `cell` not from 1 to `size`.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"the chance to keep a real patch is from 0 to 1; got {keep}")
    if not 1 <= cell <= size:
        raise ValueError(f"a cell is from 1 to {size} pixels wide on this grid; got {cell}")
    side = -(-size // cell)
    cells = torch.rand(count, 1, side, side, generator=generator) < keep
    return cells.repeat_interleave(cell, dim=2).repeat_interleave(cell, dim=3)[..., :size, :size]


def merged_loss(
    network: Network,
    criterion: Criterion,
    real: Tensor,
    synthetic: Tensor | None,
    merging: Merging,
    generator: Generator,
) -> Tensor:
    """The loss on real slices merged with synthetic ones, both (B, 3, S, S) with the same labels.

    Where nothing is to be merged (`synthetic` is None, or `keep` is 1) it is the plain loss, to the bit and at its
    cost; where `keep` is 0 the real slices are not looked at. Else "patch" and "loss" cost two passes.

    Args:
        network: images to logits.
        criterion: logits to the loss against the labels that both have.
        real: in [-1, 1].
        synthetic: in [-1, 1], or None.
        merging: mode, chance and cell.
        generator: draws the patches, after everything that was drawn before.
    """
    if synthetic is None or merging.mode == "none" or merging.keep == 1:
        return criterion(network(real))
    if merging.keep == 0:
        return criterion(network(synthetic))
    return MERGES[merging.mode](network, criterion, real, synthetic, merging, generator)


def _patch(
    network: Network, criterion: Criterion, real: Tensor, synthetic: Tensor, merging: Merging, generator: Generator
) -> Tensor:
    """L(M·f(x_real) + (1 - M)·f(x_syn))."""
    kept = _mask_for(real, merging, generator)
    return criterion(torch.where(kept, network(real), network(synthetic)))


def _image(
    network: Network, criterion: Criterion, real: Tensor, synthetic: Tensor, merging: Merging, generator: Generator
) -> Tensor:
    """L(f(M·x_real + (1 - M)·x_syn))."""
    kept = _mask_for(real, merging, generator)
    return criterion(network(torch.where(kept, real, synthetic)))


def _loss(
    network: Network, criterion: Criterion, real: Tensor, synthetic: Tensor, merging: Merging, generator: Generator
) -> Tensor:
    """α·L(f(x_real)) + (1 - α)·L(f(x_syn)); nothing is drawn."""
    return merging.keep * criterion(network(real)) + (1 - merging.keep) * criterion(network(synthetic))


def _mask_for(image: Tensor, merging: Merging, generator: Generator) -> Tensor:
    size = image.shape[-1]
    return merge_mask(len(image), size, merging.pixels(size), merging.keep, generator).to(image.device)


MERGES = {"patch": _patch, "image": _image, "loss": _loss}
CELLULAR = ("patch", "image")  # those that draw cells


def choose_mode(system: str, able: Sequence[str], merge: str | None, keep_real: float | None, cell: int | None) -> str:
    """What is to become of synthetic cases: a key of `MERGES`, "extra" (cases as all others) or "none" (left out).

    Args:
        system: which is to be trained.
        able: the systems that merge; by default they do so by patches, and the others take synthetic cases as extra.
        merge: what was asked for, or None.
        keep_real: chance of the real patch, or None.
        cell: side of a patch in pixels, or None.

    Raises:
        DelineateError: what was asked for makes no sense for this system, or beside each other.
    """
    mode = merge or ("patch" if system in able else "extra")
    if mode not in (*MERGES, "extra", "none"):
        raise DelineateError(f"--merge is one of {', '.join(MERGES)}, extra, none; got '{mode}'")
    if mode in MERGES and system not in able:
        raise DelineateError(f"--merge {mode} is for {', '.join(able)}; {system} takes extra or none")
    for option, value, modes in (("--keep-real", keep_real, tuple(MERGES)), ("--cell", cell, CELLULAR)):
        if value is not None and mode not in modes:
            raise DelineateError(f"{option} is for --merge {', '.join(modes)}; for {system} it is {mode} here")
    if keep_real is not None and not 0 <= keep_real <= 1:
        raise DelineateError(f"--keep-real is from 0 to 1; got {keep_real}")
    return mode


def merging_on(size: int, mode: str, keep_real: float | None = None, cell: int | None = None) -> Merging:
    """How slices are merged on a grid of `size` pixels; what is not given is as in DiffBoost.

    Raises:
        DelineateError: a cell of so many pixels does not fit the grid.
    """
    if cell is not None and not 1 <= cell <= size:
        raise DelineateError(f"--cell is from 1 to {size}, the pixels along a side of the working grid; got {cell}")
    usual = Merging()
    return Merging(mode, usual.keep if keep_real is None else keep_real, usual.cell if cell is None else cell / size)
