"""The words of a prompt: their one form, where a vocabulary's phrases stand among them, and what the rest means.

Words are brought to one form (case, plural, British spelling, adjectives, small slips of the pen). A word that
no list here knows is harmless only at a distance from the target: beside it, it could name another one.
`delineate.prompts.vocabulary.Vocabulary` decides by these rules.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from rapidfuzz import fuzz, process
from rapidfuzz.distance import OSA

from delineate.prompts import anatomy
from delineate.prompts.concept import Concept


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FUNCTION = _words(
    "the a an this that these those of in on at to for from by within inside into as is are was be it "
    "its my our your his her their any some and or with plus there here me i you we us he she they s"
)
_PIECES = _words("part portion section segment")  # "the abdominal part"
_JOINING = _words("and or with plus of")
_INNER = _words("of the a an in on within and sided")  # may stand inside a phrase: "head of the hippocampus"
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
_IMAGE = _words("image scan slice picture photo photograph volume study series frame view exam examination imaging")
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


def raw_words(text: str) -> list[str]:
    """The words of `text` in lower case, without accents, punctuation and underscores."""
    text = re.sub(r"\b[A-Z]?[a-z]{2,}(?:[A-Z][a-z]{2,})+\b", lambda m: re.sub("(?=[A-Z])", " ", m[0]), text)
    text = text.lower().replace("œ", "oe").replace("æ", "ae").replace("’", "'").replace("&", " and ")
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    text = re.sub(r"n't\b", " not", text)
    text = re.sub(r"'s\b", "", text).replace("x-ray", "xray")
    return re.findall(r"[^\W_]+", text)


def plain_words(text: str) -> list[str]:
    """The words of `text` in lower case, singular and American spelling."""
    return [_plain(word) for word in raw_words(text)]


def _plain_set(words: Iterable[str]) -> frozenset[str]:
    return frozenset(_plain(word) for word in words)


_ALIASES = {_plain(word): _plain(other) for word, other in (anatomy.WORD_ALIASES | anatomy.ADJECTIVES).items()}
_SIDES = anatomy.SIDES
_PARTS = _plain_set(anatomy.PART_WORDS)
_MODALITY_WORDS = frozenset(
    word for names in anatomy.MODALITIES.values() for name in names for word in plain_words(name)
) - {"fundus", "retina", "retinal"}
_IMAGE_WORDS = _plain_set(_IMAGE) | _MODALITY_WORDS
_HARMLESS = _plain_set(_REQUEST) | _IMAGE_WORDS
_REGIONS = _plain_set(anatomy.REGIONS) | {"fundus"}
_REGION_WORDS = frozenset(anatomy.REGION_WORDS)
_FUNCTION_WORDS = _FUNCTION | _plain_set(_FUNCTION)
_EXCLUDING_WORDS = _EXCLUDING | _plain_set(_EXCLUDING)
_RELATION_WORDS = _RELATION | _plain_set(_RELATION)
_UNSAID = _FUNCTION_WORDS | _HARMLESS | _EXCLUDING_WORDS
_ORDINARY = _UNSAID | _RELATION_WORDS | _SIDES | anatomy.REAL_WORDS


def is_unsaid(word: str) -> bool:
    """Whether a word asks for nothing by itself: "please", "the", "organ", "image", "CT"."""
    return word in _FUNCTION_WORDS | _HARMLESS or _plain(word) in _FUNCTION_WORDS | _HARMLESS


def is_relation(word: str) -> bool:
    """Whether a word places one thing by another: "above", "next"."""
    return word in _RELATION_WORDS


def aliased(words: Iterable[str]) -> list[str]:
    """`words` with adjectives and short forms replaced by the nouns they stand for."""
    return [_ALIASES.get(word, word) for word in words]


def _meaning(words: Iterable[str]) -> frozenset[str]:
    return frozenset(word for word in words if word not in _INNER)


def key_of(name: str) -> frozenset[str]:
    """A phrase as the set of its words that carry meaning, so that order does not matter."""
    words = aliased(plain_words(name))
    return _meaning(words) or frozenset(words)


def tidy(name: str) -> str:
    """`name` in lower case with single spaces."""
    return re.sub(r"[\s_]+", " ", name).strip().lower()


@cache
def structures() -> dict[frozenset[str], anatomy.Structure]:
    """The anatomy table by the key of every name in it."""
    return {key_of(name): one for one in anatomy.STRUCTURES for name in (one.name, *one.synonyms)}


@cache
def region_of(name: str) -> str:
    """The part of the body that the anatomy table has for a canonical name, or ""."""
    return next((one.region for one in anatomy.STRUCTURES if one.name == name), "")


@cache
def _anatomy_words() -> frozenset[str]:
    return frozenset().union(*structures()) | _PARTS | frozenset(_ALIASES) | frozenset(_ALIASES.values())


@dataclass(frozen=True)
class Span:
    """Words `start` to `stop` of a prompt name `concept`."""

    start: int
    stop: int
    concept: Concept


Phrases = Mapping[frozenset[str], tuple[Concept, bool]]
"""Key of every phrase of a vocabulary -> its concept, and whether the phrase itself says 'and'."""


def mended(raw: str, vocabulary_words: frozenset[str]) -> str:
    """`raw` in plain form, or the one known word that it is a slip of the pen from; known words stay."""
    word = _plain(raw)
    if len(word) >= 3 and word not in anatomy.NO_SIDES and word not in _ORDINARY:
        for side in ("left", "right"):
            if OSA.distance(word, side, score_cutoff=1) == 1:
                return side
    known = vocabulary_words | _anatomy_words()
    if len(word) < 5 or word in known or word in _ORDINARY or any(c.isdigit() for c in word):
        return word
    candidates = [c for c in known | _EXCLUDING_WORDS | _RELATION_WORDS if len(c) >= 5 and c not in ("left", "right")]
    best: dict[int, set[str]] = {}
    for spelling in {word, raw}:  # edits and swaps of neighbours: two between long words, one otherwise
        for candidate, slips, _ in process.extract_iter(spelling, candidates, scorer=OSA.distance, score_cutoff=2):
            if slips < 2 or min(len(spelling), len(candidate)) >= 9:
                best.setdefault(slips, set()).add(candidate)
    nearest = best[min(best)] if best else set()
    return next(iter(nearest)) if len(set(aliased(nearest))) == 1 else word


def spans_in(words: Sequence[str], phrases: Phrases) -> list[Span]:
    """Where the vocabulary's phrases stand, without overlap, the longest first."""
    known = frozenset().union(*phrases)
    spans = []
    for start in range(len(words)):
        if words[start] not in known:
            continue
        for stop in range(start + 1, min(len(words), start + 12) + 1):
            window = words[start:stop]
            if window[-1] in _INNER and len(window) > 1:
                continue
            concept, joined = phrases.get(_meaning(window) or frozenset(window), (None, False))
            if concept and ("and" not in window or joined):
                spans.append(Span(start, stop, concept))

    def longest_then_tightest(span: Span) -> tuple[int, int, int]:
        return -len(_meaning(words[span.start : span.stop])), span.stop - span.start, span.start

    chosen: list[Span] = []
    for span in sorted(spans, key=longest_then_tightest):
        if all(span.stop <= other.start or other.stop <= span.start for other in chosen):
            chosen.append(span)
    return chosen


def nearest_names(words: Sequence[str], phrases: Phrases) -> list[str]:
    """The concepts' names that resemble `words`, the most alike first: by shared words, else by spelling."""
    said = {word for word in words if word not in _UNSAID} or set(words)
    text = " ".join(word for word in words if word in said)
    scores: dict[str, float] = {}
    for key, (concept, _) in phrases.items():
        shared = len(key & said) / len(key | said) if (key & said) - _SIDES else 0.0
        spelled = max(fuzz.ratio(text, other) for other in (" ".join(sorted(key)), concept.name)) / 100
        scores[concept.name] = max(scores.get(concept.name, 0.0), 1.0 + shared if shared else spelled)
    return sorted((name for name in scores if scores[name] >= 0.6), key=lambda name: -scores[name])


def without_own_region(words: Sequence[str], spans: Sequence[Span], phrases: Phrases) -> list[str]:
    """`words` less those for the part of the body that the one found target lies in anyway.

    "abdominal aorta" and "the aorta, abdominal part" are the aorta where the anatomy table has it in the
    abdomen. Nothing is taken away where the vocabulary itself tells parts apart ("thoracic aorta").
    """
    region = region_of(spans[0].concept.name)
    found = {_meaning(words[span.start : span.stop]) for span in spans}
    if not region or any(key > one and (key - one) & _REGION_WORDS for key in phrases for one in found):
        return list(words)
    inside = {i for span in spans for i in range(span.start, span.stop)}
    kept = []
    for i, word in enumerate(words):
        own = i not in inside and anatomy.REGION_WORDS.get(word) == region
        after_own = i > 0 and i - 1 not in inside and anatomy.REGION_WORDS.get(words[i - 1]) == region
        if not own and not (after_own and i not in inside and word in _PIECES):
            kept.append(word)
    return kept


def context_of(words: Sequence[str]) -> set[int]:
    """The places of words that say what the image is, not what to outline: "in this liver CT", "brain MR"."""
    context: set[int] = set()
    for first, word in enumerate(words):
        i = first
        if word in _PLACE:
            while i < len(words) and words[i] in _FUNCTION_WORDS:
                i += 1
            stop = i + 4
            while i < min(len(words), stop) and words[i] not in _FUNCTION_WORDS | _IMAGE_WORDS | _EXCLUDING_WORDS:
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


def changes_the_target(words: Sequence[str], spans: Sequence[Span], context: set[int]) -> bool:
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
        if word in ("both", "bilateral") and not named & _SIDES:  # of a target that is itself both of them
            continue
        if word == "side" and i - 1 in inside and words[i - 1] in ("left", "right"):  # "kidney, left side"
            if following == "of":
                return True
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


def _touches(words: Sequence[str], i: int, span: Span) -> bool:
    """Whether word `i` stands by the span, or is tied to it by small words: "spots on the liver"."""
    if i < span.start:
        return all(word in _FUNCTION_WORDS for word in words[i + 1 : span.start])
    between = words[span.stop : i]
    return not between or (between[0] in _JOINING and all(word in _FUNCTION_WORDS for word in between))
