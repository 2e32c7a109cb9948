"""What held-out cases say, target by target, and the `Calibration` that it comes to. NumPy only."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from delineate.calibration.calibrators import CALIBRATORS, Calibrator, Identity, Temperature, nll, reliability
from delineate.calibration.guarantees import ENOUGH, THRESHOLDS, Calibration
from delineate.calibration.presence import FOUND_FROM, Presence, presence_from
from delineate.calibration.quality import Quality, fit_quality

FALSE_ALARMS = 0.05
FOLDS = 5  # of subjects, to choose a calibrator by
Histogram = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True, eq=False)
class Evidence:
    """What one target in one case says.

    Attributes:
        subject: of the case, with its dataset.
        target: the vocabulary's name.
        drawn: how many proposals there were; a system may give fewer than asked.
        missed: (thresholds,) as in `Calibration`; None where the case does not have the target.
        false: (thresholds,); likewise.
        dice: (thresholds,), of the masks from there on; likewise.
        sizes: (thresholds,), of those masks in units of the truth; likewise.
        probable: (thresholds,), the Dice that the probabilities themselves promise those masks; likewise.
        agreement: the mean Dice between the proposals.
        tidied: how much greater the Dice of the consensus is without small pieces beside its largest; None as above.
        voxels: probabilities, truths and weights, each rater's reading counting once among M.
        score_present: of the whole scan; None where it does not have the target.
        score_absent: of the scan cropped to the slices that are `MARGIN_MM` or more from the target; None without any.
    """

    subject: str
    target: str
    drawn: int
    missed: np.ndarray | None
    false: np.ndarray | None
    dice: np.ndarray | None
    sizes: np.ndarray | None
    probable: np.ndarray | None
    agreement: float
    tidied: float | None
    voxels: Histogram
    score_present: float | None
    score_absent: float | None


def calibrators_of(evidence: Sequence[Evidence]) -> dict[str, Calibrator]:
    """For every target that enough subjects show a calibrator of its own, and under "" one for all."""
    found, shown = {"": choose_calibrator(_by_subject(evidence))[0]}, defaultdict(set)
    for entry in evidence:
        if entry.missed is not None:
            shown[entry.target].add(entry.subject)
    for target, subjects in shown.items():
        if len(subjects) >= ENOUGH:
            found[target] = choose_calibrator(_by_subject([e for e in evidence if e.target == target]))[0]
    return found


def _by_subject(evidence: Sequence[Evidence]) -> list[Histogram]:
    subjects: dict[str, list[Histogram]] = defaultdict(list)
    for entry in evidence:
        subjects[entry.subject].append(entry.voxels)
    return [joined(parts) for parts in subjects.values()]


def calibration_from(
    evidence: Sequence[Evidence], false_alarms: float = FALSE_ALARMS, about: dict[str, Any] | None = None
) -> Calibration:
    """A calibration from what cases said; arguments as for `calibrate`."""
    subjects = _by_subject(evidence)
    voxel, figures = choose_calibrator(subjects)
    absent = np.array([e.score_absent for e in evidence if e.score_absent is not None])
    present = np.array([e.score_present for e in evidence if e.score_present is not None])
    scores, truths = np.concatenate([absent, present]), np.arange(len(absent) + len(present)) >= len(absent)
    scored = CALIBRATORS["beta"].fit(scores, truths) if min(len(absent), len(present)) >= 5 else Identity()
    held: dict[str, dict[str, list[Evidence]]] = defaultdict(lambda: defaultdict(list))
    for entry in (e for e in evidence if e.missed is not None):
        held[entry.target][entry.subject].append(entry)

    def by_subject(of: Callable[[Evidence], Any]) -> dict[str, np.ndarray]:
        return {
            target: np.stack([np.mean([of(e) for e in own], axis=0) for own in of_each.values()])
            for target, of_each in held.items()
        }

    told = {"subjects": len(subjects), "voxels": figures, "of_each": {t: len(s) for t, s in held.items()}}
    consensus = thresholds_of(by_subject(lambda e: e.dice))
    index = {t: int(np.searchsorted(THRESHOLDS, consensus.get(t, consensus[""]) - 1e-9)) for t in held}
    presence = presence_by_target(evidence, false_alarms, scored)
    return Calibration(
        max(entry.drawn for entry in evidence),
        voxel,
        consensus=consensus,
        one_piece=one_piece_of(by_subject(lambda e: e.tidied)),
        presence=presence,
        quality=quality_by_target(evidence, index, presence),
        missed=by_subject(lambda e: e.missed),
        false=by_subject(lambda e: e.false),
        dice=by_subject(lambda e: e.dice[index[e.target]]),  # type: ignore[index]
        volume_errors=by_subject(lambda e: volume_error(float(e.sizes[index[e.target]]))),  # type: ignore[index]
        about={**(about or {}), **told},
    )


def by_set(evidence: Sequence[Evidence]) -> list[list[Evidence]]:
    """That of each set of scans."""
    found: dict[str, list[Evidence]] = defaultdict(list)
    for entry in evidence:
        found[entry.subject.split("/")[0]].append(entry)
    return list(found.values())


def quality_by_target(
    evidence: Sequence[Evidence], cut: Mapping[str, int], presence: Mapping[str, Presence]
) -> dict[str, Quality]:
    """What Dice each target can expect where it is found: those of one set of scans are fitted together.

    Args:
        evidence: of all.
        cut: which of `THRESHOLDS` the consensus of a target is cut at.
        presence: when a target is found.
    """
    found: dict[str, Quality] = {}
    for own in by_set(evidence):
        kept = [
            e
            for e in own
            if e.score_present is not None
            and e.score_present >= (presence[e.target].threshold if e.target in presence else FOUND_FROM)
        ]
        if kept:
            found |= fit_quality(
                [e.subject for e in kept],
                [e.target for e in kept],
                np.array([e.agreement for e in kept]),
                np.array([e.probable[cut[e.target]] for e in kept]),  # type: ignore[index]
                np.array([e.dice[cut[e.target]] for e in kept]),  # type: ignore[index]
            )
    return found


def presence_by_target(evidence: Sequence[Evidence], rate: float, calibrator: Calibrator) -> dict[str, Presence]:
    """When each target is found: those of one set of scans are judged together, by its subjects."""
    found = {}
    for own in by_set(evidence):
        absent: dict[str, list[float]] = defaultdict(list)
        for entry in own:
            if entry.score_absent is not None:
                absent[entry.subject].append(entry.score_absent)
        present = np.array([e.score_present for e in own if e.score_present is not None])
        made = presence_from([np.array(scores) for scores in absent.values()], present, rate, calibrator)
        found |= {} if made is None else {entry.target: made for entry in own}
    return found


def thresholds_of(dice: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Of Dice by target, (subjects, thresholds), where its mean is best: a target's own from enough subjects on.

    Under "" that of all together, 0.5 without any. Of several that are equally good the middle one.
    """
    pooled = np.concatenate(list(dice.values())) if dice else np.zeros((0, len(THRESHOLDS)))
    found = {"": 0.5}
    for target, curves in {"": pooled, **{t: c for t, c in dice.items() if len(c) >= ENOUGH}}.items():
        if len(curves):
            mean = curves.mean(axis=0)
            (best,) = np.nonzero(mean >= mean.max() - 1e-9)
            found[target] = float(THRESHOLDS[best[len(best) // 2]])
    return found


def one_piece_of(tidied: Mapping[str, np.ndarray]) -> dict[str, bool]:
    """Of `Evidence.tidied` by target, (subjects,), whether small pieces are better left out.

    From enough subjects on (`ENOUGH`) a target speaks for itself. Of fewer it can only object: what most of them say
    (the median of their means, so that vessels do not speak for organs) decides, and stands under "".
    """
    few = {target: float(gains.mean()) for target, gains in tidied.items() if len(gains) < ENOUGH}
    together = bool(few) and bool(np.median(list(few.values())) > 0)
    found = {"": together} | {t: bool(gains.mean() > 0) for t, gains in tidied.items() if len(gains) >= ENOUGH}
    return found | {target: False for target, gain in few.items() if together and gain < 0}


def volume_error(size: float) -> float:
    """|ln(true volume / volume of the mask)| for a mask of `size` in units of the truth; infinite for an empty one."""
    return abs(math.log(size)) if size > 0 else math.inf


def choose_calibrator(subjects: Sequence[Histogram]) -> tuple[Calibrator, dict[str, Any]]:
    """The calibrator with the least NLL on subjects left out in turn, fitted on all; and what was measured.

    With a single subject there is nothing to choose by: a temperature. With one kind of voxel only: none.
    """
    subjects = [one for one in subjects if len(one[0])]
    if not subjects:
        return Identity(), {}
    everyone = joined(subjects)
    if everyone[1].all() or not everyone[1].any():
        return Identity(), {}
    folds = min(FOLDS, len(subjects))
    figures: dict[str, Any] = {"ece": reliability(everyone[0], everyone[1], weight=everyone[2]).ece}
    if folds == 1:
        return Temperature.fit(*everyone), figures
    left_out: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {kind: ([], []) for kind in CALIBRATORS}
    for fold in range(folds):
        rest = joined([one for i, one in enumerate(subjects) if i % folds != fold])
        out = joined(subjects[fold::folds])
        for kind, made in CALIBRATORS.items():
            both = rest[1].any() and not rest[1].all()
            left_out[kind][0].append((made.fit(*rest) if both else Identity())(out[0]))
            left_out[kind][1].append(out[2])
    truths = np.concatenate([joined(subjects[fold::folds])[1] for fold in range(folds)])
    scores = {}
    for kind, (parts, weights) in left_out.items():
        p, w = np.concatenate(parts), np.concatenate(weights)
        scores[kind] = nll(p, truths, w)
        figures[kind] = {"left_out_nll": scores[kind], "left_out_ece": reliability(p, truths, weight=w).ece}
    best = min(scores, key=lambda kind: scores[kind])
    return CALIBRATORS[best].fit(*everyone), figures


def joined(parts: Sequence[Histogram]) -> Histogram:
    """All voxels together."""
    p, y, w = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return p, y, w
