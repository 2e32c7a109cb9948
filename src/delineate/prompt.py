"""What a person asks for in words, and the vocabulary of a model that it is matched against.

Matching never guesses. Words are brought to one form (case, plural, British spelling, adjectives, small slips
of the pen); then the longest phrases of the vocabulary are looked for, in any word order. One concept must be
found, and nothing may stand beside it that could make another target of it: a side, a part ("liver vein"), a
negation, an unknown word that touches it. Otherwise the answer is "unknown", with the nearest names.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

from delineate import anatomy
from delineate.errors import DatasetError, ModelError, PromptError

LONGEST_PROMPT = 200  # characters
NEAREST = 5  # names offered for an unknown prompt


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTION = _words(
    "the a an this that these those of in on at to for from by within inside into as is are was be it "
    "its my our your his her their any some and or with plus there here me i you we us he she they s"
)
_JOINING = _words("and or with plus of")
_INNER = _words("of the a an in on within and")  # may stand inside a phrase: "head of the hippocampus"
_PLACE = _words("in on at of from within inside for")
_REQUEST = _words(
    "please have pixel voxel belong belonging kindly can could would will may might should do does did "
    "want need like help let now just only exactly hello hi hey thanks thank segment segmentation "
    "segmented mask outline outlining outlined delineate delineation delineated contour contouring mark "
    "marking label labeling trace draw drawing show find locate highlight give get see look detect "
    "identify annotate annotation select pick choose paint extract where what which who whole entire "
    "complete full all every each visible organ structure region area target object roi shown seen "
    "present showing one patient person human man woman child adult mr mrs ms dr axial coronal sagittal "
    "contrast enhanced weighted t1 t2 t1w t2w flair binary medical anatomy anatomical year old very "
    "also precisely carefully accurately automatically quickly here"
)
_IMAGE = _words(
    "image scan slice picture photo photograph volume study series frame view exam examination imaging"
)
_EXCLUDING = _words(
    "no not never without except excepting excluding exclude excludes but non none neither nor minus "
    "besides ignore ignoring avoid omit omitting skip remove removing other rest remaining instead "
    "rather than everything anything nothing something everywhere absent lacking un else leave leaving"
)
_RELATION = _words(
    "near nearby next beside beneath behind under underneath above below over around surrounding "
    "adjacent between outside beyond against along touching toward towards opposite across attached via "
    "through"
)
_IRREGULAR = {
    "nuclei": "nucleus",
    "hippocampi": "hippocampus",
    "vertebrae": "vertebra",
    "metastases": "metastasis",
    "naevi": "nevus",
    "nevi": "nevus",
    "calculi": "calculus",
    "bronchi": "bronchus",
    "thrombi": "thrombus",
    "diverticula": "diverticulum",
    "retinae": "retina",
    "masses": "mass",
    "biopsies": "biopsy",
    "uteri": "uterus",
    "gases": "gas",
    "centre": "center",
    "fibre": "fiber",
}


@cache
def _plain(word: str) -> str:
    """A lower-case word in singular and American spelling: 'tumours' -> 'tumor', 'oedema' -> 'edema'."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) >= 6 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) >= 4 and word.endswith("s") and not word.endswith(("ss", "us", "is", "as")):
        word = word[:-1]
    if len(word) >= 5:
        word = word.replace("oe", "e").replace("ae", "e")
        word = re.sub("our$", "or", word)
    return _IRREGULAR.get(word, word)


def _raw_words(text: str) -> list[str]:
    """The words of `text` in lower case, without accents, punctuation and underscores."""
    text = re.sub(r"\b[A-Z]?[a-z]{2,}(?:[A-Z][a-z]{2,})+\b", lambda m: re.sub("(?=[A-Z])", " ", m[0]), text)
    text = text.lower().replace("œ", "oe").replace("æ", "ae").replace("’", "'").replace("&", " and ")
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = re.sub(r"n't\b", " not", text)
    text = re.sub(r"'s\b", "", text).replace("x-ray", "xray")
    return re.findall(r"[^\W_]+", text)


def _plain_words(text: str) -> list[str]:
    return [_plain(word) for word in _raw_words(text)]


def _plain_set(words: Iterable[str]) -> frozenset[str]:
    return frozenset(_plain(word) for word in words)


_ALIASES = {
    _plain(word): _plain(other) for word, other in (anatomy.WORD_ALIASES | anatomy.ADJECTIVES).items()
}
_SIDES = anatomy.SIDES
_PARTS = _plain_set(anatomy.PART_WORDS)
_MODALITY_WORDS = frozenset(
    word for names in anatomy.MODALITIES.values() for name in names for word in _plain_words(name)
) - {"fundus", "retina", "retinal"}
_IMAGE_WORDS = _plain_set(_IMAGE) | _MODALITY_WORDS
_HARMLESS = _plain_set(_REQUEST) | _IMAGE_WORDS
_REGIONS = _plain_set(anatomy.REGIONS) | {"fundus"}
_FUNCTION_WORDS = _FUNCTION | _plain_set(_FUNCTION)
_EXCLUDING_WORDS = _EXCLUDING | _plain_set(_EXCLUDING)
_RELATION_WORDS = _RELATION | _plain_set(_RELATION)


def _aliased(words: Iterable[str]) -> list[str]:
    return [_ALIASES.get(word, word) for word in words]


def _key(name: str) -> frozenset[str]:
    """A phrase as the set of its words that carry meaning, so that order does not matter."""
    words = _aliased(_plain_words(name))
    return frozenset(word for word in words if word not in _INNER) or frozenset(words)


def _tidy(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name).strip().lower()


@cache
def _structures() -> dict[frozenset[str], anatomy.Structure]:
    return {_key(name): one for one in anatomy.STRUCTURES for name in (one.name, *one.synonyms)}


@cache
def _anatomy_words() -> frozenset[str]:
    return frozenset().union(*_structures()) | _PARTS | frozenset(_ALIASES) | frozenset(_ALIASES.values())


def canonical_name(label: str) -> str:
    """The anatomy table's name for a dataset's label, or the label itself, tidied, where the table has none.

    >>> canonical_name("kidney_right"), canonical_name("Postcava"), canonical_name("Foo_bar")
    ('right kidney', 'inferior vena cava', 'foo bar')
    """
    known = _structures().get(_key(label))
    return known.name if known else _tidy(label)


@dataclass(frozen=True)
class Prompt:
    """A target in words, at most 200 characters. Raises `PromptError` if it is empty or longer."""

    text: str

    def __post_init__(self):
        if not isinstance(self.text, str) or not self.text.strip():
            raise PromptError("a prompt must name a target; this one is empty. Try: liver")
        if len(self.text) > LONGEST_PROMPT:
            raise PromptError(
                f"a prompt may have {LONGEST_PROMPT} characters; this one has {len(self.text)}. "
                "Name one target."
            )


@dataclass(frozen=True)
class Concept:
    """One target: its canonical name, other names for it, the modalities it was seen in ("CT", "MR")."""

    name: str
    synonyms: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Match:
    """What a prompt means: a concept, or None and the nearest names."""

    concept: Concept | None
    nearest: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Span:
    start: int
    stop: int
    concept: Concept


@dataclass(frozen=True)
class Vocabulary:
    """The targets a model or a dataset knows, in order. No phrase may name two of them (`DatasetError`)."""

    concepts: tuple[Concept, ...]

    def __post_init__(self):
        object.__setattr__(self, "concepts", tuple(self.concepts))
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
            known = _structures().get(_key(label))
            concepts.append(
                Concept(
                    known.name if known else _tidy(label),
                    known.synonyms if known else (),
                    (modality,) if modality else (),
                )
            )
        return cls(tuple(concepts))

    @cached_property
    def _phrases(self) -> dict[frozenset[str], tuple[Concept, bool]]:
        """Key of every phrase -> its concept, and whether the phrase itself says 'and'."""
        phrases: dict[frozenset[str], tuple[Concept, bool]] = {}
        names: set[str] = set()
        for concept in self.concepts:
            if not _key(concept.name):
                raise DatasetError(
                    f"a target must have a name of letters or digits; got '{concept.name}'. Rename it."
                )
            if concept.name in names:
                raise DatasetError(
                    f"'{concept.name}' is in the vocabulary twice. Merge the two labels or rename one."
                )
            names.add(concept.name)
            for phrase in (concept.name, *concept.synonyms):
                key = _key(phrase)
                if not key:
                    raise DatasetError(
                        f"a synonym must have letters or digits; '{concept.name}' has '{phrase}'."
                    )
                other, joined = phrases.get(key, (concept, False))
                if other.name != concept.name:
                    raise DatasetError(
                        f"'{phrase}' would name both '{other.name}' and '{concept.name}'. "
                        "Rename one of them, or drop that synonym."
                    )
                phrases[key] = concept, joined or "and" in _plain_words(phrase)
        return phrases

    @cached_property
    def _words(self) -> frozenset[str]:
        return frozenset().union(*self._phrases)

    @property
    def names(self) -> tuple[str, ...]:
        """The canonical names, in order."""
        return tuple(concept.name for concept in self.concepts)

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
        words = _aliased(self._mended(word) for word in _raw_words(text))
        spans = self._spans(words)
        context = _context(words)
        outside = [span for span in spans if not context.issuperset(range(span.start, span.stop))]
        spans = outside or spans
        context = context if outside else set()
        found = tuple(dict.fromkeys(span.concept.name for span in spans))
        if len(found) == 1 and not _changes_the_target(words, spans, context):
            return Match(spans[0].concept)
        return Match(None, self._nearest(words, found))

    def _mended(self, raw: str) -> str:
        """`raw` in plain form, or the one known word that it is a slip of the pen from; known words stay."""
        word = _plain(raw)
        known = self._words | _anatomy_words()
        ordinary = (
            _FUNCTION_WORDS | _HARMLESS | _EXCLUDING_WORDS | _RELATION_WORDS | _SIDES | anatomy.REAL_WORDS
        )
        if len(word) < 5 or word in known or word in ordinary or any(c.isdigit() for c in word):
            return word
        best: dict[int, set[str]] = {}
        for candidate in known | _EXCLUDING_WORDS | _RELATION_WORDS:
            if len(candidate) < 5 or candidate in ("left", "right"):
                continue
            for spelling in {word, raw}:
                allowed = 2 if min(len(spelling), len(candidate)) >= 9 else 1
                if abs(len(spelling) - len(candidate)) <= allowed:
                    slips = _slips(spelling, candidate)
                    if slips <= allowed:
                        best.setdefault(slips, set()).add(candidate)
        nearest = best[min(best)] if best else set()
        return next(iter(nearest)) if len(set(_aliased(nearest))) == 1 else word

    def _spans(self, words: Sequence[str]) -> list[_Span]:
        """Where the vocabulary's phrases stand, without overlap, the longest first."""
        spans = []
        for start in range(len(words)):
            if words[start] not in self._words:
                continue
            for stop in range(start + 1, min(len(words), start + 12) + 1):
                window = words[start:stop]
                if window[-1] in _INNER and len(window) > 1:
                    continue
                concept, joined = self._phrases.get(
                    frozenset(w for w in window if w not in _INNER) or frozenset(window), (None, False)
                )
                if concept and ("and" not in window or joined):
                    spans.append(_Span(start, stop, concept))

        def longest_then_tightest(span: _Span) -> tuple[int, int, int]:
            meaning = {word for word in words[span.start : span.stop] if word not in _INNER}
            return -len(meaning), span.stop - span.start, span.start

        chosen: list[_Span] = []
        for span in sorted(spans, key=longest_then_tightest):
            if all(span.stop <= other.start or other.stop <= span.start for other in chosen):
                chosen.append(span)
        return chosen

    def _nearest(self, words: Sequence[str], found: tuple[str, ...]) -> tuple[str, ...]:
        said = {word for word in words if word not in _FUNCTION_WORDS | _HARMLESS | _EXCLUDING_WORDS} or set(
            words
        )
        text = " ".join(word for word in words if word in said)
        scores: dict[str, float] = {}
        for key, (concept, _) in self._phrases.items():
            shared = len(key & said) / len(key | said)
            if not (key & said) - _SIDES:
                shared = 0.0
            spelled = max(
                difflib.SequenceMatcher(None, text, " ".join(sorted(key))).ratio(),
                difflib.SequenceMatcher(None, text, concept.name).ratio(),
            )
            score = 1.0 + shared if shared else spelled
            scores[concept.name] = max(scores.get(concept.name, 0.0), score)
        order = sorted((name for name in scores if scores[name] >= 0.6), key=lambda name: -scores[name])
        return tuple(dict.fromkeys((*found, *order)))[:NEAREST]

    def to_json(self) -> dict[str, Any]:
        """The vocabulary as plain JSON values."""
        return {
            "concepts": [
                {"name": c.name, "synonyms": list(c.synonyms), "modalities": list(c.modalities)}
                for c in self.concepts
            ]
        }

    @classmethod
    def from_json(cls, value: Any) -> "Vocabulary":
        """What `to_json` wrote. Raises `ModelError` at an unknown key, a wrong type or a clash of names."""
        fields = {"name", "synonyms", "modalities"}
        if (
            not isinstance(value, dict)
            or set(value) != {"concepts"}
            or not isinstance(value["concepts"], list)
        ):
            raise ModelError(
                'a vocabulary must be {"concepts": [...]} and nothing else. Write it again with to_json.'
            )
        concepts = []
        for entry in value["concepts"]:
            if not isinstance(entry, dict) or "name" not in entry or not set(entry) <= fields:
                raise ModelError(
                    f"a concept must have a name, and may have synonyms and modalities; got {entry!r:.120}."
                )
            lists = [entry.get("synonyms", []), entry.get("modalities", [])]
            if not isinstance(entry["name"], str) or not all(
                isinstance(one, list) and all(isinstance(item, str) for item in one) for one in lists
            ):
                raise ModelError(
                    f"a concept's name must be text, its lists lists of text; got {entry!r:.120}."
                )
            concepts.append(Concept(entry["name"], tuple(lists[0]), tuple(lists[1])))
        try:
            return cls(tuple(concepts))
        except DatasetError as error:
            raise ModelError(str(error)) from error


def _context(words: Sequence[str]) -> set[int]:
    """The places of words that say what the image is, not what to outline: "in this liver CT", "brain MR"."""
    context: set[int] = set()
    for first, word in enumerate(words):
        i = first
        if word in _PLACE:
            while i < len(words) and words[i] in _FUNCTION_WORDS:
                i += 1
            stop = i + 4
            while (
                i < min(len(words), stop)
                and words[i] not in _FUNCTION_WORDS | _IMAGE_WORDS | _EXCLUDING_WORDS
            ):
                i += 1
        elif word in _REGIONS:
            while i < len(words) and words[i] in _REGIONS:
                i += 1
        else:
            continue
        end = i
        while end < len(words) and words[end] in _IMAGE_WORDS:
            end += 1
        if end > i:
            context.update(range(first, end))
    return context


def _changes_the_target(words: Sequence[str], spans: Sequence[_Span], context: set[int]) -> bool:
    """Whether a word outside the found phrases negates, relates, or makes another target of it."""
    inside = {i for span in spans for i in range(span.start, span.stop)}
    named = {words[i] for i in inside}
    for i, word in enumerate(words):
        following = words[i + 1] if i + 1 < len(words) else ""
        if word in ("left", "right") and following == "of":
            return True
        if i in inside:
            continue
        if word in _EXCLUDING_WORDS or word in _RELATION_WORDS:
            return True
        if i in context or word in named:
            continue
        if word in _SIDES or (word in _anatomy_words()):
            return True
        if word == "segment":  # a request before the target, a part after it
            if following == "of" or any(i >= span.stop for span in spans):
                return True
            continue
        if word == "out" and i > 0 and words[i - 1] in _HARMLESS:  # "mark out the liver", but not "leave out"
            continue
        if word not in _FUNCTION_WORDS | _HARMLESS and any(_touches(words, i, span) for span in spans):
            return True
    return False


def _touches(words: Sequence[str], i: int, span: _Span) -> bool:
    """Whether word `i` stands by the span, or is tied to it by small words: "spots on the liver"."""
    if i < span.start:
        return all(word in _FUNCTION_WORDS for word in words[i + 1 : span.start])
    between = words[span.stop : i]
    return not between or (between[0] in _JOINING and all(word in _FUNCTION_WORDS for word in between))


def _slips(a: str, b: str) -> int:
    """Edits and swaps of neighbours that turn `a` into `b` (optimal string alignment distance)."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            cost = min(rows[-1][j] + 1, row[-1] + 1, rows[-1][j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and y == a[i - 2]:
                cost = min(cost, rows[-2][j - 2] + 1)
            row.append(cost)
        rows.append(row)
    return rows[-1][-1]


def unknown_prompt_message(text: str, nearest: Sequence[str], where: str = "") -> str:
    """One line for a prompt that matched nothing; `where`: options of the listing command ("--model m").

    >>> unknown_prompt_message("livr3", ["liver"])
    "'livr3' is not in this model's vocabulary; nearest: liver. List all with: delineate prompts"
    """
    near = f"; nearest: {', '.join(nearest)}" if nearest else ""
    command = f"delineate prompts {where}".strip()
    return f"'{' '.join(text.split())}' is not in this model's vocabulary{near}. List all with: {command}"


_MASK_TEMPLATES = (
    "{name}",
    "the {name}",
    "outline the {name}",
    "segment the {name}",
    "segmentation mask of the {name}",
    "a mask of the {name}",
)
_MASK_TEMPLATES_WITH_MODALITY = (
    "{name}, {modality}",
    "{name} in {image}",
    "outline the {name}, {modality}",
    "segmentation mask of the {name} in {image}",
    "a binary mask of the {name} in {image}",
    "delineation of the {name} on {image}",
    "please mark the {name} in this {modality_image}",
    "contour the {name} on {image}",
)
_MASK_TEMPLATES_WITHOUT_MODALITY = (
    "{name} in a medical image",
    "segmentation mask of the {name} in a medical image",
    "a binary mask of the {name}",
    "delineation of the {name}",
    "please mark the {name} in this image",
    "contour the {name}",
)
_ADJECTIVE_TEMPLATES = ("{adjective} segmentation", "{adjective} mask")


def modality_words(modality: str | None) -> tuple[str, ...]:
    """How people write a modality, most usual first; an unknown one stands for itself, None gives nothing.

    >>> modality_words("MRI")[:2], modality_words("US")[0]
    (('MR', 'MRI'), 'ultrasound')
    """
    if not modality or not modality.strip():
        return ()
    code = anatomy.MODALITY_CODES.get(modality.strip().lower(), modality.strip())
    return anatomy.MODALITIES.get(code, (code,))


def _image_of(modality: str) -> str:
    return modality if modality.endswith(("graph", "photo", "gram", "picture")) else f"{modality} image"


def _article(words: str) -> str:
    return "an" if words[0].lower() in "aeiou" or words.split()[0] in ("MR", "MRI", "X-ray") else "a"


def captions(
    concept: Concept, modality: str | None = None, kind: Literal["mask", "scan"] = "mask"
) -> tuple[str, ...]:
    """The training captions of one concept: every name and synonym through every template, without repeats.

    Args:
        concept: what is outlined.
        modality: its code or a common spelling ("CT", "MRI", "US"); None leaves it out.
        kind: "mask" for what a prompt asks for, "scan" for the image that shows it.

    Returns:
        At least 12 captions for "mask"; the plainest, the bare name, comes first.
    """
    if kind == "scan":
        return scan_captions((concept.name,), modality)
    if kind != "mask":
        raise ValueError(f"kind must be 'mask' or 'scan', not {kind!r}")
    written = modality_words(modality)[:2]
    lines = []
    for name in (concept.name, *concept.synonyms):
        lines += [template.format(name=name) for template in _MASK_TEMPLATES]
        if not written:
            lines += [template.format(name=name) for template in _MASK_TEMPLATES_WITHOUT_MODALITY]
        for word in written:
            image = _image_of(word)
            values = {
                "name": name,
                "modality": word,
                "modality_image": image,
                "image": f"{_article(image)} {image}",
            }
            lines += [template.format(**values) for template in _MASK_TEMPLATES_WITH_MODALITY]
    for adjective, noun in anatomy.ADJECTIVES.items():
        if noun in concept.name.split():
            spoken = " ".join(adjective if word == noun else word for word in concept.name.split())
            lines += [template.format(adjective=spoken) for template in _ADJECTIVE_TEMPLATES]
    return tuple(dict.fromkeys(lines))


def scan_captions(names_present: Iterable[str], modality: str | None = None) -> tuple[str, ...]:
    """Captions of a whole image or slice by what it shows: "an abdominal CT slice showing liver and spleen".

    The part of the body is named where all the names lie in the same one; no names give plain captions.
    """
    names = list(dict.fromkeys(names_present))
    table = {one.name: one.region for one in anatomy.STRUCTURES}
    regions = {table.get(name, "") for name in names}
    region = regions.pop() if len(regions) == 1 else ""
    listed = " and ".join(filter(None, (", ".join(names[:-1]), names[-1]))) if names else ""
    lines = []
    for word in modality_words(modality)[:2] or ("medical",):
        for part in dict.fromkeys((region, "")):
            for view in ("slice", "image", "scan"):
                noun = word if word.endswith(("graph", "photo", "gram", "picture")) else f"{word} {view}"
                shown = f"{part} {noun}".strip()
                start = f"{_article(shown)} {shown}"
                if listed:
                    lines += [f"{start} showing {listed}", f"{start} of {listed}", f"{start} with {listed}"]
                else:
                    lines += [start]
    return tuple(dict.fromkeys(lines))
