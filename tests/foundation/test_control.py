import pytest
import torch

from delineate.errors import ModelError
from delineate.foundation.control import BROUGHT
from delineate.foundation.foundation import Foundation
from delineate.networks.encoder import Features
from delineate.networks.spread import COOL, MOST, PROBIT
from delineate.prompts.vocabulary import Vocabulary
from delineate.storage.weights import load_weights, save_weights
from delineate.systems.diffusion.progidiff import ProGiDiffConfig, build

VOCABULARY = Vocabulary.from_names(["liver", "spleen"], "CT")


@pytest.fixture(scope="module", params=["unshuffle", "vae"])
def foundation(request):
    return Foundation.make("tiny", request.param, ["the liver", "the spleen"], seed=0)


@pytest.fixture
def control(foundation):
    return build(ProGiDiffConfig(size=32), foundation, VOCABULARY).control.requires_grad_(True)


def seen(foundation, control, seed=0):
    """Two (slice, prompt) pairs: features, probabilities, texts."""
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    text = foundation.encode_text(["the liver", "the spleen"])
    features = control.encoder(image)
    known = control.estimate(features, text.pooled).exp()
    return features, torch.stack([known[0, 1], known[1, 2]])[:, None], text


def drawn(foundation, control, t=999, seed=0, hint=None):
    """Log-odds of a draw of both."""
    generator = torch.Generator().manual_seed(seed)
    features, probability, text = seen(foundation, control)
    hint = control.hint(features, probability, text.pooled) if hint is None else hint
    channels = foundation.codec.channels
    field = torch.randn(2, 1, 32, 32, generator=generator)
    x_t = foundation.codec.of_field(field, lambda: torch.randn(2, channels, 4, 4, generator=generator))
    pixels = foundation.codec.on_pixels(x_t, field)
    steering = control.residuals(t, text, hint, channels)
    return control.draw(foundation, x_t, pixels, t, text, steering, hint), hint, pixels


def steps(foundation, control, count):
    """Steps of an optimiser towards masks that are full."""
    optimizer = torch.optim.SGD(control.parameters(), lr=1e-5)
    for _ in range(count):
        optimizer.zero_grad()
        (drawn(foundation, control)[0] - 3).square().mean().backward()
        optimizer.step()


@torch.no_grad()
def test_a_control_that_has_learnt_nothing_draws_the_floor(foundation, control):
    logit, _, pixels = drawn(foundation, control)
    odds = torch.logit(seen(foundation, control)[1].clamp(1e-6, 1 - 1e-6)).clamp(-MOST, MOST)
    start = odds / COOL + PROBIT * pixels
    nothing = torch.zeros(2, foundation.codec.channels, 4, 4)
    floor = foundation.codec.changed(start.clamp(-MOST, MOST), nothing)
    torch.testing.assert_close(logit, floor, atol=1e-3, rtol=1e-3)
    if foundation.codec_name == "unshuffle":
        torch.testing.assert_close(logit, start.clamp(-MOST, MOST), atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_all_levels_of_the_encoder_and_the_text_reach_the_hint(foundation, control):
    features, probability, text = seen(foundation, control)
    plain = control.hint(features, probability, text.pooled).grid
    assert plain.shape[2:] == (4, 4)
    assert len(features.levels) >= len(BROUGHT)
    for i, level in enumerate(features.levels[: len(BROUGHT)]):
        changed = Features((*features.levels[:i], level + torch.randn_like(level), *features.levels[i + 1 :]))
        assert not torch.allclose(control.hint(changed, probability, text.pooled).grid, plain)
    assert not torch.allclose(control.hint(features, probability, text.pooled.flip(0)).grid, plain)
    assert not torch.allclose(control.hint(features, 1 - probability, text.pooled).grid, plain)


@torch.no_grad()
def test_sure_pixels_stay_finite(foundation, control):
    features, probability, text = seen(foundation, control)
    hint = control.hint(features, (probability > probability.mean()).float(), text.pooled)
    assert hint.start.odds.abs().max() <= MOST / COOL
    assert torch.isfinite(drawn(foundation, control, hint=hint)[0]).all()


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


def test_the_way_out_opens_first_and_then_everything_learns(foundation, control):
    steps(foundation, control, 1)
    assert control.out.weight.any()
    assert not control.net.conv_in.weight.grad.any()  # behind a closed way out nothing arrives
    steps(foundation, control, 1)
    for name in ("bring", "told", "mix", "net", "out", "encoder", "head"):
        gradients = [p.grad for p in getattr(control, name).parameters() if p.grad is not None]
        assert any(g.any() for g in gradients), name


def test_the_foundation_gets_no_gradient(foundation, control):
    steps(foundation, control, 1)
    assert all(p.grad is None for m in foundation.modules.values() for p in m.parameters())


def test_saved_weights_hold_the_custom_encoder_and_give_the_same_outputs(foundation, control, tmp_path):
    steps(foundation, control, 2)
    save_weights(control, tmp_path / "control.safetensors")
    names = {k.split(".")[0] for k in control.state_dict()}
    assert names == {"encoder", "head", "bring", "told", "mix", "net", "out"}
    other = build(ProGiDiffConfig(size=32), foundation, VOCABULARY, seed=9).control
    with torch.no_grad():
        before = drawn(foundation, control)[0]
        assert not torch.equal(before, drawn(foundation, other)[0])
        load_weights(other, tmp_path / "control.safetensors")
        assert torch.equal(before, drawn(foundation, other)[0])


def test_weights_of_another_shape_or_damaged_are_refused_in_one_line(foundation, control, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(control.head, path)
    with pytest.raises(ModelError, match=r"the weights (do not fit this model|cannot be read)") as caught:
        load_weights(control, path)
    assert "\n" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"the weights (do not fit this model|cannot be read)"):
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
    features, probability, text = seen(foundation, control)
    hint = control.hint(features, probability, text.pooled)
    picked = hint[torch.tensor([1, 1, 0])]
    assert torch.equal(picked.grid[2], hint.grid[0])
    assert torch.equal(picked.start.odds[1], hint.start.odds[1])
    steering = control.residuals(999, text, hint, foundation.codec.channels)
    again = steering[torch.tensor([1, 0])]
    assert torch.equal(again.middle[0], steering.middle[1])
    assert all(torch.equal(a[1], b[0]) for a, b in zip(again.down, steering.down, strict=True))
