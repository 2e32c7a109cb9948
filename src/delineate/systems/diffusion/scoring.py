"""How generators learn: several draws of every (slice, prompt) pair, scored against what raters drew.

By the energy score (`training.losses.energy_score`), not by the mean square, which has no reason to spread. By the
score of draws alone an encoder learns poorly from nothing: it is frozen, or learns by its own loss beside.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from delineate.data.slices import Batch
from delineate.foundation.text import Encoded
from delineate.networks.encoder import Features
from delineate.systems.diffusion.encoding import Captioned
from delineate.training.losses import energy_score

PROMPTS_DRAWN = 2  # a slice, where there are so many names
MATCHED = 0.5  # weight of the score's second term
SHARP = 8.0  # log-odds of a draw are multiplied by so much: it is scored nearly as it is used, in 0 and 1


@dataclass(frozen=True, eq=False)
class Pairs:
    """B (slice, prompt) pairs of a batch.

    Attributes:
        features: of their slices.
        probability: the encoder's own, (B, 1, S, S).
        text: of their prompts.
        raters: what was drawn of them, (B, M, S, S) in {0, 1}.
        present: which of the M raters there are, (B, M) bool.
        known: the pixels that somebody labelled, (B, 1, S, S) bool.
    """

    features: Features
    probability: Tensor
    text: Encoded
    raters: Tensor
    present: Tensor
    known: Tensor

    def __len__(self) -> int:
        return len(self.probability)


def pairs_of(drawn: Captioned, text: Encoded, features: Features, log_probability: Tensor) -> Pairs:
    """The pairs of a batch that was drawn with prompts; the others are what `encoding.looked_at` tells of it."""
    batch = drawn.batch
    image = torch.arange(len(batch.image), device=batch.image.device).repeat_interleave(batch.concepts.shape[1])
    concept = batch.concepts.flatten()
    probability = log_probability[image, 1 + concept].exp()[:, None]
    return Pairs(features[image], probability, text[concept], *readings_of(batch, image, concept), batch.known[image])


def score(logit: Tensor, raters: Tensor, present: Tensor, known: Tensor) -> Tensor:
    """The score (B,) of draws with log-odds (B, K, S, S); the others as in `Pairs`."""
    return energy_score((SHARP * logit.float()).sigmoid() * known, raters, present, MATCHED)


def readings_of(batch: Batch, image: Tensor, concept: Tensor) -> tuple[Tensor, Tensor]:
    """What raters drew of the concepts (B,) in the images (B,), (B, M, S, S) in {0, 1}, and who there is (B, M).

    The batch's own mask where it has no readings.
    """
    if batch.readings is None:
        mask = (batch.labels[image] == 1 + concept[:, None, None])[:, None].float()
        return mask, mask.new_ones(len(mask), 1, dtype=torch.bool)
    readings = batch.readings[image]
    return (readings == 1 + concept[:, None, None, None]).float() * batch.known[image], batch.present[image]


def readings_of_any(batch: Batch) -> tuple[Tensor, Tensor]:
    """The same of all targets together, (B, M, S, S) and (B, M)."""
    if batch.readings is None:
        mask = (batch.labels > 0)[:, None].float()
        return mask, mask.new_ones(len(mask), 1, dtype=torch.bool)
    return (batch.readings > 0).float() * batch.known, batch.present


def one_of(raters: Tensor, present: Tensor, draws: int, generator: Generator) -> Tensor:
    """Masks (B·draws, 1, S, S), each one of the readings of its image, drawn evenly."""
    chosen = torch.multinomial(present.float().cpu(), draws, replacement=True, generator=generator)
    pair = torch.arange(len(raters)).repeat_interleave(draws)
    return raters[pair.to(raters.device), chosen.flatten().to(raters.device)][:, None]
