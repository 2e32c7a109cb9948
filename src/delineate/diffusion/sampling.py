"""Samplers: functions of a denoiser, of noise and of times, which know nothing of networks or prompts.

`denoise(x_t, t) -> x0` takes a batch and one integer time for all of it. `noise(step)` gives the noise field
of a step; step 0 is the start. Passing the noise in, rather
than a seed, is what makes a proposal independent of the batch it is drawn in.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from delineate.diffusion.schedule import Schedule

Denoise = Callable[[Tensor, int], Tensor]
Noise = Callable[[int], Tensor]


def sample_ddim(denoise: Denoise, noise: Noise, times: Sequence[int], schedule: Schedule) -> Tensor:
    """x0 by the deterministic sampler of Song et al. (2021), Eq. 12 with η = 0."""
    x = noise(0)
    for t, s in zip(times, [*times[1:], -1], strict=True):
        x0 = denoise(x, t)
        if s < 0:
            return x0
        a_t, sigma_t = schedule.signal_and_noise(torch.tensor([t]), x)
        a_s, sigma_s = schedule.signal_and_noise(torch.tensor([s]), x)
        x = a_s * x0 + sigma_s * (x - a_t * x0) / sigma_t
    raise ValueError("times must not be empty")


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
