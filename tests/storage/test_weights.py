"""Weights come in whole and finite, and nothing larger than they are is built for them."""

import json
import threading
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from delineate.errors import ModelError
from delineate.networks import NETWORKS
from delineate.storage.weights import SPARE, building, load_weights, save_weights


@pytest.fixture
def layer():
    return nn.Linear(3, 2)


def refused(layer, path, match):
    with pytest.raises(ModelError, match=match) as caught:
        load_weights(layer, path)
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()


def test_what_was_saved_is_what_is_loaded(layer, tmp_path):
    save_weights(layer, tmp_path / "w.safetensors")
    other = nn.Linear(3, 2)
    load_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(other.weight, layer.weight)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_weights_that_are_not_finite_are_refused(number, kind, layer, tmp_path):
    weights = {name: value.detach().to(kind) for name, value in layer.state_dict().items()}
    weights["weight"] = weights["weight"].clone()
    weights["weight"][1, 2] = number
    save_file(weights, tmp_path / "w.safetensors")
    refused(layer, tmp_path / "w.safetensors", "weight 'weight' holds numbers that are not finite; copy the model")


def test_large_weights_that_are_finite_are_taken(layer, tmp_path):
    save_file({"weight": torch.full((2, 3), 3e38), "bias": torch.full((2,), -3e38)}, tmp_path / "w.safetensors")
    load_weights(layer, tmp_path / "w.safetensors")


@pytest.mark.parametrize(
    "weights",
    [
        {"weight": torch.zeros(2, 3)},
        {"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "more": torch.zeros(1)},
        {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)},
        {"weight": torch.zeros(2, 3, dtype=torch.int64), "bias": torch.zeros(2)},
        {},
    ],
)
def test_weights_of_something_else_are_refused(weights, layer, tmp_path):
    save_file(weights, tmp_path / "w.safetensors")
    refused(layer, tmp_path / "w.safetensors", "do not fit this model")


def header(told, size=None):
    text = json.dumps(told).encode() if isinstance(told, dict) else told
    return (len(text) if size is None else size).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00" * 8,
        header(b"{", 2**62),
        header(b"[" * 10_000),
        header({"weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}}) + b"\x00" * 8,
        header({"weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 2**50]}}),
        header({"weight": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}) + b"\x00" * 4,
        header({"weight": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}) + b"\x00" * 4,
    ],
)
def test_a_damaged_header_is_one_line(content, layer, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(content)
    refused(layer, tmp_path / "w.safetensors", "cannot be read")


def test_a_missing_file_is_one_line(layer, tmp_path):
    refused(layer, tmp_path / "w.safetensors", "cannot be read")


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Linear(10**6, 10**6),
        lambda: nn.Linear(10**9, 10**9),
        lambda: nn.Embedding(10**9, 10**3),
        lambda: NETWORKS["unet"].build(3, 2, ((8192, 8192, 8192), 2)),
        lambda: [nn.Linear(1000, 1000) for _ in range(10**9)],
    ],
)
def test_what_is_larger_than_its_weights_is_not_built(make, tmp_path):
    started = time.process_time()
    with pytest.raises(ModelError, match=r"weights than its files hold|cannot be loaded"), building(tmp_path):
        make()
    assert time.process_time() - started < 10


def test_as_many_weights_as_there_are_bytes_are_built_and_no_more(tmp_path):
    (tmp_path / "deep").mkdir()
    save_file({"a": torch.zeros(1000)}, tmp_path / "deep" / "a.safetensors")
    with building(tmp_path):
        nn.Linear(SPARE + 1000, 1)
    with (
        pytest.raises(ModelError, match="more weights than its files hold; look again"),
        building(tmp_path, "look again"),
    ):
        nn.Linear(SPARE + 10_000, 1)
    nn.Linear(SPARE + 10_000, 1)  # outside nothing is counted


def test_what_another_thread_builds_is_not_counted(tmp_path):
    made = []
    with building(tmp_path):
        thread = threading.Thread(target=lambda: made.append(nn.Linear(2 * SPARE, 1)))
        thread.start()
        thread.join()
    assert made
