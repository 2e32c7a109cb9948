"""What every row of `ADAPTERS` keeps to on every row of `SYSTEMS`; new rows are asked the same without being named."""

from functools import cache

import pytest
import torch
from tests.contracts.untrained import NAMES, answer, paths, state, untrained, with_kinds

from delineate.adapters import AdapterConfig
from delineate.adapters.adapter import Adapted, attach, is_adapted
from delineate.systems import SYSTEMS

# Rows of one file and network have the same layers, and are one and the same to an adapter.
LAYERED = {(row.module, row.options.get("network")): name for name, row in reversed(SYSTEMS.items())}


@cache
def first_answer(name: str) -> torch.Tensor:
    return answer(untrained(name), n=1)


def shaken(adapted: Adapted) -> None:
    """The adapter's parameters as a training might leave them."""
    generator = torch.Generator().manual_seed(0)
    adapted.load({k: v + 0.05 * torch.randn(v.shape, generator=generator) for k, v in adapted.weights().items()})


@pytest.mark.parametrize(("name", "kind"), with_kinds(LAYERED.values()))
def test_an_adapter_is_exact_from_its_first_moment_to_its_last(name, kind):
    """Nothing changes at first, nor ever in the base; another attachment takes the weights over; merged is the same."""
    base = untrained(name)
    before, weights = first_answer(name), state(base)
    adapted = attach(base, AdapterConfig(kind, rank=2, alpha=2.0, singular=4), NAMES, seed=1)
    torch.testing.assert_close(answer(adapted.system, n=1), before, rtol=0, atol=1e-5)
    shaken(adapted)
    changed = answer(adapted.system, n=1)
    assert (changed - before).abs().max() > 1e-4
    again = attach(base, adapted.config, NAMES, seed=2)
    again.load(adapted.weights())
    assert torch.equal(answer(again.system, n=1), changed)
    merged = adapted.merged()
    assert not is_adapted(merged)
    assert paths(merged) == paths(base)
    assert state(merged).keys() == weights.keys()
    assert (answer(merged, n=1) - changed).abs().max() <= 2e-4
    assert all(torch.equal(v, weights[k]) for k, v in state(base).items())
