"""A target that a model can be asked for."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Len

from delineate.storage.schema import Name

Names = Annotated[tuple[Name, ...], Len(0, 100)]


@dataclass(frozen=True)
class Concept:
    """One target: its canonical name, other names for it, the modalities it was seen in ("CT", "MR")."""

    name: Name
    synonyms: Names = ()
    modalities: Names = ()
