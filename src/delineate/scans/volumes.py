"""What volume files share: which of several volumes, and its numbers out of the file, raw or deflated.

Sizes are compared with the file before anything is allocated, and what is deflated is unfolded no further than asked.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from delineate.errors import ScanError
from delineate.scans.geometry import check_size
from delineate.scans.intensity import is_narrow
from delineate.storage.memory import need

DEFLATE_LIMIT = 1032  # no deflate stream expands further: 258 bytes a 2 bits (zlib.net/zlib_tech.html)
LARGEST_OFFSET = 2**28  # bytes before the voxels: header extensions have some megabytes at most
_PIECE = 2**20  # bytes read, or unfolded, at once
_EITHER = 47  # of zlib: 15 bits of window, and zlib or gzip by what it begins with


class Stored(NamedTuple):
    """What a file holds, before the values are scaled to their meaning: value * slope + inter."""

    values: np.ndarray
    affine: np.ndarray
    notes: tuple[str, ...]
    has_spacing: bool = True
    space_code: int = 1
    slope: float = 1.0
    inter: float = 0.0
    forms: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Block:
    """Numbers that lie in a file one after another, the first axis fastest.

    Attributes:
        name: the file that messages name: the header.
        file: where they are.
        dtype: of one, with its byte order.
        sizes: of all axes.
        axis: along which of them one volume follows another; None for one volume.
        deflated: whether they are, as zlib or gzip have it.
        start: the byte of the file at which they begin; where they are deflated, at which the stream begins.
        skip: of what the stream unfolds to, the byte at which they begin.
    """

    name: Path
    file: Path
    dtype: np.dtype
    sizes: tuple[int, ...]
    axis: int | None = None
    deflated: bool = False
    start: int = 0
    skip: int = 0

    def volume(self, index: int, max_voxels: int) -> np.ndarray:
        """One volume, with the other axes in order.

        Raises:
            ScanError: the file cannot hold what is asked for, or is cut short; or there are more than `max_voxels`.
            OutOfMemory: there is not enough for it.
            zlib.error: a stream is damaged.
        """
        shape = tuple(size for axis, size in enumerate(self.sizes) if axis != self.axis)
        apart = self.axis in (None, len(self.sizes) - 1)  # else all volumes are read to pick one
        check_size(self.name, shape if apart else self.sizes, max_voxels)
        held, wanted = self.file.stat().st_size, prod(self.sizes) * self.dtype.itemsize
        if self.deflated:
            possible, holder = (held - self.start) * DEFLATE_LIMIT, f"{held} deflated bytes cannot hold them"
        else:
            possible, holder = held - self.start, f"the file has {max(0, held - self.start)} for them"
        if self.skip + wanted > possible:
            raise ScanError(
                f"{self.name}: the header asks for {wanted} bytes of voxels, but {holder}; it was cut short or its "
                "header is wrong: copy or convert it again"
            )
        if self.skip > LARGEST_OFFSET:  # all of it would be unfolded on the way
            raise ScanError(
                f"{self.name}: voxels must begin before byte {LARGEST_OFFSET}, the header says {self.skip}; convert it "
                "again"
            )
        count = prod(shape if apart else self.sizes)
        more = 0 if is_narrow(self.dtype) else 4  # as float32, too
        need(count * self.dtype.itemsize + prod(shape) * more, f"{self.name}: reading it")
        values = np.empty(count, self.dtype)
        self._fill(values.view(np.uint8), index * values.nbytes if apart else 0)
        if apart:
            return values.reshape(shape, order="F")
        return values.reshape(self.sizes, order="F").take(index, axis=self.axis)

    def _fill(self, out: np.ndarray, offset: int) -> None:
        with self.file.open("rb") as file:
            file.seek(self.start)
            if self.deflated:
                count = _unfold(file, self.skip + offset, out)
            else:
                file.seek(offset + self.skip, 1)
                count = file.readinto(out.data)
        if count < len(out):
            raise ScanError(
                f"{self.name}: the header asks for {len(out)} bytes a volume, but the file was cut short after "
                f"{count}; copy it again"
            )


def choose_volume(path: Path, sizes: Sequence[int], count: int, volume: int | None) -> tuple[int, list[str]]:
    """The index of the volume to read of `count`, and a note where there are several.

    Raises:
        ScanError: there are several and none was chosen, or one that is not there.
    """
    if count > 1 and volume is None:
        raise ScanError(
            f"{path}: a scan must be 3-D, found {count} volumes ({list(sizes)}); choose one with volume=0 to "
            f"{count - 1}, or save one as a file of its own"
        )
    index = volume or 0
    if not 0 <= index < count:
        raise ScanError(f"{path}: volume must be from 0 to {count - 1}, asked for {index}")
    return index, [f"volume {index} of {count}"] if count > 1 else []


def _unfold(file: IO[bytes], skip: int, out: np.ndarray) -> int:
    """Fill `out` with what a stream unfolds to after `skip` bytes; how many there were before it ended, or broke off.

    Only at its end does a stream compare its checksum: a little more than asked for is unfolded for that.
    """
    filled = beyond = 0
    try:
        for piece in _unfolded(file):
            left_out = min(skip, len(piece))
            skip -= left_out
            part = piece[left_out : left_out + len(out) - filled]
            out[filled : filled + len(part)] = np.frombuffer(part, np.uint8)
            filled += len(part)
            beyond += len(piece) - left_out - len(part)
            if filled == len(out) and beyond > _PIECE:
                break
    except EOFError:
        return min(filled, len(out) - 1)  # its last bytes are missing, if only those of the checksum
    return filled


def _unfolded(file: IO[bytes]) -> Iterator[bytes]:
    """What a zlib stream, or gzip members one after another, unfold to, piece by piece.

    Raises:
        EOFError: the file ends before the stream does.
    """
    inflate, data = zlib.decompressobj(_EITHER), b""
    while True:
        data = data or file.read(_PIECE)
        if not data:
            raise EOFError
        yield inflate.decompress(data, _PIECE)
        data = inflate.unconsumed_tail
        if inflate.eof:
            data = inflate.unused_data + file.read(2)
            if data[:2] != b"\x1f\x8b":  # no further member; what follows is nobody's
                return
            inflate = zlib.decompressobj(_EITHER)
