import json
import random
import shutil

import pytest
import torch
from torch import nn

from delineate.training import checkpoint
from delineate.training.checkpoint import checkpoints, load_checkpoint, new_state, save_checkpoint


def fresh(seed=0):
    """A small network with a buffer of integers, as batch norm has."""
    torch.manual_seed(seed)
    return new_state(nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 3)), seed=11)


def advance(state, images=8):
    """One step of training, by hand."""
    state.optimizer.param_groups[0]["lr"] = 0.01
    state.optimizer.zero_grad()
    x = torch.randn(images, 1, 8, 8, generator=torch.Generator().manual_seed(state.images_seen))
    state.module(x).square().mean().backward()
    state.optimizer.step()
    for name, value in state.module.state_dict().items():
        state.average[name] = (value + state.average[name]) / 2 if value.is_floating_point() else value.clone()
    state.images_seen += images
    state.seconds += 0.125
    state.log.append({"images": state.images_seen, "loss": 0.1})
    return state


def assert_same(one, two):
    assert (one.images_seen, one.seconds, one.seed, one.log) == (two.images_seen, two.seconds, two.seed, two.log)
    moments = [
        {f"{i}.{k}": v for i, entry in s.optimizer.state_dict()["state"].items() for k, v in entry.items()}
        for s in (one, two)
    ]
    for left, right in [(one.module.state_dict(), two.module.state_dict()), (one.average, two.average), moments]:
        assert left.keys() == right.keys()
        for name, value in left.items():
            assert torch.equal(value, right[name]), name
            assert value.dtype == right[name].dtype, name


@pytest.fixture
def two_saved(tmp_path):
    """A folder with checkpoints at 8 and 16 images, and the two states."""
    states = [advance(fresh()), advance(advance(fresh()))]
    for state in states:
        save_checkpoint(state, tmp_path)
    return tmp_path, states


def test_a_state_comes_back_to_the_bit_into_any_other(tmp_path):
    state = advance(advance(fresh()))
    save_checkpoint(state, tmp_path)
    other = fresh(seed=5)
    assert load_checkpoint(other, tmp_path) == "resumed from checkpoint-0000000016"
    assert_same(other, state)
    assert_same(advance(other), advance(state))


def test_a_state_before_its_first_step_can_be_saved(tmp_path):
    state, other = fresh(), fresh(seed=5)
    save_checkpoint(state, tmp_path)
    load_checkpoint(other, tmp_path)
    assert_same(other, state)


def test_where_nothing_is_saved_nothing_is_resumed(tmp_path):
    state = fresh()
    assert load_checkpoint(state, tmp_path) is None
    assert load_checkpoint(state, tmp_path / "absent") is None
    assert_same(state, fresh())


def test_a_checkpoint_does_not_change_when_training_goes_on(tmp_path):
    state = advance(fresh())
    save_checkpoint(state, tmp_path)
    advance(state)
    other = fresh()
    load_checkpoint(other, tmp_path)
    assert_same(other, advance(fresh()))


def test_only_the_last_two_are_kept(tmp_path):
    state = fresh()
    for _ in range(5):
        save_checkpoint(advance(state), tmp_path)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-0000000032", "checkpoint-0000000040"]


def test_the_same_state_can_be_saved_twice(two_saved):
    folder, (_, newest) = two_saved
    save_checkpoint(newest, folder)
    assert len(checkpoints(folder)) == 2
    other = fresh()
    load_checkpoint(other, folder)
    assert_same(other, newest)


def test_what_a_kill_left_half_written_is_no_checkpoint_and_is_cleared(two_saved):
    folder, (_, newest) = two_saved
    half = folder / ".writing-killed"
    shutil.copytree(folder / "checkpoint-0000000016", half)
    other = fresh()
    load_checkpoint(other, folder)
    assert_same(other, newest)
    save_checkpoint(advance(newest), folder)
    assert not half.exists()


NAMES = ["weights.safetensors", "average.safetensors", "optimizer.safetensors", "state.json"]


def assert_passed_over(folder, older):
    other = fresh(seed=5)
    said = load_checkpoint(other, folder)
    assert said == "resumed from checkpoint-0000000008; damaged and passed over: checkpoint-0000000016"
    assert_same(other, older)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.99])
def test_a_truncated_newest_checkpoint_is_passed_over(two_saved, name, keep):
    folder, (older, _) = two_saved
    path = folder / "checkpoint-0000000016" / name
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    assert_passed_over(folder, older)


@pytest.mark.parametrize("name", NAMES)
def test_a_newest_checkpoint_without_one_of_its_files_is_passed_over(two_saved, name):
    folder, (older, _) = two_saved
    (folder / "checkpoint-0000000016" / name).unlink()
    assert_passed_over(folder, older)


@pytest.mark.parametrize("name", NAMES)
def test_one_flipped_bit_in_the_newest_checkpoint_is_noticed(two_saved, name):
    folder, (older, newest) = two_saved
    path = folder / "checkpoint-0000000016" / name
    sound = path.read_bytes()
    draw = random.Random(name)
    for bit in draw.sample(range(8 * len(sound)), 25):
        broken = bytearray(sound)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        if name == "state.json" and _same_json(broken, sound):
            continue
        assert_passed_over(folder, older)
    path.write_bytes(sound)
    other = fresh()
    load_checkpoint(other, folder)
    assert_same(other, newest)


def _same_json(one, two):
    try:
        return json.loads(bytes(one)) == json.loads(two)
    except ValueError:
        return False


@pytest.mark.parametrize("number", ["images_seen", "seconds", "seed"])
def test_one_changed_number_in_the_newest_checkpoint_is_noticed(two_saved, number):
    folder, (older, _) = two_saved
    path = folder / "checkpoint-0000000016" / "state.json"
    numbers = json.loads(path.read_text())
    path.write_text(json.dumps({**numbers, number: numbers[number] + 1}))
    assert_passed_over(folder, older)


@pytest.mark.parametrize("text", ["null", "[]", '"a"', "{}", '{"sha256": {}}', '{"sha256": []}', "\x00"])
def test_a_state_file_of_another_kind_is_passed_over(two_saved, text):
    folder, (older, _) = two_saved
    (folder / "checkpoint-0000000016" / "state.json").write_text(text)
    assert_passed_over(folder, older)


def test_where_every_checkpoint_is_damaged_nothing_is_resumed(two_saved):
    folder, _ = two_saved
    for path in checkpoints(folder):
        (path / "weights.safetensors").write_bytes(b"")
    state = fresh()
    assert load_checkpoint(state, folder) is None
    assert_same(state, fresh())


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_crash_while_writing_leaves_the_older_checkpoints_and_nothing_else(two_saved, monkeypatch, call):
    folder, (_, newest) = two_saved
    calls = []

    def failing(tensors, path):
        calls.append(path)
        if len(calls) == call:
            path.write_bytes(b"half")
            raise OSError("disk full")
        return save_file(tensors, path)

    save_file = checkpoint.save_file
    monkeypatch.setattr(checkpoint, "save_file", failing)
    later = advance(advance(advance(fresh())))
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(later, folder)
    assert len(calls) == call
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-0000000008", "checkpoint-0000000016"]
    other = fresh()
    load_checkpoint(other, folder)
    assert_same(other, newest)


def test_a_number_that_json_does_not_have_leaves_the_older_checkpoints_and_nothing_else(two_saved):
    folder, _ = two_saved
    later = advance(advance(advance(fresh())))
    later.log.append({"loss": float("nan")})
    with pytest.raises(ValueError, match="JSON compliant"):
        save_checkpoint(later, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-0000000008", "checkpoint-0000000016"]
