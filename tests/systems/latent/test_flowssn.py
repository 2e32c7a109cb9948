"""What is Flow-SSN's own: the straight line, its Euler steps, and a base that learns through the flow."""

import pytest
import torch
from torch import Generator

from delineate.errors import DelineateError
from delineate.prompts.vocabulary import Vocabulary
from delineate.systems.latent import flowssn
from delineate.systems.latent.flowssn import FlowSSNConfig, flow_loss
from delineate.training.loop import Step

VOCABULARY = Vocabulary.from_names(["liver", "spleen"], "CT")
SMALL = FlowSSNConfig(32, (16, 32), (8, 8), steps=5)


@pytest.fixture
def system():
    return flowssn.build(SMALL, VOCABULARY, seed=1)


def test_a_flow_that_knows_the_mask_ends_on_it_wherever_it_began(system, monkeypatch):
    """The last Euler step goes all the way that is left."""
    labels = torch.randint(3, (2, 32, 32), generator=Generator().manual_seed(0))
    sure = 30.0 * torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2)
    monkeypatch.setattr(system, "logits", lambda y, t: sure)
    ended = system.follow(torch.randn(2, 3, 32, 32))
    assert torch.equal(ended.argmax(dim=1), labels)
    torch.testing.assert_close(ended.sum(dim=1), torch.ones(2, 32, 32))


def test_the_flow_is_asked_along_the_straight_line(system, monkeypatch):
    """With a fixed answer p, Euler's steps stay on the line from u to p: y_t = (1 - t) u + t p."""
    seen = []

    def answer(y, t):
        seen.append((float(t[0]), y.clone()))
        return torch.zeros_like(y)

    monkeypatch.setattr(system, "logits", answer)
    u, p = torch.randn(1, 3, 32, 32), torch.full((1, 3, 32, 32), 1 / 3)
    system.follow(u)
    assert [t for t, _ in seen] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    for t, y in seen:
        torch.testing.assert_close(y, (1 - t) * u + t * p)


def test_base_and_flow_learn_by_the_one_loss(system, two_organ_bank):
    bank_system = flowssn.build(FlowSSNConfig(two_organ_bank.size, (16, 32), (8, 8)), two_organ_bank.vocabulary)
    batch = two_organ_bank.draw(2, 0, Generator().manual_seed(0))
    loss, _ = flow_loss(bank_system, batch, Step(Generator().manual_seed(0)))
    loss.backward()
    for part in bank_system.parts.values():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())


def test_new_names_are_refused_with_what_to_do(system):
    with pytest.raises(DelineateError, match="leave their labels out"):
        system.widen(["kidney"])


def test_sizes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="multiple of 8"):
        FlowSSNConfig(100)
    with pytest.raises(ValueError, match="multiples of 8"):
        FlowSSNConfig(128, flow=(12, 12))
