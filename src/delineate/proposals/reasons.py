"""What an outcome rests on, in a sentence; where an absent target would be if anywhere."""

from typing import Any

from delineate.proposals.target import Outcome, TargetProposals
from delineate.scans.geometry import orientation_of
from delineate.scans.scan import Scan


def why(target: TargetProposals, scan: Scan) -> str:
    """What the outcome of a known target rests on and what would change it, in a sentence."""
    if target.prompt.marks and target.prompt.marks.positive:
        return "found because a voxel was marked inside; without that mark the score would decide"
    known = target.calibration is not None and target.calibration.presence_of(str(target.name)) is not None
    start, told = target.found_from, ", set by held-out subjects" if known else ""
    score = f"the score {target.score:.3f}"
    if target.outcome is Outcome.LIKELY_ABSENT:
        best = candidate_of(target, scan)
        where = (
            "" if scan.is_flat else f"; of {best['slices_searched']} slices searched {best['slice'] + 1} is likeliest"
        )
        return f"{score} stays below {start:.3f}{told}, from where on it would be found{where}"
    groups = target.distinct()
    differ = 1 - groups[0].weight
    others = f"; {differ:.0%} of the proposals differ from the first" if differ > 0 else ""
    return f"{score} reaches {start:.3f}{told}; below it would be likely absent{others}"


def candidate_of(target: TargetProposals, scan: Scan) -> dict[str, Any]:
    """Where a target that is likely absent would be if anywhere: the slice, its highest probability; what was searched.

    The slice is that of the file, counted from 0 along `axis`; all slices of a scan are searched.
    """
    axis = orientation_of(scan.affine).order[0]
    peaks = target.peak_across(axis)
    best = int(peaks.argmax())
    return {"axis": axis, "slice": best, "probability": round(float(peaks[best]), 4), "slices_searched": len(peaks)}
