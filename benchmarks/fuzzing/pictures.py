"""Odd and broken PNG, JPEG and TIFF files, and a good one kept otherwise."""

import io
import struct
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from fuzzing import checks, oracles
from fuzzing.trial import Trial
from fuzzing.world import SMALL, World

OPTIONS = ("-p", "breast lesion", *SMALL)


def trial(rng: Random, world: World, folder: Path) -> Trial:
    """A segmentation of a picture that is not as it should be."""
    if rng.random() < 0.45:
        data, suffix, what = _bytes(world, rng)
    else:
        data, suffix, what = _drawn(rng)
    scan = folder / f"scan{suffix}"
    scan.write_bytes(data)
    output = folder / "out"
    return Trial(
        ["segment", scan.name, *OPTIONS, "-o", "out"],
        f"picture: {what}",
        [checks.cases_are_whole(output), oracles.picture_fits(scan, output)],
    )


def same_trial(rng: Random, world: World, folder: Path) -> Trial:
    """A good ultrasound picture in another container or mode of colour, or turned with EXIF that turns it back."""
    with Image.open(world["pictures"] / "us.png") as opened:
        grey = opened.convert("L")
    ways = (
        "TIFF",
        "RGB",
        "RGBA",
        "LA",
        "palette",
        "EXIF",
        "TIFF LZW",
        "TIFF tiled",
        "BMP-free PNG",
        "16 bit",
        "interlaced",
    )
    name = rng.choice(ways)
    file = "scan.png"
    more: dict[str, Any] = {}
    image: Image.Image = grey
    if name.startswith("TIFF"):
        file = "scan.tif"
        if name == "TIFF LZW":
            more = {"compression": "tiff_lzw"}
    elif name in ("RGB", "RGBA", "LA"):
        image = grey.convert(name)
    elif name == "palette":
        image = grey.convert("P")
    elif name == "16 bit":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif name == "EXIF":
        turn = rng.choice(
            ((2, Image.Transpose.FLIP_LEFT_RIGHT), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90))
        )
        exif = Image.Exif()
        exif[0x0112] = turn[0]
        image, more, file = grey.transpose(turn[1]), {"exif": exif, "quality": 98, "subsampling": 0}, "scan.jpg"
    elif name == "interlaced":
        more = {"optimize": True}
    image.save(folder / file, **more)
    output = folder / "out"
    check = [checks.cases_are_whole(output), checks.each_scan_has_a_case(output, 1)]
    if name != "EXIF":  # turned, the network sees the same; the JPEG is not the same
        check.append(oracles.picture_fits(folder / file, output))
    check.append(oracles.same_volumes(output, usual_pixels(world), flat=True))
    return Trial(["segment", file, *OPTIONS, "-o", "out"], f"the same picture as {name}", check)


def usual_pixels(world: World) -> dict[str, float]:
    """What the ultrasound picture is answered as it is."""
    output = world.root / "usual_us"
    if not (output / "run.json").exists():
        world.do("segment", world["pictures"] / "us.png", *OPTIONS, "-o", output)
    return oracles.volumes(output)


def _bytes(world: World, rng: Random) -> tuple[bytes, str, str]:
    source, suffix = rng.choice((("us.png", ".png"), ("skin.jpg", ".jpg"), ("us.png", ".tif")))
    data = (world["pictures"] / source).read_bytes()
    if suffix == ".tif":
        with Image.open(world["pictures"] / source) as image:
            data = _saved(image.convert("L"), "TIFF")
    at = rng.randrange(1, len(data))
    flipped = bytearray(data)
    for _ in range(rng.choice((1, 3, 30))):
        flipped[rng.randrange(min(len(data), rng.choice((200, len(data)))))] ^= 1 << rng.randrange(8)
    ways = {
        "cut": data[:at],
        "cut early": data[: rng.randrange(60)],
        "empty": b"",
        "bits flipped": bytes(flipped),
        "rubbish after": data + rng.randbytes(3000),
        "rubbish": rng.randbytes(4000),
        "text": b"not a picture",
        "another picture's ending": data,
    }
    name = rng.choice(sorted(ways))
    if name == "another picture's ending":
        suffix = rng.choice([s for s in (".png", ".jpg", ".tif", ".jpeg", ".tiff") if s != suffix])
    return ways[name], suffix, f"{source} {name} as {suffix}"


def _drawn(rng: Random) -> tuple[bytes, str, str]:
    noise = np.random.default_rng(rng.randrange(2**32))
    grey = noise.integers(0, 256, (60, 70), np.uint8)
    colour = noise.integers(0, 256, (60, 70, 3), np.uint8)
    some = Image.fromarray(grey)
    exif = Image.Exif()
    exif[0x0112] = rng.choice((0, 9, 8, 5, 65535))
    ways = {
        "1 × 1": (lambda: _saved(Image.new("L", (1, 1)), "PNG"), ".png"),
        "1 × 900": (lambda: _saved(Image.new("L", (1, 900), 9), "PNG"), ".png"),
        "900 × 1": (lambda: _saved(Image.new("RGB", (900, 1)), "JPEG"), ".jpg"),
        "6000 × 3": (lambda: _saved(Image.new("L", (6000, 3), 3), "PNG"), ".png"),
        "one bit": (lambda: _saved(some.convert("1"), "PNG"), ".png"),
        "palette with alpha": (lambda: _saved(some.convert("P"), "PNG", transparency=3), ".png"),
        "alpha, all clear": (lambda: _saved(Image.new("RGBA", (50, 50), (9, 9, 9, 0)), "PNG"), ".png"),
        "16 bit": (lambda: _saved(Image.fromarray(grey.astype(np.uint16) * 257), "PNG"), ".png"),
        "CMYK": (lambda: _saved(Image.fromarray(colour).convert("CMYK"), "JPEG"), ".jpg"),
        "EXIF of no turn": (lambda: _saved(some, "JPEG", exif=exif), ".jpg"),
        "huge size in its header": (lambda: _with_size(_saved(some, "PNG"), rng), ".png"),
        "a bomb of zeros": (lambda: _bomb(rng), ".png"),
        "animated": (lambda: _saved(some, "PNG", save_all=True, append_images=[some, some]), ".png"),
        "GIF as PNG": (lambda: _saved(some, "GIF"), ".png"),
        "several pages": (
            lambda: _saved(some, "TIFF", save_all=True, append_images=[some, some.resize((9, 9))]),
            ".tif",
        ),
        "float with NaN": (lambda: _tiff(np.where(grey > 200, np.nan, grey).astype(np.float32)), ".tif"),
        "float up to 1e38": (lambda: _tiff(grey.astype(np.float32) * 1e36), ".tif"),
        "complex": (lambda: _tiff(grey.astype(np.complex64)), ".tif"),
        "64 bit": (lambda: _tiff(grey.astype(np.uint64) << 50), ".tif"),
        "signed": (lambda: _tiff(grey.astype(np.int16) - 128), ".tif"),
        "volume": (lambda: _tiff(noise.integers(0, 255, (5, 30, 30), np.uint8)), ".tif"),
        "five channels": (lambda: _tiff(noise.integers(0, 255, (30, 30, 5), np.uint8)), ".tif"),
        "tag changed": (lambda: _tag(_saved(some, "TIFF"), rng), ".tif"),
        "pages in a ring": (lambda: _ring(_saved(some, "TIFF")), ".tif"),
        "no voxels": (lambda: _tiff(np.zeros((1, 0), np.uint8)), ".tif"),
        "a text chunk of megabytes": (lambda: _text_chunk(_saved(some, "PNG")), ".png"),
    }
    name = rng.choice(sorted(ways))
    make, suffix = ways[name]
    try:
        return make(), suffix, name
    except (OSError, ValueError):  # what cannot be written by the libraries here
        return b"\x89PNG\r\n\x1a\n", ".png", f"{name} (signature alone)"


def _saved(image: Image.Image, kind: str, **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def _tiff(array: np.ndarray) -> bytes:
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, array)
    return file.getvalue()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _with_size(png: bytes, rng: Random) -> bytes:
    sizes = (0, 1, 65000, 2**20, 2**31 - 1)
    size = struct.pack(">II", rng.choice(sizes), rng.choice(sizes))
    return png[:8] + _chunk(b"IHDR", size + png[24:29]) + png[33:]


def _bomb(rng: Random) -> bytes:
    """Nine thousand squared grey zeros in 80 KB."""
    side = rng.choice((7000, 9000))
    packer = zlib.compressobj(9)
    row = bytes(side + 1)
    body = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _text_chunk(png: bytes) -> bytes:
    return png[:33] + _chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(30_000_000))) + png[33:]


def _tag(tiff: bytes, rng: Random) -> bytes:
    """One entry of the first directory changed: type, count or value."""
    data = bytearray(tiff)
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    entry = at + 2 + 12 * rng.randrange(count)
    offset, kind = rng.choice(((2, "<H"), (4, "<I"), (8, "<I"), (0, "<H")))
    most = 2 ** (8 * struct.calcsize(kind)) - 1
    struct.pack_into(kind, data, entry + offset, rng.choice((0, 1, 2, 3, 65535, most)) & most)
    return bytes(data)


def _ring(tiff: bytes) -> bytes:
    data = bytearray(tiff)
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    struct.pack_into("<I", data, at + 2 + 12 * count, at)
    return bytes(data)
