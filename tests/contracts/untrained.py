"""Every row of `SYSTEMS` untrained, its weights stirred: what contracts are asked of."""

import copy
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from delineate.adapters import ADAPTERS
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.systems import SYSTEMS
from delineate.systems.system import Asked, Clues

SIZE = 32
THOROUGH = ("unet", "encoder")  # a plain system and one of the diffusion family
FEWEST = 250  # times between two steps
NAMES = Vocabulary.from_names(["liver", "spleen"], "CT")


def fresh(name: str, **options: Any) -> Any:
    """An untrained tiny system that is the test's own; a chain of a hundred steps takes four."""
    system = SYSTEMS[name].make("tiny", SIZE, NAMES, seed=0, modalities=("CT",), **options)
    stages = getattr(system.config, "stages", None)
    if stages is not None and stages.interval < FEWEST:
        system.config = replace(system.config, stages=replace(stages, interval=FEWEST))
    return system


def stirred(system: Any) -> Any:
    """Every weight moved a little, so that no layer is one of zeros behind which a change could hide."""
    generator = torch.Generator().manual_seed(1)
    for part in system.parts.values():
        for parameter in part.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        part.requires_grad_(False)
    return system


@cache
def untrained(name: str) -> Any:
    """A stirred one, made once; do not change."""
    return stirred(fresh(name))


def with_kinds(names: Iterable[str]) -> list[Any]:
    """Pairs of a system and a kind of adapter: all of `THOROUGH`, of every other system one by turns; the rest is slow."""
    return [
        pytest.param(name, kind, marks=[] if name in THOROUGH or (i + k) % len(ADAPTERS) == 0 else [pytest.mark.slow])
        for (i, name), (k, kind) in product(enumerate(names), enumerate(ADAPTERS))
    ]


def slices(count: int) -> Tensor:
    """Pictures (count, 3, SIZE, SIZE)."""
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3)) * 2 - 1


def asked(name: str = "liver", clues: Clues | None = None) -> Asked:
    """Of a name of the vocabulary."""
    concept = NAMES.concepts[NAMES.index(name)]
    return Asked(concept, f"{name}, CT", name, clues or Clues())


def answer(system: Any, stack: Tensor | None = None, n: int = 3, seed: int = 0, **about: Any) -> Tensor:
    """Proposals (N, S, SIZE, SIZE) for one slice, or for those of `stack`."""
    seen = system.see(View(slices(1) if stack is None else stack))
    return system.propose(seen, asked(**about), n, seed).probabilities


def paths(system: Any) -> list[str]:
    """Of the modules, within `parts`, that hold weights of their own."""
    modules = nn.ModuleDict(system.parts).named_modules()
    return [path for path, module in modules if any(True for _ in module.parameters(recurse=False))]


def state(system: Any) -> dict[str, Tensor]:
    """A copy of all that the parts hold."""
    return copy.deepcopy(nn.ModuleDict(system.parts).state_dict())
