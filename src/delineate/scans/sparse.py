"""Maps of a scan of which most is zero: kept where any of them is not, equal to the whole ones to the bit.

A target fills some hundredths of a scan; N whole maps of one are the largest thing that a run would hold.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

AT_ONCE = 1 << 20  # voxels: NumPy makes eight bytes of every place that it is given
ONE = 0x3C00  # float16's 1


def places_of(mask: Bool[np.ndarray, "*space"], dtype: type) -> Int[np.ndarray, " places"]:
    """Where a mask is True, counted with its last axis fastest."""
    flat = mask.reshape(-1)
    out, done = np.empty(np.count_nonzero(flat), dtype), 0
    for start in range(0, len(flat), AT_ONCE):
        found = np.flatnonzero(flat[start : start + AT_ONCE])
        out[done : done + len(found)] = found + start
        done += len(found)
    return out


def place_type(voxels: int) -> type:
    """What holds a place among so many."""
    return np.int32 if voxels <= np.iinfo(np.int32).max else np.int64


@dataclass(frozen=True, eq=False)
class Packed:
    """Halves of which most are 0 or 1, as a drawn mask on its way to a finer grid is: a bit each, and the others.

    Attributes:
        ones: a bit a value, whether it is 1.
        places: (F,), of those that are neither 0 nor 1.
        values: (F,), these.
        size: how many there are.
    """

    ones: np.ndarray
    places: np.ndarray
    values: np.ndarray
    size: int

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return self.ones.nbytes + self.places.nbytes + self.values.nbytes

    def opened(self) -> Float[np.ndarray, " M"]:
        """All values, float16."""
        out = np.unpackbits(self.ones, count=self.size).astype(np.uint16)
        out *= ONE
        out = out.view(np.float16)
        out[self.places] = self.values
        return out


def packed(values: Shaped[np.ndarray, " M"]) -> "np.ndarray | Packed":
    """The same values in less memory where they are halves, and most of them 0 or 1."""
    if values.dtype != np.float16 or values.size > np.iinfo(np.int32).max:
        return values
    bits = np.ascontiguousarray(values).view(np.uint16)
    ones = bits == ONE
    between = bits != 0
    between &= ~ones
    if 4 * np.count_nonzero(between) > values.size:
        return values
    places = places_of(between, np.int32)
    return Packed(np.packbits(ones), places, values[places], values.size)


@dataclass(frozen=True, eq=False)
class Sparse:
    """N maps of one scan, kept at the M voxels where any of them is not zero.

    Attributes:
        maps: N times the values (M,) there, or these `packed`; `row` gives them.
        where: (M,), rising: the voxels' places in the scan, counted with its first axis fastest (as NIfTI stores them).
        shape: of the scan.
    """

    maps: Sequence[np.ndarray | Packed]
    where: Int[np.ndarray, " M"]
    shape: tuple[int, ...]

    @classmethod
    def of(cls, maps: Shaped[np.ndarray, " N *space"]) -> "Sparse":
        """These maps."""
        bits = maps.view(np.uint16) if maps.dtype == np.float16 else maps  # as `fusion`: NumPy is slow with halves
        some = np.logical_or.reduce(bits != 0 if bits.dtype != np.uint16 else bits, axis=0)
        where = places_of(some.reshape(-1, order="F"), place_type(some.size))
        return cls([packed(one.reshape(-1, order="F")[where]) for one in maps], where, maps.shape[1:])

    def __len__(self) -> int:
        return len(self.maps)

    def row(self, k: int) -> Shaped[np.ndarray, " M"]:
        """The values of map k at the voxels that are kept; not to be written to."""
        one = self.maps[k]
        return one.opened() if isinstance(one, Packed) else one

    def rows(self) -> Iterator[Shaped[np.ndarray, " M"]]:
        """Those of all maps, one after another."""
        return (self.row(k) for k in range(len(self)))

    @property
    def values(self) -> Shaped[np.ndarray, "N M"]:
        """Those of all maps at once, made anew each time."""
        return np.stack([*self.rows()])

    @property
    def nbytes(self) -> int:
        """What they take in memory."""
        return sum(one.nbytes for one in self.maps) + self.where.nbytes

    @property
    def elsewhere(self) -> int:
        """How many voxels of the scan are zero in all maps, and not kept."""
        return prod(self.shape) - len(self.where)

    def whole(self) -> Iterator[Shaped[np.ndarray, " *space"]]:
        """The maps as they were, one after another; each is made anew, so it may be written to."""
        return (self.spread(one) for one in self.rows())

    def dense(self) -> Shaped[np.ndarray, " N *space"]:
        """The maps as they were, all at once: N arrays as large as the scan."""
        first = self.maps[0]
        out = np.zeros((len(self), *self.shape[::-1]), first.values.dtype if isinstance(first, Packed) else first.dtype)
        for one, values in zip(out, self.rows(), strict=True):
            self._put(one.reshape(-1), values, lambda values: values)
        return out.transpose(0, *range(out.ndim - 1, 0, -1))

    def spread(
        self,
        values: Shaped[np.ndarray, " M"],
        rest: float = 0,
        change: Callable[[np.ndarray], np.ndarray] = lambda values: values,
    ) -> Shaped[np.ndarray, " *space"]:
        """An array as large as the scan with these values at the voxels that are kept, and `rest` at all others.

        They may be changed on the way, a part at a time.
        """
        out = np.zeros(self.shape, values.dtype, order="F")  # zeros cost nothing until they are touched
        if rest:
            out.fill(rest)
        self._put(out.reshape(-1, order="F"), values, change)
        return out

    def taken(self, whole: Shaped[np.ndarray, " *space"]) -> Shaped[np.ndarray, " M"]:
        """The values of an array as large as the scan at the voxels that are kept."""
        flat, out = whole.reshape(-1, order="F"), np.empty(len(self.where), whole.dtype)
        for start in range(0, len(out), AT_ONCE):
            out[start : start + AT_ONCE] = flat[self.where[start : start + AT_ONCE]]
        return out

    def _put(self, flat: np.ndarray, values: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> None:
        for start in range(0, len(values), AT_ONCE):
            flat[self.where[start : start + AT_ONCE]] = change(values[start : start + AT_ONCE])

    def only(self, inside: Bool[np.ndarray, " *space"]) -> "Sparse":
        """The same, zero outside of `inside`."""
        kept = self.taken(inside)
        return Sparse([packed(one[kept]) for one in self.rows()], self.where[kept], self.shape)

    def along(self, axis: int) -> Int[np.ndarray, " M"]:
        """The index of every voxel that is kept along an axis of the scan."""
        return self.where // prod(self.shape[:axis]) % self.shape[axis]

    def sums(self, values: Shaped[np.ndarray, " M"], axis: int, rest: float = 0) -> Float[np.ndarray, " slices"]:
        """The sum of `spread(values, rest)` in every slice across an axis of the scan."""
        if self.shape[axis] == 1:
            return np.array([values.sum(dtype=np.float64) + rest * self.elsewhere])
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
        return Sparse([one[here] for one in self.rows()], where, (*self.shape[:axis], 1, *self.shape[axis + 1 :]))

    def slice_of(
        self, values: Shaped[np.ndarray, " M"], axis: int, index: int, rest: float = 0
    ) -> Shaped[np.ndarray, " *space"]:
        """Of `spread(values, rest)` the slice `index` across an axis, which has length 1 in what is returned."""
        if self.shape[axis] == 1:
            return self.spread(values, rest)
        here = np.flatnonzero(self.along(axis) == index)
        return self.sliced(axis, index).spread(values[here], rest)
