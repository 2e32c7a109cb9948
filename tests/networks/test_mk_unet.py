import pytest
import torch
from torch import nn
from torch.nn import functional as F

from delineate.networks.mk_unet import MK_UNET_WIDTHS, MKUNet
from delineate.networks.multi_kernel import (
    ChannelAttention,
    GroupedGate,
    MultiKernelAttention,
    MultiKernelConv,
    MultiKernelResidual,
    PairedConv,
    SpatialAttention,
)

TINY = MK_UNET_WIDTHS["tiny"]


def seeded(build, *arguments, **named):
    """A block in use, whose batch normalisations are not the identity."""
    torch.manual_seed(0)
    block = build(*arguments, **named)
    for part in block.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.running_mean, std=0.1)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.normal_(part.bias, std=0.5)
    return block.eval()


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def weights(module):
    return sum(weight.numel() for weight in module.parameters())


def test_a_block_is_the_sum_of_separate_depthwise_convolutions():
    block, x = seeded(MultiKernelConv, 4, kernels=(1, 3, 5)), image(2, 4, 9, 8)
    expected = torch.zeros_like(x)
    for (conv, norm), kernel in zip(block.branches, (1, 3, 5), strict=True):
        y = F.conv2d(x, conv.weight.reshape(4, 1, kernel, kernel), padding=kernel // 2, groups=4)
        expected += F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias).clamp(0, 6)
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("kernels", [(1,), (3,), (1, 3, 5), (5, 3, 1), (1, 7)])
def test_a_block_sees_as_far_as_its_largest_kernel_and_each_channel_only_itself(kernels):
    block, reach = MultiKernelConv(3, kernels).eval(), max(kernels) // 2
    for part in block.modules():  # every branch lets through what it sees
        if isinstance(part, nn.BatchNorm2d):
            nn.init.ones_(part.bias)
        elif hasattr(part, "weight"):
            nn.init.constant_(part.weight, 0.01)
    x = torch.zeros(1, 3, 15, 15, requires_grad=True)
    block(x)[0, 1, 7, 7].backward()
    assert x.grad is not None
    seen = x.grad[0].nonzero()
    assert set(seen[:, 0].tolist()) == {1}
    assert seen[:, 1:].min() == 7 - reach
    assert seen[:, 1:].max() == 7 + reach
    assert len(seen) == max(kernels) ** 2


@pytest.mark.parametrize("kernels", [(), (1, 4), (-1, 3)])
def test_kernels_without_a_middle_are_refused_in_one_line(kernels):
    with pytest.raises(ValueError, match=r"kernels must be odd sides such as \(1, 3, 5\), not .*$") as refused:
        MultiKernelConv(4, kernels)
    assert "\n" not in str(refused.value)


def test_a_residual_block_with_nothing_to_say_passes_its_input_on():
    x = image(2, 6, 8, 8)
    same, other = seeded(MultiKernelResidual, 6, 6), seeded(MultiKernelResidual, 6, 10)
    assert not torch.allclose(same(x), x, atol=0.1)
    for block in (same, other):
        nn.init.zeros_(block.narrow[1].weight)
        nn.init.zeros_(block.narrow[1].bias)
    torch.testing.assert_close(same(x), x)
    torch.testing.assert_close(other(x), F.conv2d(x, other.skip.weight))


def test_a_residual_block_widens_to_twice_its_input_cuts_off_and_ends_without_an_activation():
    block, x = seeded(MultiKernelResidual, 6, 10), 9 * image(2, 6, 8, 8)
    wide = block.widen(x)
    assert wide.shape[1] == 12
    assert wide.min() < 0
    assert wide.max() > 6
    torch.testing.assert_close(block(x), block.skip(x) + block.narrow(block.look(wide.clamp(0, 6))))
    assert (block.narrow(block.look(wide.clamp(0, 6))) < 0).any()


def test_channel_attention_scales_channels_by_what_the_paper_says():
    block, x = seeded(ChannelAttention, 8), image(2, 8, 5, 7)
    share = block(x) / x
    torch.testing.assert_close(share, share[:, :, :1, :1].expand_as(share))  # the same at every pixel
    assert share.std(dim=1).min() > 0.01  # and not for every channel

    def asked(pooled):
        return F.conv2d(F.relu(F.conv2d(pooled, block.narrow.weight)), block.widen.weight)

    expected = (asked(F.adaptive_max_pool2d(x, 1)) + asked(F.adaptive_avg_pool2d(x, 1))).sigmoid()
    torch.testing.assert_close(share[:, :, :1, :1], expected)


@pytest.mark.parametrize(("width", "inner"), [(160, 10), (96, 6), (16, 4), (4, 4)])
def test_channel_attention_narrows_but_never_to_a_single_channel(width, inner):
    assert weights(ChannelAttention(width)) == 2 * width * inner


def test_spatial_attention_scales_pixels_by_a_neighbourhood_of_seven():
    block, x = seeded(SpatialAttention), image(1, 4, 15, 15)
    share = block(x) / x
    torch.testing.assert_close(share, share[:, :1].expand_as(share))
    changed = x.clone()
    changed[..., 7, 7] += 1
    rows, columns = (block(changed) / changed - share).abs()[0, 0].gt(1e-4).nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (4, 10, 4, 10)


def test_attention_comes_before_the_kernels_channels_first():
    block, x = seeded(MultiKernelAttention, 6, 4), image(2, 6, 8, 8)
    torch.testing.assert_close(block(x), block.residual(block.pixels(block.channels(x))))
    assert not torch.allclose(block(x), block.residual(x))
    assert not torch.allclose(block(x), block.residual(block.channels(block.pixels(x))))


def test_pairs_of_channels_are_a_grouped_convolution():
    block, x = seeded(PairedConv, 6, 3), image(2, 6, 8, 8)
    grouped = F.conv2d(x, block.each.weight.reshape(3, 2, 3, 3), padding=1, groups=3)
    torch.testing.assert_close(block(x), grouped)


def test_a_gate_can_close_a_skip_and_open_it():
    gate, guide, skip = seeded(GroupedGate, 6), image(2, 6, 8, 8), image(2, 6, 8, 8).flip(0)
    share = gate(guide, skip) / skip
    torch.testing.assert_close(share, share[:, :1].expand_as(share))  # one openness for all channels of a pixel
    assert 0 < share.min() < share.max() < 1
    nn.init.constant_(gate.openness[1].bias, -100.0)
    assert gate(guide, skip).abs().max() < 1e-20
    nn.init.constant_(gate.openness[1].bias, 100.0)
    torch.testing.assert_close(gate(guide, skip), skip)


def test_a_gate_is_opened_by_what_the_decoder_knows():
    gate, skip = seeded(GroupedGate, 6), image(2, 6, 8, 8)
    guide = image(2, 6, 8, 8).flip(0).requires_grad_()
    gate(guide, skip)[0, :, 4, 4].sum().backward()
    assert guide.grad is not None
    assert guide.grad[0].abs().amax(dim=0).count_nonzero() == 9  # its 3×3 neighbourhood
    assert guide.grad[1].count_nonzero() == 0


def test_a_gate_of_an_odd_width_is_refused():
    with pytest.raises(ValueError, match=r"its width must be even, not 5$"):
        GroupedGate(5)


@pytest.mark.parametrize(
    ("name", "published"), [("tiny", 0.027e6), ("small", 0.093e6), ("base", 0.316e6)], ids=["tiny", "small", "base"]
)
def test_weights_are_as_many_as_the_paper_says(name, published):
    count = weights(MKUNet(3, 1, MK_UNET_WIDTHS[name]))
    print(f"MK-UNet {name}: {count} weights")
    assert count == pytest.approx(published, rel=0.045)  # tiny has 0.0007e6 more, for wider channel attention
    assert weights(MKUNet(3, 2)) < 0.35e6


@pytest.mark.parametrize("size", [32, 64, 96, 128, 256])
def test_it_answers_at_the_size_of_the_image_training_and_in_use(size):
    network = MKUNet(3, 2, TINY)
    assert network(image(2, 3, size, size)).shape == (2, 2, size, size)
    assert network.eval()(image(1, 3, size, size)).shape == (1, 2, size, size)


def test_images_need_not_be_square_and_fewer_levels_need_smaller_multiples():
    assert MKUNet(1, 3, (4, 8, 9)).eval()(image(1, 1, 24, 40)).shape == (1, 3, 24, 40)


def test_the_deepest_level_of_a_small_image_still_says_something():
    network, x = seeded(MKUNet, 3, 2, TINY), image(2, 3, 32, 32)
    before = network(x)
    for weight in network.decode[0].parameters():
        nn.init.zeros_(weight)
    assert (network(x) - before).abs().max() > 1e-4


def test_every_skip_reaches_the_answer():
    network, x = seeded(MKUNet, 3, 2, TINY), image(1, 3, 64, 64)
    before = network(x)
    assert len(network.gate) == 4
    for gate in network.gate:
        nn.init.constant_(gate.openness[1].bias, -100.0)
        after = network(x)
        assert (after - before).abs().max() > 1e-4
        before = after


def test_answers_are_read_off_before_enlarging_which_changes_nothing():
    network, x = seeded(MKUNet, 3, 2, TINY), image(1, 3, 64, 64)
    seen = []
    handle = network.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = network(x)
    handle.remove()
    late = network.head(F.interpolate(seen[0], scale_factor=2, mode="bilinear", align_corners=False))
    torch.testing.assert_close(logits, late)


def test_the_head_alone_has_a_channel_for_each_answer():
    network, wider = MKUNet(3, 2, TINY), MKUNet(3, 5, TINY)
    differ = {k for k, v in network.state_dict().items() if v.shape != wider.state_dict()[k].shape}
    assert differ == {"head.weight", "head.bias"}
    assert {name for name, _ in network.named_children()} == {"encode", "decode", "gate", "head"}


def test_answers_of_a_batch_are_those_of_its_images_one_by_one():
    network, x = seeded(MKUNet, 3, 2), image(4, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(x), torch.cat([network(one) for one in x.split(1)]), atol=1e-5, rtol=0)


def test_memory_format_of_the_image_does_not_matter():
    network, x = seeded(MKUNet, 3, 2, TINY), image(2, 3, 64, 64)
    torch.testing.assert_close(network(x.contiguous(memory_format=torch.channels_last)), network(x))


def test_a_seed_settles_it():
    def step():
        torch.manual_seed(3)
        network = MKUNet(3, 2, TINY)
        network(image(2, 3, 64, 64)).square().mean().backward()
        return [weight.grad for weight in network.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(step(), step(), strict=True))


def test_every_weight_learns():
    torch.manual_seed(0)
    network = MKUNet(3, 2)
    F.binary_cross_entropy_with_logits(network(image(2, 3, 64, 64)), (image(2, 2, 64, 64) > 0).float()).backward()
    silent = [name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert silent == []


def test_it_learns_a_disc_from_its_brightness():
    torch.manual_seed(0)
    network = MKUNet(1, 1, (4, 8, 8))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = torch.stack(
        [((y - a) ** 2 + (x - b) ** 2 < 49).float() for a, b in ((12, 12), (20, 14), (14, 21), (18, 18))]
    )
    picture = (disc + 0.3 * image(4, 32, 32))[:, None]
    for _ in range(15):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(network(picture), disc[:, None]).backward()
        optimizer.step()
    mask = network(picture)[:, 0] > 0
    assert 2 * (mask * disc).sum() / (mask.sum() + disc.sum()) > 0.9


@pytest.mark.parametrize("widths", [(), (16,), (16, 31, 64), (0, 16), (16, -2)])
def test_wrong_widths_are_refused_in_one_line(widths):
    with pytest.raises(ValueError, match=r"widths must be two or more, positive, and even") as refused:
        MKUNet(3, 2, widths)
    assert "\n" not in str(refused.value)
    assert str(widths) in str(refused.value)


def test_sizes_that_cannot_be_halved_are_refused():
    with pytest.raises(ValueError, match="5 levels need sides that are multiples of 32, not 64×72"):
        MKUNet(3, 2, TINY)(image(2, 3, 64, 72))


def test_one_image_of_one_deepest_pixel_cannot_train():
    with pytest.raises(ValueError, match="training on 32×32 needs a batch of two or more"):
        MKUNet(3, 2, TINY)(image(1, 3, 32, 32))
