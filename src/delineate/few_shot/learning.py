"""How an adapter learns from a few scans, and when it stops."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from delineate.adapters.adapter import Adapted
from delineate.data.dataset import IGNORED, Dataset
from delineate.data.slices import SliceBank, build_slices
from delineate.evaluation.evaluation import Row, evaluate
from delineate.few_shot.shots import Shots, draw_slices, only
from delineate.metrics.overlap import dice
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.preparation import Habits, Preparation
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter
from delineate.storage.files import replacing, write_json
from delineate.storage.schema import Name, Share, checked, read_json
from delineate.training.checkpoint import TrainState
from delineate.training.loop import Budget, OnStep, Phase, Run, averaged, train_phases

CHECKED_AT = (0.5,)  # of every stage; its end is checked as well
WARM_UP_IMAGES = 80
PROPOSALS = 4  # for the figures of an adapter's card


@dataclass(frozen=True)
class Check:
    """What checks.json says of a time at which held-out subjects were asked."""

    stage: Name
    share: Share
    dice: Share | None


@dataclass(frozen=True, eq=False)
class Looked:
    """A held-out scan, prepared, the truth of every target in it, and the voxels that nobody labelled."""

    scan: Scan
    truth: Mapping[str, np.ndarray]
    unlabelled: np.ndarray


def learn(
    fresh: Callable[[], Adapted],
    base: Segmenter,
    dataset: Dataset,
    drawn: Shots,
    habits: Habits,
    bank_of: Callable[[Sequence[str]], SliceBank],
    budget: Budget,
    work: Path,
    how: Mapping[str, Any],
) -> tuple[Adapted, list[dict[str, Any]], list[Row]]:
    """Train on the shots and stop where the held-out subjects say.

    Where every shot is held out in turn, each of these trainings and a last one on all have an equal part of the
    budget. The last ends at the check at which the others were best on average.

    Returns:
        The adapted system, its checks, and in that last case the rows of each subject by the training without it.
    """
    if drawn.rule != "one-out":
        held = look_at(dataset, drawn.held_out, habits.preparation)
        adapted = fresh()
        return adapted, train_adapter(adapted, base, bank_of(drawn.drawn), held, habits, budget, work, **how), []
    part, courses = budget.share(1 / (len(drawn.drawn) + 1)), []
    for number, subject in enumerate(drawn.drawn):
        held, place = look_at(dataset, [subject], habits.preparation), work / f"without-{number}"
        bank = bank_of([other for other in drawn.drawn if other != subject])
        courses.append(train_adapter(fresh(), base, bank, held, habits, part, place, early_stop=False, **how))
    mean = [{**at[0], "dice": fmean(one["dice"] for one in at)} for at in zip(*courses, strict=True)]
    best, rows = best_of(mean), []
    for number, subject in enumerate(drawn.drawn):
        adapted = fresh()
        adapted.load(load_file(work / f"without-{number}" / f"check-{best}.safetensors"))
        one = replace(only(dataset, [subject]), splits={"val": (subject,)})
        segmenter = base.adapted(adapted, habits)
        rows += evaluate(segmenter, one, split="val", n=PROPOSALS, seed=how["seed"])
    adapted = fresh()
    train_adapter(adapted, base, bank_of(drawn.drawn), [], habits, part, work / "all", **how)
    adapted.load(load_file(work / "all" / f"check-{best}.safetensors"))
    return adapted, mean, rows


def train_adapter(
    adapted: Adapted,
    base: Segmenter,
    bank: SliceBank,
    held: Sequence[Looked],
    habits: Habits,
    budget: Budget,
    folder: Path,
    *,
    rate: float,
    seed: int = 0,
    early_stop: bool = True,
    on_step: OnStep = lambda stage, state, spent: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Train the adapter's own parameters in the phases of its system.

    At the start, halfway through each stage and at its end the held-out subjects are asked. Each stage, and with it
    the whole, ends with the weights of the best check so far; that may be the start, where an adapter changes nothing.
    Without held-out subjects, or without `early_stop`, the last weights count.

    Returns:
        Of each check the stage, the share of it that was done, and the mean Dice (None without held-out subjects);
        the weights of check i are in `folder/check-<i>.safetensors`.
    """
    segmenter = base.adapted(adapted, Habits(modality=habits.modality))
    written = folder / "checks.json"
    checks: list[dict[str, Any]] = []
    if written.is_file():
        checks = read_json(written)
        checked(checks, list[Check], written, fix=f"remove {folder} and adapt again")

    def check(stage: str, share: float) -> None:
        if any((c["stage"], c["share"]) == (stage, share) for c in checks):
            return  # done before an interruption
        with replacing(folder / f"check-{len(checks)}.safetensors") as path:
            save_file(adapted.weights(), path)
        checks.append({"stage": stage, "share": share, "dice": mean_dice(segmenter, held) if held else None})
        write_json(written, checks)

    check("start", 0.0)
    for number, phase in enumerate(phases_of(adapted, bank, rate)):

        def after_step(name: str, state: TrainState, spent: float) -> None:
            on_step(name, state, spent)
            for share in CHECKED_AT:
                if spent >= share:
                    with averaged(state):
                        check(name, share)

        part = Run(budget.share(phase.share), folder, seed + number, after_step, should_stop)
        train_phases([replace(phase, share=1.0)], part)
        check(phase.name, 1.0)
        if held and early_stop:
            adapted.load(load_file(folder / f"check-{best_of(checks)}.safetensors"))
    return checks


def phases_of(adapted: Adapted, bank: SliceBank, rate: float) -> list[Phase]:
    """The phases of the adapted system, in which nothing but the adapter learns; those it has no part in are out."""
    own = {id(parameter) for parameter in adapted.own.values()}
    phases = []
    for phase in adapted.system.phases(bank):
        if learns := [p for p in phase.module.parameters() if id(p) in own]:
            hyper = replace(phase.hyper, learning_rate=rate, warm_up_images=WARM_UP_IMAGES)
            phases.append(replace(phase, module=nn.ParameterList(learns), hyper=hyper))
    whole = sum(phase.share for phase in phases)
    return [replace(phase, share=phase.share / whole) for phase in phases]


def training_slices(
    dataset: Dataset,
    adapted_to: Vocabulary,
    size: int,
    preparation: Preparation,
    slices: int | None,
    augmentation: str,
    seed: int,
    apart_mm: float | None = None,
) -> SliceBank:
    """The train split as slices whose background may hide what the model knows and the dataset does not annotate."""
    bank = build_slices([dataset], "train", size, vocabulary=adapted_to, prepare=preparation, apart_mm=apart_mm)
    bank = replace(bank, augmentation=augmentation, lumped=True)
    if slices is None:
        return bank
    owners: list[int] = []
    subjects = list(dict.fromkeys(case.subject for case in dataset.cases))
    for case in dataset.split("train"):
        alone = build_slices([replace(only(dataset, [case.subject]), cases=(case,))], "train", size)
        owners += [subjects.index(case.subject)] * len(alone)
    return bank.subset(torch.tensor(draw_slices(bank.present.any(1).tolist(), owners, slices, seed)))


def look_at(dataset: Dataset, subjects: Sequence[str], preparation: Preparation) -> list[Looked]:
    """The labelled scans of these subjects, prepared."""
    looked = []
    for case in only(dataset, subjects).cases:
        scan, ids = dataset.read(case)
        shown = {name: dataset.truth(name, ids) for name in dataset.targets}
        truth = {name: mask for name, mask in shown.items() if mask.any()}
        looked.append(Looked(preparation(scan), truth, ids == IGNORED))
    return looked


def mean_dice(segmenter: Segmenter, held: Sequence[Looked]) -> float:
    """Mean Dice of one proposal over the targets of all held-out scans, each scan counting alike."""
    scores = []
    for looked in held:
        answers = segmenter(looked.scan, list(looked.truth), n=1, anyway=True) if looked.truth else ()
        known = (answer.without(looked.unlabelled) for answer in answers)
        scores += [fmean(dice(a.choose(0), looked.truth[str(a.name)]) for a in known)] if looked.truth else []
    return fmean(scores) if scores else 0.0


def best_of(checks: Sequence[Mapping[str, Any]]) -> int:
    """The first of the checks with the highest Dice."""
    return max(range(len(checks)), key=lambda i: (checks[i]["dice"], -i))
