"""Maps of a scan of which most is zero: kept where any of them is not, equal to the whole ones to the bit.

A target fills some hundredths of a scan; N whole maps of one are the largest thing that a run would hold.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped


@dataclass(frozen=True, eq=False)
class Sparse:
    """N maps of one scan, kept at the M voxels where any of them is not zero.

    Attributes:
        values: (N, M).
        where: (M,), rising: the voxels' places in the scan, counted with its first axis fastest (as NIfTI stores them).
        shape: of the scan.
    """

    values: Shaped[np.ndarray, "N M"]
    where: Int[np.ndarray, " M"]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, maps: Shaped[np.ndarray, " N *space"]) -> "Sparse":
        """These maps."""
        bits = maps.view(np.uint16) if maps.dtype == np.float16 else maps  # as `fusion`: NumPy is slow with halves
        some = np.logical_or.reduce(bits != 0 if bits.dtype != np.uint16 else bits, axis=0)
        where = np.flatnonzero(some.reshape(-1, order="F"))
        values = np.empty((len(maps), len(where)), maps.dtype)
        for kept, one in zip(values, maps, strict=True):
            kept[:] = one.reshape(-1, order="F")[where]
        return cls(values, where, maps.shape[1:])

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return self.values.nbytes + self.where.nbytes

    @property
    def elsewhere(self) -> int:
        """How many voxels of the scan are zero in all maps, and not kept."""
        return prod(self.shape) - len(self.where)

    def whole(self) -> Iterator[Shaped[np.ndarray, " *space"]]:
        """The maps as they were, one after another; each is made anew, so it may be written to."""
        return (self.spread(one) for one in self.values)

    def dense(self) -> Shaped[np.ndarray, " N *space"]:
        """The maps as they were, all at once: N arrays as large as the scan."""
        out = np.zeros((len(self), *self.shape[::-1]), self.values.dtype)
        for one, values in zip(out, self.values, strict=True):
            one.reshape(-1)[self.where] = values
        return out.transpose(0, *range(out.ndim - 1, 0, -1))

    def spread(self, values: Shaped[np.ndarray, " M"], rest: float = 0) -> Shaped[np.ndarray, " *space"]:
        """An array as large as the scan with these values at the voxels that are kept, and `rest` at all others."""
        out = np.zeros(self.shape, values.dtype, order="F")  # zeros cost nothing until they are touched
        if rest:
            out.fill(rest)
        out.reshape(-1, order="F")[self.where] = values
        return out

    def taken(self, whole: Shaped[np.ndarray, " *space"]) -> Shaped[np.ndarray, " M"]:
        """The values of an array as large as the scan at the voxels that are kept."""
        return whole.reshape(-1, order="F")[self.where]

    def only(self, inside: Bool[np.ndarray, " *space"]) -> "Sparse":
        """The same, zero outside of `inside`."""
        kept = self.taken(inside)
        return Sparse(self.values[:, kept], self.where[kept], self.shape)

    def along(self, axis: int) -> Int[np.ndarray, " M"]:
        """The index of every voxel that is kept along an axis of the scan."""
        return self.where // prod(self.shape[:axis]) % self.shape[axis]

    def sums(self, values: Shaped[np.ndarray, " M"], axis: int, rest: float = 0) -> Float[np.ndarray, " slices"]:
        """The sum of `spread(values, rest)` in every slice across an axis of the scan."""
        along, slices = self.along(axis), self.shape[axis]
        sums = np.bincount(along, values, slices)
        return sums + rest * (prod(self.shape) // slices - np.bincount(along, minlength=slices)) if rest else sums

    def sliced(self, axis: int, index: int) -> "Sparse":
        """The maps of one slice across an axis, which has length 1 in them."""
        if self.shape[axis] == 1:
            return self
        here = np.flatnonzero(self.along(axis) == index)
        below = prod(self.shape[:axis])
        where = self.where[here] % below + self.where[here] // (below * self.shape[axis]) * below
        return Sparse(self.values[:, here], where, (*self.shape[:axis], 1, *self.shape[axis + 1 :]))

    def slice_of(
        self, values: Shaped[np.ndarray, " M"], axis: int, index: int, rest: float = 0
    ) -> Shaped[np.ndarray, " *space"]:
        """Of `spread(values, rest)` the slice `index` across an axis, which has length 1 in what is returned."""
        if self.shape[axis] == 1:
            return self.spread(values, rest)
        here = np.flatnonzero(self.along(axis) == index)
        return self.sliced(axis, index).spread(values[here], rest)
