"""Masks as the places where they change: small, quick to combine, and the same on the wire, in the log and in memory.

The *toggles* of a mask are the indices of its flattened (C order) voxels at which membership changes, counted from
"outside": starts and ends of its runs in turn, uint32, strictly rising, of even number, the last at most the number of
voxels. Exclusive or of two masks is then the symmetric difference of two sets, and undoing it is doing it again.

    mask       . . # # # . #        (7 voxels)
    toggles    2 5 6 7
    runs       2 3 1 1              (the first counts voxels outside)
    pairs      [2, 3], [6, 1]       (start, length)
"""

import base64
import binascii
import math
import zlib
from collections.abc import Sequence

import numpy as np

from delineate.errors import DelineateError

NOTHING = np.empty(0, np.uint32)
NOTHING.flags.writeable = False


class RunsError(DelineateError):
    """Runs or pairs that no mask of this size has."""


def toggles_of(mask: np.ndarray) -> np.ndarray:
    """The toggles of a bool array.

    >>> toggles_of(np.array([0, 0, 1, 1, 1, 0, 1], bool))
    array([2, 5, 6, 7], dtype=uint32)
    """
    flat = np.ascontiguousarray(mask, dtype=bool).reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    ends = ([0] if flat.size and flat[0] else [], [flat.size] if flat.size and flat[-1] else [])
    return np.concatenate([ends[0], changes, ends[1]]).astype(np.uint32)


def mask_of(toggles: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The bool array of this shape that has these toggles."""
    runs = runs_of(toggles, math.prod(shape))
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(shape)


def xor(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The toggles of the exclusive or of two masks."""
    return np.setxor1d(one, other, assume_unique=True).astype(np.uint32, copy=False)


def voxels_of(toggles: np.ndarray) -> int:
    """How many voxels are inside."""
    return int(toggles[1::2].sum(dtype=np.int64) - toggles[::2].sum(dtype=np.int64))


def gained_and_lost(before: np.ndarray, flips: np.ndarray) -> tuple[int, int]:
    """How many voxels a mask wins and loses when `flips` change membership; all are toggles."""
    lost = (voxels_of(before) + voxels_of(flips) - voxels_of(xor(before, flips))) // 2
    return voxels_of(flips) - lost, lost


def runs_of(toggles: np.ndarray, size: int) -> np.ndarray:
    """Run lengths, uint32, the first counting voxels outside; they sum to `size`, and only the first may be 0."""
    runs = np.diff(toggles.astype(np.int64), prepend=0, append=size).astype(np.uint32)
    return runs[:-1] if len(runs) > 1 and runs[-1] == 0 else runs


def encode_runs(toggles: np.ndarray, size: int) -> bytes:
    """The runs as little-endian uint32."""
    return runs_of(toggles, size).astype("<u4").tobytes()


def decode_runs(data: bytes, size: int) -> np.ndarray:
    """The toggles that `encode_runs` was given.

    Raises:
        RunsError: the bytes are no runs of a mask with `size` voxels.
    """
    if len(data) % 4:
        raise RunsError(f"runs are numbers of 4 bytes each; got {len(data)} bytes")
    runs = np.frombuffer(data, "<u4").astype(np.int64)
    if runs.sum() != size or (runs[1:] == 0).any():
        raise RunsError(f"runs must be 1 or more, the first 0 or more, and sum to {size}; they sum to {runs.sum()}")
    toggles = np.cumsum(runs)[:-1] if len(runs) % 2 else np.cumsum(runs)
    return toggles.astype(np.uint32)


def from_pairs(pairs: Sequence[Sequence[int]] | np.ndarray, size: int) -> np.ndarray:
    """The toggles of runs given as (start, length), in any order; runs may touch and may not overlap.

    Raises:
        RunsError: a run is empty, lies outside the `size` voxels or overlaps another.
    """
    given = np.asarray(pairs, np.int64).reshape(-1, 2)
    given = given[np.argsort(given[:, 0], kind="stable")]
    starts, lengths = given[:, 0], given[:, 1]
    if (lengths < 1).any() or (starts < 0).any() or (lengths > size).any() or (starts > size - lengths).any():
        raise RunsError(f"runs must have a length of 1 or more and lie within the {size} voxels of the scan")
    if (starts[1:] < (starts + lengths)[:-1]).any():
        raise RunsError("runs must not overlap: every voxel changes once")
    edges = np.stack([starts, starts + lengths], axis=1).reshape(-1)
    touching = np.flatnonzero(edges[1:] == edges[:-1])  # an end that is the next one's start
    return np.delete(edges, np.concatenate([touching, touching + 1])).astype(np.uint32)


def to_pairs(toggles: np.ndarray) -> np.ndarray:
    """(start, length) of every run, uint32 (n, 2)."""
    starts, ends = toggles[::2], toggles[1::2]
    return np.stack([starts, ends - starts], axis=1).astype(np.uint32)


def pack(toggles: np.ndarray) -> str:
    """The pairs as text: little-endian uint32, zlib, base64."""
    return base64.b64encode(zlib.compress(to_pairs(toggles).astype("<u4").tobytes(), 6)).decode("ascii")


def unpack(text: str, size: int) -> np.ndarray:
    """The toggles that `pack` was given. What would unfold to more than a mask of `size` voxels can need is refused.

    Raises:
        RunsError: the text is damaged, or its runs do not fit.
    """
    most = 8 * (size // 2 + 1)
    try:
        unfolding = zlib.decompressobj()
        data = unfolding.decompress(base64.b64decode(text, validate=True), most + 1)
    except (ValueError, binascii.Error, zlib.error) as error:
        raise RunsError(f"packed runs must be zlib in base64; they are damaged ({error})") from error
    if len(data) > most or len(data) % 8 or not unfolding.eof:
        raise RunsError(f"packed runs must be pairs for {size} voxels; these are longer, or cut short")
    return from_pairs(np.frombuffer(data, "<u4"), size)
