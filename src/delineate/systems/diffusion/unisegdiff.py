"""UniSegDiff: one staged diffusion model for lesions of every modality.

After Hu et al. (2025), arXiv 2507.18362, whose text leaves widths, noise schedule and the place of cross-attention
open; what was decided is in `UniSegDiffConfig`. As published the denoiser is binary: it draws whatever the sets call a
target. A prompt is answered by the condition network, which tells the targets apart pixel by pixel:

    P(pixel is polyp) = P(pixel is any target) P(polyp | any target)

The first factor is drawn N times, the second is certain; the word "lesion" asks for all findings together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delineate.data.slices import SliceBank
from delineate.diffusion.codec import PixelUnshuffleCodec, noise_fields
from delineate.diffusion.sampling import known, sample_ddim
from delineate.diffusion.schedule import schedule_from_config
from delineate.diffusion.stages import Branch, Stages, Strategy
from delineate.errors import ModelError
from delineate.networks.spread import cooled, log_odds
from delineate.prompts import anatomy
from delineate.prompts.concept import Concept
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.storage.memory import at_once
from delineate.storage.schema import Name, Share, Side, SliceChannels
from delineate.systems.diffusion.condition import ConditionNetwork
from delineate.systems.diffusion.denoiser import TwinDenoiser
from delineate.systems.diffusion.staged import clean_from, condition_loss, denoiser_loss
from delineate.systems.drawing import draw_pairs
from delineate.systems.parts import FIX, configured, filled, train
from delineate.systems.parts import save as save_parts
from delineate.systems.system import Asked, Clue, Clues, Drawn, OnShare
from delineate.training.loop import Hyperparameters, Phase

__all__ = ["UniSegDiff", "UniSegDiffConfig", "build", "load", "make", "save", "train"]

CONDITION_SHARE = 0.7  # of the training budget; the rest trains the denoiser
PAIRS_AT_ONCE = 64  # (slice, proposal) pairs in one forward: bounds memory, changes nothing but rounding
GENERIC = "lesion"  # every finding of the vocabulary together

SCHEDULES = {
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
}
Targets = list[Name]  # what a model folder says of the names it was trained on
NOISES = ("smooth", "pyramid", "white")


@dataclass(frozen=True)
class Size:
    """Widths of a preset, finest level first.

    `fold` is how many pixels a side the finest level takes together; cross-attention serves levels of up to `tokens`
    tokens at the working grid of the preset.
    """

    condition: tuple[int, ...]
    denoiser: tuple[int, ...]
    fold: int
    tokens: int
    hyper: Hyperparameters = field(default_factory=Hyperparameters)


SIZES = {
    "tiny": Size((32, 64, 96, 128, 192), (16, 32, 64, 96, 128), fold=2, tokens=16 * 16),
    "small": Size((32, 64, 128, 256, 512), (32, 64, 128, 256, 256), fold=2, tokens=32 * 32),
    "paper": Size(
        (64, 128, 256, 512, 1024),
        (64, 128, 256, 512, 1024),
        fold=1,
        tokens=64 * 64,
        hyper=Hyperparameters(batch_size=64, learning_rate=1e-4),  # AdamW, Sec. 3.1
    ),
}


@dataclass(frozen=True)
class UniSegDiffConfig:
    """What a model folder must say beside its weights.

    Attributes:
        size: pixels along a side of the working grid.
        preset: a key of `SIZES`.
        stages: boundaries, weights and order of the decoders, or a plain strategy instead of stages. By default three
            evaluations a chain (999, 599, 299); interval 30 is the published path (docs/lab compares them).
        schedule: cosine, or linear, in which x0 from ε at 599 is six times less certain.
        noise: white as published; "pyramid" of squares of several sizes, as ProGiDiff has it; or "smooth" bells of a
            32nd, a 16th and an 8th of the grid, with which proposals differ by shape and have smooth outlines.
        level: the share of the noise's variance that is one value for the whole picture (`codec`).
        cross_attention: at coarse levels; without it all levels are fused by convolution.
        pretrained: whether the condition network is trained first and frozen.
        score: what the decoders are taught by: "energy", several draws of every slice against all that raters drew
            (`scoring`), or "paper", the errors of mask and noise.
        start: what an untrained decoder answers. From the condition network's probability of a pixel, cooled, and its
            noisy value Bayes' rule gives log-odds of the clean pixel (`networks.spread.Start.heard`); with "posterior"
            the decoders add to those and to the noise that follows, and so learn what a pixel alone cannot tell.
            "nothing" is the letter of the paper; it takes far longer to come up to the condition network itself.
        chains: where proposals part. "own" gives each a chain of its own; "rapid" lets them share the one step of the
            rapid stage, whose input is noise alone, and gives each fresh noise after it; "shared" is the letter of the
            paper: one chain a decoder down to `stages.low` and fresh noise there, after which they hardly differ.
        skip_below: slices where the condition network's own probability nowhere reaches this are not drawn.
        channels: of the slices that it sees (`delineate.scans.grid.stack_of`).
    """

    size: Side = 128
    preset: str = "tiny"
    stages: Stages = field(default_factory=lambda: Stages(interval=300))
    schedule: str = "cosine"
    noise: str = "smooth"
    level: Share = 0.9
    cross_attention: bool = True
    pretrained: bool = True
    score: str = "energy"
    start: str = "posterior"
    chains: str = "own"
    skip_below: Share = 0.02
    channels: SliceChannels = 3

    def __post_init__(self):
        allowed = {"preset": SIZES, "schedule": SCHEDULES, "noise": NOISES, "chains": ("own", "rapid", "shared")}
        allowed |= {"start": ("posterior", "nothing"), "score": ("energy", "paper")}
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(choices)}; got '{getattr(self, name)}'")
        multiple = SIZES[self.preset].fold * 2 ** (len(SIZES[self.preset].condition) - 1)
        if self.size % multiple or self.size < 32:
            raise ValueError(f"size must be a multiple of {multiple}, 32 or more; got {self.size}")
        if self.chains != "own" and self.stages.strategy is not Strategy.STAGED:
            raise ValueError(f"chains that part between stages need stages; {self.stages.strategy} has none")
        if self.chains == "shared" and self.stages.low < 0:
            raise ValueError("shared chains part at the third stage; these stages have none")
        if self.start == "posterior" and not self.pretrained:
            raise ValueError("a condition network that is not pre-trained has no probabilities to start from")


@dataclass(frozen=True, eq=False)
class Conditions:
    """What the condition network saw of slices.

    `levels` finest first, (S, width, h, w) each; `probability` (S, 1 + concepts, size, size), background first.
    """

    levels: list[Tensor]
    probability: Tensor

    def __getitem__(self, index: Tensor) -> "Conditions":
        return Conditions([level[index] for level in self.levels], self.probability[index])

    def __len__(self) -> int:
        return len(self.probability)


class UniSegDiff:
    """A condition network, a denoiser with two decoders, and how to draw with them."""

    accepts = frozenset({Clue.MASK, Clue.POINTS, Clue.SCRIBBLES})
    open_words = False
    draws_estimate = False
    about = ""
    decoder = r"\b(grow|up|head|trust|mix|decoders|detail)\b|\bfrom_"

    def __init__(
        self, config: UniSegDiffConfig, vocabulary: Vocabulary, condition: ConditionNetwork, denoiser: TwinDenoiser
    ):
        """`vocabulary` is that of the training sets; the system adds "lesion" where it knows findings."""
        self.config = config
        self.learnt = vocabulary
        self.vocabulary = with_generic(vocabulary)
        self.condition = condition.eval()
        self.denoiser = denoiser.eval()
        bells = tuple(config.size // part for part in (32, 16, 8))
        grains = {"smooth": bells, "pyramid": (1, 2, 4, 8, 16), "white": (1,)}[config.noise]
        self.codec = PixelUnshuffleCodec(
            stride=SIZES[config.preset].fold, grains=grains, smooth=config.noise == "smooth", level=config.level
        )
        self.schedule = schedule_from_config({**SCHEDULES[config.schedule], "prediction_type": "sample"})

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        return self.config.size

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.denoiser.parameters()).device

    def to(self, device: torch.device | str) -> "UniSegDiff":
        """Itself, moved."""
        self.condition.to(device)
        self.denoiser.to(device)
        return self

    @torch.no_grad()
    def see(self, view: View) -> Conditions:
        """Condition features of slices, made once for any number of prompts and proposals."""
        parts = [self.condition(chunk.to(self.device)) for chunk in view.stack.split(at_once(16))]
        levels = [torch.cat(level) for level in zip(*parts, strict=True)]
        probability = [self.condition.log_probability(chunk).exp() for chunk in levels[0].split(at_once(16))]
        return Conditions(levels, torch.cat(probability))

    @torch.no_grad()
    def estimate(self, seen: Conditions, asked: Asked, slices: Tensor | None = None) -> Tensor:
        """The condition network's own probability of the target, (S, size, size); of M `slices` (M, size, size)."""
        probability = seen.probability if slices is None else seen.probability[slices.to(self.device)]
        return probability[:, self._channels(asked.name)].sum(1).cpu()

    @torch.no_grad()
    def propose(
        self, seen: Conditions, asked: Asked, n: int, seed: int, on_step: OnShare = lambda share: None
    ) -> Drawn:
        """N probability volumes (N, S, size, size) of one target; proposal k uses one noise field for all slices.

        With a mask among the clues they are of the clues' slices, and the target is all that there may be.
        """
        clues = asked.clues
        if clues.mask is not None and clues.slices is not None:
            chosen, own = seen[clues.slices.to(self.device)], clues.mask.to(self.device)
            other = torch.zeros_like(chosen.probability)
            other[:, 0], other[:, 1] = 1 - own, own
            return Drawn(self._draw(Conditions(chosen.levels, other), n, seed, on_step, clues).cpu())
        own = seen.probability[:, self._channels(asked.name)].sum(1)
        share = (own / (1 - seen.probability[:, 0]).clamp(min=1e-6)).clamp(max=1)
        out = torch.zeros(n, len(own), self.size, self.size)
        active = (own.flatten(1).max(1).values >= self.config.skip_below).nonzero()[:, 0]
        if len(active):
            drawn = self._draw(seen[active], n, seed, on_step)
            out[:, active.cpu()] = (drawn * share[active]).cpu()
        return Drawn(out)

    @torch.no_grad()
    def _labels(self, image: Tensor, possible: Tensor) -> Tensor:
        """The condition network's own answer to slices, as `training.judging.Answer`."""
        return self.condition.log_probability(self.condition(image)[0], possible).argmax(dim=1)

    def _channels(self, name: str) -> list[int]:
        """Where the condition network answers for a concept."""
        names = self.learnt.names
        if name in names:
            return [1 + names.index(name)]
        return [1 + i for i, other in enumerate(names) if other in anatomy.FINDINGS]

    def _draw(self, seen: Conditions, n: int, seed: int, on_step: OnShare, clues: Clues = Clues()) -> Tensor:
        """Probability of any target, (n, S, size, size). Even proposals take the mask's chain, odd ones the noise's."""
        edge, times = self.size // self.codec.stride, self.config.stages.times()
        parts_at = {"own": 0, "rapid": 1, "shared": len(times) - 1}[self.config.chains]
        fields = noise_fields(self.codec, n, (self.codec.channels, edge, edge), seed, antithetic=True)
        everyone = torch.arange(len(seen), device=self.device)

        def told(which: Tensor) -> tuple[Tensor, Tensor] | None:
            if clues.known is None:
                return None
            value, where = (pixels[which.cpu()] for pixels in clues.known)
            return self.codec.encode(value).to(self.device), self.codec.places(where).to(self.device)

        out = torch.zeros(n, len(seen), self.size, self.size, device=self.device)
        done, trunk = 0, torch.zeros(0)
        for first, chain in enumerate(tuple(Branch)[:n]):
            if parts_at > first:  # the rapid stage has one decoder and is walked once
                start = fields(0)[:1].expand(len(seen), -1, -1, -1)
                trunk = torch.cat(
                    [
                        self._sample(seen[some], chain, times[:parts_at], start[some.cpu()], told(some))
                        for some in everyone.split(at_once(PAIRS_AT_ONCE))
                    ]
                )
            draw = partial(self._continued, seen, chain, times, parts_at, fields, trunk, told)
            pairs = torch.cartesian_prod(torch.arange(first, n, 2), everyone.cpu())
            done = draw_pairs(pairs, draw, out, at_once(PAIRS_AT_ONCE), on_step, done)
        return out

    def _continued(
        self,
        seen: Conditions,
        chain: Branch,
        times: list[int],
        parts_at: int,
        fields: Callable[[int], Tensor],
        trunk: Tensor,
        told: Callable[[Tensor], tuple[Tensor, Tensor] | None],
        proposals: Tensor,
        slices: Tensor,
    ) -> Tensor:
        """Probabilities (B, size, size) of pairs by one chain: from where it parts, or from noise."""
        which = slices.to(self.device)
        x_t = fields(0)[proposals]
        if parts_at:
            when = torch.full((len(proposals),), times[parts_at])
            x_t = self.schedule.add_noise(trunk[which], fields(1)[proposals].to(self.device), when)
        x0 = self._sample(seen[which], chain, times[parts_at:], x_t, told(which))
        return self.codec.decode(x0)[:, 0]

    def _sample(
        self, seen: Conditions, chain: Branch, times: list[int], x_t: Tensor, told: tuple[Tensor, Tensor] | None = None
    ) -> Tensor:
        """x0 of one chain by DDIM over `times`, from `x_t` at the first of them; `told` is what is known, and where."""
        denoise = partial(self._clean, seen, chain)
        if told is not None:
            denoise = known(denoise, *told)
        return sample_ddim(denoise, lambda step: x_t.to(self.device), times, self.schedule)

    def _clean(self, seen: Conditions, chain: Branch, x_t: Tensor, t: int) -> Tensor:
        """x0 at (x_t, t) by the decoder whose turn it is."""
        branch = self.config.stages.branch_at(t, chain)
        when = torch.full((len(x_t),), t)
        return clean_from(self.answers(seen, x_t, when, (branch,))[branch], branch, x_t, when, self.schedule)

    def conditions(self, levels: list[Tensor]) -> Conditions:
        """What features and the head make of slices."""
        return Conditions(levels, self.condition.log_probability(levels[0]).exp())

    def answers(self, seen: Conditions, x_t: Tensor, t: Tensor, branches: tuple[Branch, ...]) -> dict[Branch, Tensor]:
        """Logits of the mask and ε, as far as asked for, of x_t noised at times `t` (B,), on the CPU."""
        told = self.config.stages.told(t).to(self.device)
        answers = self.denoiser(x_t, told, seen.levels, branches)
        if self.config.start == "nothing":
            return answers
        signal, noise = self.schedule.signal_and_noise(t, x_t)
        odds = F.pixel_unshuffle(log_odds(1 - seen.probability[:, :1]), self.codec.stride)
        mask = cooled(odds).heard(x_t, signal, noise)
        begun = {Branch.MASK: mask, Branch.NOISE: (x_t - signal * torch.tanh(mask / 2)) / noise.clamp(min=1e-3)}
        return {branch: begun[branch] + answer for branch, answer in answers.items()}

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The condition network and the denoiser."""
        return {"condition": self.condition, "denoiser": self.denoiser}

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> "UniSegDiff":
        """The same with other networks, whose condition network has a channel for each name but "lesion"."""
        condition, denoiser = parts["condition"], parts["denoiser"]
        assert isinstance(condition, ConditionNetwork)
        assert isinstance(denoiser, TwinDenoiser)
        learnt = tuple(c for c in vocabulary.concepts if c.name != GENERIC or GENERIC in self.learnt.names)
        return UniSegDiff(self.config, Vocabulary(learnt), condition, denoiser)

    def widen(self, names: Sequence[str], *, seed: int = 0) -> tuple[str, nn.Module]:
        """The path, within `parts`, of the block that answers, and an untrained one like it for more names."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return "condition.head", nn.Conv2d(self.condition.encoder.widths[0], self.codec.stride**2 * len(names), 1)

    def phases(self, bank: SliceBank) -> list[Phase]:
        """Two. The condition network learns to segment and is frozen; then the denoiser learns on its features.

        Without pre-training (an ablation) both are trained by the denoiser's loss alone.
        """
        hyper, stream = SIZES[self.config.preset].hyper, bank.stream(0, self.device)
        if not self.config.pretrained:
            return [Phase("denoiser", nn.ModuleDict(self.parts), stream, denoiser_loss, self, hyper=hyper)]
        return [
            Phase("condition", self.condition, stream, condition_loss, self, CONDITION_SHARE, hyper, self._labels),
            Phase("denoiser", self.denoiser, stream, denoiser_loss, self, 1 - CONDITION_SHARE, hyper),
        ]


def with_generic(vocabulary: Vocabulary) -> Vocabulary:
    """The vocabulary with "lesion" at its end, where it has findings and no such name yet."""
    found = [c for c in vocabulary.concepts if c.name in anatomy.FINDINGS]
    if not found or GENERIC in vocabulary.names:
        return vocabulary
    modalities = tuple(dict.fromkeys(m for c in found for m in c.modalities))
    return Vocabulary((*vocabulary.concepts, Concept(GENERIC, (), modalities)))


def build(config: UniSegDiffConfig, vocabulary: Vocabulary, *, seed: int = 0) -> UniSegDiff:
    """An untrained system for the targets of the training sets."""
    size = SIZES[config.preset]
    edges = [config.size // size.fold // 2**level for level in range(len(size.denoiser))]
    if edges[-1] < 1 or config.size % (size.fold * 2 ** (len(edges) - 1)):
        raise ValueError(f"size {config.size} must be a multiple of {size.fold * 2 ** (len(edges) - 1)}")
    attends = [config.cross_attention and edge**2 <= size.tokens for edge in edges]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        condition = ConditionNetwork(size.condition, len(vocabulary.concepts), size.fold, config.channels)
        denoiser = TwinDenoiser(size.fold**2, size.denoiser, size.condition, attends=attends)
        if config.start == "posterior":
            denoiser.answer_nothing()
    return UniSegDiff(config, vocabulary, condition, denoiser)


def make(
    preset: str,
    size: int,
    vocabulary: Vocabulary,
    *,
    seed: int = 0,
    uniform: bool = False,
    score: str = "energy",
    channels: int = 3,
    **_: Any,
) -> UniSegDiff:
    """An untrained system of a preset, taught by a score; with `uniform` without stages, which is DDIM."""
    config = UniSegDiffConfig(size, preset, score=score, channels=channels)
    if uniform:
        config = replace(config, stages=Stages(Strategy.UNIFORM, target="mask", interval=10), chains="own")
    return build(config, vocabulary, seed=seed)


def save(system: UniSegDiff, folder: Path) -> dict[str, Any]:
    """Write the weights; the configuration comes back."""
    return {**save_parts(system, folder), "targets": list(system.learnt.names)}


def load(folder: Path, config: Mapping[str, Any], vocabulary: Vocabulary) -> UniSegDiff:
    """What `save` wrote."""
    known = configured({k: v for k, v in config.items() if k != "targets"}, UniSegDiffConfig, folder)
    targets = configured(config.get("targets", []), Targets, folder, below="targets")
    learnt = tuple(c for c in vocabulary.concepts if c.name in targets)
    if not learnt:
        raise ModelError(f"{folder / 'config.json'}: field 'system_config.targets': names no target; {FIX}")
    return filled(build(known, Vocabulary(learnt)), folder)
