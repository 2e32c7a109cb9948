import math

import pytest
import torch

from delineate.foundation.foundation import Foundation
from delineate.foundation.scan_control import SPREAD_AT_FIRST, TRUST_AT_FIRST, ScanControl
from delineate.synthesis.synthesizer import Synthesizer


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


def test_the_control_holds_its_own_encoder_head_and_detail(synthesizer):
    assert type(synthesizer.control) is ScanControl
    names = {name.split(".")[0] for name in synthesizer.control.state_dict()}
    assert names == {"encoder", "head", "from_features", "from_estimate", "from_text", "mix", "net", "detail"}


@torch.no_grad()
def test_every_residual_is_zero_at_first(in_colour, synthesizer):
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
