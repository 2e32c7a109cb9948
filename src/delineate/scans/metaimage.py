"""MetaImage volumes: `.mha`, and `.mhd` whose voxels lie in a file beside it.

The header is text, and the axes it describes are those of ITK, L, P, S. SimpleITK opens the same files; here nothing
is allocated before the header was compared with the file, one volume of several is read alone, and what does not unfold
is refused in one line, where MetaIO writes lines of its own and hands out memory that nobody filled.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np

from delineate.errors import ScanError
from delineate.scans.geometry import RAS_FROM_LPS, affine_of_axes, assumed_affine, unused_spacing_notes
from delineate.scans.text_headers import (
    data_beside,
    excerpt,
    field,
    lines_of,
    millimetres,
    needed,
    real_numbers,
    whole_numbers,
)
from delineate.scans.volumes import Block, Stored, choose_volume
from delineate.storage.hidden import hidden_in

META_SUFFIXES = (".mha", ".mhd")
LOCAL = "LOCAL"  # what names a file in which the voxels follow the header
MOST_DIMENSIONS = 4
MOST_NAME = 200  # characters of a field's name
_LAST = "elementdatafile"
_USED = {
    *("ndims", "dimsize", "elementtype", "elementspacing", "elementnumberofchannels", "distanceunits", "headersize"),
    *("binarydata", "binarydatabyteordermsb", "elementbyteordermsb", "compresseddata", _LAST),
    *("transformmatrix", "rotation", "orientation", "offset", "position", "origin"),
}
_TYPES = {  # of MetaIO's names; a long has 32 bits there
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


def read_metaimage(
    path: Path, volume: int | None, assume_spacing_mm: Sequence[float] | None, max_voxels: int
) -> Stored:
    """One volume of a MetaImage, as `delineate.scans.reading.read_scan` documents it.

    Raises:
        ScanError: If the header asks for what cannot be, or must not be, read.
    """
    fields, end = _header(path)
    dimensions = whole_numbers(path, "NDims", needed(path, fields, "ndims"), 1)[0]
    if not 1 <= dimensions <= MOST_DIMENSIONS:
        raise ScanError(f"{path}: a scan must be 3-D or 4-D, found NDims = {dimensions}; save one volume of it")
    sizes = whole_numbers(path, "DimSize", needed(path, fields, "dimsize"), dimensions)
    if min(sizes) < 1:
        raise ScanError(
            f"{path}: every dimension must be at least 1, DimSize is {sizes}; convert the scan again from its source"
        )
    notes = []
    if dimensions < 3:
        notes.append(f"a {dimensions}-D MetaImage read as one slice")
    elif sizes[3:] == [1]:
        notes.append("4-D with one volume: read as 3-D")
    full = [*sizes, 1, 1, 1][:4]
    index, more = choose_volume(path, sizes, full[3], volume)
    notes += more
    affine, decisions = _affine(path, fields, dimensions, assume_spacing_mm)
    values = _block(path, fields, end, tuple(full)).volume(index, max_voxels)
    return Stored(values, affine, (*notes, *decisions))


def data_of(path: Path) -> Path:
    """The file that holds the voxels: the header's own, or one beside it. Raises `ScanError`."""
    return _data_of(path, _header(path)[0])


def _data_of(path: Path, fields: dict[str, str]) -> Path:
    name = needed(path, fields, _LAST)
    if name.upper() == LOCAL:
        return path
    if name.upper().startswith("LIST") or "%" in name:
        raise ScanError(f"{path}: its voxels must be in one file, found a list of files; save it as one .mha")
    return data_beside(path, name)


def _header(path: Path) -> tuple[dict[str, str], int]:
    """The fields, their names in lower case, and the byte at which the header ends."""
    with path.open("rb") as file:
        return _fields(path, file), file.tell()


def _fields(path: Path, file: IO[bytes]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines_of(path, file):
        name, equals, value = line.partition("=")
        name = name.strip().lower()
        if not line.strip():
            continue
        if not equals or not name or hidden_in(name) or len(name) > MOST_NAME:
            break
        if name in fields and name in _USED:  # programs add fields of their own, as they like
            raise ScanError(
                f"{path}: its header must say everything once, '{excerpt(name)}' is there twice; convert it again"
            )
        fields[name] = value.strip()
        if name == _LAST:
            return fields
    raise ScanError(
        f"{path}: a MetaImage must begin with lines such as 'NDims = 3', to 'ElementDataFile = …'; found none; copy or "
        "convert it again"
    )


def _block(path: Path, fields: dict[str, str], end: int, sizes: tuple[int, ...]) -> Block:
    kind = needed(path, fields, "elementtype").upper()
    channels = whole_numbers(path, "ElementNumberOfChannels", fields.get("elementnumberofchannels", "1"), 1)[0]
    if channels != 1 or kind.endswith("_ARRAY"):
        raise ScanError(
            f"{path}: a voxel must be one number, found {channels} (colours, vectors or complex numbers); save one "
            "channel or the magnitude, or 2-D colour images as PNG"
        )
    if kind not in _TYPES:
        raise ScanError(
            f"{path}: voxels must be plain integers or floats, found '{excerpt(kind)}'; convert them to float32"
        )
    if not _is_true(fields.get("binarydata", "True")):
        raise ScanError(
            f"{path}: voxels must be stored as binary data, found text; save it again, for example with ITK"
        )
    order = field(path, fields, "binarydatabyteordermsb", "elementbyteordermsb")
    dtype = np.dtype((">" if order is not None and _is_true(order) else "<") + _TYPES[kind])
    data, deflated = _data_of(path, fields), _is_true(fields.get("compresseddata", "False"))
    start = end if data == path else whole_numbers(path, "HeaderSize", fields.get("headersize", "0"), 1)[0]
    if start == -1 and not deflated:  # the last bytes of the file
        start = max(0, data.stat().st_size - int(np.prod(sizes, dtype=object)) * dtype.itemsize)
    if start < 0:
        raise ScanError(f"{path}: 'HeaderSize' must be 0 or more, found {start}; convert the file again")
    return Block(path, data, dtype, sizes, 3, deflated, start)


def _affine(
    path: Path, fields: dict[str, str], dimensions: int, assume_spacing_mm: Sequence[float] | None
) -> tuple[np.ndarray, list[str]]:
    spacing = field(path, fields, "elementspacing")
    if spacing is None:
        return assumed_affine(path, assume_spacing_mm, "no ElementSpacing")
    factor = millimetres(path, fields.get("distanceunits", "mm"))
    sizes = np.array(real_numbers(path, "ElementSpacing", spacing.split(), dimensions)) * factor
    if sizes.min() <= 0:
        raise ScanError(f"{path}: 'ElementSpacing' must be positive, found '{excerpt(spacing)}'; repair the header")
    notes = [] if factor == 1 else [f"the header counts in {fields['distanceunits']}: brought to mm, times {factor:g}"]
    matrix = field(path, fields, "transformmatrix", "rotation", "orientation")
    directions = np.eye(dimensions)
    if matrix is None:
        notes.append("no TransformMatrix in the header: axes taken as L, P, S, as MetaImage has it")
    else:
        directions = np.reshape(
            real_numbers(path, "TransformMatrix", matrix.split(), dimensions**2), (dimensions, dimensions)
        )
        if np.abs(np.linalg.norm(directions, axis=1) - 1).max() > 0.01:
            raise ScanError(
                f"{path}: 'TransformMatrix' must hold directions of length 1, found '{excerpt(matrix)}'; repair the "
                "header, or convert the scan again from its source"
            )
    offset = field(path, fields, "offset", "position", "origin")
    origin = [0.0] * dimensions if offset is None else real_numbers(path, "Offset", offset.split(), dimensions)
    count = min(dimensions, 3)
    steps, where = np.eye(3), np.zeros(3)  # an axis that is not there is 1 mm along its own
    steps[:count, :count] = (directions * sizes[:, None]).T[:count, :count]  # a row of the file is an axis
    where[:count] = np.array(origin[:count]) * factor
    affine, more = affine_of_axes(path, steps, where, RAS_FROM_LPS)
    return affine, [*notes, *more, *unused_spacing_notes(assume_spacing_mm)]


def _is_true(text: str) -> bool:
    return text[:1] in ("T", "t", "1")
