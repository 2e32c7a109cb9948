"""The whole job of calibrating: held-out subjects are segmented, compared with their labels, and the model remembers.

Nothing is learnt by the networks. What is found (`delineate.calibration.guarantees.Calibration`) goes into the model
folder beside the weights; the model's fingerprint stays, so that adapters made for it still fit.
"""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from delineate.adapters.folder import is_adapter, read_adapter
from delineate.calibration.calibrators import REACHED, histogram
from delineate.calibration.conformal import false_fraction, missed_fraction, overlaps_above
from delineate.calibration.evidence import FALSE_ALARMS, Evidence, Histogram, calibration_from, calibrators_of, joined
from delineate.calibration.guarantees import FILES, THRESHOLDS, Calibration, together
from delineate.calibration.quality import probable_above
from delineate.data.dataset import Dataset
from delineate.data.folds import Fold, is_of, refuse_seen, trained_on
from delineate.data.named import parse_named
from delineate.errors import DatasetError, DelineateError, ModelError
from delineate.evaluation.alone import EstimateAlone
from delineate.evaluation.protocols.lines import Answered, answers
from delineate.few_shot.shots import only
from delineate.jobs.adapt import with_names
from delineate.jobs.opening import open_all
from delineate.jobs.recognising import local_kind, recogniser_of
from delineate.jobs.watch import Nobody, Watch
from delineate.metrics.overlap import dice
from delineate.model_folder import check_model, is_model
from delineate.proposals.fusion import FOREGROUND
from delineate.proposals.islands import without_islands
from delineate.proposals.target import presence
from delineate.scans.finding import digest_of
from delineate.scans.geometry import canonical_spacing, orientation_of, to_canonical
from delineate.segmenter import Segmenter
from delineate.storage import sealed

MARGIN_MM = 20.0  # along the body: a mask that goes on a little beyond the end of its target is no false alarm


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
            names = [name for name in dataset.targets if name in looking.vocabulary.names]
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
        probable=probable_above(p, THRESHOLDS) if there else None,
        agreement=float(answered.answer.agreement().mean()),
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
    whole = joined(parts)
    return whole[0], whole[1], whole[2] / len(readings)


@dataclass(frozen=True)
class CalibrateRequest:
    """A model to be calibrated on held-out subjects.

    Attributes:
        model: its folder.
        datasets: as in `delineate.jobs.train.TrainRequest`, and so are target, modality and fold.
        split: whose subjects: "val", "test" or "all"; not those it was trained on. None is "val", of local scans all.
        n: masks a target; guarantees hold for this many.
        false_alarms: how often a target that is not there may be called found.
        local: whether these are scans of a place of its own, labelled but not learnt from (`calibrate_local`).
        adapter: the folder of an adapter that is on; `local` then.
    """

    model: Path
    datasets: Sequence[Path | str]
    split: str | None = None
    n: int = 8
    false_alarms: float = FALSE_ALARMS
    target: Sequence[str] | None = None
    modality: str | None = None
    fold: Fold | None = None
    local: bool = False
    adapter: Path | None = None


def calibrate_model(
    request: CalibrateRequest, output: Path | None = None, *, device: str = "cpu", watch: Watch = Nobody()
) -> Calibration:
    """Calibrate the model in a folder, which is replaced as a whole (or written to `output`).

    Raises:
        DelineateError: as `calibrate_folder`, or a dataset cannot be opened.
    """
    named = [parse_named(text, request.target, request.modality) for text in request.datasets]
    if request.local or request.adapter is not None:
        return calibrate_local(request, [folder.open() for folder in named], output, device=device, watch=watch)
    datasets, split = open_all(named, request.fold), request.split or "val"
    watch.start(f"segmenting the {split} split")
    return calibrate_folder(
        request.model,
        datasets,
        fold=request.fold,
        split=split,
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


def calibrate_local(
    request: CalibrateRequest,
    datasets: Sequence[Dataset],
    output: Path | None = None,
    *,
    device: str = "cpu",
    watch: Watch = Nobody(),
) -> Calibration:
    """Calibrate on labelled scans of a place of its own; the model, or the adapter, learns nothing from them.

    With an adapter this is the calibration of both together, and lies in the adapter's folder. Without one it takes the
    place of what the model was told of these targets; of others, and of the kinds of scan, it keeps what it knew, and
    scans like these count as known to it (`calibration.recogniser.Local`).

    Raises:
        ModelError: no model, or no adapter of it.
        DatasetError: as `calibrate`; the model was trained on these subjects, or the adapter on all of them.
        DelineateError: the model was calibrated with another number of proposals.
    """
    if request.fold is not None:
        raise DelineateError("--fold is for sets that a model learnt from; leave it out with --local and --adapter")
    folder, config = check_model(request.model)
    split, seen = request.split or "all", trained_on(config["training"])
    for dataset in datasets:
        refuse_seen(seen, dataset, None, "the model")
        if split in ("train", "all") and any(is_of(entry, dataset) for entry in seen):
            raise DatasetError(
                f"{dataset.root}: the model was trained on its train split; calibrate on another (--split)"
            )
    learnt = set() if request.adapter is None else set(read_adapter(request.adapter).training.get("learnt_from", ()))
    old = None if request.adapter is not None else Calibration.load(folder)
    if old is not None and old.proposals != request.n:
        raise DelineateError(f"{folder}: was calibrated with {old.proposals} proposals; give -n {old.proposals}")
    segmenter = Segmenter.load(folder, device, request.adapter, calibrated=False)
    kept = []
    for dataset in datasets:
        cases = dataset.split(split)
        taught = {case.subject for case in cases if learnt and digest_of(case.image) in learnt}
        subjects = sorted({case.subject for case in cases} - taught)
        if taught:
            watch.say(f"{dataset.root}: the adapter learnt from {len(taught)} of its subjects; they are left out")
        if not subjects:
            raise DatasetError(f"{dataset.root}: no subject is left that nothing was learnt from; label others")
        named, _ = with_names(replace(only(dataset, tuple(subjects)), splits={}), segmenter.vocabulary, {})
        kept.append(named)
    watch.start(f"segmenting {sum(len(d.cases) for d in kept)} scans")
    found = calibrate(
        segmenter, kept, split="all", n=request.n, false_alarms=request.false_alarms, on_step=watch.update
    )
    if old is not None:
        found = together(old, found)
        if found.recogniser is not None:
            kinds = [local_kind(segmenter, dataset, found.recogniser) for dataset in kept]
            recogniser = found.recogniser.with_local([kind for kind in kinds if kind is not None])
            found = replace(found, recogniser=recogniser)
    save_calibration(folder if request.adapter is None else request.adapter, found, output)
    return found


def save_calibration(folder: Path, calibration: Calibration, output: Path | None = None) -> None:
    """Put a calibration into the folder of a model or an adapter, whole or not at all; into a copy at `output` if told.

    Raises:
        ModelError: `folder` is no sound one, or `output` is something else.
    """
    kind, what = (is_adapter, "adapter") if is_adapter(folder) else (is_model, "model")
    if what == "model":
        check_model(folder)
    else:
        read_adapter(folder)
    if output is None and folder.is_symlink():
        raise ModelError(f"{folder}: is a link; name the folder itself")
    with sealed.sealing(output or folder, kind, what) as building:
        shutil.copytree(
            folder, building, dirs_exist_ok=True, ignore=shutil.ignore_patterns(sealed.MANIFEST, ".*", *FILES)
        )
        calibration.save(building)
