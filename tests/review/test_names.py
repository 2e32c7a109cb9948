"""Names and words hold nothing that is not seen, wherever they come from."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tests.review_world import Client, desk_for, write_volume

from delineate.review import schema
from delineate.storage.hidden import HIDDEN, hidden_in, without_hidden

SEEN = ["liver", "Leber, links", "κόλον", "肝臓", "печень", "كبد", "כבד", "T2 (core) #1", "µm² – 5 %", "🫁"]
UNSEEN = {
    "\x00": "U+0000",
    "\t": "U+0009",
    "\x1b": "U+001B",
    "\x7f": "U+007F",
    "\x85": "U+0085",
    "\xad": "U+00AD (soft hyphen)",
    "\u200b": "U+200B (zero width space)",
    "\u200f": "U+200F (right-to-left mark)",
    "\u2028": "U+2028 (line separator)",
    "\u2029": "U+2029 (paragraph separator)",
    "\u202e": "U+202E (right-to-left override)",
    "\u2066": "U+2066 (left-to-right isolate)",
    "\ufeff": "U+FEFF (zero width no-break space)",
    "\U000e0041": "U+E0041 (tag latin capital letter a)",
}
KINDS = {"Name": TypeAdapter(schema.Name), "Words": TypeAdapter(schema.Words)}


@pytest.mark.parametrize("text", SEEN)
@pytest.mark.parametrize("kind", KINDS)
def test_words_of_any_script_are_taken_as_they_are(kind, text):
    assert KINDS[kind].validate_python(text) == text
    assert hidden_in(text) is None
    assert without_hidden(text) == text


@pytest.mark.parametrize(("character", "told"), UNSEEN.items())
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_seen_is_refused_by_its_number(kind, character, told):
    with pytest.raises(ValidationError) as caught:
        KINDS[kind].validate_python(f"li{character}ver")
    assert caught.value.errors()[0]["msg"] == f"every character must be one that is seen, found {told}; leave it out"
    assert without_hidden(f"li{character}ver") == "li ver"


def test_every_character_of_these_kinds_is_found():
    for number in range(sys.maxunicode + 1):
        assert (hidden_in(chr(number)) is not None) == (unicodedata.category(chr(number)) in HIDDEN)


@given(st.text())
def test_what_is_cleaned_is_one_line_and_clean(text):
    cleaned = without_hidden(text)
    assert hidden_in(cleaned) is None
    assert len(cleaned.splitlines()) <= 1
    assert without_hidden(cleaned) == cleaned


def test_a_question_and_what_it_means_are_checked(tmp_path):
    desk = desk_for(write_volume(tmp_path / "v.nii.gz"), tmp_path / "work")
    ann = Client(desk)
    for reply in (ann.ask("li\u202ever"), ann.get(f"{ann.path}/meant", params={"prompt": "li\u202ever"})):
        assert reply.status_code == 422
        assert reply.json()["detail"].endswith(
            "prompt: every character must be one that is seen, found U+202E (right-to-left override); leave it out"
        )
    desk.close()


def test_half_a_character_is_refused(tmp_path):
    desk = desk_for(write_volume(tmp_path / "v.nii.gz"), tmp_path / "work")
    ann = Client(desk)
    body = rb'{"revision": 0, "action": {"kind": "add_layer", "name": "a\ud800b"}}'
    reply = ann.post(f"{ann.path}/actions", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 422
    assert "action.add_layer.name" in reply.json()["detail"]
    assert ann.work()["layers"] == []
    desk.close()


def test_an_answer_of_before_gives_a_layer_a_clean_name(tmp_path):
    """The words of a folder that somebody sent are not this server's to refuse."""
    desk = desk_for(write_volume(tmp_path / "v.nii.gz"), tmp_path / "work")
    ann = Client(desk)
    answer = ann.answered("liver")["id"]
    kept = desk.place("ann", "c0").answers[answer]
    kept.info.target, kept.info.prompt = None, "li\u202ever\nx"
    ann.act("pick", answer=answer).raise_for_status()
    assert ann.work()["layers"][0]["name"] == "li ver x"
    desk.close()
