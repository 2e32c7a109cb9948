"""From a scan to the square working grid of a network, and back.

A scan becomes a stack of axial slices seen as a radiologist sees them; each is scaled, by its spacing to square
pixels, so that its longer side is `size` pixels, and padded to a square. Intensities go to [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, UInt8
from torch import Tensor
from torch.nn import functional as F

from delineate.scans.geometry import canonical_spacing, orientation_of, to_canonical
from delineate.scans.intensity import CT_WINDOW_HU, intensity_range, is_in_hounsfield_units, normalise  # noqa: F401
from delineate.scans.scan import Scan


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


def canonical_fit(scan: Scan, size: int) -> Fit:
    """The fit of a scan's axial slices on a grid of `size` pixels."""
    orientation = orientation_of(scan.affine)
    rows_columns = to_canonical(np.empty(scan.shape, dtype=np.bool_), orientation).shape[1:3]
    return Fit.of(rows_columns, canonical_spacing(scan.affine, orientation)[1:], size)


def stack_of(
    scan: Scan, size: int, only: Sequence[int] | None = None, *, apart_mm: float | None = None
) -> Float[Tensor, "slices 3 size size"]:
    """The scan's axial slices on the grid, all or `only` some: float32 (slices, 3, size, size) in [-1, 1].

    The three channels are the colours of a colour image, and for a grey scan a slice below, the slice and a slice
    above (beyond the ends the last one, and in flat images the slice itself): a 2-D network sees a little depth. The
    neighbours are those nearest to `apart_mm` away, one slice at least; the next ones where it is None, or where the
    scan has no spacing.
    """
    canonical = to_canonical(scan.voxels, orientation_of(scan.affine))
    ends = intensity_range(scan.voxels, scan.modality)
    fit = canonical_fit(scan, size)
    if only is not None and not scan.is_colour:
        apart = slices_apart(scan, apart_mm)
        around = (np.array(only)[:, None] + [-apart, 0, apart]).clip(0, len(canonical) - 1).ravel()
        shown = torch.from_numpy(np.ascontiguousarray(normalise(canonical[around], scan.modality, ends)))
        return fit.to_grid(shown[:, None])[:, 0].unflatten(0, (-1, 3))
    chosen = canonical if only is None else canonical[list(only)]
    slices = torch.from_numpy(np.ascontiguousarray(normalise(chosen, scan.modality, ends)))
    if scan.is_colour:
        return fit.to_grid(slices.permute(0, 3, 1, 2))
    grid = torch.cat([fit.to_grid(chunk[:, None]) for chunk in slices.split(32)])
    return with_neighbours(grid[:, 0], slices_apart(scan, apart_mm))


def slices_apart(scan: Scan, apart_mm: float | None) -> int:
    """How many slices the neighbours of `stack_of` are away."""
    if apart_mm is None or not scan.has_spacing:
        return 1
    return max(1, round(apart_mm / canonical_spacing(scan.affine, orientation_of(scan.affine))[0]))


@dataclass(frozen=True, eq=False)
class View:
    """A scan on the working grid.

    Attributes:
        stack: slices (S, 3, size, size) in [-1, 1], from feet to head; each with its neighbours or its colours.
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


def with_neighbours(slices: Float[Tensor, "slices h w"], apart: int = 1) -> Float[Tensor, "slices 3 h w"]:
    """Grey slices (S, H, W) as (S, 3, H, W): the one `apart` below, itself, the one `apart` above."""
    at = torch.arange(len(slices))
    below, above = slices[(at - apart).clamp(min=0)], slices[(at + apart).clamp(max=len(slices) - 1)]
    return torch.stack([below, slices, above], dim=1)


def to_scan_grid(values: Float[Tensor, "n slices size size"], scan: Scan) -> Float16[np.ndarray, "n i j k"]:
    """Grid values (N, slices, size, size) on the scan's own voxels: float16 (N, I, J, K)."""
    fit = canonical_fit(scan, values.shape[-1])
    orientation = orientation_of(scan.affine)
    out = np.zeros((len(values), *scan.shape), dtype=np.float16)
    some = (values != 0).any(dim=0).flatten(1).any(dim=1)  # most slices do not show the target
    if some.any():
        for volume, proposal in zip(out, values[:, some], strict=True):
            back = fit.from_grid(proposal[:, None].float())[:, 0].clamp(0, 1)
            to_canonical(volume, orientation)[some.numpy()] = back.numpy()
    return out
