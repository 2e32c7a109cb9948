"""Which grey values count: windows of CT, percentiles of everything else. NumPy only."""

import numpy as np

CT_WINDOW_HU = (-125.0, 275.0)  # abdominal soft tissue, as in TransUNet's BTCV preparation and SDSeg
PERCENTILES = (0.5, 99.5)  # clips hot vessels and padding in MR, ultrasound and photographs


def is_in_hounsfield_units(voxels: np.ndarray, modality: str | None) -> bool:
    """Whether this is CT as scanners store it, rather than already windowed to grey levels."""
    return modality == "CT" and float(voxels.min()) < -150


def intensity_range(voxels: np.ndarray, modality: str | None) -> tuple[float, float]:
    """The intensities that become -1 and 1.

    CT in Hounsfield units (values below -150 occur) is windowed to `CT_WINDOW_HU`. Everything else, CT that
    comes windowed included, is clipped at the 0.5th and 99.5th percentile of the scan.
    """
    if is_in_hounsfield_units(voxels, modality):
        return CT_WINDOW_HU
    thinned = np.asarray(voxels, dtype=np.float32).reshape(-1)[:: max(1, voxels.size // 2_000_000)]
    low, high = (float(v) for v in np.percentile(thinned, PERCENTILES))
    return (low, high) if high > low else (float(voxels.min()), float(voxels.max()))


def normalise(voxels: np.ndarray, modality: str | None, ends: tuple[float, float] | None = None) -> np.ndarray:
    """Intensities as float32 in [-1, 1], the ends being those of `intensity_range`, of these voxels or as given."""
    voxels = np.asarray(voxels, dtype=np.float32)
    low, high = intensity_range(voxels, modality) if ends is None else ends
    if high - low < np.finfo(np.float32).tiny:  # 2 / (high - low) would be infinite, and 0 times it NaN
        return np.full_like(voxels, -1.0)
    return np.clip((voxels - low) * (2 / (high - low)) - 1, -1, 1).astype(np.float32)
