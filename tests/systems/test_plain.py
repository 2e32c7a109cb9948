from dataclasses import asdict

import pytest
import torch

from delineate.errors import ModelError
from delineate.networks import NETWORKS
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.systems import SYSTEMS
from delineate.systems.plain import PlainConfig, build
from delineate.systems.system import Asked

VOCABULARY = Vocabulary.from_names(["liver", "spleen", "aorta"], "CT")


@pytest.fixture(params=NETWORKS)
def config(request):
    return PlainConfig.preset(request.param, "tiny", 32)


@pytest.fixture
def system(config):
    return build(config, VOCABULARY, seed=0)


def test_probabilities_of_all_channels_add_up_to_one(system):
    seen = system.see(View(torch.randn(20, 3, 32, 32)))  # more than are seen at once
    assert seen.shape == (20, 4, 32, 32)
    torch.testing.assert_close(seen.sum(dim=1), torch.ones(20, 32, 32))


@pytest.mark.parametrize("name", VOCABULARY.names)
def test_each_target_has_the_channel_of_its_place_behind_background(system, name):
    """The block that answers is made to say this name everywhere, whatever comes in."""
    block = system.network.get_submodule(NETWORKS[system.config.network].answers_at)
    biases = []
    with torch.no_grad():
        for path, parameter in block.named_parameters():
            if len(parameter) == 4:
                parameter.zero_()
                biases += [parameter] if path.endswith("bias") else []
        biases[-1].copy_(torch.full((4,), -20.0).index_fill(0, torch.tensor(1 + VOCABULARY.index(name)), 20.0))
    seen = system.see(View(torch.randn(2, 3, 32, 32)))
    drawn = {c.name: system.propose(seen, Asked(c, c.name), 1, 0).probabilities for c in VOCABULARY.concepts}
    assert (drawn.pop(name) > 0.99).all()
    assert all((other < 0.01).all() for other in drawn.values())


def test_there_is_one_answer_whatever_number_and_seed(system):
    seen = system.see(View(torch.randn(2, 3, 32, 32)))
    target = Asked(VOCABULARY.concepts[0], "liver")
    one, other = system.propose(seen, target, 8, 0).probabilities, system.propose(seen, target, 2, 5).probabilities
    assert one.shape == (1, 2, 32, 32)
    assert torch.equal(one, other)


def test_a_seed_makes_one_network_and_leaves_the_global_generator_alone(config):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, same, other = (build(config, VOCABULARY, seed=s).network.state_dict() for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_the_base_mednext_is_the_paper_s_small_one():
    """MONAI's MedNeXtS with kernel 3: the same weights by name and shape."""
    from monai.networks.nets.mednext import MedNeXtS

    ours = NETWORKS["mednext"].build(3, 4, "base").state_dict()
    theirs = MedNeXtS(spatial_dims=2, in_channels=3, out_channels=4, kernel_size=3).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"network": "vnet"}, f"network is one of {', '.join(NETWORKS)}; got 'vnet'"),
        ({"network": "mednext", "widths": (16, 32, 48)}, r"double from level to level; got \(16, 32, 48\)"),
        ({"network": "unetpp", "widths": (8, 16)}, r"has 5 levels and the width of its last node; got \(8, 16\)"),
        ({"size": 36}, "4 levels need a size that is a multiple of 8; got 36"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        PlainConfig(**wrong)
    assert "\n" not in str(caught.value)


def test_a_folder_from_before_there_was_a_choice_holds_a_unet(tmp_path):
    made = build(PlainConfig(32, (8, 16)), VOCABULARY, seed=3)
    entry = SYSTEMS["unet"]
    config = entry.save(made, tmp_path)
    assert config == asdict(made.config)
    old = {"size": 32, "widths": [8, 16]}
    stack = torch.randn(2, 3, 32, 32)
    assert torch.equal(entry.load(tmp_path, old, VOCABULARY).see(View(stack)), made.see(View(stack)))
    with pytest.raises(ModelError, match=r"colour.: is not known here"):
        entry.load(tmp_path, {**old, "colour": "red"}, VOCABULARY)


def learns_the_organs(network, trained, bank):
    system = trained[network].system
    assert system.config.network == network
    seen = system.see(View(bank.images.float() / 127.5 - 1))
    truth = bank.labels == 1 + bank.vocabulary.index("liver")

    def dice(name):
        concept = system.vocabulary.concepts[system.vocabulary.index(name)]
        mask = system.propose(seen, Asked(concept, name), 1, 0).probabilities[0] >= 0.5
        return (2 * (mask & truth).sum() / (mask.sum() + truth.sum())).item()

    assert dice("liver") > 0.5
    assert dice("spleen") < 0.2
    assert not any(p.requires_grad for p in system.network.parameters())


def test_a_plain_network_learns_the_organs(trained, two_organ_bank):
    learns_the_organs("unet", trained, two_organ_bank)


@pytest.mark.slow  # that every network learns, not the U-Net alone
@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "unet"])
def test_every_network_learns_the_organs(network, trained, two_organ_bank):
    learns_the_organs(network, trained, two_organ_bank)
