"""Small files that claim, or unfold to, far more than they should: refused in one line, with no memory taken for it."""

import gzip
import lzma
import struct
import tracemalloc
import zlib
from contextlib import contextmanager, suppress

import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.scans.test_scan import RNG, refusal

from delineate.errors import ScanError
from delineate.scans import nifti, unfolding
from delineate.scans.reading import read_labels, read_scan

MIB = 2**20
BOMB = 64 * MIB  # of zeros, in 64 KiB


@contextmanager
def frugal():
    """No more than some MiB are taken, whatever is read."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < 16 * MIB
    finally:
        tracemalloc.stop()


def tiff_of(path, strips, compression=8, width=100, height=100, tile=None):
    """A grey TIFF of 8 bits whose strips (or tiles) are these bytes, whatever they hold."""
    data, offsets = b"", []
    for strip in strips:
        offsets.append(8 + len(data))
        data += strip
    sizes = [len(strip) for strip in strips]
    data += b"\0" * (len(data) % 2)
    lists = struct.pack(f"<{2 * len(offsets)}I", *offsets, *sizes)
    at = 8 + len(data)
    count = len(offsets)
    where = (at, at + 4 * count) if count > 1 else (offsets[0], sizes[0])
    tags = {256: (1, width), 257: (1, height), 258: (1, 8), 259: (1, compression), 262: (1, 1), 277: (1, 1)}
    if tile:
        tags |= {322: (1, tile), 323: (1, tile), 324: (count, where[0]), 325: (count, where[1])}
    else:
        rows = -(-height // max(1, len(strips)))
        tags |= {273: (count, where[0]), 278: (1, rows), 279: (count, where[1])}
    entries = b"".join(struct.pack("<HHII", tag, 4, *tags[tag]) for tag in sorted(tags))
    start = at + len(lists)
    head = b"II*\0" + struct.pack("<I", start)
    path.write_bytes(head + data + lists + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


def test_the_files_of_these_tests_are_sound_but_for_their_bombs(tmp_path):
    pixels = RNG.integers(0, 255, (100, 100), np.uint8)
    strips = [zlib.compress(pixels[k : k + 50].tobytes()) for k in (0, 50)]
    assert np.array_equal(read_scan(tiff_of(tmp_path / "a.tif", strips)).voxels[0], pixels)
    tile = np.zeros((128, 128), np.uint8)
    tile[:100, :100] = pixels
    whole = tiff_of(tmp_path / "b.tif", [zlib.compress(tile.tobytes())], tile=128)
    assert np.array_equal(read_scan(whole).voxels[0], pixels)


@pytest.mark.parametrize("code", [8, 32946])
@pytest.mark.parametrize("tile", [None, 128])
@pytest.mark.parametrize("read", [read_scan, read_labels])
def test_a_strip_that_unfolds_to_more_than_its_pixels_is_refused(tmp_path, code, tile, read):
    path = tiff_of(tmp_path / "bomb.tif", [zlib.compress(bytes(BOMB), 9)], code, tile=tile)
    assert path.stat().st_size < 100_000
    with frugal():
        refusal(path, "unfolds to more", read=read)


def test_a_tile_far_larger_than_its_image_is_refused(tmp_path):
    path = tiff_of(tmp_path / "tile.tif", [zlib.compress(bytes(100), 9)], tile=60_000)
    with frugal():
        refusal(path, "a tile must not be larger than its image")


@pytest.mark.parametrize(
    ("code", "content"),
    [
        (32773, b"\x81\0" * (BOMB // 128)),
        (34925, lzma.compress(bytes(BOMB))),
        (50000, b"\x28\xb5\x2f\xfd" + bytes(50)),
    ],
    ids=["packbits", "lzma", "zstd"],
)
def test_compressions_without_a_bound_are_not_left_to_tifffile(tmp_path, monkeypatch, code, content):
    monkeypatch.setattr(unfolding, "find_spec", lambda name: None)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda page: pytest.fail("tifffile was asked"))
    path = tiff_of(tmp_path / "bomb.tif", [content], code)
    with frugal(), suppress(ScanError):  # what libtiff makes of it fits into the image, or it cannot read it
        assert read_scan(path).voxels.shape == (1, 100, 100)


def test_sound_tiffs_of_every_layout_are_read(tmp_path):
    for name, array, options in [
        ("tiled", RNG.integers(0, 9, (300, 200), np.uint16), {"tile": (64, 64), "compression": "zlib"}),
        ("colour", RNG.integers(0, 255, (90, 80, 3), np.uint8), {"photometric": "rgb", "compression": "zlib"}),
        ("float", RNG.normal(size=(90, 80)).astype(np.float32), {"compression": "zlib", "predictor": False}),
        ("strips", np.zeros((500, 80), np.uint8), {"rowsperstrip": 7, "compression": "zlib"}),
        ("small", np.ones((5, 6), np.uint8), {"tile": (256, 256), "compression": "zlib"}),
        ("plain", np.ones((50, 60), np.uint8), {}),
    ]:
        tifffile.imwrite(tmp_path / f"{name}.tif", array, metadata=None, **options)
        assert np.array_equal(read_scan(tmp_path / f"{name}.tif").voxels[0], array.astype(np.float32)), name
    planar = RNG.integers(0, 255, (3, 90, 80), np.uint8)
    path = tmp_path / "planar.tif"
    tifffile.imwrite(path, planar, photometric="rgb", planarconfig="separate", compression="zlib", metadata=None)
    assert np.array_equal(read_scan(path).voxels[0], np.moveaxis(planar, 0, -1))


def test_a_picture_that_is_small_as_a_file_and_large_in_memory_is_refused(tmp_path):
    path = tmp_path / "large.png"
    head = b"IHDR" + struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    rows = b"IDAT" + zlib.compress(bytes(MIB), 9)
    parts = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (head, rows)]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with frugal():
        refusal(path, "at most 200000000 voxels", "30000 x 30000", max_voxels=200_000_000)


def test_text_in_a_picture_may_not_unfold_without_end(tmp_path):
    path = tmp_path / "text.png"
    Image.new("L", (8, 8)).save(path)
    content = path.read_bytes()
    part = b"zTXtx\0\0" + zlib.compress(bytes(BOMB), 9)
    chunk = struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    path.write_bytes(content[:33] + chunk + content[33:])
    with frugal():
        refusal(path, "damaged")


def header_of(**fields) -> bytes:
    header = nifti.nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((4, 4, 4))
    header.set_sform(np.eye(4), 1)
    header["magic"] = b"n+1"
    for name, value in {"vox_offset": 352, **fields}.items():
        header[name] = value
    return header.binaryblock + bytes(4)


@pytest.mark.parametrize("dim", [[3, 30_000, 300, 300, 1, 1, 1, 1], [3, 32_000, 32_000, 3, 1, 1, 1, 1]])
def test_a_volume_that_claims_too_much_is_refused_unread(tmp_path, dim):
    path = tmp_path / "v.nii.gz"
    path.write_bytes(gzip.compress(header_of(dim=dim) + bytes(BOMB)))
    with frugal():
        refusal(path, "at most 200000000 voxels", max_voxels=200_000_000)


def test_what_follows_the_voxels_is_not_unfolded(tmp_path):
    path = tmp_path / "v.nii.gz"
    path.write_bytes(gzip.compress(header_of() + bytes(64)) + gzip.compress(bytes(BOMB)) * 4)
    with frugal():
        assert read_scan(path).shape == (4, 4, 4)


def test_voxels_that_begin_far_down_are_refused_before_all_before_them_is_unfolded(tmp_path, monkeypatch):
    path = tmp_path / "v.nii.gz"
    path.write_bytes(gzip.compress(header_of(vox_offset=2**29)) + bytes(2 * MIB))
    refusal(path, "voxels must begin before byte 268435456")
    monkeypatch.setattr(nifti, "LARGEST_OFFSET", 2000)
    path.write_bytes(gzip.compress(header_of(vox_offset=2048) + bytes(4096)))
    refusal(path, "voxels must begin before byte 2000, the header says 2048")
    monkeypatch.undo()
    assert read_scan(path).shape == (4, 4, 4)
