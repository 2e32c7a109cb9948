"""Frames in space become a stack: which plane, in which order, at which spacing, tilted or not. No files here."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from delineate.errors import ScanError

SAME_PLANE = 2e-3  # direction cosines: 0.1 degree, a pixel over the width of 512
REGULAR = 0.1  # of the spacing: how far a slice may lie from its place on a regular grid; beyond 1 % with a note
WIDEST = 4  # steps: what is further apart is a hole and no spacing, if it makes up most of the slices
PART = "Put the slices of each part into a folder of their own"
STRAIGHT = 0.25  # pixels: how far a slice may be displaced from the line through the first and the last


class Plane(NamedTuple):
    """Where one frame lies, in DICOM's LPS mm: its first pixel, the directions of a row and of a column."""

    position: tuple[float, float, float]
    along_row: tuple[float, float, float]
    along_column: tuple[float, float, float]


class Stack(NamedTuple):
    """Frames in order along their normal.

    Attributes:
        order: for every slice the number of its frame, None where a gap is filled.
        origin: (3,) mm LPS, the first pixel of slice 0.
        step: (3,) mm LPS from slice to slice.
        notes: one line for every decision.
        at: for every slice where its frame really lies, counted in slices, if all are to be resampled; () otherwise.
    """

    order: tuple[int | None, ...]
    origin: np.ndarray
    step: np.ndarray
    notes: tuple[str, ...]
    at: tuple[float | None, ...] = ()


def stack(
    name: str,
    planes: Sequence[Plane],
    numbers: Sequence[int],
    thickness: float | None,
    pixel_mm: float,
    *,
    volume: int | None = None,
    fill_gaps: bool = False,
) -> Stack:
    """Put frames in order, whatever order they come in.

    Args:
        name: what messages begin with.
        planes: of the frames.
        numbers: instance numbers; they decide only between frames at the same place (echoes, time points).
        thickness: of a slice in mm, for a single one.
        pixel_mm: the smaller side of a pixel.
        volume: which of several frames at the same place.
        fill_gaps: whether missing slices may be filled in from their neighbours, and uneven ones resampled.

    Raises:
        ScanError: frames in several planes, several at one place without `volume`, a gap without `fill_gaps`, a spacing
            that is not regular, slices that are not on a line.
    """
    check_planes(name, planes)
    normal = normal_of(planes[0])
    points = np.array([plane.position for plane in planes], np.float64)
    heights = points @ normal
    places = _places(heights, [(numbers[n], planes[n].position, n) for n in range(len(planes))])
    order, notes = _chosen(name, places, volume)
    points, heights = points[order], heights[order]
    if len(order) == 1:
        if thickness is None:
            notes.append("one slice without a thickness: taken as 1 mm thick")
        return Stack((order[0],), points[0], normal * (thickness or 1.0), tuple(notes))
    slots, uneven, more = _slots(name, heights, fill_gaps)
    count = slots[-1] + 1
    step = (points[-1] - points[0]) / (count - 1)
    line = points[0] + np.outer(uneven or slots, step)
    aside = points - line
    aside -= np.outer(aside @ normal, normal)
    if (worst := float(np.linalg.norm(aside, axis=1).max())) > max(STRAIGHT * pixel_mm, 0.01):
        raise ScanError(
            f"{name}: the slices of a volume must lie on one line, found one {worst:.2f} mm beside it; they do not "
            "belong together, or were positioned anew: export them as separate series"
        )
    filled: list[int | None] = [None] * count
    at: list[float | None] = [None] * count
    for slot, frame, place in zip(slots, order, uneven or slots, strict=True):
        filled[slot], at[slot] = frame, place
    return Stack(tuple(filled), points[0], step, (*notes, *more), tuple(at) if uneven else ())


def normal_of(plane: Plane) -> np.ndarray:
    """The unit vector (3,) along which slices are counted: row direction × column direction."""
    normal = np.cross(plane.along_row, plane.along_column)
    return normal / np.linalg.norm(normal)


def plane_name(plane: Plane) -> str:
    """axial, coronal or sagittal, with "oblique" before it where it is more than 20 degrees off."""
    normal = np.abs(normal_of(plane))
    name = ("sagittal", "coronal", "axial")[int(normal.argmax())]
    return name if normal.max() > 0.94 else f"oblique {name}"


def check_planes(name: str, planes: Sequence[Plane]) -> None:
    """Refuse frames that do not all lie in the same plane, in words."""
    groups: list[tuple[Plane, int]] = []
    for plane in planes:
        for n, (first, count) in enumerate(groups):
            difference = np.abs(np.array(first[1:]) - np.array(plane[1:])).max()
            if difference < SAME_PLANE:
                groups[n] = (first, count + 1)
                break
        else:
            groups.append((plane, 1))
    if len(groups) == 1:
        return
    if len(groups) > 3 and max(count for _, count in groups) == 1:
        raise ScanError(
            f"{name}: the slices of a volume must be parallel, but each of these {len(groups)} images has its own "
            "orientation (a rotating projection, or a radial scan); it is no volume: name one file of it"
        )
    found: Counter[str] = Counter()
    for plane, count in groups:
        found[plane_name(plane)] += count
    listed = ", ".join(f"{count} {which}" for which, count in found.most_common())
    what = "a localiser" if len(planes) <= 3 * len(groups) else "several planes in one series"
    raise ScanError(
        f"{name}: the slices of a volume must be parallel, found {len(groups)} orientations ({listed}; {what}); "
        "name one file, or put each plane into a folder of its own"
    )


def _places(heights: np.ndarray, keys: list) -> list[list[int]]:
    """Frames grouped by place along the normal, lowest first; within a place in the order of their keys."""
    order = sorted(range(len(heights)), key=lambda n: (heights[n], keys[n]))
    places = [[order[0]]]
    for before, n in pairwise(order):
        if heights[n] - heights[before] < 1e-3:
            places[-1].append(n)
        else:
            places.append([n])
    return [sorted(place, key=lambda n: keys[n]) for place in places]


def _chosen(name: str, places: list[list[int]], volume: int | None) -> tuple[list[int], list[str]]:
    counts = {len(place) for place in places}
    most = max(counts)
    if most == 1:
        if volume not in (None, 0):
            raise ScanError(f"{name}: there is volume 0 only, asked for {volume}; leave volume out")
        return [place[0] for place in places], []
    if len(counts) > 1:
        raise ScanError(
            f"{name}: every position must hold the same number of images, found from {min(counts)} to {most} at one "
            "(several acquisitions, overlapping or cut short); export them as separate series"
        )
    if volume is None or not 0 <= volume < most:
        raise ScanError(
            f"{name}: a scan holds one image a position, found {most} at each of {len(places)} (time points, echoes or "
            f"weightings); choose with volume=0 to {most - 1} (--volume), or export them as separate series"
        )
    return [place[volume] for place in places], [f"image {volume} of {most} at every position, by instance number"]


def _slots(name: str, heights: np.ndarray, fill_gaps: bool) -> tuple[list[int], list[float], list[str]]:
    """For every slice its number on a regular grid; where it lies on it, if none fits all; notes."""
    gaps = np.diff(heights)
    even = heights[0] + np.arange(len(heights)) * (heights[-1] - heights[0]) / (len(heights) - 1)
    step = float((heights[-1] - heights[0]) / (len(heights) - 1))
    off = float(np.abs(heights - even).max() / step)
    if off <= REGULAR:
        said = f"slices up to {off:.0%} of their spacing off a regular grid: taken as regular"
        return list(range(len(heights))), [], [said] if off > 0.01 else []
    step = float(gaps[gaps < 1.5 * gaps.min()].mean())
    times = np.rint(gaps / step)
    wide = [n for n in range(len(gaps)) if gaps[n] > 1.5 * step]
    whole = bool((np.abs(gaps - times * step) <= REGULAR * step * np.maximum(times, 1)).all()) and times.min() >= 1
    if not wide or not whole:
        return _resampled(name, heights, fill_gaps)
    listed = [f"after {heights[n]:.2f} mm, {gaps[n]:.2f} mm wide" for n in wide]
    shown = "; ".join(listed[:8]) + (f"; and {len(listed) - 8} more" if len(listed) > 8 else "")
    absent = int(times.sum()) - len(gaps)
    found = f"{len(wide)} gap{'s' if len(wide) > 1 else ''} in slices {step:.2f} mm apart ({shown} along the normal)"
    if absent >= len(heights) and gaps.max() > WIDEST * step:
        raise ScanError(
            f"{name}: slices must follow one another, found {found}; {absent} slices are missing and {len(heights)} "
            f"there: too many to fill in. {PART}"
        )
    if not fill_gaps:
        raise ScanError(
            f"{name}: slices must follow one another, found {found}; export the series again, or let {absent} missing "
            f"slice{'s' if absent > 1 else ''} be made up from the neighbours with fill_gaps=True (--fill-gaps)"
        )
    slots = [0, *np.cumsum(times.astype(int)).tolist()]
    return slots, [], [f"{absent} missing slices filled in from their neighbours: {found}"]


def _resampled(name: str, heights: np.ndarray, allowed: bool) -> tuple[list[int], list[float], list[str]]:
    """As `_slots`, for slices on no regular grid: one as fine as the smallest step, each slice at its nearest place."""
    gaps, span = np.diff(heights), float(heights[-1] - heights[0])
    found = f"slices must be evenly spaced, found steps from {gaps.min():.3g} to {gaps.max():.3g} mm"
    count = int(np.ceil(span / gaps.min() - 1e-6)) + 1
    if count > 2 * len(heights) and gaps.max() > WIDEST * gaps.min():
        raise ScanError(f"{name}: {found}; they do not belong together. {PART}")
    step = span / (count - 1)
    if not allowed:
        raise ScanError(
            f"{name}: {found}; let them be resampled to one every {step:.3g} mm with fill_gaps=True (--fill-gaps), or "
            "put those of one spacing into a folder of their own"
        )
    at = (heights - heights[0]) / step
    slots = [int(slot) for slot in np.floor(at + 0.5)]  # no two are the same: no gap is smaller than a step
    made = f"resampled to {count} slices {step:.3g} mm apart"
    return slots, at.tolist(), [f"{len(heights)} slices {gaps.min():.3g} to {gaps.max():.3g} mm apart {made}"]
