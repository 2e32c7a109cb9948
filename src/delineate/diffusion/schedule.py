"""How much noise a time carries, and what a network's output means at that time.

Notation of Ho et al. (2020): ᾱ_t is the share of signal variance left at time t; x_t = √ᾱ_t x0 + √(1-ᾱ_t) ε.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor


class Prediction(StrEnum):
    """What the network's output is; the names are those of diffusers' `prediction_type`."""

    EPSILON = "epsilon"
    X0 = "sample"
    V = "v_prediction"


@dataclass(frozen=True, eq=False)
class Schedule:
    """Signal left at each of T integer times, and the meaning of a network's output.

    `alphas_cumprod` is ᾱ, a float64 tensor (T,), falling.
    """

    alphas_cumprod: Tensor
    prediction: Prediction

    def signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """√ᾱ_t and √(1-ᾱ_t), shaped to multiply `like` (batch first); t = -1 stands for clean data."""
        padded = torch.cat([self.alphas_cumprod, self.alphas_cumprod.new_ones(1)])  # index -1 reads the one
        abar = padded[t.cpu()].to(like.device)
        shape = (-1, *([1] * (like.ndim - 1)))
        return abar.sqrt().to(like.dtype).view(shape), (1 - abar).sqrt().to(like.dtype).view(shape)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t of the forward process."""
        a, s = self.signal_and_noise(t, x0)
        return a * x0 + s * noise

    def to_x0(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The clean estimate that a network's `output` at (x_t, t) stands for.

        v = √ᾱ ε - √(1-ᾱ) x0 (Salimans and Ho, 2022). For ε the division by √ᾱ amplifies errors near the
        last time; a schedule that reaches ᾱ = 0 there is refused by `schedule_from_config`.
        """
        a, s = self.signal_and_noise(t, x_t)
        match self.prediction:
            case Prediction.X0:
                return output
            case Prediction.V:
                return a * x_t - s * output
            case Prediction.EPSILON:
                return (x_t - s * output) / a


def schedule_from_config(config: Mapping[str, Any]) -> Schedule:
    """The schedule that a `scheduler_config.json` of diffusers describes.

    Raises:
        ValueError: ε-prediction with a schedule that reaches zero signal, which no x0 can be recovered from.
    """
    from diffusers import DDIMScheduler

    known = {k: v for k, v in config.items() if not k.startswith("_")}
    wanted = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas")
    built = DDIMScheduler(
        **{k: known[k] for k in wanted if k in known},
        rescale_betas_zero_snr=bool(known.get("rescale_betas_zero_snr", False)),
    )
    schedule = Schedule(built.alphas_cumprod.double(), Prediction(known.get("prediction_type", "epsilon")))
    if schedule.prediction is Prediction.EPSILON and schedule.alphas_cumprod[-1] < 1e-8:
        raise ValueError("epsilon prediction needs signal at the last time; use v_prediction or sample with zero SNR")
    return schedule


def trailing_times(steps: int, total: int = 1000) -> list[int]:
    """The times of a sampler, from the last one down, evenly spaced ("trailing" spacing of Lin et al., 2024).

    Starting anywhere but at the last time evaluates the network on noise it never saw.

    >>> trailing_times(1), trailing_times(4)
    ([999], [999, 749, 499, 249])
    """
    if not 1 <= steps <= total:
        raise ValueError(f"steps must lie in 1..{total}, got {steps}")
    return [round(total - i * total / steps) - 1 for i in range(steps)]
