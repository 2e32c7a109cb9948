"""The whole job of calibrating: held-out subjects are segmented, compared with their labels, and the model remembers.

Nothing is learnt by the networks. What is found (`delineate.calibration.guarantees.Calibration`) goes into the model
folder beside the weights; the model's fingerprint stays, so that adapters made for it still fit.
"""

import math
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from delineate.calibration.calibrators import (
    CALIBRATORS,
    REACHED,
    Calibrator,
    Identity,
    Temperature,
    histogram,
    nll,
    reliability,
)
from delineate.calibration.conformal import false_fraction, missed_fraction, overlaps_above
from delineate.calibration.guarantees import ENOUGH, FILES, THRESHOLDS, Calibration
from delineate.calibration.presence import Presence, presence_from
from delineate.data.dataset import Dataset
from delineate.data.folds import Fold, is_of, refuse_seen, trained_on
from delineate.data.named import parse_named
from delineate.errors import DatasetError, ModelError
from delineate.evaluation.alone import EstimateAlone
from delineate.evaluation.protocols.lines import Answered, answers
from delineate.jobs.opening import open_all
from delineate.jobs.recognising import recogniser_of
from delineate.jobs.watch import Nobody, Watch
from delineate.metrics.overlap import dice
from delineate.model_folder import check_model, is_model
from delineate.proposals.fusion import FOREGROUND
from delineate.proposals.islands import without_islands
from delineate.proposals.proposals import presence
from delineate.scans.geometry import canonical_spacing, orientation_of, to_canonical
from delineate.segmenter import Segmenter
from delineate.storage import sealed

FALSE_ALARMS = 0.05
MARGIN_MM = 20.0  # along the body: a mask that goes on a little beyond the end of its target is no false alarm
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
        tidied: how much greater the Dice of the consensus is without small pieces beside its largest; likewise.
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
    tidied: float | None
    voxels: Histogram
    score_present: float | None
    score_absent: float | None


def calibrate(
    segmenter: Segmenter,
    datasets: Sequence[Dataset],
    *,
    split: str = "val",
    n: int = 8,
    seed: int = 0,
    false_alarms: float = FALSE_ALARMS,
    on_step: Callable[[float], None] = lambda share: None,
) -> Calibration:
    """Segment every case of a split and see how far the answers can be believed.

    Twice, where a system draws its estimate: first to mend that, then by what is drawn of it.

    A subject counts once: its losses are means over its cases. A target is what the label file says; for the
    calibration of voxels alone every rater's reading counts. Held-out subjects only, or all of it means nothing.

    Args:
        segmenter: as trained.
        datasets: labelled.
        split: whose subjects; not one that was trained on.
        n: proposals a target.
        seed: of the proposals.
        false_alarms: the chance, asked for, that a target which is not there is called found.
        on_step: told the share of the work that is done.

    Raises:
        DatasetError: no case in the split, or no target that the model knows.
    """
    cases = [(dataset, case) for dataset in datasets for case in dataset.split(split)]
    if not cases:
        roots = ", ".join(str(dataset.root) for dataset in datasets)
        raise DatasetError(
            f"{roots}: the {split} split is empty; calibrate on another (--split), or correct splits.json"
        )

    def gathered(looking: Segmenter, count: int, report: Callable[[float], None]) -> list[Evidence]:
        evidence: list[Evidence] = []
        for done, (dataset, case) in enumerate(cases):
            names = [name for name in dataset.labels if name in looking.vocabulary.names]
            asked = answers(looking, dataset, [case], names, count, seed)
            evidence += [evidence_from(dataset, one) for one in asked]
            report((done + 1) / len(cases))
        if not evidence:
            raise DatasetError(f"{datasets[0].root}: the model knows none of its targets; see: delineate prompts")
        return evidence

    about = {"datasets": [d.name for d in datasets], "split": split}
    if not getattr(segmenter.system, "draws_estimate", False):
        return calibration_from(gathered(segmenter, n, on_step), false_alarms, about)
    alone: Any = EstimateAlone(segmenter.system)  # type: ignore[arg-type]
    bare = Segmenter(alone, segmenter.modalities, habits=segmenter.habits)
    estimate = calibrators_of(gathered(bare, 1, lambda share: on_step(share / 2)))
    mended = segmenter.calibrated(Calibration(n, estimate=estimate))
    evidence = gathered(mended, n, lambda share: on_step(0.5 + share / 2))
    return replace(calibration_from(evidence, false_alarms, about), estimate=estimate)


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
    return [_joined(parts) for parts in subjects.values()]


def evidence_from(dataset: Dataset, answered: Answered) -> Evidence:
    """What the answer for one target in one case says."""
    truth, readings, p = answered.truth, answered.readings, answered.probability()
    orientation = orientation_of(answered.scan.affine)
    holds = to_canonical(truth, orientation).sum(axis=(1, 2)) > 0
    far = ~_near(holds, canonical_spacing(answered.scan.affine, orientation)[0])
    cropped = to_canonical(p, orientation)[far]
    there = bool(truth.any())
    overlaps, sizes = overlaps_above(p, truth, THRESHOLDS) if there else (None, None)
    return Evidence(
        subject=f"{dataset.name}/{answered.case.subject}",
        target=str(answered.answer.name),
        drawn=len(answered.answer),
        missed=missed_fraction(p, truth, THRESHOLDS) if there else None,
        false=false_fraction(p, truth, THRESHOLDS) if there else None,
        dice=overlaps,
        sizes=sizes,
        tidied=_tidied(p >= FOREGROUND, truth) if there else None,
        voxels=_voxels(p, readings),
        score_present=presence(p) if there else None,
        score_absent=presence(cropped) if len(cropped) else None,
    )


def _tidied(mask: np.ndarray, truth: np.ndarray) -> float:
    """The Dice of a mask without its islands minus that of all of it."""
    return dice(without_islands(mask), truth) - dice(mask, truth)


def _near(holds: np.ndarray, step_mm: float) -> np.ndarray:
    """Which slices hold the target or lie within `MARGIN_MM` of one that does; `holds` bool (slices,)."""
    reach = math.ceil(MARGIN_MM / step_mm)
    return np.convolve(holds, np.ones(2 * reach + 1), mode="full")[reach : reach + len(holds)] > 0


def _voxels(p: np.ndarray, readings: np.ndarray) -> Histogram:
    reached = p >= REACHED
    if not reached.any():
        return np.zeros(0), np.zeros(0, bool), np.zeros(0)
    parts = [histogram(p[reached], drawn[reached]) for drawn in readings]
    joined = _joined(parts)
    return joined[0], joined[1], joined[2] / len(readings)


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
    return Calibration(
        max(entry.drawn for entry in evidence),
        voxel,
        consensus=consensus,
        one_piece=one_piece_of(by_subject(lambda e: e.tidied)),
        presence=presence_by_target(evidence, false_alarms, scored),
        missed=by_subject(lambda e: e.missed),
        false=by_subject(lambda e: e.false),
        dice=by_subject(lambda e: e.dice[index[e.target]]),  # type: ignore[index]
        volume_errors=by_subject(lambda e: volume_error(float(e.sizes[index[e.target]]))),  # type: ignore[index]
        about={**(about or {}), **told},
    )


def presence_by_target(evidence: Sequence[Evidence], rate: float, calibrator: Calibrator) -> dict[str, Presence]:
    """When each target is found: those of one set of scans are judged together, by its subjects."""
    by_set: dict[str, list[Evidence]] = defaultdict(list)
    for entry in evidence:
        by_set[entry.subject.split("/")[0]].append(entry)
    found = {}
    for own in by_set.values():
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
    everyone = _joined(subjects)
    if everyone[1].all() or not everyone[1].any():
        return Identity(), {}
    folds = min(FOLDS, len(subjects))
    figures: dict[str, Any] = {"ece": reliability(everyone[0], everyone[1], weight=everyone[2]).ece}
    if folds == 1:
        return Temperature.fit(*everyone), figures
    left_out: dict[str, tuple[list[np.ndarray], list[np.ndarray]]] = {kind: ([], []) for kind in CALIBRATORS}
    for fold in range(folds):
        rest = _joined([one for i, one in enumerate(subjects) if i % folds != fold])
        out = _joined(subjects[fold::folds])
        for kind, made in CALIBRATORS.items():
            both = rest[1].any() and not rest[1].all()
            left_out[kind][0].append((made.fit(*rest) if both else Identity())(out[0]))
            left_out[kind][1].append(out[2])
    truths = np.concatenate([_joined(subjects[fold::folds])[1] for fold in range(folds)])
    scores = {}
    for kind, (parts, weights) in left_out.items():
        p, w = np.concatenate(parts), np.concatenate(weights)
        scores[kind] = nll(p, truths, w)
        figures[kind] = {"left_out_nll": scores[kind], "left_out_ece": reliability(p, truths, weight=w).ece}
    best = min(scores, key=lambda kind: scores[kind])
    return CALIBRATORS[best].fit(*everyone), figures


def _joined(parts: Sequence[Histogram]) -> Histogram:
    p, y, w = (np.concatenate([part[i] for part in parts]) for i in range(3))
    return p, y, w


@dataclass(frozen=True)
class CalibrateRequest:
    """A model to be calibrated on held-out subjects.

    Attributes:
        model: its folder.
        datasets: as in `delineate.jobs.train.TrainRequest`, and so are target, modality and fold.
        split: whose subjects: "val", "test" or "all"; not those it was trained on.
        n: masks a target; guarantees hold for this many.
        false_alarms: how often a target that is not there may be called found.
    """

    model: Path
    datasets: Sequence[Path | str]
    split: str = "val"
    n: int = 8
    false_alarms: float = FALSE_ALARMS
    target: Sequence[str] | None = None
    modality: str | None = None
    fold: Fold | None = None


def calibrate_model(
    request: CalibrateRequest, output: Path | None = None, *, device: str = "cpu", watch: Watch = Nobody()
) -> Calibration:
    """Calibrate the model in a folder, which is replaced as a whole (or written to `output`).

    Raises:
        DelineateError: as `calibrate_folder`, or a dataset cannot be opened.
    """
    named = [parse_named(text, request.target, request.modality) for text in request.datasets]
    datasets = open_all(named, request.fold)
    watch.start(f"segmenting the {request.split} split")
    return calibrate_folder(
        request.model,
        datasets,
        fold=request.fold,
        split=request.split,
        n=request.n,
        false_alarms=request.false_alarms,
        device=device,
        output=output,
        on_step=watch.update,
    )


def calibrate_folder(
    model: Path,
    datasets: Sequence[Dataset],
    *,
    fold: Fold | None = None,
    split: str = "val",
    n: int = 8,
    false_alarms: float = FALSE_ALARMS,
    kinds: bool = True,
    device: str = "cpu",
    output: Path | None = None,
    on_step: Callable[[float], None] = lambda share: None,
) -> Calibration:
    """The same on datasets at hand.

    Args:
        model: its folder.
        datasets: labelled.
        fold: as in `CalibrateRequest`, and so are `split`, `n` and `false_alarms`.
        split: whose subjects.
        n: masks a target.
        false_alarms: how often a target that is not there may be called found.
        kinds: whether the model is taught to tell these kinds of scan from others, too (`jobs.recognising`).
        device: to work on.
        output: for a calibrated copy.
        on_step: told the share of the work that is done.

    Raises:
        ModelError: no model there.
        DelineateError: the model was trained on the subjects of the split.
        DatasetError: as `calibrate`.
    """
    seen = trained_on(check_model(model)[1]["training"])
    for dataset in datasets:
        refuse_seen(seen, dataset, fold, "the model")
        if split in ("train", "all") and any(is_of(entry, dataset) for entry in seen):
            raise DatasetError(
                f"{dataset.root}: the model was trained on its train split; calibrate on another (--split)"
            )
    segmenter = Segmenter.load(model, device, calibrated=False)
    found = calibrate(
        segmenter,
        datasets,
        split=split,
        n=n,
        false_alarms=false_alarms,
        on_step=lambda share: on_step(0.9 * share if kinds else share),
    )
    if kinds:

        def report(share: float) -> None:
            on_step(0.9 + 0.1 * share)

        found = replace(found, recogniser=recogniser_of(segmenter, datasets, split=split, on_step=report))
    save_calibration(Path(model), found, output)
    return found


def save_calibration(model: Path, calibration: Calibration, output: Path | None = None) -> None:
    """Put a calibration into a model folder, whole or not at all; into a copy at `output` where one is named.

    Raises:
        ModelError: `model` is no sound model folder, or `output` is something else.
    """
    check_model(model)
    if output is None and model.is_symlink():
        raise ModelError(f"{model}: is a link; name the folder itself")
    with sealed.sealing(output or model, is_model, "model") as building:
        shutil.copytree(
            model, building, dirs_exist_ok=True, ignore=shutil.ignore_patterns(sealed.MANIFEST, ".*", *FILES)
        )
        calibration.save(building)
