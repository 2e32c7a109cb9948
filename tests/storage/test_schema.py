"""JSON of strangers: what comes in is right, or one line says what is wrong with which field of which file."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
from annotated_types import Interval

from delineate.errors import DatasetError, ModelError
from delineate.storage.schema import MOST_DEPTH, Count, Name, Sha256, Widths, checked, read_json


@dataclass(frozen=True)
class Inner:
    widths: Widths
    half: Annotated[float, Interval(ge=0, le=1)] = 0.5


@dataclass(frozen=True)
class Outer:
    name: Name
    inner: Inner
    count: Count | None = None
    sums: tuple[Sha256, ...] = ()

    def __post_init__(self):
        if self.name == "nobody":
            raise ValueError("name must be somebody's")


GOOD = {"name": "liver", "inner": {"widths": [8, 16]}}


def refused(path, content, match, shape=Outer, **how):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(how.get("error", ModelError), match=match) as caught:
        read_json(path, shape, **how)
    told = str(caught.value)
    assert told.startswith(f"{path}: ")
    assert told.endswith(how.get("fix", "copy the model again"))
    assert told.isprintable()
    assert len(told) < len(str(path)) + 400


@pytest.fixture
def file(tmp_path):
    return tmp_path / "config.json"


def test_what_is_right_comes_back_as_its_type(file):
    file.write_text(json.dumps({**GOOD, "count": 3, "more": [1]}))
    assert read_json(file, Outer) == Outer("liver", Inner((8, 16)), 3)
    assert read_json(file) == {**GOOD, "count": 3, "more": [1]}


def test_a_byte_order_mark_and_letters_of_any_script_do_no_harm(file):
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({**GOOD, "name": "Größe [/red] 肝臓"}, ensure_ascii=False).encode())
    assert read_json(file, Outer).name == "Größe [/red] 肝臓"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON .*line 1 column 2"),
        (b"\xff\xfe{}", "not JSON .not UTF-8 at byte 0"),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8 at byte 7"),
        (b"[" * 100_000, "nested too deeply"),
        ("[" * (MOST_DEPTH + 1) + "]" * (MOST_DEPTH + 1), "nested too deeply"),
        ('{"a":' * 5_000 + "1" + "}" * 5_000, "nested too deeply"),
        ('{"name": NaN}', "NaN is no number"),
        ('{"name": -Infinity}', "-Infinity is no number"),
        ('{"name": 1e999}', "1e999 is too large"),
        (f'{{"name": {"9" * 10_000}}}', "999999999999… is too large"),
        (f'{{"name": {2**64}}}', "184467440737… is too large"),
        ('{"name": "a", "name": "b"}', '"name" stands there twice'),
        (r'{"name": "\ud800"}', r"half a character.*ud800"),
        (r'{"\udfff": 1}', "half a character"),
        (r'{"name": "\u001b[31mred"}', "control character in .*u001b"),
        (r'{"deep": [[{"a": "\u009b"}]]}', "control character"),
    ],
)
def test_text_that_is_no_json_is_one_line(file, content, match):
    refused(file, content, match)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"inner": {"widths": [8, 16, 10**9]}}, r"field 'inner\.widths\.2': must be at most 8192, got 1000000000;"),
        ({"inner": {"widths": [8, -1]}}, r"'inner\.widths\.1': must be at least 1, got -1"),
        ({"inner": {"widths": []}}, r"'inner\.widths': must have at least 1 entries .*got a list of 0"),
        ({"inner": {"widths": 8}}, r"'inner\.widths': must be a list, got 8"),
        ({"inner": {"widths": [8.0]}}, r"'inner\.widths\.0': must be a valid integer, got 8\.0"),
        ({"inner": {"widths": ["8"]}}, 'must be a valid integer, got "8"'),
        ({"inner": {"widths": [True]}}, "must be a valid integer, got true"),
        ({"inner": {"widths": [8], "half": 1e308}}, r"'inner\.half': must be at most 1, got 1e\+308"),
        ({"inner": {"widths": [8], "half": "0.5"}}, r"'inner\.half': must be a valid number"),
        ({"inner": {}}, r"'inner\.widths': is missing"),
        ({"inner": None}, "'inner': must be an object, got null"),
        ({"inner": [1]}, "'inner': must be an object, got a list of 1"),
        ({"name": ""}, "'name': must have at least 1 entries or characters"),
        ({"name": "x" * 201}, "'name': must have at most 200 entries or characters, got \"xxx.*…"),
        ({"name": "two\nlines"}, "'name': must be one line"),
        ({"name": "nobody"}, "name must be somebody's"),
        ({"count": -1}, "'count': must be at least 0"),
        ({"sums": ["0" * 63]}, r"'sums\.0': must be a SHA-256"),
    ],
)
def test_every_fault_of_a_field_names_it(file, change, match):
    refused(file, json.dumps(GOOD | change), match)


@pytest.mark.parametrize("value", [None, 1, "x", [], True])
def test_something_else_than_an_object_is_told(file, value):
    refused(file, json.dumps(value), "must be an object, got")


def test_fields_that_nobody_knows_are_refused_where_that_is_asked(file):
    file.write_text(json.dumps(GOOD | {"more": 1}))
    read_json(file, Outer)
    refused(file, json.dumps(GOOD | {"more": 1}), "'more': is not known here", exact=True)


def test_the_size_is_looked_at_before_anything_is_read_into_memory(file):
    refused(file, b" " * 101, "larger than 100 bytes", most_bytes=100)
    refused(file, b"{}" + b" " * 98, "'name': is missing", most_bytes=100)


def test_what_is_no_file_is_one_line(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DatasetError, match=r"there is no such file; look again$"):
            read_json(path, error=DatasetError, fix="look again")


def test_a_part_of_a_file_is_told_from_the_top(tmp_path):
    with pytest.raises(ModelError, match=r"a\.json: field 'system_config\.inner\.half': must be at least 0, got -1"):
        checked({"name": "a", "inner": {"widths": [1], "half": -1}}, Outer, tmp_path / "a.json", below="system_config")


KNOWN = {  # what else parses JSON: its own words of a moment ago, or with checks of its own
    "delineate/cli/completing.py",
    "delineate/foundation/text.py",
    "delineate/jobs/preview.py",
    "delineate/jobs/processes.py",
    "delineate/jobs/segment.py",
    "delineate/jobs/study.py",
    "delineate/jobs/watch.py",
    "delineate/jobs/worker.py",
    "delineate/review/cases.py",
    "delineate/review/log.py",
    "delineate/scans/dicom/child.py",
    "delineate/storage/schema.py",
}


def test_all_json_comes_in_by_this_door():
    source = Path(__file__).resolve().parents[2] / "src"
    found = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.loads", "json.load")
    }
    assert found <= KNOWN
