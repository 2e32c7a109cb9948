import pytest

from delineate.errors import PromptError
from delineate.prompts.listing import listed
from delineate.prompts.vocabulary import Vocabulary

ORGANS = Vocabulary.from_names(["liver", "spleen", "left kidney", "right kidney", "portal and splenic vein"], "CT")


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        (["liver, spleen", "liver"], ("liver", "spleen")),
        (["liver,,kidneys, "], ("liver", "kidneys")),
        (["ALL", "all, liver"], ("all", "liver")),
        (["liver, flux capacitor"], ("liver, flux capacitor",)),  # one thing and what is said of it, to the rules
        (["pancreas, liver"], ("pancreas", "liver")),  # one is unknown: the other is answered all the same
        (["spleen, not enlarged"], ("spleen, not enlarged",)),
        (["portal, splenic vein"], ("portal, splenic vein",)),  # the vocabulary's own name
        (["flux, capacitor"], ("flux, capacitor",)),
        (["everything but the liver, spleen"], ("everything but the liver, spleen",)),
    ],
    ids=str,
)
def test_lists_are_taken_apart_where_that_changes_nothing(given, asked):
    assert listed(given, ORGANS) == asked


def test_what_is_no_prompt_is_refused():
    with pytest.raises(PromptError, match="200 characters"):
        listed([f"liver, {'x' * 300}"], ORGANS)


def test_many_names_may_be_longer_than_a_prompt():
    assert listed([", ".join(["liver", "spleen", "left kidney"] * 20)], ORGANS) == ("liver", "spleen", "left kidney")
