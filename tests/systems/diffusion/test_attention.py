import pytest
import torch

from delineate.systems.diffusion.attention import CrossAttention, DualCrossAttention


def maps(rows=4, columns=6):
    torch.manual_seed(0)
    return torch.randn(2, 16, rows, columns), torch.randn(2, 24, rows, columns)


def trained(width=16, condition=24):
    torch.manual_seed(1)
    block = DualCrossAttention(width, condition)
    for part in (block.asks, block.asks_back):
        torch.nn.init.normal_(part.out.weight, std=0.5)
    return block


def test_untrained_it_changes_nothing_and_yet_learns():
    denoising, condition = maps()
    block = DualCrossAttention(16, 24)
    out = block(denoising, condition)
    torch.testing.assert_close(out, denoising)
    out.square().sum().backward()
    assert block.asks.out.weight.grad.abs().sum() > 0


def test_trained_it_depends_on_the_condition():
    denoising, condition = maps()
    block = trained()
    assert not torch.allclose(block(denoising, condition), block(denoising, condition.flip(0)))


def test_the_condition_asks_first_and_its_answer_reaches_the_denoiser():
    """Cascaded with alternating queries: with the first attention silenced the second finds something else."""
    denoising, condition = maps()
    block = trained()
    both = block(denoising, condition)
    torch.nn.init.zeros_(block.asks_back.out.weight)
    assert not torch.allclose(block(denoising, condition), both, atol=1e-4)


def test_it_is_the_cascade_that_its_docstring_says():
    denoising, condition = maps(1, 1)  # one token: attention is its value
    block = trained()

    def value(attention: CrossAttention, query, other):
        width = query.shape[-1]
        return attention.out(attention.key_value(attention.norm_other(other))[..., width:])

    df, cf = denoising.flatten(2).transpose(1, 2), condition.flatten(2).transpose(1, 2)
    cf = cf + value(block.asks_back, cf, df)
    df = df + value(block.asks, df, cf)
    torch.testing.assert_close(block(denoising, condition), df.transpose(1, 2).unflatten(2, (1, 1)))


def test_tokens_know_where_they_are():
    """Equal tokens everywhere but one: without places, moving that one would move nothing but itself."""
    block = trained()
    denoising, token = torch.zeros(1, 16, 4, 4), torch.randn(24)
    condition, moved = torch.zeros(1, 24, 4, 4), torch.zeros(1, 24, 4, 4)
    condition[..., 0, 0] = token
    moved[..., 3, 3] = token
    assert not torch.allclose(block(denoising, condition)[..., 1, 1], block(denoising, moved)[..., 1, 1], atol=1e-5)


def test_a_fine_grid_is_refused_before_it_fills_the_memory():
    with pytest.raises(ValueError, match="up to 64×64, not 65×64"):
        DualCrossAttention(16, 24)(torch.zeros(1, 16, 65, 64), torch.zeros(1, 24, 65, 64))
