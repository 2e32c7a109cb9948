"""The reader of phrases: what it tells apart, what it does not believe, how it is kept."""

import numpy as np
import pytest

from delineate.prompts.reader import Reader, house_reader, pieces
from delineate.prompts.understanding import BELIEVED_FROM

MIB = 2**20


def meant(text, own=()):
    best = house_reader().read(text, own)[0]
    return best.thing.name, best.thing.kind


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("organ that stores bile", "gallbladder"),
        ("the main artery of the belly", "aorta"),
        ("hepatic parenchyma", "liver"),
        ("pancraes", "pancreas"),
        ("filter of the blood on the right side, making urine", "right kidney"),
    ],
)
def test_it_reads_what_nobody_listed(text, name):
    assert meant(text) == (name, "concept")


@pytest.mark.parametrize(
    "text",
    ["splenic artery", "femur", "spinal cord", "brain", "banana", "liver sausage", "heart-warming", "xkcd qwpzt"],
)
def test_what_lies_near_in_words_or_in_the_body_is_no_concept(text):
    best = house_reader().read(text)[0]
    assert best.thing.kind == "other" or best.share < BELIEVED_FROM


def test_shares_are_of_all_that_is_known_and_names_of_a_model_can_be_added():
    readings = house_reader().read("liver")
    assert readings == sorted(readings, key=lambda one: -one.share)
    assert 0.9 < sum(one.share for one in readings) <= 1 + 1e-5
    assert meant("the left clavicula", ["left clavicula"]) == ("left clavicula", "concept")
    assert all(one.thing.name != "left clavicula" for one in house_reader().read("the left clavicula"))


def test_nothing_is_read_where_there_are_no_words():
    assert house_reader().read("?!, ...") == []
    assert not house_reader().vector("").any()


def test_a_vector_has_length_1_and_case_accents_and_punctuation_do_not_count():
    reader = house_reader()
    assert np.linalg.norm(reader.vector("liver")) == pytest.approx(1, abs=1e-5)
    assert np.array_equal(reader.vector("Lívér!"), reader.vector("liver"))
    assert np.array_equal(reader.vector("word " * 100), reader.vector("word " * 24))


def test_pieces_are_the_same_on_every_machine():
    """By CRC-32, not by Python's own hash, which differs from process to process."""
    assert pieces("liver", 1000)[0] == 497
    assert len(pieces("liver", 1000)) == 1 + 5 + 4 + 3


def test_what_ships_is_small():
    from importlib.resources import files

    folder = files("delineate") / "prompts" / "words"
    assert sum(len(one.read_bytes()) for one in folder.iterdir()) < 12 * MIB


def test_it_is_read_from_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError):
        Reader.load(tmp_path)
