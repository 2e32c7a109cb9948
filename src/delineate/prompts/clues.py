"""What a prompt may hold beside words and marks: a box, a mask, labelled examples."""

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from delineate.errors import PromptError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Box:
    """Where alone the target may be: voxel indices of the scan's own array, half-open.

    >>> Box((0, 10, 10), (1, 40, 50)).stop
    (1, 40, 50)

    Raises:
        PromptError: not three whole numbers each, or empty.
    """

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    def __post_init__(self):
        try:
            start, stop = (tuple(operator.index(v) for v in corner) for corner in (self.start, self.stop))
        except TypeError:
            start, stop = (), ()
        if len(start) != 3 or len(stop) != 3 or any(a < 0 or a >= b for a, b in zip(start, stop, strict=True)):
            raise PromptError(
                f"a box has two corners (i, j, k) of whole numbers, each of the second above the first; got "
                f"{self.start!r:.60} and {self.stop!r:.60}"
            )
        object.__setattr__(self, "start", start)
        object.__setattr__(self, "stop", stop)

    def check(self, shape: tuple[int, ...]) -> None:
        """Make sure that it lies in a scan of this shape. Raises `PromptError`."""
        if any(b > size for b, size in zip(self.stop, shape, strict=True)):
            size = " x ".join(map(str, shape))
            raise PromptError(f"a box must lie inside the scan, {size} voxels; this one ends at {self.stop}")


@dataclass(frozen=True, eq=False)
class Region:
    """What is believed of the target so far: a mask or probabilities in [0, 1], (I, J, K) on the scan's own voxels."""

    values: "np.ndarray"

    def check(self, shape: tuple[int, ...]) -> None:
        """Make sure that it is of a scan of this shape. Raises `PromptError`."""
        if self.values.shape != tuple(shape):
            raise PromptError(f"a mask must have the scan's shape {tuple(shape)}; this one has {self.values.shape}")


@dataclass(frozen=True, eq=False)
class Example:
    """A labelled scan: a `Scan`, and the target's mask in it, bool (I, J, K)."""

    scan: Any
    mask: "np.ndarray"
