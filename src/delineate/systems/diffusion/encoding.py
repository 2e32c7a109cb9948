"""How the prompted encoder learns: a segmenter of every target at once, its class weights read from captions."""

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from delineate.data.slices import Batch, SliceBank
from delineate.foundation.foundation import Foundation
from delineate.foundation.text import Encoded
from delineate.networks.encoder import Features, PromptedEncoder
from delineate.training.loop import Loss, Step
from delineate.training.losses import lumped, segmentation_loss

COARSE_FROM = 256  # pixels of the working grid, from where the encoder first learns at half of it
COARSE_SHARE = 0.35  # of the time


class Prompted(Protocol):
    """A system with a foundation that reads words, and an encoder that looks."""

    foundation: Foundation
    control: PromptedEncoder


def rivals_in(bank: SliceBank) -> dict[str, list[str]]:
    """For each name, those that the sets annotated for it could tell of, if only that they are absent.

    Names that never stood side by side in a softmax have logits that mean nothing to each other: on a CT the head that
    was learnt in ultrasound alone would take pixels of the aorta.
    """
    names, possible = bank.vocabulary.names, bank.annotated | bank.foreign
    told = {name: possible[bank.annotated[:, c]].any(dim=0) for c, name in enumerate(names)}
    return {name: [n for n, one in zip(names, with_it.tolist(), strict=True) if one] for name, with_it in told.items()}


@dataclass(frozen=True, eq=False)
class Captioned:
    """A batch, and a caption for every name of the vocabulary."""

    batch: Batch
    captions: list[str]


def looked_at(system: Prompted, drawn: Captioned) -> tuple[Encoded, Features, Tensor]:
    """The captions, the features, and log-probabilities of every name."""
    batch = drawn.batch
    with torch.no_grad():
        text = system.foundation.encode_text(drawn.captions)
    features = system.control.encoder(batch.image)
    estimate = system.control.estimate(features, text.pooled, None if batch.lumped else batch.possible)
    return text, features, lumped(estimate, batch.possible) if batch.lumped else estimate


def encoder_loss(system: Prompted, drawn: Captioned, step: Step) -> Loss:
    """Of the image encoder as a segmenter of every target at once."""
    _, _, log_probability = looked_at(system, drawn)
    return segmentation_loss(log_probability, drawn.batch.labels), {}


def coarse_share(size: int) -> float:
    """How much of a training on a grid of `size` pixels goes to half the resolution, first."""
    return COARSE_SHARE if size >= COARSE_FROM else 0.0


def halved(batch: Batch) -> Batch:
    """A batch without prompts, at half its resolution: the mean of every four pixels, the label of one of them."""
    return replace(
        batch, image=F.avg_pool2d(batch.image, 2), labels=batch.labels[:, ::2, ::2], masks=batch.masks[..., ::2, ::2]
    )
