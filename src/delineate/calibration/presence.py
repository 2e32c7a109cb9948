"""When a target counts as found, by what held-out subjects lack and have. NumPy only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval
from jaxtyping import Float

from delineate.calibration.calibrators import Calibrator, Identity, from_json, to_json
from delineate.storage.schema import Count, Share

FEWEST = 4  # subjects that lack something: fewer cannot promise one in five
KEPT = 0.5  # of what is there, that a threshold for the asked rate has to find
KEPT_LOOSER = 0.95  # likewise, where the rate is loosened for it
LOOSEST = 0.5  # rate
FOUND_FROM = 0.6  # presence score from which a target counts as found, where held-out subjects do not say


@dataclass(frozen=True)
class Presence:
    """From which score on a target counts as found, and how often an absent one does.

    By conformal risk control over subjects, at most this share of the absent targets of a new subject is called found,
    in expectation over the draw of the subjects that `threshold` was set on: the targets and scans of one subject are
    no strangers to each other, so they count once. What is counted here was cropped to where the target is not.

    Attributes:
        threshold: a target is found where its score (`delineate.proposals.target.presence`) is at least this.
        rate: the false-alarm rate that holds for it, in (0, 1); an estimate where it is not `promised`.
        asked: the rate that was asked for.
        absent: on how many subjects with a part that lacks a target it was set.
        present: how many (scan, target) there were with it.
        sensitivity: the share of those that are found.
        calibrator: from a score to the probability of presence, as common as it was there; the score itself where
            there were fewer than five of either kind.
    """

    threshold: Annotated[float, Interval(ge=-1e6, le=1e6)]
    rate: Annotated[float, Interval(gt=0, lt=1)]
    asked: Annotated[float, Interval(gt=0, lt=1)]
    absent: Count
    present: Count
    sensitivity: Share
    calibrator: Calibrator = field(default_factory=Identity)

    @property
    def promised(self) -> bool:
        """Whether the rate is the least that so many subjects allow, and not one that the same subjects chose."""
        return self.rate <= least_rate(self.asked, self.absent) + 1e-9

    def told(self, names: Sequence[str]) -> str:
        """What people want to know, of the targets with these names."""
        said = f"{shortened(names)}: found from a score of {self.threshold:.3g}; false alarms "
        said += f"{'at most' if self.promised else 'about'} {self.rate:.1%} of a subject's absent targets "
        said += f"({self.absent} subjects), {self.sensitivity:.1%} of {self.present} present found"
        if not self.promised:
            return f"{said}; {self.asked:.1%} would leave out half of what is there"
        if self.rate > self.asked + 1e-9:
            said += f"; {self.asked:.1%} needs {math.ceil(1 / self.asked - 1 - 1e-9)} subjects that lack a target"
        return said

    def to_json(self) -> dict[str, Any]:
        """As calibration.json tells it."""
        return {**self.__dict__, "calibrator": to_json(self.calibrator)}


@dataclass(frozen=True)
class PresenceFile(Presence):
    """What calibration.json says of presence."""

    calibrator: dict[str, str | float] = field(default_factory=dict)  # type: ignore[assignment]

    def read(self) -> Presence:
        """What it means."""
        return Presence(**{**self.__dict__, "calibrator": from_json(self.calibrator)})  # type: ignore[arg-type]


def least_rate(asked: float, subjects: int) -> float:
    """The least rate, from the one asked for up, that so many subjects can promise."""
    return max(asked, 1 / (subjects + 1))


def presence_from(
    absent: Sequence[np.ndarray | float], present: Float[np.ndarray, " scans"], rate: float, calibrator: Calibrator
) -> Presence | None:
    """The least threshold whose false-alarm rate is `rate`; with fewer than 1 / rate - 1 subjects, what they allow.

    Where so high a threshold would leave out half of what is there, the least greater rate that leaves out a twentieth:
    these subjects choose it, so it is an estimate and no promise. None where that is more than a half, and with fewer
    than four subjects, or no scan that shows a target.

    Args:
        absent: for each subject the scores of what it lacks.
        present: scores of what is there.
        rate: asked for.
        calibrator: of scores.
    """
    own, n = [np.atleast_1d(one).astype(np.float32) for one in absent], len(absent)
    if n < FEWEST or not len(present):
        return None
    scores, weights = np.concatenate(own), np.concatenate([np.full(len(one), 1 / len(one)) for one in own])
    order = np.argsort(-scores)
    found = np.cumsum(weights[order])  # of how many subjects' worth, from the greatest score down
    least = least_rate(rate, n)
    for allowed in (least, *np.arange(least + 0.01, LOOSEST + 0.001, 0.01)):
        most = allowed * (n + 1) - 1 + 1e-9
        highest = scores[order][np.searchsorted(found, most, side="right")] if found[-1] > most else np.float32(0)
        threshold = float(np.nextafter(highest, np.float32(2)))
        sensitivity = float((present >= threshold).mean())
        if sensitivity >= (KEPT if allowed == least else KEPT_LOOSER):
            return Presence(threshold, float(allowed), rate, n, len(present), sensitivity, calibrator)
    return None


def told_of(presence: Mapping[str, Presence], names: Sequence[str]) -> list[str]:
    """A line for each threshold, with the targets that share it, and one for the `names` that have none."""
    alike: dict[tuple[float, int, int], list[str]] = {}
    for name, one in presence.items():
        alike.setdefault((one.threshold, one.absent, one.present), []).append(name)
    lines = [presence[own[0]].told([name or "all others" for name in own]) for own in alike.values()]
    silent = [] if "" in presence else [name for name in names if name not in presence]
    if silent:
        lines.append(f"{shortened(silent)}: likely absent is uncalibrated, held-out subjects do not tell")
    return lines


def shortened(names: Sequence[str]) -> str:
    """The first three, and how many more there are."""
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}"
