"""The proposals of one target: several masks, a consensus, where they disagree, and an honest outcome."""

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import islice

import numpy as np

from delineate.calibration.calibrators import REACHED
from delineate.calibration.guarantees import Calibration, Guarantee, GuaranteeError
from delineate.calibration.presence import FOUND_FROM
from delineate.calibration.quality import Expected
from delineate.prompts.prompt import Prompt
from delineate.proposals import ordering
from delineate.proposals.fusion import FOREGROUND, FUSIONS, foreground, mean_of
from delineate.proposals.islands import without_islands
from delineate.scans.geometry import Orientation
from delineate.scans.sparse import Sparse
from delineate.storage.hidden import without_hidden

NESTED = 0.98
VOXELS_AT_ONCE = 1 << 20  # of what is worked on in float64: bounds memory


class Outcome(StrEnum):
    """What can be said of a target."""

    FOUND = "found"
    LIKELY_ABSENT = "likely absent"
    UNKNOWN_PROMPT = "unknown prompt"
    NOT_LEARNT = "not learnt here"
    UNLIKE = "scan unlike any known"


@dataclass(frozen=True, eq=False, repr=False)
class TargetProposals:
    """The proposals of one target.

    Attributes:
        prompt: as it was asked.
        name: the vocabulary's name of the target; None for an unknown prompt.
        outcome: found, likely absent or unknown prompt; or why the question does not fit the scan, and nothing was
            drawn: not learnt here (in such scans, by this model), scan unlike any known.
        score: in [0, 1], how firmly the proposals agree that the target is there: the mean probability of the
            surest tenth of the consensus (of its surest 8 voxels where it is smaller), 0 where it is empty.
        drawn: N maps in [0, 1] on the scan's own voxels, kept where they are not zero; None for an unknown prompt, and
            for a question that does not fit. An array (N, I, J, K) may be given for them; `probabilities` is one.
        nearest: for an unknown prompt, the names that resemble it.
        calibration: what held-out subjects taught about such proposals; None where nobody asked them.
        weights: float64 (N,) that sum to 1, how far each proposal agreed with the marks before it was made to; None
            without marks, or with one proposal.
        scores: (N,), how good the system itself holds each proposal to be; None where it does not say.
        said: how the words were taken, in a sentence, where they do not plainly name the target.
        misfit: in what the question does not fit the scan, in a sentence; "" where it fits, or nobody can tell.
        found_from: the score from which it counts as found.
        uncalibrated: why held-out subjects say nothing of such an answer, in a sentence; "" where they do.
        parts: the names that it is made of, of a region.
    """

    prompt: Prompt
    name: str | None
    outcome: Outcome
    score: float = 0.0
    drawn: Sparse | np.ndarray | None = None
    nearest: tuple[str, ...] = ()
    calibration: Calibration | None = None
    weights: np.ndarray | None = None
    scores: np.ndarray | None = None
    said: str = ""
    misfit: str = ""
    found_from: float = FOUND_FROM
    uncalibrated: str = ""
    parts: tuple[str, ...] = ()

    def __post_init__(self):
        if isinstance(self.drawn, np.ndarray):
            object.__setattr__(self, "drawn", Sparse.of(self.drawn))

    def __repr__(self) -> str:
        name = without_hidden(self.name or self.prompt.text)
        drawn = "" if self.drawn is None else f", score {self.score:.2f}, {len(self)} proposals"
        return f"TargetProposals('{name}': {self.outcome}{drawn})"

    def __len__(self) -> int:
        return 0 if self.drawn is None else len(self.drawn)

    @property
    def probabilities(self) -> np.ndarray | None:
        """The proposals as drawn, all at once: float16 (N, I, J, K), made anew each time; None as `drawn` is."""
        return None if self.drawn is None else self._drawn().dense()

    def mean(self) -> np.ndarray:
        """The mean of the proposals as drawn, by their weights where they have some: float32 (I, J, K) in [0, 1]."""
        return self._drawn().spread(self._mean)

    def probability(self) -> np.ndarray:
        """The probability of the target, float32 (I, J, K) in [0, 1]: the mean, calibrated where that can be.

        The consensus is made of the mean as it is, from the threshold that was best on held-out subjects.
        """
        return self._drawn().spread(self._probability)

    def guarantees(
        self, *, missed_at_most: float | None = None, false_at_most: float | None = None
    ) -> tuple[Guarantee, ...]:
        """Which masks with a guarantee there are, or why not; one for each share given. `guaranteed` draws them.

        Raises:
            GuaranteeError: the model is not calibrated, or fewer proposals were drawn than it was calibrated with.
        """
        drawn, calibration = self._drawn(), self.calibration
        if calibration is None or self.name is None:
            why = self.uncalibrated or "the model is not calibrated; run: delineate calibrate"
            raise GuaranteeError(f"'{self.prompt.text}': nothing can be guaranteed: {why}")
        if len(drawn) < calibration.proposals:
            raise GuaranteeError(
                f"the model was calibrated with {calibration.proposals} proposals, {len(drawn)} were drawn; "
                f"ask for -n {calibration.proposals} or more"
            )
        return calibration.guarantees(self.name, missed_at_most=missed_at_most, false_at_most=false_at_most)

    def guaranteed(self, guarantee: Guarantee) -> np.ndarray:
        """The mask of one of `guarantees`, bool (I, J, K).

        Raises:
            GuaranteeError: nothing can be guaranteed.
        """
        if guarantee.threshold is None or self.calibration is None:
            raise GuaranteeError(guarantee.why_not or "the model is not calibrated; run: delineate calibrate")
        drawn = self._drawn()
        some = islice(drawn.rows(), self.calibration.proposals)
        inside = mean_of(some, len(drawn.where)) >= guarantee.threshold
        return drawn.spread(inside, rest=guarantee.threshold <= 0)

    def consensus(self, how: str = "mean") -> np.ndarray:
        """One mask, bool (I, J, K), by one of `FUSIONS`; only the mean heeds weights.

        The mean is cut at 0.5, or where Dice was best on held-out subjects (`Calibration.consensus_at`); of targets
        of which they say so (`Calibration.is_one_piece`) small pieces beside the largest are then left out.
        """
        inside, rest = self._consensus(how)
        return self._drawn().spread(inside, rest)

    def size(self, how: str = "mean") -> int:
        """How many voxels the consensus has."""
        inside, rest = self._consensus(how)
        return int(np.count_nonzero(inside)) + rest * self._drawn().elsewhere

    def islands(self) -> int:
        """How many voxels were left out of the consensus (the mean) as small pieces beside the largest."""
        return int(np.count_nonzero(self._cut) - np.count_nonzero(self._best))

    def without(self, voxels: np.ndarray) -> "TargetProposals":
        """The same with nothing at these voxels, bool (I, J, K): where nobody labelled, nothing is right or wrong."""
        if self.drawn is None or not voxels.any():
            return self
        return replace(self, drawn=self._drawn().only(~voxels))

    def sizes(self) -> np.ndarray:
        """How many voxels each proposal has, float64 (N,) of whole numbers."""
        return self._overlaps.sizes

    def nested(self) -> bool:
        """Whether proposals lie within one another, but for a fiftieth: STAPLE leans to the union of such."""
        share = self._overlaps.nested()
        return share is not None and bool(share >= NESTED)

    def disagreement(self) -> np.ndarray:
        """Doubt, float32 (I, J, K) in [0, 1]: the entropy of the mean probability in bits."""
        return self._drawn().spread(self._probability, change=entropy)

    def doubt_across(self, axis: int) -> np.ndarray:
        """The sum of `disagreement` in every slice across an axis of the scan, float64."""
        return self._drawn().sums(entropy(self._probability), axis)

    def sliced(self, axis: int, index: int) -> "TargetProposals":
        """The same proposals of one slice across an axis of the scan, which has length 1 there."""
        drawn = self._drawn()
        return self if drawn.shape[axis] == 1 else replace(self, drawn=drawn.sliced(axis, index))

    def consensus_across(self, axis: int, how: str = "mean") -> np.ndarray:
        """How many voxels the consensus has in every slice across an axis, float64 of whole numbers."""
        inside, rest = self._consensus(how)
        return self._drawn().sums(inside, axis, rest)

    def consensus_in(self, axis: int, index: int, how: str = "mean") -> np.ndarray:
        """The consensus in one slice across an axis, which has length 1 in it, bool."""
        inside, rest = self._consensus(how)
        return self._drawn().slice_of(inside, axis, index, rest)

    def fullest(self, orientation: Orientation, how: str = "mean") -> tuple[int, int]:
        """The axial slice with most of the consensus, or the likeliest: its place as people count, and in the file."""
        axis = orientation.order[0]
        turn = slice(None, None, -1 if orientation.flips[0] else 1)  # the slices' order as they are seen
        area = self.consensus_across(axis, how)[turn]
        k = int(area.argmax()) if area.any() else int(self.peak_across(axis)[turn].argmax())
        return k, len(area) - 1 - k if orientation.flips[0] else k

    def peak_across(self, axis: int) -> np.ndarray:
        """The largest `probability` in every slice across an axis, float32."""
        drawn = self._drawn()
        peaks = np.zeros(drawn.shape[axis], np.float32)
        np.maximum.at(peaks, drawn.along(axis), self._probability)
        return peaks

    @property
    def doubt(self) -> float:
        """How little the consensus would overlap with the truth if the probabilities were right, in [0, 1].

        One minus 2 Σ_M p / (|M| + Σ p) for the consensus M and the mean probability p: about one minus the Dice that
        the model itself expects. 0 where there is no voxel of either.
        """
        return 1 - ordering.probable_dice(self._consensus("mean")[0], self._probability)

    def distinct(self, apart: float = ordering.APART, most: int = ordering.MOST) -> tuple[ordering.Distinct, ...]:
        """The few proposals that stand for all, the one with the largest group first; see `ordering.distinct`.

        Where proposals have weights, a group weighs what its members do together.
        """
        groups = ordering.distinct(self._overlaps, apart, most)
        if self.weights is None:
            return groups
        weighed = (replace(group, weight=float(self.weights[list(group.members)].sum())) for group in groups)
        return tuple(sorted(weighed, key=lambda group: (-group.weight, group.k)))

    def agreement(self) -> np.ndarray:
        """How far each proposal agrees with the others, float64 (N,) in [0, 1]: its mean Dice with them.

        A single one is held against its own probability. See `ordering.agreement`.
        """
        if len(self) == 1:
            return ordering.agreement(foreground(self._drawn().row(0))[None], self._mean)
        return ordering.agreement(self._overlaps)

    def expected(self) -> Expected | None:
        """What Dice the consensus (the mean) can expect, by held-out subjects; None where they do not say.

        They do of a target that is found, by as many proposals as they were asked for or more. If it is not there,
        nothing is to be expected.
        """
        if self.calibration is None or self.outcome is not Outcome.FOUND or len(self) < self.calibration.proposals:
            return None
        told = self.calibration.quality.get(self.name or "")
        if told is None:
            return None
        return told(float(self.agreement().mean()), ordering.probable_dice(self._cut, self._mean))

    def agreement_of(self, how: str = "mean") -> float:
        """How far the consensus agrees with the proposals, in [0, 1]: its mean Dice with them; one alone as above."""
        drawn, (inside, rest) = self._drawn(), self._consensus(how)
        masks = (foreground(one) for one in drawn.rows())
        probability = self._mean if len(self) == 1 else None
        return ordering.agreement_of(inside, masks, probability, rest * drawn.elsewhere)

    def choose(self, k: int) -> np.ndarray:
        """Proposal k as a mask, bool (I, J, K)."""
        drawn = self._drawn()
        if not 0 <= k < len(drawn):
            raise ValueError(f"there are proposals 0 to {len(drawn) - 1}, not {k}")
        return drawn.spread(foreground(drawn.row(k)))

    def claims(self, how: str = "mean") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Where proposals reach (`Sparse.where`), whether the consensus does, and the probability there."""
        return self._drawn().where, self._consensus(how)[0], self._probability

    # What follows is of the voxels of `drawn` alone, and the same there as of all voxels, to the bit.

    def _consensus(self, how: str) -> tuple[np.ndarray, bool]:
        """One mask, and whether all other voxels are in it; they may be in no proposal, and STAPLE counts them."""
        if how not in FUSIONS:
            raise ValueError(f"consensus is one of {', '.join(FUSIONS)}; got '{how}'")
        if how == "mean":
            return self._best, False
        drawn = self._drawn()
        if how != "staple" or not drawn.elsewhere:
            return FUSIONS[how](drawn.values) >= 0.5, False
        one_more = np.pad(drawn.values, ((0, 0), (0, 1)))  # stands for the others
        inside = FUSIONS[how](one_more, others=drawn.elsewhere - 1) >= 0.5
        return inside[:-1], bool(inside[-1])

    @cached_property
    def _cut(self) -> np.ndarray:
        """Where the mean reaches the threshold of the consensus."""
        told = self.calibration is not None and self.name is not None
        at = self.calibration.consensus_at(self.name) if told else FOREGROUND  # type: ignore[union-attr, arg-type]
        return _kept(self._mean >= max(at, REACHED))

    @cached_property
    def _best(self) -> np.ndarray:
        """The same without islands, where held-out subjects say that this is better."""
        if self.calibration is None or not self.calibration.is_one_piece(self.name or ""):
            return self._cut
        drawn = self._drawn()
        return _kept(drawn.taken(without_islands(drawn.spread(self._cut))))

    @property
    def _mean(self) -> np.ndarray:
        """Made anew each time: it is quickly made, and large."""
        return mean_of(self._drawn().rows(), len(self._drawn().where), self.weights)

    @cached_property
    def _probability(self) -> np.ndarray:
        mean = self._mean
        return _kept(mean if self.calibration is None else self.calibration.calibrated(mean, in_place=True))

    @cached_property
    def _overlaps(self) -> ordering.Overlaps:
        return ordering.overlaps(foreground(one) for one in self._drawn().rows())

    def _drawn(self) -> Sparse:
        if not isinstance(self.drawn, Sparse):
            raise ValueError(f"'{self.prompt.text}': {self.outcome}: there are no proposals to look at")
        return self.drawn


def entropy(probability: np.ndarray) -> np.ndarray:
    """Of probabilities in [0, 1], in bits, float32; what is below 1e-4 counts as none."""
    bits = np.zeros(probability.shape, np.float32)
    given, told = np.ascontiguousarray(probability).reshape(-1), bits.reshape(-1)
    for start in range(0, given.size, VOXELS_AT_ONCE):
        part, out = given[start : start + VOXELS_AT_ONCE], told[start : start + VOXELS_AT_ONCE]
        unsettled = (part > 1e-6) & (part < 1 - 1e-6)  # most of a scan is settled
        p = part[unsettled]
        out[unsettled] = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
        out[out < 1e-4] = 0
    return bits


def _kept(values: np.ndarray) -> np.ndarray:
    values.setflags(write=False)
    return values


def presence(mean: np.ndarray) -> float:
    """The score of `TargetProposals` from a mean probability map."""
    inside = mean[mean >= 0.5]
    if inside.size == 0:
        return 0.0
    surest = min(inside.size, max(8, inside.size // 10))
    return float(np.partition(inside, inside.size - surest)[-surest:].mean())
