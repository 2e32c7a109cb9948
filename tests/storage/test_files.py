import hashlib
import json
import math
import re

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

from delineate.errors import ModelError
from delineate.storage.files import replacing, safe_name, sha256_of, write_json, write_text
from delineate.storage.weights import load_weights, save_weights


def test_what_was_written_takes_the_name_and_nothing_else_stays(tmp_path):
    with replacing(tmp_path / "deep" / "er" / "note.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "deep" / "er" / "note.txt").exists()
    assert (tmp_path / "deep" / "er" / "note.txt").read_text() == "new"
    assert [p.name for p in (tmp_path / "deep" / "er").iterdir()] == ["note.txt"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_no_other(tmp_path, error):
    path = tmp_path / "note.txt"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half of the ne")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_fails_its_check_never_takes_the_name(tmp_path):
    path = tmp_path / "scan.nii.gz"
    path.write_text("old")
    checked = []

    def check(temporary):
        checked.append(temporary.read_text())
        raise ValueError("not what was meant")

    with pytest.raises(ValueError, match="not what was meant"), replacing(path, check) as temporary:
        temporary.write_text("new")
    assert checked == ["new"]
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "suffix"), [("a.nii.gz", ".nii.gz"), ("a.png", ".png"), ("a", "")])
def test_the_temporary_name_keeps_the_suffixes_and_is_hidden_beside_the_file(tmp_path, name, suffix):
    with replacing(tmp_path / name) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(suffix)
        temporary.write_text("")


def test_text_is_utf_8(tmp_path):
    write_text(tmp_path / "note.txt", "ä")
    assert (tmp_path / "note.txt").read_bytes() == "ä".encode()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_refuses_numbers_that_json_does_not_have(tmp_path, value):
    path = tmp_path / "numbers.json"
    write_json(path, {"dice": 0.5})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"dice": [0.25, value]})
    assert json.loads(path.read_text()) == {"dice": 0.5}
    assert list(tmp_path.iterdir()) == [path]


def test_json_comes_back_as_it_was(tmp_path):
    value = {"names": ["Leber", "niere"], "dice": [0.1, 1e-9, None], "deep": {"n": 3}}
    write_json(tmp_path / "a.json", value)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == value
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")


def test_the_hash_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


@given(st.text())
@example("../../etc/passwd")
@example("..")
@example("/")
@example("a\x00b")
@example("C:\\Windows")
@example("Ǆ ß İ")
@example("")
def test_no_path_can_be_built_from_a_safe_name(text):
    name = safe_name(text)
    assert re.fullmatch(r"[a-z0-9_-]+", name)
    assert safe_name(name) == name


def test_a_safe_name_is_still_readable():
    assert safe_name("Left Kidney") == "left_kidney"
    assert safe_name("T2-weighted  lesion (core)") == "t2-weighted_lesion_core"
    assert safe_name("?!") == "unnamed"


def net(width=3):
    torch.manual_seed(width)
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width))


def test_weights_come_back_to_the_bit(tmp_path):
    one, two = net(), net()
    with torch.no_grad():
        for p in one.parameters():
            p.mul_(math.pi)
    save_weights(one, tmp_path / "w.safetensors")
    load_weights(two, tmp_path / "w.safetensors")
    for name, value in two.state_dict().items():
        assert torch.equal(value, one.state_dict()[name]), name


def test_half_precision_weights_are_widened(tmp_path):
    one, two = net().half(), net()
    save_weights(one, tmp_path / "w.safetensors")
    load_weights(two, tmp_path / "w.safetensors")
    assert two[0].weight.dtype == torch.float32
    assert torch.equal(two[0].weight, one[0].weight.float())


def test_weights_of_another_shape_damaged_or_missing_are_refused_with_the_file_named(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(net(4), path)
    with pytest.raises(
        ModelError, match=r"w\.safetensors: the weights do not fit this model: .*size mismatch"
    ) as caught:
        load_weights(net(3), path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="Missing key"):
        load_weights(nn.Sequential(*net(4), nn.Linear(2, 2)), path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"w\.safetensors"):
        load_weights(net(4), path)
    with pytest.raises(ModelError, match=r"absent\.safetensors"):
        load_weights(net(4), tmp_path / "absent.safetensors")
