"""The prompted encoder: an image encoder that looks at a slice once, and a head that words steer.

Of ProGiDiff (`progidiff`) it is the "custom encoder", trained as a segmenter of every target at once. By itself it is
the system "encoder": its calibrated estimate against noise (`thresholds`), the floor that every generator has to beat.
Of a foundation it uses the text encoder alone. Other systems add a generator to it: `spread`, `progidiff`.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from delineate.data.slices import SliceBank
from delineate.foundation.foundation import Foundation
from delineate.foundation.pretraining import caption_corpus, draw_captions, pretrain_words
from delineate.foundation.text import Encoded
from delineate.networks.encoder import ENCODER_WIDTHS, Features, PromptedEncoder, gist_of
from delineate.networks.precision import halves
from delineate.prompts.captions import captions
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.storage.memory import at_once, need
from delineate.storage.schema import Name, Share, Side, SliceChannels
from delineate.storage.weights import load_weights, save_weights
from delineate.systems.diffusion.encoding import Captioned, coarse_share, encoder_loss, halved, rivals_in
from delineate.systems.diffusion.thresholds import thresholds
from delineate.systems.parts import configured
from delineate.systems.system import Asked, Clue, Clues, Drawn, OnShare
from delineate.training.loop import Phase, Run, train_phases

WORDS_SHARE = 0.05  # of the training budget where the foundation is made here: for its text encoder, a minute at most
WORDS_MINUTES = 1.0
WEIGHTS = "control.safetensors"
SLICES_AT_ONCE = 64  # drawn together, where draws are not the estimate's: bounds memory


@dataclass(frozen=True)
class PromptedConfig:
    """What a model folder must say beside its weights.

    Attributes:
        size: pixels along a side of the working grid.
        encoder: a key of `ENCODER_WIDTHS`.
        skip_below: slices where the encoder's own estimate nowhere exceeds this are not drawn.
        rivals: for each name, those that it competes with for a pixel: the names that its training sets could tell of
            (`rivals_in`). A name without an entry competes with all.
        channels: of the slices that it sees (`delineate.scans.grid.stack_of`).
    """

    size: Side = 128
    encoder: str = "tiny"
    skip_below: Share = 0.1
    rivals: Mapping[Name, Sequence[Name]] = field(default_factory=dict)
    channels: SliceChannels = 3

    def __post_init__(self):
        if self.encoder not in ENCODER_WIDTHS:
            raise ValueError(f"encoder is one of {', '.join(ENCODER_WIDTHS)}; got '{self.encoder}'")
        if self.size % (multiple := 2 ** len(ENCODER_WIDTHS[self.encoder])):
            raise ValueError(f"size must be a multiple of {multiple}; got {self.size}")


class Prompted:
    """A text encoder, an image encoder with its head, and how to answer with them."""

    accepts = frozenset({Clue.MASK, Clue.POINTS, Clue.SCRIBBLES})
    open_words = False
    decoder = r"\b(grow|up|head|bring|told|mix|out|spread|decoders)\b"  # on the way from features to answers
    draws_estimate = True
    unites = True  # answers a region as a whole
    levels_kept = 1  # of the features, finest first: what is needed once a slice was looked at
    configured: type[PromptedConfig] = PromptedConfig

    def __init__(self, config: Any, foundation: Foundation, control: PromptedEncoder, vocabulary: Vocabulary):
        """`control` is the image encoder, its head, and what else a subclass needs."""
        self.config = config
        self.foundation = foundation
        self.control: Any = control.eval()
        self.vocabulary = vocabulary

    @classmethod
    def control_for(cls, widths: tuple[int, ...], foundation: Foundation, channels: int) -> PromptedEncoder:
        """Networks that have learnt nothing, for an encoder of `widths` that sees slices of so many channels."""
        return PromptedEncoder(widths, int(foundation.text_encoder.config.hidden_size), channels)

    @classmethod
    def made_for(cls, preset: str) -> str:
        """How large a foundation is made where none is given: one that reads words is enough here."""
        return "words"

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        return self.config.size

    def to(self, device: torch.device | str) -> Self:
        """Itself, moved."""
        self.foundation.to(device)
        self.control.to(device)
        return self

    @torch.no_grad()
    def see(self, view: View) -> Features:
        """Encode slices once, for any number of prompts; in half precision where the machine is made for it."""
        stack = view.stack.to(self.foundation.device)
        levels, gists, done = [], [], 0
        with halves(stack.device):
            for chunk in stack.split(at_once(16)):
                every = self.control.encoder(chunk).levels
                gists.append(gist_of(every))
                some = every[: self.levels_kept]
                if not levels:  # once for all slices: parts that are joined in the end would be there twice
                    need(len(stack) * sum(4 * level[0].numel() for level in some), "what is seen of the scan")
                    levels = [_room_for(len(stack), level) for level in some]
                for level, part in zip(levels, some, strict=True):
                    level[done : done + len(part)] = part
                done += len(chunk)
        return Features(tuple(levels), torch.cat(gists).cpu())

    @torch.no_grad()
    def estimate(self, seen: Features, asked: Asked, slices: Tensor | None = None) -> Tensor:
        """The encoder's own probability of the target, (S, size, size): what draws start from.

        Of M `slices`, by their indices, where they are given: (M, size, size).
        """
        seen = seen if slices is None else seen[slices.to(self.foundation.device)]
        return self._probability(seen, asked).cpu()

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
        probability = self._probability(seen, asked)
        drawn = probability.flatten(1).max(1).values >= self.config.skip_below
        if self.draws_estimate:
            probability = asked.mended(probability) * drawn[:, None, None]
            return Drawn(self._draw(seen, text, probability, n, seed, on_step))
        out = torch.from_numpy(np.zeros((n, len(probability), self.size, self.size), np.float32))
        active, done = drawn.nonzero()[:, 0], 0
        for some in active.split(at_once(SLICES_AT_ONCE)) if len(active) else ():

            def report(share: float, done: int = done, count: int = len(some)) -> None:
                on_step((done + share * count) / len(active))

            out[:, some.cpu()] = self._draw(seen[some], text, probability[some], n, seed, report)
            done += len(some)
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
        return thresholds(probability, n, seed, clues.known, on_step)

    def _probability(self, seen: Features, asked: Asked) -> Tensor:
        """(S, size, size): the name, or the parts of a region, against their rivals and background."""
        head, names = self.control.head, self.vocabulary.names
        pooled = self.foundation.encode_text(list(names)).pooled
        against = {name for part in asked.parts for name in (part, *self.config.rivals.get(part, names))}
        rivals = [i for i, name in enumerate(names) if name in against]
        key = ("total", *rivals)
        if key not in seen.memo:  # the logarithm of what all shares are divided by, (S, size, size)
            seen.memo[key] = torch.cat([head.total(chunk.fine, pooled[rivals]) for chunk in seen.split(at_once(16))])
        own = pooled[[names.index(part) for part in asked.parts]]
        logits = torch.cat([head(chunk.fine, own) for chunk in seen.split(at_once(16))])
        logit = logits[:, 0] if len(own) == 1 else logits.logsumexp(dim=1)
        return (logit - seen.memo[key]).exp().clamp(max=1)  # rounding may exceed it

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
        """The encoder, the head, and what else a subclass has."""
        return dict(self.control.named_children())

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> Self:
        """The same foundation under other networks; names need no weights of their own, they are read."""
        control = copy(self.control)
        control._modules = {**control._modules, **parts}
        return type(self)(self.config, self.foundation, control, vocabulary)

    def widen(self, names: Sequence[str], *, seed: int = 0) -> None:
        """Nothing: names are read."""

    def phases(self, bank: SliceBank) -> list[Phase]:
        """The image encoder learns to segment every target at once."""
        return [Phase("encoder", self._looks, self._stream(bank, 0), encoder_loss, self, answer=self.labels)]

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


def _room_for(slices: int, like: Tensor) -> Tensor:
    """Float32, for so many slices instead of those of `like`, in memory as they lie there."""
    last = like.is_contiguous(memory_format=torch.channels_last)
    form = torch.channels_last if last else torch.contiguous_format
    return torch.empty((slices, *like.shape[1:]), device=like.device, memory_format=form)


def train(system: Prompted, bank: SliceBank, run: Run) -> Prompted:
    """Train the phases. Of a foundation that is made here the text encoder is trained first, by captions."""
    system.config = replace(system.config, rivals=rivals_in(bank))
    if system.foundation.is_untrained:
        minutes = run.budget.minutes
        share = WORDS_SHARE if minutes is None else min(WORDS_SHARE, WORDS_MINUTES / max(minutes, 1e-9))
        pretrain_words(system.foundation, bank, run.part(share))
        run = run.part(1 - share)
    if coarse := coarse_share(system.size):
        train_phases([system.coarse_phase(bank)], run.part(coarse))
        run = run.part(1 - coarse)
    train_phases(system.phases(bank), run)
    return system


def build(
    config: PromptedConfig,
    foundation: Foundation,
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    kind: type[Prompted] = Prompted,
) -> Any:
    """A system of a kind that has learnt nothing; its foundation is as given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        control = kind.control_for(ENCODER_WIDTHS[config.encoder], foundation, config.channels)
    return kind(config, foundation, control, vocabulary)


def make(
    preset: str,
    size: int,
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    foundation: Path | None = None,
    modalities: tuple[str | None, ...] = (None,),
    channels: int = 3,
    kind: type[Prompted] = Prompted,
) -> Any:
    """A system of a kind that has learnt nothing, on a foundation from a folder or else on an untrained one."""
    if foundation is None:
        base = Foundation.make(kind.made_for(preset), "unshuffle", caption_corpus(vocabulary, modalities), seed=seed)
    else:
        base = Foundation.load(foundation)
    return build(kind.configured(size=size, encoder=preset, channels=channels), base, vocabulary, seed=seed, kind=kind)


def save(system: Prompted, folder: Path) -> dict[str, Any]:
    """Write the weights; the configuration comes back."""
    system.foundation.save(folder / "foundation")
    save_weights(system.control, folder / WEIGHTS)
    return asdict(system.config)


def load(folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary, *, kind: type[Prompted] = Prompted) -> Any:
    """What `save` wrote of a system of a kind."""
    known = configured(config, kind.configured, folder)
    system = build(known, Foundation.load(folder / "foundation"), vocabulary, kind=kind)
    load_weights(system.control, folder / WEIGHTS)
    return system
