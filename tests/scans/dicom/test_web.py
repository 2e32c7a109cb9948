"""DICOMweb against a small PACS: a series out, objects in, and what goes wrong, in one line and without a trace of a password."""

import logging
import ssl
import subprocess

import numpy as np
import pytest
from tests.dicom_series import answer_here, dataset, write_series
from tests.pacs import a_pacs

from delineate.scans.dicom import objects, series, web
from delineate.scans.dicom.regions import read_regions
from delineate.scans.dicom.rtstruct import write_rtstruct
from delineate.scans.dicom.series import read_series
from delineate.scans.dicom.web import LOGIN, TOKEN, Address, WebError, checked, fetch, parts_of, store

STUDY, SERIES = "1.2.826.0.1.3680043.8.498.1", "1.2.826.0.1.3680043.8.498.2"
SECRET = "geheim-7"


@pytest.fixture(autouse=True)
def here(monkeypatch):
    from delineate.scans.dicom import regions

    for module in (series, objects, regions):
        monkeypatch.setattr(module, "ask_child", answer_here)
    monkeypatch.setenv(TOKEN, SECRET)


@pytest.fixture
def pacs():
    with a_pacs() as one:
        yield one


@pytest.fixture
def paths(tmp_path):
    return write_series(tmp_path / "s", np.random.default_rng(0).integers(0, 99, (4, 8, 9)).astype(np.int16))


@pytest.fixture
def address(pacs, paths):
    assert store(pacs.url, paths) == 4
    return Address.of(f"{pacs.url}/studies/{STUDY}/series/{SERIES}")


def refusal(do, *words):
    with pytest.raises(WebError) as caught:
        do()
    text = str(caught.value)
    assert "\n" not in text
    assert SECRET not in text
    for word in words:
        assert word in text, text


def test_a_series_comes_byte_by_byte_as_it_was_stored(tmp_path, paths, pacs, address):
    folder = fetch(address, tmp_path / "got")
    assert folder == tmp_path / "got" / SERIES
    assert {p.read_bytes() for p in folder.iterdir()} == {data for _, data in pacs.held.values()}
    there, back = read_series(tmp_path / "s"), read_series(folder)
    assert np.array_equal(there.voxels, back.voxels)
    assert np.array_equal(there.affine, back.affine)


def test_contours_go_in_and_come_out_on_the_scan_that_came_out(tmp_path, pacs, address):
    scan = read_series(fetch(address, tmp_path / "got"))
    mask = np.zeros(scan.shape, bool)
    mask[1:3, 2:6, 3:7] = True
    path = write_rtstruct(tmp_path / "rt.dcm", {"liver": mask}, scan, algorithm="t")
    assert store(pacs.url, [path]) == 1
    (stored,) = [told.SeriesInstanceUID for told, _ in pacs.of(STUDY) if told.Modality == "RTSTRUCT"]
    (back,) = fetch(Address(pacs.url, STUDY, stored), tmp_path / "back").iterdir()
    assert np.array_equal(read_regions(back, scan).regions[0].mask(), mask)


def test_a_study_is_its_series_of_images(tmp_path, pacs, address):
    report = dataset("SR", SeriesInstanceUID="1.2.3")
    report.save_as(tmp_path / "sr.dcm")
    store(pacs.url, [tmp_path / "sr.dcm"])
    folder = fetch(Address(pacs.url, STUDY), tmp_path / "got")
    assert [p.name for p in folder.iterdir()] == [SERIES]
    refusal(lambda: fetch(Address(pacs.url, "1.2.9"), tmp_path / "none"), "no series of images in study 1.2.9")


def test_the_token_goes_in_a_header_and_nowhere_else(pacs, paths, caplog, monkeypatch):
    caplog.set_level(logging.DEBUG)
    store(pacs.url, paths[:1])
    assert pacs.asked[-1][1]["Authorization"] == f"Bearer {SECRET}"
    assert SECRET not in pacs.asked[-1][0]
    assert SECRET not in caplog.text
    monkeypatch.delenv(TOKEN)
    monkeypatch.setenv(LOGIN, "doc:a:b")
    store(pacs.url, paths[:1])
    assert pacs.asked[-1][1]["Authorization"] == "Basic ZG9jOmE6Yg=="
    monkeypatch.delenv(LOGIN)
    store(pacs.url, paths[:1])
    assert "Authorization" not in pacs.asked[-1][1]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"code": 401}, ("HTTP 401", f"set {TOKEN} or {LOGIN}")),
        ({"code": 404}, ("HTTP 404", "check the address")),
        ({"code": 302, "headers": {"Location": "http://127.0.0.1:1/"}}, ("redirects elsewhere",)),
        ({"cut": 2000}, ("the answer was cut off",)),
        ({"missing": 2}, ("has 6 instances, but 4 came",)),
        ({"body": b"<html>"}, ("something else than DICOMweb",)),
        ({"body": b"[[1]]"}, ("something else than DICOMweb",)),
        ({"body": b"[]", "kind": "text/html"}, ("answers with multipart/related, this one with 'text/html'",)),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(tmp_path, pacs, address, wrong, words):
    pacs.wrong = wrong
    refusal(lambda: fetch(address, tmp_path / "got"), pacs.url, *words)
    assert not (tmp_path / "got" / SERIES).exists()


def test_an_older_copy_stays_where_the_newer_is_cut_off(tmp_path, pacs, address):
    fetch(address, tmp_path / "got")
    pacs.wrong = {"cut": 2000}
    refusal(lambda: fetch(address, tmp_path / "got"), "cut off")
    assert len(list((tmp_path / "got" / SERIES).iterdir())) == 4


def test_a_busy_pacs_is_asked_again(tmp_path, pacs, address, monkeypatch):
    monkeypatch.setattr(web, "TRIES", 1)
    pacs.wrong, before = {"code": 503}, len(pacs.asked)
    refusal(lambda: fetch(address, tmp_path / "got"), "HTTP 503")
    assert len(pacs.asked) == before + 2


@pytest.mark.parametrize(("limit", "value"), [("MOST_BYTES", 1000), ("MOST_INSTANCES", 2), ("LONGEST_S", 0.0)])
def test_more_than_is_fetched_is_refused(tmp_path, pacs, address, monkeypatch, limit, value):
    monkeypatch.setattr(web, limit, value)
    refusal(lambda: fetch(address, tmp_path / "got"), "is more than is fetched")


def test_what_a_pacs_does_not_take_is_told_and_kept(pacs, paths):
    pacs.wrong = {"refuse": True}
    refusal(lambda: store(pacs.url, paths), "does not take 000.dcm (reason 0x0110 of PS3.4, after 0 others)")
    assert paths[0].exists()


def test_nobody_there(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "TRIES", 0)
    refusal(lambda: fetch(Address("http://127.0.0.1:1/web", "1.2"), tmp_path), "cannot be asked", "refused")


def test_a_certificate_of_nobody_is_not_trusted(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "TRIES", 0)
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    made += ["-subj", "/CN=127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(made, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with a_pacs(context) as pacs:
        refusal(
            lambda: fetch(Address(pacs.url, "1.2"), tmp_path / "got"),
            "certificate is not trusted",
            "REQUESTS_CA_BUNDLE",
        )
        assert pacs.asked == []


def test_addresses(monkeypatch):
    monkeypatch.delenv(TOKEN)
    asked = "http://pacs:8042/dicom-web/studies/1.2.3/series/4.5"
    assert Address.of(asked) == Address("http://pacs:8042/dicom-web", "1.2.3", "4.5")
    assert Address.of("folder/scan.nii.gz") is None
    assert Address.of("http/x") is None
    refusal(lambda: Address.of("https://pacs/dicom-web"), "names a study or a series")
    refusal(lambda: Address.of("https://pacs/studies/../x"), "names a study or a series")
    refusal(lambda: Address.of(f"https://pacs/studies/{'1' * 65}"), "at most 64")
    refusal(lambda: Address.of(f"https://doc:{SECRET}@pacs/studies/1.2"), "may hold no password", LOGIN)
    refusal(lambda: checked("ftp://pacs"), "an address such as")
    refusal(lambda: checked("https://pacs:99999"), "an address such as")
    monkeypatch.setenv(TOKEN, SECRET)
    refusal(lambda: checked("http://pacs/dicom-web"), "would go over an open network")
    assert checked("http://localhost:8042/x/") == "http://localhost:8042/x"


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_parts_are_the_same_however_the_message_is_cut(size):
    parts = [b"one\r\n--b no", b"", b"\r\n\r\nthree" * 9]
    body = (
        b"preamble\r\n" + b"".join(b"--bx\r\nContent-Type: a\r\n\r\n" + p + b"\r\n" for p in parts) + b"--bx--\r\nafter"
    )
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    found = []
    for piece in parts_of("x", 'multipart/related; boundary="bx"', pieces):
        if piece is None:
            found.append(b"")
        else:
            found[-1] += piece
    assert found == parts


def test_a_part_that_begins_without_end_is_refused():
    pieces = [b"--b\r\nA: " + b"x" * (1 << 17)] * 3
    refusal(lambda: list(parts_of("x", "multipart/related; boundary=b", pieces)), "begins without end")
