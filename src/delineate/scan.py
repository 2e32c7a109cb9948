"""Images and label maps in and out of files: NIfTI volumes and PNG, JPEG, TIFF pictures, on their own grid.

Files come from strangers: every header is checked against the file's size before any voxel is allocated, and
every refusal is one line of `ScanError` that names the file, what must hold, what was found and what to do.
"""

import gzip
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import tifffile
from nibabel.volumeutils import array_from_file
from PIL import Image

from delineate.errors import ScanError
from delineate.files import replacing
from delineate.geometry import (
    CANONICAL,
    FLAT_AFFINE,
    Orientation,
    affine_of_header,
    axis_codes,
    canonical_spacing,
    checked_spacing,
    from_canonical,
    orientation_of,
    spacing_of,
    to_canonical,
)

__all__ = [
    "CANONICAL",
    "FLAT_AFFINE",
    "MAX_VOXELS",
    "SCAN_SUFFIXES",
    "Orientation",
    "Scan",
    "canonical_spacing",
    "from_canonical",
    "is_scan_file",
    "orientation_of",
    "read_labels",
    "read_scan",
    "stem_of",
    "to_canonical",
    "write_labels",
    "write_map",
]

NIFTI_SUFFIXES = (".nii.gz", ".nii")
TIFF_SUFFIXES = (".tif", ".tiff")
SCAN_SUFFIXES = (*NIFTI_SUFFIXES, ".png", ".jpg", ".jpeg", *TIFF_SUFFIXES)
MAX_VOXELS = 1_000_000_000

# What a library may raise on a damaged file. MemoryError is not among them: sizes are checked before.
_DAMAGE = (
    *(OSError, EOFError, ValueError, SyntaxError, struct.error, zlib.error),
    *(LookupError, TypeError, AttributeError, ArithmeticError),
)
_DEFLATE_LIMIT = 1032  # no deflate stream expands further: 258 bytes a 2 bits (zlib.net/zlib_tech.html)
_NUMBERS = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}  # NIfTI datatype codes of plain integers and floats
_REFUSED_KINDS = {
    32: "complex numbers; save the magnitude",
    1792: "complex numbers; save the magnitude",
    2048: "complex numbers; save the magnitude",
    128: "RGB colours; save one channel, or 2-D colour images as PNG",
    2304: "RGBA colours; save one channel, or 2-D colour images as PNG",
    1536: "128-bit floats; convert them to float32",
}
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


@dataclass(frozen=True, eq=False)
class Scan:
    """An image with its geometry.

    Attributes:
        voxels: (I, J, K), or in colour (I, J, K, 3), in the file's own array order.
            2-D images are (1, H, W) or (1, H, W, 3).
        affine: (4, 4) float64, voxel index to world mm, RAS+.
        modality: "CT", "MR", "US", ... as declared by who reads it.
        source: The file it came from.
        has_spacing: False for PNG, JPEG and TIFF: a pixel is then 1 mm by convention only.
        notes: One line for every decision taken while reading.
        space_code: NIfTI's code of the world space (1 scanner, 2 aligned, 4 MNI), kept in what is written.
    """

    voxels: np.ndarray
    affine: np.ndarray
    modality: str | None = None
    source: Path | None = None
    has_spacing: bool = True
    notes: tuple[str, ...] = ()
    space_code: int = 1

    def __post_init__(self):
        object.__setattr__(self, "affine", np.array(self.affine, dtype=np.float64))
        if self.affine.shape != (4, 4):
            raise ScanError(f"an affine must have shape (4, 4), got {self.affine.shape}")
        if self.voxels.shape[3:] not in ((), (3,)) or self.voxels.ndim < 3:
            raise ScanError(f"voxels must have shape (I, J, K) or (I, J, K, 3), got {self.voxels.shape}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(I, J, K): the size of the grid, without the colour axis."""
        i, j, k = self.voxels.shape[:3]
        return i, j, k

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The distance in mm between neighbouring voxels along each array axis."""
        return spacing_of(self.affine)

    @property
    def is_colour(self) -> bool:
        """Whether a voxel holds red, green and blue."""
        return self.voxels.ndim == 4

    @property
    def is_flat(self) -> bool:
        """Whether it comes from a 2-D image file: not NIfTI, one slice, oriented as `FLAT_AFFINE`."""
        nifti = self.source is not None and _suffix_of(self.source) in NIFTI_SUFFIXES
        return not nifti and self.shape[0] == 1 and orientation_of(self.affine) == Orientation()

    @property
    def axis_codes(self) -> str:
        """The direction in which each array axis grows, such as "LPS"."""
        return axis_codes(self.affine)


def is_scan_file(path: Path | str) -> bool:
    """Whether `path` is named like a file that `read_scan` takes; hidden names ("._x") are not."""
    return not Path(path).name.startswith(".") and _suffix_of(path) in SCAN_SUFFIXES


def stem_of(path: Path | str) -> str:
    """The file's name without its suffix, ".nii.gz" being one.

    >>> stem_of("scans/case_0000.nii.gz"), stem_of("polyp.v2.png")
    ('case_0000', 'polyp.v2')
    """
    return Path(path).name[: -len(suffix)] if (suffix := _suffix_of(path)) else Path(path).name


def read_scan(
    path: Path | str,
    *,
    modality: str | None = None,
    volume: int | None = None,
    assume_spacing_mm: Sequence[float] | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Scan:
    """The image in `path` as float32 voxels, in the file's own array order.

    NIfTI: `scl_slope` and `scl_inter` are applied. NaN and infinite voxels become the smallest finite value
    and are counted in a note; a trailing axis of size 1 is dropped with a note. Which affine is trusted is
    written in `delineate.geometry.affine_of_header`: the sform before the qform, with a note if they differ.
    PNG, JPEG, TIFF: 8 and 16 bits keep their values; alpha is dropped and the EXIF orientation applied, with
    notes.

    Args:
        path: A file whose suffix is in `SCAN_SUFFIXES`.
        modality: Kept in the scan as it is.
        volume: Which volume of a 4-D file, from 0.
        assume_spacing_mm: Spacing along the array's axes (for 2-D images: slice, row, column), used only
            where the file holds no geometry.
        max_voxels: The most voxels that are read; what a file asks for beyond it is refused.

    Raises:
        ScanError: In one line, if the file is missing, a directory, empty or of another suffix; damaged, cut
            short or not what its suffix says; larger than `max_voxels` or than its own bytes can hold;
            without voxels; complex, RGB NIfTI or 128-bit; 4-D without `volume`, or of several pages; without
            any finite value; without geometry (both NIfTI codes 0), with a zero or NaN affine, a bad pixdim
            where it is needed, forms that disagree on orientation, or more than 2 degrees of shear.
    """
    path = Path(path)
    stored = _read(path, volume, assume_spacing_mm, max_voxels)
    voxels, notes = _finite(path, _scaled(stored))
    notes = stored.notes + notes
    return Scan(voxels, stored.affine, modality, path, stored.has_spacing, notes, stored.space_code)


def read_labels(
    path: Path | str,
    *,
    assume_spacing_mm: Sequence[float] | None = None,
    max_voxels: int = MAX_VOXELS,
) -> Scan:
    """The label map in `path`, as the smallest of uint8, uint16 and int32 that holds its values.

    Values stay as stored (a PNG mask of 0 and 255 is not made 0 and 1). Floats are accepted where each is
    within 1e-4 of a whole number. An RGB mask with equal channels is reduced to one; a palette image gives
    its indices.

    Raises:
        ScanError: As `read_scan`; and for fractional or NaN values, colours, values beyond int32.
    """
    path = Path(path)
    stored = _read(path, None, assume_spacing_mm, max_voxels, as_labels=True)
    values, notes = stored.values, stored.notes
    if values.ndim == 4:
        if (values != values[..., :1]).any():
            raise ScanError(
                f"{path}: a mask must hold one number a pixel, found colours; save class indices instead"
            )
        values, notes = values[..., 0], (*notes, "three equal channels reduced to one")
    if (stored.slope, stored.inter) != (1.0, 0.0):
        values = values.astype(np.float64) * stored.slope + stored.inter
    if values.dtype.kind == "f":
        whole = np.rint(values)
        with np.errstate(invalid="ignore"):  # inf - inf is NaN, and NaN is not whole
            # not exactly: scl_slope is a float32, and 255 * (1 / 255) is not quite 1
            broken = ~(np.abs(values - whole) <= 1e-4)
        if broken.any():
            raise ScanError(
                f"{path}: labels must be whole numbers, found {values[broken][0]:g} and "
                f"{int(broken.sum()) - 1} more; threshold a probability map, or resample labels with "
                "nearest neighbours"
            )
        values = whole
    labels = np.asarray(values, _label_dtype(path, values))
    return Scan(labels, stored.affine, None, path, stored.has_spacing, notes, stored.space_code)


def write_labels(path: Path | str, labels: np.ndarray, like: Scan) -> Path:
    """Write `labels` on the grid of `like`, and return the path.

    The dtype follows the values: uint8 up to 255, uint16 up to 65535, else int32 (not in PNG). A bool mask
    becomes 0 and 1 in NIfTI, 0 and 255 in PNG and TIFF. The file is read back and compared before it takes
    its name; if anything fails, a file that was there stays as it was.

    Args:
        path: ".nii" or ".nii.gz"; for flat scans also ".png", ".tif" or ".tiff".
        labels: Integer or bool, (I, J, K) = `like.shape`.
        like: The scan that the labels belong to.

    Raises:
        ScanError: If shape, dtype, values or suffix do not fit, or the file cannot be written.
    """
    path, labels = Path(path), np.asarray(labels)
    suffix = _checked_target(path, labels, like)
    if labels.dtype.kind not in "biu":
        raise ScanError(
            f"{path}: labels must be integers or bool, got {labels.dtype}; round or threshold them first"
        )
    stored = labels.astype(_label_dtype(path, labels))
    if labels.dtype == bool and suffix not in NIFTI_SUFFIXES:
        stored *= 255
    if suffix == ".png" and stored.dtype == np.int32:
        raise ScanError(
            f"{path}: PNG holds labels 0 to 65535, got {labels.min()} to {labels.max()}; write .tif"
        )
    return _write(path, stored, like, read_labels)


def write_map(path: Path | str, values: np.ndarray, like: Scan) -> Path:
    """Write a map in [0, 1], such as a probability or a doubt, on the grid of `like`, and return the path.

    NIfTI and TIFF hold float32; PNG holds 8 bits, 0 to 255. Checked and renamed as by `write_labels`.

    Args:
        path: ".nii" or ".nii.gz"; for flat scans also ".png", ".tif" or ".tiff".
        values: Floats in [0, 1], (I, J, K) = `like.shape`.
        like: The scan that the map belongs to.

    Raises:
        ScanError: If shape, values or suffix do not fit, or the file cannot be written.
    """
    path, values = Path(path), np.asarray(values, np.float32)
    suffix = _checked_target(path, values, like)
    low, high = float(values.min()), float(values.max())
    if not (low >= -1e-6 and high <= 1 + 1e-6):  # rounding passes, NaN does not
        raise ScanError(
            f"{path}: a map must lie in [0, 1], got {low:g} to {high:g}; clip or normalise it first"
        )
    values = values.clip(0, 1)
    return _write(
        path, np.rint(values * 255).astype(np.uint8) if suffix == ".png" else values, like, read_scan
    )


class _Stored(NamedTuple):
    """What a file holds, before the values are scaled to their meaning: value * slope + inter."""

    values: np.ndarray
    affine: np.ndarray
    notes: tuple[str, ...]
    has_spacing: bool = True
    space_code: int = 1
    slope: float = 1.0
    inter: float = 0.0


def _suffix_of(path: Path | str) -> str:
    name = Path(path).name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _damaged(path: Path, error: BaseException) -> ScanError:
    return ScanError(
        f"{path}: a file must be readable to its end, but this one is damaged or not what its suffix says "
        f"({_line(error)}); copy or convert it again"
    )


def _too_large(path: Path, shape: Sequence[int], max_voxels: int) -> ScanError:
    size = " x ".join(str(length) for length in shape)
    return ScanError(
        f"{path}: at most {max_voxels} voxels are read, the header asks for {size}; crop or downsample it, "
        "or raise max_voxels if the file is trusted"
    )


def _read(
    path: Path, volume: int | None, spacing: Sequence[float] | None, max_voxels: int, as_labels: bool = False
) -> _Stored:
    suffix = _suffix_of(path)
    if path.is_dir():
        raise ScanError(f"{path}: a scan must be one file, found a directory; name a file inside it")
    if not path.exists():
        raise ScanError(f"{path}: no such file; check the path")
    if suffix not in SCAN_SUFFIXES:
        raise ScanError(
            f"{path}: the suffix must be one of {', '.join(SCAN_SUFFIXES)}, found '{suffix}'; convert the "
            "file first (DICOM: with dcm2niix)"
        )
    if path.stat().st_size == 0:
        raise ScanError(f"{path}: a scan must hold data, found an empty file; copy or convert it again")
    if suffix in NIFTI_SUFFIXES:
        return _read_nifti(path, volume, spacing, max_voxels)
    if volume not in (None, 0):
        raise ScanError(f"{path}: a 2-D image holds volume 0 only, asked for {volume}; leave volume out")
    read = _read_tiff if suffix in TIFF_SUFFIXES else _read_picture
    pixels, notes = read(path, max_voxels, as_labels)
    if spacing is None:
        return _Stored(pixels[None], FLAT_AFFINE, tuple(notes), has_spacing=False)
    spacing = checked_spacing(spacing)
    return _Stored(
        pixels[None], FLAT_AFFINE * [*spacing, 1.0], (*notes, f"spacing {spacing} mm as given by the caller")
    )


def _nifti_header(path: Path) -> nibabel.Nifti1Header:
    zipped = _suffix_of(path) == ".nii.gz"
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            block = file.read(540)
    except gzip.BadGzipFile as error:
        raise ScanError(
            f"{path}: a name ending in .gz must hold gzip data, found none; rename it to .nii if it is "
            "plain NIfTI"
        ) from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if block[:2] == b"\x1f\x8b":
        raise ScanError(
            f"{path}: a .nii file must hold plain NIfTI, found gzip data; rename it to end in .nii.gz"
        )
    if block[344:348] == b"n+1\0":
        return nibabel.Nifti1Header(block[:348], check=False)  # nibabel's check would mend in silence
    if block[4:8] == b"n+2\0" and len(block) == 540:
        return nibabel.Nifti2Header(block, check=False)
    raise ScanError(
        f"{path}: a NIfTI file must begin with a NIfTI header, found none in its first {len(block)} bytes; "
        "copy or convert it again"
    )


def _nifti_shape(
    path: Path, header: nibabel.Nifti1Header, volume: int | None
) -> tuple[list[int], int, list[str]]:
    """The three spatial sizes, the index of the volume to read, and notes."""
    dim = [int(size) for size in header["dim"]]
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise ScanError(
            f"{path}: every dimension must be at least 1, the header's dim is {dim}; convert the scan "
            "again from its source"
        )
    sizes = dim[1 : dim[0] + 1]
    shape, later = [*sizes, 1, 1][:3], sizes[3:]
    notes = []
    if len(sizes) < 3:
        notes.append(f"a {len(sizes)}-D NIfTI read as one slice")
    elif later and prod(later) == 1:
        notes.append(f"{len(sizes)}-D with one volume: read as 3-D")
    count = later[0] if later else 1
    if prod(later) > count:
        raise ScanError(f"{path}: a scan must be 3-D or 4-D, found sizes {sizes}; save one volume of it")
    if count > 1 and volume is None:
        raise ScanError(
            f"{path}: a scan must be 3-D, found {count} volumes ({sizes}); choose one with volume=0 to "
            f"{count - 1}, or save one as a file of its own"
        )
    index = volume or 0
    if not 0 <= index < count:
        raise ScanError(f"{path}: volume must be from 0 to {count - 1}, asked for {index}")
    if count > 1:
        notes.append(f"volume {index} of {count}")
    return shape, index, notes


def _read_nifti(path: Path, volume: int | None, spacing: Sequence[float] | None, max_voxels: int) -> _Stored:
    header = _nifti_header(path)
    kind = int(header["datatype"])
    if kind not in _NUMBERS:
        found = _REFUSED_KINDS.get(kind, f"datatype code {kind}; convert it to float32 or an integer type")
        raise ScanError(f"{path}: voxels must be plain integers or floats, found {found}")
    shape, index, notes = _nifti_shape(path, header, volume)
    if prod(shape) > max_voxels:
        raise _too_large(path, shape, max_voxels)

    dtype = header.get_data_dtype()
    zipped = _suffix_of(path) == ".nii.gz"
    offset, held = float(header["vox_offset"]), path.stat().st_size
    needed = offset + dtype.itemsize * prod(int(size) for size in header["dim"][1 : header["dim"][0] + 1])
    smallest = int(header["sizeof_hdr"]) + 4  # four bytes say whether extensions follow
    possible = held * (_DEFLATE_LIMIT if zipped else 1)
    if not (smallest <= offset and needed <= possible):  # so written, a NaN offset is refused too
        raise ScanError(
            f"{path}: the header asks for {needed:.0f} bytes with voxels from byte {offset:.0f} (at least "
            f"{smallest}), but {'a gzip file of' if zipped else 'the file has'} {held} "
            f"bytes{' cannot hold them' * zipped}; it was cut short or its header is wrong: copy or "
            "convert it again"
        )
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):  # NIfTI: 0 means unset; nibabel treats NaN so too
        slope, inter = 1.0, 0.0
    if not np.isfinite(inter):
        raise ScanError(
            f"{path}: scl_inter must be finite where scl_slope is set, found {inter}; repair the header"
        )
    i, j, k = shape
    affine, space_code, decisions = affine_of_header(path, header, (i, j, k), spacing)

    start = int(offset) + index * prod(shape) * dtype.itemsize
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            raw = array_from_file(tuple(shape), dtype, file, start, mmap=False)
            if zipped:
                file.read(1 << 20)  # only at the end of the stream does gzip compare its checksum
    except EOFError as error:
        raise ScanError(
            f"{path}: the header asks for {needed:.0f} bytes, but the file was cut short after "
            f"{_readable_bytes(path)}; copy it again"
        ) from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    return _Stored(raw, affine, (*notes, *decisions), True, space_code, slope, inter)


def _readable_bytes(path: Path) -> int:
    count = 0
    with gzip.open(path) as file:
        try:
            while chunk := file.read(1 << 16):
                count += len(chunk)
        except _DAMAGE:
            pass
    return count


def _scaled(stored: _Stored) -> np.ndarray:
    """float32 voxels; slice by slice, so that the float64 in between stays small."""
    values, slope, inter = stored.values, stored.slope, stored.inter
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32 is infinite, and counted as such
        if (slope, inter) == (1.0, 0.0):
            return values.astype(np.float32)
        voxels = np.empty(values.shape, np.float32, order="F")
        for k in range(values.shape[2]):
            voxels[:, :, k] = values[:, :, k].astype(np.float64) * slope + inter
    return voxels


def _finite(path: Path, voxels: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    broken = ~np.isfinite(voxels)
    count = int(broken.sum())
    if count == 0:
        return voxels, ()
    if count == voxels.size:
        raise ScanError(
            f"{path}: a scan must hold finite values, found only NaN or infinity; convert it again"
        )
    smallest = voxels[~broken].min()
    voxels[broken] = smallest
    return voxels, (f"{count} NaN or infinite voxels replaced by the smallest finite value, {smallest:g}",)


def _plain_pixels(
    path: Path, pixels: np.ndarray, turn: int, notes: list[str], has_alpha: bool
) -> tuple[np.ndarray, list[str]]:
    """(H, W) or (H, W, 3): alpha dropped, the camera's rotation applied."""
    if has_alpha:
        pixels = pixels[..., :-1]
        notes.append("alpha channel dropped")
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ScanError(
            f"{path}: an image must be grey or RGB, found shape {pixels.shape}; convert it to RGB"
        )
    if turn in _TURNS:
        pixels = _TURNS[turn](pixels)
        notes.append(f"EXIF orientation {turn} applied")
    return np.ascontiguousarray(pixels), notes


def _read_picture(path: Path, max_voxels: int, as_labels: bool) -> tuple[np.ndarray, list[str]]:
    notes: list[str] = []
    try:
        with path.open("rb") as file, _open_picture(file) as image:
            if image.width * image.height > max_voxels:
                raise _too_large(path, image.size, max_voxels)
            if image.format == "PNG" and getattr(image, "n_frames", 1) > 1:
                raise ScanError(
                    f"{path}: an image must be one frame, found an animation; save one frame of it"
                )
            file.seek(24)
            depth, colour = file.read(2) if image.format == "PNG" else (8, 2)
            file.seek(0)
            turn = int(image.getexif().get(274, 1))
            if depth == 16 and colour != 0:  # Pillow keeps 16 bits of grey only
                if as_labels:
                    raise ScanError(
                        f"{path}: a 16-bit mask must be grey, found colour or alpha; save class indices"
                    )
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
    except ScanError:
        raise
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if colour == 0 and depth in (2, 4):  # Pillow stretches these to 0..255; a label must stay as stored
        pixels = pixels // (85 if depth == 2 else 17)
    return _plain_pixels(path, pixels, turn, notes, has_alpha)


def _open_picture(file) -> Image.Image:
    """Pillow's picture, header only, without Pillow's own limit: `max_voxels` stands in for it.

    The limit is a global of Pillow's module, so it is lifted under a lock and put back.
    """
    with _PILLOW_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=["PNG", "JPEG"])
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _read_tiff(path: Path, max_voxels: int, as_labels: bool) -> tuple[np.ndarray, list[str]]:
    notes: list[str] = []
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            axes, photometric = page.axes, getattr(page.photometric, "name", page.photometric)
            if len(tiff.pages) > 1 or prod(tiff.series[0].shape) > prod(page.shape) or set(axes) - set("YXS"):
                raise ScanError(
                    f"{path}: a TIFF must hold one 2-D page, found {len(tiff.pages)} pages, series "
                    f"{tiff.series[0].shape}; save one page of it, or a volume as NIfTI"
                )
            if page.imagewidth * page.imagelength > max_voxels or prod(page.shape) > 4 * max_voxels:
                raise _too_large(path, page.shape, max_voxels)
            ends = [start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
            if max(ends) > path.stat().st_size:  # tifffile would fill what is missing with zeros
                raise ScanError(
                    f"{path}: the pixels end at byte {max(ends)}, but the file was cut short after "
                    f"{path.stat().st_size}; copy it again"
                )
            if photometric not in ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE", "YCBCR"):
                raise ScanError(
                    f"{path}: a TIFF must be grey, RGB or palette, found {photometric}; convert it to RGB"
                )
            pixels = page.asarray()
            turn = int(page.tags.valueof(274, 1))
            has_alpha = bool(page.extrasamples) or pixels.shape[axes.find("S")] == 4
            if photometric == "PALETTE" and page.colormap is not None and not as_labels:
                pixels = (page.colormap.T[pixels] >> 8).astype(np.uint8)
    except ScanError:
        raise
    except _DAMAGE as error:
        if "imagecodecs" in str(error):
            raise ScanError(
                f"{path}: this TIFF's compression needs one more package; pip install imagecodecs, or save "
                "the image uncompressed"
            ) from error
        raise _damaged(path, error) from error
    if pixels.dtype.kind not in "biuf":
        raise ScanError(
            f"{path}: pixels must be integers or floats, found {pixels.dtype}; save the magnitude"
        )
    if "S" in axes:
        pixels = np.moveaxis(pixels, axes.index("S"), -1)
    if photometric == "MINISWHITE" and not as_labels and pixels.dtype.kind in "bu":
        pixels = ~pixels
        notes.append("0 is white in this TIFF: grey values inverted")
    return _plain_pixels(path, pixels, turn, notes, has_alpha and "S" in axes)


def _label_dtype(path: Path, labels: np.ndarray) -> type:
    low, high = labels.min(), labels.max()
    for dtype in (np.uint8, np.uint16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    raise ScanError(f"{path}: labels must fit into 32 bits, found {low} to {high}; renumber them")


def _checked_target(path: Path, array: np.ndarray, like: Scan) -> str:
    suffix = _suffix_of(path)
    accepted = (*NIFTI_SUFFIXES, ".png", *TIFF_SUFFIXES) if like.is_flat else NIFTI_SUFFIXES
    if suffix not in accepted:
        kind = "a 2-D image" if like.is_flat else "a volume"
        raise ScanError(
            f"{path}: for {kind} the suffix must be one of {', '.join(accepted)}, found '{suffix}'"
        )
    if array.shape != like.shape or not array.size:
        raise ScanError(f"{path}: what is written must have the scan's shape {like.shape}, got {array.shape}")
    return suffix


def _write(path: Path, array: np.ndarray, like: Scan, read: Callable[..., Scan]) -> Path:
    def check(temporary: Path) -> None:
        try:
            back = read(temporary, max_voxels=array.size)
        except ScanError as error:
            raise ScanError(
                f"{path}: what was written cannot be read ({_line(error)}); nothing was kept"
            ) from error
        # NIfTI holds the affine as float32: a micrometre at a metre
        same_place = not is_nifti or np.allclose(back.affine, like.affine, rtol=1e-5, atol=1e-4)
        if not np.array_equal(back.voxels, array) or not same_place:
            raise ScanError(
                f"{path}: what was written does not read back the same; nothing was kept, check the disk"
            )

    is_nifti = _suffix_of(path) in NIFTI_SUFFIXES
    try:
        with replacing(path, check) as temporary:
            if is_nifti:
                _write_nifti(temporary, array, like)
            elif _suffix_of(path) == ".png":
                Image.fromarray(array[0]).save(temporary)
            else:
                tifffile.imwrite(
                    temporary, array[0], photometric="minisblack", compression="zlib", metadata=None
                )
    except OSError as error:
        raise ScanError(
            f"{path}: cannot be written ({_line(error)}); free space or choose another folder. What was "
            "there is untouched"
        ) from error
    return path


def _write_nifti(path: Path, array: np.ndarray, like: Scan) -> None:
    kind = nibabel.Nifti1Image if max(array.shape) <= np.iinfo(np.int16).max else nibabel.Nifti2Image
    image = kind(array, like.affine)
    image.set_sform(like.affine, like.space_code)
    image.set_qform(like.affine, like.space_code)
    if not np.allclose(image.get_qform(), like.affine, rtol=1e-4, atol=1e-3):
        image.set_qform(None, 0)  # a qform holds no shear: better none than one that contradicts the sform
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
