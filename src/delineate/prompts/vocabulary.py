"""What a model can be asked, and what a prompt means to it.

Matching never guesses. The longest phrases of the vocabulary are looked for, in any word order. One concept
must be found, and nothing may stand beside it that could make another target of it: a side, a part ("liver
vein"), a negation, an unknown word that touches it. Otherwise the answer is "unknown", with the nearest names.
The rules are in `delineate.prompts.matching`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len

from delineate.errors import DatasetError, PromptError
from delineate.prompts.concept import Concept
from delineate.prompts.matching import (
    Phrases,
    Span,
    aliased,
    changes_the_target,
    context_of,
    key_of,
    mended,
    nearest_names,
    plain_words,
    raw_words,
    spans_in,
    structures,
    tidy,
    without_own_region,
)
from delineate.storage.schema import checked

MOST_CONCEPTS = 2000  # in a file: the largest anatomies that are labelled have some hundreds
NEAREST = 5  # names offered for an unknown prompt


def canonical_name(label: str) -> str:
    """The anatomy table's name for a dataset's label, or the label itself, tidied, where the table has none.

    >>> canonical_name("kidney_right"), canonical_name("Postcava"), canonical_name("Foo_bar")
    ('right kidney', 'inferior vena cava', 'foo bar')
    """
    known = structures().get(key_of(label))
    return known.name if known else tidy(label)


@dataclass(frozen=True)
class Match:
    """What a prompt means: a concept, or None and the nearest names."""

    concept: Concept | None
    nearest: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """The targets a model or a dataset knows, in order. No phrase may name two of them (`DatasetError`)."""

    concepts: Annotated[tuple[Concept, ...], Len(1, MOST_CONCEPTS)]

    def __post_init__(self):
        object.__setattr__(self, "concepts", tuple(self.concepts))
        learnt = {concept.name for concept in self.concepts if not concept.parts}
        for concept in self.concepts:
            if odd := [part for part in concept.parts if part not in learnt]:
                raise DatasetError(f"'{concept.name}' is made of '{odd[0]}', which is not learnt. Correct its parts.")
        _ = self._phrases  # refuses clashes now

    @classmethod
    def from_names(cls, names: Iterable[str], modality: str | None = None) -> "Vocabulary":
        """The vocabulary of a dataset's labels, in their order, by the anatomy table's names and synonyms.

        Raises `DatasetError` if two labels mean the same.

        >>> Vocabulary.from_names(["Right_Kidney", "liver"], "CT").names
        ('right kidney', 'liver')
        """
        concepts = []
        for label in names:
            known = structures().get(key_of(label))
            concepts.append(
                Concept(
                    known.name if known else tidy(label),
                    known.synonyms if known else (),
                    (modality,) if modality else (),
                )
            )
        return cls(tuple(concepts))

    @cached_property
    def _phrases(self) -> Phrases:
        phrases: dict[frozenset[str], tuple[Concept, bool]] = {}
        names: set[str] = set()
        for concept in self.concepts:
            if not key_of(concept.name):
                raise DatasetError(f"a target must have a name of letters or digits; got '{concept.name}'. Rename it.")
            if concept.name in names:
                raise DatasetError(f"'{concept.name}' is in the vocabulary twice. Merge the two labels or rename one.")
            names.add(concept.name)
            for phrase in (concept.name, *concept.synonyms):
                key = key_of(phrase)
                if not key:
                    raise DatasetError(f"a synonym must have letters or digits; '{concept.name}' has '{phrase}'.")
                other, joined = phrases.get(key, (concept, False))
                if other.name != concept.name:
                    raise DatasetError(
                        f"'{phrase}' would name both '{other.name}' and '{concept.name}'. "
                        "Rename one of them, or drop that synonym."
                    )
                phrases[key] = concept, joined or "/" in phrase or "and" in plain_words(phrase)
        return phrases

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset().union(*self._phrases)

    @property
    def names(self) -> tuple[str, ...]:
        """The canonical names, in order."""
        return tuple(concept.name for concept in self.concepts)

    @property
    def learnt(self) -> "Vocabulary":
        """What is learnt itself: all but what is made of parts."""
        return Vocabulary(tuple(concept for concept in self.concepts if not concept.parts))

    @property
    def regions(self) -> tuple[Concept, ...]:
        """What is made of parts."""
        return tuple(concept for concept in self.concepts if concept.parts)

    def with_regions(self, regions: Iterable[Concept]) -> "Vocabulary":
        """This one with further concepts that are made of its names."""
        return Vocabulary((*self.concepts, *regions))

    def index(self, name: str) -> int:
        """The place of a canonical name. Raises `PromptError` if it is not here."""
        if name not in self.names:
            match = self.match(name)
            nearest = (match.concept.name,) if match.concept else match.nearest
            raise PromptError(unknown_prompt_message(name, nearest))
        return self.names.index(name)

    def merged(self, other: "Vocabulary") -> "Vocabulary":
        """Both vocabularies as one: a concept of the same name gets the synonyms and modalities of both.

        Raises `DatasetError` if a phrase of one names another concept of the other.
        """
        merged = {concept.name: concept for concept in self.concepts}
        for new in other.concepts:
            old = merged.get(new.name, new)
            merged[new.name] = Concept(
                new.name,
                tuple(dict.fromkeys(old.synonyms + new.synonyms)),
                tuple(dict.fromkeys(old.modalities + new.modalities)),
                old.parts or new.parts,
            )
        return Vocabulary(tuple(merged.values()))

    def match(self, text: str) -> Match:
        """The one concept that `text` names, or None with up to 5 nearest names, those found in it first.

        >>> vocabulary = Vocabulary.from_names(["liver", "kidney_left", "kidney_right"], "CT")
        >>> vocabulary.match("please outline the hepatic region").concept.name
        'liver'
        >>> vocabulary.match("kidney")
        Match(concept=None, nearest=('left kidney', 'right kidney'))
        """
        words = self.words(text)
        spans, context = self._targets(words)
        found = tuple(dict.fromkeys(span.concept.name for span in spans))
        if len(found) == 1:
            plain = without_own_region(words, spans, self._phrases)
            if plain != words:
                spans, context = self._targets(plain)
            if not changes_the_target(plain, spans, context):
                return Match(spans[0].concept)
        near = dict.fromkeys((*found, *nearest_names(words, self._phrases)))
        return Match(None, tuple(near)[:NEAREST])

    def words(self, text: str) -> list[str]:
        """The words of `text` in the one form in which names are compared, slips of the pen mended."""
        return aliased(mended(word, self._words) for word in raw_words(text))

    def named(self, text: str) -> tuple[tuple[str, ...], list[str]]:
        """The names that stand somewhere in `text`, and the words beside them, in plain form; it need not ask for them.

        >>> Vocabulary.from_names(["liver"]).named("hepatic dome, please")
        (('liver',), ['dome', 'please'])
        """
        words = self.words(text)
        spans = spans_in(words, self._phrases)
        inside = {i for span in spans for i in range(span.start, span.stop)}
        found = dict.fromkeys(span.concept.name for span in spans)
        return tuple(found), [word for i, word in enumerate(words) if i not in inside]

    def _targets(self, words: Sequence[str]) -> tuple[list[Span], set[int]]:
        """What is named, and the places of the words that only say what the image is."""
        spans, context = spans_in(words, self._phrases), context_of(words)
        outside = [span for span in spans if not context.issuperset(range(span.start, span.stop))]
        return (outside, context) if outside else (spans, set())

    def to_json(self) -> dict[str, Any]:
        """The vocabulary as plain JSON values."""
        return {
            "concepts": [
                {"name": c.name, "synonyms": list(c.synonyms), "modalities": list(c.modalities)}
                | ({"parts": list(c.parts)} if c.parts else {})
                for c in self.concepts
            ]
        }

    @classmethod
    def from_json(cls, value: Any) -> "Vocabulary":
        """What `to_json` wrote. Raises `ModelError` at an unknown key, a wrong type or a clash of names."""
        return checked(value, cls, Path("a vocabulary"), fix="write it again with to_json", exact=True)


def unknown_prompt_message(text: str, nearest: Sequence[str], where: str = "") -> str:
    """One line for a prompt that matched nothing; `where`: options of the listing command ("--model m").

    >>> unknown_prompt_message("livr3", ["liver"])
    "'livr3' is not in this model's vocabulary; nearest: liver. List all with: delineate prompts"
    """
    near = f"; nearest: {', '.join(nearest)}" if nearest else ""
    command = f"delineate prompts {where}".strip()
    return f"'{' '.join(text.split())}' is not in this model's vocabulary{near}. List all with: {command}"
