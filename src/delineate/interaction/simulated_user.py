"""People who mark, simulated: what they mean, and where they click and draw. For training and for measuring.

All maps are bool (H, W) arrays of one slice; every random number comes from the generator that is given. What is meant
is a label, several, a part of one, or something that nobody labelled, so that a network that learns from it learns to
heed marks and not names (Wong et al. 2024, arXiv 2312.07381, do the like with superpixels).
"""

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

SMALLEST = 16  # pixels of a target
EVERYWHERE = np.ones((3, 3), dtype=bool)  # neighbours by side and by corner

Picture = Float[np.ndarray, "3 h w"]
Map = Bool[np.ndarray, "h w"]


def middle(region: Map) -> tuple[int, int]:
    """Row and column of the pixel of the largest component of a region that is farthest from its border."""
    part = _largest(region)
    depth = _depth(np.pad(part, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    return int(row), int(column)


def next_click(truth: Map, answer: Map) -> tuple[int, int, bool] | None:
    """The standard protocol: row, column and sign of a click in the middle of the largest error; None at no error.

    The error is the larger of the largest component that is missed and the largest that is too much.
    """
    missed, added = _largest(truth & ~answer), _largest(answer & ~truth)
    if not (missed.any() or added.any()):
        return None
    positive = bool(missed.sum() >= added.sum())
    return *middle(missed if positive else added), positive


def marks_of_a_round(truth: Map, answer: Map | None, rng: np.random.Generator) -> tuple[Map, Map]:
    """What a person marks as inside and as outside, seeing `answer`: in what it misses, and in what it has too much.

    The first round, with no answer (None), is one in the target and, every other time, one outside of it. At least one
    pixel is marked unless the answer is right.
    """
    inside, outside = np.zeros_like(truth), np.zeros_like(truth)
    if answer is None:
        inside = _some_mark(truth, rng)
        if rng.random() < 0.5:
            outside = _some_mark(~truth & (_around(truth, rng) if rng.random() < 0.7 else True), rng)
        return inside, outside
    missed, added = truth & ~answer, answer & ~truth
    wrong = missed.sum() + added.sum()
    if wrong == 0:
        return inside, outside
    both, in_missed = rng.random() < 0.3, rng.random() < missed.sum() / wrong
    if both or in_missed:
        inside = _some_mark(missed, rng)
    if both or not in_missed:
        outside = _some_mark(added, rng)
    return inside, outside


def marks_at_once(truth: Map, rng: np.random.Generator) -> tuple[Map, Map]:
    """What somebody marks who draws much before looking at any answer.

    Inside one to four strokes, every other time a pixel or two over the edge; outside one to six, long ones through
    everything else and pieces of loops around the target.
    """
    inside, outside = np.zeros_like(truth), np.zeros_like(truth)
    for _ in range(int(rng.integers(1, 5))):
        inside |= _some_mark(truth, rng)
    if rng.random() < 0.5:
        inside = np.asarray(ndimage.binary_dilation(inside, iterations=int(rng.integers(1, 3))), dtype=bool)
    for _ in range(int(rng.integers(1, 7))):
        outside |= (line if rng.random() < 0.6 else contour)(~truth, rng)
    for _ in range(int(rng.integers(0, 3))):
        outside = np.asarray(ndimage.binary_dilation(outside), dtype=bool) & ~truth
    return inside, outside & ~inside


def _some_mark(region: Map, rng: np.random.Generator) -> Map:
    """A click, a line, a centre line or a contour within the region, one to five pixels wide; nothing in nothing."""
    if not region.any():
        return np.zeros_like(region)
    if rng.random() < 0.5:
        region = _component(region, rng)
    kind = rng.random()
    draw = click if kind < 0.45 else line if kind < 0.75 else centre_line if kind < 0.88 else contour
    mark = draw(region, rng)
    if not mark.any():
        mark = click(region, rng)
    for _ in range(int(rng.integers(0, 3))):
        mark = ndimage.binary_dilation(mark) & region
    return mark


def click(region: Map, rng: np.random.Generator) -> Map:
    """One pixel, in the middle every other time."""
    mark = np.zeros_like(region)
    if rng.random() < 0.5:
        mark[middle(region)] = True
    else:
        mark[tuple(rng.choice(np.argwhere(region)))] = True
    return mark


def line(region: Map, rng: np.random.Generator) -> Map:
    """A bent line through a few of its pixels, as far as it stays inside."""
    points = rng.choice(np.argwhere(region), size=int(rng.integers(2, 5))).astype(float)
    along = np.linspace(0, len(points) - 1, 40 * len(points))
    path = np.stack([np.interp(along, np.arange(len(points)), points[:, axis]) for axis in range(2)], axis=1)
    bends = ndimage.gaussian_filter1d(rng.standard_normal(path.shape), 12, axis=0) * rng.uniform(0, 15)
    rows, columns = np.rint(path + bends).astype(int).clip(0, np.array(region.shape) - 1).T
    mark = np.zeros_like(region)
    mark[rows, columns] = True
    return mark & region


def centre_line(region: Map, rng: np.random.Generator) -> Map:
    """Pieces of the ridge of the distance to the border."""
    depth = _depth(region)
    return _pieces(region & (depth >= ndimage.maximum_filter(depth, 3) - 0.2), rng)


def contour(region: Map, rng: np.random.Generator) -> Map:
    """Pieces of a line that follows the border at some depth."""
    depth = _depth(region)
    at = rng.uniform(1, max(1.5, 0.8 * depth.max()))
    return _pieces(region & (np.abs(depth - at) < 0.6), rng)


def draw_target(image: Picture, labels: UInt8[np.ndarray, "h w"], rng: np.random.Generator) -> tuple[Picture, Map]:
    """What is meant, and the slice it is meant in: changed where something is drawn into it.

    Half the time labels; else superpixels, a range of greys, a drawn patch or drawn lines. Never less than `SMALLEST`.
    """
    for _ in range(8):
        kind = rng.random()
        drawn = image
        if kind < 0.5:
            target = _labelled(labels, rng)
        elif kind < 0.62:
            target = _superpixels(image, rng)
        elif kind < 0.74:
            target = _greys(image, rng)
        else:
            target = _patch(labels.shape, rng) if kind < 0.86 else _threads(labels.shape, rng)
            drawn = _painted(image, target, rng)
        if SMALLEST <= target.sum() <= 0.7 * target.size:
            return drawn, target
    target = _patch(labels.shape, rng)
    if not target.any():
        target[target.shape[0] // 4 : -target.shape[0] // 4, target.shape[1] // 4 : -target.shape[1] // 4] = True
    return _painted(image, target, rng), target


def believed(truth: Map, rng: np.random.Generator) -> np.ndarray:
    """A probability as words could have given it: the target grown, shrunk, moved, in part or in the wrong place."""
    mask, kind = np.asarray(truth), rng.random()
    if kind < 0.4:
        grow = ndimage.binary_dilation if rng.random() < 0.5 else ndimage.binary_erosion
        mask = np.asarray(grow(truth, iterations=int(rng.integers(1, 8))), dtype=bool)
    elif kind < 0.7:
        mask = np.roll(np.asarray(truth), rng.integers(-8, 9, size=2).tolist(), axis=(0, 1))
    elif kind < 0.85:
        mask = truth & ~_patch(truth.shape, rng)
    else:
        mask = _patch(truth.shape, rng)
    mask = mask ^ (_patch(truth.shape, rng) & _around(truth, rng)) if rng.random() < 0.3 else mask
    soft = ndimage.gaussian_filter(mask.astype(np.float32), rng.uniform(0.5, 3))
    return soft * rng.uniform(0.5, 1)


def components(region: Map) -> tuple[np.ndarray, int]:
    """The number of its connected piece at every pixel, 0 outside, and how many there are."""
    parts = np.empty(region.shape, dtype=np.int32)
    return parts, int(ndimage.label(region, EVERYWHERE, output=parts))  # type: ignore[call-overload]


def _depth(region: Map) -> np.ndarray:
    """How far every pixel is from the nearest that is not in the region."""
    return np.asarray(ndimage.distance_transform_edt(region))


def _largest(region: Map) -> Map:
    parts, count = components(region)
    return region if count < 2 else parts == 1 + np.bincount(parts.ravel())[1:].argmax()


def _component(region: Map, rng: np.random.Generator) -> Map:
    """One of its components, each pixel being as likely to be hit."""
    parts, count = components(region)
    return region if count < 2 else parts == parts[tuple(rng.choice(np.argwhere(region)))]


def _around(region: Map, rng: np.random.Generator) -> Map:
    return _depth(~region) <= rng.uniform(3, 25)


def _pieces(mark: Map, rng: np.random.Generator) -> Map:
    """What smooth noise leaves of it: all, or some stretches."""
    if rng.random() < 0.3:
        return mark
    return mark & (_noise(mark.shape, rng.uniform(4, 15), rng) > rng.uniform(-1, 0.5))


def _noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Smooth, standard normal values; coarse ones are made on a coarse grid."""
    step = max(1, int(sigma / 3))
    small = rng.standard_normal([side // step + 3 for side in shape], dtype=np.float32)
    field = np.asarray(ndimage.gaussian_filter(small, sigma / step))
    if step > 1:
        field = np.asarray(ndimage.zoom(field, step, order=1))
    field = field[tuple(slice(side) for side in shape)]
    return (field - field.mean()) / max(float(field.std()), 1e-6)


def _labelled(labels: np.ndarray, rng: np.random.Generator) -> Map:
    here = np.unique(labels[labels > 0])
    if len(here) == 0:
        return np.zeros(labels.shape, dtype=bool)
    count = 1 if rng.random() < 0.75 else int(rng.integers(1, len(here) + 1))
    target = np.isin(labels, rng.choice(here, size=count, replace=False))
    return _component(target, rng) if rng.random() < 0.25 else target


def _superpixels(image: Picture, rng: np.random.Generator) -> Map:
    """Basins of the gradient about random seeds: one, or a few that lie together."""
    grey = ndimage.gaussian_filter(image.mean(axis=0), rng.uniform(0.7, 2))
    slope = ndimage.gaussian_gradient_magnitude(grey, 1.0)
    seeds = np.zeros(grey.shape, dtype=np.int16)
    count = int(rng.integers(6, 50))
    seeds[tuple(rng.integers(0, side, size=count) for side in grey.shape)] = np.arange(1, count + 1)
    basins = ndimage.watershed_ift((255 * slope / max(float(slope.max()), 1e-6)).astype(np.uint8), seeds)
    target = basins == rng.integers(1, count + 1)
    for _ in range(int(rng.integers(0, 3))):
        around = np.asarray(ndimage.binary_dilation(target), dtype=bool)
        target = np.isin(basins, np.unique(basins[around])[:3]) | target
    return target


def _greys(image: Picture, rng: np.random.Generator) -> Map:
    """What is as grey as some pixel, or darker or brighter than its surroundings by as much: all of it, or a piece."""
    grey = np.asarray(ndimage.gaussian_filter(image.mean(axis=0), rng.uniform(0.5, 2)))
    if rng.random() < 0.5:
        grey = grey - ndimage.gaussian_filter(grey, rng.uniform(3, 12))
        grey = grey * rng.choice([-1, 1])
        target = grey > max(0.05, float(np.quantile(grey, rng.uniform(0.8, 0.95))))
    else:
        value = float(rng.choice(grey.ravel()))
        target = np.abs(grey - value) < rng.uniform(0.08, 0.3)
    target = np.asarray(ndimage.binary_opening(target), dtype=bool) if rng.random() < 0.3 else target
    parts, _ = components(target)
    target = target & (np.take(np.bincount(parts.ravel()), parts) >= 10)
    return _component(target, rng) if target.any() and rng.random() < 0.5 else target


def _patch(shape: tuple[int, ...], rng: np.random.Generator) -> Map:
    """Smooth shapes, one or all of them."""
    field = _noise(shape, rng.uniform(4, 22), rng)
    target = field > np.quantile(field, rng.uniform(0.7, 0.97))
    return _component(target, rng) if rng.random() < 0.6 else target


def _threads(shape: tuple[int, ...], rng: np.random.Generator) -> Map:
    """Lines where smooth noise is 0, one to five pixels wide: its value over its slope is about their distance."""
    target = np.zeros(shape, dtype=bool)
    for _ in range(int(rng.integers(1, 4))):
        field = _noise(shape, rng.uniform(5, 22), rng)
        slope = np.hypot(*np.gradient(field)) + 1e-6
        target |= (np.abs(field) / slope < rng.uniform(0.5, 2.5)) & (_noise(shape, 12, rng) > rng.uniform(-2, 0.5))
    return target


def _painted(image: Picture, target: Map, rng: np.random.Generator) -> Picture:
    """The slice with the target brighter or darker, more or less see-through, soft-edged."""
    soft = ndimage.gaussian_filter(target.astype(np.float32), rng.uniform(0.3, 1.2)) * rng.uniform(0.5, 1)
    change = rng.uniform(0.15, 0.9) * rng.choice([-1, 1])
    texture = rng.uniform(0, 0.1) * _noise(target.shape, rng.uniform(0.7, 2), rng)
    kept = rng.uniform(0.3, 1)
    inside = image[:, target].mean() + kept * (image - image[:, target].mean()) + change + texture
    return (image + soft * (inside - image)).clip(-1, 1).astype(np.float32)
