import pytest
import torch
from tests.rounding import assert_same_up_to_rounding
from torch.utils.flop_counter import FlopCounterMode

from delineate.diffusion.stages import Branch
from delineate.systems.diffusion.attention import DualCrossAttention
from delineate.systems.diffusion.denoiser import TwinDenoiser

WIDTHS, CONDITION = (8, 16, 16), (8, 8, 16)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return TwinDenoiser(4, WIDTHS, CONDITION, attends=(False, True, True))


def condition(batch=2, edge=16):
    torch.manual_seed(2)
    return [torch.randn(batch, c, edge // 2**i, edge // 2**i) for i, c in enumerate(CONDITION)]


def noisy(batch=2, edge=16):
    torch.manual_seed(3)
    return torch.randn(batch, 4, edge, edge)


def test_both_decoders_answer_on_the_grid_of_the_noisy_mask(network):
    answers = network(noisy(), torch.tensor([0, 999]), condition())
    assert set(answers) == set(Branch)
    assert all(a.shape == (2, 4, 16, 16) for a in answers.values())
    assert not torch.allclose(answers[Branch.MASK], answers[Branch.NOISE])


def test_one_decoder_gives_the_same_answer_for_less(network):
    def flops(branches):
        with FlopCounterMode(display=False) as counter:
            answers = network(noisy(), torch.tensor([5, 5]), condition(), branches)
        return counter.get_total_flops(), answers

    both, all_answers = flops(tuple(Branch))
    one, answers = flops((Branch.MASK,))
    torch.testing.assert_close(answers[Branch.MASK], all_answers[Branch.MASK])
    assert one < 0.8 * both


def test_it_listens_to_the_time_to_every_level_of_the_condition_and_to_the_noisy_mask(network):
    for module in network.modules():
        if isinstance(module, DualCrossAttention):
            torch.nn.init.normal_(module.asks.out.weight)
    t, levels = torch.tensor([5, 5]), condition()

    def answer(x=None, t=t, levels=levels):
        return network(noisy() if x is None else x, t, levels, (Branch.MASK,))[Branch.MASK]

    before = answer()
    assert not torch.allclose(answer(t=t + 500), before)
    assert not torch.allclose(answer(x=-noisy()), before)
    for i in range(len(levels)):
        assert not torch.allclose(answer(levels=[-v if i == j else v for j, v in enumerate(levels)]), before), i


def test_samples_of_a_batch_do_not_touch(network):
    t = torch.tensor([7, 900])
    whole = network(noisy(), t, condition())[Branch.NOISE]
    alone = network(noisy()[1:], t[1:], [level[1:] for level in condition()])[Branch.NOISE]
    assert_same_up_to_rounding(whole[1:], alone)


def test_an_encoder_level_serves_both_decoders(network):
    """Two decoders, one encoder: the loss of either reaches the stem."""
    for branch in Branch:
        network.zero_grad()
        network(noisy(), torch.tensor([1, 2]), condition(), (branch,))[branch].sum().backward()
        assert network.stem.weight.grad.abs().sum() > 0
        other = next(b for b in Branch if b is not branch)
        assert all(p.grad is None for p in network.decoders[other].parameters())
