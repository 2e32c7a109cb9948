import pytest
import torch

from delineate.prompt import Vocabulary
from delineate.systems.system import Target
from delineate.systems.unet import UNetConfig, build

VOCABULARY = Vocabulary.from_names(["liver", "spleen", "aorta"], "CT")
CONFIG = UNetConfig(size=32, widths=(8, 16))


@pytest.fixture
def system():
    return build(CONFIG, VOCABULARY, seed=0)


def test_probabilities_of_all_channels_add_up_to_one(system):
    seen = system.see(torch.randn(20, 3, 32, 32))  # more than are seen at once
    assert seen.shape == (20, 4, 32, 32)
    torch.testing.assert_close(seen.sum(dim=1), torch.ones(20, 32, 32))


@pytest.mark.parametrize("name", VOCABULARY.names)
def test_each_target_has_the_channel_of_its_place_behind_background(system, name):
    bias = torch.full((4,), -20.0)
    bias[1 + VOCABULARY.index(name)] = 20.0
    last = [m for m in system.network.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(bias)
        for m in system.network.modules():  # the skip around the last unit leads past its convolution
            if isinstance(m, torch.nn.Conv2d | torch.nn.ConvTranspose2d) and m.out_channels == 4 and m is not last:
                m.weight.zero_()
                m.bias.zero_()
    seen = system.see(torch.randn(2, 3, 32, 32))
    drawn = {c.name: system.propose(seen, Target(c, c.name), 1, 0) for c in VOCABULARY.concepts}
    assert (drawn.pop(name) > 0.99).all()
    assert all((other < 0.01).all() for other in drawn.values())


def test_there_is_one_answer_whatever_number_and_seed(system):
    seen = system.see(torch.randn(2, 3, 32, 32))
    target = Target(VOCABULARY.concepts[0], "liver")
    one, other = system.propose(seen, target, 8, 0), system.propose(seen, target, 2, 5)
    assert one.shape == (1, 2, 32, 32)
    assert torch.equal(one, other)


def test_a_seed_makes_one_network_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, same, other = (build(CONFIG, VOCABULARY, seed=s).network.state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_it_learns_the_organs(trained, two_organ_bank):
    system = trained["unet"].system
    seen = system.see(two_organ_bank.images.float() / 127.5 - 1)
    truth = two_organ_bank.labels == 1 + two_organ_bank.vocabulary.index("liver")

    def dice(name):
        concept = system.vocabulary.concepts[system.vocabulary.index(name)]
        mask = system.propose(seen, Target(concept, name), 1, 0)[0] >= 0.5
        return (2 * (mask & truth).sum() / (mask.sum() + truth.sum())).item()

    assert dice("liver") > 0.5
    assert dice("spleen") < 0.2
    assert not any(p.requires_grad for p in system.network.parameters())
