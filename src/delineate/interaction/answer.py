"""An answer with marks: the words' answer, and in the slices that have marks another that heeds them.

Proposals to the words are taken for draws of what is meant, and the marks for evidence. Three things follow.

* **Estimate.** A marks network makes of the slice, the marks and what the words gave there a probability. A system that
  accepts a mask (`Refines`) starts its proposals from it, with the noise fields that they had, and is told the known
  pixels. One that accepts scribbles alone gets these. Proposals of any other system are moved together in log-odds, so
  that their middle is that probability.
* **Weights.** A proposal weighs as much as the marks were to be expected under it, before it was made to agree: the
  consensus heeds weights, and so does the order in which distinct proposals are shown.
* **Certainty.** In the end a marked voxel is in every proposal what it was marked as.

Words that nobody knows are answered by the marks alone, in the slices that have some. Slices without marks keep what
the words gave. What held-out subjects taught of answers to words holds for no answer with marks: it is not calibrated.
"""

from dataclasses import replace
from typing import cast

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from delineate.interaction.clues import voxels_of
from delineate.interaction.marker import Marker
from delineate.prompts.marks import Marks, Voxel
from delineate.prompts.prompt import Prompt
from delineate.proposals.target import Outcome, TargetProposals, presence
from delineate.scans.geometry import orientation_of, to_canonical
from delineate.scans.grid import Fit, canonical_fit, stack_of
from delineate.scans.scan import Scan
from delineate.scans.sparse import Sparse
from delineate.systems.system import Asked, Clue, Refines, Seen, System

BY_MARKS = "held-out subjects were asked in words, without marks"
SUREST = 1e-3  # a proposal's probability is never farther than this from 0 or 1 when it is moved in log-odds
MISTAKEN = 0.05  # the chance that a mark is not meant as it is read; keeps weights from being all or nothing
TOUCHING = np.ones((3, 3, 3), dtype=bool)


def answer_with_marks(
    prompt: Prompt,
    answer: TargetProposals,
    seen: Seen,
    system: System,
    marker: Marker,
    asked: Asked | None,
    *,
    n: int,
    seed: int,
    found_from: float,
    before: TargetProposals | None = None,
) -> TargetProposals:
    """`answer`, that to the words of `prompt`, with the marks of `prompt`.

    Args:
        prompt: words and marks, which lie inside the scan.
        answer: to the words alone; of an unknown prompt, and of one that does not fit the scan, without proposals.
        seen: the scan; it is not encoded again.
        system: that gave the answer.
        marker: reads the marks.
        asked: what the system is asked; None if nobody knows the words, as `answer` says.
        n: proposals, where the marks alone make them; else as many as `answer` has.
        seed: of `answer`.
        found_from: the score from which a target counts as found that has no positive mark.
        before: what came of the same words, scan, n and seed with other marks: slices whose marks are the same are
            taken from it, being what would come again, up to rounding.
    """
    marks, scan = prompt.marks, seen.scan
    if not marks or (answer.drawn is None and not marks.positive):
        return replace(answer, prompt=prompt)
    masks, orientation = marks.to_masks(scan.shape), orientation_of(scan.affine)
    drawn = answer.probabilities
    weights = None if drawn is None else agreement(drawn, masks)
    if drawn is None:
        drawn = np.zeros((n, *scan.shape), np.float16)
    todo = _slices(_signed(marks), scan)
    if before is not None and before.prompt.marks and isinstance(before.drawn, Sparse):
        same = sorted(todo - _slices(_signed(marks) ^ _signed(before.prompt.marks), scan))
        for one, old in zip(drawn, before.drawn.whole(), strict=True):
            to_canonical(one, orientation)[same] = to_canonical(old, orientation)[same]
        todo -= set(same)
    if todo:
        slices = sorted(todo)
        here = np.stack([to_canonical(mask, orientation)[slices] for mask in masks], axis=1)
        fresh = _redrawn(drawn, torch.tensor(slices), torch.from_numpy(here), seen, system, marker, asked, n, seed)
        for one, new in zip(drawn, fresh, strict=True):
            to_canonical(one, orientation)[slices] = new.clamp(0, 1).numpy()
    if prompt.box is not None:
        drawn[:, ~voxels_of(prompt.box, scan)] = 0
    for value, voxels in ((1, marks.positive), (0, marks.negative)):
        if voxels:
            drawn[:, *np.array(voxels).T] = value
    name = answer.name or " ".join(prompt.text.split())
    with_marks = TargetProposals(prompt, name, Outcome.FOUND, 0.0, drawn, weights=weights)
    score = presence(with_marks.mean())
    found = bool(marks.positive) or score >= found_from
    outcome = Outcome.FOUND if found else Outcome.LIKELY_ABSENT
    return replace(
        with_marks, score=score, outcome=outcome, misfit=answer.misfit, found_from=found_from, uncalibrated=BY_MARKS
    )


def _signed(marks: Marks) -> set[tuple[Voxel, bool]]:
    return {(v, True) for v in marks.positive} | {(v, False) for v in marks.negative}


def _slices(marked: set[tuple[Voxel, bool]], scan: Scan) -> set[int]:
    """The axial slices that marked voxels lie in."""
    orientation = orientation_of(scan.affine)
    axis, last = orientation.order[0], scan.shape[orientation.order[0]] - 1
    return {last - voxel[axis] if orientation.flips[0] else voxel[axis] for voxel, _ in marked}


def _redrawn(
    drawn: np.ndarray,
    slices: Tensor,
    here: Tensor,
    seen: Seen,
    system: System,
    marker: Marker,
    asked: Asked | None,
    n: int,
    seed: int,
) -> Tensor:
    """N proposals (N, M, H, W) of the slices with the marks `here` (M, 2, H, W), where words gave `drawn`."""
    scan = seen.scan
    fine, stack = canonical_fit(scan, marker.size), stack_of(seen.prepared.shown, marker.size, slices.tolist())
    shown = on_grid(here, fine)
    if asked is None:
        probability = marker.probability(stack, shown, torch.full((len(slices), marker.size, marker.size), 0.5))
        return _back(marker.draw(probability, shown, n, seed), fine)
    if Clue.MASK in system.accepts:
        own, refining = canonical_fit(scan, system.size), cast(Refines, system)
        given = asked.clues.mask
        start = refining.estimate(seen.features, asked, slices) if given is None else given[slices]
        probability = _moved(marker.probability(stack, shown, _moved(start, own, fine)), fine, own)
        inside, outside = certain(on_grid(here, own))
        clues = replace(asked.clues, slices=slices, inside=inside, outside=outside, mask=probability)
        return _back(system.propose(seen.features, replace(asked, clues=clues), n, seed).probabilities, own)
    if system.accepts & {Clue.POINTS, Clue.SCRIBBLES}:
        own = canonical_fit(scan, system.size)
        inside, outside = certain(on_grid(here, own))
        clues = replace(asked.clues, slices=slices, inside=inside, outside=outside)
        return _back(system.propose(seen.features, replace(asked, clues=clues), n, seed).probabilities, own)
    orientation = orientation_of(scan.affine)
    odds = _log_odds(
        torch.from_numpy(np.stack([to_canonical(one, orientation)[slices.numpy()] for one in drawn])).float()
    )
    middle = odds.mean(dim=0)
    believed = fine.to_grid(middle.sigmoid()[:, None], fill=0.0)[:, 0]
    probability = _back(marker.probability(stack, shown, believed)[None], fine)[0]
    return (odds + (_log_odds(probability) - middle)).sigmoid()


def on_grid(marks: Tensor, fit: Fit) -> Tensor:
    """Marks (M, 2, H, W) of slices on a grid, (M, 2, size, size) bool; where it is coarse, a pixel may be both."""
    return fit.marks_to_grid(marks.flatten(0, 1)).unflatten(0, (-1, 2))


def certain(marks: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels (M, size, size) of marks (M, 2, size, size) that are inside, and those outside: never both."""
    inside, outside = marks.unbind(1)
    return inside & ~outside, outside & ~inside


def agreement(probabilities: np.ndarray, masks: np.ndarray) -> np.ndarray | None:
    """How much each of N proposals (N, I, J, K) weighs after the marks (2, I, J, K): float64 (N,) with sum 1.

    Bayes' rule with even odds before. The probability of a mark is that of the proposal there, but for a chance of
    `MISTAKEN`; the voxels of one stroke are one piece of evidence, their mean in logarithms. None for one proposal.
    """
    if len(probabilities) == 1:
        return None
    evidence = np.zeros(len(probabilities))
    for positive, whole in zip((True, False), masks, strict=True):
        if not whole.any():
            continue
        box = ndimage.find_objects(whole.view(np.uint8))[0]  # strokes are small
        mask = whole[box]
        strokes = np.empty(mask.shape, dtype=np.int32)
        count = int(ndimage.label(mask, TOUCHING, output=strokes))  # type: ignore[call-overload]
        for k, drawn in enumerate(probabilities):
            p = drawn[box][mask].astype(np.float64)
            p = MISTAKEN + (1 - 2 * MISTAKEN) * (p if positive else 1 - p)
            evidence[k] += ndimage.mean(np.log(p), strokes[mask], np.arange(1, count + 1)).sum() if count else 0.0
    weights = np.exp(evidence - evidence.max())
    return weights / weights.sum()


def _moved(values: Tensor, here: Fit, there: Fit) -> Tensor:
    """Values (M, size, size) on another grid of the same slices."""
    return there.to_grid(here.from_grid(values[:, None]), fill=0.0)[:, 0].clamp(0, 1)


def _back(values: Tensor, fit: Fit) -> Tensor:
    """Values (N, M, size, size) on the slices' own pixels, (N, M, H, W)."""
    return torch.stack([fit.from_grid(one[:, None])[:, 0] for one in values])


def _log_odds(p: Tensor) -> Tensor:
    return torch.logit(p.clamp(SUREST, 1 - SUREST))
