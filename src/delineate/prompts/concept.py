"""A target that a model can be asked for."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Concept:
    """One target: its canonical name, other names for it, the modalities it was seen in ("CT", "MR")."""

    name: str
    synonyms: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
