"""NRRD volumes: `.nrrd`, `.nhdr` with a file of voxels beside it, and 3D Slicer's segmentations, `.seg.nrrd`.

The header is text (teem.sourceforge.net/nrrd/format.html), read here and compared with the file before anything is
allocated. SimpleITK opens the same files and is what tests compare with; of several volumes it reads all.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from delineate.errors import ScanError
from delineate.scans.geometry import RAS_FROM_LPS, affine_of_axes, assumed_affine, unused_spacing_notes
from delineate.scans.text_headers import (
    MOST_AXES,
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

SEGMENTATION_SUFFIX = ".seg.nrrd"
NRRD_SUFFIXES = (SEGMENTATION_SUFFIX, ".nrrd", ".nhdr")
_TYPES = {  # to NumPy's, without a byte order
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int"), "i8"),
    **dict.fromkeys(("int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_TO_RAS = {
    **dict.fromkeys(("right-anterior-superior", "ras"), np.eye(3)),
    **dict.fromkeys(("left-anterior-superior", "las"), np.diag([-1.0, 1.0, 1.0])),
    **dict.fromkeys(("left-posterior-superior", "lps"), RAS_FROM_LPS),
}
_SPACES = {  # how many coordinates a space has, and what turns the first three into RAS
    **{name: (3, turn) for name, turn in _TO_RAS.items()},
    **{f"{name}{'-time' if '-' in name else 't'}": (4, turn) for name, turn in _TO_RAS.items()},
}
_VOLUMES = {"", "???", "none", "time", "list", "domain", "space", "stub"}  # kinds of an axis along which volumes follow
_ALSO = {"centers": "centerings", "datafile": "data file", "lineskip": "line skip", "byteskip": "byte skip"}


@dataclass(frozen=True)
class _Header:
    """Fields, their names in lower case; what 3D Slicer and others add (`key:=value`); the byte at which it ends."""

    fields: Mapping[str, str]
    added: Mapping[str, str]
    end: int


def read_nrrd(path: Path, volume: int | None, assume_spacing_mm: Sequence[float] | None, max_voxels: int) -> Stored:
    """One volume of an NRRD file, as `delineate.scans.reading.read_scan` documents it.

    Raises:
        ScanError: If the header asks for what cannot be, or must not be, read.
    """
    header = _header(path)
    fields = header.fields
    dimension = whole_numbers(path, "dimension", needed(path, fields, "dimension"), 1)[0]
    if not 1 <= dimension <= MOST_AXES:
        raise ScanError(f"{path}: 'dimension' must be from 1 to {MOST_AXES}, found {dimension}; convert the file again")
    sizes = whole_numbers(path, "sizes", needed(path, fields, "sizes"), dimension)
    if min(sizes) < 1:
        raise ScanError(
            f"{path}: every dimension must be at least 1, 'sizes' is {sizes}; convert the scan again from its source"
        )
    vectors = _vectors(path, fields, dimension)
    spatial, other = _axes(path, fields, sizes, vectors)
    _refuse_layers(path, header, [sizes[axis] for axis in other])
    notes = [] if len(spatial) == 3 else [f"a {len(spatial)}-D NRRD read as one slice"]
    several = [axis for axis in other if sizes[axis] > 1]
    if other and not several:
        notes.append(f"{dimension}-D with one volume: read as 3-D")
    if len(several) > 1:
        raise ScanError(f"{path}: a scan must be 3-D or 4-D, found sizes {sizes}; save one volume of it")
    index, more = choose_volume(path, sizes, sizes[several[0]] if several else 1, volume)
    affine, decisions = _affine(path, fields, vectors, spatial, assume_spacing_mm)
    kept = [axis for axis in range(dimension) if axis in spatial or axis in several]
    block = _block(path, header, tuple(sizes[axis] for axis in kept), kept.index(several[0]) if several else None)
    values = block.volume(index, max_voxels)
    values = values.reshape((*values.shape, 1, 1)[:3], order="F")
    return Stored(values, affine, (*notes, *more, *decisions))


def data_of(path: Path) -> Path:
    """The file that holds the voxels: the header's own, or one beside it. Raises `ScanError`."""
    return _data_of(path, _header(path).fields)


def _data_of(path: Path, fields: Mapping[str, str]) -> Path:
    name = field(path, fields, "data file")
    if name is None:
        if path.suffix.lower() == ".nhdr":
            raise ScanError(f"{path}: a .nhdr file must name its 'data file', found none; save the scan as one .nrrd")
        return path
    if name.upper().startswith("LIST") or "%" in name:
        raise ScanError(f"{path}: its voxels must be in one file, found a list of files; save it as one .nrrd")
    return data_beside(path, name)


def _header(path: Path) -> _Header:
    with path.open("rb") as file:
        if not re.match(rb"NRRD000[1-6]\r?\n", file.read(10)):
            raise ScanError(
                f"{path}: an NRRD file must begin with NRRD0001 to NRRD0006, this one does not; copy or convert it "
                "again"
            )
        file.seek(0)
        fields: dict[str, str] = {}
        added: dict[str, str] = {}
        lines = lines_of(path, file)
        next(lines)
        for line in lines:
            if not line:
                break
            if line.startswith("#"):
                continue
            name, colon, value = line.partition(":")
            if not colon:
                raise ScanError(
                    f"{path}: a line of an NRRD header must be 'field: value', found '{excerpt(line)}'; convert the "
                    "file again"
                )
            if value.startswith("="):
                added[name.strip()] = value[1:].strip()
                continue
            name = _ALSO.get(name.strip().lower(), name.strip().lower())
            if name in fields:
                raise ScanError(
                    f"{path}: its header must say everything once, '{excerpt(name)}' is there twice; convert it again"
                )
            fields[name] = value.strip()
        return _Header(fields, added, file.tell())


def _axes(
    path: Path, fields: Mapping[str, str], sizes: list[int], vectors: list[np.ndarray | None] | None
) -> tuple[list[int], list[int]]:
    """The axes in space, three at most, and those along which volumes follow."""
    kinds = [kind.strip('"').lower() for kind in fields.get("kinds", "").split()] or [""] * len(sizes)
    if len(kinds) != len(sizes):
        raise ScanError(f"{path}: 'kinds' must name {len(sizes)} axes, found {len(kinds)}; convert the file again")
    if vectors is not None:
        spatial = [axis for axis, vector in enumerate(vectors) if vector is not None]
    else:
        spatial = [axis for axis, kind in enumerate(kinds) if kind in ("", "???", "domain", "space")][:3]
    other = [axis for axis in range(len(sizes)) if axis not in spatial]
    for axis in other:
        if sizes[axis] > 1 and kinds[axis] not in _VOLUMES:
            raise ScanError(
                f"{path}: a voxel must be one number, found {sizes[axis]} ({excerpt(kinds[axis])}); save one channel "
                "or the magnitude, or 2-D colour images as PNG"
            )
    if not spatial or len(spatial) > 3:
        raise ScanError(f"{path}: a scan must have three axes in space, found {len(spatial)}; convert the file again")
    return spatial, other


def _vectors(path: Path, fields: Mapping[str, str], dimension: int) -> list[np.ndarray | None] | None:
    """The step along each axis in space, of the first three coordinates; None for an axis that is not in space."""
    text = field(path, fields, "space directions")
    if text is None:
        return None
    words = re.findall(r"none|\([^()]*\)", text.lower())
    if len(words) != dimension:
        raise ScanError(
            f"{path}: 'space directions' must be {dimension} vectors, found '{excerpt(text)}'; convert the file again"
        )
    vectors = [None if word == "none" else _vector(path, "space directions", word, fields) for word in words]
    if (_SPACES.get(_space(fields)) or (3,))[0] == 4:  # one axis may run along time alone
        vectors = [vector if vector is not None and vector.any() else None for vector in vectors]
    return vectors


def _vector(path: Path, name: str, text: str, fields: Mapping[str, str]) -> np.ndarray:
    """The first three coordinates of a vector."""
    known, stated = _SPACES.get(_space(fields)), fields.get("space dimension")
    count = known[0] if known else 3 if stated is None else whole_numbers(path, "space dimension", stated, 1)[0]
    values = real_numbers(path, name, re.split(r"[,\s]+", text.strip(" ()")), count)
    return np.array([*values, 0.0, 0.0][:3])


def _space(fields: Mapping[str, str]) -> str:
    return fields.get("space", "").strip('"').lower()


def _affine(
    path: Path,
    fields: Mapping[str, str],
    vectors: list[np.ndarray | None] | None,
    spatial: list[int],
    assume_spacing_mm: Sequence[float] | None,
) -> tuple[np.ndarray, list[str]]:
    space = _space(fields)
    if vectors is None or space not in _SPACES:
        found = "no 'space directions'" if vectors is None else f"'space: {excerpt(space)}'" if space else "no 'space'"
        return assumed_affine(path, assume_spacing_mm, found)
    units = set(re.findall(r'"([^"]*)"', fields.get("space units", ""))[:3]) or {"mm"}
    if len(units) > 1:
        raise ScanError(f"{path}: 'space units' must be one unit, found {len(units)}; convert the file again")
    unit = units.pop()
    factor = millimetres(path, unit)
    notes = [] if factor == 1 else [f"the header counts in {unit}: brought to mm, times {factor:g}"]
    found = [vector for axis in spatial if (vector := vectors[axis]) is not None]
    steps = np.column_stack([*found, *_missing(found)]) * factor
    text = field(path, fields, "space origin")
    origin = np.zeros(3) if text is None else _vector(path, "space origin", text, fields)
    if text is None:
        notes.append("no 'space origin' in the header: taken as 0, 0, 0")
    affine, more = affine_of_axes(path, steps, origin * factor, _SPACES[space][1])
    return affine, [*notes, *more, *unused_spacing_notes(assume_spacing_mm)]


def _missing(found: list[np.ndarray]) -> list[np.ndarray]:
    """Axes of 1 mm that make three of one or two, at right angles to these."""
    if len(found) == 3:
        return []
    _, _, directions = np.linalg.svd(np.array(found))
    return list(directions[len(found) :])


def _block(path: Path, header: _Header, sizes: tuple[int, ...], axis: int | None) -> Block:
    fields = header.fields
    kind = needed(path, fields, "type").lower()
    if kind not in _TYPES:
        raise ScanError(
            f"{path}: voxels must be plain integers or floats, found '{excerpt(kind)}'; convert them to float32"
        )
    encoding = needed(path, fields, "encoding").lower()
    if encoding not in ("raw", "gzip", "gz"):
        raise ScanError(
            f"{path}: voxels must be stored as raw or gzip, found '{excerpt(encoding)}'; save it again, for example in "
            "3D Slicer"
        )
    endian = fields.get("endian", "").lower()
    if endian not in ("little", "big") and (endian or np.dtype(_TYPES[kind]).itemsize > 1):
        raise ScanError(f"{path}: 'endian' must be little or big, found '{excerpt(endian)}'; convert the file again")
    if whole_numbers(path, "line skip", fields.get("line skip", "0"), 1)[0]:
        raise ScanError(f"{path}: 'line skip' must be 0, lines before voxels are not read; save the scan as one .nrrd")
    dtype = np.dtype((">" if endian == "big" else "<") + _TYPES[kind])
    data, deflated = _data_of(path, fields), encoding != "raw"
    start = header.end if data == path else 0
    skip = whole_numbers(path, "byte skip", fields.get("byte skip", "0"), 1)[0]
    if skip == -1 and not deflated:  # the last bytes of the file
        skip = max(0, data.stat().st_size - start - int(np.prod(sizes, dtype=object)) * dtype.itemsize)
    if skip < 0:
        raise ScanError(f"{path}: 'byte skip' must be 0 or more, found {skip}; convert the file again")
    return Block(path, data, dtype, sizes, axis, deflated, start if deflated else start + skip, skip if deflated else 0)


def _refuse_layers(path: Path, header: _Header, counts: list[int]) -> None:
    """A 3D Slicer segmentation is one label map, unless its segments overlap: then it has layers."""
    if any(re.fullmatch(r"Segment\d+_ID", name) for name in header.added) and max(counts, default=1) > 1:
        raise ScanError(
            f"{path}: labels must be one map, found {max(counts)} layers of segments that overlap; in 3D Slicer export "
            "them as a labelmap (Segmentations, Export to files, with overlaps taken out)"
        )
