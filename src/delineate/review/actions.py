"""What an action of a person comes to: the event to be logged, with the voxels that change."""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import numpy as np

from delineate.review import editing, schema
from delineate.review.answers import Answer
from delineate.review.runs import NOTHING, from_pairs, mask_of, pack, toggles_of, xor
from delineate.review.work import NotHere, Work, WorkError
from delineate.storage.hidden import without_hidden

MOST_LAYERS = 200  # of one case


def event_of(
    action: schema.Action, work: Work, answers: Mapping[str, Answer], spacing_mm: tuple[float, float, float]
) -> dict[str, Any] | None:
    """The event of an action, as `Log.append` takes it; None where nothing would change.

    Args:
        action: what the person wants.
        work: as it is; it is left alone.
        answers: by id.
        spacing_mm: of the scan.

    Raises:
        NotHere: no such layer, answer or proposal.
        RunsError: voxels outside the scan, or twice the same.
        WorkError: nothing to undo, or too many layers.
        ScanError: a mask of the answer is missing or damaged.
    """
    match action:
        case schema.Step():
            return {"kind": action.kind, "of": work.undoable(action.kind)}
        case schema.AddLayer():
            return {"kind": action.kind, **_new(work, action.name)}
        case schema.RenameLayer():
            old = work.layer(action.layer).name
            detail = {"from": old, "to": action.name}
            return None if old == action.name else {"kind": action.kind, "layer": action.layer, "detail": detail}
        case schema.RemoveLayer():
            return {"kind": action.kind, "layer": work.layer(action.layer).id}
        case schema.Pick():
            return _pick(action, work, answers)
        case schema.Combine():
            return _combine(action, work, answers)
        case schema.Paint():
            work.layer(action.layer)
            return _event(action, from_pairs(action.flips, work.size), {"tool": action.tool})
        case _:
            return _edit(action, work, spacing_mm)


def _event(action: Any, flips: np.ndarray, detail: dict[str, Any] | None = None) -> dict[str, Any] | None:
    if len(flips) == 0:
        return None
    return {"kind": action.kind, "layer": action.layer, "detail": detail, "flips": pack(flips)}


def _new(work: Work, name: str) -> dict[str, Any]:
    if len(work.layers) >= MOST_LAYERS:
        raise WorkError(f"a case has {MOST_LAYERS} layers at most; remove one first")
    layer, new = work.new_layer(name)
    return {"layer": layer, "detail": {"new": new}}


def _answer(answers: Mapping[str, Answer], answer: str) -> Answer:
    if answer not in answers:
        raise NotHere(f"no answer '{answer}' here; look at the case again")
    return answers[answer]


def _pick(action: schema.Pick, work: Work, answers: Mapping[str, Answer]) -> dict[str, Any] | None:
    answer = _answer(answers, action.answer)
    before = None if action.layer is None else work.layer(action.layer)
    mask = answer.consensus(work.shape) if action.proposal is None else answer.proposal(action.proposal, work.shape)
    detail = {"answer": action.answer, "proposal": action.proposal, "how": action.how}
    if before is None:
        return _into_new(action.kind, work, answer, mask, {**detail, "how": "replace"})
    old = mask_of(before.toggles, work.shape)
    match action.how:
        case "add":
            mask = old | mask
        case "subtract":
            mask = old & ~mask
        case "intersect":
            mask = old & mask
    return _event(action, xor(before.toggles, toggles_of(mask)), detail)


def _combine(action: schema.Combine, work: Work, answers: Mapping[str, Answer]) -> dict[str, Any] | None:
    answer, chosen = _answer(answers, action.answer), sorted(set(action.proposals))
    before = None if action.layer is None else work.layer(action.layer)
    votes = reduce(np.add, (answer.proposal(k, work.shape).astype(np.uint8) for k in chosen))
    needed = {"union": 1, "intersection": len(chosen), "majority": len(chosen) // 2 + 1}[action.how]
    detail = {"answer": action.answer, "proposals": chosen, "how": action.how}
    if before is None:
        return _into_new(action.kind, work, answer, votes >= needed, detail)
    return _event(action, xor(before.toggles, toggles_of(votes >= needed)), detail)


def _into_new(kind: str, work: Work, answer: Answer, mask: np.ndarray, detail: dict[str, Any]) -> dict[str, Any]:
    event = _new(work, work.free_name(without_hidden(answer.info.target or answer.info.prompt)[:70]))
    return {"kind": kind, "layer": event["layer"], "detail": event["detail"] | detail, "flips": pack(toggles_of(mask))}


def _edit(
    action: schema.FillBetween | schema.Smooth | schema.Whole, work: Work, spacing_mm: tuple[float, float, float]
) -> dict[str, Any] | None:
    before = work.layer(action.layer).toggles
    if action.kind == "clear":
        return _event(action, before)
    mask, detail = mask_of(before, work.shape), None
    match action:
        case schema.FillBetween():
            mask, detail = editing.fill_between(mask, action.axis, spacing_mm), {"axis": action.axis}
        case schema.Smooth():
            mask, detail = editing.smooth(mask, action.radius_mm, spacing_mm), {"radius_mm": action.radius_mm}
        case _:
            mask = editing.keep_largest(mask) if action.kind == "keep_largest" else editing.fill_holes(mask)
    after = toggles_of(mask)
    return _event(action, xor(before, after) if len(after) else (before if len(before) else NOTHING), detail)
