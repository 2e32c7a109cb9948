import pytest
import torch
from torch import Generator

from delineate.diffusion.schedule import schedule_from_config
from delineate.diffusion.stages import MODELLING, RAPID, REFINEMENT, Branch, Clamp, Stages, Strategy
from delineate.foundation.foundation import SCHEDULER

EVERY = torch.arange(1000)


def test_the_boundaries_are_those_of_the_paper():
    stage = Stages().stage_of(EVERY)
    assert stage[:300].unique().tolist() == [REFINEMENT]
    assert stage[300:600].unique().tolist() == [MODELLING]
    assert stage[600:].unique().tolist() == [RAPID]


def test_a_batch_of_mixed_times_has_a_weight_for_each_sample():
    noise, mask = Stages().loss_weights(torch.tensor([0, 299, 300, 599, 600, 999]))
    assert noise.tolist() == [3, 3, 1, 1, 1, 1]
    assert mask.tolist() == [1, 1, 1, 1, 3, 3]


def test_the_network_is_told_one_time_in_each_outer_stage():
    told = Stages().told(EVERY)
    assert told[600:].unique().tolist() == [999]
    assert told[:300].unique().tolist() == [0]
    assert torch.equal(told[300:600], EVERY[300:600])


@pytest.mark.parametrize(("clamp", "covers"), [(Clamp.EMBEDDING, True), (Clamp.SAMPLE, False), (Clamp.NONE, True)])
def test_the_noise_decoder_learns_at_the_noise_level_it_is_asked_at_last(clamp, covers):
    """It draws the mask from x_299. Clamping the time before noising shows it near-clean masks alone below 300."""
    schedule = schedule_from_config(SCHEDULER)
    drawn = Stages(clamp=clamp).draw(4000, Generator().manual_seed(0))
    refinement = drawn[Stages().stage_of(drawn) == REFINEMENT]
    needed = schedule.signal_and_noise(torch.tensor([299]), torch.zeros(1))[1]
    seen = schedule.signal_and_noise(refinement, torch.zeros(1))[1].max()
    assert bool(seen > 0.95 * needed) == covers


def test_uniform_and_one_step_know_no_stages():
    uniform = Stages(Strategy.UNIFORM, target="mask", interval=10)
    assert torch.equal(uniform.told(EVERY), EVERY)
    assert len(uniform.draw(5000, Generator().manual_seed(0)).unique()) > 900
    assert uniform.loss_weights(EVERY)[0].unique().tolist() == [0]
    assert len(uniform.times()) == 100
    one = Stages(Strategy.ONE_STEP, target="noise")
    assert one.draw(5, Generator()).tolist() == [999] * 5
    assert one.times() == [999]
    assert one.loss_weights(EVERY)[1].unique().tolist() == [0]


def test_a_chain_is_twelve_evaluations_as_published_and_each_decoder_has_its_turn():
    stages = Stages()
    times = stages.times()
    assert times == [999, *range(599, 298, -30)]
    for chain in Branch:
        turns = [stages.branch_at(t, chain) for t in times]
        assert turns == [Branch.MASK, *[chain] * 10, Branch.NOISE]


@pytest.mark.parametrize("interval", [30, 100, 150, 300])
def test_a_longer_interval_is_fewer_evaluations_between_the_same_ends(interval):
    times = Stages(interval=interval).times()
    assert times[:2] == [999, 599]
    assert times[-1] == 299
    assert len(times) == 2 + 300 // interval
    assert times == sorted(set(times), reverse=True)


def test_without_a_third_stage_the_steps_go_on_to_the_end():
    stages = Stages(low=-1)
    assert stages.times()[:3] == [999, 599, 569]
    assert 0 <= stages.times()[-1] < 30
    assert stages.branch_at(10, Branch.MASK) is Branch.MASK
    assert REFINEMENT not in stages.stage_of(EVERY)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"high": 300, "low": 400}, "low < high"),
        ({"high": 999}, "low < high"),
        ({"target": "mask"}, "need both decoders"),
        ({"target": "shape"}, "target is one of"),
        ({"interval": 0}, "interval must be 1"),
        ({"weights": ((1.0, 3.0),)}, "three pairs"),
    ],
)
def test_impossible_stages_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Stages(**wrong)
