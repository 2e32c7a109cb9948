"""A modality in any usual spelling becomes its code: "CTA", "computed tomography" and ["CT"] are CT."""

import re
from functools import cache

from delineate.errors import DelineateError
from delineate.prompts.anatomy import MODALITIES, MODALITY_CODES

_MR_SEQUENCE = re.compile(
    r"(cine )?mri?( .*)?|t[12]( ?(w|wi|c|ce|gd|spir|star|weighted)\b.*)?|t1gd|t1ce|flair|adc|dwi|swi|pd"
)


def modality_code(stated: object) -> str | None:
    """The code of a modality, as `anatomy.MODALITIES` has it; None where nothing is said.

    A word that is no known spelling stands for itself, and of a longer text the kind that it names is taken.

    >>> modality_code("Computed Tomography"), modality_code("contrast-enhanced CT"), modality_code(["MRI"])
    ('CT', 'CT', 'MR')
    >>> modality_code("Thermography"), modality_code(" ")
    ('Thermography', None)

    Raises:
        DelineateError: not a text or a list of one; or a text that names two kinds, such as "PET/CT".
    """
    if isinstance(stated, list | tuple) and len(stated) == 1:
        stated = stated[0]
    if stated is None:
        return None
    if not isinstance(stated, str):
        raise DelineateError(f"a modality must be one word such as CT, MR or US; got {stated!r}")
    plain = _plain(stated)
    if plain in _spellings():
        return _spellings()[plain]
    if _MR_SEQUENCE.fullmatch(plain):
        return "MR"
    named, rest = set(), f" {plain} "
    for words in sorted(_spellings(), key=len, reverse=True):  # "fundus photograph" before "photograph"
        if f" {words} " in rest and (len(words) > 2 or words in ("ct", "mr", "us")):
            named.add(_spellings()[words])
            rest = rest.replace(f" {words} ", "  ")
    if len(named) > 1:
        named.discard("photo")  # a photograph of what is also named
    if len(named) > 1:
        raise DelineateError(f"a modality must be one kind of picture; '{stated}' names {' and '.join(sorted(named))}")
    return named.pop() if named else stated.strip() or None


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


@cache
def _spellings() -> dict[str, str]:
    found = {_plain(words): code for code, spelt in MODALITIES.items() for words in spelt}
    return found | {_plain(words): code for words, code in MODALITY_CODES.items()}
