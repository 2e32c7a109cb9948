"""What every row of `NETWORKS` keeps to, whoever wrote it; a new row is asked the same without being named here."""

import re
from functools import cache

import pytest
import torch
from tests.rounding import assert_same_up_to_rounding
from torch import Tensor, nn

from delineate.networks import NETWORKS

FLAT = [name for name, row in NETWORKS.items() if 2 in row.dims]
PRESETS = [(name, preset) for name in FLAT for preset in NETWORKS[name].presets]


def built(name: str, preset: str = "tiny", *, answers: int = 4, seed: int = 0) -> nn.Module:
    """A network for slices of three channels, from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return NETWORKS[name].build(3, answers, preset).eval()


@cache
def stirred(name: str) -> nn.Module:
    """A tiny one, every weight moved a little; do not change."""
    network, generator = built(name), torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network.requires_grad_(False)


def pictures(count: int, size: int = 64) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    return {path: value.shape for path, value in network.state_dict().items()}


@pytest.mark.parametrize(("name", "preset"), PRESETS)
@pytest.mark.parametrize("size", [64, 96])
def test_every_pixel_gets_a_logit_for_every_answer(name, preset, size):
    """The tiny ones are run; of larger ones only shapes are asked for, on no storage at all."""
    if preset == "tiny":
        logits = stirred(name)(pictures(2, size))
        assert logits.isfinite().all()
    else:
        with torch.device("meta"):
            logits = NETWORKS[name].build(3, 4, preset).eval()(torch.empty(2, 3, size, size))
    assert logits.shape == (2, 4, size, size)


@pytest.mark.parametrize(("name", "preset"), PRESETS)
def test_widths_say_what_sides_are_multiples_of(name, preset):
    multiple = NETWORKS[name].multiple_of(NETWORKS[name].presets[preset][0])
    assert 64 % multiple == 96 % multiple == 0


@pytest.mark.parametrize("name", FLAT)
def test_the_number_of_answers_changes_the_block_that_answers_alone(name):
    two, four = shapes(built(name, answers=2)), shapes(built(name, answers=4))
    assert two.keys() == four.keys()
    other = [path for path in two if two[path] != four[path]]
    assert other
    assert all(path.startswith(f"{NETWORKS[name].answers_at}.") for path in other)


@pytest.mark.parametrize("name", FLAT)
def test_the_decoder_is_a_part_of_the_network_and_ends_in_the_answers(name):
    row, weighted = NETWORKS[name], [path.rpartition(".")[0] for path, _ in stirred(name).named_parameters()]
    decoding = [path for path in weighted if re.match(row.decoder, path)]
    assert 0 < len(decoding) < len(weighted)
    answering = [path for path in weighted if f"{path}.".startswith(f"{row.answers_at}.")]
    assert answering
    assert set(answering) <= set(decoding)


@pytest.mark.parametrize("name", FLAT)
def test_a_slice_is_answered_the_same_in_any_company(name):
    network, batch = stirred(name), pictures(5)
    assert_same_up_to_rounding(network(batch)[3:].softmax(1), network(batch[3:]).softmax(1))


@pytest.mark.parametrize("name", FLAT)
def test_the_picture_is_heeded(name):
    one, other = stirred(name)(pictures(2)).softmax(1)
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("name", FLAT)
def test_every_weight_learns(name):
    network = built(name).train()
    network(pictures(2)).square().mean().backward()
    assert [path for path, parameter in network.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("name", FLAT)
def test_a_seed_makes_one_network(name):
    first, same, other = (built(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[path], same[path]) for path in first)
    assert any(not torch.equal(first[path], other[path]) for path in first)
