import logging
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps
from tests.scans.test_scan import RNG, refusal

from delineate.errors import ScanError
from delineate.scans.geometry import Orientation, orientation_of
from delineate.scans.reading import read_labels, read_scan


def picture(path, array, **options):
    Image.fromarray(array).save(path, **options)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_pictures_keep_their_values(tmp_path, suffix, dtype):
    array = RNG.integers(0, np.iinfo(dtype).max, (5, 6), dtype=dtype)
    read = read_scan(picture(tmp_path / f"a{suffix}", array), modality="US")
    assert read.voxels.dtype == dtype
    assert np.array_equal(read.voxels[0], array)
    assert (read.modality, read.has_spacing, read.is_flat, read.is_colour) == ("US", False, True, False)
    assert orientation_of(read.affine) == Orientation()
    assert read.notes == ()
    assert read.shape == (1, 5, 6)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_colour_pictures(tmp_path, suffix):
    array = RNG.integers(0, 255, (5, 6, 3), dtype=np.uint8)
    read = read_scan(picture(tmp_path / f"a{suffix}", array))
    assert read.is_colour
    assert read.shape == (1, 5, 6)
    if suffix != ".jpg":
        assert np.array_equal(read.voxels[0], array)
        refusal(tmp_path / f"a{suffix}", "found colours", read=read_labels)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_dropped_with_a_note(tmp_path, suffix, channels):
    array = RNG.integers(0, 255, (5, 6, channels), dtype=np.uint8)
    read = read_scan(picture(tmp_path / f"a{suffix}", array))
    assert np.array_equal(read.voxels[0], array[..., 0] if channels == 2 else array[..., :3])
    assert read.notes == ("alpha channel dropped",)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation_is_pillows(tmp_path, turn, suffix):
    array = RNG.integers(0, 255, (5, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = turn
    path = picture(tmp_path / f"a{suffix}", array, exif=exif)
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    read = read_scan(path)
    assert np.array_equal(read.voxels[0], wanted)
    assert read.notes == (() if turn == 1 else (f"EXIF orientation {turn} applied",))


def png(path, depth, colour, rows):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    channels = {0: 1, 2: 3}[colour]
    width = len(rows[0]) * 8 // depth // channels
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    content = zlib.compress(b"".join(b"\0" + row for row in rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))
    return path


def test_png_masks_stay_as_stored(tmp_path):
    mask = (RNG.random((5, 6)) > 0.5).astype(np.uint8)
    for high in (1, 255):
        assert np.array_equal(read_labels(picture(tmp_path / "a.png", mask * np.uint8(high))).voxels[0], mask * high)
    grey = read_labels(picture(tmp_path / "rgb.png", np.stack([mask * np.uint8(7)] * 3, -1)))
    assert np.array_equal(grey.voxels[0], mask * 7)
    assert grey.notes == ("three equal channels reduced to one",)
    one_bit = read_labels(picture(tmp_path / "bits.png", mask.astype(bool)))
    assert np.array_equal(one_bit.voxels[0], mask)
    assert one_bit.voxels.dtype == np.uint8
    four_bits = read_labels(png(tmp_path / "four.png", 4, 0, [bytes([0x01, 0x2F])]))
    assert four_bits.voxels.tolist() == [[[0, 1, 2, 15]]]
    two_bits = read_labels(png(tmp_path / "two.png", 2, 0, [bytes([0b00011011])]))
    assert two_bits.voxels.tolist() == [[[0, 1, 2, 3]]]


def test_palettes_give_indices_to_labels_and_colours_to_scans(tmp_path):
    indices = RNG.integers(0, 4, (5, 6), dtype=np.uint8)
    colours = [0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255]
    image = Image.fromarray(indices)
    image.putpalette(colours)
    for name, bits in [("a.png", 2), ("b.png", 8), ("c.tif", None)]:
        image.save(tmp_path / name, **({"bits": bits} if bits else {}))
        assert np.array_equal(read_labels(tmp_path / name).voxels[0], indices)
        assert np.array_equal(read_scan(tmp_path / name).voxels[0], np.array(colours).reshape(-1, 3)[indices])


def test_sixteen_bit_colour_png(tmp_path):
    path = png(tmp_path / "deep.png", 16, 2, [bytes(range(12))])
    assert read_scan(path).notes == ("16-bit colour PNG read with 8 bits",)
    refusal(path, "16-bit mask must be grey", read=read_labels)


def test_jpeg_masks_are_noted(tmp_path):
    read = read_labels(picture(tmp_path / "a.jpg", np.zeros((16, 16), np.uint8)))
    assert "lossy" in read.notes[0]


def test_cmyk_is_converted(tmp_path):
    Image.new("CMYK", (6, 5), (0, 255, 0, 0)).save(tmp_path / "a.jpg")
    read = read_scan(tmp_path / "a.jpg")
    assert read.is_colour
    assert read.notes == ("CMYK colours converted to RGB",)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_pictures_cut_short_empty_or_of_garbage(tmp_path, suffix):
    whole = picture(tmp_path / f"a{suffix}", RNG.integers(0, 255, (64, 64, 3), dtype=np.uint8)).read_bytes()
    path = tmp_path / f"cut{suffix}"
    for kept in (len(whole) // 3, len(whole) * 9 // 10):
        path.write_bytes(whole[:kept])
        refusal(path, "copy")
    for content in (b"", b"\0" * 500, b"text " * 99, whole[:20]):
        path.write_bytes(content)
        refusal(path)


def test_large_pictures_are_bounded_by_max_voxels_and_pillows_limit_is_put_back(tmp_path, monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    for suffix in (".png", ".jpg", ".tif"):
        path = picture(tmp_path / f"a{suffix}", np.zeros((50, 40), np.uint8))
        refusal(path, "at most 1999 voxels", max_voxels=1999)
        read_scan(path, max_voxels=2000)
    assert limit == Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # Pillow alone would refuse
    assert read_scan(tmp_path / "a.png").shape == (1, 50, 40)


def test_several_pages_or_frames(tmp_path):
    pages = np.zeros((3, 5, 6), np.uint8)
    tifffile.imwrite(tmp_path / "pages.tif", pages, photometric="minisblack")
    refusal(tmp_path / "pages.tif", "one 2-D page")
    tifffile.imwrite(tmp_path / "ij.tif", pages, imagej=True)
    refusal(tmp_path / "ij.tif", "one 2-D page")
    frames = [Image.fromarray(page + np.uint8(n)) for n, page in enumerate(pages)]
    frames[0].save(tmp_path / "moving.png", save_all=True, append_images=frames[1:])
    refusal(tmp_path / "moving.png", "found an animation")


def test_kinds_of_tiff(tmp_path):
    array = RNG.random((5, 6)).astype(np.float32)
    array[0, 0] = np.nan
    tifffile.imwrite(tmp_path / "f.tif", array)
    read = read_scan(tmp_path / "f.tif")
    assert np.array_equal(read.voxels[0], np.nan_to_num(array, nan=np.nanmin(array)))
    assert len(read.notes) == 1
    planes = RNG.integers(0, 255, (3, 5, 6), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "p.tif", planes, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_scan(tmp_path / "p.tif").voxels[0], np.moveaxis(planes, 0, -1))
    tifffile.imwrite(tmp_path / "w.tif", planes[0], photometric="miniswhite")
    assert np.array_equal(read_scan(tmp_path / "w.tif").voxels[0], 255 - planes[0])
    assert np.array_equal(read_labels(tmp_path / "w.tif").voxels[0], planes[0])
    tifffile.imwrite(tmp_path / "c.tif", array.astype(np.complex64))
    refusal(tmp_path / "c.tif", "integers or floats")


def test_the_spacing_of_a_picture_can_be_given(tmp_path):
    read = read_scan(picture(tmp_path / "a.png", np.zeros((5, 6), np.uint8)), assume_spacing_mm=(1, 0.5, 0.25))
    assert read.spacing_mm == (1, 0.5, 0.25)
    assert read.has_spacing
    assert read.is_flat
    refusal(tmp_path / "a.png", "volume 0 only", volume=2)


# --- TIFF without and with imagecodecs, which is no dependency


def without_imagecodecs(code, *arguments):
    """What a Python that has no imagecodecs prints."""
    lines = [
        "import sys",
        "sys.modules['imagecodecs'] = None",
        "from delineate.scans.reading import *",
        "from delineate.scans.scan import *",
        "from delineate.scans.writing import *",
        code,
    ]
    run = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), *map(str, arguments)], capture_output=True, text=True, check=True
    )
    assert run.stderr == ""
    return run.stdout


LZW = bytes.fromhex("80 0b 60 50 22 0c 0c 85 01")  # the example of ISO 32000-1, 7.4.4.2


def lzw_tiff(path, content=LZW):
    """A 10 x 1 grey TIFF, written by hand because tifffile needs imagecodecs for it."""
    tags = {256: 10, 257: 1, 258: 8, 259: 5, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(content)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = 8 + len(content) + len(content) % 2
    head = b"II*\0" + struct.pack("<I", start) + content.ljust(start - 8, b"\0")
    path.write_bytes(head + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


def test_a_compression_that_needs_imagecodecs_says_so(tmp_path):
    code = "try: read_scan(sys.argv[1])\nexcept Exception as error: print(type(error).__name__, error)"
    path = tmp_path / "z.tif"
    content = lzw_tiff(path).read_bytes()
    path.write_bytes(content.replace(struct.pack("<HHII", 259, 4, 1, 5), struct.pack("<HHII", 259, 4, 1, 34712)))
    said = without_imagecodecs(code, path)
    assert said.startswith(f"ScanError {path}: TIFF pixels stored as ")
    assert said.endswith("with deflate or without compression, or pip install imagecodecs\n")
    refusal(lzw_tiff(tmp_path / "b.tif", b"\x80\xff\xff\xff"), "damaged")
    assert (
        read_scan(picture(path, np.zeros((5, 6), np.uint8), compression="tiff_adobe_deflate")).notes == ()
    )  # as it says


def turned_grey(path, pixels, **options):
    """A grey TIFF in which 0 is white."""
    return picture(path, pixels, tiffinfo={262: 0}, **options)


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "group4", "packbits", "tiff_adobe_deflate"])
def test_usual_compressions_are_read_without_another_package(tmp_path, compression):
    y, x = np.mgrid[:40, :48]
    grey = (4 * y + x).astype(np.uint8)
    kinds = {"grey": grey, "colour": np.stack([grey, grey[::-1], grey // 2], -1), "mask": (x > 20) & (y > 9)}
    kinds = {"mask": kinds["mask"]} if compression == "group4" else kinds
    if compression == "jpeg":
        del kinds["mask"]
    if compression == "tiff_lzw":
        kinds |= {"deep": grey.astype(np.uint16) * 200, "alpha": np.dstack([grey, grey]), "float": grey / np.float32(7)}
    for name, pixels in kinds.items():
        read = read_scan(picture(tmp_path / f"{name}.tif", pixels, compression=compression)).voxels[0]
        wanted = pixels[..., 0] if name == "alpha" else pixels
        assert np.abs(read - wanted.astype(np.float32)).max() <= (12 if compression == "jpeg" else 0), name
    if "mask" in kinds:
        for path in (tmp_path / "mask.tif", turned_grey(tmp_path / "w.tif", kinds["mask"], compression=compression)):
            with Image.open(path) as image:
                seen = np.asarray(image)
            assert np.array_equal(read_scan(path).voxels[0], seen), path  # as Pillow shows it
            assert set(np.unique(read_labels(path).voxels)) == {0, 1}


def test_a_smaller_copy_of_the_page_is_no_second_page(tmp_path):
    pixels = RNG.integers(0, 255, (40, 48, 3), dtype=np.uint8)
    for first in (False, True):
        path = tmp_path / f"{first}.tif"
        with tifffile.TiffWriter(path) as tiff:
            pages = [(pixels, 0), (pixels[::4, ::4], 1)]
            for page, kind in pages[::-1] if first else pages:
                tiff.write(page, photometric="rgb", subfiletype=kind, metadata=None)
        assert np.array_equal(read_scan(path).voxels[0], pixels)
        refusal(path, "found colours", read=read_labels)
    with tifffile.TiffWriter(tmp_path / "two.tif") as tiff:
        for page in (pixels, pixels):
            tiff.write(page, photometric="rgb", metadata=None)
    refusal(tmp_path / "two.tif", "one 2-D page, found 2 pages")


# --- masks in transparency


DRAWN = np.zeros((5, 6), np.uint8)
DRAWN[1:4, 2:5] = 255
FULL = np.full_like(DRAWN, 255)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(
    ("colour", "alpha", "wanted", "note"),
    [
        (FULL, DRAWN, DRAWN, "mask taken from its alpha channel"),  # white on nothing
        (0 * FULL, DRAWN, DRAWN, "mask taken from its alpha channel"),  # black on nothing
        (DRAWN, FULL, DRAWN, "alpha channel dropped"),
        (DRAWN, 0 * FULL + 128, DRAWN, "alpha channel dropped"),
        (DRAWN, DRAWN, DRAWN, "alpha channel dropped"),  # white on transparent black
        (FULL, FULL, FULL, "alpha channel dropped"),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_is_taken_from_what_it_is_drawn_in(tmp_path, suffix, channels, colour, alpha, wanted, note):
    read = read_labels(picture(tmp_path / f"a{suffix}", np.dstack([colour] * channels + [alpha])))
    assert np.array_equal(read.voxels[0], wanted)
    assert read.notes[0] == note


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_mask_drawn_in_both_is_refused_and_the_advice_helps(tmp_path, suffix):
    hidden = np.where(DRAWN > 0, 0, 255).astype(np.uint8)  # black on white that is transparent
    path = picture(tmp_path / f"a{suffix}", np.dstack([hidden] * 3 + [DRAWN]))
    refusal(path, "drawn in colour or in transparency", "save it without an alpha channel", read=read_labels)
    assert np.array_equal(read_labels(picture(path, DRAWN)).voxels[0], DRAWN)  # as it says


def test_kept_cases_of_pictures_are_read(shared_cases):
    assert read_scan(shared_cases / "K17_tiff_codecs" / "lzw.tif").shape == (1, 192, 256)
    for path in sorted((shared_cases / "K05_mask_in_alpha" / "png_alphamask" / "masks").iterdir()):
        values = read_labels(path).voxels
        assert 0 < (values != 0).mean() < 0.9


def test_what_is_written_needs_no_imagecodecs(tmp_path):
    code = """
import numpy as np
scan = Scan(np.zeros((1, 50, 60)), FLAT_AFFINE)
write_labels(sys.argv[1], np.arange(3000).reshape(1, 50, 60), scan)
print(read_labels(sys.argv[1]).voxels.sum())
"""
    assert without_imagecodecs(code, tmp_path / "a.tif") == f"{sum(range(3000))}\n"


def test_lzw_is_read(tmp_path):
    assert read_scan(lzw_tiff(tmp_path / "a.tif")).voxels.ravel().tolist() == [45, 45, 45, 45, 45, 65, 45, 45, 45, 66]


def test_tifffile_prints_nothing_beside_our_line(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), description="x" * 99, metadata=None)
    content = bytearray(path.read_bytes())
    place = content.index(struct.pack("<HH", 270, 2))
    content[place + 8 : place + 12] = struct.pack("<I", 2**31)  # a description beyond the end of the file
    path.write_bytes(bytes(content))
    code = "try: read_scan(sys.argv[1])\nexcept Exception as error: print(type(error).__name__)"
    without_imagecodecs(code, path)  # asserts that stderr is empty
    assert logging.getLogger("tifffile").propagate  # whoever listens still hears it


@pytest.mark.parametrize("kind", [0, 1], ids=["pages", "smaller copies"])
def test_pages_that_form_a_ring_are_refused(tmp_path, kind):
    path = tmp_path / "ring.tif"
    tifffile.imwrite(path, np.zeros((2, 8, 8), np.uint8), metadata=None, photometric="minisblack", subfiletype=kind)
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)

    def link(at):
        return at + 2 + 12 * struct.unpack_from("<H", data, at)[0]

    (second,) = struct.unpack_from("<I", data, link(first))
    struct.pack_into("<I", data, link(second), first)
    path.write_bytes(data)
    with pytest.raises(ScanError, match=r"ring\.tif: a TIFF must hold one 2-D page, found pages without end"):
        read_scan(path)
