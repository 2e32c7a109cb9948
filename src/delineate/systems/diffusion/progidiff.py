"""ProGiDiff: a frozen text-to-image diffusion model, steered from a scan to the mask of the prompted target.

After Lin et al. (2026), arXiv 2601.16060; what the paper leaves open was decided as follows. The image encoder is
first trained as a segmenter of every target at once and then conditions the control (UniSegDiff does the like). Draws
of a prompt's mask are taught by a proper score against all that raters drew (`scoring`); they start as those of the
floor (`networks.spread.cooled`), from N noise fields, in one step or a few. A foundation from a folder is frozen; one
that is made here learns along.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Self

import torch
from annotated_types import Interval
from torch import Generator, Tensor, nn

from delineate.data.slices import SliceBank
from delineate.diffusion.codec import STRIDE
from delineate.diffusion.schedule import trailing_times
from delineate.diffusion.seeds import seed_of
from delineate.foundation.control import Hint, MaskControl, Residuals
from delineate.foundation.foundation import Foundation
from delineate.foundation.pretraining import NO_PART
from delineate.foundation.text import Encoded
from delineate.networks.encoder import ENCODER_WIDTHS, Features
from delineate.prompts.vocabulary import Vocabulary
from delineate.storage.memory import at_once
from delineate.systems.diffusion import prompted
from delineate.systems.diffusion.encoding import Captioned, looked_at
from delineate.systems.diffusion.fields import random_fields, smooth_fields
from delineate.systems.diffusion.prompted import Prompted, PromptedConfig, save
from delineate.systems.diffusion.scoring import PROMPTS_DRAWN, SHARP, one_of, pairs_of, score
from delineate.systems.drawing import draw_pairs
from delineate.systems.system import Clues, OnShare
from delineate.training.loop import Loss, Phase, Run, Step

__all__ = ["ProGiDiff", "ProGiDiffConfig", "build", "load", "make", "save", "train"]

ENCODER_SHARE = 0.55  # of the training budget; the rest trains the generator
DRAWS = 4  # of every mask, for the score
LEVEL = 0.9  # share of the generator's noise that is one value for the whole picture
PAIRS_AT_ONCE = 64  # (slice, proposal) pairs in one forward: bounds memory, changes nothing but rounding


@dataclass(frozen=True)
class ProGiDiffConfig(PromptedConfig):
    """What a model folder must say beside its weights.

    Attributes:
        size: as in `PromptedConfig`, and so are encoder, skip_below and rivals.
        steps: in which a mask is drawn; of more than one, the later ones denoise what was drawn.
    """

    steps: Annotated[int, Interval(ge=1, le=1000)] = 1


class ProGiDiff(Prompted):
    """A foundation, its control, and how to draw with them."""

    draws_estimate = False
    levels_kept = len(max(ENCODER_WIDTHS.values(), key=len))
    teaches_unet = False  # in training, of a foundation that is made here
    configured = ProGiDiffConfig

    @classmethod
    def control_for(cls, widths: tuple[int, ...], foundation: Foundation, channels: int) -> MaskControl:
        """Encoder, head, hint and ControlNet."""
        text_width = int(foundation.text_encoder.config.hidden_size)
        return MaskControl(foundation.unet, widths, foundation.codec.channels, text_width, channels)

    @classmethod
    def made_for(cls, preset: str) -> str:
        """One whose U-Net takes part."""
        return {"small": "tiny"}.get(preset, preset)

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
        known = None if clues.known is None else [pixels[:, 0] for pixels in clues.known]
        if known is not None:
            value, where = (pixels.to(probability.device) for pixels in known)
            probability = torch.where(where > 0, value, probability)
        pooled, device = text.pooled.expand(len(probability), -1), probability.device
        hint = self.control.hint(seen, probability[:, None], pooled)
        times = trailing_times(self.config.steps)
        steering = [self._steering(hint, text, t) for t in times]
        fields = [smooth_fields(self.size, n, seed, LEVEL, step) for step in range(len(times))]

        def draw(proposals: Tensor, slices: Tensor) -> Tensor:
            tokens, own_hint = text[torch.zeros_like(slices)], hint[slices]
            drawn = torch.zeros_like(own_hint.start.odds)
            for step, (t, residuals) in enumerate(zip(times, steering, strict=True)):
                noise = fields[step][proposals][:, None].to(device)
                own = [seed_of(seed, k, step) for k in proposals.tolist()]
                x_t, pixels = self._noisy(drawn, noise, t, own)
                logit = self.control.draw(self.foundation, x_t, pixels, t, tokens, residuals[slices], own_hint)
                drawn = (SHARP * logit).sigmoid()
            return drawn[:, 0]

        pairs = torch.cartesian_prod(torch.arange(len(probability)), torch.arange(n)).flip(1)
        out = torch.zeros(n, len(probability), self.size, self.size)
        draw_pairs(pairs, draw, out, at_once(PAIRS_AT_ONCE), on_step)
        return out if known is None else torch.where(known[1].cpu() > 0, known[0].cpu(), out)

    def _steering(self, hint: Hint, text: Encoded, t: int) -> Residuals:
        """What the control adds to the U-Net at time t, of every (slice, prompt) pair."""
        channels, parts = self.foundation.codec.channels, torch.arange(len(hint.grid)).split(at_once(PAIRS_AT_ONCE))
        found = [self.control.residuals(t, text[torch.zeros_like(i)], hint[i], channels) for i in parts]
        down = tuple(torch.cat(skips) for skips in zip(*(one.down for one in found), strict=True))
        return Residuals(down, torch.cat([one.middle for one in found]))

    def _noisy(self, mask: Tensor, field: Tensor, t: int, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Masks (B, 1, S, S) at time t as latents, and on pixels, by noise `field` of that shape."""
        codec, grid = self.foundation.codec, self.size // STRIDE

        def own() -> Tensor:
            shape = (1, codec.channels, grid, grid)
            white = [codec.noise(shape, Generator().manual_seed(seed)) for seed in seeds]
            return torch.cat(white).to(field.device)

        when = torch.full((len(mask),), t, device=mask.device)
        x_t = self.foundation.schedule.add_noise(codec.encode(mask), codec.of_field(field, own), when)
        return x_t, codec.on_pixels(x_t, field)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The control, with its image encoder; of a foundation that nothing has taught yet the U-Net too."""
        own: dict[str, nn.Module] = {"control": self.control}
        return own | ({"unet": self.foundation.unet} if self.foundation.is_untrained else {})

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> Self:
        """The same foundation under another control; names need no weights of their own, they are read."""
        foundation, control = self.foundation, parts["control"]
        if "unet" in parts:
            foundation = replace(foundation, unet=parts["unet"])
        assert isinstance(control, MaskControl)
        return type(self)(self.config, foundation, control, vocabulary)

    @property
    def _generator(self) -> nn.ModuleDict:
        """What learns to draw, once the encoder is frozen: with a foundation that is new, its U-Net too."""
        learns = {n: m for n, m in self.control.named_children() if n not in self._looks}
        teaches = self.teaches_unet or self.foundation.is_untrained
        return nn.ModuleDict(learns | ({"unet": self.foundation.unet} if teaches else {}))

    def phases(self, bank: SliceBank) -> list[Phase]:
        """The encoder learns to segment; then, frozen, the control learns to draw by the score."""
        (encoder,) = super().phases(bank)
        drawn = self._stream(bank, min(PROMPTS_DRAWN, len(self.vocabulary.names)))
        generator = Phase("generator", self._generator, drawn, generator_loss, self, 1 - ENCODER_SHARE)
        return [replace(encoder, share=ENCODER_SHARE), generator]


def generator_loss(system: ProGiDiff, drawn: Captioned, step: Step) -> Loss:
    """The score of several draws of every pair, at one of the times drawn evenly."""
    control = system.control
    with torch.no_grad():
        pairs = pairs_of(drawn, *looked_at(system, drawn))
    hint = control.hint(pairs.features, pairs.probability, pairs.text.pooled)
    times = trailing_times(system.config.steps)
    t = times[int(torch.randint(len(times), (), generator=step.generator))]
    steering = control.residuals(t, pairs.text, hint, system.foundation.codec.channels)
    pair = torch.arange(len(pairs), device=hint.grid.device).repeat_interleave(DRAWS)
    field = random_fields(system.size, len(pair), LEVEL, step.generator)[:, None].to(hint.grid.device)
    noisy = one_of(pairs.raters, pairs.present, DRAWS, step.generator)
    seeds = torch.randint(2**62, (len(pair),), generator=step.generator).tolist()
    x_t, pixels = system._noisy(noisy, field, t, seeds)
    logit = control.draw(system.foundation, x_t, pixels, t, pairs.text[pair], steering[pair], hint[pair])
    drawn_of = logit.view(len(pairs), DRAWS, *logit.shape[2:])
    return score(drawn_of, pairs.raters, pairs.present, pairs.known).mean(), {}


def train(system: ProGiDiff, bank: SliceBank, run: Run) -> ProGiDiff:
    """As `prompted.train`; the U-Net of a foundation made here learns along, one from a folder is not touched."""
    system.teaches_unet = system.foundation.is_untrained
    prompted.train(system, bank, run)
    if system.teaches_unet:
        system.teaches_unet = False
        system.foundation.pretraining = system.foundation.pretraining.replace(
            NO_PART, "the U-Net learnt with its control"
        )
        system.foundation.frozen()
    return system


build, make, load = (partial(one, kind=ProGiDiff) for one in (prompted.build, prompted.make, prompted.load))
