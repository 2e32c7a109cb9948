"""The named ways to adapt a trained system with few weights. Adding one is a file here and an entry in `ADAPTERS`.

The table itself needs no torch: `delineate adapt --help` reads it.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


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
    rank: int = 8
    alpha: float = 8.0
    targets: str = "all"
    singular: int = 16

    def __post_init__(self):
        if self.kind not in ADAPTERS:
            raise ValueError(f"an adapter is one of {', '.join(ADAPTERS)}; got '{self.kind}'")
        if self.targets not in TARGETS:
            raise ValueError(f"targets are one of {', '.join(TARGETS)}; got '{self.targets}'")
        if self.rank < 1 or self.singular < 0 or not self.alpha > 0:
            raise ValueError(f"rank must be 1 or more, singular 0 or more, alpha above 0; got {self}")


@dataclass(frozen=True)
class Entry:
    """A kind of adapter.

    Attributes:
        summary: one line for people.
        source: the paper it follows.
        learning_rate: that suits it.
        fits: (path, layer, config) to whether the layer is one that it changes.
        wrap: (root, paths, config) puts adapted layers in the place of those at `paths`; they do as before.
        learnt: an adapted layer to the names of the parameters that are the adapter's own.
        fold: an adapted layer to a plain one that does the same.
    """

    summary: str
    source: str
    learning_rate: float
    fits: Callable[[str, "nn.Module", AdapterConfig], bool]
    wrap: Callable[["nn.Module", list[str], AdapterConfig], None]
    learnt: Callable[["nn.Module"], list[str]]
    fold: Callable[["nn.Module"], "nn.Module"]


TARGETS = ("all", "attention", "convolutions")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "query", "key_value", "out")  # diffusers' names and ours


def _is_target(path: str, layer: "nn.Module", config: AdapterConfig) -> bool:
    """Whether a layer is a linear one or a convolution among those that `config.targets` names."""
    from torch import nn

    attends = path.endswith(tuple(f".{name}" for name in ATTENTION))
    if isinstance(layer, nn.Linear):
        return config.targets == "all" or (config.targets == "attention" and attends)
    return isinstance(layer, nn.Conv2d) and layer.groups == 1 and config.targets != "attention"


def _has_weights(path: str, layer: "nn.Module", config: AdapterConfig) -> bool:
    return not any(layer.children()) and any(True for _ in layer.parameters())


DECODER = re.compile(
    r"""\bgrow\b|\bup\b|\bhead\b|\btrust\b|\bmix\b|\bdecoders\b|\bdetail\b|\bfrom_   # our own networks
    |^(network|member-\d+)\.model\..*\b2\b                                 # MONAI's U-Net: 0 down, 1 below, 2 up
    |^(network|member-\d+)\.(up_|out_)                           # MONAI's MedNeXt
    """,
    re.VERBOSE,
)


def _decodes(path: str, layer: "nn.Module", config: AdapterConfig) -> bool:
    """Whether a layer with weights lies on the way from features to answers, by the names that networks here have."""
    return _has_weights(path, layer, config) and DECODER.search(path) is not None


def _lora_wrap(root: "nn.Module", paths: list[str], config: AdapterConfig) -> None:
    from delineate.adapters.lora import wrap

    wrap(root, paths, config)


def _lora_learnt(layer: "nn.Module") -> list[str]:
    return [name for name, _ in layer.named_parameters() if name.startswith("lora_")]


def _lora_fold(layer: "nn.Module") -> "nn.Module":
    from delineate.adapters.lora import fold

    return fold(layer)


def _salt_wrap(root: "nn.Module", paths: list[str], config: AdapterConfig) -> None:
    from delineate.adapters.salt import Salt

    for path in paths:
        root.set_submodule(path, Salt(root.get_submodule(path), config.singular, config.rank))


def _salt_learnt(layer: "nn.Module") -> list[str]:
    return [name for name, _ in layer.named_parameters() if not name.startswith("base.")]


def _salt_fold(layer: "nn.Module") -> "nn.Module":
    from delineate.adapters.salt import Salt

    assert isinstance(layer, Salt)
    return layer.folded()


def _copy_wrap(root: "nn.Module", paths: list[str], config: AdapterConfig) -> None:
    from copy import deepcopy

    for path in paths:
        root.set_submodule(path, deepcopy(root.get_submodule(path)))


def _copy_learnt(layer: "nn.Module") -> list[str]:
    return [name for name, _ in layer.named_parameters()]


ADAPTERS: Mapping[str, Entry] = {
    "lora": Entry(
        "low-rank changes beside frozen weights",
        "Hu et al. 2022 (ICLR), LoRA, arXiv 2106.09685; as in ProGiDiff; by peft",
        5e-3,
        _is_target,
        _lora_wrap,
        _lora_learnt,
        _lora_fold,
    ),
    "salt": Entry(
        "scale and shift of the largest singular values, a low-rank change of the rest",
        "Elsayed et al. 2025, SALT, arXiv 2503.16055",
        1e-2,
        _is_target,
        _salt_wrap,
        _salt_learnt,
        _salt_fold,
    ),
    "full": Entry(
        "every weight: the comparison; as large as the model",
        "fine-tuning",
        1e-3,
        _has_weights,
        _copy_wrap,
        _copy_learnt,
        lambda layer: layer,
    ),
    "decoder": Entry(
        "every weight on the way from features to answers: the comparison",
        "fine-tuning",
        1e-3,
        _decodes,
        _copy_wrap,
        _copy_learnt,
        lambda layer: layer,
    ),
}
