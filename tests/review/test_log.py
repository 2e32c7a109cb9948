import errno
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delineate.review.log import Log, LogError, decode, encode

EVENTS = [
    ("add_layer", {"layer": "l1", "detail": {"new": {"name": "Leber – ünïcode\r\n\u2028", "colour": 0}}}),
    ("paint", {"layer": "l1", "detail": {"tool": "brush"}, "flips": "eJwDAAAAAAE="}),
    ("undo", {"of": 2}),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture
def path(tmp_path):
    log = Log(tmp_path / "review" / "ann" / "events.jsonl")
    for kind, rest in EVENTS:
        log.append(kind, **rest)
    log.close()
    return log.path


def events_in(path):
    log = Log(path)
    log.close()
    return log.events


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=4).map(lambda d: {"n": 1, **d}))
def test_an_event_is_one_line_that_gives_it_back(event):
    line = encode(event)
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert decode(line) == event
    assert json.loads(line) == {**event, "crc": json.loads(line)["crc"]}  # a reader of JSON lines can read it too


@given(st.binary(max_size=80))
def test_noise_is_no_event(noise):
    assert decode(noise) is None


def test_what_was_appended_is_there_when_it_is_opened_again(path):
    events = events_in(path)
    assert [(e["n"], e["kind"]) for e in events] == [(1, "add_layer"), (2, "paint"), (3, "undo")]
    assert events[1]["flips"] == EVENTS[1][1]["flips"]
    log = Log(path)
    log.append("redo", of=2)
    log.close()
    assert [e["n"] for e in events_in(path)] == [1, 2, 3, 4]


def test_a_last_line_cut_at_any_byte_is_dropped_and_the_log_goes_on(path):
    data = path.read_bytes()
    start = data.rstrip(b"\n").rindex(b"\n") + 1
    for cut in range(start, len(data) + 1):
        path.write_bytes(data[:cut])
        whole = cut >= len(data) - 1  # all but the end of the line
        log = Log(path)
        assert len(log.events) == (3 if whole else 2)
        log.append("redo", of=2)
        log.close()
        assert [e["kind"] for e in events_in(path)] == ["add_layer", "paint", *(["undo"] if whole else []), "redo"]
    torn = path.with_suffix(".torn").read_bytes()
    assert data[start:-2] in torn  # set aside, not deleted


def test_any_other_damage_is_refused_by_line(path):
    data = path.read_bytes()
    for place in range(0, data.rstrip(b"\n").rindex(b"\n"), 3):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(LogError, match=r"line \d is damaged, so what follows"):
            Log(path)
        assert len(path.read_bytes()) == len(data)  # and left alone


def test_a_line_that_is_missing_or_twice_there_is_noticed(path):
    lines = path.read_bytes().splitlines(keepends=True)
    for damaged in (lines[1:], [lines[0], lines[2]], [*lines, lines[2]], [lines[0], lines[0], lines[1]]):
        path.write_bytes(b"".join(damaged))
        with pytest.raises(LogError, match="is damaged"):
            Log(path)


def test_two_servers_cannot_open_one_log(path):
    log = Log(path)
    with pytest.raises(LogError, match="another `delineate review` has this case open"):
        Log(path)
    log.close()
    assert len(events_in(path)) == 3


def test_nothing_is_told_before_it_is_on_the_disk(path, monkeypatch):
    order = []
    flush = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (flush(handle), order.append(path.read_bytes().count(b"\n"))))
    log = Log(path)
    log.append("redo", of=2)
    log.close()
    assert order == [4]


def test_a_full_disk_leaves_the_log_as_it_was(path, monkeypatch):
    log = Log(path)
    before = path.read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.append("redo", of=2)
    assert path.read_bytes() == before
    assert log.append("redo", of=2)["n"] == 4
    log.close()
    assert [e["n"] for e in events_in(path)] == [1, 2, 3, 4]
