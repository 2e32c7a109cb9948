"""Samplers: functions of a denoiser, of noise and of times, which know nothing of networks or prompts.

`denoise(x_t, t) -> x0` takes a batch and one integer time for all of it. `noise(step)` gives the noise field
of a step: step 0 is the start, later ones are used by stochastic samplers only. Passing the noise in, rather
than a seed, is what makes a proposal independent of the batch it is drawn in.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from delineate.diffusion.schedule import Schedule

Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[int], Tensor]
Sampler = Callable[[Denoise, Noise, Sequence[int], Schedule], Tensor]


def sample_ddim(denoise: Denoise, noise: Noise, times: Sequence[int], schedule: Schedule) -> Tensor:
    """x0 by the deterministic sampler of Song et al. (2021), Eq. 12 with η = 0."""
    return _sample(denoise, noise, times, schedule, eta=0.0)


def sample_ancestral(denoise: Denoise, noise: Noise, times: Sequence[int], schedule: Schedule) -> Tensor:
    """x0 by Song et al. (2021), Eq. 12 with η = 1: fresh noise enters at every step."""
    return _sample(denoise, noise, times, schedule, eta=1.0)


def sample_one_step(denoise: Denoise, noise: Noise, times: Sequence[int], schedule: Schedule) -> Tensor:
    """x0 in a single evaluation at the first of `times`; nearly deterministic, hence no real proposals."""
    return denoise(noise(0), times[0])


def guided(denoise: Denoise, unconditional: Denoise, weight: float) -> Denoise:
    """A denoiser that exaggerates what its condition changes (classifier-free guidance, Ho and Salimans, 2022).

    Weight 1 is `denoise` itself, 0 is `unconditional`; more goes beyond. In x0 rather than ε, which is the same thing.
    """

    def denoised(x: Tensor, t: int) -> Tensor:
        free = unconditional(x, t)
        return free + weight * (denoise(x, t) - free)

    return denoised


def known(denoise: Denoise, value: Tensor, where: Tensor) -> Denoise:
    """A denoiser that is told some of what it would have to guess: `value` where `where` (bool) says so.

    Replacement, in x0: at every step the noisy x follows a known pixel to where it belongs, and the denoiser sees it
    there. Exact where pixels are independent given the condition, as in `PixelUnshuffleCodec.posterior`. What depends
    on a known pixel moves the right way but not all of it, for early on the noisy x hides it: two normal values with
    correlation 0.8, one known to be 1.5, give the other a mean of 0.5 instead of 1.2. So a condition should carry
    what known pixels say of others.
    """
    return lambda x, t: torch.where(where, value, denoise(x, t))


SAMPLERS: dict[str, Sampler] = {
    "ddim": sample_ddim,
    "ancestral": sample_ancestral,
    "one_step": sample_one_step,
}


def _sample(denoise: Denoise, noise: Noise, times: Sequence[int], schedule: Schedule, *, eta: float) -> Tensor:
    x = noise(0)
    for step, (t, s) in enumerate(zip(times, [*times[1:], -1], strict=True), start=1):
        x0 = denoise(x, t)
        if s < 0:
            return x0
        a_t, sigma_t = schedule.signal_and_noise(torch.tensor([t]), x)
        a_s, sigma_s = schedule.signal_and_noise(torch.tensor([s]), x)
        epsilon = (x - a_t * x0) / sigma_t
        fresh = eta * (sigma_s / sigma_t) * (1 - (a_t / a_s) ** 2).clamp(min=0).sqrt()
        x = a_s * x0 + (sigma_s**2 - fresh**2).clamp(min=0).sqrt() * epsilon
        if eta > 0:
            x = x + fresh * noise(step)
    raise ValueError("times must not be empty")
