"""What a system is: it sees a scan once and then proposes masks of what it is asked, on the working grid.

Three declared interfaces, each wider than the last: a `System` answers, a `Learner` is also taught, an `Adaptable` can
be carried to other scans and names. What a system can be asked is one value, `Asked`; which clues it takes beside
words it states in `accepts`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from delineate.calibration.calibrators import REACHED, Calibrator
from delineate.data.slices import SliceBank
from delineate.prompts.concept import Concept
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.scans.scan import Scan
from delineate.training.loop import Phase

OnShare = Callable[[float], None]  # told the share of the work that is done


class Clue(StrEnum):
    """What a prompt may hold beside words."""

    POINTS = "points"
    SCRIBBLES = "scribbles"
    BOX = "box"
    MASK = "mask"
    REFERENCES = "references"
    STYLE = "style"


@dataclass(frozen=True, eq=False)
class Reference:
    """A labelled example (the support of a few-shot system).

    Attributes:
        stack: slices (R, 3, size, size) in [-1, 1].
        mask: of the target in them, (R, size, size) in [0, 1].
    """

    stack: Tensor
    mask: Tensor


@dataclass(frozen=True, eq=False)
class Clues:
    """The clues of a prompt on the working grid; None and () where there are none.

    Attributes:
        slices: (M,) int64, rising: the slices that `inside`, `outside` and `mask` are of. The answer is then of these
            slices alone; without, of all.
        inside: (M, size, size) bool, pixels that are known to be in the target: points and scribbles.
        outside: likewise, not in it; never both.
        mask: (M, size, size) in [0, 1], what is believed so far.
        box: (S, size, size) bool, where alone the target may be.
        references: labelled examples.
        style: whose way of drawing is asked for.
    """

    slices: Tensor | None = None
    inside: Tensor | None = None
    outside: Tensor | None = None
    mask: Tensor | None = None
    box: Tensor | None = None
    references: tuple[Reference, ...] = ()
    style: str | None = None

    @property
    def known(self) -> tuple[Tensor, Tensor] | None:
        """What pixels are, (M, 1, size, size) in {0, 1}, and which are known, likewise bool; None if no one said."""
        if self.inside is None or self.outside is None:
            return None
        return self.inside[:, None].float(), (self.inside | self.outside)[:, None]


@dataclass(frozen=True, eq=False)
class Asked:
    """What a system is asked.

    Attributes:
        concept: of the vocabulary; None where it knows no such name (`System.open_words`).
        caption: the words to encode.
        words: as a person typed them.
        clues: what the prompt holds beside words.
        calibrator: mends the system's own estimate before proposals are drawn from it (`mended`); None leaves it.
    """

    concept: Concept | None
    caption: str
    words: str = ""
    clues: Clues = field(default_factory=Clues)
    calibrator: Calibrator | None = None

    def mended(self, probability: Tensor) -> Tensor:
        """An estimate (any shape, in [0, 1]) as held-out subjects would have it; what is next to 0 stays as it is."""
        if self.calibrator is None:
            return probability
        out, reached = probability.clone(), probability >= REACHED
        out[reached] = torch.from_numpy(self.calibrator(probability[reached].cpu().numpy())).to(out)
        return out

    @property
    def name(self) -> str:
        """Of the concept, for systems that know no other words."""
        assert self.concept is not None, "only a system with open_words is asked for what has no name"
        return self.concept.name

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that are learnt for it: those that a region is made of, else its own."""
        assert self.concept is not None, "only a system with open_words is asked for what has no name"
        return self.concept.parts or (self.concept.name,)


@dataclass(frozen=True, eq=False)
class Drawn:
    """Proposals on the working grid.

    Attributes:
        probabilities: (N, S, size, size) in [0, 1], on the CPU. N is what was asked for, fewer where a system has no
            more, 1 for a deterministic one.
        scores: (N,), how good the system holds each to be (its own estimate of the IoU, say); None if it does not say.
    """

    probabilities: Tensor
    scores: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Seen:
    """A scan that a segmenter has looked at: ask it as many prompts as you like.

    Attributes:
        scan: as it was given.
        features: what the system saw.
        prepared: the scan with its grey values prepared, as marks are read beside it.
        turn: how its slices lie (`scans.grid.turned`): they were turned back before they were looked at.
    """

    scan: Scan
    features: Any
    prepared: Scan
    turn: int = 0


class System(Protocol):
    """The grid side of a `Segmenter`; one file a system."""

    vocabulary: Vocabulary
    accepts: frozenset[Clue]  # clues it heeds itself; the door serves or refuses all others
    open_words: bool  # whether it takes words that its vocabulary does not know

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        ...

    def to(self, device: torch.device | str) -> "System":
        """Itself, moved; what goes in and comes out stays on the CPU."""
        ...

    def see(self, view: View) -> Any:
        """The encoding of a scan: whatever needs to be computed once for it (its features)."""
        ...

    def propose(self, seen: Any, asked: Asked, n: int, seed: int, on_step: OnShare = ...) -> Drawn:
        """Up to `n` masks of what is asked.

        The noise of proposal k depends on (seed, k) alone; what networks make of it does up to rounding, since kernels
        add up in another order for another number of pairs in one forward.
        """
        ...


class Refines(System, Protocol):
    """A system that accepts `Clue.MASK`: its proposals start from an estimate, and a better one can be given."""

    @property
    def draws_estimate(self) -> bool:
        """Whether proposals are the estimate against noise, so that `Asked.mended` makes them as frequent as true."""
        ...

    def estimate(self, seen: Any, asked: Asked, slices: Tensor | None = None) -> Tensor:
        """The probability that its proposals start from, (S, size, size), or (M, size, size) of the M `slices`."""
        ...


class Learner(System, Protocol):
    """A system that learns from slices."""

    @property
    def learnt(self) -> Vocabulary:
        """The training classes: names that slices must have, in their order; what can be asked may be more."""
        ...

    @property
    def parts(self) -> dict[str, nn.Module]:
        """What learns, by name; not a frozen foundation."""
        ...

    @property
    def about(self) -> str:
        """A line for the model's card, of what it was built on; empty if it needs none."""
        ...

    def phases(self, bank: SliceBank) -> list[Phase]:
        """How its parts learn from slices."""
        ...


class Adaptable(Learner, Protocol):
    """A learner that adapters can change."""

    @property
    def decoder(self) -> str:
        """A pattern of the paths, within `parts`, on the way from features to answers."""
        ...

    def with_parts(self, parts: Mapping[str, nn.Module], vocabulary: Vocabulary) -> "Adaptable":
        """The same system with other weights and names, sharing all else."""
        ...

    def widen(self, names: Sequence[str], *, seed: int = 0) -> tuple[str, nn.Module] | None:
        """The path, within `parts`, of the block that answers, and an untrained one like it for more names.

        None where names are read and need no channel.

        Raises:
            DelineateError: it cannot learn new names.
        """
        ...


class Pixelwise(Learner, Protocol):
    """A learner whose one network gives every pixel a logit of background and of every name; schemes can teach it."""

    network: nn.Module

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        ...

    def logits(self, image: Tensor) -> Tensor:
        """Logits (B, 1 + C, size, size) of slices (B, 3, size, size) in [-1, 1], background first."""
        ...
