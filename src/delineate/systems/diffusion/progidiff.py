"""ProGiDiff: a frozen text-to-image diffusion model, steered from a scan to the mask of the prompted target.

After Lin et al. (2026), arXiv 2601.16060; what the paper leaves open was decided as follows. The image encoder is
first trained as a segmenter of every target at once and then conditions the control (UniSegDiff does the like); the
network predicts x0; a prompt's mask is drawn in a few trailing DDIM steps from N noise fields.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from delineate.data.slices import Batch, SliceBank
from delineate.diffusion.codec import PixelUnshuffleCodec, noise_fields
from delineate.diffusion.sampling import SAMPLERS, known
from delineate.diffusion.schedule import trailing_times
from delineate.foundation.control import Control, Hint
from delineate.foundation.foundation import Foundation
from delineate.foundation.pretraining import draw_captions
from delineate.foundation.text import Encoded
from delineate.networks.encoder import ENCODER_WIDTHS, Features
from delineate.prompts.vocabulary import Vocabulary
from delineate.systems.system import Marked, Target
from delineate.training.loop import Budget, OnStep, Stage, train_stages
from delineate.training.losses import denoising_loss, lumped, segmentation_loss

ENCODER_SHARE = 0.72  # of the training budget; the rest trains the control
PROMPTS_DENOISED = 4  # a slice, for the denoiser: each is a pass of its own
PAIRS_AT_ONCE = 64  # (slice, proposal) pairs in one forward: bounds memory, changes nothing but rounding


@dataclass(frozen=True)
class ProGiDiffConfig:
    """What a model folder must say beside its weights."""

    size: int = 128
    encoder: str = "tiny"
    sampler: str = "ddim"
    steps: int = 2  # as good as 4 on the validation patient (docs/lab), at half the price
    skip_below: float = 0.02  # slices where the encoder's own estimate nowhere exceeds this are not drawn


class ProGiDiff:
    """A foundation, its control, and how to draw with them."""

    def __init__(self, config: ProGiDiffConfig, foundation: Foundation, control: Control, vocabulary: Vocabulary):
        self.config = config
        self.foundation = foundation
        self.control = control.eval()
        self.vocabulary = vocabulary

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        return self.config.size

    def to(self, device: torch.device | str) -> "ProGiDiff":
        """Itself, moved."""
        self.foundation.to(device)
        self.control.to(device)
        return self

    @torch.no_grad()
    def see(self, stack: Tensor) -> Features:
        """Encode slices (S, 3, size, size) once, for any number of prompts."""
        stack = stack.to(self.foundation.device)
        parts = [self.control.encoder(chunk) for chunk in stack.split(16)]
        return Features(torch.cat([p.fine for p in parts]), torch.cat([p.coarse for p in parts]))

    @torch.no_grad()
    def estimate(self, seen: Features, target: Target, slices: Tensor | None = None) -> Tensor:
        """The encoder's own probability of the target, (S, size, size): what the denoiser starts from.

        Of M `slices`, by their indices, where they are given: (M, size, size).
        """
        seen = seen if slices is None else seen[slices.to(self.foundation.device)]
        return self._probability(seen, self.foundation.encode_text([target.caption]), target).cpu()

    @torch.no_grad()
    def propose(
        self, seen: Features, target: Target, n: int, seed: int, on_step: Callable[[float], None] = lambda share: None
    ) -> Tensor:
        """N probability volumes (N, S, size, size) of one target.

        Proposal k uses one noise field for all slices, made from (seed, k) alone.
        """
        text = self.foundation.encode_text([target.caption])
        probability = self._probability(seen, text, target)
        out = torch.zeros(n, len(probability), self.size, self.size)
        active = (probability.flatten(1).max(1).values >= self.config.skip_below).nonzero()[:, 0]
        if len(active):
            out[:, active.cpu()] = self._draw(seen[active], text, probability[active], n, seed, on_step)
        return out

    @torch.no_grad()
    def redraw(
        self,
        seen: Features,
        target: Target,
        marked: Marked,
        n: int,
        seed: int,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> Tensor:
        """N probability volumes (N, M, size, size) of the marked slices, from the noise fields of `propose`.

        The marks' probability takes the place of the encoder's.
        """
        device = self.foundation.device
        text = self.foundation.encode_text([target.caption])
        chosen = seen[marked.slices.to(device)]
        return self._draw(chosen, text, marked.probability.to(device), n, seed, on_step, marked)

    def _draw(
        self,
        seen: Features,
        text: Encoded,
        probability: Tensor,
        n: int,
        seed: int,
        on_step: Callable[[float], None],
        marked: Marked | None = None,
    ) -> Tensor:
        """(n, S, size, size) on the CPU, of slices with the `probability` (S, size, size) to start from."""
        codec, pooled = self.foundation.codec, text.pooled.expand(len(probability), -1)
        hint = self.control.hint(seen, probability[:, None], pooled, codec)
        times = trailing_times(self.config.steps)
        fields = noise_fields(codec, n, tuple(hint.estimate.shape[1:]), seed)
        out = torch.zeros(n, len(probability), self.size, self.size)
        pairs = torch.cartesian_prod(torch.arange(len(probability)), torch.arange(n))
        for done, chunk in enumerate(pairs.split(PAIRS_AT_ONCE), start=1):
            slices, proposals = chunk[:, 0], chunk[:, 1]
            denoise = self._denoiser(hint[slices], text)
            if marked is not None and isinstance(codec, PixelUnshuffleCodec):
                value, where = codec.encode(marked.value[slices]), codec.places(marked.where[slices])
                denoise = known(denoise, value.to(hint.estimate.device), where.to(hint.estimate.device))
            x0 = SAMPLERS[self.config.sampler](
                denoise,
                lambda step, proposals=proposals: fields(step)[proposals].to(hint.estimate.device),
                times,
                self.foundation.schedule,
            )
            out[proposals, slices] = codec.decode(x0)[:, 0].clamp(0, 1).cpu()
            on_step(min(1.0, done * PAIRS_AT_ONCE / len(pairs)))
        return out

    def _probability(self, seen: Features, text: Encoded, target: Target) -> Tensor:
        """(S, size, size): the prompt's words against everything else that the model knows by its plain name."""
        index = self.vocabulary.index(target.concept.name)
        pooled = self.foundation.encode_text(list(self.vocabulary.names)).pooled
        likeness = F.cosine_similarity(text.pooled, pooled)
        if likeness.argmax() == index:  # else the words are unlike any caption that was learnt: the plain name serves
            pooled[index] = text.pooled[0]
        known = [self.control.estimate(chunk, pooled)[:, 1 + index].exp() for chunk in seen.split(16)]
        return torch.cat(known)

    def _denoiser(self, hint: Hint, text: Encoded) -> Callable[[Tensor, int], Tensor]:
        tokens = Encoded(text.tokens.expand(len(hint.grid), -1, -1), text.pooled)
        return lambda x, t: clean_estimate(
            self.foundation, self.control, x, torch.full((len(x),), t, device=x.device), tokens, hint
        )

    @property
    def learnt(self) -> Vocabulary:
        """The vocabulary."""
        return self.vocabulary

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The control, with its image encoder; not the foundation."""
        return {"control": self.control}

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> "ProGiDiff":
        """The same foundation under another control; names need no weights of their own, they are read."""
        control = parts["control"]
        assert isinstance(control, Control)
        return ProGiDiff(self.config, self.foundation, control, vocabulary)

    def stages(self, bank: SliceBank) -> list[Stage]:
        """Two. The image encoder learns to segment every target at once; then, it frozen, the rest learns to denoise.

        Trained by the denoiser from nothing the encoder learns poorly.
        """
        control, foundation = self.control, self.foundation
        looks = nn.ModuleDict({"encoder": control.encoder, "head": control.head})
        steers = nn.ModuleDict({name: module for name, module in control.named_children() if name not in looks})

        def looked_at(batch: Batch, generator: Generator) -> tuple[Encoded, Features, Tensor, Tensor]:
            with torch.no_grad():
                text = foundation.encode_text(draw_captions(bank, generator))
            possible = (bank.annotated | bank.foreign)[batch.dataset.cpu()].to(foundation.device)
            features = control.encoder(batch.image)
            estimate = control.estimate(features, text.pooled, None if bank.lumped else possible)
            return text, features, lumped(estimate, possible) if bank.lumped else estimate, possible

        def encoder_loss(size: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
            batch = bank.draw(size, 1, generator).to(foundation.device)
            _, _, log_probability, possible = looked_at(batch, generator)
            return segmentation_loss(log_probability, batch.labels, possible), {}

        def control_loss(size: int, generator: Generator) -> tuple[Tensor, dict[str, float]]:
            batch = bank.draw(size, PROMPTS_DENOISED, generator).to(foundation.device)
            with torch.no_grad():
                text, features, log_probability, _ = looked_at(batch, generator)
            image = torch.arange(size, device=foundation.device).repeat_interleave(batch.concepts.shape[1])
            concept, mask = batch.concepts.flatten(), batch.masks.flatten(0, 1)[:, None]
            pairs, probability = text[concept], log_probability[image, 1 + concept].exp()[:, None]
            hint = control.hint(features[image], probability, pairs.pooled, foundation.codec)
            x0 = foundation.codec.encode(mask)
            t = torch.randint(1000, (len(x0),), generator=generator).to(foundation.device)
            noise = foundation.codec.noise(x0.shape, generator).to(foundation.device)
            x_t = foundation.schedule.add_noise(x0, noise, t)
            x0_hat = clean_estimate(foundation, control, x_t, t, pairs, hint)
            return denoising_loss(x0_hat, x0, foundation.codec.decode(x0_hat), mask, concept), {}

        return [
            Stage("encoder", looks, encoder_loss, ENCODER_SHARE),
            Stage("control", steers, control_loss, 1 - ENCODER_SHARE),
        ]


def clean_estimate(
    foundation: Foundation, control: Control, x_t: Tensor, t: Tensor, text: Encoded, hint: Hint
) -> Tensor:
    """x0 of the controlled foundation at (x_t, t): the U-Net's, steered by residuals, weighed with the posterior."""
    x0 = control.steer(foundation, x_t, t, text, hint)
    posterior = foundation.codec.posterior(hint.estimate, x_t, *foundation.schedule.signal_and_noise(t, x_t))
    return control.combine(x0, posterior, t, hint)


def build(config: ProGiDiffConfig, foundation: Foundation, vocabulary: Vocabulary, *, seed: int = 0) -> ProGiDiff:
    """A system whose control is untrained; its foundation is as given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        control = Control(
            foundation.unet,
            ENCODER_WIDTHS[config.encoder],
            foundation.codec.channels,
            int(foundation.text_encoder.config.hidden_size),
        )
    return ProGiDiff(config, foundation, control, vocabulary)


def train_progidiff(
    system: ProGiDiff,
    bank: SliceBank,
    *,
    budget: Budget,
    folder: Path,
    seed: int = 0,
    on_step: OnStep = lambda stage, state, spent: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> ProGiDiff:
    """Train the control in two stages; the foundation is not touched."""
    train_stages(system.stages(bank), budget=budget, folder=folder, seed=seed, on_step=on_step, should_stop=should_stop)
    return system
