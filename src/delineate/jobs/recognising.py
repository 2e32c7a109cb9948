"""Teach a segmenter to tell what kind of scan it looks at (`calibration.recogniser`); its networks stay as they are."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delineate.calibration.recogniser import TURNS, Kind, Local, Recogniser, Turns, fit_recogniser, fit_turns
from delineate.data.dataset import Case, Dataset
from delineate.data.strange import strange
from delineate.scans.geometry import orientation_of, to_canonical
from delineate.scans.grid import View, turned, view_of
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter

CASES = 120  # of each dataset that are learnt from, at most
SLICES = 8  # of each of them
SLICES_HELD_OUT = 24
STRANGE = (180, 1440)  # pictures made, at least and at most; between, two for each slice
TURNED = 240  # slices of each dataset of volumes that are learnt from in every way they may lie
FEWEST = 20  # held-out slices that tell how often those that lie as they should are called turned
CONTRAST, BRIGHTNESS = 0.3, 0.3  # of grey values in [-1, 1], by how much they are moved at most
KEPT = 160  # slices of each dataset that strange pictures are made of


def recogniser_of(
    segmenter: Segmenter,
    datasets: Sequence[Dataset],
    *,
    split: str = "val",
    seed: int = 0,
    on_step: Callable[[float], None] = lambda share: None,
) -> Recogniser | None:
    """A recogniser of the kinds of scan in these datasets; None for a system whose features tell no `gist`.

    Args:
        segmenter: as trained.
        datasets: one kind each; their train split is learnt from.
        split: whose scans set the threshold; not those that were trained on.
        seed: of what is drawn and made.
        on_step: told the share of the work that is done.
    """
    rng = np.random.default_rng(seed)
    work = [
        (k, case, part) for k, d in enumerate(datasets) for part in ("train", split) for case in _some(d, part, rng)
    ]
    gists: list[list[np.ndarray]] = [[] for _ in datasets]
    held_out: list[tuple[int, np.ndarray]] = []
    pictures: list[Tensor] = []
    for done, (k, case, part) in enumerate(work):
        view = _seen(segmenter, datasets[k].read(case)[0], SLICES if part == "train" else SLICES_HELD_OUT)
        gist = _gist(segmenter, view)
        if gist is None:
            return None
        if part == "train":
            gists[k].append(gist)
            if len(gists[k]) * len(gist) <= KEPT:
                pictures += [*view.stack]
        else:
            held_out.append((k, gist))
        on_step(0.5 * (done + 1) / len(work))
    learnt = sum(len(gist) for own in gists for gist in own)
    if not learnt or not held_out:
        return None
    made = strange(pictures, min(max(STRANGE[0], 2 * learnt), STRANGE[1]), seed)
    others: list[Any] = []
    for start in range(0, len(made), 16):
        others.append(_gist(segmenter, View(torch.stack(made[start : start + 16]))))
        on_step(0.5 + 0.2 * start / len(made))
    turns = {}
    for k, dataset in enumerate(datasets):
        taught = _turns_of(segmenter, dataset, split)
        if taught is not None:
            turns[dataset.name] = taught
        on_step(0.7 + 0.3 * (k + 1) / len(datasets))
    known = segmenter.vocabulary.names
    kinds = [Kind(d.name, d.modality, tuple(name for name in d.targets if name in known)) for d in datasets]
    found = fit_recogniser(kinds, [np.concatenate(own) for own in gists], np.concatenate(others), held_out)
    return replace(found, turns=turns)


def local_kind(segmenter: Segmenter, dataset: Dataset, recogniser: Recogniser) -> Local | None:
    """All cases of a dataset as a kind of scan that was not learnt from; None of fewer than two cases."""
    told = []
    for case in dataset.cases:
        gist = _gist(segmenter, _seen(segmenter, dataset.read(case)[0], SLICES_HELD_OUT))
        if gist is not None:
            told.append(recogniser.looks(gist))
    known = tuple(name for name in dataset.targets if name in segmenter.vocabulary.names)
    return Local.of(Kind(dataset.name, dataset.modality, known), told) if len(told) > 1 else None


def _turns_of(segmenter: Segmenter, dataset: Dataset, split: str) -> Turns | None:
    """What tells how slices of this kind lie, by those that show a target; None for pictures, mirrored in training."""
    found: dict[str, list[np.ndarray]] = {"train": [], split: []}
    rng = torch.Generator().manual_seed(0)
    for part, own in found.items():
        cases = dataset.split(part)
        for case in cases:
            scan, labels = dataset.read(case)
            if scan.is_flat:
                return None
            shown = np.flatnonzero(to_canonical(labels > 0, orientation_of(scan.affine)).any(axis=(1, 2)))
            if len(shown):
                kept = shown[np.unique(np.linspace(0, len(shown) - 1, 1 + TURNED // len(cases)).round().astype(int))]
                view = view_of(segmenter.habits.preparation(scan), segmenter.system.size, segmenter.habits.apart_mm)
                stack = _moved(view.stack[torch.from_numpy(kept)], rng)
                ways = range(TURNS if part == "train" else 1)
                gists = [_gist(segmenter, replace(view, stack=turned(stack, turn))) for turn in ways]
                own.append(np.stack(gists))  # type: ignore[arg-type]
    if not found["train"] or sum(one.shape[1] for one in found[split]) < FEWEST:
        return None
    every, upright = np.concatenate(found["train"], axis=1), np.concatenate(found[split], axis=1)[0]
    return fit_turns(every.reshape(-1, every.shape[-1]), np.repeat(np.arange(TURNS), every.shape[1]), upright)


def _moved(stack: Tensor, rng: torch.Generator) -> Tensor:
    """Slices in [-1, 1], each second of them with other contrast and brightness, as other scanners and windows have."""
    scale = 1 + CONTRAST * (2 * torch.rand(len(stack), 1, 1, 1, generator=rng) - 1)
    shift = BRIGHTNESS * (2 * torch.rand(len(stack), 1, 1, 1, generator=rng) - 1)
    moved = (stack * scale + shift).clamp(-1, 1)
    return torch.where((torch.arange(len(stack)) % 2 == 1).view(-1, 1, 1, 1), moved, stack)


def _some(dataset: Dataset, split: str, rng: np.random.Generator) -> list[Case]:
    cases = list(dataset.split(split))
    if len(cases) <= CASES:
        return cases
    return [cases[k] for k in sorted(rng.choice(len(cases), CASES, replace=False))]


def _seen(segmenter: Segmenter, scan: Scan, slices: int) -> View:
    """A scan as the system sees it, so many slices of it at most, evenly from end to end."""
    view = view_of(segmenter.habits.preparation(scan), segmenter.system.size, segmenter.habits.apart_mm)
    kept = np.unique(np.linspace(0, len(view.stack) - 1, min(slices, len(view.stack))).round().astype(int))
    return replace(view, stack=view.stack[torch.from_numpy(kept)])


def _gist(segmenter: Segmenter, view: View) -> np.ndarray | None:
    gist = getattr(segmenter.system.see(view), "gist", None)
    return None if gist is None else gist.numpy()
