import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler
from tests.diffusion.test_schedule import STABLE_DIFFUSION, sd_schedule

from delineate.diffusion.sampling import guided, sample_ddim, sample_one_step
from delineate.diffusion.schedule import Prediction, trailing_times

ZERO_SNR = sd_schedule("v_prediction", rescale_betas_zero_snr=True)  # pure noise is then exactly where sampling starts
MEAN, SPREAD = 1.3, 0.4  # of the Gaussian data
SAMPLERS = {"ddim": sample_ddim, "one_step": sample_one_step}
ONE_ANSWER = {"one_step"}  # samplers that give the mean of the data, not samples of it


def ideal_gaussian(x, t, schedule=ZERO_SNR):
    """E[x0 | x_t] for x0 ~ N(MEAN, SPREAD²): what a perfectly trained network would say."""
    a, sigma = schedule.signal_and_noise(torch.tensor([t]), x)
    return MEAN + SPREAD**2 * a * (x - a * MEAN) / (a**2 * SPREAD**2 + sigma**2)


def mean_and_spread(sampler, steps):
    """Exact moments of what a sampler draws from Gaussian data.

    The ideal denoiser is affine, so a sample is c + Σ w_k n_k with independent n_k ~ N(0, 1). Batch element k gets
    noise 1 at step k alone, the last one none at all.
    """

    def noise(step):
        field = torch.zeros(steps + 1, 1, 1, 1, dtype=torch.float64)
        field[step] = 1
        return field

    drawn = sampler(ideal_gaussian, noise, trailing_times(steps), ZERO_SNR).flatten()
    return drawn[-1].item(), (drawn[:-1] - drawn[-1]).norm().item()


def fixed_noise(shape, dtype=torch.float32):
    return lambda step: torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(100 + step))


def crooked_network(x, t):
    """Some fixed output, nonlinear, different for every time and for every pixel of its own; exact in any batch."""
    x = 1.7 * x + 0.3
    return 2 * x / (1 + x.abs()) * math.cos(t / 300) - 0.2


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_single_possible_answer_is_reached_exactly(name):
    answer = torch.linspace(-2, 2, 16).view(1, 1, 4, 4)
    for steps in (1, 2, 7):
        drawn = SAMPLERS[name](lambda x, t: answer, fixed_noise((1, 1, 4, 4)), trailing_times(steps), ZERO_SNR)
        assert torch.equal(drawn, answer)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gaussian_data_come_out_with_their_mean(name):
    mean, _ = mean_and_spread(SAMPLERS[name], 50)
    assert mean == pytest.approx(MEAN, abs=0.01)


@pytest.mark.parametrize("name", SAMPLERS)
def test_gaussian_data_come_out_with_their_spread_the_better_the_more_steps(name):
    errors = [abs(mean_and_spread(SAMPLERS[name], steps)[1] - SPREAD) for steps in (10, 40, 160, 640)]
    if name in ONE_ANSWER:
        assert errors == pytest.approx([SPREAD] * 4)
    else:
        assert errors[0] > 2 * errors[1] > 4 * errors[2] > 8 * errors[3]
        assert errors[3] < 0.03 * SPREAD


def test_ddim_follows_the_probability_flow_with_first_order():
    # From N(0, 1) at the end the flow of Gaussian data is x ↦ MEAN + SPREAD x.
    start = torch.linspace(-3, 3, 7, dtype=torch.float64).view(-1, 1, 1, 1)
    errors = []
    for steps in (20, 40, 80, 160):
        drawn = sample_ddim(ideal_gaussian, lambda step: start, trailing_times(steps), ZERO_SNR)
        errors.append((drawn - (MEAN + SPREAD * start)).abs().max().item())
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert all(0.7 < order < 1.5 for order in orders), orders


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_same_noise_gives_the_same_sample(name):
    first, second = (
        SAMPLERS[name](crooked_network, fixed_noise((2, 3, 4, 4)), trailing_times(6), ZERO_SNR) for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_sample_does_not_depend_on_what_else_is_in_the_batch(name):
    noise = fixed_noise((5, 3, 4, 4))
    together = SAMPLERS[name](crooked_network, noise, trailing_times(6), ZERO_SNR)
    for k in range(5):
        alone = SAMPLERS[name](crooked_network, lambda step, k=k: noise(step)[k : k + 1], trailing_times(6), ZERO_SNR)
        assert torch.equal(alone[0], together[k])


@pytest.mark.parametrize("sampler", SAMPLERS.values())
def test_the_start_is_the_only_noise_that_is_asked_for(sampler):
    calls = []

    def noise(step):
        calls.append(step)
        return torch.zeros(1, 1, 2, 2)

    sampler(crooked_network, noise, trailing_times(4), ZERO_SNR)
    assert calls == [0]


@pytest.mark.parametrize("prediction", Prediction)
@pytest.mark.parametrize("steps", [1, 4, 10])
def test_steps_are_those_of_diffusers(prediction, steps):
    schedule = sd_schedule(prediction)
    theirs = DDIMScheduler(
        **STABLE_DIFFUSION, prediction_type=prediction.value, timestep_spacing="trailing", clip_sample=False
    )
    theirs.set_timesteps(steps)
    noise = fixed_noise((2, 1, 4, 4), torch.float64)
    x = noise(0)
    for t in theirs.timesteps.tolist():
        x = theirs.step(crooked_network(x, t), t, x).prev_sample

    def denoise(x, t):
        return schedule.to_x0(crooked_network(x, t), x, torch.tensor([t]))

    ours = sample_ddim(denoise, noise, trailing_times(steps), schedule)
    torch.testing.assert_close(ours, x, rtol=1e-5, atol=1e-5)


def test_one_step_looks_once_at_the_first_time():
    seen = []

    def denoise(x, t):
        seen.append(t)
        return x + 1

    drawn = sample_one_step(denoise, fixed_noise((1, 1, 2, 2)), [999, 499], ZERO_SNR)
    assert seen == [999]
    assert torch.equal(drawn, fixed_noise((1, 1, 2, 2))(0) + 1)


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_denoiser_is_asked_at_the_given_times_in_order(name):
    seen = []

    def denoise(x, t):
        seen.append(t)
        return x

    SAMPLERS[name](denoise, fixed_noise((1, 1, 2, 2)), [900, 500, 10], ZERO_SNR)
    assert seen == ([900] if name in ONE_ANSWER else [900, 500, 10])


# Guidance


def told(x, t):
    return torch.tanh(x) + 0.1 * t


def silent(x, t):
    return 0.5 * x - 0.2 * t


@pytest.mark.parametrize("t", [0, 7])
def test_guidance_leads_from_one_denoiser_to_the_other_and_beyond(t):
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guided(told, silent, 1.0)(x, t), told(x, t))
    assert torch.equal(guided(told, silent, 0.0)(x, t), silent(x, t))
    low, high = (guided(told, silent, weight)(x, t) for weight in (2.0, 5.0))
    for weight in (0.3, 3.0, 9.0):  # along one line
        expected = low + (weight - 2) / 3 * (high - low)
        torch.testing.assert_close(guided(told, silent, weight)(x, t), expected)
    torch.testing.assert_close(low - told(x, t), told(x, t) - silent(x, t))


def test_guidance_between_equal_denoisers_is_none():
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for weight in (0.0, 1.0, 9.0):
        assert torch.equal(guided(told, told, weight)(x, 3), told(x, 3))


@pytest.mark.parametrize("t", [999, 400])
def test_guidance_in_x0_is_guidance_in_epsilon(t):
    """x0 = (x_t - σ ε) / a is affine in ε, and both share x_t."""
    schedule = sd_schedule("epsilon")
    x = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a, sigma = schedule.signal_and_noise(torch.tensor([t]), x)
    epsilons = [(x - a * denoise(x, 3)) / sigma for denoise in (told, silent)]
    mixed = epsilons[1] + 4.0 * (epsilons[0] - epsilons[1])
    there = guided(lambda x, _: told(x, 3), lambda x, _: silent(x, 3), 4.0)(x, t)
    torch.testing.assert_close((x - sigma * mixed) / a, there)


def test_guided_samples_of_gaussian_data_move_with_the_weight():
    """Denoisers of two single answers: guidance goes from one to the other, and as far again beyond."""
    one, other = torch.full((1, 1, 2, 2), 0.25), torch.full((1, 1, 2, 2), -0.5)
    for weight, answer in ((0.0, -0.5), (1.0, 0.25), (2.0, 1.0)):
        denoise = guided(lambda x, t: one, lambda x, t: other, weight)
        drawn = sample_ddim(denoise, fixed_noise((1, 1, 2, 2)), trailing_times(4), ZERO_SNR)
        torch.testing.assert_close(drawn, torch.full_like(drawn, answer))
