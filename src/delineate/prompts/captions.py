"""The captions that training reads: a concept's names, or what a whole scan shows, in people's words."""

from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Literal

from delineate.prompts import anatomy
from delineate.prompts.concept import Concept
from delineate.prompts.matching import region_of

_MASK_TEMPLATES = (
    "{name}",
    "the {name}",
    "outline the {name}",
    "segment the {name}",
    "segmentation mask of the {name}",
    "a mask of the {name}",
    "please outline the {name}",
    "please outline the whole {name} for me",
    "where is the {name}?",
    "show me the {name}",
    "I need a contour of the {name}",
    "find the {name} in this scan",
    "can you segment the {name} please?",
    "draw the outline of the entire {name}",
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


def captions(concept: Concept, modality: str | None = None, kind: Literal["mask", "scan"] = "mask") -> tuple[str, ...]:
    """The training captions of one concept: every name and synonym through every template, without repeats.

    Args:
        concept: what is outlined.
        modality: its code or a common spelling ("CT", "MRI", "US"); None leaves it out.
        kind: "mask" for what a prompt asks for, "scan" for the image that shows it.

    Returns:
        At least 12 captions for "mask"; the plainest, the bare name, comes first.
    """
    return _captions(concept, modality, kind)


@cache  # a training loop asks for the same few thousands of times
def _captions(concept: Concept, modality: str | None, kind: str) -> tuple[str, ...]:
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
    return _scan_captions(tuple(dict.fromkeys(names_present)), modality)


@lru_cache(maxsize=4096)
def _scan_captions(names: tuple[str, ...], modality: str | None) -> tuple[str, ...]:
    regions = {region_of(name) for name in names}
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
