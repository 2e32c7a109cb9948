"""What a prompt asks of a model: one name, several, a generic word, all but some; or nothing that it knows.

First by rules (`Vocabulary.match`), which never guess; then by a network that reads (`prompts.reader`), believed from a
share on that phrases which it had not seen have told. What was understood is said in words.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from delineate.prompts import anatomy
from delineate.prompts.matching import aliased, is_relation, is_unsaid, key_of, plain_words, raw_words
from delineate.prompts.reader import Reader, Reading, house_reader
from delineate.prompts.vocabulary import NEAREST, Vocabulary

BELIEVED_FROM = 0.5  # share of a reading: of phrases held out less than 2 % were then taken for something else
FEW_WORDS = 4  # of a piece between commas that is read; a description may hold "and"

_BUT = re.compile(
    r"\b(?:except(?:ing)?(?: for)?|excluding|but(?: not)?|without|minus|apart from|other than|besides|leaving out"
    r"|leave(?: out)?|not)\b"
)
_AND = re.compile(
    r"\s*(?:[,;/+&、，;]|\b(?:and|plus|with|as well as|along with|together with|und|et|y|e)\b|和|及|与)"
    r"\s*(?:\band\b\s*)?"
)
_COMMENT = re.compile(r"[,;]| - |\b(?:without|with|not|no)\b")
_DENIALS = frozenset(["without", "not", "no"])
_PURPOSE = re.compile(
    r"\bfor (?:[\w-]+ ){0,3}(?:radiotherapy|planning|treatment|dosimetry|surgery|resection|biopsy|volumetry|study"
    r"|project|thesis|research|rt|sbrt|transplant\w*|follow-?up)\b[^:]*$",
    re.IGNORECASE,
)
_ALL = frozenset(["all", "every", "everything", "complete", "whole", "full"])
_KNOWN = frozenset(  # "everything you know"
    ["other", "else", "them", "lot", "multi", "do", "know", "known", "possible", "find", "is", "available"]
) | {"abdomen", "body"}
_BOTH = frozenset(["both", "bilateral", "pair", "blood"])  # of words that mean several anyway
# "not the veins, only the organs"
_NOT_THIS = re.compile(r"^\s*(?:no|not|without)\b(.+?),?\s*\b(?:but|only|just)\b(.+)$")
_KINDS = frozenset(["large", "small", "upper", "lower"]) | anatomy.SIDES  # share a noun: "left and right kidney"


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
    return _Asked(vocabulary, modality or _modality_in(text), reader or house_reader()).whole(text)


@dataclass(frozen=True)
class _Asked:
    vocabulary: Vocabulary
    modality: str | None
    reader: Reader

    def whole(self, text: str) -> Understood:
        """Of all that was typed."""
        asked = _PURPOSE.sub("", text)
        asked = _NOT_THIS.sub(r"\2 except \1", asked.lower()) if _NOT_THIS.match(asked.lower()) else asked
        # "aorta, liver (work-up)"; "organs at risk: liver, aorta"
        parts = dict.fromkeys((asked, re.sub(r"\([^)]*\)", " ", asked), asked.rsplit(":", 1)[-1]))
        rules = ((attempt, words) for words in parts for attempt in self._rules)
        for attempt, words in (*rules, *((self.by_reading, words) for words in parts)):
            if found := attempt(words):
                return found
        match, generic = self.vocabulary.match(text), self._findings(text)
        near = dict.fromkeys((*match.nearest, *self._nearest_read(text)))
        return Understood((), nearest=tuple(near)[:NEAREST], by_scan=generic if len(generic) > 1 else ())

    @property
    def _rules(self) -> tuple[Callable[[str], Understood | None], ...]:
        return self.several, self.plainly, self.in_a_row, self.all_but, self.stated

    def in_a_row(self, text: str) -> Understood | None:
        """Names in a row, with nothing between them: "spleen liver aorta"."""
        names, beside = self.vocabulary.named(text)
        return self._taken(names) if len(names) > 1 and all(is_unsaid(word) for word in beside) else None

    def plainly(self, text: str) -> Understood | None:
        """One name, by the rules; a generic word; a part of something."""
        if concept := self.vocabulary.match(text).concept:
            return self._of_side(concept.name, text)
        return self.generic(text) or self.part(text)

    def all_but(self, text: str) -> Understood | None:
        """Everything, or everything but some; one thing and not another that is known too."""
        this, *that = _BUT.split(text.lower().replace("’", "'"), maxsplit=1)
        everything = self._everything(this, bool(that))
        if not that:
            return self._taken(everything) if everything else None
        one = None if everything else self._some(re.sub(r"(,|\band)\s*$", "", this.strip()))
        side = self._said(that[0]) - {"one"}
        if one and side and side <= {"left", "right"}:  # "kidneys but not the left one"
            return self._taken(name for name in one.targets if not side & set(name.split()))
        without = self._some(that[0]) or self.by_reading(that[0])
        if without is None:
            return None
        if everything:
            return self._taken(name for name in everything if name not in without.targets)
        if one is None or set(one.targets) & set(without.targets):
            return None
        return replace(one, said=f"{in_words(one.targets)}; nothing is cut out of it")

    def _of_side(self, name: str, text: str) -> Understood:
        """A name; where a side is said, and the model tells the sides apart, that of the side: "lung on the right"."""
        sides = {"left", "right"} & set(self.vocabulary.words(text)) - set(name.split())
        for base, names in self._groups.items():
            sided = [one for one in names if sides & set(one.split())]
            if len(sides) == len(sided) == 1 and key_of(name) in _keys_of(base):
                return Understood((sided[0],), sided[0])
        return Understood((name,))

    def _some(self, text: str) -> Understood | None:
        return self.several(text) or self.plainly(text)

    def several(self, text: str) -> Understood | None:
        """Names beside each other; nothing where one of them is not known."""
        pieces = [piece for piece in _AND.split(text.strip(" .!?;,")) if piece]
        if len(pieces) < 2:
            return None
        turned = self.vocabulary.match(" ".join(pieces[::-1])).concept  # "bowel, small"
        if turned and len(pieces) == 2 and self.plainly(pieces[1]) is None:
            return Understood((turned.name,))
        found: list[Understood] = []
        while pieces:
            for count in range(len(pieces), 0, -1):
                if one := self._piece(pieces, count):
                    found.append(one)
                    pieces = pieces[count:]
                    break
            else:
                return None
        names = dict.fromkeys(name for one in found for name in one.targets)
        taken = found[0] if len(names) == 1 else self._taken(names)
        return taken and replace(taken, share=min(one.share for one in found))

    def _piece(self, pieces: Sequence[str], count: int) -> Understood | None:
        """What the first `count` pieces mean together; more than one only where the vocabulary itself joins them."""
        if count > 1:
            joined = " and ".join(pieces[:count])
            words = [word for word in self.vocabulary.words(joined) if not is_unsaid(word)]
            return self.plainly(joined) if len(words) == len(set(words)) and set(words) in self._keys else None
        words, first = self.vocabulary.words(pieces[0]), pieces[0]
        if len(pieces) > 1 and words and words[-1] in _KINDS:
            first = f"{first} {' '.join(word for word in raw_words(pieces[1]) if word not in _KINDS)}"
        return self.plainly(first) or (self.by_reading(first) if _is_brief(first) else None)

    def stated(self, text: str) -> Understood | None:
        """A name, and what a report says of it: "gallbladder, not distended"; nothing where another thing is named."""
        if not (sign := _COMMENT.search(text)):
            return None
        this, rest = text[: sign.start()], text[sign.end() :]
        one = self.plainly(this) or (self.by_reading(this) if _is_brief(this) else None)
        if one is None or len(one.targets) != 1 or not set(self.vocabulary.named(rest)[0]) <= set(one.targets):
            return None
        denied = not _DENIALS.isdisjoint([sign[0], *rest.lower().split()[:1]])
        other = [] if denied else self.reader.read(rest)
        if other and other[0].share >= BELIEVED_FROM and other[0].thing.name not in one.targets:
            return None
        return replace(one, said=f"{one.targets[0]}; the rest of the words changes nothing")

    def generic(self, text: str) -> Understood | None:
        """A word for several names: the sides of one thing, or the findings and structures that a scan can show."""
        said = self._said(text)
        for base, names in self._groups.items():
            if said and said in _keys_of(base) and len(names) > 1:
                return self._taken(names)
        if len(found := self._findings(text)) == 1:
            return Understood(found, said=found[0])
        meant = anatomy.GENERIC_STRUCTURES.get(next(iter(said)), frozenset()) if len(said) == 1 else frozenset()
        known = [concept for concept in self.vocabulary.concepts if concept.name in meant]
        fitting = [c.name for c in known if len(meant) > 1 or (self.modality and self.modality in c.modalities)]
        return self._taken(fitting)

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

    def by_reading(self, text: str) -> Understood | None:
        """What the reader makes of it, if it is sure, if the sides are those that were said, and nothing is denied."""
        readings = self.reader.read(text, self.vocabulary.names)
        if not readings or readings[0].share < BELIEVED_FROM or not _same_side(text, readings[0]):
            return None
        thing, share = readings[0]
        if thing.kind == "other" or _BUT.search(text.lower()) or len(self._findings(text)) > 1:
            return None
        if self._beside_a_stranger(text):
            return None
        if thing.name in self.vocabulary.names:
            said = _the_whole(thing.name) if thing.kind == "part" else thing.name
            return Understood((thing.name,), said, share)
        names = self._groups.get(thing.name, [])
        if thing.kind == "concept" and len(names) > 1:
            return Understood(tuple(names), in_words(names), share)
        findings = self._findings(thing.name) if thing.kind == "concept" else ()
        return Understood(findings, findings[0], share) if len(findings) == 1 else None

    def _beside_a_stranger(self, text: str) -> bool:
        """Whether a name stands beside something else that is asked for and not known: "liver with femur"."""
        pieces = [piece for piece in _AND.split(text) if piece and _is_brief(piece)]
        known = [piece for piece in pieces if self.vocabulary.match(piece).concept]
        read = [self.reader.read(piece)[:1] for piece in pieces if piece not in known] if known else []
        return any(one and one[0].thing.kind == "other" and one[0].share >= BELIEVED_FROM for one in read)

    def _taken(self, names: Iterable[str]) -> Understood | None:
        """These; where none is left, nothing was understood."""
        names = tuple(names)
        return Understood(names, in_words(names)) if names else None

    def _everything(self, text: str, excluding: bool) -> list[str]:
        """The names that "all organs" means here; none where the text says something else."""
        words = raw_words(text)
        asked = any(word in _ALL for word in words) or ("organs" in words and (excluding or "multi" in words))
        if not asked or not all(
            word in _ALL | _KNOWN or is_unsaid(word) or word in anatomy.REGION_WORDS for word in words
        ):
            return []
        organs = any(word.startswith("organ") for word in words)
        return [name for name in self.vocabulary.names if not (organs and name in anatomy.FINDINGS)]

    def _said(self, text: str) -> frozenset[str]:
        """The words that carry meaning, but for "both"."""
        return frozenset(word for word in self.vocabulary.words(text) if not is_unsaid(word)) - _BOTH

    @cached_property
    def _keys(self) -> set[frozenset[str]]:
        return {self._said(name) for c in self.vocabulary.concepts for name in (c.name, *c.synonyms)}

    @cached_property
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

    def _nearest_read(self, text: str) -> list[str]:
        names = [reading.thing.name for reading in self.reader.read(text, self.vocabulary.names)[:3]]
        return [name for name in names if name in self.vocabulary.names]


def in_words(names: Iterable[str]) -> str:
    """Names as one speaks.

    >>> in_words(["liver", "spleen", "aorta"])
    'liver, spleen and aorta'
    """
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _modality_in(text: str) -> str | None:
    """The one kind of picture that the words themselves name: "mass on ultrasound"."""
    said = " ".join(plain_words(text))
    written = {code: {" ".join(plain_words(name)) for name in names} for code, names in anatomy.MODALITIES.items()}
    del written["photo"]  # every kind may be called a picture
    found = [code for code, names in written.items() if any(re.search(rf"\b{re.escape(n)}\b", said) for n in names)]
    return found[0] if len(found) == 1 else None


def _is_brief(text: str) -> bool:
    words = plain_words(text)
    return len(words) <= FEW_WORDS and not any(is_relation(word) for word in words)


def _the_whole(name: str) -> str:
    return f"all of the {name}: a part of it is not known apart"


def _keys_of(base: str) -> set[frozenset[str]]:
    """The generic name's key, and those of its synonyms in the anatomy table."""
    table = [one for one in anatomy.STRUCTURES if base in (one.name, *one.synonyms)]
    return {key_of(base), *(key_of(name) for one in table for name in (one.name, *one.synonyms))}


def _same_side(text: str, reading: Reading) -> bool:
    """Whether a side that was said is that of the name."""
    said = {word for word in aliased(plain_words(text)) if word in ("left", "right")}
    named = {word for word in reading.thing.name.split() if word in ("left", "right")}
    return reading.thing.kind == "part" or not named or said <= named
