"""Cross-validation by subject, and who may score what: no model on subjects that it was trained on."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from delineate.data.dataset import Dataset
from delineate.data.likeness import groups_alike, whole_groups
from delineate.data.synthetic import held_out_by_source
from delineate.errors import DatasetError, DelineateError


class Fold(NamedTuple):
    """Fold `number` (from 1) of `of`; as text "1/4"."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Fold":
        """The fold that `text` ("1/4") names. Raises `DelineateError` if it names none."""
        found = re.fullmatch(r"\s*(\d{1,4})\s*/\s*(\d{1,4})\s*", text)
        fold = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= fold.number <= fold.of or fold.of < 2:
            raise DelineateError(
                f"a fold is NUMBER/OF with NUMBER from 1 to OF and OF at least 2, as 1/4; got '{text}'"
            )
        return fold

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


def fold_of(dataset: Dataset, number: int, of: int, seed: int = 0, val: float = 0.1) -> Dataset:
    """The dataset with the splits of one fold of a k-fold cross-validation, in memory; its own splits do not count.

    "test" is the subjects of fold `number` of `of`; "val" the share `val` of the other subjects, one at least where
    `val` is positive; "train" the rest. Subjects stay whole, and subjects whose images are the same or nearly so stay
    together (`delineate.data.likeness`; some public sets hold twins). Every subject is in the test part of exactly one
    fold; folds differ by at most one such group. The division depends on `seed`, the names of the subjects and which
    of them are alike, not on the order of files.

    Args:
        dataset: with its image files on disk, which are compared.
        number: which fold, from 1.
        of: how many there are, 2 or more.
        seed: of the division; all folds of one cross-validation share it.
        val: from 0 to below 1.

    Raises:
        DelineateError: no such fold or share.
        DatasetError: fewer groups of subjects than folds, none left to train on, or synthetic cases in the dataset.
    """
    fold = Fold.parse(f"{number}/{of}")
    if dataset.origins:
        raise DatasetError(
            f"{dataset.root}: its synthetic cases were made by a model that saw all its train subjects, so no fold of "
            f"it is held out; divide the dataset of real scans: delineate synthesize --fold {fold}"
        )
    if not 0 <= val < 1:
        raise DelineateError(f"val is a share of the subjects from 0 to below 1; got {val}")
    groups = groups_alike((case.subject, case.image) for case in dataset.cases)
    order = sorted(groups, key=lambda group: _lot(f"{seed}", group[0]))
    if len(order) < of:
        raise DatasetError(f"{dataset.root}: {len(order)} groups of subjects are too few for {of} folds; take fewer")
    test = order[number - 1 :: of]
    rest = sorted((group for group in order if group not in test), key=lambda group: _lot(f"{seed} {fold}", group[0]))
    wanted = max(1, round(val * sum(map(len, rest)))) if val else 0
    chosen = whole_groups(rest, wanted)
    train = [group for group in rest if group not in chosen]
    if not train:
        raise DatasetError(f"{dataset.root}: fold {fold} leaves no subject to train on; take more folds")
    parts = {"train": train, "val": chosen, "test": test}
    return replace(
        dataset, splits={part: tuple(sorted(s for group in groups for s in group)) for part, groups in parts.items()}
    )


def _lot(seed: str, name: str) -> bytes:
    """What a group is sorted by: at random, but the same whoever else is there."""
    return hashlib.sha256(f"{seed}\n{name}".encode()).digest()


def held_out(datasets: Sequence[Dataset], fold: Fold | None) -> list[dict[str, Any]]:
    """What a training has to remember of its datasets, so that `refuse_seen` can tell what it may be scored on.

    One entry a dataset: name, fold ("1/4" or None), digests of the names of all its subjects, of its train and of its
    test subjects. No name of a subject is kept. A dataset with synthetic cases has the entries of what these were made
    from, where it tells.
    """
    entries = [
        {
            "name": dataset.name,
            "fold": None if fold is None else str(fold),
            "subjects": _digest(case.subject for case in dataset.cases),
            "train": _digest(dataset.splits.get("train", ())),
            "test": _digest(dataset.splits.get("test", ())),
        }
        for dataset in datasets
    ]
    made_from = [held_out_by_source(dataset.root) if dataset.origins else [] for dataset in datasets]
    return [entry for own, told in zip(entries, made_from, strict=True) for entry in (told or [own])]


def refuse_seen(seen: Sequence[Mapping[str, Any]], dataset: Dataset, fold: Fold | None, what: str) -> None:
    """Stop where `dataset` would hold out subjects that `what` was trained on, in another fold or in none.

    A dataset is one that was trained on if its name or the names of its subjects are the same. Nothing is said of
    splits.json: where neither the training nor this call names a fold, both are taken to follow the same one.

    Args:
        seen: as `held_out` gave it for the training; name and fold of a dataset will do.
        dataset: with the splits of `fold`, by `fold_of`, where there is one.
        fold: the fold asked for now.
        what: "the model", for the message.

    Raises:
        DelineateError: with the fold that can be used.
    """
    for entry in seen:
        if not is_of(entry, dataset):
            continue
        trained, name = entry.get("fold"), dataset.name
        if trained is None and fold is not None:
            raise DelineateError(
                f"{what} was trained on {name} without --fold, on subjects that fold {fold} holds out; "
                f"train one with --fold {fold}"
            )
        if fold is None and trained is not None:
            raise DelineateError(
                f"{what} was trained on fold {trained} of {name}, on subjects that splits.json may hold out; "
                f"add --fold {trained}"
            )
        if fold is not None and trained != str(fold):
            raise DelineateError(
                f"{what} was trained on fold {trained} of {name}, on subjects that fold {fold} holds out; "
                f"use --fold {trained}, or train one with --fold {fold}"
            )
        if fold is not None and entry.get("test", now := _digest(dataset.splits["test"])) != now:
            raise DelineateError(
                f"{what} was trained on fold {trained} of {name} when that held out other subjects; "
                f"bring back the files of then, or train again"
            )


def trained_on(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What `refuse_seen` asks of a model folder's `training`: an entry a dataset, older folders naming it alone."""
    named = [{"name": name, "fold": training.get("fold")} for name in training.get("datasets", ())]
    return list(training.get("held_out") or named)


def is_of(entry: Mapping[str, Any], dataset: Dataset) -> bool:
    """Whether an entry of `trained_on` is of this dataset: the same name, or the same subjects under another."""
    return entry["name"] == dataset.name or entry.get("subjects") == _digest(case.subject for case in dataset.cases)


def learnt_from_train(entry: Mapping[str, Any], dataset: Dataset) -> bool:
    """Whether an entry of `trained_on` tells that exactly the train subjects of this dataset were learnt from."""
    return entry.get("train") == _digest(dataset.splits.get("train", ()))


def _digest(subjects: Any) -> str:
    return hashlib.sha256("\n".join(sorted(set(subjects))).encode()).hexdigest()
