"""Prompts as people list them for a command: several with commas between them, or all that a model learnt."""

from collections.abc import Iterable

from delineate.prompts.prompt import LONGEST_PROMPT, Prompt
from delineate.prompts.understanding import understood
from delineate.prompts.vocabulary import Vocabulary

ALL = "all"


def asks_all(text: str, vocabulary: Vocabulary) -> bool:
    """Whether a prompt asks for all that was learnt for the scan at hand; a target may be called "all", too.

    >>> asks_all(" All", Vocabulary.from_names(["liver"])), asks_all("all", Vocabulary.from_names(["ALL"]))
    (True, False)
    """
    return text.strip().lower() == ALL and vocabulary.match(text).concept is None


def listed(texts: Iterable[str], vocabulary: Vocabulary, modality: str | None = None) -> tuple[str, ...]:
    """The prompts in `texts`, each once: lists apart at their commas, what asks for all as `ALL`.

    What means another thing with its comma than its pieces do, or is known with it alone, stays whole.

    >>> organs = Vocabulary.from_names(["liver", "spleen", "small bowel"], "CT")
    >>> listed(["liver, spleen", "bowel, small", "All", "liver"], organs)
    ('liver', 'spleen', 'bowel, small', 'all')

    Raises:
        PromptError: a name in a list is too long.
    """
    found = [ALL if asks_all(one, vocabulary) else one for text in texts for one in _apart(text, vocabulary, modality)]
    return tuple(dict.fromkeys(found))


def _apart(text: str, vocabulary: Vocabulary, modality: str | None) -> list[str]:
    pieces = [piece.strip() for piece in text.split(",") if piece.strip()]
    if len(pieces) < 2:
        return [text]
    if any(asks_all(piece, vocabulary) for piece in pieces):
        return pieces
    each = [understood(Prompt(piece).text, vocabulary, modality) for piece in pieces]
    names, known = [name for one in each for name in one.targets], [bool(one.targets or one.by_scan) for one in each]
    whole = understood(text, vocabulary, modality).targets if len(text) <= LONGEST_PROMPT else ()
    same = len(names) == len(whole) and set(names) == set(whole)  # "bowel, small" names one thing twice
    if whole and not (all(known) and same):
        return [text]
    return pieces if any(known) else [text]
