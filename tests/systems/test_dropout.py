from dataclasses import replace

import pytest
import torch
from tests.rounding import assert_same_up_to_rounding
from torch import nn

from delineate.adapters import AdapterConfig
from delineate.adapters.adapter import attach
from delineate.errors import ModelError
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.systems import SYSTEMS, plain
from delineate.systems.dropout import DropoutConfig, SharedDropout, build, fresh_masks, lending, shared_mask
from delineate.systems.plain import PlainConfig
from delineate.systems.system import Asked
from delineate.training.loop import Budget, Interrupted, Run, Step, train_phases

VOCABULARY = Vocabulary.from_names(["liver", "spleen"], "CT")
LIVER = Asked(VOCABULARY.concepts[0], "liver")
CONFIG = DropoutConfig(PlainConfig(32, (8, 16)))
STACK = torch.randn(17, 3, 32, 32, generator=torch.Generator().manual_seed(0))  # more than are seen at once


@pytest.fixture
def system():
    return build(CONFIG, VOCABULARY)


def small(bank):
    return build(DropoutConfig(PlainConfig(32, (4, 8))), bank.vocabulary)


def drawn(system, n=3, seed=0, stack=STACK):
    return system.propose(system.see(View(stack)), LIVER, n, seed).probabilities


# The layer.


def test_lent_masks_drop_as_often_as_asked_and_keep_the_mean():
    layer, x = nn.Sequential(SharedDropout(0.2)).eval(), torch.ones(4, 8, 50, 50)
    for mask in (fresh_masks(torch.Generator().manual_seed(0)), shared_mask(0)):
        with lending(layer, lambda number, mask=mask: mask):
            y = layer(x)
        assert set(y.unique().tolist()) == {0.0, 1.25}
        assert y.mean().item() == pytest.approx(1, abs=0.02)


def test_a_fresh_mask_differs_by_sample_and_call_and_a_shared_one_does_not():
    layer, x = SharedDropout(0.5).eval(), torch.ones(2, 8, 10, 10)
    with lending(layer, lambda number: fresh_masks(torch.Generator().manual_seed(0))):
        one, other = layer(x), layer(x)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one, other)
    with lending(layer, lambda number: shared_mask(3)):
        one, other = layer(x), layer(x[:1])
    assert torch.equal(one[0], one[1])
    assert torch.equal(one[:1], other)
    assert not torch.equal(one[0, 0], one[0, 1])  # every activation of its own, not whole maps


def test_without_lent_masks_it_is_torch_s_dropout():
    x = torch.ones(2, 3, 4, 4)
    layer, known = SharedDropout(0.3), nn.Dropout(0.3)
    assert layer.eval()(x) is x
    torch.manual_seed(0)
    expected = known.train()(x)
    torch.manual_seed(0)
    assert torch.equal(layer.train()(x), expected)


def test_masks_are_given_back_even_after_an_error(system):
    def failing():
        with lending(system.plain.network, lambda number: shared_mask(number)):
            raise KeyError

    before = system.plain.see(View(STACK))
    with pytest.raises(KeyError):
        failing()
    assert torch.equal(system.plain.see(View(STACK)), before)


# The system.


def test_there_is_dropout_behind_every_convolution_but_in_the_block_that_answers(system):
    layers = {path for path, layer in system.plain.network.named_modules() if isinstance(layer, SharedDropout)}
    kinds = nn.Conv2d | nn.ConvTranspose2d
    made = [p for p, m in system.plain.network.named_modules() if isinstance(m, kinds) and not p.endswith("residual")]
    assert layers == {p.removesuffix("conv") + "adn.D" for p in made if not p.startswith("model.2.")}
    assert 0 < len(layers) < len(made)
    assert all(m.p == 0 for m in system.plain.network.modules() if isinstance(m, nn.Dropout))


def test_its_weights_are_those_of_the_plain_network(system):
    ours, theirs = (s.state_dict() for s in (system.plain.network, plain.build(CONFIG.plain, VOCABULARY).network))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_proposal_depends_on_seed_and_place_and_not_on_how_many_are_drawn(system):
    whole = drawn(system)
    assert whole.shape == (3, 17, 32, 32)
    assert all(not torch.allclose(whole[a], whole[b], atol=1e-2) for a, b in ((0, 1), (1, 2), (0, 2)))
    torch.manual_seed(9)  # the global generator has no say
    assert torch.equal(drawn(system, 2), whole[:2])
    assert not torch.allclose(drawn(system, 3, seed=1), whole, atol=1e-2)


def test_how_slices_are_chunked_does_not_matter(system):
    by_one = torch.cat([drawn(system, stack=s) for s in STACK.split(1)], dim=1)
    assert_same_up_to_rounding(by_one, drawn(system))


def test_equal_slices_get_equal_proposals_wherever_they_lie(system):
    whole = drawn(system, 2, stack=STACK[:1].repeat(17, 1, 1, 1))
    assert_same_up_to_rounding(whole, whole[:, :1].expand_as(whole))


def test_every_layer_has_a_mask_of_its_own(system):
    """Layers of one shape would else drop the same places."""
    seen = {}
    layers = [(p, m) for p, m in system.plain.network.named_modules() if isinstance(m, SharedDropout)]
    for path, layer in layers:
        layer.register_forward_hook(lambda module, given, out, path=path: seen.update({path: out[0] == 0}))
    drawn(system, 1)
    masks = list(seen.values())
    alike = [(a, b) for i, a in enumerate(masks) for b in masks[:i] if a.shape == b.shape]
    assert alike
    assert all(not torch.equal(a, b) for a, b in alike)


def test_training_draws_the_batches_of_the_plain_network(two_organ_bank):
    """What is dropped comes after the batch, so both learn from the same slices."""
    given = []
    for system in (small(two_organ_bank), plain.build(PlainConfig(32, (4, 8)), two_organ_bank.vocabulary)):
        (stage,) = system.phases(two_organ_bank)
        stage.module.register_forward_pre_hook(lambda module, images: given.append(images[0].clone()))
        stage.loss_of(4, Step(torch.Generator().manual_seed(5)))
    assert torch.equal(*given)


def test_the_loss_is_drawn_from_its_generator_alone_and_drops(two_organ_bank):
    system = small(two_organ_bank)
    (stage,) = system.phases(two_organ_bank)
    (without,) = system.plain.phases(two_organ_bank)
    losses = []
    for number in range(2):
        torch.manual_seed(number)
        losses.append(stage.loss_of(4, Step(torch.Generator().manual_seed(5)))[0].item())
    assert losses[0] == losses[1] != without.loss_of(4, Step(torch.Generator().manual_seed(5)))[0].item()


def test_a_resumed_training_equals_an_uninterrupted_one_to_the_bit(two_organ_bank, tmp_path):
    bank, budget, asked = two_organ_bank, Budget(images=64), []
    with pytest.raises(Interrupted):
        train_phases(
            small(bank).phases(bank),
            Run(
                budget,
                tmp_path / "a",
                on_step=lambda stage, state, spent: asked.append(spent),
                should_stop=lambda: len(asked) == 3,
            ),
        )
    torch.manual_seed(3)
    resumed, whole = small(bank), small(bank)
    train_phases(resumed.phases(bank), Run(budget, tmp_path / "a"))
    train_phases(whole.phases(bank), Run(budget, tmp_path / "b"))
    one, other = (s.plain.network.state_dict() for s in (resumed, whole))
    assert all(torch.equal(one[k], other[k]) for k in one)


def test_a_folder_gives_the_same_proposals(system, tmp_path):
    entry = SYSTEMS["mcdropout"]
    config = entry.save(system, tmp_path)
    written = {**config, "plain": {**config["plain"], "widths": [8, 16]}}  # as JSON gives it back
    again = entry.load(tmp_path, written, VOCABULARY)
    assert again.config == CONFIG
    assert torch.equal(drawn(again), drawn(system))


@pytest.mark.parametrize("odd", [{"colour": "red"}, {"plain": {"widths": [8, 16], "colour": "red"}}])
def test_a_configuration_that_is_not_known_is_refused(system, tmp_path, odd):
    entry = SYSTEMS["mcdropout"]
    with pytest.raises(ModelError, match=r"colour.: is not known here"):
        entry.load(tmp_path, {**entry.save(system, tmp_path), **odd}, VOCABULARY)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rate": 0.0}, r"above 0 and below 1; got 0\.0"),
        ({"rate": 1.0}, r"above 0 and below 1; got 1\.0"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(wrong, message):
    with pytest.raises(ValueError, match=message) as caught:
        replace(CONFIG, **wrong)
    assert "\n" not in str(caught.value)


# Adapted.


@pytest.mark.parametrize("kind", ["lora", "salt", "full", "decoder"])
def test_an_adapted_system_drops_too_and_the_base_stays(system, kind):
    few = STACK[:2]
    before = drawn(system, stack=few)
    adapted = attach(system, AdapterConfig(kind, 2), VOCABULARY)
    assert torch.equal(drawn(adapted.system, stack=few), before)
    adapted.load({k: v + 0.1 for k, v in adapted.weights().items()})
    changed = drawn(adapted.system, stack=few)
    assert not torch.allclose(changed, before, atol=1e-4)
    assert torch.equal(drawn(system, stack=few), before)
    torch.testing.assert_close(drawn(adapted.merged(), stack=few), changed, rtol=0, atol=2e-5)


def test_an_adapter_learns_with_dropout_although_the_network_is_in_evaluation_mode(two_organ_bank):
    system = small(two_organ_bank)
    (stage,) = attach(system, AdapterConfig(rank=2), system.vocabulary).system.phases(two_organ_bank)
    (without,) = system.plain.phases(two_organ_bank)
    loss, plain_loss = (s.loss_of(4, Step(torch.Generator().manual_seed(5)))[0].item() for s in (stage, without))
    assert loss != pytest.approx(plain_loss, abs=1e-6)


def test_new_names_can_be_learnt_and_leave_the_logits_of_the_old(system):
    more = VOCABULARY.merged(Vocabulary.from_names(["aorta"], "CT"))
    wider = attach(system, AdapterConfig(rank=2), more).system
    assert wider.vocabulary.names == more.names
    assert torch.equal(wider.plain.logits(STACK)[:, :3], system.plain.logits(STACK))
    proposals = wider.propose(View(STACK), Asked(more.concepts[2], "aorta"), 2, 0).probabilities
    assert not torch.equal(proposals[0], proposals[1])
