"""What a prompt asks of a model: one name, several, a generic word, all but some; or nothing that it knows.

First by rules (`Vocabulary.match`), which never guess; then by a network that reads (`prompts.reader`), believed from a
share on that phrases which it had not seen have told. What was understood is said in words.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from delineate.prompts import anatomy
from delineate.prompts.matching import aliased, is_relation, is_unsaid, key_of, plain_words, raw_words
from delineate.prompts.reader import Reader, Reading, house_reader
from delineate.prompts.vocabulary import NEAREST, Vocabulary

BELIEVED_FROM = 0.6  # share of a reading
BELIEVED_WITH_NAME = 0.45  # where the name itself, and no other, stands among words that the rules do not know
FEW_WORDS = 4  # of a piece between commas that is read; a description may hold "and"

_BUT = re.compile(
    r"\b(?:except(?:ing)?(?: for)?|excluding|but(?: not)?|without|minus|apart from|other than|besides|leaving out"
    r"|not)\b"
)
_AND = re.compile(
    r"\s*(?:[,;/+&、，;]|\b(?:and|plus|as well as|along with|together with|und|et|y|e)\b|和|及|与)\s*(?:\band\b\s*)?"
)
_ALL = frozenset(["all", "every", "everything", "complete", "whole", "full"])


@dataclass(frozen=True)
class Understood:
    """What words ask for.

    Attributes:
        targets: names of the vocabulary; none where the words are not known.
        said: how the words were taken where they do not plainly name the one target, a sentence without its end.
        share: in [0, 1], how sure the reader is; 1 where rules understood.
        nearest: names that resemble unknown words.
        by_scan: names among which the kind of picture would decide; it was not told.
    """

    targets: tuple[str, ...]
    said: str = ""
    share: float = 1.0
    nearest: tuple[str, ...] = ()
    by_scan: tuple[str, ...] = ()


def understood(
    text: str, vocabulary: Vocabulary, modality: str | None = None, reader: Reader | None = None
) -> Understood:
    """What `text` asks of a model with this vocabulary, in a scan of this modality.

    >>> organs = Vocabulary.from_names(["liver", "spleen", "right kidney", "left kidney"], "CT")
    >>> understood("kidneys", organs).targets, understood("everything but the liver", organs).said
    (('right kidney', 'left kidney'), 'spleen, right kidney and left kidney')
    """
    return _Asked(vocabulary, modality, reader or house_reader()).whole(text)


@dataclass(frozen=True)
class _Asked:
    vocabulary: Vocabulary
    modality: str | None
    reader: Reader

    def whole(self, text: str) -> Understood:
        """Of all that was typed."""
        generic = self._findings(text)
        by_reading = [] if len(generic) > 1 or _BUT.search(text.lower()) else [self.by_reading]
        for attempt in (self.plainly, self.all_but, self.several, *by_reading):
            if found := attempt(text):
                return found
        match = self.vocabulary.match(text)
        near = dict.fromkeys((*match.nearest, *self._nearest_read(text)))
        return Understood((), nearest=tuple(near)[:NEAREST], by_scan=generic if len(generic) > 1 else ())

    def plainly(self, text: str) -> Understood | None:
        """One name, by the rules; a generic word; a part of something."""
        if concept := self.vocabulary.match(text).concept:
            return Understood((concept.name,))
        return self.generic(text) or self.part(text)

    def all_but(self, text: str) -> Understood | None:
        """Everything, or everything but some."""
        whole, *rest = _BUT.split(text.lower().replace("’", "'"), maxsplit=1)
        if not (everything := self._everything(whole, bool(rest))):
            return None
        if not rest:
            return self._taken(everything)
        without = self.plainly(rest[0]) or self.several(rest[0]) or self.by_reading(rest[0])
        if without is None:
            return None
        return self._taken([name for name in everything if name not in without.targets])

    def several(self, text: str) -> Understood | None:
        """Names beside each other; nothing where one of them is not known."""
        pieces = [piece for piece in _AND.split(text.strip(" .!?;,")) if piece]
        if len(pieces) < 2:
            return None
        found: list[Understood] = []
        while pieces:
            for count in range(len(pieces), 0, -1):
                joined = " and ".join(pieces[:count])
                one = self.plainly(joined)
                if one is None and count == 1:
                    first = self._with_head(pieces)
                    one = self.plainly(first) or (self.by_reading(first, False) if _names_briefly(first) else None)
                if one is not None:
                    found.append(one)
                    pieces = pieces[count:]
                    break
            else:
                return None
        names = dict.fromkeys(name for one in found for name in one.targets)
        share = min(one.share for one in found)
        if len(names) == 1:
            return replace(found[0], share=share)
        return replace(self._taken(names), share=share)

    def generic(self, text: str) -> Understood | None:
        """A word for several names: the sides or parts of one thing, or the findings that a scan can show."""
        said = self._said(text)
        for base, names in self._groups().items():
            if said and said in _keys_of(base) and len(names) > 1:
                return self._taken(names)
        if len(found := self._findings(text)) == 1:
            return Understood(found, said=found[0])
        return None

    def part(self, text: str) -> Understood | None:
        """A part of a name, where the part is not known apart: the whole is answered, and said so."""
        names, beside = self.vocabulary.named(text)
        said = [word for word in beside if not is_unsaid(word) or word in anatomy.PIECE_WORDS]
        if len(names) != 1 or not said or "left" in beside or "right" in beside:
            return None
        if not all(word in anatomy.PIECE_WORDS or word in anatomy.SIDES for word in said):
            return None
        for side in (word for word in said if word in anatomy.SIDES):  # "the posterior part of the hippocampus"
            if (finer := f"{side} {names[0]}") in self.vocabulary.names:
                return Understood((finer,), finer)
        return Understood(names, _the_whole(names[0]))

    def by_reading(self, text: str, with_name: bool = True) -> Understood | None:
        """What the reader makes of it, if it is sure, and if the sides are those that were said."""
        readings = self.reader.read(text, self.vocabulary.names)
        if not readings or not _same_side(text, readings[0]):
            return None
        thing, share = readings[0]
        named = with_name and self.vocabulary.named(text)[0] == (thing.name,)
        if share < (BELIEVED_WITH_NAME if named else BELIEVED_FROM) or thing.kind == "other":
            return None
        if thing.name in self.vocabulary.names:
            said = _the_whole(thing.name) if thing.kind == "part" else thing.name
            return Understood((thing.name,), said, share)
        names = self._groups().get(thing.name, [])
        if thing.kind == "concept" and len(names) > 1:
            return replace(self._taken(names), share=share)
        findings = self._findings(thing.name) if thing.kind == "concept" else ()
        return Understood(findings, findings[0], share) if len(findings) == 1 else None

    def _taken(self, names: Iterable[str]) -> Understood:
        return Understood(tuple(names), in_words(names))

    def _everything(self, text: str, excluding: bool) -> list[str]:
        """The names that "all organs" means here; none where the text says something else."""
        words = raw_words(text)
        asked = any(word in _ALL for word in words) or (excluding and "organs" in words)
        if not asked or not all(word in _ALL or word == "other" or is_unsaid(word) for word in words):
            return []
        organs = any(word.startswith("organ") for word in words)
        return [name for name in self.vocabulary.names if not (organs and name in anatomy.FINDINGS)]

    def _said(self, text: str) -> frozenset[str]:
        """The words that carry meaning, but for "both"."""
        words = aliased(plain_words(text))
        return frozenset(word for word in words if not is_unsaid(word)) - {"both", "bilateral"}

    def _groups(self) -> dict[str, list[str]]:
        """Names that differ by side or place alone, by what they share: "kidney" -> right and left."""
        groups: dict[str, list[str]] = {}
        for name in self.vocabulary.names:
            words = name.split()
            if words[0] in anatomy.SIDES and len(words) > 1:
                groups.setdefault(" ".join(words[1:]), []).append(name)
        return groups | {f"{base}s": names for base, names in groups.items()}

    def _findings(self, text: str) -> tuple[str, ...]:
        """The names of findings that a generic word may mean in a scan of this modality."""
        said = self._said(text)
        if len(said) != 1 or not (meant := anatomy.GENERIC_FINDINGS.get(next(iter(said)))):
            return ()
        known = [concept for concept in self.vocabulary.concepts if concept.name in meant]
        shown = [c for c in known if self.modality is None or not c.modalities or self.modality in c.modalities]
        return tuple(concept.name for concept in shown)

    def _with_head(self, pieces: Sequence[str]) -> str:
        """The first piece; one that is but a side takes the rest from the next: "left and right kidney"."""
        words = raw_words(pieces[0])
        if len(pieces) > 1 and words and words[-1] in anatomy.SIDES:
            return f"{pieces[0]} {' '.join(w for w in raw_words(pieces[1]) if w not in anatomy.SIDES)}"
        return pieces[0]

    def _nearest_read(self, text: str) -> list[str]:
        names = [reading.thing.name for reading in self.reader.read(text, self.vocabulary.names)[:3]]
        return [name for name in names if name in self.vocabulary.names]


def _names_briefly(text: str) -> bool:
    words = plain_words(text)
    return len(words) <= FEW_WORDS and not any(is_relation(word) for word in words)


def in_words(names: Iterable[str]) -> str:
    """Names as one speaks.

    >>> in_words(["liver", "spleen", "aorta"])
    'liver, spleen and aorta'
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _the_whole(name: str) -> str:
    return f"all of the {name}: a part of it is not known apart"


def _keys_of(base: str) -> set[frozenset[str]]:
    """The generic name's key, and those of its synonyms in the anatomy table."""
    table = [one for one in anatomy.STRUCTURES if base in (one.name, *one.synonyms)]
    return {key_of(base), *(key_of(name) for one in table for name in (one.name, *one.synonyms))}


def _same_side(text: str, reading: Reading) -> bool:
    """Whether a side that was said is that of the name."""
    said = {side for side, _ in groupby(w for w in aliased(plain_words(text)) if w in ("left", "right"))}
    named = {word for word in reading.thing.name.split() if word in ("left", "right")}
    return reading.thing.kind == "part" or not named or said == named
