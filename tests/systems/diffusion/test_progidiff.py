from dataclasses import replace

import pytest
import torch
from tests.rounding import assert_same_up_to_rounding

from delineate.data.slices import Batch
from delineate.foundation.control import MaskControl
from delineate.foundation.foundation import Foundation
from delineate.prompts.captions import captions
from delineate.scans.grid import View
from delineate.systems import SYSTEMS
from delineate.systems.diffusion import progidiff
from delineate.systems.diffusion.progidiff import ProGiDiff, ProGiDiffConfig, build, train
from delineate.systems.diffusion.scoring import readings_of
from delineate.systems.system import Asked, Clues
from delineate.training.loop import Budget, Run


def dice(mask, truth):
    return (2 * (mask & truth).sum() / (mask.sum() + truth.sum()).clamp(min=1)).item()


def target(system, name):
    concept = system.vocabulary.concepts[system.vocabulary.index(name)]
    return Asked(concept, captions(concept, "CT")[0])


@pytest.fixture(scope="module")
def system(trained):
    return trained["progidiff"].system


@pytest.fixture(scope="module")
def slices(two_organ_bank):
    """All training slices, and which pixels are liver."""
    truth = two_organ_bank.labels == 1 + two_organ_bank.vocabulary.index("liver")
    return two_organ_bank.images.float() / 127.5 - 1, truth


@pytest.fixture(scope="module")
def drawn(system, slices):
    """Proposals of both prompts on the training slices, (2, S, 32, 32) each."""
    seen = system.see(View(slices[0]))
    return {name: system.propose(seen, target(system, name), 2, 0).probabilities for name in ("liver", "spleen")}


def test_training_leaves_every_weight_of_the_foundation_alone(system, foundation_folder):
    assert system.foundation.fingerprint() == Foundation.load(foundation_folder).fingerprint()


def test_both_stages_have_learnt(system, foundation_folder):
    fresh = build(system.config, system.foundation, system.vocabulary).control
    for name, module in system.control.named_children():
        if module.state_dict():
            before = getattr(fresh, name).state_dict()
            assert any(not torch.equal(v, before[k]) for k, v in module.state_dict().items()), name
    assert not any(p.requires_grad for p in system.control.parameters())
    assert not system.control.training


def test_the_prompted_organ_is_drawn_and_the_other_prompt_draws_elsewhere(drawn, slices):
    truth = slices[1]
    everything = dice(torch.ones_like(truth), truth)
    right, wrong = (dice(drawn[name][0] >= 0.5, truth) for name in ("liver", "spleen"))
    assert right > max(0.6, 2 * everything)
    assert right - wrong > 0.2


def test_without_its_text_the_organ_is_lost(system, slices, monkeypatch):
    """The mechanism: the same scan, the same noise, another text embedding."""
    encode = Foundation.encode_text
    other = target(system, "spleen").caption
    monkeypatch.setattr(Foundation, "encode_text", lambda self, texts: encode(self, [other] * len(texts)))
    mask = system.propose(system.see(View(slices[0])), target(system, "liver"), 1, 0).probabilities[0] >= 0.5
    assert dice(mask, slices[1]) < 0.3


def test_without_its_scan_the_organ_is_lost(system, slices):
    mask = (
        system.propose(system.see(View(slices[0].roll(7, dims=0))), target(system, "liver"), 1, 0).probabilities[0]
        >= 0.5
    )
    aligned = system.propose(system.see(View(slices[0])), target(system, "liver"), 1, 0).probabilities[0] >= 0.5
    assert dice(mask, slices[1]) < dice(aligned, slices[1]) - 0.1


def test_draws_differ(system, drawn, slices):
    """A mask that is only the estimate, whatever the noise, would make every proposal the same."""
    assert (drawn["liver"][0] - drawn["liver"][1]).abs().max() > 1e-3


@torch.no_grad()
def test_the_times_of_a_draw_go_down_from_the_last(system, slices, monkeypatch):
    asked = []
    draw = MaskControl.draw

    def remember(self, foundation, x_t, pixels, t, *rest):
        asked.append(t)
        return draw(self, foundation, x_t, pixels, t, *rest)

    monkeypatch.setattr(MaskControl, "draw", remember)
    for count in (1, 4):
        config = replace(system.config, steps=count, skip_below=0.0)
        one = ProGiDiff(config, system.foundation, system.control, system.vocabulary)
        drawn = one.propose(one.see(View(slices[0][:1])), target(one, "liver"), 1, 0).probabilities
        assert torch.isfinite(drawn).all()
    assert asked == [999, 999, 749, 499, 249]


def test_what_is_known_is_drawn_as_it_is_known(system, slices):
    inside, outside = torch.zeros(1, 32, 32, dtype=torch.bool), torch.zeros(1, 32, 32, dtype=torch.bool)
    inside[0, :8], outside[0, 8:16] = True, True
    clues = Clues(torch.tensor([12]), inside, outside, torch.full((1, 32, 32), 0.5))
    asked = replace(target(system, "liver"), clues=clues)
    drawn = system.propose(system.see(View(slices[0])), asked, 3, 0).probabilities
    assert drawn.shape == (3, 1, 32, 32)
    assert (drawn[:, 0, :8] == 1).all()
    assert (drawn[:, 0, 8:16] == 0).all()


def test_a_generator_that_is_new_learns_its_u_net_and_one_from_a_folder_does_not(two_organ_bank, tmp_path):
    made = SYSTEMS["progidiff"].make("tiny", 32, two_organ_bank.vocabulary, seed=0)
    before = {k: v.clone() for k, v in made.foundation.unet.state_dict().items()}
    trained = train(made, two_organ_bank, Run(Budget(images=64), tmp_path, seed=0))
    after = trained.foundation.unet.state_dict()
    assert any(not torch.equal(after[k], before[k]) for k in before)
    assert not trained.foundation.is_untrained
    assert "the U-Net learnt with its control" in trained.about
    assert not any(p.requires_grad for p in trained.foundation.unet.parameters())


def batch_of(readings):
    """A batch of two slices with two prompts each, and what raters said."""
    labels = torch.zeros(2, 8, 8, dtype=torch.int64)
    labels[0, :4], labels[1, :2] = 1, 2
    concepts = torch.tensor([[0, 1], [0, 1]])
    masks = (labels[:, None] == (concepts + 1)[:, :, None, None]).float()
    known = torch.ones(2, 2, dtype=torch.bool)
    return Batch(torch.zeros(2, 3, 8, 8), labels, concepts, masks, torch.zeros(2).long(), known, ~known, None, readings)


def test_draws_are_scored_against_every_rater_who_is_there():
    readings = torch.full((2, 3, 8, 8), -1)
    readings[:, 0], readings[0, 1] = 0, 0
    readings[0, 0, :4], readings[0, 1, :2] = 1, 1
    image, concept = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    raters, present = readings_of(batch_of(readings), image, concept)
    assert present.tolist() == [[True, True, False]] * 2 + [[True, False, False]] * 2
    assert raters.sum((2, 3)).tolist() == [[32, 16, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
    alone, there = readings_of(batch_of(None), image, concept)
    assert alone.shape == (4, 1, 8, 8)
    assert alone.sum((1, 2, 3)).tolist() == [32, 0, 0, 16]
    assert there.all()


@pytest.mark.parametrize("order", [None, "reversed"])
def test_a_proposal_depends_neither_on_how_many_are_drawn_nor_on_the_order_of_slices(system, slices, drawn, order):
    some = slices[0][10:16] if order is None else slices[0][10:16].flip(0)
    alone = system.propose(system.see(View(some)), target(system, "liver"), 1, 0).probabilities
    expected = drawn["liver"][:1, 10:16] if order is None else drawn["liver"][:1, 10:16].flip(1)
    assert_same_up_to_rounding(alone, expected)


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_proposal_does_not_depend_on_what_shares_its_batch(system, slices, monkeypatch, at_once):
    seen = system.see(View(slices[0][12:15]))
    whole = system.propose(seen, target(system, "liver"), 3, 0).probabilities
    monkeypatch.setattr(progidiff, "PAIRS_AT_ONCE", at_once)
    parts = system.propose(seen, target(system, "liver"), 3, 0).probabilities
    assert whole.max() > 0.5
    assert_same_up_to_rounding(parts, whole)


def test_equal_slices_get_equal_proposals_since_noise_is_one_field_for_all(system, slices):
    twice = slices[0][14:15].repeat(2, 1, 1, 1)
    drawn = system.propose(system.see(View(twice)), target(system, "liver"), 2, 0).probabilities
    assert_same_up_to_rounding(drawn[:, 0], drawn[:, 1])
    assert not torch.equal(drawn[0], drawn[1])


def test_seeds_differ_and_the_same_seed_is_the_same_to_the_bit(system, slices):
    seen = system.see(View(slices[0][14:15]))
    one, same, other = (system.propose(seen, target(system, "liver"), 1, seed).probabilities for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert (one - other).abs().max() > 1e-4


def test_slices_where_the_encoder_sees_nothing_are_left_empty_and_not_drawn(system, slices):
    config = replace(system.config, skip_below=1.1)
    blind = ProGiDiff(config, system.foundation, system.control, system.vocabulary)
    drawn = blind.propose(blind.see(View(slices[0][:2])), target(blind, "liver"), 3, 0).probabilities
    assert drawn.shape == (3, 2, 32, 32)
    assert not drawn.any()


def test_the_estimate_is_the_encoder_s_own_mask(system, slices):
    estimate = system.estimate(system.see(View(slices[0])), target(system, "liver"))
    assert estimate.shape == (40, 32, 32)
    assert dice(estimate >= 0.5, slices[1]) > 0.6


def test_two_trainings_of_one_seed_are_one_and_a_stage_is_told_of_each_step(
    two_organ_bank, foundation_folder, tmp_path
):
    def run(name, seed):
        told = []
        made = build(ProGiDiffConfig(size=32), Foundation.load(foundation_folder), two_organ_bank.vocabulary, seed=seed)
        train(
            made,
            two_organ_bank,
            Run(Budget(images=32), tmp_path / name, seed=seed, on_step=lambda stage, state, spent: told.append(stage)),
        )
        assert sorted(set(told)) == ["encoder", "generator"]
        return made.control.state_dict()

    one, same, other = run("one", 0), run("same", 0), run("other", 1)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)
