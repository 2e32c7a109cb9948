"""A target that a model can be asked for."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Len

from delineate.storage.schema import Name

Names = Annotated[tuple[Name, ...], Len(0, 100)]


@dataclass(frozen=True)
class Concept:
    """One target.

    Attributes:
        name: the canonical one.
        synonyms: other names for it.
        modalities: it was seen in ("CT", "MR").
        parts: names of the same vocabulary, exclusive of each other, that it is made of; () where it is learnt itself.
    """

    name: Name
    synonyms: Names = ()
    modalities: Names = ()
    parts: Names = ()
