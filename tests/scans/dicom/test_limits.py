"""Traps, small as they are, end in one line and leave this process alone: the real child process is asked here."""

import resource
import struct
import subprocess
import sys
import time
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import UID
from tests.dicom_series import bundled, dataset, set_pixels, write_series

from delineate.errors import ScanError
from delineate.scans.dicom import limits as dicom_limits
from delineate.scans.dicom import series as dicom
from delineate.scans.dicom.series import read_series
from delineate.scans.reading import read_scan

DEFLATED, RLE, J2K = (UID(f"1.2.840.10008.1.2{end}") for end in (".1.99", ".5", ".4.90"))


def refusal(path, *words, **options):
    """The one line; the whole must not cost this process memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ScanError) as caught:
        read_series(path, **options)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000  # KiB
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def packed(tmp_path, syntax, frame, **more):
    """A file whose pixels are one encapsulated frame."""
    made = set_pixels(dataset("CT"), np.zeros((16, 16), np.int16))
    made.file_meta.TransferSyntaxUID = syntax
    made.PixelData = encapsulate([frame])
    made["PixelData"].is_undefined_length = True
    for keyword, value in more.items():
        setattr(made, keyword, value)
    made.save_as(tmp_path / "trap.dcm")
    assert (tmp_path / "trap.dcm").stat().st_size < 1_000_000
    return tmp_path / "trap.dcm"


def test_an_honest_series_passes_through_the_child():
    scan = read_scan(bundled("dicomdirtests/98892001/CT5N"))
    assert scan.voxels.shape == (5, 16, 16)
    assert scan.voxels.flags.writeable


@pytest.mark.parametrize(
    "more", [{"Rows": 65535, "Columns": 65535}, {"NumberOfFrames": 10_000_000}], ids=["rows", "frames"]
)
@pytest.mark.parametrize("syntax", [RLE, J2K], ids=["RLE", "JPEG 2000"])
def test_a_header_that_asks_for_too_much(tmp_path, syntax, more):
    refusal(packed(tmp_path, syntax, b"\0" * 100, **more), "at most 1000000000 voxels", "the header asks for")


def test_plain_pixels_that_the_file_cannot_hold(tmp_path):
    made = set_pixels(dataset("CT"), np.zeros((16, 16), np.int16))
    made.Rows = made.Columns = 20_000
    made.save_as(tmp_path / "a.dcm")
    refusal(tmp_path / "a.dcm", "1 x 20000 x 20000 at 16 bits", "cannot hold them")


def test_a_run_length_bomb_is_seen_from_its_header(tmp_path):
    refusal(packed(tmp_path, RLE, b"\x81\0" * 5000, Rows=20_000, Columns=20_000), "cannot hold them")


def test_runs_longer_than_the_header_says_are_cut_off(tmp_path):
    """Half a megabyte of runs that unpacks to 60 MB, called 16 x 16; the most that runs can grow is 64-fold."""
    runs = b"\x81\0" * 240_000
    frame = struct.pack("<16L", 2, 64, 64 + len(runs), *[0] * 13) + runs + runs
    assert read_series(packed(tmp_path, RLE, frame)).shape == (1, 16, 16)


def test_deflated_files_are_refused_before_they_are_inflated(tmp_path):
    made = dataset("CT")
    made.file_meta.TransferSyntaxUID = DEFLATED
    plain = BytesIO()
    set_pixels(dataset("CT"), np.zeros((16, 16), np.int16)).save_as(plain)
    head = plain.getvalue()[: plain.getvalue().index(b"1.2.840.10008.1.2.1")]
    body = zlib.compressobj(9, wbits=-15)
    bomb = body.compress(b"\0" * 300_000_000) + body.flush()
    meta = plain.getvalue()[132:]
    length = 12 + struct.unpack("<L", meta[8:12])[0]
    syntax = meta[:length].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    syntax = syntax.replace(
        struct.pack("<2sH", b"UI", 20) + b"1.2.840.10008.1.2.1.99",
        struct.pack("<2sH", b"UI", 22) + b"1.2.840.10008.1.2.1.99",
    )
    syntax = syntax[:8] + struct.pack("<L", len(syntax) - 12) + syntax[12:]
    (tmp_path / "deflated.dcm").write_bytes(b"\0" * 128 + b"DICM" + syntax + bomb)
    assert head[128:132] == b"DICM"
    assert (tmp_path / "deflated.dcm").stat().st_size < 400_000
    refusal(tmp_path / "deflated.dcm", "deflated DICOM is not read")


def test_a_code_stream_larger_than_its_header_says(tmp_path):
    """JPEG 2000 of 16 x 16 whose own size was changed to 60000 x 60000."""
    stream = BytesIO()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(stream, "JPEG2000", no_jp2=True)
    data = bytearray(stream.getvalue())
    at = data.index(b"\xff\x51") + 6
    for offset in (0, 4, 16, 20):  # image and tile sizes
        data[at + offset : at + offset + 4] = struct.pack(">L", 60_000)
    refusal(packed(tmp_path, J2K, bytes(data), BitsAllocated=8, BitsStored=8, HighBit=7), "pixels must be readable")


def test_memory_beyond_what_the_header_accounts_for_stops_the_child(tmp_path, monkeypatch):
    """The limit itself: with none to spare, even an honest file is stopped, in one line."""
    monkeypatch.setattr(dicom_limits, "HEADROOM", 60 << 20)
    write_series(tmp_path, np.zeros((2, 8, 8), np.int16))
    with pytest.raises(ScanError) as caught:
        read_series(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_array_beyond_the_limit_is_told_as_memory(tmp_path, monkeypatch):
    """25 million voxels in 800 kB, honest but for a limit that has no room for them."""
    plane = b"\x81\0" * 195_313
    frame = struct.pack("<16L", 2, 64, 64 + len(plane), *[0] * 13) + plane + plane
    path = packed(tmp_path, RLE, frame, Rows=5000, Columns=5000)
    assert read_series(path).shape == (1, 5000, 5000)
    ask = dicom_limits.ask_child
    monkeypatch.setattr(dicom_limits, "HEADROOM", 200 << 20)
    monkeypatch.setattr(dicom, "ask_child", lambda *a, **k: ask(*a, **(k | {"array_bytes": 0})))
    refusal(path, "more memory than its header accounts for")


def test_pixels_that_grow_in_the_decoder_hit_the_limit(tmp_path, monkeypatch):
    """A JPEG 2000 picture of 9000 x 9000 in a file that says 16 x 16: 81 MB where some KB were allowed."""
    stream = BytesIO()
    Image.fromarray(np.zeros((9000, 9000), np.uint8)).save(stream, "JPEG2000", no_jp2=True)
    path = packed(tmp_path, J2K, stream.getvalue(), BitsAllocated=8, BitsStored=8, HighBit=7)
    monkeypatch.setattr(dicom_limits, "HEADROOM", 400 << 20)
    started = time.monotonic()
    refusal(path, "trap.dcm")
    assert time.monotonic() - started < 60


def test_a_job_that_takes_too_long_is_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(dicom_limits, "SECONDS", 0)
    write_series(tmp_path, np.zeros((2, 8, 8), np.int16))
    with pytest.raises(ScanError, match=r"more than 0 s|computing time|ended by SIG"):
        read_series(tmp_path)


def test_nothing_is_imported_from_the_folder_one_works_in(tmp_path, monkeypatch):
    (tmp_path / "pydicom.py").write_text("raise SystemExit('taken over')")
    write_series(tmp_path / "s", np.zeros((2, 8, 8), np.int16))
    monkeypatch.chdir(tmp_path)
    assert read_series("s").shape == (2, 8, 8)


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch):
    write_series(tmp_path, np.zeros((2, 8, 8), np.int16))
    monkeypatch.setattr(dicom_limits, "find_spec", lambda name: None)
    with pytest.raises(ScanError, match=r"pip install 'delineate\[dicom\]'"):
        read_series(tmp_path)


def test_the_child_is_light():
    """Neither torch nor nibabel: what reading costs on top is Python, numpy and pydicom."""
    script = (
        "import sys, delineate.scans.dicom.child, delineate.scans.dicom.reading\n"
        "print([m for m in ('torch', 'nibabel', 'scipy', 'highdicom') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
