"""Clicks and scribbles: which voxels a person says are inside a target, and which are not."""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from delineate.errors import PromptError

if TYPE_CHECKING:
    import numpy as np  # whoever only has words to match need not wait for it

Voxel = tuple[int, int, int]


class MarkError(PromptError):
    """Marks that say nothing that can be heeded."""


@dataclass(frozen=True)
class Marks:
    """Marked voxels, as indices (i, j, k) of the scan's own array; a pixel of a flat image is (0, row, column).

    A click is one voxel, a scribble many. Marks are values: a correction is a new prompt with more of them.

    >>> clicked = Marks(positive=[(0, 10, 12)])
    >>> (clicked + Marks(negative=[(0, 10, 30)])).negative
    ((0, 10, 30),)

    Attributes:
        positive: voxels inside the target.
        negative: voxels outside of it.

    Raises:
        MarkError: something other than three whole numbers from 0 on, or a voxel of both signs.
    """

    positive: tuple[Voxel, ...] = ()
    negative: tuple[Voxel, ...] = ()

    def __post_init__(self):
        for name in ("positive", "negative"):
            object.__setattr__(self, name, tuple(dict.fromkeys(_voxel(one) for one in getattr(self, name))))
        if both := set(self.positive) & set(self.negative):
            raise MarkError(
                f"a voxel is inside a target or outside, not both; {len(both)} marked as both, such as {min(both)}. "
                "Keep one of the two marks."
            )

    def __len__(self) -> int:
        return len(self.positive) + len(self.negative)

    def __add__(self, later: "Marks") -> "Marks":
        """These and later ones; where they contradict each other the later ones hold."""
        positive, negative = set(later.positive), set(later.negative)
        return Marks(
            tuple(v for v in self.positive if v not in negative) + later.positive,
            tuple(v for v in self.negative if v not in positive) + later.negative,
        )

    @classmethod
    def from_masks(cls, positive: "np.ndarray", negative: "np.ndarray | None" = None) -> "Marks":
        """The marks that two bool maps (I, J, K) of the scan's own shape show; without the second, none outside."""
        inside, outside = (
            () if mask is None else tuple(map(_voxel, zip(*(at.tolist() for at in mask.nonzero()), strict=True)))
            for mask in (positive, negative)
        )
        return cls(inside, outside)

    def to_masks(self, shape: Sequence[int]) -> "np.ndarray":
        """Two bool maps (2, I, J, K), inside and outside.

        Raises:
            MarkError: as `check`.
        """
        import numpy as np

        self.check(shape)
        masks = np.zeros((2, *shape), dtype=bool)
        for mask, voxels in zip(masks, (self.positive, self.negative), strict=True):
            if voxels:
                mask[tuple(np.array(voxels).T)] = True
        return masks

    def check(self, shape: Sequence[int]) -> None:
        """Make sure that every mark lies in a scan of this shape.

        Raises:
            MarkError: one does not.
        """
        outside = [v for v in self.positive + self.negative if any(a >= b for a, b in zip(v, shape, strict=True))]
        if outside:
            size = " x ".join(str(length) for length in shape)
            raise MarkError(
                f"marks must lie inside the scan, {size} voxels; {len(outside)} do not, such as {outside[0]}. "
                "Give indices (i, j, k) of the scan's own array, from 0."
            )


def _voxel(value: Iterable[int]) -> Voxel:
    try:
        i, j, k = (operator.index(part) for part in value)
    except (TypeError, ValueError):
        i, j, k = -1, -1, -1
    if min(i, j, k) < 0:
        raise MarkError(f"a mark is a voxel (i, j, k) of three whole numbers from 0 on; got {value!r:.80}")
    return i, j, k
