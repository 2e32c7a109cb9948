"""Spread: a prompted encoder, and how far the masks that people would draw of a target spread (`networks.spread`).

The generator of this project's own: after one look at a slice and a small network a (slice, prompt) pair, a proposal
costs a sum. Taught by the energy score (`scoring`).
"""

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from delineate.data.slices import SliceBank
from delineate.foundation.foundation import Foundation
from delineate.foundation.text import Encoded
from delineate.networks.encoder import ENCODER_WIDTHS, Features, PromptedEncoder
from delineate.networks.precision import halves
from delineate.networks.spread import Spread, Start, log_odds
from delineate.storage.memory import at_once
from delineate.systems.diffusion import prompted
from delineate.systems.diffusion.encoding import Captioned, looked_at
from delineate.systems.diffusion.fields import LEVEL, even_fields, smooth_fields
from delineate.systems.diffusion.prompted import Prompted, save, train
from delineate.systems.diffusion.scoring import SHARP, pairs_of, score
from delineate.systems.diffusion.thresholds import SURE
from delineate.systems.system import Clues, OnShare
from delineate.training.loop import Hyperparameters, Loss, Phase, Step
from delineate.training.losses import segmentation_loss

__all__ = ["SpreadControl", "SpreadSystem", "build", "load", "make", "save", "train"]

ENCODER_SHARE = 0.55  # of the training budget, by its own loss alone; then all learn together
OWN = 0.5  # weight of that loss beside the score
TOGETHER = Hyperparameters(learning_rate=5e-4)
DRAWS = 16  # of every mask, for the score
PAIRS_AT_ONCE = 16  # (slice, prompt) pairs in one forward: bounds memory
FAR = 4.0  # noise beyond it is not reckoned with: three in a hundred thousand


class SpreadControl(PromptedEncoder):
    """Image encoder and head, and the spread."""

    def __init__(self, widths: tuple[int, ...], text_width: int, channels: int = 3):
        super().__init__(widths, text_width, channels)
        self.spread = Spread(widths, text_width)


class SpreadSystem(Prompted):
    """A prompted encoder that tells how far masks spread."""

    draws_estimate = False
    levels_kept = len(max(ENCODER_WIDTHS.values(), key=len))

    @classmethod
    def control_for(cls, widths: tuple[int, ...], foundation: Foundation, channels: int) -> SpreadControl:
        """Encoder, head and spread."""
        return SpreadControl(widths, int(foundation.text_encoder.config.hidden_size), channels)

    def phases(self, bank: SliceBank) -> list[Phase]:
        """The encoder learns to segment; then all of it to draw as well, by the score."""
        (encoder,) = super().phases(bank)
        drawn = self._stream(bank, 1)
        everything = Phase("spread", self.control, drawn, spread_loss, self, 1 - ENCODER_SHARE, TOGETHER)
        return [replace(encoder, share=ENCODER_SHARE), everything]

    def _draw(
        self,
        seen: Features,
        text: Encoded,
        probability: Tensor,
        n: int,
        seed: int,
        on_step: OnShare,
        clues: Clues = Clues(),
    ) -> Tensor:
        odds = log_odds(probability[:, None])
        pooled = text.pooled.expand(len(odds), -1)
        parts = torch.arange(len(odds)).split(at_once(PAIRS_AT_ONCE))
        with halves(odds.device):
            starts = [self.control.spread(seen[some], odds[some], pooled[some]) for some in parts]
        out = drawn_from(starts, smooth_fields(self.size, n, seed), on_step)
        if clues.known is not None:
            value, where = (pixels[:, 0].cpu() for pixels in clues.known)
            out = torch.where(where, value, out)
        return out


def spread_loss(system: SpreadSystem, drawn: Captioned, step: Step) -> Loss:
    """The encoder's own loss, and the score of several draws of every pair, of levels as evenly spread as in use."""
    seen = looked_at(system, drawn)
    own, pairs = segmentation_loss(seen[2], drawn.batch.labels), pairs_of(drawn, *seen)
    start = system.control.spread(pairs.features, log_odds(pairs.probability), pairs.text.pooled)
    field = even_fields(system.size, len(pairs), DRAWS, LEVEL, step.generator).to(start.odds.device)
    scored = score(start.drawn(field), pairs.raters, pairs.present, pairs.known).mean()
    return OWN * own + scored, {"encoder": own.detach(), "score": scored.detach()}


def drawn_from(starts: list[Start], fields: Tensor, on_step: OnShare = lambda share: None) -> Tensor:
    """Proposals (N, S, size, size) on the CPU of the starts of S slices, in parts, by noise (N, size, size).

    Worked out where noise can change anything; elsewhere a pixel is 0 or 1 in every proposal (`thresholds`).
    """
    odds, gain = (torch.cat([getattr(one, name) for one in starts]).flatten() for name in ("odds", "gain"))
    sure = torch.logit(torch.tensor(1 - SURE)).item() / SHARP
    unsure = odds.abs() < sure + FAR * gain
    where = unsure.nonzero()[:, 0]
    odds_there, gain_there = odds[where], gain[where]
    place, pixel = where.cpu(), where % fields[0].numel()
    always = ((odds > 0) & ~unsure).nonzero()[:, 0].cpu()
    shape = (len(fields), sum(len(one.odds) for one in starts), *fields.shape[1:])
    out = torch.from_numpy(np.zeros(shape, np.float32))  # NumPy's cost nothing where not touched
    for k, one in enumerate(out.flatten(1)):
        field = fields[k].to(odds.device)
        logit = torch.addcmul(odds_there, gain_there, field.flatten()[pixel])
        one[place] = F.threshold((SHARP * logit).sigmoid(), SURE, 0.0).cpu()
        one[always] = 1.0
        on_step((k + 1) / len(fields))
    return out


build, make, load = (partial(one, kind=SpreadSystem) for one in (prompted.build, prompted.make, prompted.load))
