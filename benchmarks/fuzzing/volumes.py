"""Odd and broken NRRD, MetaImage and NIfTI pairs: headers of text that lie, wrong bytes; and good ones."""

import os
from pathlib import Path
from random import Random

from fuzzing import checks, nifti, oracles, server
from fuzzing.trial import Trial
from fuzzing.world import World

NAMES = ("scan.nrrd", "scan.nhdr", "scan.mha", "scan.mhd", "scan.hdr")
NUMBERS = ("0", "-1", "1", "2", "3", "4", "17", "30000", "999999999", "9" * 25, "1e308", "nan", "inf", "1e-9", "x", "")
WORDS = {  # of fields of either format: what else might stand there
    "space": ("right-anterior-superior", "LAS", "scanner-xyz", "left-posterior-superior-time", "nonsense", ""),
    "type": ("uchar", "float", "double", "block", "unsigned short", "long long", "int"),
    "encoding": ("gzip", "raw", "bzip2", "ascii", "hex", "RAW"),
    "endian": ("big", "little", ""),
    "kinds": ("vector domain domain", "domain domain time", "domain", "RGB-color domain domain", "??? ??? ???"),
    "data file": ("../scan.nrrd", "/etc/passwd", "LIST", "scan.nhdr", "a%03d.raw 1 3 1"),
    "ElementDataFile": ("LOCAL", "../scan.mha", "/etc/passwd", "LIST", "scan.mhd", "scan.raw"),
    "ElementType": ("MET_UCHAR", "MET_FLOAT", "MET_DOUBLE", "MET_OTHER", "MET_SHORT_ARRAY", "MET_LONG"),
    "CompressedData": ("True", "False", "maybe"),
    "BinaryDataByteOrderMSB": ("True", "False"),
    "BinaryData": ("False", "True"),
}


def trial(rng: Random, world: World, folder: Path) -> Trial:
    """A segmentation of a volume file that is not as it should be: refused, or answered by its true content."""
    scan = _written(rng, world, folder)
    what = "; ".join(
        _line(scan, rng) if rng.random() < 0.7 else _bytes(scan, rng) for _ in range(rng.choice((1, 1, 2)))
    )
    output = folder / "out"
    options = list(nifti.OPTIONS)
    if rng.random() < 0.1:
        options += ["--volume", str(rng.choice((0, 1, 10**9)))]
    return Trial(
        ["segment", scan.name, *options, "-o", "out"],
        f"{scan.name}: {what}",
        [
            checks.cases_are_whole(output),
            oracles.plausible(output),
            oracles.geometry_fits(scan, output),
            oracles.true_to_content(scan, output, options),
        ],
    )


def same_trial(rng: Random, world: World, folder: Path) -> Trial:
    """A segmentation of a good scan in another format: the answer stays what it is."""
    scan = _written(rng, world, folder)
    output = folder / "out"
    return Trial(
        ["segment", scan.name, *nifti.OPTIONS, "-o", "out"],
        f"the same scan as {', '.join(sorted(path.name for path in folder.iterdir()))}",
        [
            checks.cases_are_whole(output),
            checks.each_scan_has_a_case(output, 1),
            oracles.same_volumes(output, nifti.usual_volumes(world)),
            oracles.geometry_fits(scan, output),
        ],
    )


def _written(rng: Random, world: World, folder: Path) -> Path:
    """The scan of the world in one of the formats, as SimpleITK writes it."""
    scan, deflated = folder / rng.choice(NAMES), rng.random() < 0.5
    server.aside(lambda: _convert(world["ct"] / "ct.nii", scan, deflated))
    return scan


def _convert(source: Path, target: Path, deflated: bool) -> bool:
    import SimpleITK as sitk  # noqa: N813

    sitk.WriteImage(sitk.ReadImage(str(source)), str(target), deflated)
    return True


def _line(scan: Path, rng: Random) -> str:
    """Change a line of a header of text, or a byte of another; what was done."""
    if scan.suffix == ".hdr":
        return _bytes(scan, rng, first=348)
    data = scan.read_bytes()
    end = data.find(b"\n\n") if scan.suffix in (".nrrd", ".nhdr") else data.find(b"ElementDataFile")
    end = len(data) if end < 0 else data.find(b"\n", end)
    lines = data[:end].decode("latin-1").split("\n")
    at = rng.randrange(len(lines))
    sign = ":" if scan.suffix in (".nrrd", ".nhdr") else "="
    name, _, value = lines[at].partition(sign)
    how = rng.random()
    if how < 0.15:
        new = rng.choice(("", lines[at] + "\n" + lines[at], "# nothing", lines[at] * 3, "\0" * 9, "x" * 5000))
    elif name.strip() in WORDS and how < 0.7:
        new = f"{name}{sign} {rng.choice(WORDS[name.strip()])}"
    else:
        words = value.split(" ")
        words[rng.randrange(len(words))] = rng.choice(NUMBERS)
        new = f"{name}{sign}{' '.join(words)}"
    old, lines[at] = lines[at], new
    scan.write_bytes("\n".join(lines).encode("latin-1") + data[end:])
    return f"'{old[:60]}' is {new[:60]!r}"


def _bytes(scan: Path, rng: Random, first: int | None = None) -> str:
    """Change bytes of the header or of the voxels; what was done."""
    files = [path for path in sorted(scan.parent.iterdir()) if path.suffix in (".raw", ".zraw", ".img", ".gz")]
    path = scan if first or not files else rng.choice([scan, *files])
    data = bytearray(path.read_bytes()) or bytearray(b"x")
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 5, 40))):
        flipped[rng.randrange(min(len(data), first or len(data)))] ^= 1 << rng.randrange(8)
    ways = {
        "cut": bytes(data[: rng.randrange(len(data))]),
        "cut by a byte": bytes(data[:-1]),
        "empty": b"",
        "bits flipped": bytes(flipped),
        "rubbish after": bytes(data) + rng.randbytes(500),
        "rubbish": rng.randbytes(3000),
        "text": b"<html>404 Not Found</html>\n",
    }
    name = rng.choice(sorted(ways))
    if rng.random() < 0.1 and path != scan:
        os.unlink(path)
        return f"{path.name} is not there"
    path.write_bytes(ways[name])
    return f"{path.name} {name}"
