"""Intensity inhomogeneity of MR, the bias field of receive coils: to make it, and to take it away.

What a coil is near to looks brighter, by a smooth factor that has nothing to do with tissue. `biased` multiplies such
a field onto a scan, to measure how much of it a model stands; `corrected` estimates it and divides it out by N4
(Tustison et al. 2010, IEEE TMI 29(6):1310, as ITK has it).
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy import ndimage

from delineate.errors import DelineateError, ScanError
from delineate.scans.scan import Scan

WAVES = 6  # plane waves in a field
WAVELENGTHS_MM = (300.0, 600.0)  # a trunk is about 400 mm wide, and coils shade it once or half as often
FEWEST_VOXELS = 16  # along an axis of the grid that N4 works on, where the scan has as many
FINEST_MM = 30.0  # shorter elements of N4's splines would follow organs
ABOVE_ZERO = 0.01  # of the scan's range: added before logarithms, for air


def bias_field(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], strength: float, seed: int
) -> np.ndarray:
    """A smooth positive field to multiply intensities by, float32 (I, J, K).

    Its geometric mean is 1, and its greatest value is (1 + strength) / (1 - strength) times its smallest: that of
    values over [1 - strength, 1 + strength]. BrainWeb's "40 %" is a strength of 0.2. The logarithm is a sum of plane
    waves of `WAVELENGTHS_MM` about the middle of the grid: a seed's pattern is the same at any resolution, and at any
    strength but for its height.

    Args:
        shape: (I, J, K); a grid of one voxel has nothing to vary over, and gets 1.
        spacing_mm: between neighbouring voxels along each axis.
        strength: in [0, 1); 0 gives ones.
        seed: which pattern.

    Raises:
        DelineateError: The strength is outside [0, 1).
    """
    if not 0 <= strength < 1:
        raise DelineateError(f"the strength of a bias field must be at least 0 and below 1, got {strength}; give 0.4")
    draw = np.random.default_rng(seed)
    directions = draw.normal(size=(WAVES, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = 2 * np.pi * directions / draw.uniform(*WAVELENGTHS_MM, size=(WAVES, 1))  # radians a mm
    heights, starts = draw.normal(size=(WAVES, 1)), draw.uniform(0, 2 * np.pi, size=(WAVES, 1))
    i, j, k = (waves[:, [a]] * (np.arange(shape[a]) - (shape[a] - 1) / 2) * spacing_mm[a] for a in range(3))
    # cos(a + b) = cos a cos b - sin a sin b: all voxels in one product, rows by planes
    rows, planes = i + starts, (j[:, :, None] + k[:, None, :]).reshape(WAVES, -1)
    row_parts = np.concatenate([heights * np.cos(rows), -heights * np.sin(rows)]).astype(np.float32)
    pattern = row_parts.T @ np.concatenate([np.cos(planes), np.sin(planes)]).astype(np.float32)
    pattern -= pattern.mean(dtype=np.float64)
    if (extent := float(np.ptp(pattern))) > 0:
        pattern *= float(np.log1p(strength) - np.log1p(-strength)) / extent
    return np.exp(pattern).reshape(shape)


def biased(scan: Scan, strength: float, seed: int) -> Scan:
    """The scan with a bias field multiplied onto its intensities above its darkest, which stays; float32.

    Args:
        scan: of any modality, in colour or grey.
        strength: of `bias_field`, in [0, 1).
        seed: of `bias_field`, which depends on the scan's grid and nothing else of it.

    Raises:
        DelineateError: The strength is outside [0, 1).
    """
    field = bias_field(scan.shape, scan.spacing_mm, strength, seed)
    voxels = np.asarray(scan.voxels, np.float32)
    low = voxels.min()
    voxels = (voxels - low) * (field[..., None] if scan.is_colour else field) + low
    note = f"multiplied by a bias field of strength {strength:g}, seed {seed}"
    return replace(scan, voxels=voxels, notes=(*scan.notes, note))


def corrected(
    scan: Scan, *, shrink_mm: float = 10.0, iterations: Sequence[int] = (50, 50, 50, 50), threads: int = 1
) -> Scan:
    """The scan with its bias field estimated by N4 and divided out, on its own grid; float32.

    Intensities are taken from the scan's darkest on, so that adding a number to them adds it to the result. What is
    darker than Otsu's threshold of their logarithms is air, which N4 leaves out; the median of the rest stays what it
    was. A scan that is the same everywhere, or one line of voxels, comes back unchanged.
    N4 looks for few, sharp grey levels: a field that varies more than tissues differ can mislead it in a single slice.

    Args:
        scan: MR, or of unknown modality; grey.
        shrink_mm: the field is estimated on voxels about this wide; axes with wider ones keep theirs.
        iterations: the most at each level of N4, coarsest first; each halves the elements of its splines, and levels
            that would bring them below `FINEST_MM` along the longest axis are left out.
        threads: of N4; its result may differ in rounding between numbers of threads.

    Raises:
        ScanError: The scan is in colour, or CT.
    """
    name = scan.source or "the scan"
    if scan.is_colour:
        raise ScanError(f"{name}: N4 corrects one intensity a voxel, found a colour picture; leave it uncorrected")
    if scan.modality == "CT":
        raise ScanError(f"{name}: N4 corrects the coils of MR, found CT, which has none; leave it uncorrected")
    voxels = np.asarray(scan.voxels, np.float32)
    low, extent = float(voxels.min()), float(np.ptp(voxels))
    if not extent > np.finfo(np.float32).tiny or sum(n > 1 for n in scan.shape) < 2:
        return replace(scan, voxels=voxels.copy())
    share = (voxels - low) / extent
    log_field, threshold = _n4(share, scan.spacing_mm, shrink_mm, tuple(iterations), threads)
    even = share / np.exp(log_field)
    tissue = share > threshold
    even *= np.median(share[tissue]) / np.median(even[tissue])
    notes = (*scan.notes, "bias field corrected by N4")
    return replace(scan, voxels=even * extent + low, notes=notes)


def _n4(
    share: np.ndarray,
    spacing_mm: tuple[float, float, float],
    shrink_mm: float,
    iterations: tuple[int, ...],
    threads: int,
) -> tuple[np.ndarray, float]:
    """The logarithm of the field of intensities in [0, 1], (I, J, K), and the threshold between air and tissue."""
    import SimpleITK  # here, as it takes a third of a second

    lengths_mm = [(n - 1) * mm for n, mm in zip(share.shape, spacing_mm, strict=True)]
    coarse = _shrunk(share, spacing_mm, shrink_mm)
    axes = [axis for axis in range(3) if share.shape[axis] > 1]

    def image(array: np.ndarray):
        """As ITK has it: (x, y, z) are the axes from last to first, first and last voxels being those of the scan."""
        made = SimpleITK.GetImageFromArray(np.squeeze(array))
        made.SetSpacing([lengths_mm[axis] / (array.shape[axis] - 1) for axis in reversed(axes)])
        return made

    otsu = SimpleITK.OtsuThresholdImageFilter()
    otsu.SetNumberOfWorkUnits(threads)
    otsu.Execute(image(np.log(coarse + ABOVE_ZERO)))
    threshold = float(np.exp(otsu.GetThreshold())) - ABOVE_ZERO
    n4 = SimpleITK.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfWorkUnits(threads)
    levels = 1 + int(np.log2(max(1.0, max(lengths_mm) / FINEST_MM)))
    n4.SetMaximumNumberOfIterations(iterations[:levels])
    n4.Execute(image(coarse + ABOVE_ZERO), image((coarse > threshold).astype(np.uint8)))
    field = n4.GetLogBiasFieldAsImage(image(share))
    return SimpleITK.GetArrayFromImage(field).reshape(share.shape), threshold


def _shrunk(share: np.ndarray, spacing_mm: tuple[float, float, float], shrink_mm: float) -> np.ndarray:
    """The array on voxels about `shrink_mm` wide, blurred before; the first and the last stay at their places."""
    counts = [
        min(n, max(FEWEST_VOXELS, 1 + round((n - 1) * mm / shrink_mm)))
        for n, mm in zip(share.shape, spacing_mm, strict=True)
    ]
    steps = [(n - 1) / max(1, count - 1) for n, count in zip(share.shape, counts, strict=True)]
    blurred = ndimage.gaussian_filter(share, [0.4 * step if step > 1 else 0 for step in steps], mode="nearest")
    return np.asarray(ndimage.zoom(blurred, [c / n for c, n in zip(counts, share.shape, strict=True)], order=1))
