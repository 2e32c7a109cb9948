import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from delineate.diffusion.schedule import Prediction, Schedule, schedule_from_config, trailing_times

STABLE_DIFFUSION = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def sd_schedule(prediction, **more) -> Schedule:
    return schedule_from_config({**STABLE_DIFFUSION, "prediction_type": prediction, **more})


def output_for(schedule, x0, noise, t):
    """What a perfect network says, by the definition of each prediction."""
    a, s = schedule.signal_and_noise(t, x0)
    return {Prediction.X0: x0, Prediction.EPSILON: noise, Prediction.V: a * noise - s * x0}[schedule.prediction]


def test_trailing_times_start_at_the_last_time():
    assert trailing_times(1) == [999]
    assert trailing_times(2) == [999, 499]
    assert trailing_times(4) == [999, 749, 499, 249]
    assert trailing_times(50, total=50) == list(range(49, -1, -1))


def test_trailing_times_are_distinct_and_inside_for_every_number_of_steps():
    for steps in range(1, 1001):
        times = trailing_times(steps)
        assert len(times) == steps
        assert times[0] == 999
        assert min(times) >= 0
        assert all(later < earlier for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 8, 10, 16, 20, 25, 30, 50, 100, 250, 1000])
def test_trailing_times_are_those_of_diffusers(steps):
    theirs = DDIMScheduler(**STABLE_DIFFUSION, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    assert trailing_times(steps) == theirs.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_steps_that_cannot_be_are_refused_with_the_range(steps):
    with pytest.raises(ValueError, match=rf"1\.\.1000, got {steps}"):
        trailing_times(steps)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_the_signal_left_is_that_of_diffusers(beta_schedule, zero_snr):
    config = {**STABLE_DIFFUSION, "beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero_snr}
    theirs = DDIMScheduler(**config).alphas_cumprod.double()
    ours = schedule_from_config({**config, "prediction_type": "v_prediction"}).alphas_cumprod
    assert ours.dtype == torch.float64
    assert torch.equal(ours, theirs)
    assert (ours.diff() < 0).all()


def test_keys_that_only_concern_diffusers_are_ignored():
    theirs = DDIMScheduler(**STABLE_DIFFUSION, prediction_type="sample", clip_sample=False)
    schedule = schedule_from_config(dict(theirs.config))
    assert schedule.prediction is Prediction.X0
    assert torch.equal(schedule.alphas_cumprod, theirs.alphas_cumprod.double())


def test_betas_given_one_by_one_are_used():
    schedule = schedule_from_config({"trained_betas": [0.5, 0.5, 0.75], "num_train_timesteps": 3})
    np.testing.assert_allclose(schedule.alphas_cumprod, [0.5, 0.25, 0.0625], rtol=1e-6)
    assert schedule.prediction is Prediction.EPSILON  # what diffusers takes where nothing is said


@pytest.mark.parametrize("prediction", Prediction)
def test_the_clean_estimate_of_a_perfect_output_is_the_clean_image(prediction):
    schedule = sd_schedule(prediction)
    x0, noise = torch.randn(2, 1000, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.arange(1000)
    x_t = schedule.add_noise(x0, noise, t)
    back = schedule.to_x0(output_for(schedule, x0, noise, t), x_t, t)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-12)


@pytest.mark.parametrize("prediction", [Prediction.X0, Prediction.V])
def test_the_clean_estimate_exists_where_no_signal_is_left(prediction):
    schedule = sd_schedule(prediction, rescale_betas_zero_snr=True)
    x0, noise = torch.randn(2, 1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([999])
    x_t = schedule.add_noise(x0, noise, t)
    torch.testing.assert_close(x_t, noise, rtol=0, atol=1e-6)
    back = schedule.to_x0(output_for(schedule, x0, noise, t), x_t, t)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-12)


def test_epsilon_without_signal_at_the_end_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="use v_prediction or sample"):
        sd_schedule("epsilon", rescale_betas_zero_snr=True)


def test_a_prediction_nobody_knows_is_refused():
    with pytest.raises(ValueError, match="flow"):
        sd_schedule("flow")


@pytest.mark.parametrize("prediction", Prediction)
def test_variance_is_preserved(prediction):
    schedule = sd_schedule(prediction)
    a, s = schedule.signal_and_noise(torch.arange(1000), torch.zeros(1000, 1, dtype=torch.float64))
    torch.testing.assert_close(a**2 + s**2, torch.ones_like(a), rtol=0, atol=1e-12)


def test_time_minus_one_is_clean_and_each_sample_has_its_own_time():
    schedule = sd_schedule("epsilon")
    x0, noise = torch.randn(2, 3, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixed = schedule.add_noise(x0, noise, torch.tensor([-1, 0, 999]))
    assert torch.equal(mixed[0], x0[0])
    assert (mixed[1] - x0[1]).abs().max() < 0.15
    for row, t in enumerate([-1, 0, 999]):
        assert torch.equal(
            mixed[row], schedule.add_noise(x0[row : row + 1], noise[row : row + 1], torch.tensor([t]))[0]
        )


def test_noise_is_added_in_the_precision_of_the_image():
    x0 = torch.ones(2, 1, 2, 2)
    assert sd_schedule("epsilon").add_noise(x0, torch.zeros_like(x0), torch.tensor([3, 4])).dtype == torch.float32
