"""ProGiDiff: a frozen text-to-image diffusion model, steered from a scan to the mask of the prompted target.

After Lin et al. (2026), arXiv 2601.16060; what the paper leaves open was decided as follows. The image encoder is
first trained as a segmenter of every target at once and then conditions the control (UniSegDiff does the like). Draws
of a prompt's mask are taught by a proper score against all that raters drew (`training.losses.energy_score`), not by
the mean square, which has no reason to spread; they start as those of the floor (`foundation.control`), from N noise
fields, in one step or a few. A foundation from a folder is frozen; one that is made here learns along.

The same with the generator switched off is a system of its own ("encoder" in `SYSTEMS`, `ProGiDiffConfig.steered`
false): proposals are then the encoder's probabilities against the noise, pixel by pixel. Nothing of the foundation but
its text encoder takes part, and all the time of training is the encoder's.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from delineate.data.slices import Batch, SliceBank
from delineate.diffusion.codec import STRIDE
from delineate.diffusion.schedule import trailing_times
from delineate.diffusion.seeds import seed_of
from delineate.foundation.control import Hint, MaskControl, Residuals
from delineate.foundation.foundation import UNTRAINED, Foundation
from delineate.foundation.pretraining import NO_PART, caption_corpus, draw_captions, pretrain_words
from delineate.foundation.text import Encoded
from delineate.networks.encoder import ENCODER_WIDTHS, ConceptHead, Features
from delineate.prompts.captions import captions
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.storage.weights import load_weights, save_weights
from delineate.systems.diffusion.encoding import Captioned, coarse_share, encoder_loss, halved, looked_at, rivals_in
from delineate.systems.diffusion.fields import random_fields, smooth_fields
from delineate.systems.diffusion.thresholds import thresholds
from delineate.systems.drawing import draw_pairs
from delineate.systems.system import Asked, Clue, Clues, Drawn, OnShare
from delineate.training.loop import Loss, Phase, Run, Step, train_phases
from delineate.training.losses import energy_score

ENCODER_SHARE = 0.55  # of the training budget; the rest trains the generator
WORDS_SHARE = 0.05  # of the training budget where the foundation is made here: for its text encoder, a minute at most
WORDS_MINUTES = 1.0
PROMPTS_DRAWN = 2  # a slice, for the generator: each is drawn several times
DRAWS = 4  # of every mask, for the score
MATCHED = 0.5  # weight of the score's second term
SHARP = 8.0  # log-odds of a draw are multiplied by so much: it is scored nearly as it is used, in 0 and 1
LEVEL = 0.9  # share of the generator's noise that is one value for the whole picture
DECODER = r"\b(grow|up|head|bring|told|mix|out|spread|decoders)\b"  # on the way from features to answers
PAIRS_AT_ONCE = 64  # (slice, proposal) pairs in one forward: bounds memory, changes nothing but rounding


@dataclass(frozen=True)
class ProGiDiffConfig:
    """What a model folder must say beside its weights.

    Attributes:
        size: pixels along a side of the working grid.
        encoder: a key of `ENCODER_WIDTHS`.
        steps: in which a mask is drawn; of more than one, the later ones denoise what was drawn.
        skip_below: slices where the encoder's own estimate nowhere exceeds this are not drawn.
        steered: whether the foundation's U-Net and the control take part.
        rivals: for each name, those that it competes with for a pixel: the names that its training sets could tell of
            (`rivals_in`). A name without an entry competes with all.
    """

    size: int = 128
    encoder: str = "tiny"
    steps: int = 1
    skip_below: float = 0.02
    steered: bool = True
    rivals: Mapping[str, Sequence[str]] = field(default_factory=dict)


class ProGiDiff:
    """A foundation, its control, and how to draw with them."""

    accepts = frozenset({Clue.MASK, Clue.POINTS, Clue.SCRIBBLES})
    open_words = False
    decoder = DECODER

    def __init__(self, config: ProGiDiffConfig, foundation: Foundation, control: MaskControl, vocabulary: Vocabulary):
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
        levels = [part.levels if self.config.steered else part.levels[:1] for part in parts]
        return Features(tuple(torch.cat(level) for level in zip(*levels, strict=True)))

    @torch.no_grad()
    def estimate(self, seen: Features, asked: Asked, slices: Tensor | None = None) -> Tensor:
        """The encoder's own probability of the target, (S, size, size): what draws start from.

        Of M `slices`, by their indices, where they are given: (M, size, size).
        """
        seen = seen if slices is None else seen[slices.to(self.foundation.device)]
        return self._probability(seen, self.foundation.encode_text([asked.caption]), asked).cpu()

    @torch.no_grad()
    def propose(self, seen: Features, asked: Asked, n: int, seed: int, on_step: OnShare = lambda share: None) -> Drawn:
        """N probability volumes (N, S, size, size) of one target.

        Proposal k uses one noise field for all slices, made from (seed, k) alone. With a mask among the clues they are
        of the clues' slices, and the mask takes the place of the encoder's estimate.
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
            drawn = torch.zeros_like(own_hint.odds)
            for step, (t, residuals) in enumerate(zip(times, steering, strict=True)):
                noise = fields[step][proposals][:, None].to(device)
                own = [seed_of(seed, k, step) for k in proposals.tolist()]
                x_t, pixels = self._noisy(drawn, noise, t, own)
                logit = self.control.draw(self.foundation, x_t, pixels, t, tokens, residuals[slices], own_hint)
                drawn = (SHARP * logit).sigmoid()
            return drawn[:, 0]

        pairs = torch.cartesian_prod(torch.arange(len(probability)), torch.arange(n)).flip(1)
        out = torch.zeros(n, len(probability), self.size, self.size)
        draw_pairs(pairs, draw, out, PAIRS_AT_ONCE, on_step)
        return out if known is None else torch.where(known[1].cpu() > 0, known[0].cpu(), out)

    def _steering(self, hint: Hint, text: Encoded, t: int) -> Residuals:
        """What the control adds to the U-Net at time t, of every (slice, prompt) pair."""
        channels, parts = self.foundation.codec.channels, torch.arange(len(hint.grid)).split(PAIRS_AT_ONCE)
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
        """The control, with its image encoder; of a system that is not steered, what looks and answers alone.

        Of a foundation that nothing has taught yet the U-Net too.
        """
        if not self.config.steered:
            return dict(self._looks.items())
        own: dict[str, nn.Module] = {"control": self.control}
        return own | ({"unet": self.foundation.unet} if self.foundation.is_untrained else {})

    @property
    def _generator(self) -> nn.ModuleDict:
        """What learns to draw, once the encoder is frozen: with a foundation that is new, its U-Net too."""
        learns = {n: m for n, m in self.control.named_children() if n not in self._looks}
        return nn.ModuleDict(learns | ({"unet": self.foundation.unet} if self.foundation.is_untrained else {}))

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> "ProGiDiff":
        """The same foundation under another control; names need no weights of their own, they are read."""
        foundation = self.foundation
        if self.config.steered:
            control = parts["control"]
            if "unet" in parts:
                foundation = replace(foundation, unet=parts["unet"])
        else:
            control = copy(self.control)
            control._modules = {**control._modules, **parts}
        assert isinstance(control, MaskControl)
        return ProGiDiff(self.config, foundation, control, vocabulary)

    def widen(self, names: Sequence[str], *, seed: int = 0) -> None:
        """Nothing: names are read."""

    def phases(self, bank: SliceBank) -> list[Phase]:
        """The image encoder learns to segment every target at once.

        Then, if the system is steered, the rest learns to draw, the encoder frozen: by the score of draws alone from
        nothing the encoder learns poorly.
        """
        phase = Phase("encoder", self._looks, self._stream(bank, 0), encoder_loss, self, answer=self.labels)
        if not self.config.steered:
            return [phase]
        drawn = self._stream(bank, PROMPTS_DRAWN)
        return [
            replace(phase, share=ENCODER_SHARE),
            Phase("generator", self._generator, drawn, generator_loss, self, 1 - ENCODER_SHARE),
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


def generator_loss(system: ProGiDiff, drawn: Captioned, step: Step) -> Loss:
    """The score of several draws of every (slice, prompt) pair, at one of the times drawn evenly."""
    batch, control, device = drawn.batch, system.control, system.foundation.device
    with torch.no_grad():
        text, features, log_probability = looked_at(system, drawn)
    image = torch.arange(len(batch.image), device=device).repeat_interleave(batch.concepts.shape[1])
    concept = batch.concepts.flatten()
    raters, present = readings_of(batch, image, concept)
    probability = log_probability[image, 1 + concept].exp()[:, None]
    hint = control.hint(features[image], probability, text.pooled[concept])
    times = trailing_times(system.config.steps)
    t = times[int(torch.randint(len(times), (), generator=step.generator))]
    steering = control.residuals(t, text[concept], hint, system.foundation.codec.channels)
    pair = torch.arange(len(image), device=device).repeat_interleave(DRAWS)
    field = random_fields(system.size, len(pair), LEVEL, step.generator)[:, None].to(device)
    noisy = _one_of(raters, present, DRAWS, step.generator)
    seeds = torch.randint(2**62, (len(pair),), generator=step.generator).tolist()
    x_t, pixels = system._noisy(noisy, field, t, seeds)
    logit = control.draw(system.foundation, x_t, pixels, t, text[concept[pair]], steering[pair], hint[pair])
    masks = (SHARP * logit.float()).sigmoid().view(len(image), DRAWS, *logit.shape[2:])
    return energy_score(masks, raters, present, MATCHED).mean(), {}


def readings_of(batch: Batch, image: Tensor, concept: Tensor) -> tuple[Tensor, Tensor]:
    """What raters drew of the concepts (B,) in the images (B,), (B, M, S, S) in {0, 1}, and who there is (B, M).

    The batch's own mask where it has no readings.
    """
    if batch.readings is None:
        mask = batch.masks.flatten(0, 1)[:, None]
        return mask, mask.new_ones(len(mask), 1, dtype=torch.bool)
    readings = batch.readings[image]
    return (readings == 1 + concept[:, None, None, None]).float(), readings[:, :, 0, 0] >= 0


def _one_of(raters: Tensor, present: Tensor, draws: int, generator: Generator) -> Tensor:
    """Masks (B·draws, 1, S, S), each one of the readings of its image, drawn evenly."""
    chosen = torch.multinomial(present.float().cpu(), draws, replacement=True, generator=generator)
    pair = torch.arange(len(raters)).repeat_interleave(draws)
    return raters[pair.to(raters.device), chosen.flatten().to(raters.device)][:, None]


def build(config: ProGiDiffConfig, foundation: Foundation, vocabulary: Vocabulary, *, seed: int = 0) -> ProGiDiff:
    """A system whose control is untrained; its foundation is as given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        control = MaskControl(
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
    """Train the phases. Of a foundation that is made here the text encoder is trained first, by captions.

    Its U-Net learns along with the control, where it takes part; one from a folder is not touched.
    """
    system.config = replace(system.config, rivals=rivals_in(bank))
    made_here = system.foundation.is_untrained
    if made_here:
        minutes = run.budget.minutes
        share = WORDS_SHARE if minutes is None else min(WORDS_SHARE, WORDS_MINUTES / max(minutes, 1e-9))
        pretrain_words(system.foundation, bank, run.part(share))
        run = run.part(1 - share)
    if coarse := coarse_share(system.size):
        train_phases([system.coarse_phase(bank)], run.part(coarse))
        run = run.part(1 - coarse)
    if made_here and system.config.steered:
        told, system.foundation.pretraining = system.foundation.pretraining, UNTRAINED  # its U-Net has yet to learn
        train_phases(system.phases(bank), run)
        system.foundation.pretraining = told.replace(NO_PART, "the U-Net learnt with its control")
        system.foundation.frozen()
    else:
        train_phases(system.phases(bank), run)
    return system


def save(system: ProGiDiff, folder: Path) -> dict[str, Any]:
    """Write the weights; the configuration comes back."""
    system.foundation.save(folder / "foundation")
    save_weights(_weights(system), folder / "control.safetensors")
    return asdict(system.config)


def load(folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> ProGiDiff:
    """What `save` wrote."""
    system = build(ProGiDiffConfig(**config), Foundation.load(folder / "foundation"), vocabulary)
    load_weights(_weights(system), folder / "control.safetensors")
    return system


def _weights(system: ProGiDiff) -> nn.Module:
    """What is kept of the control: all, or what a system without its generator uses."""
    return system.control if system.config.steered else system._looks
