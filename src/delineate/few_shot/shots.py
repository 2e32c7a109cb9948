"""A few labelled cases of a dataset to learn from, and others to check by."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from delineate.data.dataset import Case, Dataset
from delineate.errors import DatasetError

HOLD_OUT = ("auto", "val", "rest", "one-out", "none")


@dataclass(frozen=True)
class Shots:
    """Which subjects are learnt from and which are held out, and by what rule.

    `rule` is "val" (the val split), "rest" (others of the pool), "one-out" (each of the shots in turn) or "none".
    """

    drawn: tuple[str, ...]
    held_out: tuple[str, ...]
    rule: str


def draw_shots(dataset: Dataset, count: int | None, *, hold_out: str = "auto", seed: int = 0) -> Shots:
    """Draw `count` subjects to learn from, all of the pool for None, and decide by whom to check.

    The pool is `pool_of` the dataset. Test subjects are never drawn and never checked by. The draws of one seed are
    nested: those of 3 are among those of 5.

    Args:
        dataset: with labels.
        count: of subjects.
        hold_out: "val" needs a val split, "rest" needs subjects of the pool that were not drawn, "one-out" (each
            drawn subject in turn is left out) needs two shots; "auto" takes the first of these that can be, else
            "none".
        seed: of the draw.

    Raises:
        DatasetError: too few subjects.
    """
    if hold_out not in HOLD_OUT:
        raise ValueError(f"hold_out is one of {', '.join(HOLD_OUT)}; got '{hold_out}'")
    pool = pool_of(dataset)
    wanted = len(pool) if count is None else count
    if not 1 <= wanted <= len(pool):
        where = "its train split" if dataset.splits else "it"
        raise DatasetError(f"{dataset.root}: {wanted} shots were asked for, {where} has {len(pool)} labelled subjects")
    order = [pool[i] for i in np.random.default_rng(seed).permutation(len(pool))]
    drawn, rest = tuple(order[:wanted]), tuple(sorted(order[wanted:]))
    val_cases = dataset.split("val") if "val" in dataset.splits else ()
    val = tuple(sorted({case.subject for case in val_cases if case.labels}))
    can_be = {"val": val, "rest": rest, "one-out": drawn if wanted > 1 else ()}
    rule = next((name for name, there in can_be.items() if there), "none") if hold_out == "auto" else hold_out
    if rule != "none" and not can_be[rule]:
        needs = {"val": "a val split", "rest": "labelled subjects beyond the shots", "one-out": "two shots or more"}
        raise DatasetError(f"{dataset.root}: --hold-out {rule} needs {needs[rule]}; take another, or auto")
    return Shots(drawn, can_be.get(rule, ()), rule)


def pool_of(dataset: Dataset) -> list[str]:
    """The labelled subjects that may be learnt from, sorted: of the train split, or all where there are no splits."""
    cases = dataset.split("train" if dataset.splits else "all")
    return sorted({case.subject for case in cases if case.labels})


def only(dataset: Dataset, subjects: Sequence[str]) -> Dataset:
    """The dataset with the real, labelled cases of these subjects alone, all of them in its train split."""
    chosen: tuple[Case, ...] = tuple(c for c in dataset.split("all") if c.subject in set(subjects) and c.labels)
    return replace(dataset, cases=chosen, splits={"train": tuple(subjects), "val": (), "test": ()}, origins={})


def draw_slices(shown: Sequence[bool], subject: Sequence[int], count: int, seed: int) -> list[int]:
    """The places of `count` slices that show a target, as evenly from all subjects as can be.

    Args:
        shown: for every slice, whether it shows any target.
        subject: whose it is.
        count: how many.
        seed: of the draw.

    Raises:
        DatasetError: fewer slices show a target.
    """
    places = np.flatnonzero(np.asarray(shown))
    if len(places) < count:
        raise DatasetError(f"{count} slices were asked for, {len(places)} of the shots show a target; ask for fewer")
    places = np.random.default_rng(seed).permutation(places)
    turn: dict[int, int] = {}
    turns = []
    for place in places:  # the first of every subject, then the second of every subject, …
        turns.append(turn.setdefault(subject[place], 0))
        turn[subject[place]] += 1
    return sorted(int(p) for p in places[np.argsort(turns, kind="stable")][:count])
