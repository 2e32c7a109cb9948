"""How the networks of UniSegDiff learn: the condition network as a segmenter, then the two decoders, stage by stage."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from delineate.data.slices import Batch
from delineate.diffusion.codec import STEEP, PixelUnshuffleCodec
from delineate.diffusion.schedule import Prediction, Schedule
from delineate.diffusion.stages import Branch
from delineate.systems.diffusion.condition import ConditionNetwork
from delineate.systems.diffusion.scoring import one_of, readings_of_any, score
from delineate.training.loop import Loss, Step
from delineate.training.losses import lumped, mask_error, noise_error, segmentation_loss

DRAWS = 4  # of every slice, for the energy score
NO_LOGIT = -20.0  # of a mask's pixel that is 0 for sure


class Staged(Protocol):
    """What of `unisegdiff.UniSegDiff` its losses need."""

    config: Any
    condition: ConditionNetwork
    codec: PixelUnshuffleCodec
    schedule: Schedule

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        ...

    def conditions(self, levels: list[Tensor]) -> Any:
        """What features and the head make of slices; picked like a tensor."""
        ...

    def answers(self, seen: Any, x_t: Tensor, t: Tensor, branches: tuple[Branch, ...]) -> Mapping[Branch, Tensor]:
        """Logits of the mask and ε."""
        ...


def condition_loss(system: Staged, batch: Batch, step: Step) -> Loss:
    """Of the condition network as a segmenter of every target at once."""
    condition, possible = system.condition, batch.possible
    seen = condition.log_probability(condition(batch.image)[0], None if batch.lumped else possible)
    return segmentation_loss(lumped(seen, possible) if batch.lumped else seen, batch.labels), {}


def denoiser_loss(system: Staged, batch: Batch, step: Step) -> Loss:
    """λ_n L_n + λ_m L_m of the two decoders, at a time drawn for every slice (Hu et al. 2025, Sec. 2.2).

    By the paper L_m is Dice and cross entropy and L_n the square of the error of ε. By the energy score both are that
    of several draws of the slice, from noisy masks of raters drawn anew; ε is turned into a mask first.
    """
    stages, condition, device = system.config.stages, system.condition, system.device
    branches = tuple(Branch) if stages.target == "both" else (Branch(stages.target),)
    with torch.set_grad_enabled(not system.config.pretrained):
        levels = condition(batch.image)
        seen = system.conditions(levels)
    draws = DRAWS if system.config.score == "energy" else 1
    (raters, present), t = readings_of_any(batch), stages.draw(len(batch.image), step.generator)
    slices, t_each = torch.arange(len(t)).repeat_interleave(draws), t.repeat_interleave(draws)
    mask = one_of(raters, present, draws, step.generator) if draws > 1 else (batch.labels > 0).float()[:, None]
    x0 = system.codec.encode(mask)
    noise = system.codec.noise(x0.shape, step.generator).to(device)
    x_t = system.schedule.add_noise(x0, noise, t_each)
    known = system.codec.places(batch.known)  # elsewhere an answer is taken for right
    answers = system.answers(seen[slices.to(device)], x_t, t_each, branches)
    weights = dict(zip((Branch.NOISE, Branch.MASK), (w.to(device) for w in stages.loss_weights(t)), strict=True))
    loss, parts = torch.zeros((), device=device), {}
    for branch, answer in answers.items():
        if draws > 1:
            logit = answer if branch is Branch.MASK else STEEP * unclipped(answer, x_t, t_each, system.schedule)
            drawn = F.pixel_shuffle(logit, system.codec.stride)
            error = score(drawn.view(len(t), draws, *drawn.shape[2:]), raters, present, batch.known)
        elif branch is Branch.NOISE:
            error = noise_error(torch.where(known, answer, noise), noise)
        else:
            error = mask_error(answer.masked_fill(~known, NO_LOGIT), F.pixel_unshuffle(mask, system.codec.stride))
        loss, parts[str(branch)] = loss + (weights[branch] * error).mean(), error.mean().item()
    return loss, parts


def unclipped(answer: Tensor, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x0 that follows from ε at times `t` (B,)."""
    return replace(schedule, prediction=Prediction.EPSILON).to_x0(answer, x_t, t)


def clean_from(answer: Tensor, branch: Branch, x_t: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """x0 in [-1, 1] from a decoder's answer at times `t` (B,): logits of the mask, or ε.

    From ε it is clipped, for at 599 of the linear schedule errors come back sixfold.
    """
    if branch is Branch.MASK:
        return torch.tanh(answer / 2)  # 2 sigmoid - 1
    return unclipped(answer, x_t, t, schedule).clamp(-1, 1)
