from dataclasses import asdict, replace

import pytest
import torch
from tests.rounding import assert_same_up_to_rounding
from torch.nn import functional as F

from delineate.data.slices import SliceBank
from delineate.diffusion.schedule import schedule_from_config
from delineate.diffusion.stages import Branch, Clamp, Stages, Strategy
from delineate.errors import ModelError
from delineate.foundation.foundation import SCHEDULER
from delineate.networks.spread import cooled, log_odds
from delineate.prompts.captions import captions
from delineate.prompts.vocabulary import Vocabulary
from delineate.proposals.fusion import fuse_staple
from delineate.scans.grid import View
from delineate.systems.diffusion import unisegdiff
from delineate.systems.diffusion.unisegdiff import (
    UniSegDiff,
    UniSegDiffConfig,
    build,
    clean_from,
    train,
    with_generic,
)
from delineate.systems.parts import configured
from delineate.systems.system import Asked
from delineate.training import loop as training
from delineate.training.loop import Budget, Run

FINDINGS = Vocabulary.from_names(["polyp", "skin lesion"], "endoscopy")


def dice(mask, truth):
    return (2 * (mask & truth).sum() / (mask.sum() + truth.sum()).clamp(min=1)).item()


def target(system, name):
    concept = system.vocabulary.concepts[system.vocabulary.index(name)]
    return Asked(concept, captions(concept, "CT")[0])


def changed(system, **config):
    return UniSegDiff(replace(system.config, **config), system.learnt, system.condition, system.denoiser)


@pytest.fixture(scope="module")
def system(trained):
    return trained["unisegdiff"].system


@pytest.fixture(scope="module")
def slices(two_organ_bank):
    """Five training slices that show the liver, and where."""
    truth = two_organ_bank.labels == 1 + two_organ_bank.vocabulary.index("liver")
    largest = truth.flatten(1).sum(1).argsort(descending=True)[:5]
    return two_organ_bank.images[largest].float() / 127.5 - 1, truth[largest]


def train_a_little(bank: SliceBank, folder, images=32, **config):
    system = build(UniSegDiffConfig(size=bank.size, **config), bank.vocabulary)
    stages = []
    train(
        system,
        bank,
        Run(
            Budget(images=images),
            folder,
            on_step=lambda stage, state, spent: stages.append((stage, sorted(state.log[-1]))),
        ),
    )
    return system, stages


def test_it_learns_to_outline(system, slices):
    seen = system.see(View(slices[0]))
    drawn = system.propose(seen, target(system, "liver"), 8, 0).probabilities
    assert dice(drawn.mean(0) >= 0.5, slices[1]) > 0.6
    assert max(dice(one >= 0.5, slices[1]) for one in drawn) > 0.6


def test_the_prompt_decides_what_is_outlined(system, slices):
    seen = system.see(View(slices[0]))
    spleen = system.propose(seen, target(system, "spleen"), 1, 0).probabilities[0] >= 0.5
    assert dice(spleen, slices[1]) < 0.2


def test_no_gradient_reaches_the_frozen_condition_network(two_organ_bank, tmp_path, monkeypatch):
    """Its weights after both stages are those it had after its own; while the denoiser learns it has no gradient."""
    kept = {}

    def spy(state, draw, loss_of, **how):
        if how["folder"].name == "denoiser":
            kept["before"] = {k: v.clone() for k, v in system.condition.state_dict().items()}
            kept["learns"] = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
        return loop(state, draw, loss_of, **how)

    loop = training.train
    monkeypatch.setattr(training, "train", spy)
    system = build(UniSegDiffConfig(size=32), two_organ_bank.vocabulary)
    train(system, two_organ_bank, Run(Budget(images=48), tmp_path))
    after = system.condition.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in kept["before"].items())
    assert not kept["learns"] & {id(p) for p in system.condition.parameters()}
    assert not kept["learns"] & {id(p) for p in system.condition.parameters()}
    assert not system.condition.training


def test_without_pre_training_there_is_one_stage_and_both_networks_learn(two_organ_bank, tmp_path):
    fresh = build(UniSegDiffConfig(size=32, pretrained=False, start="nothing"), two_organ_bank.vocabulary)
    system, stages = train_a_little(two_organ_bank, tmp_path, pretrained=False, start="nothing")
    assert {stage for stage, _ in stages} == {"denoiser"}
    for part in ("condition", "denoiser"):
        before, after = getattr(fresh, part).state_dict(), getattr(system, part).state_dict()
        assert any(not torch.equal(v, after[k]) for k, v in before.items()), part


def test_each_stage_of_training_tells_its_losses(two_organ_bank, tmp_path):
    _, stages = train_a_little(two_organ_bank, tmp_path)
    assert [s for s, _ in stages] == sorted(s for s, _ in stages)  # condition, then denoiser
    assert {"noise", "mask"} <= set(stages[-1][1])


@pytest.mark.parametrize("chosen", [Branch.MASK, Branch.NOISE])
@pytest.mark.parametrize("strategy", [Strategy.UNIFORM, Strategy.ONE_STEP])
def test_a_strategy_of_one_target_trains_and_asks_one_decoder(two_organ_bank, tmp_path, strategy, chosen):
    stages = Stages(strategy, target=str(chosen), interval=250)
    system, told = train_a_little(
        two_organ_bank, tmp_path, stages=stages, schedule="linear", skip_below=0.0, chains="own"
    )
    assert ("noise" in told[-1][1]) == (chosen is Branch.NOISE)
    fresh = build(UniSegDiffConfig(size=32), two_organ_bank.vocabulary)
    other = next(b for b in Branch if b is not chosen)
    idle = fresh.denoiser.decoders[other].state_dict()
    assert all(torch.equal(v, idle[k]) for k, v in system.denoiser.decoders[other].state_dict().items())
    stack = two_organ_bank.images[:2].float() / 127.5 - 1
    with evaluations(system) as asked:
        system.propose(system.see(View(stack)), target(system, "liver"), 1, 0)
    assert [t for t, _ in asked] == ([999] if strategy is Strategy.ONE_STEP else [999, 749, 499, 249])
    assert {b for _, b in asked} == {chosen}


class evaluations:
    """Within the block, the (time told, decoder) of every call of the denoiser and how often scans are looked at."""

    def __init__(self, system):
        self.system, self.asked, self.looks = system, [], 0

    def __enter__(self):
        def denoiser(module, args, output):
            self.asked.extend((int(args[1][0]), branch) for branch in args[3])

        self.hook = self.system.denoiser.register_forward_hook(denoiser)
        return self.asked

    def __exit__(self, *_):
        self.hook.remove()


def test_a_chain_asks_the_decoders_in_the_paper_s_order_with_clamped_times(system, slices):
    asked = {}
    for k, chain in enumerate(Branch):
        with evaluations(system) as asked[chain]:
            system._sample(system.see(View(slices[0][:1])), chain, Stages().times(), torch.ones(1, 4, 16, 16))
        assert asked[chain][0] == (999, Branch.MASK)
        assert asked[chain][1:-1] == [(t, chain) for t in range(599, 299, -30)]
        assert asked[chain][-1] == (0, Branch.NOISE)
        assert k in (0, 1)


def test_condition_features_are_computed_once_for_all_proposals(system, slices):
    seen = []
    hook = system.condition.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    system.propose(system.see(View(slices[0])), target(system, "liver"), 6, 0)
    hook.remove()
    assert seen == [5]


@pytest.mark.parametrize("chains", ["own", "rapid", "shared"])
def test_no_two_proposals_are_the_same(system, slices, chains):
    """One deterministic step from one x_299 would give ten identical masks."""
    other = changed(system, chains=chains, stages=replace(system.config.stages, interval=100))
    drawn = other.propose(other.see(View(slices[0][:2])), target(other, "liver"), 6, 0).probabilities.flatten(1)
    apart = torch.cdist(drawn, drawn) + torch.eye(6)
    assert apart.min() > 1e-4


@pytest.mark.parametrize(("chains", "evaluations_of_four"), [("own", 12), ("rapid", 9), ("shared", 8)])
def test_what_chains_share_is_evaluated_once(system, slices, chains, evaluations_of_four):
    """Three evaluations a chain: all apart; the first for all together; all but the last, once a decoder."""
    other, count = changed(system, chains=chains), 0

    def counted(module, args, output):
        nonlocal count
        count += len(args[0])

    hook = other.denoiser.register_forward_hook(counted)
    other.propose(other.see(View(slices[0][:1])), target(other, "liver"), 4, 0)
    hook.remove()
    assert count == evaluations_of_four


def test_a_proposal_depends_neither_on_n_nor_on_its_companions(system, slices, monkeypatch):
    seen = system.see(View(slices[0]))
    whole = system.propose(seen, target(system, "liver"), 5, 0).probabilities
    fewer = system.propose(seen, target(system, "liver"), 2, 0).probabilities
    assert_same_up_to_rounding(fewer, whole[:2])
    alone = system.propose(system.see(View(slices[0][2:3])), target(system, "liver"), 5, 0).probabilities
    assert_same_up_to_rounding(alone[:, 0], whole[:, 2])
    monkeypatch.setattr(unisegdiff, "PAIRS_AT_ONCE", 3)
    assert_same_up_to_rounding(system.propose(seen, target(system, "liver"), 5, 0).probabilities, whole)


def test_the_same_seed_is_equal_to_the_bit_and_another_is_not(system, slices):
    seen = system.see(View(slices[0][:1]))
    a, same, other = (system.propose(seen, target(system, "liver"), 2, seed).probabilities for seed in (0, 0, 1))
    assert torch.equal(a, same)
    assert not torch.equal(a, other)


def test_twenty_proposals_fuse_to_a_mask(system, slices):
    drawn = system.propose(system.see(View(slices[0][:1])), target(system, "liver"), 20, 0).probabilities
    assert dice(torch.from_numpy(fuse_staple(drawn[:, 0].numpy())) >= 0.5, slices[1][0]) > 0.5


def test_progress_ends_with_all_and_does_not_fall(system, slices):
    told = []
    system.propose(system.see(View(slices[0])), target(system, "liver"), 3, 0, told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_the_noise_answer_is_clipped_where_the_division_would_blow_it_up():
    schedule = schedule_from_config({**SCHEDULER, **unisegdiff.SCHEDULES["linear"]})
    x_t, wrong = torch.ones(1, 4, 2, 2), torch.zeros(1, 4, 2, 2)
    t = torch.tensor([599])
    a, _ = schedule.signal_and_noise(t, x_t)
    assert (x_t / a).max() > 6
    assert clean_from(wrong, Branch.NOISE, x_t, t, schedule).max() == 1


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_both_answers_give_back_the_mask_when_they_are_right(schedule):
    table = schedule_from_config({**unisegdiff.SCHEDULES[schedule], "prediction_type": "sample"})
    torch.manual_seed(0)
    x0, noise = torch.randn(3, 4, 8, 8).sign(), torch.randn(3, 4, 8, 8)
    t = torch.tensor([0, 299, 599])
    x_t = table.add_noise(x0, noise, t)
    torch.testing.assert_close(clean_from(noise, Branch.NOISE, x_t, t, table), x0, rtol=0, atol=1e-4)
    torch.testing.assert_close(clean_from(50 * x0, Branch.MASK, x_t, t, table), x0)


@pytest.mark.parametrize("t", [0, 299, 450, 599, 999])
def test_untrained_decoders_answer_with_the_pixel_s_posterior_and_agree(t):
    """Log-odds of mask and noise that follow from one x0: at every time both branches give the same clean mask."""
    system = build(UniSegDiffConfig(size=32), FINDINGS)
    seen = system.see(View(torch.rand(2, 3, 32, 32) * 2 - 1))
    x_t, when = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.full((2,), t)
    with torch.no_grad():
        answers = system.answers(seen, x_t, when, tuple(Branch))
    mask, noise = (clean_from(answers[b], b, x_t, when, system.schedule) for b in Branch)
    odds = F.pixel_unshuffle(log_odds(1 - seen.probability[:, :1]), 2)
    expected = (cooled(odds).heard(x_t, *system.schedule.signal_and_noise(when, x_t)) / 2).tanh()
    torch.testing.assert_close(mask, expected, rtol=0, atol=1e-3)
    if t < 999:  # there nothing can be said of x0 from the noise
        torch.testing.assert_close(noise, expected, rtol=0, atol=1e-3)


def test_from_nothing_the_condition_s_probability_is_not_used():
    system = build(UniSegDiffConfig(size=32, start="nothing"), FINDINGS)
    seen = system.see(View(torch.rand(1, 3, 32, 32) * 2 - 1))
    other = replace(seen, probability=seen.probability.flip(1))
    x_t, t = torch.randn(1, 4, 16, 16), torch.tensor([450])
    with torch.no_grad():
        one, two = (system.answers(c, x_t, t, (Branch.MASK,))[Branch.MASK] for c in (seen, other))
    assert torch.equal(one, two)


def test_lesion_asks_for_every_finding_together():
    system = build(UniSegDiffConfig(size=32), FINDINGS)
    assert system.vocabulary.names == ("polyp", "skin lesion", "lesion")
    assert system.learnt.names == ("polyp", "skin lesion")
    seen = system.see(View(torch.rand(2, 3, 32, 32) * 2 - 1))
    both = system.estimate(seen, target(system, "lesion"))
    parts = [system.estimate(seen, target(system, name)) for name in system.learnt.names]
    torch.testing.assert_close(both, parts[0] + parts[1])


def test_organs_are_no_lesions(two_organ_bank):
    assert with_generic(two_organ_bank.vocabulary) == two_organ_bank.vocabulary


def test_slices_where_the_condition_network_sees_nothing_are_not_drawn(system, slices):
    blind = changed(system, skip_below=1.1)
    with evaluations(blind) as asked:
        drawn = blind.propose(blind.see(View(slices[0])), target(blind, "liver"), 3, 0).probabilities
    assert drawn.shape == (3, 5, 32, 32)
    assert not drawn.any()
    assert not asked


def test_the_configuration_survives_json_and_unknown_keys_do_not(tmp_path):
    stages = Stages(clamp=Clamp.NONE, high=699, low=-1, interval=100)
    config = UniSegDiffConfig(32, "small", stages, schedule="linear", noise="white", pretrained=False, start="nothing")
    assert configured(asdict(config), UniSegDiffConfig, tmp_path) == config
    with pytest.raises(ModelError, match=r"'system_config\.surprise': is not known here"):
        configured({**asdict(config), "surprise": 1}, UniSegDiffConfig, tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"preset": "huge"}, "preset is one of tiny, small, paper"),
        ({"schedule": "sigmoid"}, "schedule is one of"),
        ({"noise": "pink"}, "noise is one of"),
        ({"chains": "none"}, "chains is one of"),
        ({"start": "middle"}, "start is one of"),
        ({"pretrained": False}, "no probabilities to start from"),
        ({"chains": "shared", "stages": Stages(low=-1)}, "these stages have none"),
        ({"chains": "rapid", "stages": Stages(Strategy.ONE_STEP, "mask")}, "need stages"),
    ],
)
def test_impossible_configurations_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        UniSegDiffConfig(**wrong)


def test_a_grid_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="multiple of 32"):
        build(UniSegDiffConfig(size=72), FINDINGS)


@pytest.mark.parametrize("preset", unisegdiff.SIZES)
def test_a_preset_has_five_levels_and_attends_at_coarse_ones_alone(preset):
    size = unisegdiff.SIZES[preset]
    assert len(size.condition) == len(size.denoiser) == 5
    assert size.tokens <= 64 * 64


def test_two_trainings_of_one_seed_are_one(two_organ_bank, tmp_path):
    one, same = (train_a_little(two_organ_bank, tmp_path / name)[0].denoiser.state_dict() for name in "ab")
    assert all(torch.equal(v, same[k]) for k, v in one.items())
