"""ProGiDiff: a frozen text-to-image diffusion model, steered from a scan to the mask of the prompted target.

After Lin et al. (2026), arXiv 2601.16060; what the paper leaves open was decided as follows. The image encoder is
first trained as a segmenter of every target at once and then conditions the control (UniSegDiff does the like); the
network predicts x0; a prompt's mask is drawn in a few trailing DDIM steps from N noise fields.

The same with the generator switched off is a system of its own ("encoder" in `SYSTEMS`, `ProGiDiffConfig.steered`
false): proposals are then the encoder's probabilities against the noise, pixel by pixel. Nothing of the foundation but
its text encoder takes part, and all the time of training is the encoder's.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from delineate.data.slices import Batch, SliceBank
from delineate.diffusion.codec import PixelUnshuffleCodec, noise_fields
from delineate.diffusion.sampling import SAMPLERS, known
from delineate.diffusion.schedule import trailing_times
from delineate.foundation.control import Control, Hint
from delineate.foundation.foundation import Foundation
from delineate.foundation.pretraining import PRETRAIN_SHARE, caption_corpus, draw_captions, pretrain, pretrain_words
from delineate.foundation.text import Encoded
from delineate.networks.encoder import ENCODER_WIDTHS, ConceptHead, Features
from delineate.prompts.captions import captions
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.storage.weights import load_weights, save_weights
from delineate.systems.diffusion.thresholds import thresholds
from delineate.systems.drawing import draw_pairs
from delineate.systems.system import Asked, Clue, Clues, Drawn, OnShare
from delineate.training.loop import Loss, Phase, Run, Step, train_phases
from delineate.training.losses import denoising_loss, lumped, segmentation_loss

ENCODER_SHARE = 0.72  # of the training budget; the rest trains the control
WORDS_SHARE = 0.05  # of the training budget of a system that is not steered: for its text encoder, a minute at most
WORDS_MINUTES = 1.0
COARSE_FROM = 256  # pixels of the working grid, from where the encoder first learns at half of it
COARSE_SHARE = 0.35  # of the time
PROMPTS_DENOISED = 4  # a slice, for the denoiser: each is a pass of its own
DECODER = r"\b(grow|up|head|trust|mix|decoders|detail)\b|\bfrom_"  # on the way from features to answers
PAIRS_AT_ONCE = 64  # (slice, proposal) pairs in one forward: bounds memory, changes nothing but rounding


@dataclass(frozen=True)
class ProGiDiffConfig:
    """What a model folder must say beside its weights.

    Attributes:
        size: pixels along a side of the working grid.
        encoder: a key of `ENCODER_WIDTHS`.
        sampler: a key of `SAMPLERS`.
        steps: of it.
        skip_below: slices where the encoder's own estimate nowhere exceeds this are not drawn.
        steered: whether the foundation's U-Net and the control take part.
        rivals: for each name, those that it competes with for a pixel: the names that its training sets could tell of
            (`rivals_in`). A name without an entry competes with all.
    """

    size: int = 128
    encoder: str = "tiny"
    sampler: str = "ddim"
    steps: int = 2  # as good as 4 on the validation patient (docs/lab), at half the price
    skip_below: float = 0.02
    steered: bool = True
    rivals: Mapping[str, Sequence[str]] = field(default_factory=dict)


class ProGiDiff:
    """A foundation, its control, and how to draw with them."""

    accepts = frozenset({Clue.MASK, Clue.POINTS, Clue.SCRIBBLES})
    open_words = False
    decoder = DECODER

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

    @property
    def draws_estimate(self) -> bool:
        """Without the generator, proposals are the encoder's estimate against noise."""
        return not self.config.steered

    @torch.no_grad()
    def see(self, view: View) -> Features:
        """Encode slices once, for any number of prompts."""
        stack = view.stack.to(self.foundation.device)
        parts = [self.control.encoder(chunk) for chunk in stack.split(16)]
        return Features(torch.cat([p.fine for p in parts]), torch.cat([p.coarse for p in parts]))

    @torch.no_grad()
    def estimate(self, seen: Features, asked: Asked, slices: Tensor | None = None) -> Tensor:
        """The encoder's own probability of the target, (S, size, size): what the denoiser starts from.

        Of M `slices`, by their indices, where they are given: (M, size, size).
        """
        seen = seen if slices is None else seen[slices.to(self.foundation.device)]
        return self._probability(seen, self.foundation.encode_text([asked.caption]), asked).cpu()

    @torch.no_grad()
    def propose(self, seen: Features, asked: Asked, n: int, seed: int, on_step: OnShare = lambda share: None) -> Drawn:
        """N probability volumes (N, S, size, size) of one target.

        Proposal k uses one noise field for all slices, made from (seed, k) alone. With a mask among the clues they are
        of the clues' slices, and the mask takes the place of the encoder's estimate; known pixels are told to the
        denoiser at every step, where the codec is one of pixels.
        """
        clues = asked.clues
        text = self.foundation.encode_text([asked.caption])
        if clues.mask is not None and clues.slices is not None:
            chosen = seen[clues.slices.to(self.foundation.device)]
            return Drawn(self._draw(chosen, text, clues.mask.to(self.foundation.device), n, seed, on_step, clues))
        probability = self._probability(seen, text, asked)
        drawn = probability.flatten(1).max(1).values >= self.config.skip_below
        if self.draws_estimate:
            return Drawn(thresholds(asked.mended(probability) * drawn[:, None, None], n, seed, on_step=on_step))
        out = torch.zeros(n, len(probability), self.size, self.size)
        if len(active := drawn.nonzero()[:, 0]):
            out[:, active.cpu()] = self._draw(seen[active], text, probability[active], n, seed, on_step)
        return Drawn(out)

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
        """(n, S, size, size) on the CPU, of slices with the `probability` (S, size, size) to start from."""
        if not self.config.steered:
            return thresholds(probability, n, seed, clues.known, on_step)
        codec, pooled = self.foundation.codec, text.pooled.expand(len(probability), -1)
        hint = self.control.hint(seen, probability[:, None], pooled, codec)
        times, device = trailing_times(self.config.steps), hint.estimate.device
        fields = noise_fields(codec, n, tuple(hint.estimate.shape[1:]), seed)

        def draw(proposals: Tensor, slices: Tensor) -> Tensor:
            denoise = self._denoiser(hint[slices], text)
            if clues.known is not None and isinstance(codec, PixelUnshuffleCodec):
                value, where = (pixels[slices] for pixels in clues.known)
                denoise = known(denoise, codec.encode(value).to(device), codec.places(where).to(device))
            noise = partial(_of_proposals, fields, proposals, device)
            x0 = SAMPLERS[self.config.sampler](denoise, noise, times, self.foundation.schedule)
            return codec.decode(x0)[:, 0]

        pairs = torch.cartesian_prod(torch.arange(len(probability)), torch.arange(n)).flip(1)
        out = torch.zeros(n, len(probability), self.size, self.size)
        draw_pairs(pairs, draw, out, PAIRS_AT_ONCE, on_step)
        return out

    def _probability(self, seen: Features, text: Encoded, asked: Asked) -> Tensor:
        """(S, size, size): the prompt's words against its rivals by their plain names, and background."""
        index, head = self.vocabulary.index(asked.name), self.control.head
        assert isinstance(head, ConceptHead)
        pooled = self.foundation.encode_text(list(self.vocabulary.names)).pooled
        likeness = F.cosine_similarity(text.pooled, pooled)
        if likeness.argmax() == index and asked.caption != asked.name:
            pooled[index] = text.pooled[0]
        # Else the words are the plain name, or unlike any caption that was learnt: then the plain name serves too.
        against = {asked.name, *self.config.rivals.get(asked.name, self.vocabulary.names)}
        rivals = [i for i, name in enumerate(self.vocabulary.names) if name in against]

        def total() -> Tensor:
            """The logarithm of what all shares are divided by, (S, size, size)."""
            return torch.cat([head.total(chunk.fine, pooled[rivals]) for chunk in seen.split(16)])

        plain = asked.caption == asked.name or likeness.argmax() != index
        key = ("total", *rivals)
        if plain and key not in seen.memo:
            seen.memo[key] = total()
        own = torch.cat([head(chunk.fine, pooled[[index]])[:, 0] for chunk in seen.split(16)])
        return (own - (seen.memo[key] if plain else total())).exp().clamp(max=1)  # rounding may exceed it

    def _denoiser(self, hint: Hint, text: Encoded) -> Callable[[Tensor, int], Tensor]:
        tokens = Encoded(text.tokens.expand(len(hint.grid), -1, -1), text.pooled)
        return lambda x, t: clean_estimate(
            self.foundation, self.control, x, torch.full((len(x),), t, device=x.device), tokens, hint
        )

    @torch.no_grad()
    def labels(self, image: Tensor, possible: Tensor) -> Tensor:
        """The encoder's own answer to slices, as `training.judging.Answer`."""
        return self._shares(image, possible).argmax(dim=1)

    @torch.no_grad()
    def coarse_labels(self, image: Tensor, possible: Tensor) -> Tensor:
        """`labels` by a look at half the resolution."""
        estimate = self._shares(F.avg_pool2d(image, 2), possible)
        return F.interpolate(estimate, scale_factor=2, mode="bilinear", align_corners=False).argmax(dim=1)

    def _shares(self, image: Tensor, possible: Tensor) -> Tensor:
        pooled = self.foundation.encode_text([captions(concept)[0] for concept in self.vocabulary.concepts]).pooled
        return self.control.estimate(self.control.encoder(image), pooled, possible)

    @property
    def about(self) -> str:
        """What the foundation says of itself."""
        return f"Foundation: {self.foundation.pretraining}."

    @property
    def learnt(self) -> Vocabulary:
        """The vocabulary."""
        return self.vocabulary

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The control, with its image encoder; of a system that is not steered, what looks and answers alone."""
        return {"control": self.control} if self.config.steered else dict(self._looks.items())

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> "ProGiDiff":
        """The same foundation under another control; names need no weights of their own, they are read."""
        if self.config.steered:
            control = parts["control"]
        else:
            control = copy(self.control)
            control._modules = {**control._modules, **parts}
        assert isinstance(control, Control)
        return ProGiDiff(self.config, self.foundation, control, vocabulary)

    def widen(self, names: Sequence[str], *, seed: int = 0) -> None:
        """Nothing: names are read."""

    def phases(self, bank: SliceBank) -> list[Phase]:
        """The image encoder learns to segment every target at once.

        Then, if the system is steered, the rest learns to denoise, the encoder frozen: trained by the denoiser from
        nothing the encoder learns poorly.
        """
        phase = Phase("encoder", self._looks, self._stream(bank, 0), encoder_loss, self, answer=self.labels)
        if not self.config.steered:
            return [phase]
        steers = nn.ModuleDict({n: m for n, m in self.control.named_children() if n not in self._looks})
        denoised = self._stream(bank, PROMPTS_DENOISED)
        return [
            replace(phase, share=ENCODER_SHARE),
            Phase("control", steers, denoised, control_loss, self, 1 - ENCODER_SHARE),
        ]

    def coarse_phase(self, bank: SliceBank) -> Phase:
        """What an encoder that knows nothing learns first on a large grid: the same at half the resolution."""
        drawn = self._stream(bank, 0)

        def draw(size: int, generator: Generator) -> Captioned:
            whole = drawn(size, generator)
            return replace(whole, batch=halved(whole.batch))

        return Phase("coarse", self._looks, draw, encoder_loss, self, answer=self.coarse_labels)

    @property
    def _looks(self) -> nn.ModuleDict:
        return nn.ModuleDict({"encoder": self.control.encoder, "head": self.control.head})

    def _stream(self, bank: SliceBank, prompts: int) -> Callable[[int, Generator], "Captioned"]:
        at_hand = bank.to(self.foundation.device)

        def draw(size: int, generator: Generator) -> Captioned:
            return Captioned(at_hand.draw(size, prompts, generator), draw_captions(bank, generator))

        return draw


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


def _of_proposals(fields: Callable[[int], Tensor], proposals: Tensor, device: torch.device, step: int) -> Tensor:
    return fields(step)[proposals].to(device)


def _looked_at(system: ProGiDiff, drawn: Captioned) -> tuple[Encoded, Features, Tensor]:
    """The captions, the features, and log-probabilities of every name."""
    batch = drawn.batch
    with torch.no_grad():
        text = system.foundation.encode_text(drawn.captions)
    features = system.control.encoder(batch.image)
    estimate = system.control.estimate(features, text.pooled, None if batch.lumped else batch.possible)
    return text, features, lumped(estimate, batch.possible) if batch.lumped else estimate


def encoder_loss(system: ProGiDiff, drawn: Captioned, step: Step) -> Loss:
    """Of the image encoder as a segmenter of every target at once."""
    _, _, log_probability = _looked_at(system, drawn)
    return segmentation_loss(log_probability, drawn.batch.labels), {}


def coarse_share(size: int) -> float:
    """How much of a training on a grid of `size` pixels goes to half the resolution, first."""
    return COARSE_SHARE if size >= COARSE_FROM else 0.0


def halved(batch: Batch) -> Batch:
    """A batch without prompts, at half its resolution: the mean of every four pixels, the label of one of them."""
    return replace(
        batch, image=F.avg_pool2d(batch.image, 2), labels=batch.labels[:, ::2, ::2], masks=batch.masks[..., ::2, ::2]
    )


def control_loss(system: ProGiDiff, drawn: Captioned, step: Step) -> Loss:
    """Of the steered foundation's clean estimate, at one time drawn for every (slice, prompt)."""
    foundation, batch = system.foundation, drawn.batch
    with torch.no_grad():
        text, features, log_probability = _looked_at(system, drawn)
    image = torch.arange(len(batch.image), device=foundation.device).repeat_interleave(batch.concepts.shape[1])
    concept, mask = batch.concepts.flatten(), batch.masks.flatten(0, 1)[:, None]
    pairs, probability = text[concept], log_probability[image, 1 + concept].exp()[:, None]
    hint = system.control.hint(features[image], probability, pairs.pooled, foundation.codec)
    x0 = foundation.codec.encode(mask)
    t = torch.randint(1000, (len(x0),), generator=step.generator).to(foundation.device)
    noise = foundation.codec.noise(x0.shape, step.generator).to(foundation.device)
    x_t = foundation.schedule.add_noise(x0, noise, t)
    x0_hat = clean_estimate(foundation, system.control, x_t, t, pairs, hint)
    return denoising_loss(x0_hat, x0, foundation.codec.decode(x0_hat), mask, concept), {}


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


def make(
    preset: str,
    size: int,
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    foundation: Path | None = None,
    modalities: tuple[str | None, ...] = (None,),
    steered: bool = True,
) -> ProGiDiff:
    """A system with an untrained control, on a foundation from a folder, or else on an untrained one."""
    if foundation is None:
        size_of = {"small": "tiny"}.get(preset, preset) if steered else "words"
        base = Foundation.make(size_of, "unshuffle", caption_corpus(vocabulary, modalities), seed=seed)
    else:
        base = Foundation.load(foundation)
    return build(ProGiDiffConfig(size=size, encoder=preset, steered=steered), base, vocabulary, seed=seed)


def train(system: ProGiDiff, bank: SliceBank, run: Run) -> ProGiDiff:
    """Train the phases. A foundation that is untrained is pre-trained first, else it is not touched.

    Of one that takes no part the text encoder alone is trained.
    """
    system.config = replace(system.config, rivals=rivals_in(bank))
    if not system.config.steered:
        minutes = run.budget.minutes
        share = WORDS_SHARE if minutes is None else min(WORDS_SHARE, WORDS_MINUTES / max(minutes, 1e-9))
        pretrain_words(system.foundation, bank, run.part(share))
        run = run.part(1 - share)
    elif system.foundation.is_untrained:
        base = pretrain(system.foundation, bank, run.part(PRETRAIN_SHARE, "pretrain"))
        run = run.part(1 - PRETRAIN_SHARE)  # a control starts as a copy of the foundation's weights
        system = build(system.config, base, system.vocabulary, seed=run.seed).to(base.device)
    if coarse := coarse_share(system.size):
        train_phases([system.coarse_phase(bank)], run.part(coarse))
        run = run.part(1 - coarse)
    train_phases(system.phases(bank), run)
    return system


def save(system: ProGiDiff, folder: Path) -> dict[str, Any]:
    """Write the weights; the configuration comes back."""
    system.foundation.save(folder / "foundation")
    save_weights(system.control, folder / "control.safetensors")
    return asdict(system.config)


def load(folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> ProGiDiff:
    """What `save` wrote."""
    system = build(ProGiDiffConfig(**config), Foundation.load(folder / "foundation"), vocabulary)
    load_weights(system.control, folder / "control.safetensors")
    return system
