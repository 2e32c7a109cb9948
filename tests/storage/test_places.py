import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delineate.storage.hidden import hidden_in
from delineate.storage.places import case_folder_name, keep_of_people, place_for, read_case, scans_of

ODD = [
    "",
    ".",
    "..",
    "../x",
    "a/b",
    "run.json",
    "RUN.JSON",
    "run-3-of-16.json",
    "case.json",
    "review",
    "CON",
    "nul.txt",
]


@given(st.text(st.characters(codec=None), max_size=300))
def test_any_text_becomes_the_name_of_one_folder(text):
    name = case_folder_name(text)
    assert name
    assert "/" not in name
    assert not name.startswith(".")
    assert len(name.encode()) <= 100
    assert hidden_in(name) is None
    assert case_folder_name(name) == name


@pytest.mark.parametrize("text", [*ODD, "a\nb", "\x1b[31m", "\u202eabc", "\ud800", "x" * 500, "肝" * 100])
def test_names_that_do_harm_are_made_harmless(tmp_path, text):
    name = case_folder_name(text)
    folder = tmp_path / name
    folder.mkdir()
    assert folder.parent == tmp_path
    assert name.casefold() not in {one.casefold() for one in ODD}


def test_long_names_stay_apart():
    assert case_folder_name("x" * 500 + "1") != case_folder_name("x" * 500 + "2")


def test_usual_names_stay_as_they_are():
    for name in ("Patient 7 (T2)", "sub-01_ses-02_T1w", "Ärzte", "1.2.840.113", "run", "reviewed", "case"):
        assert case_folder_name(name) == name


def record(folder, sha256, **more):
    folder.mkdir(parents=True, exist_ok=True)
    told = {"case": "a", "file": "a.png", "sha256": sha256, "written": {}, "targets": []}
    (folder / "case.json").write_text(json.dumps(told | more))


def test_a_place_is_a_scan_s_own(tmp_path):
    assert place_for(tmp_path, "a", "12345678ff") == tmp_path / "a"
    record(tmp_path / "a", "12345678ff")
    assert place_for(tmp_path, "a", "12345678ff") == tmp_path / "a"
    assert place_for(tmp_path, "a", "87654321ff") == tmp_path / "a-87654321"


def test_a_review_says_whose_it_is_where_the_record_of_the_case_is_damaged(tmp_path):
    record(tmp_path / "a", "1" * 64)
    (tmp_path / "a" / "case.json").write_text("")
    assert place_for(tmp_path, "a", "2" * 64) == tmp_path / "a"
    (tmp_path / "a" / "review" / "anna").mkdir(parents=True)
    (tmp_path / "a" / "review" / "anna" / "scan.json").write_text(json.dumps({"sha256": "1" * 64}))
    assert list(scans_of(tmp_path / "a")) == ["1" * 64]
    assert place_for(tmp_path, "a", "2" * 64) == tmp_path / "a-22222222"
    assert place_for(tmp_path, "a", "1" * 64) == tmp_path / "a"


@pytest.mark.parametrize("written", [None, [], {"../x": "0"}, {"/x": "0"}, {"x": 1}, {"a/b": "0"}])
def test_records_that_lead_elsewhere_are_none(tmp_path, written):
    record(tmp_path / "a", "1", written=written)
    assert read_case(tmp_path / "a") is None
    assert keep_of_people(tmp_path / "a") == {}


def test_hidden_files_of_people_are_kept_too(tmp_path):
    record(tmp_path / "a", "1")
    for name in (".workspace", ".whole", ".writing-x.png", "notes"):
        (tmp_path / "a" / name).write_text("mine")
    assert keep_of_people(tmp_path / "a") == {".workspace": ".workspace", "notes": "notes"}
