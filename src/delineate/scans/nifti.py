"""NIfTI volumes in and out: every header is checked against the file's size before any voxel is allocated.

A pair, `NAME.hdr` and `NAME.img`, is named by its header.
"""

import gzip
import zlib
from collections.abc import Mapping, Sequence
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any, cast

import nibabel
import numpy as np
from isal import igzip
from isal.igzip_lib import IsalError
from nibabel.nifti1 import Nifti1Extension, xform_codes
from nibabel.volumeutils import array_from_file

from delineate.errors import ScanError
from delineate.scans.geometry import affine_of_header, check_size, spacing_of, unit_of
from delineate.scans.intensity import is_narrow
from delineate.scans.volumes import DEFLATE_LIMIT, LARGEST_OFFSET, Stored, choose_volume
from delineate.storage.memory import need

ALIGNED = 2  # the code of a form that is none of the named spaces
NIFTI_SUFFIXES = (".nii.gz", ".nii")
PAIR_SUFFIX = ".hdr"  # of a header whose voxels lie beside it in NAME.img
DAMAGE: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, zlib.error, cast("type[Exception]", IsalError))
"""What reading a damaged file may raise. Not MemoryError: sizes are checked before."""

_NUMBERS = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}  # NIfTI datatype codes of plain integers and floats
_REFUSED_KINDS = {
    32: "complex numbers; save the magnitude",
    1792: "complex numbers; save the magnitude",
    2048: "complex numbers; save the magnitude",
    128: "RGB colours; save one channel, or 2-D colour images as PNG",
    2304: "RGBA colours; save one channel, or 2-D colour images as PNG",
    1536: "128-bit floats; convert them to float32",
}


def read_nifti(path: Path, volume: int | None, assume_spacing_mm: Sequence[float] | None, max_voxels: int) -> Stored:
    """One volume of a NIfTI file, as `delineate.scans.reading.read_scan` documents it.

    Raises:
        ScanError: If the header asks for what cannot be, or must not be, read.
    """
    header = _header(path)
    kind = int(header["datatype"])
    if kind not in _NUMBERS:
        found = _REFUSED_KINDS.get(kind, f"datatype code {kind}; convert it to float32 or an integer type")
        raise ScanError(f"{path}: voxels must be plain integers or floats, found {found}")
    shape, index, notes = _shape(path, header, volume)
    check_size(path, shape, max_voxels)
    needed = _checked_bytes(path, header)
    slope, inter = _scaling(path, header)
    stored = header.get_data_dtype()
    as_stored = is_narrow(stored) and (slope, inter) == (1.0, 0.0)
    need(prod(shape) * (stored.itemsize + (0 if as_stored else 4)), f"{path}: reading it")  # else as float32, too
    affine, space_code, decisions = affine_of_header(path, header, shape, assume_spacing_mm)
    values = _voxels(path, header, shape, index, needed)
    return Stored(values, affine, (*notes, *decisions), True, space_code, slope, inter, _forms_of(header, affine))


def write_nifti(
    path: Path,
    array: np.ndarray,
    affine: np.ndarray,
    space_code: int,
    forms: Mapping[str, Any] | None = None,
    extensions: Sequence[tuple[int, bytes]] = (),
) -> None:
    """Write `array` in mm, with the forms of the scan that it belongs to, so that whoever opens that opens this.

    Without forms, or with those of another affine: the same sform and qform; no qform where the grid is sheared.
    Extensions of the header are given by code and content.
    """
    array = np.asfortranarray(array)  # as it is stored: nibabel is slow with others
    kind = nibabel.Nifti1Image if max(array.shape) <= np.iinfo(np.int16).max else nibabel.Nifti2Image
    image = kind(array, affine)
    code = space_code if space_code in xform_codes.code else ALIGNED  # nibabel writes those that NIfTI names
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    if not np.allclose(image.get_qform(), affine, rtol=1e-4, atol=1e-3):
        image.set_qform(None, 0)  # a qform holds no shear: better none than one that contradicts the sform
    image.header.set_xyzt_units("mm")
    if forms is not None:
        own = image.header.copy()
        for name, value in forms.items():
            own[name] = value if not name.endswith("_code") or int(value) in xform_codes.code else ALIGNED
        if np.allclose(own.get_best_affine(), affine, rtol=1e-5, atol=1e-4):  # type: ignore[arg-type]
            image = kind(array, None, own)  # with an affine nibabel would write its own forms
    image.header.extensions.extend(Nifti1Extension(code, content) for code, content in extensions)
    with path.open("wb") as file:
        if _is_zipped(path):  # by Intel's library: a tenth of zlib's time on a mask, at half of the size
            with igzip.IGzipFile("", "wb", 1, file, mtime=0) as zipped:
                image.to_stream(zipped)
        else:
            image.to_stream(file)


def same_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> bool:
    """Whether a file that `write_nifti` wrote holds `array`, to the bit, and `affine`; read piece by piece, to its end.

    Raises:
        ScanError: If it cannot be read.
    """
    header = _header(path)
    needed = _checked_bytes(path, header)
    i, j, k = array.shape
    here, _, _ = affine_of_header(path, header, (i, j, k))
    told = [int(size) for size in header["dim"][1 : header["dim"][0] + 1]]
    # NIfTI holds the affine as float32: a micrometre at a metre
    same = told == list(array.shape) and header.get_data_dtype() == array.dtype and _scaling(path, header) == (1, 0)
    same = same and (array.dtype.kind != "f" or bool(np.isfinite(array).all()))  # others are mended on reading
    if not (same and np.allclose(here, affine, rtol=1e-5, atol=1e-4)):
        return False
    expected = np.asfortranarray(array).reshape(-1, order="F").view(np.uint8)
    offset = int(header["vox_offset"])
    piece, at = bytearray(2**20), 0
    with igzip.IGzipFile(path) if _is_zipped(path) else path.open("rb") as file:
        file.read(offset)
        while count := file.readinto(piece):
            if not np.array_equal(np.frombuffer(piece, np.uint8, count), expected[at : at + count]):
                return False
            at += count
    return at == len(expected) and offset + at == needed


def _forms_of(header: nibabel.Nifti1Header, affine: np.ndarray) -> dict[str, Any] | None:
    """The fields of a header that say where its voxels lie, in mm; None where no form is set."""
    if max(int(header["sform_code"]), int(header["qform_code"])) <= 0:
        return None
    factor = unit_of(header)[1]
    lengths = ("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")
    kept = ("sform_code", "qform_code", "quatern_b", "quatern_c", "quatern_d")
    pixdim = np.array(header["pixdim"], np.float64)
    sizes = pixdim[1:4] * factor
    pixdim[1:4] = np.where((sizes > 0) & np.isfinite(sizes), sizes, spacing_of(affine))
    forms: dict[str, Any] = {name: np.array(header[name]) for name in kept}
    forms |= {name: np.asarray(header[name], np.float64) * factor for name in lengths}
    return forms | {"pixdim": pixdim}


def _is_zipped(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


def _open(path: Path) -> gzip.GzipFile | BufferedReader:
    return gzip.open(path) if _is_zipped(path) else path.open("rb")


def _is_header(path: Path) -> bool:
    return path.suffix.lower() == PAIR_SUFFIX


def header_of(path: Path) -> Path:
    """The header beside `NAME.img`; any other path, or an image without a header, as it is."""
    if path.suffix.lower() != ".img":
        return path
    return next((header for end in (".hdr", ".HDR") if (header := path.with_suffix(end)).is_file()), path)


def data_of(path: Path) -> Path:
    """The file that holds the voxels: of `NAME.hdr` the `NAME.img` beside it, else the file itself.

    Raises:
        ScanError: it is not there.
    """
    if not _is_header(path):
        return path
    for end in (".img", ".IMG"):
        if (image := path.with_suffix(end)).is_file():
            return image
    raise ScanError(f"{path}: its voxels must lie beside it in {path.stem}.img, and do not; copy both files")


def _header(path: Path) -> nibabel.Nifti1Header:
    try:
        with _open(path) as file:
            block = file.read(540)
    except gzip.BadGzipFile as error:
        raise ScanError(
            f"{path}: a name ending in .gz must hold gzip data, found none; rename it to .nii if it is plain NIfTI"
        ) from error
    if block[:2] == b"\x1f\x8b":
        raise ScanError(f"{path}: a .nii file must hold plain NIfTI, found gzip data; rename it to end in .nii.gz")
    one, two = (b"ni1\0", b"ni2\0") if _is_header(path) else (b"n+1\0", b"n+2\0")
    if block[344:348] == one:
        return nibabel.Nifti1Header(block[:348], check=False)  # nibabel's check would mend in silence
    if block[4:8] == two and len(block) == 540:
        return nibabel.Nifti2Header(block, check=False)
    if _is_header(path) and 348 in (int.from_bytes(block[:4], order) for order in ("little", "big")):
        raise ScanError(
            f"{path}: a .hdr file must hold the header of a NIfTI pair, found one of Analyze 7.5, which does not say "
            "left from right, or of a single file; convert the scan to .nii.gz"
        )
    raise ScanError(
        f"{path}: a NIfTI file must begin with a NIfTI header, found none in its first {len(block)} bytes; "
        "copy or convert it again"
    )


def _shape(path: Path, header: nibabel.Nifti1Header, volume: int | None) -> tuple[tuple[int, int, int], int, list[str]]:
    """The three spatial sizes, the index of the volume to read, and notes."""
    dim = [int(size) for size in header["dim"]]
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise ScanError(
            f"{path}: every dimension must be at least 1, the header's dim is {dim}; convert the scan "
            "again from its source"
        )
    sizes = dim[1 : dim[0] + 1]
    later = sizes[3:]
    i, j, k = [*sizes, 1, 1][:3]
    notes = []
    if len(sizes) < 3:
        notes.append(f"a {len(sizes)}-D NIfTI read as one slice")
    elif later and prod(later) == 1:
        notes.append(f"{len(sizes)}-D with one volume: read as 3-D")
    count = later[0] if later else 1
    if prod(later) > count:
        raise ScanError(f"{path}: a scan must be 3-D or 4-D, found sizes {sizes}; save one volume of it")
    index, more = choose_volume(path, sizes, count, volume)
    notes += more
    return (i, j, k), index, notes


def _checked_bytes(path: Path, header: nibabel.Nifti1Header) -> int:
    """The bytes that the header asks for, or a `ScanError` if the file cannot hold them."""
    offset, held = float(header["vox_offset"]), data_of(path).stat().st_size
    volumes = prod(int(size) for size in header["dim"][1 : header["dim"][0] + 1])
    needed = offset + header.get_data_dtype().itemsize * volumes
    smallest = 0 if _is_header(path) else int(header["sizeof_hdr"]) + 4  # four bytes say whether extensions follow
    possible = held * (DEFLATE_LIMIT if _is_zipped(path) else 1)
    if not (smallest <= offset and needed <= possible):  # so written, a NaN offset is refused too
        holder = f"a gzip file of {held} bytes cannot hold them" if _is_zipped(path) else f"the file has {held} bytes"
        raise ScanError(
            f"{path}: the header asks for {needed:.0f} bytes with voxels from byte {offset:.0f} (at least "
            f"{smallest}), but {holder}; it was cut short or its header is wrong: copy or convert it again"
        )
    if offset > LARGEST_OFFSET:  # all of it would be unfolded on the way
        raise ScanError(
            f"{path}: voxels must begin before byte {LARGEST_OFFSET}, the header says {offset:.0f}; convert it again"
        )
    return int(needed)


def _scaling(path: Path, header: nibabel.Nifti1Header) -> tuple[float, float]:
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):  # NIfTI: 0 means unset; nibabel treats NaN so too
        return 1.0, 0.0
    if not np.isfinite(inter):
        raise ScanError(f"{path}: scl_inter must be finite where scl_slope is set, found {inter}; repair the header")
    return slope, inter


def _voxels(
    path: Path, header: nibabel.Nifti1Header, shape: tuple[int, int, int], index: int, needed: int
) -> np.ndarray:
    dtype = header.get_data_dtype()
    start = int(header["vox_offset"]) + index * prod(shape) * dtype.itemsize
    try:
        with _open(data_of(path)) as file:
            values = array_from_file(shape, dtype, file, start, mmap=False)
            if _is_zipped(path):
                file.read(1 << 20)  # only at the end of the stream does gzip compare its checksum
    except EOFError as error:
        raise ScanError(
            f"{path}: the header asks for {needed} bytes, but the file was cut short after "
            f"{_readable_bytes(path)}; copy it again"
        ) from error
    return values


def _readable_bytes(path: Path) -> int:
    count = 0
    with _open(data_of(path)) as file:
        try:
            while chunk := file.read(1 << 16):
                count += len(chunk)
        except DAMAGE:
            pass
    return count
