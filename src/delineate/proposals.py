"""What comes out: for every target several masks, a consensus, where they disagree, and an honest outcome."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np

from delineate.files import safe_name
from delineate.fusion import FUSIONS, foreground
from delineate.prompt import Prompt
from delineate.scan import Scan, write_labels, write_map


class Outcome(StrEnum):
    """What can be said of a target."""

    FOUND = "found"
    LIKELY_ABSENT = "likely absent"
    UNKNOWN_PROMPT = "unknown prompt"


@dataclass(frozen=True, eq=False)
class TargetProposals:
    """The proposals of one target.

    Attributes:
        prompt: as it was asked.
        name: the vocabulary's name of the target; None for an unknown prompt.
        outcome: found, likely absent or unknown prompt.
        score: in [0, 1], how firmly the proposals agree that the target is there: the mean probability of the
            surest tenth of the consensus (of its surest 8 voxels where it is smaller), 0 where it is empty.
        probabilities: float16 (N, I, J, K) in [0, 1] on the scan's own voxels; None for an unknown prompt.
        nearest: for an unknown prompt, the names that resemble it.
    """

    prompt: Prompt
    name: str | None
    outcome: Outcome
    score: float = 0.0
    probabilities: np.ndarray | None = None
    nearest: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 0 if self.probabilities is None else len(self.probabilities)

    def probability(self) -> np.ndarray:
        """The mean of the proposals, float32 (I, J, K) in [0, 1]."""
        return FUSIONS["mean"](self._drawn())

    def consensus(self, how: str = "mean") -> np.ndarray:
        """One mask, bool (I, J, K), by a fusion of `delineate.fusion.FUSIONS`."""
        if how not in FUSIONS:
            raise ValueError(f"consensus is one of {', '.join(FUSIONS)}; got '{how}'")
        return FUSIONS[how](self._drawn()) >= 0.5

    def disagreement(self) -> np.ndarray:
        """Doubt, float32 (I, J, K) in [0, 1]: the entropy of the mean probability in bits."""
        p = self.probability().clip(1e-6, 1 - 1e-6)
        doubt = -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
        return np.where(doubt < 1e-4, 0, doubt).astype(np.float32)

    @property
    def doubt(self) -> float:
        """How little the consensus would overlap with the truth if the probabilities were right, in [0, 1].

        One minus 2 Σ_M p / (|M| + Σ p) for the consensus M and the mean probability p: about one minus the Dice that
        the model itself expects. 0 where there is no voxel of either.
        """
        p = self.probability()
        mask = p >= 0.5
        total = float(mask.sum() + p.sum(dtype="float64"))
        return 1 - 2 * float(p[mask].sum(dtype="float64")) / total if total >= 1 else 0.0

    def choose(self, k: int) -> np.ndarray:
        """Proposal k as a mask, bool (I, J, K)."""
        drawn = self._drawn()
        if not 0 <= k < len(drawn):
            raise ValueError(f"there are proposals 0 to {len(drawn) - 1}, not {k}")
        return foreground(drawn[k])

    def _drawn(self) -> np.ndarray:
        if self.probabilities is None:
            raise ValueError(f"'{self.prompt.text}' is an unknown prompt: there are no proposals to look at")
        return self.probabilities


def presence(mean: np.ndarray) -> float:
    """The score of `TargetProposals` from a mean probability map."""
    inside = mean[mean >= 0.5]
    if inside.size == 0:
        return 0.0
    surest = min(inside.size, max(8, inside.size // 10))
    return float(np.partition(inside, inside.size - surest)[-surest:].mean())


@dataclass(frozen=True, eq=False)
class Proposals:
    """The proposals of all targets that were asked of one scan."""

    scan: Scan
    targets: tuple[TargetProposals, ...]

    def __iter__(self) -> Iterator[TargetProposals]:
        return iter(self.targets)

    def __getitem__(self, text: str) -> TargetProposals:
        for target in self.targets:
            if text in (target.name, target.prompt.text):
                return target
        raise KeyError(f"'{text}' was not asked; asked were: {', '.join(t.prompt.text for t in self.targets)}")

    def label_map(self, how: str = "mean") -> tuple[np.ndarray, dict[str, int]]:
        """All found targets in one map of ids, and which id is whose.

        A voxel claimed by several consensus masks goes to the target with the highest mean probability there, and
        to the one asked first where they tie; `save` also keeps the masks one by one, overlaps included. A target
        asked twice in different words has two ids, the second under its name with a number behind it.
        """
        found = [t for t in self.targets if t.outcome is Outcome.FOUND]
        labels = np.zeros(self.scan.shape, dtype=np.uint16)
        best = np.zeros(self.scan.shape, dtype=np.float32)
        for number, target in enumerate(found, start=1):
            probability = target.probability()
            wins = target.consensus(how) & (probability > best)
            labels[wins], best[wins] = number, probability[wins]
        ids: dict[str, int] = {}
        asked: Counter[str] = Counter()
        for number, target in enumerate(found, start=1):
            name = target.name or ""
            asked[name] += 1
            ids[name if asked[name] == 1 else f"{name} {asked[name]}"] = number
        return labels, ids

    def save(self, folder: Path, *, how: str = "mean", maps: bool = False) -> list[Path]:
        """Write masks into `folder`, on the scan's own grid: PNG for flat images, NIfTI for volumes.

        For every known target: `<target>.…`, the consensus, and `<target>_proposal_<k>.…`; with `maps` also
        `<target>_probability.…` and `<target>_doubt.…`. With two or more found targets, `labels.…` holds them all
        (rule of overlaps: `label_map`). A target asked twice in different words gets a number behind its name.
        """
        suffix = ".png" if self.scan.is_flat else ".nii.gz"
        written = []
        stems: Counter[str] = Counter()
        for target in self.targets:
            if target.probabilities is None:
                continue
            stem = safe_name(target.name or target.prompt.text)
            stems[stem] += 1
            if stems[stem] > 1:
                stem = f"{stem}_{stems[stem]}"
            written.append(write_labels(folder / f"{stem}{suffix}", target.consensus(how), self.scan))
            for k in range(len(target)):
                path = folder / f"{stem}_proposal_{k:02d}{suffix}"
                written.append(write_labels(path, target.choose(k), self.scan))
            if maps:
                written.append(write_map(folder / f"{stem}_probability{suffix}", target.probability(), self.scan))
                written.append(write_map(folder / f"{stem}_doubt{suffix}", target.disagreement(), self.scan))
        labels, ids = self.label_map(how)
        if len(ids) > 1:
            written.append(write_labels(folder / f"labels{suffix}", labels, self.scan))
        return written
