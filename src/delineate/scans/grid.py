"""From a scan to the square working grid of a network, and back.

A scan becomes a stack of axial slices seen as a radiologist sees them; each is scaled, by its spacing to square
pixels, so that its longer side is `size` pixels, and padded to a square. Intensities go to [-1, 1].
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import gcd, prod
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Shaped, UInt8
from torch import Tensor
from torch.nn import functional as F

from delineate.scans.channels import modality_of
from delineate.scans.geometry import canonical_spacing, orientation_of, to_canonical
from delineate.scans.intensity import CT_WINDOW_HU, intensity_range, is_in_hounsfield_units, normalise  # noqa: F401
from delineate.scans.scan import Scan
from delineate.scans.sparse import Sparse, packed, place_type, places_of

SLICES_AT_ONCE = 32  # of a scan, at its own resolution: bounds memory
PIXELS_AT_ONCE = SLICES_AT_ONCE * 512 * 512  # likewise, of pictures larger than that


@dataclass(frozen=True)
class Fit:
    """How slices (H, W) lie on a square grid of `size` pixels: scaled to `inner`, padded around."""

    shape: tuple[int, int]
    inner: tuple[int, int]
    size: int

    @classmethod
    def of(cls, shape: tuple[int, int], spacing_mm: tuple[float, float], size: int) -> "Fit":
        """The fit of slices with this shape (rows, columns) and spacing."""
        extent = (shape[0] * spacing_mm[0], shape[1] * spacing_mm[1])
        pixel = max(extent) / size
        rows, columns = (min(size, max(1, round(e / pixel))) for e in extent)
        return cls(shape, (rows, columns), size)

    @property
    def _padding(self) -> tuple[int, int, int, int]:
        rows, columns = self.size - self.inner[0], self.size - self.inner[1]
        return columns // 2, columns - columns // 2, rows // 2, rows - rows // 2

    def to_grid(
        self, slices: Float[Tensor, "batch channels h w"], fill: float = -1.0
    ) -> Float[Tensor, "batch channels size size"]:
        """Slices (B, C, H, W) on the grid, (B, C, size, size), anti-aliased."""
        scaled = F.interpolate(slices, self.inner, mode="bilinear", antialias=True)
        return F.pad(scaled, self._padding, value=fill)

    def labels_to_grid(self, labels: UInt8[Tensor, "batch h w"], ids: list[int]) -> UInt8[Tensor, "batch size size"]:
        """Label slices (B, H, W) on the grid as label ids (B, size, size).

        Each id is scaled as a soft mask and the largest share wins, background being what is left. Unbiased for
        whatever is a grid pixel wide or wider; thinner structures vanish.
        """
        shares = torch.stack([(labels == i).float() for i in ids], dim=1)
        shares = self.to_grid(shares, fill=0.0)
        best, index = shares.max(dim=1)
        background = 1 - shares.sum(dim=1)
        table = torch.tensor(ids, dtype=torch.uint8)
        return torch.where(best >= background, table[index], table.new_zeros(()))

    def marks_to_grid(self, marks: Bool[Tensor, "batch h w"]) -> Bool[Tensor, "batch size size"]:
        """Marked pixels (B, H, W) on the grid, (B, size, size): not one of them vanishes, however small.

        A grid pixel is marked if its middle lies in a marked pixel, or the middle of a marked pixel in it.
        """
        left, _, top, _ = self._padding
        out = marks.new_zeros(len(marks), self.size, self.size)
        nearest = [((torch.arange(i) + 0.5) * s / i).long() for s, i in zip(self.shape, self.inner, strict=True)]
        rows, columns = self.inner
        out[:, top : top + rows, left : left + columns] = marks[:, nearest[0]][:, :, nearest[1]]
        image, row, column = marks.nonzero(as_tuple=True)
        row, column = (
            ((at + 0.5) * i / s).long() for at, s, i in zip((row, column), self.shape, self.inner, strict=True)
        )
        out[image, top + row, left + column] = True
        return out

    def from_grid(self, values: Float[Tensor, "batch channels size size"]) -> Float[Tensor, "batch channels h w"]:
        """Grid values (B, C, size, size) on the slices' own pixels, (B, C, H, W)."""
        left, right, top, bottom = self._padding
        inner = values[..., top : self.size - bottom, left : self.size - right]
        return F.interpolate(inner, self.shape, mode="bilinear", antialias=False)

    def part_from_grid(
        self, values: Float[Tensor, "batch channels size size"]
    ) -> tuple[int, int, tuple[int, int], Callable[[], Iterator[Float[Tensor, "_ channels _ _"]]]]:
        """Of `from_grid` a rectangle outside of which all is zero, to the bit: first row and column, size, and itself.

        It comes in parts of the batch, as often as it is called, so that not all of a large picture is in memory.

        Both sides are cut at multiples of the smallest blocks of grid pixels that are a whole number of the slices'
        pixels. Where such a number is not a power of two, rounding would depend on where one cuts: nothing is cut.
        """
        left, right, top, bottom = self._padding
        inner = values[..., top : self.size - bottom, left : self.size - right]
        some = (inner != 0).flatten(0, -3).any(dim=0)
        grid, own = [], []
        for axis, (pixels, coarse) in enumerate(zip(self.shape, self.inner, strict=True)):
            blocks = gcd(pixels, coarse)
            low, high = 0, blocks
            if (pixels // blocks).bit_count() == 1:
                at = some.any(dim=1 - axis).nonzero()[:, 0]
                step = coarse // blocks
                low = max(0, int(at[0]) // step - 1) if len(at) else 0
                high = min(blocks, int(at[-1]) // step + 2) if len(at) else 0
            grid.append((low * coarse // blocks, high * coarse // blocks))
            own.append((low * pixels // blocks, high * pixels // blocks))
        (rows, columns), (first, last), (left, right) = grid, *own
        part = inner[..., slice(*rows), slice(*columns)]
        size = (last - first, right - left)
        if not part.numel():
            return 0, 0, (0, 0), lambda: iter([part.reshape(*part.shape[:2], 0, 0)])
        some = part.split(max(1, PIXELS_AT_ONCE // prod(size)))
        if len(some) == 1:
            whole = F.interpolate(part, size, mode="bilinear", antialias=False)
            return first, left, size, lambda: iter([whole])
        return first, left, size, lambda: (F.interpolate(o, size, mode="bilinear", antialias=False) for o in some)


def canonical_fit(scan: Scan, size: int) -> Fit:
    """The fit of a scan's axial slices on a grid of `size` pixels."""
    orientation = orientation_of(scan.affine)
    rows_columns = to_canonical(np.empty(scan.shape, dtype=np.bool_), orientation).shape[1:3]
    return Fit.of(rows_columns, canonical_spacing(scan.affine, orientation)[1:], size)


def stack_of(
    scan: Scan, size: int, only: Sequence[int] | None = None, *, apart_mm: float | None = None
) -> Float[Tensor, "slices channels size size"]:
    """The scan's axial slices on the grid, all or `only` some: float32 (slices, 3, size, size) in [-1, 1].

    The three channels are the colours of a colour image, and for a grey scan a slice below, the slice and a slice
    above (beyond the ends the last one, and in flat images the slice itself): a 2-D network sees a little depth. The
    neighbours are those nearest to `apart_mm` away, one slice at least; the next ones where it is None, or where the
    scan has no spacing. A scan of C channels gives as many, (slices, C, size, size), each with its own range of greys,
    and no neighbours.
    """
    if scan.channels:
        own = [replace(scan, voxels=scan.voxels[..., c], channels=()) for c in range(len(scan.channels))]
        kinds = [modality_of(name) for name in scan.channels]
        parts = [_grey_stack(replace(one, modality=kind), size, only) for one, kind in zip(own, kinds, strict=True)]
        return torch.cat(parts, dim=1)
    canonical = to_canonical(scan.voxels, orientation_of(scan.affine))
    ends = intensity_range(scan.voxels, scan.modality)
    fit = canonical_fit(scan, size)
    if only is not None and not scan.is_colour:
        apart = slices_apart(scan, apart_mm)
        around = (np.array(only)[:, None] + [-apart, 0, apart]).clip(0, len(canonical) - 1).ravel()
        shown = torch.from_numpy(np.ascontiguousarray(normalise(canonical[around], scan.modality, ends)))
        return fit.to_grid(shown[:, None])[:, 0].unflatten(0, (-1, 3))
    chosen = canonical if only is None else canonical[list(only)]
    parts = []
    for start in range(0, len(chosen), SLICES_AT_ONCE):
        part = chosen[start : start + SLICES_AT_ONCE]
        if len(part) == 1 and part.size > PIXELS_AT_ONCE:
            colours = np.moveaxis(part[0], -1, 0) if scan.is_colour else part
            grid = [_in_bands(one, fit, lambda band: normalise(band, scan.modality, ends)) for one in colours]
            parts.append(torch.cat(grid, dim=1))
            continue
        shown = torch.from_numpy(np.ascontiguousarray(normalise(part, scan.modality, ends)))
        parts.append(fit.to_grid(shown.permute(0, 3, 1, 2) if scan.is_colour else shown[:, None]))
    return torch.cat(parts) if scan.is_colour else with_neighbours(torch.cat(parts)[:, 0], slices_apart(scan, apart_mm))


def _grey_stack(scan: Scan, size: int, only: Sequence[int] | None) -> Float[Tensor, "slices 1 size size"]:
    """A grey scan's slices without neighbours."""
    return stack_of(scan, size, only)[:, 1:2]


def slices_apart(scan: Scan, apart_mm: float | None) -> int:
    """How many slices the neighbours of `stack_of` are away."""
    if apart_mm is None or not scan.has_spacing:
        return 1
    return max(1, round(apart_mm / canonical_spacing(scan.affine, orientation_of(scan.affine))[0]))


@dataclass(frozen=True, eq=False)
class View:
    """A scan on the working grid.

    Attributes:
        stack: slices (S, 3, size, size) in [-1, 1], from feet to head; each with its neighbours, colours or channels.
        spacing_mm: between slices, rows and columns of the stack.
        modality: of the scan, where it is known.
    """

    stack: Tensor
    spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    modality: str | None = None


def view_of(scan: Scan, size: int, apart_mm: float | None = None) -> View:
    """A scan as systems see it, on a grid of `size` pixels; neighbours as in `stack_of`."""
    between, row, column = canonical_spacing(scan.affine, orientation_of(scan.affine))
    fit = canonical_fit(scan, size)
    rows, columns = (length / inner for length, inner in zip(fit.shape, fit.inner, strict=True))
    return View(stack_of(scan, size, apart_mm=apart_mm), (between, row * rows, column * columns), scan.modality)


def turned(stack: Tensor, turn: int) -> Tensor:
    """Slices (…, size, size) turned by quarters counter-clockwise, and from 4 on then mirrored: one of `TURNS`."""
    out = torch.rot90(stack, turn % 4, (-2, -1)) if turn % 4 else stack  # by nothing would be a copy
    return out.flip(-1) if turn >= 4 else out


def turned_back(stack: Tensor, turn: int) -> Tensor:
    """What undoes `turned`."""
    out = stack.flip(-1) if turn >= 4 else stack
    return torch.rot90(out, -(turn % 4), (-2, -1)) if turn % 4 else out


def with_neighbours(slices: Float[Tensor, "slices h w"], apart: int = 1) -> Float[Tensor, "slices 3 h w"]:
    """Grey slices (S, H, W) as (S, 3, H, W): the one `apart` below, itself, the one `apart` above."""
    out = torch.empty(len(slices), 3, *slices.shape[1:])
    for k in range(len(slices)):  # one by one: there are thousands, and no copy of all is needed
        for channel, at in enumerate((k - apart, k, k + apart)):
            out[k, channel] = slices[min(max(at, 0), len(slices) - 1)]
    return out


def _in_bands(
    picture: Shaped[np.ndarray, "h w"], fit: Fit, shown: Callable[[np.ndarray], np.ndarray]
) -> Float[Tensor, "1 1 size size"]:
    """A large picture on the grid: a band of rows after another is `shown` and made narrow, then all are made low."""
    rows, narrow = max(1, PIXELS_AT_ONCE // picture.shape[1]), []
    for start in range(0, len(picture), rows):
        band = torch.from_numpy(np.ascontiguousarray(shown(picture[start : start + rows])))[None, None]
        narrow.append(F.interpolate(band, (band.shape[2], fit.inner[1]), mode="bilinear", antialias=True))
    return fit.to_grid(torch.cat(narrow, dim=2))


def to_scan_grid(values: Float[Tensor, "n slices size size"], scan: Scan) -> Float16[np.ndarray, "n i j k"]:
    """Grid values (N, slices, size, size) on the scan's own voxels: float16 (N, I, J, K)."""
    return to_scan_voxels(values, scan).dense()


def to_scan_voxels(values: Float[Tensor, "n slices size size"], scan: Scan) -> Sparse:
    """Grid values (N, slices, size, size) on the scan's own voxels, float16, kept where they are not zero.

    Slice by slice: no array is ever as large as the scan. Clipped to [0, 1].
    """
    fit = canonical_fit(scan, values.shape[-1])
    orientation = orientation_of(scan.affine)
    steps = [prod(scan.shape[:axis]) for axis in orientation.order]  # between neighbours, the scan's first axis fastest
    whole = place_type(prod(scan.shape))
    turned = steps[1] < steps[2]  # rows are nearer to one another than columns: they are gone through first
    shown = torch.stack([one.flatten(1).any(dim=1) for one in values]).any(dim=0)  # most slices do not show the target
    some = shown.nonzero()[:, 0].tolist()
    places: list[np.ndarray] = [np.empty(0, whole)]
    kept: list[list[Any]] = [[np.empty(0, np.float16)] for _ in values]  # of each map, slice by slice

    def as_kept(drawn: np.ndarray) -> np.ndarray:
        """Slices (..., rows, columns) with the voxels in the order of the scan."""
        ways = tuple(slice(None, None, -1 if flip else 1) for flip in orientation.flips[1:])
        return np.swapaxes(drawn[..., *ways], -1, -2) if turned else drawn[..., *ways]

    for index in reversed(some) if orientation.flips[0] else some:
        top, left, size, back = fit.part_from_grid(values[:, index, None].float())
        reached = np.zeros(size, bool)
        for part in back():
            reached |= np.logical_or.reduce(_halves(part).view(np.uint16), axis=0)
        inside = places_of(as_kept(reached), whole)
        done = 0
        for part in back():
            for one in as_kept(_halves(part)).reshape(len(part), -1):
                found = np.empty(len(inside), np.float16)
                for start in range(0, len(inside), PIXELS_AT_ONCE):
                    found[start : start + PIXELS_AT_ONCE] = one[inside[start : start + PIXELS_AT_ONCE]]
                kept[done].append(found if len(some) > 1 else packed(found))
                done += 1
        corner = [index, top, left]
        for axis, flip in enumerate(orientation.flips):
            if flip:
                corner[axis] = scan.shape[orientation.order[axis]] - corner[axis] - (1, *size)[axis]
        slow, fast = (2, 1) if turned else (1, 2)
        first = whole(sum(step * start for step, start in zip(steps, corner, strict=True)))
        for start in range(0, len(inside), PIXELS_AT_ONCE):
            some_of = inside[start : start + PIXELS_AT_ONCE]
            along, within = np.divmod(some_of, whole(max(1, (1, *size)[fast])))
            some_of[:] = first + along * whole(steps[slow]) + within * whole(steps[fast])
        places.append(inside)
    if len(some) == 1:
        return Sparse([one[-1] for one in kept], places[-1], scan.shape)
    where = np.concatenate(places)
    rising = np.argsort(where) if steps[0] < max(steps) else slice(None)  # slices are no layers of the scan
    maps = []
    while kept:
        maps.append(packed(np.concatenate(kept.pop(0))[rising]))
    return Sparse(maps, where[rising], scan.shape)


def _halves(part: Tensor) -> np.ndarray:
    """(N, 1, H, W) as float16 (N, H, W), clipped to [0, 1]."""
    return part[:, 0].to(torch.float16).clamp_(0, 1).numpy()
