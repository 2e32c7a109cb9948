import math

import pytest
import torch
from safetensors import safe_open

from delineate.errors import ModelError
from delineate.foundation.control import SPREAD_AT_FIRST, TRUST_AT_FIRST, Control, Direction
from delineate.foundation.foundation import Foundation
from delineate.prompts.vocabulary import Vocabulary
from delineate.storage.shipped import house_folder
from delineate.storage.weights import load_weights, save_weights
from delineate.synthesis.synthesizer import Synthesizer
from delineate.systems.diffusion.progidiff import ProGiDiffConfig, build, clean_estimate

VOCABULARY = Vocabulary.from_names(["liver", "spleen"], "CT")


@pytest.fixture(scope="module")
def foundation():
    return Foundation.make("tiny", "unshuffle", ["the liver", "the spleen"], seed=0)


@pytest.fixture
def control(foundation):
    return build(ProGiDiffConfig(size=32), foundation, VOCABULARY).control.requires_grad_(True)


def inputs(foundation, control):
    """A pair of slices, noisy latents, times, texts and their hint."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 32, 32, generator=generator) * 2 - 1
    x_t = torch.randn(2, 64, 4, 4, generator=generator)
    text = foundation.encode_text(["the liver", "the spleen"])
    features = control.encoder(image)
    known = control.estimate(features, text.pooled).exp()
    probability = torch.stack([known[0, 1], known[1, 2]])[:, None]
    return x_t, torch.tensor([999, 10]), text, control.hint(features, probability, text.pooled, foundation.codec)


def steps(foundation, control, count):
    """Steps of an optimiser towards masks that are full."""
    optimizer = torch.optim.SGD(control.parameters(), lr=0.1)
    for _ in range(count):
        optimizer.zero_grad()
        x_t, t, text, hint = inputs(foundation, control)
        (clean_estimate(foundation, control, x_t, t, text, hint) - 0.5).square().mean().backward()
        optimizer.step()


def zero_convolutions(control):
    return [*control.net.controlnet_down_blocks, control.net.controlnet_mid_block]


@torch.no_grad()
def test_at_first_every_residual_is_exactly_zero(foundation, control):
    down, middle = control.residuals(*inputs(foundation, control))
    assert len(down) == len(control.net.controlnet_down_blocks) > 0
    assert all((residual == 0).all() for residual in [*down, middle])


@torch.no_grad()
def test_at_first_the_steered_foundation_is_the_foundation_to_the_bit(foundation, control):
    x_t, t, text, hint = inputs(foundation, control)
    down, middle = control.residuals(x_t, t, text, hint)
    alone = foundation.unet(x_t, t, encoder_hidden_states=text.tokens).sample
    steered = foundation.unet(
        x_t,
        t,
        encoder_hidden_states=text.tokens,
        down_block_additional_residuals=down,
        mid_block_additional_residual=middle,
    ).sample
    assert torch.equal(steered, alone)
    with_bias = [residual + 0.1 for residual in down]  # the comparison can fail
    assert not torch.equal(
        foundation.unet(
            x_t,
            t,
            encoder_hidden_states=text.tokens,
            down_block_additional_residuals=with_bias,
            mid_block_additional_residual=middle,
        ).sample,
        alone,
    )


@torch.no_grad()
def test_at_first_the_foundation_is_trusted_little_and_alike_everywhere(foundation, control):
    _, t, _, hint = inputs(foundation, control)
    x0, posterior = torch.randn_like(hint.estimate), torch.randn_like(hint.estimate)
    share = 1 / (1 + math.exp(2))
    torch.testing.assert_close(control.combine(x0, posterior, t, hint), share * x0 + (1 - share) * posterior)


@torch.no_grad()
def test_trust_leads_from_the_posterior_to_the_foundation(foundation, control):
    _, t, _, hint = inputs(foundation, control)
    x0 = torch.randn_like(hint.estimate)
    posterior = torch.randn_like(x0)
    control.trust.bias.fill_(-30.0)
    torch.testing.assert_close(control.combine(x0, posterior, t, hint), posterior)
    control.trust.bias.fill_(30.0)
    torch.testing.assert_close(control.combine(x0, posterior, t, hint), x0)


@torch.no_grad()
def test_trust_may_differ_by_time(foundation, control):
    _, _, _, hint = inputs(foundation, control)
    control.trust.weight.normal_(generator=torch.Generator().manual_seed(0))
    x0 = hint.estimate + 1
    early, late = (control.combine(x0, hint.estimate, torch.tensor([t, t]), hint) for t in (999, 10))
    assert not torch.allclose(early, late)


@torch.no_grad()
def test_targets_exclude_each_other_and_impossible_ones_get_nothing(foundation, control):
    features = control.encoder(torch.rand(2, 3, 32, 32))
    pooled = foundation.encode_text(["the liver", "the spleen"]).pooled
    shares = control.estimate(features, pooled).exp()
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(2, 32, 32))
    possible = torch.tensor([[True, False], [True, True]])
    masked = control.estimate(features, pooled, possible).exp()
    assert not masked[0, 2].any()
    torch.testing.assert_close(masked[1], shares[1])


def test_the_control_starts_as_a_copy_of_the_foundation_s_encoder_half(foundation, control):
    theirs = foundation.unet.state_dict()
    shared = {k: v for k, v in control.net.state_dict().items() if k in theirs}
    assert {k.split(".")[0] for k in shared} >= {"conv_in", "down_blocks", "mid_block", "time_embedding"}
    assert all(torch.equal(v, theirs[k]) for k, v in shared.items())


def test_one_step_moves_the_zero_convolutions_and_lets_gradients_through_to_the_hint(foundation, control):
    steps(foundation, control, 1)
    assert all(conv.weight.any() for conv in zero_convolutions(control))
    copied = control.net.down_blocks[0].resnets[0].conv1.weight
    assert not copied.grad.any()  # behind closed zero convolutions nothing arrives
    steps(foundation, control, 1)
    assert copied.grad.any()
    for name in ("from_features", "from_estimate", "from_text", "mix", "trust", "encoder", "head"):
        gradients = [p.grad for p in getattr(control, name).parameters()]
        assert all(g is not None for g in gradients), name
        assert any(g.any() for g in gradients), name


def test_the_encoder_is_reached_through_the_residuals_too_not_only_through_its_own_estimate(foundation, control):
    steps(foundation, control, 1)
    x_t, t, text, hint = inputs(foundation, control)
    down, _ = control.residuals(x_t, t, text, hint)
    control.zero_grad()
    down[0].sum().backward()
    assert control.encoder.stem.weight.grad.any()
    assert control.from_features.weight.grad.any()


def test_the_foundation_gets_no_gradient(foundation, control):
    steps(foundation, control, 1)
    assert all(p.grad is None for m in foundation.modules.values() for p in m.parameters())


def test_saved_weights_hold_the_custom_encoder_and_give_the_same_outputs(foundation, control, tmp_path):
    steps(foundation, control, 2)
    save_weights(control, tmp_path / "control.safetensors")
    assert {k.split(".")[0] for k in control.state_dict()} >= {"encoder", "head", "from_features", "mix", "net"}
    other = build(ProGiDiffConfig(size=32), foundation, VOCABULARY, seed=9).control
    with torch.no_grad():
        before = clean_estimate(foundation, control, *inputs(foundation, control))
        assert not torch.equal(before, clean_estimate(foundation, other, *inputs(foundation, other)))
        load_weights(other, tmp_path / "control.safetensors")
        assert torch.equal(before, clean_estimate(foundation, other, *inputs(foundation, other)))


def test_weights_of_another_shape_or_damaged_are_refused_in_one_line(foundation, control, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(control.head, path)
    with pytest.raises(ModelError, match="do not fit this model") as caught:
        load_weights(control, path)
    assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="do not fit this model"):
        load_weights(control.head, path)


def test_weights_may_lie_on_disk_in_half_precision(control, tmp_path):
    path = tmp_path / "weights.safetensors"
    wanted = control.head.weight.weight.detach().half().float()
    save_weights(control.head.half(), path)
    load_weights(control.head.float(), path)
    assert control.head.weight.weight.dtype == torch.float32
    assert torch.equal(control.head.weight.weight, wanted)


@torch.no_grad()
def test_pairs_are_picked_like_a_tensor(foundation, control):
    _, _, _, hint = inputs(foundation, control)
    picked = hint[torch.tensor([1, 1, 0])]
    assert torch.equal(picked.grid[2], hint.grid[0])
    assert torch.equal(picked.estimate[0], hint.estimate[1])


# Towards scans


@pytest.fixture(scope="module")
def in_colour():
    return Foundation.make("tiny", "unshuffle-rgb", ["the liver", "the spleen"], seed=0)


@pytest.fixture
def synthesizer(in_colour):
    return Synthesizer.make(in_colour, "tiny", seed=0)


def asked(foundation, count=2):
    """Edges, noisy latents, times and texts."""
    generator = torch.Generator().manual_seed(0)
    edges = (torch.rand(count, 1, 32, 32, generator=generator) > 0.8).float()
    x_t = torch.randn(count, foundation.codec.channels, 4, 4, generator=generator)
    text = foundation.encode_text(["the liver", "the spleen"][:count])
    return edges, x_t, torch.tensor([999, 300][:count]), text


def test_one_class_serves_both_directions_and_each_has_what_it_needs(control, synthesizer):
    assert type(synthesizer.control) is type(control) is Control
    masks, scans = ({name.split(".")[0] for name in c.state_dict()} for c in (control, synthesizer.control))
    assert masks - scans == {"trust"}
    assert scans - masks == {"detail"}
    assert scans >= {"encoder", "head", "from_features", "from_estimate", "from_text", "mix", "net"}


def test_the_house_model_knows_the_control_it_was_trained_with():
    """Names of weights are a format: those of the direction that was first have not changed."""
    with safe_open(house_folder() / "control.safetensors", "pt") as file:
        house = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    made = Foundation.load(house_folder() / "foundation")
    own = build(ProGiDiffConfig(size=32, encoder="small"), made, VOCABULARY).control.state_dict()
    assert {name: tuple(value.shape) for name, value in own.items()} == house


@torch.no_grad()
def test_towards_scans_too_every_residual_is_zero_at_first(in_colour, synthesizer):
    edges, x_t, t, text = asked(in_colour)
    hint = synthesizer.look(edges, text).hint
    down, middle = synthesizer.control.residuals(x_t, t, text, hint)
    assert all((residual == 0).all() for residual in [*down, middle])
    steered = synthesizer.control.steer(in_colour, x_t, t, text, hint)
    alone = in_colour.unet(x_t, t, encoder_hidden_states=text.tokens).sample
    assert torch.equal(steered, in_colour.schedule.to_x0(alone, x_t, t))


@torch.no_grad()
def test_at_first_the_detail_only_weighs_by_bayes_rule_and_adds_nothing(in_colour, synthesizer):
    """The scan is Gaussian about the expected one, the noise Gaussian too: the posterior mean is known."""
    edges, x_t, t, text = asked(in_colour)
    seen = synthesizer.look(edges, text)
    a, sigma = in_colour.schedule.signal_and_noise(t, x_t)
    mean = seen.hint.estimate
    known, heard = 1 / SPREAD_AT_FIRST**2, (a / sigma) ** 2
    posterior = (known * mean + heard * x_t / a.clamp(min=1e-9)) / (known + heard)
    rough, share = torch.randn_like(x_t), 1 / (1 + math.exp(-TRUST_AT_FIRST))
    refined = synthesizer.control.refine(rough, x_t, t, seen.hint, seen.fine, in_colour)
    torch.testing.assert_close(refined, share * rough + (1 - share) * posterior, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_a_detail_that_was_taught_adds_to_the_scan(in_colour, synthesizer):
    edges, x_t, t, text = asked(in_colour)
    seen = synthesizer.look(edges, text)
    before = synthesizer.clean(x_t, t, text, seen)
    torch.nn.init.normal_(synthesizer.control.detail.out.weight, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(synthesizer.clean(x_t, t, text, seen), before, atol=1e-2)


@torch.no_grad()
def test_without_pixels_there_is_no_detail():
    foundation = Foundation.make("tiny", "vae", ["the liver", "the spleen"], seed=0)
    synthesizer = Synthesizer.make(foundation, "tiny")
    assert synthesizer.control.detail is None
    edges, x_t, t, text = asked(foundation)
    seen = synthesizer.look(edges, text)
    assert torch.equal(
        synthesizer.clean(x_t, t, text, seen), synthesizer.control.steer(foundation, x_t, t, text, seen.hint)
    )
    noise = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    assert synthesizer.draw(edges, text, lambda step: noise, steps=2).shape == (2, 3, 32, 32)


def test_directions_are_named():
    assert [direction.value for direction in Direction] == ["masks", "scans"]
