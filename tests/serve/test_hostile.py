"""What people send who mean no good: each is answered with one line, nothing is left, and the next one is answered."""

import contextlib
import errno
import gzip
import io
import socket
import struct
import time
import zipfile
import zlib

import httpx
import pytest
from tests.review_world import write_volume
from tests.serve.test_limits import multipart, post
from tests.serve_world import ANN, refused, served, taken_apart

from delineate.review.uploads import UploadError
from delineate.serve import packed as packing
from delineate.serve.packed import unpack_dicom
from delineate.serve.service import Limits

MARK = b"\0" * 128 + b"DICM"


@pytest.fixture(scope="module")
def server(tmp_path_factory, volume):
    """At the end, after all of it, a scan is answered as ever."""
    with served(tmp_path_factory.mktemp("served"), Limits(a_minute=100_000, upload=4 << 20)) as one:
        yield one
        taken_apart(one.segment(volume, prompt="liver", n=1))


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    return write_volume(tmp_path_factory.mktemp("scans") / "scan.nii.gz").read_bytes()


@pytest.fixture(autouse=True)
def still_answers(server):
    """After every one of them: it is ready, nothing lies about, nobody holds a place, and nothing is computed."""
    yield
    assert httpx.get(f"{server.url}/ready", timeout=60).status_code == 200
    assert server.service.worker.idle
    until = time.monotonic() + 60
    while list(server.service.results.work.iterdir()) or server.service.places.taken:
        assert time.monotonic() < until, list(server.service.results.work.iterdir())
        time.sleep(0.02)


def zipped(*entries: tuple[str, bytes], how=zipfile.ZIP_DEFLATED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", how) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return made.getvalue()


def nifti_that_claims(side: int) -> bytes:
    """348 bytes that ask for a cube of so many voxels a side."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, 3, side, side, side, 1, 1, 1, 1)
    struct.pack_into("<2h", header, 70, 4, 16)
    struct.pack_into("<8f", header, 76, 1, 1, 1, 1, 1, 1, 1, 1)
    struct.pack_into("<f", header, 108, 352)
    struct.pack_into("<2h", header, 252, 1, 1)
    header[344:348] = b"n+1\0"
    return bytes(header)


def png_that_claims(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def with_a_lie(data: bytes, size: int) -> bytes:
    """A zip whose directory says another size than what comes out."""
    at = data.rindex(b"PK\x01\x02")
    return data[: at + 24] + struct.pack("<I", size) + data[at + 28 :]


HOSTILE = {
    "not what its name says": ("scan.nii.gz", b"<script>alert(1)</script>", "the scan that was sent"),
    "empty": ("scan.nii", b"", "empty"),
    "a gzip bomb": ("scan.nii.gz", gzip.compress(nifti_that_claims(4) + b"\0" * (64 << 20)), "the scan that was sent"),
    "a header of many voxels": ("scan.nii", nifti_that_claims(32_000), "the scan that was sent"),
    "a cut gzip": ("scan.nii.gz", cut(gzip.compress(nifti_that_claims(20) + bytes(range(256)) * 99)), "that was sent"),
    "a picture that claims more": ("a.png", png_that_claims(60_000), "the scan that was sent"),
    "a zip bomb": ("a.zip", zipped(("1", MARK + b"\0" * (20 << 20))), "may unpack to 16 MiB"),
    "many small bombs": ("a.zip", zipped(*((str(k), MARK + b"\0" * (3 << 20)) for k in range(9))), "may unpack to"),
    "a zip in a zip": ("a.zip", zipped(("a.zip", zipped(("1.dcm", MARK)))), "must hold DICOM files"),
    "a cut zip": ("a.zip", cut(zipped(("1.dcm", MARK + bytes(range(256)) * 99))), "damaged or cut short"),
    "a zip that lies": ("a.zip", with_a_lie(zipped(("1.dcm", MARK + b"x" * 9999)), 7), "damaged or cut short"),
    "a packing of another kind": ("a.zip", zipped(("1.dcm", MARK), how=zipfile.ZIP_LZMA), "in the usual way"),
    "names that lead out": ("a.zip", zipped(("../../x", b"x"), ("/etc/x", b"x"), ("C:\\x", b"x")), "must hold DICOM"),
    "a mark and nothing else": ("a.zip", zipped(("1.dcm", MARK)), "the scan that was sent"),
    "DICOM that is noise": ("a.dcm", MARK + bytes(range(256)) * 40, "the scan that was sent"),
    "a name of folders": ("../../../../etc/cron.d/x.nii", b"x" * 400, "the scan that was sent"),
    "a name that is a command": ("$(reboot);`id`\u202e.nii", b"x" * 400, "the scan that was sent"),
    "a name of another kind": ("scan.nii.gz.exe", b"MZ", "named like one of"),
    "no name": ("x", b"x", "named like one of"),
}


@pytest.mark.parametrize(
    "what",
    [  # a child process each
        pytest.param(one, marks=pytest.mark.slow if one == "a mark and nothing else" else ()) for one in HOSTILE
    ],
)
def test_a_hostile_file_is_refused_in_a_line(what, server):
    name, data, words = HOSTILE[what]
    line = refused(server.segment(data, name, prompt="liver"), 422)
    assert words in line
    assert all(part not in line for part in (str(server.folder), "Traceback", "reboot", "cron", "<script>"))


def test_a_locked_zip_is_not_asked_for_its_password(server):
    data = bytearray(zipped(("1.dcm", MARK)))
    for mark, offset in ((b"PK\x01\x02", 8), (b"PK\x03\x04", 6)):
        data[data.index(mark) + offset] |= 1
    assert "password" in refused(server.segment(bytes(data), "a.zip"), 422)


def test_more_files_than_a_series_has(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "MOST_FILES", 3)
    (tmp_path / "a.zip").write_bytes(zipped(*((str(k), MARK) for k in range(4))))
    with pytest.raises(UploadError, match="may hold 3 files, found 4"):
        unpack_dicom(tmp_path / "a.zip", tmp_path / "s", 1 << 20)


def test_what_comes_out_of_a_zip_has_names_of_ours_and_lies_nowhere_else(tmp_path):
    (tmp_path / "a.zip").write_bytes(
        zipped(("../../x.dcm", MARK + b"1"), ("/y", MARK + b"2"), ("z/", b""), ("t", b"no"))
    )
    unpack_dicom(tmp_path / "a.zip", tmp_path / "s", 1 << 20)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")) == [
        "a.zip",
        "s",
        "s/000001.dcm",
        "s/000002.dcm",
    ]
    assert (tmp_path / "s" / "000002.dcm").read_bytes() == MARK + b"2"


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(post(server.port, 1 << 40))
        assert client.recv(9999).startswith(b"HTTP/1.1 413 ")


def test_a_body_without_a_length_is_cut_off(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        head = post(server.port, 0).replace(b"content-length: 0", b"transfer-encoding: chunked")
        client.sendall(head)
        piece = b"%x\r\n%s\r\n" % (1 << 20, b"x" * (1 << 20))
        try:
            for _ in range(8):
                client.sendall(piece)
        except OSError:
            pass  # closed while we still send
        assert client.recv(9999).split(b"\r\n")[0] in (
            b"HTTP/1.1 413 ",
            b"HTTP/1.1 413 Content Too Large",
            b"HTTP/1.1 413 Request Entity Too Large",
            b"HTTP/1.1 400 Bad Request",
        )


def test_huge_headers_are_refused(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(post(server.port, 10)[:-2] + b"x: " + b"y" * (1 << 17) + b"\r\n\r\n")
        assert b"400" in client.recv(9999).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "kind", ["application/json", "text/plain", "multipart/form-data", "multipart/form-data; boundary=other", "x" * 500]
)
def test_a_wrong_content_type_is_told(kind, server, volume):
    body = multipart(volume)
    with server.client() as client:
        reply = client.post("/api/segment", content=body, headers={"content-type": kind})
    assert refused(reply, reply.status_code)
    assert reply.status_code in (400, 422)


def test_a_thousand_fields_are_too_many(server, volume):
    fields = {f"f{k}": "x" for k in range(1200)}
    with server.client() as client:
        reply = client.post("/api/segment", files={"scan": ("a.nii.gz", volume)}, data=fields)
    assert reply.status_code in (400, 422)


def test_a_body_that_stops_holds_no_place_for_ever(tmp_path, volume):
    from tests.review.test_connections import Quick

    with served(tmp_path, Limits(places=1), http=Quick) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            body = multipart(volume)
            client.sendall(post(server.port, len(body)) + body[:100])
            started = time.monotonic()
            while client.recv(999):
                pass
            assert time.monotonic() - started < 15
        taken_apart(server.segment(volume, prompt="liver", n=1))


def test_a_fault_of_ours_is_a_line_and_the_log_tells_more(server, volume, monkeypatch, caplog):
    def broken(*given, **more):
        raise KeyError("secret of a patient\nsecond line")

    monkeypatch.setattr("delineate.serve.service.proposed", broken)
    reply = server.segment(volume, prompt="liver")
    assert refused(reply, 500) == "a fault of the server (KeyError), which its log tells"
    monkeypatch.undo()
    until = time.monotonic() + 60
    while not any("internal error" in one.getMessage() for one in caplog.records):
        assert time.monotonic() < until
        time.sleep(0.02)
    (told,) = [one.getMessage() for one in caplog.records if "internal error" in one.getMessage()]
    assert "KeyError at test_hostile.py:" in told
    assert "secret" not in told


def test_the_log_has_a_line_a_request_without_token_name_or_prompt(server, volume, caplog):
    with caplog.at_level("INFO", logger="delineate.serve"):
        taken_apart(server.segment(volume, "Mueller_Karl.nii.gz", prompt="liver", n=1))
        with server.client() as client:
            client.get(f"/monai/{ANN}/info/")
            client.get("/health")
        with server.client("wrong-0123456789abcdef") as client:
            client.get(f"/monai/wrong-{ANN}/info/")
        until = time.monotonic() + 60
        while len(caplog.records) < 4 and time.monotonic() < until:
            time.sleep(0.02)
    lines = [one.getMessage() for one in caplog.records]
    assert [line.split()[:4] for line in lines] == [
        ["event=request", "method=POST", "route=/api/segment", "status=200"],
        ["event=request", "method=GET", "route=/monai/info/", "status=200"],
        ["event=request", "method=GET", "route=/health", "status=200"],
        ["event=request", "method=GET", "route=-", "status=401"],
    ]
    assert "user=ann" in lines[0]
    assert all(word not in " ".join(lines) for word in (ANN, "Mueller", "liver"))


def test_a_body_that_comes_at_its_pace_but_for_ever_is_given_up(tmp_path, volume):
    with served(tmp_path, Limits(places=1, seconds=0.6)) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
            client.sendall(post(server.port, 1 << 20))
            started = time.monotonic()
            while server.service.places.taken or time.monotonic() - started < 0.3:
                assert time.monotonic() - started < 60
                with contextlib.suppress(OSError):
                    client.sendall(b"x" * 100)
                time.sleep(0.05)
        server.service.places.seconds = 60
        taken_apart(server.segment(volume, prompt="liver", n=1))


def test_a_full_disk_is_told_and_leaves_nothing(server, volume, monkeypatch):
    def full(source, target, size):
        target.write(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("delineate.serve.service.shutil.copyfileobj", full)
    reply = server.segment(volume, prompt="liver")
    monkeypatch.undo()
    assert "No space left on device" in refused(reply, 507)
