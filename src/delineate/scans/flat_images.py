"""PNG, JPEG and TIFF pictures in and out: grey or RGB pixels, with the camera's rotation applied."""

import logging
import struct
import threading
import zlib
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import tifffile
from PIL import Image

from delineate.errors import ScanError
from delineate.scans.geometry import check_size
from delineate.scans.unfolding import check_strips, has_bounded_decoder
from delineate.storage.memory import need

MOST_PAGES = 10_000  # of a TIFF: smaller copies of one picture are ten or twenty
PILLOW_BYTES = {"I;16": 2, "I": 4, "F": 4}  # of a sample; of other modes one
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
TIFF_SUFFIXES = (".tif", ".tiff")
DAMAGE = (
    *(OSError, EOFError, ValueError, SyntaxError, struct.error, zlib.error),
    *(LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError),
)
"""What Pillow, tifffile and imagecodecs may raise on a damaged file. Not MemoryError: sizes are checked before."""

_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # the EXIF and TIFF tag 274, "orientation"
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels, 1),
}
_PILLOW_LIMIT = threading.Lock()

# tifffile logs what is wrong with a file before it raises; unheard, Python would print that to stderr beside
# our one line. Whoever sets up logging still gets it.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def read_flat(path: Path, max_voxels: int, as_labels: bool, measured: bool = False) -> tuple[np.ndarray, list[str]]:
    """The pixels (H, W) or (H, W, 3) of a picture, and notes; labels stay as stored, palette indices too.

    Where 0 is white, grey values are turned round unless they were `measured` (CT, PET).

    Raises:
        ScanError: If it is too large, animated, of several pages, or of colours that cannot be read.
    """
    if path.suffix.lower() in TIFF_SUFFIXES:
        return _read_tiff(path, max_voxels, as_labels, measured)
    return _read_picture(path, max_voxels, as_labels)


def write_flat(path: Path, pixels: np.ndarray) -> None:
    """Write `pixels`, grey (H, W) or in colour (H, W, 3), as PNG or TIFF, by the suffix, without loss."""
    if path.suffix.lower() == ".png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(
            path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", compression="zlib", metadata=None
        )


def _bytes_each(stored: int) -> int:
    """What a sample takes: decoded, as an array of its own, and as float32 where it has more than 16 bits."""
    return 2 * stored + (0 if stored <= 2 else 4)


def _plain_pixels(
    path: Path, pixels: np.ndarray, turn: int, notes: list[str], has_alpha: bool, as_labels: bool
) -> tuple[np.ndarray, list[str]]:
    """(H, W) or (H, W, 3): alpha dropped, or taken where a mask is drawn in it; the camera's rotation applied."""
    if has_alpha:
        colours, alpha = pixels[..., :-1], pixels[..., -1]
        drawn_in_alpha = as_labels and alpha.min() < alpha.max() and bool((colours == colours[0, 0]).all())
        if as_labels and not drawn_in_alpha and colours[(alpha == 0) & (alpha.max() > 0)].any():
            raise ScanError(
                f"{path}: a mask must be drawn in colour or in transparency, found both, and labels where it is "
                "transparent; save it without an alpha channel, black where nothing is labelled"
            )
        pixels = alpha if drawn_in_alpha else colours
        notes.append("mask taken from its alpha channel" if drawn_in_alpha else "alpha channel dropped")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ScanError(f"{path}: an image must be grey or RGB, found shape {pixels.shape}; convert it to RGB")
    if turn in _TURNS:
        pixels = _TURNS[turn](pixels)
        notes.append(f"EXIF orientation {turn} applied")
    return np.ascontiguousarray(pixels), notes


# --- PNG and JPEG


def _read_picture(path: Path, max_voxels: int, as_labels: bool) -> tuple[np.ndarray, list[str]]:
    notes: list[str] = []
    with path.open("rb") as file, _open_picture(file, "PNG", "JPEG") as image:
        check_size(path, image.size, max_voxels)
        samples = prod(image.size) * len(image.getbands())
        need(samples * _bytes_each(PILLOW_BYTES.get(image.mode, 1)), f"{path}: reading it")
        if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
            raise ScanError(f"{path}: an image must be one frame, found an animation; save one frame of it")
        depth, colour = _png_depth(file) if image.format == "PNG" else (8, 2)
        turn = int(image.getexif().get(274, 1))
        if depth == 16 and colour != 0:  # Pillow keeps 16 bits of grey only
            if as_labels:
                raise ScanError(f"{path}: a 16-bit mask must be grey, found colour or alpha; save class indices")
            notes.append("16-bit colour PNG read with 8 bits")
        if as_labels and image.format != "PNG":
            notes.append("JPEG is lossy: values between the labels may appear at edges")
        if image.mode in ("P", "PA") and not as_labels:
            image = image.convert("RGBA" if "transparency" in image.info or image.mode == "PA" else "RGB")
        elif image.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
            notes.append(f"{image.mode} colours converted to RGB")
            image = image.convert("RGB")
        has_alpha = image.mode in ("LA", "PA", "RGBA", "La", "RGBa")
        pixels = np.asarray(image)
    if colour == 0 and depth in (2, 4):  # Pillow stretches these to 0..255; a label must stay as stored
        pixels = pixels // (85 if depth == 2 else 17)
    return _plain_pixels(path, pixels, turn, notes, has_alpha, as_labels)


def _open_picture(file: IO[bytes], *formats: str) -> Image.Image:
    """Pillow's picture, header only, without Pillow's own limit: `max_voxels` stands in for it.

    The limit is a global of Pillow's module, so it is lifted under a lock and put back.
    """
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _png_depth(file: IO[bytes]) -> tuple[int, int]:
    """Bits a sample, and the colour type, of a PNG's header; Pillow does not tell them."""
    file.seek(24)
    depth, colour = file.read(2)
    file.seek(0)
    return depth, colour


# --- TIFF


def _read_tiff(path: Path, max_voxels: int, as_labels: bool, measured: bool) -> tuple[np.ndarray, list[str]]:
    notes: list[str] = []
    with path.open("rb") as file, tifffile.TiffFile(path) as tiff:
        page = _only_page(path, tiff)
        photometric = _checked_page(path, page, max_voxels)
        check_strips(path, page, file)
        pixels = _decoded(path, page, file)
        turn = int(page.tags.valueof(274, 1))
        has_samples = "S" in page.axes
        has_alpha = has_samples and (bool(page.extrasamples) or pixels.shape[-1] == 4)
        if photometric == "PALETTE" and page.colormap is not None and not as_labels:
            pixels = (page.colormap.T[pixels] >> 8).astype(np.uint8)
    if pixels.dtype.kind not in "biuf":
        raise ScanError(f"{path}: pixels must be integers or floats, found {pixels.dtype}; save the magnitude")
    if photometric == "MINISWHITE" and not (as_labels or measured) and pixels.dtype.kind in "bu":
        pixels = ~pixels
        notes.append("0 is white in this TIFF: grey values inverted")
    return _plain_pixels(path, pixels, turn, notes, has_alpha, as_labels)


def _only_page(path: Path, tiff: tifffile.TiffFile) -> tifffile.TiffPage:
    """The one page that is no smaller copy of another."""
    seen: set[int] = set()
    for page in tiff.pages:
        if page.offset in seen or len(seen) >= MOST_PAGES:
            raise ScanError(f"{path}: a TIFF must hold one 2-D page, found pages without end; save the image again")
        seen.add(page.offset)
    pages = [page for page in tiff.pages if isinstance(page, tifffile.TiffPage) and not page.is_reduced]
    page = pages[0] if pages else tiff.pages.first
    if len(pages) > 1 or prod(tiff.series[0].shape) > prod(page.shape) or set(page.axes) - set("YXS"):
        raise ScanError(
            f"{path}: a TIFF must hold one 2-D page, found {len(pages)} pages, series "
            f"{tiff.series[0].shape}; save one page of it, or a volume as NIfTI"
        )
    return page


def _checked_page(path: Path, page: tifffile.TiffPage, max_voxels: int) -> str:
    """The name of the page's colour kind, once its size and place in the file are known to be sound."""
    check_size(path, (page.imagelength, page.imagewidth), max_voxels)
    if prod(page.shape) > 4 * page.imagelength * page.imagewidth:  # before samples without end are allocated
        raise ScanError(f"{path}: an image must be grey or RGB, found shape {page.shape}; convert it to RGB")
    need(prod(page.shape) * _bytes_each(max(1, page.bitspersample // 8)), f"{path}: reading it")
    ends = [start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
    if max(ends) > path.stat().st_size:  # tifffile would fill what is missing with zeros
        raise ScanError(
            f"{path}: the pixels end at byte {max(ends)}, but the file was cut short after "
            f"{path.stat().st_size}; copy it again"
        )
    photometric = getattr(page.photometric, "name", str(page.photometric))
    if photometric not in ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE", "YCBCR"):
        raise ScanError(f"{path}: a TIFF must be grey, RGB or palette, found {photometric}; convert it to RGB")
    return photometric


def _decoded(path: Path, page: tifffile.TiffPage, file: IO[bytes]) -> np.ndarray:
    """The pixels as stored, samples last: by tifffile, which decodes little more than deflate, or else by Pillow."""
    try:
        if not has_bounded_decoder(page):
            raise ImportError("imagecodecs")
        pixels = page.asarray()
        return np.moveaxis(pixels, page.axes.index("S"), -1) if "S" in page.axes else pixels
    except (ImportError, ValueError) as error:
        if not (isinstance(error, ImportError) or "imagecodecs" in str(error)):
            raise
    try:
        with _open_picture(file, "TIFF") as image:
            image.seek(page.index)
            pixels = np.asarray(image)
    except DAMAGE:
        pixels = None
    if pixels is None or (page.bitspersample > 8 and pixels.dtype.itemsize == 1):
        codecs = [getattr(one, "name", str(one)) for one in (page.compression, page.predictor) if one != 1]
        raise ScanError(
            f"{path}: TIFF pixels stored as {', '.join(codecs) or 'packed bits'} cannot be decoded here, or are "
            "damaged; save the image again with deflate or without compression, or pip install imagecodecs"
        )
    white = page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.itemsize == 1
    return ~pixels if white else pixels  # which Pillow has turned round already
