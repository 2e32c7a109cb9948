"""Every row of `NETWORKS` in memory: its own layout is right, and the working grids of systems fit it."""

import copy

import pytest
import torch

from delineate.networks import NETWORKS

FLAT = [name for name, row in NETWORKS.items() if 2 in row.dims]


@pytest.mark.parametrize(("name", "preset"), [(name, preset) for name in FLAT for preset in NETWORKS[name].presets])
def test_any_multiple_of_32_is_a_working_grid(name, preset):
    assert 32 % NETWORKS[name].multiple_of(NETWORKS[name].presets[preset][0]) == 0


@pytest.mark.parametrize("name", FLAT)
def test_gradients_do_not_depend_on_the_order_in_memory(name):
    """Strided 1×1 convolutions wrote past their gradients in channels_last: MedNeXt's `layout` keeps it out of it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        own = NETWORKS[name].build(3, 4, "tiny").double()
    plain = copy.deepcopy(own).to(memory_format=torch.contiguous_format)
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    seen = own(x.contiguous(memory_format=getattr(torch, NETWORKS[name].layout)))
    found = torch.autograd.grad(seen.square().mean(), list(own.parameters()))
    expected = torch.autograd.grad(plain(x).square().mean(), list(plain.parameters()))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
