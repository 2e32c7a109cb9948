"""What grey values mean and which of them count: windows of CT, percentiles of everything else. NumPy only."""

import numpy as np

CT_WINDOW_HU = (-125.0, 275.0)  # abdominal soft tissue, as in TransUNet's BTCV preparation and SDSeg
PERCENTILES = (0.5, 99.5)  # clips hot vessels and padding in MR, ultrasound and photographs

HAVE_UNITS = frozenset({"CT", "PET", "NM"})  # what a value says is measured, and is never turned round for the eye
AIR_HU = -500  # no other modality stores such values as a rule; CT shows air near -1000
LOWEST_TISSUE_HU = -150  # of a window: CT whose values all lie above may be anything


def is_narrow(dtype: np.dtype) -> bool:
    """Whether these are whole numbers of 16 bits or fewer: a scan keeps such as they are stored."""
    return dtype.kind in "biu" and dtype.itemsize <= 2


def in_hounsfield_units(
    voxels: np.ndarray, modality: str | None, is_volume: bool
) -> tuple[np.ndarray, str | None, tuple[str, ...]]:
    """The voxels, what kind of picture they are, and a note where they, or what was said of them, need one.

    CT is brought to Hounsfield units where the file holds them with an offset; where they cannot be recognised, that is
    said. A volume of no modality is taken for CT where it shows air in Hounsfield units.

    Args:
        voxels: finite; floats are changed in place.
        modality: its code, None where nobody said.
        is_volume: whether it has a place in the world; pictures of no modality are left alone.
    """
    low, high = float(voxels.min()), float(voxels.max())
    if modality == "CT":
        if low < LOWEST_TISSUE_HU:
            return voxels, modality, ()
        if added := _added_to_hu(voxels, low):
            voxels = voxels.astype(np.float32, copy=False)
            voxels -= added
            return voxels, modality, (f"CT stored with {added} added to Hounsfield units: taken off again",)
        told = "cannot be told to be Hounsfield units: scaled by their own percentiles, not by the window of CT"
        return (
            voxels,
            modality,
            (f"CT, but values from {low:g} to {high:g} {told}",),
        )
    if not is_volume:
        return voxels, modality, ()
    if modality is None and low <= AIR_HU:
        return voxels, "CT", (f"taken for CT: values go down to {low:g}",)
    say = "is scaled by its own percentiles; if it is CT, say so (--modality CT)"
    if low <= AIR_HU or (modality is None and low < LOWEST_TISSUE_HU):
        return (
            voxels,
            modality,
            (f"values go down to {low:g}, as in CT, but {modality or 'no modality'} was told: it {say}",),
        )
    if modality is None and (added := _added_to_hu(voxels, low)) and low < added + AIR_HU:
        return voxels, modality, (f"looks like CT stored with {added} added to Hounsfield units: it {say}",)
    return voxels, modality, ()


def _added_to_hu(voxels: np.ndarray, low: float) -> int:
    """What was added to the Hounsfield units of a CT so that none is negative; 0 where there is no sign of it.

    Of what is denser than lung, most of a body lies within 200 HU of water.
    """
    thinned = _thinned(voxels)
    for added in (1024, 32768):
        dense = thinned[thinned > added - 300]
        if low < added - 1100 or dense.size < 0.02 * thinned.size:
            continue
        if (np.abs(dense - added) < 200).mean() < 0.5:
            continue
        air = thinned[thinned < 200]
        noise = air[air > low]  # what was cut off or never scanned is all alike and says little
        air = noise if noise.size > 0.01 * air.size else air
        return 1000 if added == 1024 and air.size and np.median(air) < 12 else added  # air is -1000 HU
    return 0


def _thinned(voxels: np.ndarray) -> np.ndarray:
    return np.asarray(voxels.flat[:: max(1, voxels.size // 2_000_000)], dtype=np.float32)


def is_in_hounsfield_units(voxels: np.ndarray, modality: str | None) -> bool:
    """Whether this is CT as scanners store it, rather than already windowed to grey levels."""
    return modality == "CT" and float(voxels.min()) < LOWEST_TISSUE_HU


def intensity_range(voxels: np.ndarray, modality: str | None) -> tuple[float, float]:
    """The intensities that become -1 and 1.

    CT in Hounsfield units (values below -150 occur) is windowed to `CT_WINDOW_HU`. Everything else, CT that
    comes windowed included, is clipped at the 0.5th and 99.5th percentile of the scan.
    """
    if is_in_hounsfield_units(voxels, modality):
        return CT_WINDOW_HU
    low, high = (float(v) for v in np.percentile(_thinned(voxels), PERCENTILES))
    return (low, high) if high > low else (float(voxels.min()), float(voxels.max()))


def normalise(voxels: np.ndarray, modality: str | None, ends: tuple[float, float] | None = None) -> np.ndarray:
    """Intensities as float32 in [-1, 1], the ends being those of `intensity_range`, of these voxels or as given."""
    voxels = np.asarray(voxels, dtype=np.float32)
    low, high = intensity_range(voxels, modality) if ends is None else ends
    if high - low < np.finfo(np.float32).tiny:  # 2 / (high - low) would be infinite, and 0 times it NaN
        return np.full_like(voxels, -1.0)
    out = voxels - np.float32(low)  # in place from here on: a large picture is large
    out *= np.float32(2 / (high - low))
    out -= 1
    return np.clip(out, -1, 1, out=out)
