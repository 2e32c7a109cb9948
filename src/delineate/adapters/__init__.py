"""The named ways to adapt a trained system with few weights. Adding one is a file here and a row in `ADAPTERS`.

The table itself needs no torch: `delineate adapt --help` reads it. Every file that a row names has the same four
functions:

    fits(path, layer, config, decoder) -> bool      whether the layer at this path is one that the adapter changes
    wrap(root, paths, config) -> None               puts adapted layers at `paths`; they do as before
    learnt(layer) -> list[str]                      names of an adapted layer's parameters that are the adapter's own
    fold(layer) -> nn.Module                        an adapted layer as a plain one that does the same
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Interval

if TYPE_CHECKING:
    from torch import nn

TARGETS = ("all", "attention", "convolutions")


@dataclass(frozen=True)
class AdapterRow:
    """A row: what an adapter is, and in which file of this folder it lives.

    Attributes:
        module: the file's name.
        summary: one line for people.
        source: the paper it follows.
        learning_rate: that suits it.
    """

    module: str
    summary: str
    source: str
    learning_rate: float

    def _file(self) -> Any:
        return import_module(f"delineate.adapters.{self.module}")

    def fits(self, path: str, layer: "nn.Module", config: "AdapterConfig", decoder: str) -> bool:
        """Whether a layer is one that it changes; `decoder` is the system's pattern of paths to its answers."""
        return self._file().fits(path, layer, config, decoder)

    def wrap(self, root: "nn.Module", paths: list[str], config: "AdapterConfig") -> None:
        """Put adapted layers in the place of those at `paths`; they do as before."""
        self._file().wrap(root, paths, config)

    def learnt(self, layer: "nn.Module") -> list[str]:
        """The names of an adapted layer's parameters that are the adapter's own."""
        return self._file().learnt(layer)

    def fold(self, layer: "nn.Module") -> "nn.Module":
        """An adapted layer as a plain one that does the same."""
        return self._file().fold(layer)


ADAPTERS: Mapping[str, AdapterRow] = {
    "lora": AdapterRow(
        "lora",
        "low-rank changes beside frozen weights",
        "Hu et al. 2022 (ICLR), LoRA, arXiv 2106.09685; as in ProGiDiff; by peft",
        5e-3,
    ),
    "salt": AdapterRow(
        "salt",
        "scale and shift of the largest singular values, a low-rank change of the rest",
        "Elsayed et al. 2025, SALT, arXiv 2503.16055",
        1e-2,
    ),
    "full": AdapterRow("full", "every weight: the comparison; as large as the model", "fine-tuning", 1e-3),
    "decoder": AdapterRow(
        "decoder", "every weight on the way from features to answers: the comparison", "fine-tuning", 1e-3
    ),
}


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter folder must say beside its weights.

    Attributes:
        kind: a key of `ADAPTERS`.
        rank: of the low-rank part.
        alpha: what the low-rank part of LoRA is multiplied with, over its rank.
        targets: which layers: "attention" (queries, keys, values and what follows), "convolutions", or "all", which
            takes in every other linear layer as well.
        singular: SALT's r, how many of the largest singular values are scaled and shifted.
    """

    kind: str = "lora"
    rank: Annotated[int, Interval(ge=1, le=1024)] = 8
    alpha: Annotated[float, Interval(gt=0, le=1e6)] = 8.0
    targets: str = "all"
    singular: Annotated[int, Interval(ge=0, le=8192)] = 16

    def __post_init__(self):
        if self.kind not in ADAPTERS:
            raise ValueError(f"an adapter is one of {', '.join(ADAPTERS)}; got '{self.kind}'")
        if self.targets not in TARGETS:
            raise ValueError(f"targets are one of {', '.join(TARGETS)}; got '{self.targets}'")
        if self.rank < 1 or self.singular < 0 or not self.alpha > 0:
            raise ValueError(f"rank must be 1 or more, singular 0 or more, alpha above 0; got {self}")
