"""Odd and broken NIfTI files: headers that lie, wrong bytes, arrays of every shape; and good ones kept otherwise."""

import gzip
import struct
from pathlib import Path
from random import Random
from typing import Any

import nibabel
import numpy as np

from fuzzing import checks, oracles
from fuzzing.trial import Trial
from fuzzing.world import SMALL, World

FIELDS = {  # of a NIfTI-1 header: offset, type, count
    "sizeof_hdr": (0, "i", 1),
    "dim": (40, "h", 8),
    "intent_code": (68, "h", 1),
    "datatype": (70, "h", 1),
    "bitpix": (72, "h", 1),
    "slice_start": (74, "h", 1),
    "pixdim": (76, "f", 8),
    "vox_offset": (108, "f", 1),
    "scl_slope": (112, "f", 1),
    "scl_inter": (116, "f", 1),
    "xyzt_units": (123, "B", 1),
    "cal_max": (124, "f", 1),
    "qform_code": (252, "h", 1),
    "sform_code": (254, "h", 1),
    "quatern": (256, "f", 3),
    "qoffset": (268, "f", 3),
    "srow": (280, "f", 12),
    "magic": (344, "B", 4),
}
SHORTS = (0, -1, 1, 2, 3, 4, 7, 8, 16, 64, 128, 255, 256, 512, 1792, 32767, -32768)
FLOATS = (0.0, -1.0, 1.0, 2.0, 10.0, -2.5, 1e-3, 1e-6, 1e3, 1e6, 1e30, -1e30, 1e-38, float("nan"), float("inf"), 352.0)
WEIGHTS = {"dim": 3, "pixdim": 4, "srow": 3, "qform_code": 2, "sform_code": 2, "quatern": 2, "datatype": 2}
OPTIONS = ("-p", "liver", *SMALL)


def trial(rng: Random, world: World, folder: Path) -> Trial:
    """A segmentation of a NIfTI that is not as it should be: refused, or answered by its true content."""
    data = bytearray((world["ct"] / "ct.nii").read_bytes())
    zipped = rng.random() < 0.5
    how = rng.random()
    if how < 0.55:
        what = "; ".join(_header(data, rng) for _ in range(rng.choice((1, 1, 2))))
    elif how < 0.75:
        made, what = _array(rng)
        data, zipped = bytearray(made), zipped
    else:
        what = ""
    raw = bytes(data)
    if what == "":
        raw, what, zipped = _bytes(raw, rng, zipped)
    elif zipped:
        raw = gzip.compress(raw, 1)
    scan = folder / ("scan.nii.gz" if zipped else "scan.nii")
    scan.write_bytes(raw)
    options = list(OPTIONS)
    if rng.random() < 0.15:
        options += ["--volume", str(rng.choice((0, 1, 2, 10**9)))]
    if rng.random() < 0.15:
        options += ["--modality", rng.choice(("CT", "MR"))]
    output = folder / "out"
    return Trial(
        ["segment", scan.name, *options, "-o", "out"],
        f"NIfTI: {what}",
        [
            checks.cases_are_whole(output),
            oracles.plausible(output),
            oracles.geometry_fits(scan, output),
            oracles.true_to_content(scan, output, options),
        ],
    )


def same_trial(rng: Random, world: World, folder: Path) -> Trial:
    """A segmentation of a good scan in another container, type or order of axes: the answer stays what it is."""
    image: Any = nibabel.load(world["ct"] / "ct.nii")
    voxels, affine = np.asarray(image.dataobj), image.affine
    name, what = "scan.nii.gz", []
    if rng.random() < 0.7:
        codes = rng.choice(("RAS", "LAS", "PIR", "ASL", "SPL", "IRP", "LPI", "SAR"))
        here, there = nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(codes)
        way: Any = nibabel.orientations.ornt_transform(here, there)
        turned: Any = nibabel.Nifti1Image(voxels, affine).as_reoriented(way)
        voxels, affine = np.asarray(turned.dataobj), turned.affine
        what.append(codes)
    kind = rng.choice((np.int16, np.uint16, np.int32, np.int64, np.float32, np.float64, np.uint8))
    what.append(np.dtype(kind).name)
    made = rng.choice((nibabel.Nifti1Image, nibabel.Nifti2Image))(voxels.astype(kind), affine, dtype=kind)
    codes = rng.choice(((1, 1), (1, 0), (0, 1), (2, 4), (4, 4), (5, 5)))
    made.set_qform(affine, codes[0])
    made.set_sform(affine, codes[1])
    made.header.set_xyzt_units("mm")
    what.append(f"qform {codes[0]}, sform {codes[1]}")
    if rng.random() < 0.3 and kind not in (np.int64, np.uint8):
        made = type(made)(made.get_fdata().astype(kind), made.affine, made.header.as_byteswapped(">"))
        what.append("big-endian")
    if rng.random() < 0.3:
        name = "scan.nii"
    nibabel.save(made, folder / name)
    if name.endswith(".gz") and rng.random() < 0.3:
        raw = gzip.decompress((folder / name).read_bytes())
        cut = rng.randrange(1, len(raw))
        (folder / name).write_bytes(gzip.compress(raw[:cut]) + gzip.compress(raw[cut:]))
        what.append("two gzip members")
    output, scan = folder / "out", folder / name
    return Trial(
        ["segment", name, *OPTIONS, "-o", "out"],
        f"the same scan as {type(made).__name__}, {', '.join(what)}",
        [
            checks.cases_are_whole(output),
            checks.each_scan_has_a_case(output, 1),
            oracles.same_volumes(output, usual_volumes(world)),
            oracles.geometry_fits(scan, output),
        ],
    )


def usual_volumes(world: World) -> dict[str, float]:
    """What the scan of all this is answered as it is."""
    output = world.root / "usual"
    if not (output / "run.json").exists():
        world.do("segment", world["ct"] / "ct.nii", *OPTIONS, "-o", output)
    return oracles.volumes(output)


def _header(data: bytearray, rng: Random) -> str:
    names = [name for name in FIELDS for _ in range(WEIGHTS.get(name, 1))]
    name = rng.choice(names)
    offset, kind, count = FIELDS[name]
    at = rng.randrange(count)
    old = struct.unpack_from(f"<{kind}", data, offset + at * struct.calcsize(kind))[0]
    if kind == "f":
        new: float = rng.choice([*FLOATS, -old, old * 1.3, old * 1000, old + 0.01])
        new = new if abs(new) < 3e38 or not np.isfinite(new) else 3e38
    elif kind == "B":
        new = rng.randrange(256)
    else:
        new = rng.choice(SHORTS)
    struct.pack_into(f"<{kind}", data, offset + at * struct.calcsize(kind), new)
    return f"{name}[{at}] {old:g} is {new:g}"


def _bytes(raw: bytes, rng: Random, zipped: bool) -> tuple[bytes, str, bool]:
    """Bytes wrong as bytes are: cut, flipped, more of them; what was done; whether the name ends in .gz."""
    packed = gzip.compress(raw, 1) if zipped else raw
    at = rng.randrange(len(packed))
    flipped = bytearray(packed)
    for _ in range(rng.choice((1, 1, 5, 40))):
        flipped[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
    early = bytearray(packed)
    early[rng.randrange(352)] ^= 1 << rng.randrange(8)
    swapped = bytearray(raw)
    swapped[0:4], swapped[40:56] = swapped[3::-1], b"".join(raw[k : k + 2][::-1] for k in range(40, 56, 2))
    ways = {
        "cut": packed[:at],
        "cut by a byte": packed[:-1],
        "cut in its header": packed[: rng.randrange(400)],
        "empty": b"",
        "bits flipped": bytes(flipped),
        "a bit of the header flipped": bytes(early),
        "zeros after": packed + bytes(1 + at),
        "rubbish after": packed + rng.randbytes(500),
        "gzipped twice": gzip.compress(gzip.compress(raw, 1), 1),
        "gzip under .nii": gzip.compress(raw, 1),
        "plain under .nii.gz": raw,
        "header half swapped": bytes(swapped),
        "rubbish": rng.randbytes(5000),
        "text": b"<html>404 Not Found</html>\n",
        "two scans": packed + packed,
    }
    name = rng.choice(sorted(ways))
    named = {"gzipped twice": True, "gzip under .nii": False, "plain under .nii.gz": True, "header half swapped": False}
    return ways[name], name, named.get(name, zipped)


def _array(rng: Random) -> tuple[bytes, str]:
    """A whole file of an odd array."""
    noise = np.random.default_rng(rng.randrange(2**32))
    odd = noise.normal(40, 100, (40, 36, 3)).astype(np.float32)
    some = noise.random(odd.shape) < 0.1
    huge = nibabel.Nifti1Header()
    huge.set_data_shape((30000, 30000, 300))
    huge.set_data_dtype(np.int16)
    ways = {
        "NaN here and there": np.where(some, np.nan, odd),
        "infinite here and there": np.where(some, np.inf, odd),
        "all NaN": np.full_like(odd, np.nan),
        "all zero": np.zeros_like(odd),
        "all one value": np.full_like(odd, 7),
        "up to 1e38": odd.clip(-100, 100) * 1e36,
        "tiny values": odd * 1e-38,
        "one voxel": odd[:1, :1, :1],
        "one row": odd[:, :1, :1],
        "one column of slices": odd[:1, :1],
        "2-D": odd[:, :, 0],
        "1-D": odd[:, 0, 0],
        "4-D": np.stack([odd, odd * 2], -1),
        "4-D of one": odd[..., None],
        "5-D": np.stack([odd, odd * 2], -1)[:, :, :, None],
        "7-D": odd.reshape(40, 36, 3, 1, 1, 1, 1),
        "wide": noise.normal(0, 1, (3000, 2, 2)).astype(np.float32),
        "bool": some.astype(np.uint8),
        "uint16 near its end": np.full(odd.shape, 65535, np.uint16) - some.astype(np.uint16),
        "int64 near its end": np.full(odd.shape, 2**62, np.int64) + some,
    }
    name = rng.choice([*sorted(ways), "huge sizes, no voxels", "complex", "RGB"])
    if name == "huge sizes, no voxels":
        return bytes(huge.binaryblock) + bytes(4), name
    if name == "complex":
        return nibabel.Nifti1Image(odd.astype(np.complex64), np.eye(4)).to_bytes(), name
    if name == "RGB":
        kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
        return nibabel.Nifti1Image(np.zeros((20, 20, 3), kind), np.eye(4)).to_bytes(), name
    values = ways[name]
    return nibabel.Nifti1Image(values, np.diag([2.0, 2.0, 5.0, 1.0]), dtype=values.dtype).to_bytes(), name
