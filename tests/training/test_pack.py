"""The pack of `recipes/pack.py`: what is read is what was written, pictures a little softer."""

import importlib
from pathlib import Path

import pytest
import torch

from delineate.data.dataset import open_dataset
from delineate.data.slices import build_slices
from delineate.training.judging import HeldOut

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def pack(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    return importlib.import_module("pack")


@pytest.fixture
def banks(phantom_dataset):
    dataset = open_dataset(phantom_dataset)
    bank = build_slices([dataset], "train", 64, apart_mm=8.0)
    return bank, HeldOut.of(build_slices([dataset], "val", 64, vocabulary=bank.vocabulary, apart_mm=8.0), most=4)


def test_what_is_read_is_what_was_written(pack, banks, tmp_path):
    bank, held_out = banks
    pack.write_pack(tmp_path / "one.npz", bank, held_out, mib=10)
    read, read_held_out = pack.read_pack(tmp_path / "one.npz")
    for before, after in ((bank, read), (held_out.bank, read_held_out.bank)):
        for name in ("labels", "dataset", "mirrored", "annotated", "foreign", "present", "shares", "case"):
            assert torch.equal(getattr(before, name), getattr(after, name)), name
        for name in ("vocabulary", "modalities", "apart_mm"):
            assert getattr(before, name) == getattr(after, name), name
        assert (before.images.float() - after.images.float()).abs().mean() < 3


def test_neighbours_are_found_where_they_are_slices(pack, banks):
    near = pack.neighbours(banks[0])
    assert (near >= 0).all()
    assert torch.equal(banks[0].images[:, 0], banks[0].images[near[:, 0], 1])
    assert (pack.neighbours(banks[1].bank) < 0).any()  # every second slice is missing there


def test_a_pack_that_would_be_too_large_is_not_written(pack, banks, tmp_path):
    with pytest.raises(SystemExit, match="leave a set out"):
        pack.write_pack(tmp_path / "one.npz", *banks, mib=0.001)
    assert not (tmp_path / "one.npz").exists()
