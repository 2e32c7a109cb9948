from dataclasses import asdict

import pytest
import torch

from delineate.networks import NETWORKS
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.systems import SYSTEMS
from delineate.systems.plain import PlainConfig, build
from delineate.systems.system import Asked

VOCABULARY = Vocabulary.from_names(["liver", "spleen", "aorta"], "CT")


@pytest.fixture(params=NETWORKS)
def config(request):
    return PlainConfig(size=32, widths=(8, 16), network=request.param)


@pytest.fixture
def system(config):
    return build(config, VOCABULARY, seed=0)


def test_probabilities_of_all_channels_add_up_to_one(system):
    seen = system.see(View(torch.randn(20, 3, 32, 32)))  # more than are seen at once
    assert seen.shape == (20, 4, 32, 32)
    torch.testing.assert_close(seen.sum(dim=1), torch.ones(20, 32, 32))


@pytest.mark.parametrize("name", VOCABULARY.names)
def test_each_target_has_the_channel_of_its_place_behind_background(system, name):
    bias = torch.full((4,), -20.0)
    bias[1 + VOCABULARY.index(name)] = 20.0
    kinds = torch.nn.Conv2d | torch.nn.ConvTranspose2d
    answering = [m for m in system.network.modules() if isinstance(m, kinds) and m.out_channels == 4]
    with torch.no_grad():
        for m in answering:  # all of them: the skip around the U-Net's last unit leads past its convolution
            m.weight.zero_()
            m.bias.zero_()
        answering[-1].bias.copy_(bias)
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


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("preset", ["tiny", "base"])
@pytest.mark.parametrize("size", [32, 96])
def test_any_multiple_of_32_is_a_working_grid(network, preset, size):
    """On no storage at all: only shapes are asked for."""
    widths, blocks = NETWORKS[network].presets[preset]
    system = build(PlainConfig(size, widths, network, blocks), VOCABULARY)
    system.network.to("meta")
    assert system.logits(torch.empty(1, 3, size, size, device="meta")).shape == (1, 4, size, size)


def test_the_base_mednext_is_the_paper_s_small_one():
    """MONAI's MedNeXtS with kernel 3: the same weights by name and shape."""
    from monai.networks.nets.mednext import MedNeXtS

    widths, blocks = NETWORKS["mednext"].presets["base"]
    ours = build(PlainConfig(32, widths, "mednext", blocks), VOCABULARY).network.state_dict()
    theirs = MedNeXtS(spatial_dims=2, in_channels=3, out_channels=4, kernel_size=3).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("network", NETWORKS)
def test_gradients_do_not_depend_on_the_order_in_memory(network):
    """Strided 1×1 convolutions wrote past their gradients in channels_last: its `layout` keeps MedNeXt out of it."""
    system = build(PlainConfig(32, (8, 16), network), VOCABULARY)
    image = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        loss = system.logits(image.contiguous(memory_format=layout)).square().mean()
        gradients.append(torch.autograd.grad(loss, list(system.network.parameters())))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"network": "vnet"}, "network is one of unet, mednext; got 'vnet'"),
        ({"network": "mednext", "widths": (16, 32, 48)}, r"double from level to level; got \(16, 32, 48\)"),
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
    assert torch.equal(entry.load(tmp_path, old, VOCABULARY).see(stack), made.see(View(stack)))
    with pytest.raises(TypeError, match="colour"):
        entry.load(tmp_path, {**old, "colour": "red"}, VOCABULARY)


@pytest.mark.parametrize("network", NETWORKS)
def test_it_learns_the_organs(network, trained, two_organ_bank):
    system = trained[network].system
    assert system.config.network == network
    seen = system.see(View(two_organ_bank.images.float() / 127.5 - 1))
    truth = two_organ_bank.labels == 1 + two_organ_bank.vocabulary.index("liver")

    def dice(name):
        concept = system.vocabulary.concepts[system.vocabulary.index(name)]
        mask = system.propose(seen, Asked(concept, name), 1, 0).probabilities[0] >= 0.5
        return (2 * (mask & truth).sum() / (mask.sum() + truth.sum())).item()

    assert dice("liver") > 0.5
    assert dice("spleen") < 0.2
    assert not any(p.requires_grad for p in system.network.parameters())
