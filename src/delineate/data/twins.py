"""Subjects that look alike and are on both sides of a split: told, and left out of training where asked."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from delineate.data.dataset import Dataset
from delineate.data.folds import is_of, learnt_from_train
from delineate.data.likeness import groups_alike

HELD_OUT = ("val", "test")


def twins_across(dataset: Dataset, parts: Sequence[str] = HELD_OUT) -> dict[str, tuple[str, ...]]:
    """The train subjects that look like a held-out one, each with those it looks like; {} without splits.

    Args:
        dataset: with its image files on disk, which are compared (`delineate.data.likeness`); its splits count.
        parts: which splits are held out.
    """
    train = set(dataset.splits.get("train", ()))
    held = {subject for part in parts for subject in dataset.splits.get(part, ())}
    if not train or not held:
        return {}
    groups = groups_alike((case.subject, case.image) for case in dataset.cases)
    split = ((group, tuple(subject for subject in group if subject in held)) for group in groups)
    return {subject: like for group, like in split if like for subject in group if subject in train}


def without_twins(dataset: Dataset) -> Dataset:
    """The dataset without the train subjects that look like one of val or test; what is held out stays as it is.

    For trainings that must follow a given splits.json, which cannot be mended, and whose figures must not flatter.

        dataset = without_twins(open_dataset("busi", targets=["breast lesion"]))
    """
    twins = twins_across(dataset)
    train = tuple(subject for subject in dataset.splits.get("train", ()) if subject not in twins)
    return replace(dataset, splits={**dataset.splits, "train": train}) if twins else dataset


def twins_in_words(dataset: Dataset, parts: Sequence[str] = HELD_OUT) -> str | None:
    """One line on the train subjects that look like held-out ones, and the way out; None where there are none."""
    twins = twins_across(dataset, parts)
    if not twins:
        return None
    named = ", ".join(f"{subject} like {like[0]}" for subject, like in list(twins.items())[:3])
    count, more = len(twins), ", …" if len(twins) > 3 else ""
    subjects = "a train subject looks" if count == 1 else f"{count} train subjects look"
    return (
        f"{dataset.name}: {subjects} like held-out ones ({named}{more}), so figures on {' and '.join(parts)} flatter; "
        "see delineate check, and put those alike into one split, or use --fold"
    )


def twins_learnt_from(seen: Sequence[Mapping[str, Any]], dataset: Dataset, split: str) -> str | None:
    """`twins_in_words` where a model to be scored on `split` was trained on the dataset with its twins; or None.

    Args:
        seen: as `delineate.data.folds.trained_on` gave it; who learnt from the train subjects that `without_twins`
            leaves has nothing to be told.
        dataset: with the splits of the training.
        split: one of them, or "all".
    """
    own = [entry for entry in seen if is_of(entry, dataset)]
    if split not in HELD_OUT or not own:
        return None
    clean = without_twins(dataset)
    return None if all(learnt_from_train(entry, clean) for entry in own) else twins_in_words(dataset, (split,))
