"""What compressed pixels unfold to, known before anybody unfolds them whole.

A kilobyte of deflate can hold a megabyte of zeros. NIfTI and PNG are read into as much memory as their header asks for
and no more; strips and tiles of a TIFF are decoded one by one to whatever length they have.
"""

import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import tifffile

from delineate.errors import ScanError

_DEFLATE = {8, 32946, 50013}  # TIFF's codes of it
_BOUNDLESS = {32773, 34925, 34926, 50000}  # packbits, LZMA, Zstandard: tifffile's own decoders know no limit
_LARGEST_TILE = 4096 * 4096  # pixels, of an image that is smaller
_PIECE = 2**20  # bytes unfolded at once


def has_bounded_decoder(page: tifffile.TiffPage) -> bool:
    """Whether tifffile decodes strips and tiles of this compression to the length they should have, or `check` can."""
    return page.compression not in _BOUNDLESS or find_spec("imagecodecs") is not None


def check_strips(path: Path, page: tifffile.TiffPage, file: IO[bytes]) -> None:
    """Make sure that no strip or tile of a page, stored by deflate, unfolds to more than its pixels.

    Raises:
        ScanError: one does, or a tile is far larger than the image.
        zlib.error: one is damaged.
    """
    pixels = page.tilelength * page.tilewidth if page.is_tiled else page.imagewidth * _rows(page)
    if pixels > max(4 * page.imagelength * page.imagewidth, _LARGEST_TILE):
        raise ScanError(
            f"{path}: a tile must not be larger than its image, found {pixels} pixels; save the image again"
        )
    if page.compression not in _DEFLATE:
        return
    most = pixels * (page.samplesperpixel if page.planarconfig == 1 else 1) * -(-page.bitspersample // 8)
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        file.seek(start)
        if _unfolds_beyond(file.read(size), most):
            raise ScanError(
                f"{path}: a strip or tile of its pixels has {most} bytes, but one unfolds to more; save the image again"
            )
    file.seek(0)


def _rows(page: tifffile.TiffPage) -> int:
    return min(page.rowsperstrip, page.imagelength)


def _unfolds_beyond(data: bytes, most: int) -> bool:
    """Whether deflated `data` is more than `most` bytes long, unfolded piece by piece."""
    inflate, count = zlib.decompressobj(), 0
    while data and not inflate.eof:
        count += len(inflate.decompress(data, _PIECE))
        if count > most:
            return True
        data = inflate.unconsumed_tail
    return False
