"""The kinds of trials: how often each is made, what of the world it needs, and the function that makes one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from fuzzing import dicom, names, nifti, options, pictures, places, sealed, sets, volumes
from fuzzing.trial import Trial
from fuzzing.world import World

Make = Callable[[Random, World, Path], Trial]


@dataclass(frozen=True)
class Kind:
    """A kind of trial.

    Attributes:
        share: how many of a hundred trials.
        make: from random numbers, the world and an empty folder.
        needs: parts of the world.
    """

    share: float
    make: Make
    needs: Sequence[str] = ()


KINDS: dict[str, Kind] = {
    "nifti": Kind(17, nifti.trial, ("ct",)),
    "nifti-same": Kind(5, nifti.same_trial, ("ct",)),
    "volume": Kind(8, volumes.trial, ("ct",)),
    "volume-same": Kind(2, volumes.same_trial, ("ct",)),
    "picture": Kind(10, pictures.trial, ("pictures",)),
    "picture-same": Kind(3, pictures.same_trial, ("pictures",)),
    "dicom": Kind(7, dicom.trial, ("dicom",)),
    "dicom-same": Kind(2, dicom.same_trial, ("dicom",)),
    "names": Kind(9, names.trial, ("scans", "model")),
    "places": Kind(12, places.trial, ("ct", "flat", "scans", "model", "adapter", "edges")),
    "model": Kind(9, sealed.model_trial, ("scans", "model")),
    "adapter": Kind(4, sealed.adapter_trial, ("scans", "model", "adapter")),
    "foundation": Kind(3, sealed.foundation_trial, ("foundation", "edges")),
    "dataset": Kind(10, sets.dataset_trial, ("dataset", "flat", "model", "edges")),
    "answers": Kind(4, sets.answers_trial, ("answers",)),
    "unfinished": Kind(2, sets.unfinished_trial, ("unfinished",)),
    "options": Kind(15, options.trial, ("ct", "flat", "scans", "model", "adapter", "edges")),
}


def shares(count: int, only: Sequence[str]) -> list[tuple[str, int]]:
    """(kind, number) of every trial: kinds by their shares, each at least once where there is room, spread evenly."""
    chosen = {name: kind for name, kind in KINDS.items() if not only or name in only}
    total = sum(kind.share for kind in chosen.values())
    due = dict.fromkeys(chosen, 0.0)
    made = dict.fromkeys(chosen, 0)
    order = []
    for _ in range(count):
        for name, kind in chosen.items():
            due[name] += kind.share / total
        name = max(due, key=lambda one: due[one])
        due[name] -= 1
        order.append((name, made[name]))
        made[name] += 1
    return order


FIRST: dict[str, Callable[[World], object]] = {  # what a kind compares with, made before workers part
    "nifti-same": nifti.usual_volumes,
    "volume-same": nifti.usual_volumes,
    "picture-same": pictures.usual_pixels,
    "dicom-same": dicom.usual_volumes,
}
