"""Radiomic features of a 2-D grey image: first-order and texture (GLCM, GLRLM, GLSZM, NGTDM), plain and filtered.

Names follow PyRadiomics ("original_glcm_Contrast"); definitions the IBSI reference manual (Zwanenburg et al., arXiv
1612.07003), whose four-character codes stand beside them. The whole image is the region of interest. Three choices
differ, all so that images of unequal height or width compare: `Energy` is a mean, non-uniformities are the normalised
ones, and NGTDM sums the differences of a level per pixel. On one matrix of grey levels all others equal PyRadiomics
3.0.1 to rounding; the filters are ours, so compare filtered features only with one another.

Texture is read from 32 grey levels over a range that is FIXED for each filter. With levels spread from each
image's own minimum to its own maximum, one bright pixel would change every texture feature and a loss of contrast none;
intensities here are on a known scale, [-1, 1], so equal levels mean equal intensities in both sets (IBSI 2.7, fixed bin
size). What lies beyond the range falls into the end levels. Where a filter answers 0 to a flat region, 0 is the middle
of a level: at a boundary the least noise would look like texture.
"""

from functools import cache, lru_cache

import numpy as np
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

LEVELS = 32
SMALLEST = 8
"""Pixels that an image must have along each side: texture statistics of fewer say nothing."""

LOG_SIGMAS = (1, 2, 3)
"""Pixels, from fine texture to small structures."""

_PLAIN = (-1.0, 1.0)
_LOG_REACH = 0.5  # an edge from black to white answers with 2 · 0.242 = 0.48, whatever sigma
_WAVELET_REACH = {"LL": None, "LH": 0.5, "HL": 0.5, "HH": 0.25}  # half and a quarter of what can occur
_DIRECTIONS = ((0, 1), (1, 0), (1, 1), (1, -1))  # right, down, down-right, down-left
_FLAT = 0.01  # the least mean difference that NGTDM coarseness divides by; IBSI has 10^6 for a flat image


def features(image: np.ndarray) -> dict[str, float]:
    """Name to value of every feature of one image, finite, always the same names in the same order.

    Args:
        image: (H, W), or (C, H, W) whose channels are averaged; intensities in [-1, 1].

    Raises:
        ValueError: another number of axes, fewer than `SMALLEST` pixels along a side, NaN, or beyond [-1, 1].

    Example:
        >>> found = features(np.zeros((16, 16)))
        >>> found["original_firstorder_Mean"], found["original_glcm_Contrast"]
        (0.0, 0.0)
    """
    image = np.asarray(image, np.float64)
    if image.ndim == 3:
        image = image.mean(axis=0)
    if image.ndim != 2 or min(image.shape) < SMALLEST:
        raise ValueError(f"an image must be (H, W) of {SMALLEST} x {SMALLEST} pixels at least, not {image.shape}.")
    if not (np.abs(image) <= 1 + 1e-6).all():  # NaN fails too
        raise ValueError(f"intensities must lie in [-1, 1], not {image.min():g} to {image.max():g}; normalise first.")
    found = {}
    for name, (filtered, span) in filtered_images(image).items():
        levels = discretise(filtered, span)
        for kind, values in (
            ("firstorder", first_order(filtered, levels)),
            ("glcm", glcm_features(levels)),
            ("glrlm", glrlm_features(levels)),
            ("glszm", glszm_features(levels)),
            ("ngtdm", ngtdm_features(levels)),
        ):
            found |= {f"{name}_{kind}_{feature}": float(value) for feature, value in values.items()}
    return found


@cache
def feature_names() -> tuple[str, ...]:
    """The names of all features, FILTER_CLASS_Feature, in the order of `features`."""
    return tuple(features(np.zeros((SMALLEST, SMALLEST))))


def filtered_images(image: np.ndarray) -> dict[str, tuple[np.ndarray, tuple[float, float]]]:
    """Filter to (filtered image, range of its grey levels): the image itself, LoG at three scales, four sub-bands.

    The Laplacian of Gaussian is scale-normalised, sigma² ∇²G. The wavelet is one level of the stationary Haar
    transform with filters (1, 1)/2 and (1, -1)/2, where both taps lie inside: (H - 1, W - 1). The first letter
    is for the rows' direction (down), the second for the columns' (across).
    """
    out = {"original": (image, _PLAIN)}
    for sigma in LOG_SIGMAS:
        out[f"log-sigma-{sigma}-px"] = (
            sigma**2 * ndimage.gaussian_laplace(image, sigma, mode="nearest"),
            _around_zero(_LOG_REACH),
        )
    down = {"L": (image[1:] + image[:-1]) / 2, "H": (image[1:] - image[:-1]) / 2}
    for band, reach in _WAVELET_REACH.items():
        rows = down[band[0]]
        sign = 1 if band[1] == "L" else -1
        out[f"wavelet-{band}"] = ((rows[:, 1:] + sign * rows[:, :-1]) / 2, _around_zero(reach) if reach else _PLAIN)
    return out


def discretise(image: np.ndarray, span: tuple[float, float]) -> np.ndarray:
    """Grey levels 0 to `LEVELS` - 1 of equal width over `span`, int64 (H, W); IBSI counts them from 1."""
    low, high = span
    return np.clip(np.floor((image - low) * (LEVELS / (high - low))), 0, LEVELS - 1).astype(np.int64)


def _around_zero(reach: float) -> tuple[float, float]:
    """A range of length 2 `reach` with 0 in the middle of level `LEVELS` / 2."""
    return -reach - reach / LEVELS, reach - reach / LEVELS


def first_order(image: np.ndarray, levels: np.ndarray) -> dict[str, float]:
    """Intensity statistics (IBSI 3.3) of an image, entropy and uniformity (3.4) of its levels.

    Standard deviation and its kin divide by the number of pixels; kurtosis is 3 for a Gaussian (IBSI's is 0). Both
    skewness and kurtosis are 0 in a flat image.
    """
    values = image.ravel()
    low, p10, p25, median, p75, p90, high = np.percentile(values, (0, 10, 25, 50, 75, 90, 100))
    mean = values.mean()
    centred = values - mean
    squared = centred**2
    variance = squared.mean()
    deviation = np.sqrt(variance)
    robust = values[(values >= p10) & (values <= p90)]
    flat = deviation < 1e-9
    share = np.bincount(levels.ravel(), minlength=LEVELS) / levels.size
    return {
        "Energy": (values**2).mean(),  # N8CA, a mean instead of a sum
        "Entropy": float(_entropy(share)),  # TLU2
        "Mean": mean,  # Q4LE
        "Median": median,  # Y12H
        "10Percentile": p10,  # QG58
        "90Percentile": p90,  # 8DWT
        "InterquartileRange": p75 - p25,  # SALO
        "Range": high - low,  # 2OJQ
        "MeanAbsoluteDeviation": np.abs(centred).mean(),  # 4FUA
        "RobustMeanAbsoluteDeviation": np.abs(robust - robust.mean()).mean() if robust.size else 0.0,  # 1128
        "RootMeanSquared": np.sqrt((values**2).mean()),  # 5ZWQ
        "StandardDeviation": deviation,  # the root of ECT3
        "Skewness": 0.0 if flat else (squared * centred).mean() / deviation**3,  # KE2M
        "Kurtosis": 0.0 if flat else (squared**2).mean() / variance**2,  # IPH6 + 3
        "Uniformity": (share**2).sum(),  # BJ5W
        "Minimum": low,  # 1GSF
        "Maximum": high,  # 84IY
    }


def glcm(levels: np.ndarray) -> np.ndarray:
    """Co-occurrence probabilities (4, LEVELS, LEVELS): right, down, down-right, down-left; distance 1, symmetric."""
    out = np.empty((4, LEVELS, LEVELS))
    for matrix, direction in zip(out, _DIRECTIONS, strict=True):
        here, there = _neighbours(levels, direction)
        counts = np.bincount((here * LEVELS + there).ravel(), minlength=LEVELS**2).reshape(LEVELS, LEVELS)
        matrix[:] = (counts + counts.T) / (2 * counts.sum())
    return out


def glcm_features(levels: np.ndarray) -> dict[str, float]:
    """Co-occurrence features (IBSI 3.6), each the mean over the four directions; correlation is 1 in a flat image."""
    p = glcm(levels)
    i = np.arange(1, LEVELS + 1, dtype=np.float64)
    marginal = p.sum(axis=2)
    mean = marginal @ i
    variance = marginal @ i**2 - mean**2
    sums, differences = (p.reshape(4, -1) @ table for table in _sum_and_difference())
    k = np.arange(LEVELS)
    tilted = np.arange(2, 2 * LEVELS + 1) - 2 * mean[:, None]
    dissimilarity = differences @ k
    products = np.einsum("dij,i,j->d", p, i, i)
    correlation = np.divide(products - mean**2, variance, out=np.ones(4), where=variance > 1e-9)
    found = {
        "Contrast": differences @ k**2,  # ACUI
        "Correlation": correlation,  # NI2N
        "JointEnergy": (p**2).sum(axis=(1, 2)),  # 8ZQL
        "JointEntropy": _entropy(p.reshape(4, -1)),  # TU9B
        "Idm": differences @ (1 / (1 + k**2)),  # WF0Z
        "InverseVariance": differences[:, 1:] @ (1 / k[1:] ** 2),  # E8JP
        "DifferenceAverage": dissimilarity,  # TF7R, dissimilarity 8S9J
        "DifferenceVariance": differences @ k**2 - dissimilarity**2,  # D3YU
        "DifferenceEntropy": _entropy(differences),  # NTRS
        "SumEntropy": _entropy(sums),  # P6QZ
        "ClusterTendency": (sums * tilted**2).sum(axis=1),  # DG8W
        "ClusterShade": (sums * tilted**3).sum(axis=1),  # 7NFM
        "ClusterProminence": (sums * tilted**4).sum(axis=1),  # AE86
        "MaximumProbability": p.max(axis=(1, 2)),  # GYBY
    }
    return {name: float(values.mean()) for name, values in found.items()}


def glrlm(levels: np.ndarray) -> list[np.ndarray]:
    """Run counts (LEVELS, longest side) for rows, columns and both diagonals; column j holds runs of j + 1 pixels."""
    longest = max(levels.shape)
    flat = levels.ravel()
    out = []
    for order, starts in _lines(levels.shape):
        values = flat[order]
        begins = starts.copy()
        begins[1:] |= values[1:] != values[:-1]
        at = np.flatnonzero(begins)
        length = np.diff(at, append=len(values))
        counts = np.bincount(values[at] * longest + length - 1, minlength=LEVELS * longest)
        out.append(counts.reshape(LEVELS, longest))
    return out


def glrlm_features(levels: np.ndarray) -> dict[str, float]:
    """Run-length features (IBSI 3.7), each the mean over the four directions."""
    names = {
        "small": "ShortRunEmphasis",  # 22OV
        "large": "LongRunEmphasis",  # W4KF
        "levels": "GrayLevelNonUniformityNormalized",  # OVBL
        "sizes": "RunLengthNonUniformityNormalized",  # IC23
        "share": "RunPercentage",  # 9ZK5
        "level_variance": "GrayLevelVariance",  # 8CE5
        "size_variance": "RunVariance",  # SXLW
        "entropy": "RunEntropy",  # HJ9O
        "low": "LowGrayLevelRunEmphasis",  # V3SW
        "high": "HighGrayLevelRunEmphasis",  # G3QZ
    }
    lengths = np.arange(1, max(levels.shape) + 1)
    each = [_sizes_of_one_level(counts, lengths, levels.size) for counts in glrlm(levels)]
    return {name: sum(found[key] for found in each) / len(each) for key, name in names.items()}


def glszm(levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Zone counts (LEVELS, n) and the n sizes in pixels that occur; a zone is of one level, 8-connected."""
    index = np.arange(levels.size).reshape(levels.shape)
    pairs = []
    for direction in _DIRECTIONS:
        here, there = _neighbours(levels, direction)
        equal = here == there
        pairs.append([ends[equal] for ends in _neighbours(index, direction)])
    first, second = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=(levels.size, levels.size))
    count, zone = connected_components(graph, directed=False)
    level_of = np.empty(count, dtype=np.int64)
    level_of[zone] = levels.ravel()
    sizes, which = np.unique(np.bincount(zone), return_inverse=True)
    counts = np.bincount(level_of * len(sizes) + which, minlength=LEVELS * len(sizes))
    return counts.reshape(LEVELS, len(sizes)), sizes


def glszm_features(levels: np.ndarray) -> dict[str, float]:
    """Size-zone features (IBSI 3.8)."""
    names = {
        "small": "SmallAreaEmphasis",  # 5QRC
        "large": "LargeAreaEmphasis",  # 48P8
        "levels": "GrayLevelNonUniformityNormalized",  # Y1RO
        "sizes": "SizeZoneNonUniformityNormalized",  # VB3A
        "share": "ZonePercentage",  # P30P
        "level_variance": "GrayLevelVariance",  # BYLV
        "size_variance": "ZoneVariance",  # 3NSA
        "entropy": "ZoneEntropy",  # GU8N
        "low": "LowGrayLevelZoneEmphasis",  # XMSY
        "high": "HighGrayLevelZoneEmphasis",  # 5GN9
    }
    found = _sizes_of_one_level(*glszm(levels), levels.size)
    return {name: found[key] for key, name in names.items()}


def ngtdm_features(levels: np.ndarray) -> dict[str, float]:
    """Neighbourhood grey tone difference features (IBSI 3.10): each pixel against the mean of its neighbours.

    Neighbours are the up to eight that lie inside. A level's differences are summed and divided by the number of
    pixels, so that size does not matter: `Contrast` and `Complexity` are IBSI's, `Coarseness` and `Strength` are
    larger by the number of pixels, `Busyness` smaller by it.
    """
    around = _box_sum(levels.astype(np.float64)) - levels
    difference = np.abs(levels - around / (_box_sum(np.ones(levels.shape)) - 1))
    counts = np.bincount(levels.ravel(), minlength=LEVELS)
    s = np.bincount(levels.ravel(), weights=difference.ravel(), minlength=LEVELS) / levels.size
    there = np.flatnonzero(counts)
    i, p, s = there + 1.0, counts[there] / levels.size, s[there]
    apart = i[:, None] - i
    pairs = len(i) * (len(i) - 1)
    spread = np.abs((i * p)[:, None] - i * p).sum()
    weighed = (p * s)[:, None] + p * s
    found = {
        "Coarseness": 1 / max(p @ s, _FLAT),  # QCDE
        "Contrast": (p @ apart**2 @ p) * s.sum() / pairs if pairs else 0.0,  # 65HE
        "Busyness": p @ s / spread if spread > 1e-12 else 0.0,  # NQ30
        "Complexity": (np.abs(apart) * weighed / (p[:, None] + p)).sum(),  # HDEZ
        "Strength": ((p[:, None] + p) * apart**2).sum() / s.sum() if s.sum() > 0 else 0.0,  # 1X9X
    }
    return {name: float(value) for name, value in found.items()}


def _sizes_of_one_level(counts: np.ndarray, sizes: np.ndarray, pixels: int) -> dict[str, float]:
    """What runs and zones have in common: features of counts (levels, sizes) of stretches of one grey level."""
    number = counts.sum()
    p = counts / number
    by_level, by_size = p.sum(axis=1), p.sum(axis=0)
    i, j = np.arange(1, LEVELS + 1, dtype=np.float64), sizes.astype(np.float64)
    found = {
        "small": by_size @ j**-2,
        "large": by_size @ j**2,
        "levels": by_level @ by_level,
        "sizes": by_size @ by_size,
        "share": number / pixels,
        "level_variance": by_level @ i**2 - (by_level @ i) ** 2,
        "size_variance": by_size @ j**2 - (by_size @ j) ** 2,
        "entropy": float(_entropy(p.ravel())),
        "low": by_level @ i**-2,
        "high": by_level @ i**2,
    }
    return {name: float(value) for name, value in found.items()}


def _neighbours(values: np.ndarray, direction: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Each pixel that has a neighbour in `direction` (rows, columns), and that neighbour: two arrays of one shape."""
    (dy, dx), (height, width) = direction, values.shape
    here = values[: height - dy, max(0, -dx) : width - max(0, dx)]
    return here, values[dy:, max(0, dx) : width + min(0, dx)]


def _entropy(p: np.ndarray) -> np.ndarray:
    """Bits, over the last axis."""
    return -(p * np.log2(p, out=np.zeros_like(p), where=p > 0)).sum(axis=-1)


def _box_sum(values: np.ndarray) -> np.ndarray:
    """The sum over each pixel and its eight neighbours, what is outside being 0."""
    return ndimage.convolve(values, np.ones((3, 3)), mode="constant")


@cache
def _sum_and_difference() -> tuple[np.ndarray, np.ndarray]:
    """Tables (LEVELS², n) that gather a flat co-occurrence matrix by i + j and by |i - j|."""
    i, j = np.divmod(np.arange(LEVELS**2), LEVELS)
    return np.eye(2 * LEVELS - 1)[i + j], np.eye(LEVELS)[np.abs(i - j)]


@lru_cache(maxsize=64)
def _lines(shape: tuple[int, int]) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """For rows, columns, both diagonals: the pixels' flat indices line after line, and where each line starts."""
    row, column = np.indices(shape).reshape(2, -1)
    out = []
    for line in (row, column, column - row, column + row):
        order = np.argsort(line, kind="stable")
        sorted_lines = line[order]
        starts = np.ones(len(line), dtype=bool)
        starts[1:] = sorted_lines[1:] != sorted_lines[:-1]
        out.append((order, starts))
    return tuple(out)
