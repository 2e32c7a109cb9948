"""How far two sets of scans lie apart: an FRD-style Fréchet distance of radiomic features, beside its floor.

After the Fréchet Radiomic Distance (Konz, Osuala et al., arXiv 2412.01496): features of every image, z-scored by the
reference set, a Gaussian fitted to either set, the Fréchet distance d between the two. The paper reports log d (its
equation 3), here `log_distance`. The features are those of `delineate.synthesis.radiomics` rather than PyRadiomics's
464, so figures do not compare with published ones. What the paper leaves to the reader and small sets cannot do without
is the `floor`: the distance that sets of the same kind show by chance.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from delineate.data.layout import declared_modality, read_json
from delineate.errors import DatasetError
from delineate.scans.finding import Found, find_scans
from delineate.scans.grid import canonical_fit, stack_of
from delineate.scans.reading import read_scan
from delineate.synthesis.radiomics import SMALLEST, feature_names, features

WHICH = ("all", "real", "synthetic")
PROVENANCE = "provenance.json"
FEWEST = 8
FEW = 50
"""Images in a set below which the figures carry a warning: sampling noise is then as large as a plain domain shift."""

CLIP = 10.0
"""Standard deviations of the reference at which z-scores are cut: wide of any likely value of a feature, so that one
feature that hardly varies in the reference cannot outweigh the hundreds of others."""

HALVINGS = 10
_CONTENT_ABOVE, _LEAST_CONTENT = -0.9, 0.02  # a slice with fewer pixels above near-black is nearly empty
_LEAST_CONTRAST = 0.01  # standard deviation below which a slice is constant, on a scale from -1 to 1


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Grey images (H, W) in [-1, 1], float32, of varying shape, and for each the name of the scan it was cut from."""

    images: tuple[np.ndarray, ...]
    scans: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class FeatureDifference:
    """One feature in both sets: `shift` of the mean in standard deviations of the reference, and `variance_ratio`.

    The latter is the variance of the other set over the reference's. Both are of the values as they are;
    `contribution`, the squared Fréchet distance of this feature alone, is of those cut at `CLIP`.
    """

    name: str
    shift: float
    variance_ratio: float
    contribution: float

    def in_words(self) -> str:
        """The direction of the difference, such as "2.1 sd higher, 0.5 times the spread"."""
        way = "higher" if self.shift >= 0 else "lower"
        return f"{abs(self.shift):.1f} sd {way}, {np.sqrt(self.variance_ratio):.1f} times the spread"


@dataclass(frozen=True)
class Group:
    """The distance and the floor of the features of one filter or one feature class alone."""

    distance: float
    floor: float


@dataclass(frozen=True)
class Distance:
    """The distance of two sets and what it is made of.

    Attributes:
        distance: d, the Fréchet distance (not squared), in standard deviations of the reference; 0 for equal sets.
        floor: The mean d between random halves of the reference: what chance alone makes of sets of that size.
        n_reference: Images in the reference set.
        n_other: Images in the other set.
        features: Every feature that was used, the largest contribution first.
        groups: By filter ("original", "wavelet-LH", …) and by feature class ("glcm", …).
        dropped: Features that are constant in the reference, which say nothing and cannot be z-scored.
        clipped: The share of the other set's z-scores that were cut at `CLIP`.
        warnings: Lines that whoever reports the distance should repeat.
    """

    distance: float
    floor: float
    n_reference: int
    n_other: int
    features: tuple[FeatureDifference, ...]
    groups: dict[str, Group]
    dropped: tuple[str, ...]
    clipped: float
    warnings: tuple[str, ...]

    @property
    def log_distance(self) -> float | None:
        """Log d, the form of the FRD paper; None where the distance is 0."""
        return float(np.log(self.distance)) if self.distance > 0 else None

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON."""
        return {"distance": self.distance, "log_distance": self.log_distance, **asdict(self)}


def image_set(
    path: Path | str,
    *,
    size: int = 128,
    limit: int = 200,
    modality: str | None = None,
    which: str = "all",
    on_scan: Callable[[float], None] = lambda share: None,
) -> ImageSet:
    """At most `limit` 2-D images of a dataset folder, a folder of scans, or one scan.

    Volumes give axial slices. Every image is brought to the working grid of `size` pixels (longer side), then the
    padding that makes it square is cut off again: features see the scan alone, and its shape only through texture.
    Slices that are constant or nearly empty do not count. Of more scans than `limit`, evenly spaced ones are read; each
    has an equal share of the limit and gives evenly spaced slices. No chance is involved.

    Args:
        path: A scan; a folder of scans; or a folder with imagesTr/ or images/, whose dataset.json names the modality.
        size: Pixels of the longer side of each slice.
        limit: The most images in all.
        modality: CT, MR, US, …, instead of what dataset.json says.
        which: "real" or "synthetic" takes those cases alone; the folder's provenance.json, an object with the key
            "synthetic", names the synthetic ones.
        on_scan: Told the share of scans read.

    Raises:
        ScanError: Nothing at `path`, or a scan in it cannot be read.
        DatasetError: `which` without a usable provenance.json, or no image left.
    """
    if which not in WHICH:
        raise ValueError(f"which must be one of {', '.join(WHICH)}, not '{which}'.")
    if limit < 1:
        raise ValueError(f"limit must be 1 or more, not {limit}.")
    path = Path(path)
    folder = next((path / name for name in ("imagesTr", "images") if (path / name).is_dir()), path)
    scans = [scan for scan in find_scans(folder) if not _is_second_channel(scan.path)]
    if which != "all":
        scans = _of_origin(scans, path, which)
    if modality is None and path.is_dir():
        modality = declared_modality(read_json(path / "dataset.json"), path)
    scans = _evenly(scans, limit)
    share, more = divmod(limit, len(scans))
    images, names = [], []
    for number, scan in enumerate(scans):
        taken = _evenly(_slices(scan, size, modality), share + (number < more))
        images += taken
        names += [scan.name] * len(taken)
        on_scan((number + 1) / len(scans))
    if not images:
        raise DatasetError(f"{path}: every slice is constant or nearly empty; look at the scans")
    return ImageSet(tuple(images), tuple(names))


def feature_table(images: Sequence[np.ndarray], on_image: Callable[[float], None] = lambda share: None) -> np.ndarray:
    """The features of every image, float64 (N, F), columns as `radiomics.feature_names`.

    Args:
        images: Each (H, W) or (C, H, W) in [-1, 1].
        on_image: Told the share of images done.
    """
    table = np.empty((len(images), len(feature_names())))
    for number, image in enumerate(images):
        table[number] = list(features(image).values())
        on_image((number + 1) / len(images))
    return table


def squared_frechet(a: np.ndarray, b: np.ndarray) -> float:
    """||μ1 - μ2||² + Tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½) of the Gaussians fitted to rows of `a` (N, F) and `b` (M, F).

    Source: Dowson and Landau, 1982. With X = (a - μ1)/√(N - 1) and Y likewise, Σ1 = XᵀX, and the eigenvalues of
    Σ1 Σ2 = XᵀX YᵀY are the squared singular values of X Yᵀ; so the last trace is their sum. No root of a matrix is
    taken, and covariances may be singular, as they are with fewer images than features. What is within rounding of 0
    is 0.

    Example:
        >>> points = np.array([[-1.0], [1.0]])
        >>> round(squared_frechet(points, 2 * points + 3), 9)  # 3² + (2√2 - √2)²
        11.0
    """
    x, y = (_reduced((side - side.mean(axis=0)) / np.sqrt(len(side) - 1)) for side in (a, b))
    shift = float(((a.mean(axis=0) - b.mean(axis=0)) ** 2).sum())
    traces = float((x**2).sum() + (y**2).sum())
    squared = shift + traces - 2 * float(np.linalg.svd(x @ y.T, compute_uv=False).sum())
    return squared if squared > 1e-11 * (1 + traces) else 0.0


def frechet_distance(
    reference: np.ndarray,
    other: np.ndarray,
    *,
    names: Sequence[str] | None = None,
    scans: Sequence[str] | None = None,
    seed: int = 0,
) -> Distance:
    """The distance from a reference set of features (N, F) to another set (M, F), with its floor and its parts.

    Both are z-scored by mean and standard deviation of the reference and cut at ±`CLIP`; so the distance is
    symmetric only up to the choice of the reference. It is biased upwards in small sets, and so is the floor: the mean
    over `HALVINGS` random halvings of the reference, in the same units, neither half larger than the other set. The
    halves being smaller than the sets themselves, the floor is, if anything, too high. Given `scans`, slices of one
    scan stay in one half; without it neighbouring slices would fall on both sides and the floor be too low.

    Args:
        reference: One row an image, as from `feature_table`.
        other: Likewise.
        names: FILTER_CLASS_Feature of each column; without them those of `radiomics.feature_names`.
        scans: For each row of the reference the scan that it was cut from.
        seed: Of the halvings.

    Raises:
        DatasetError: Fewer than `FEWEST` images in a set, or a reference whose images are all alike.
        ValueError: Tables, names or scans that do not belong together, or values that are not finite.
    """
    names = feature_names() if names is None else tuple(names)
    reference, other = np.asarray(reference, np.float64), np.asarray(other, np.float64)
    _check_tables(reference, other, names, scans)
    mean, deviation = reference.mean(axis=0), reference.std(axis=0, ddof=1)
    varied = deviation > 1e-9 * (1 + np.abs(mean))
    if not varied.any():
        raise DatasetError("the reference set must vary, but all its images are alike; give other scans")
    kept = [name for name, keep in zip(names, varied, strict=True) if keep]
    z, raw = ((side - mean)[:, varied] / deviation[varied] for side in (reference, other))
    clipped = float((np.abs(raw) > CLIP).mean())
    z, w = z.clip(-CLIP, CLIP), raw.clip(-CLIP, CLIP)
    halves, warnings = _halves(scans, len(z), len(w), np.random.default_rng(seed))
    groups = {}
    for group in dict.fromkeys([name.split("_")[0] for name in kept] + [name.split("_")[1] for name in kept]):
        columns = np.array([group in name.split("_")[:2] for name in kept])
        groups[group] = _with_floor(z[:, columns], w[:, columns], halves)
    total = _with_floor(z, w, halves)
    for side, count in (("reference", len(z)), ("other", len(w))):
        if count < FEW:
            warnings.append(f"the {side} set has {count} images; below {FEW} sampling noise is large")
    return Distance(
        distance=total.distance,
        floor=total.floor,
        n_reference=len(z),
        n_other=len(w),
        features=_differences(kept, z, w, raw),
        groups=groups,
        dropped=tuple(name for name, keep in zip(names, varied, strict=True) if not keep),
        clipped=clipped,
        warnings=tuple(warnings),
    )


def _differences(names: Sequence[str], z: np.ndarray, w: np.ndarray, raw: np.ndarray) -> tuple[FeatureDifference, ...]:
    """From the z-scores of the reference, of the other set, and of the other set before they were cut."""
    parts = (w.mean(axis=0) - z.mean(axis=0)) ** 2 + (w.std(axis=0, ddof=1) - z.std(axis=0, ddof=1)) ** 2
    shift, ratio = raw.mean(axis=0), raw.var(axis=0, ddof=1)  # the reference has mean 0 and variance 1
    order = [int(k) for k in np.lexsort((-np.abs(shift), -parts))]
    return tuple(FeatureDifference(names[k], float(shift[k]), float(ratio[k]), float(parts[k])) for k in order)


def _with_floor(z: np.ndarray, w: np.ndarray, halves: Sequence[tuple[np.ndarray, np.ndarray]]) -> Group:
    floor = np.mean([np.sqrt(squared_frechet(z[first], z[second])) for first, second in halves])
    return Group(float(np.sqrt(squared_frechet(z, w))), float(floor))


def _halves(
    scans: Sequence[str] | None, count: int, most: int, rng: np.random.Generator
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[str]]:
    """Pairs of rows of the reference, none longer than `most`, and what is to be said about them."""
    warnings = []
    owners = np.arange(count) if scans is None else np.unique(np.asarray(scans), return_inverse=True)[1]
    if owners.max() < 3:
        warnings.append("the reference set is of fewer than 4 scans; the floor halves their slices and is too low")
        owners = np.arange(count)
    found = []
    for _ in range(HALVINGS):
        order = rng.permutation(owners.max() + 1)
        sizes = np.bincount(owners)[order]
        cut = 1 + int(np.abs(np.cumsum(sizes)[:-1] - count / 2).argmin())
        first = np.isin(owners, order[:cut])
        found.append(tuple(rng.permutation(np.flatnonzero(side))[:most] for side in (first, ~first)))
    return found, warnings


def _check_tables(reference: np.ndarray, other: np.ndarray, names: Sequence[str], scans: Sequence[str] | None) -> None:
    for side, table in (("reference", reference), ("other", other)):
        if table.ndim != 2 or table.shape[1] != len(names):
            raise ValueError(f"the {side} table must be (images, {len(names)} features), not {table.shape}.")
        if not np.isfinite(table).all():
            raise ValueError(f"the {side} table must be finite; it holds NaN or infinity.")
        if len(table) < FEWEST:
            raise DatasetError(
                f"the {side} set must have {FEWEST} images at least (better {FEW}), found {len(table)}; "
                "add scans or raise the limit"
            )
    if scans is not None and len(scans) != len(reference):
        raise ValueError(f"scans must name one scan a row of the reference, {len(reference)}, not {len(scans)}.")


def _reduced(x: np.ndarray) -> np.ndarray:
    """`x` (N, F) itself, or, if higher than wide, the (F, F) triangle R of its QR: RᵀR = XᵀX."""
    return x if len(x) <= x.shape[1] else np.asarray(np.linalg.qr(x, mode="r"))


def _slices(found: Found, size: int, modality: str | None) -> list[np.ndarray]:
    """The grey slices (h, w) of a scan that show something, without the padding of the grid."""
    scan = read_scan(found, modality=modality)
    grid = stack_of(scan, size)
    grey = (grid.mean(dim=1) if scan.is_colour else grid[:, 1]).numpy()
    height, width = canonical_fit(scan, size).inner
    if min(height, width) < SMALLEST:
        raise DatasetError(
            f"{found.path}: slices must be {SMALLEST} pixels wide at least on a grid of {size}, "
            f"got {height} x {width}; raise --size or leave the scan out"
        )
    top, left = (size - height) // 2, (size - width) // 2
    cut = grey[:, top : top + height, left : left + width].clip(-1, 1)
    return [image for image in cut if image.std() >= _LEAST_CONTRAST and _shows_something(image)]


def _shows_something(image: np.ndarray) -> bool:
    return float((image > _CONTENT_ABOVE).mean()) >= _LEAST_CONTENT


def _evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spaced, each from the middle of its share."""
    if len(items) <= most:
        return list(items)
    return [items[(2 * k + 1) * len(items) // (2 * most)] for k in range(most)]


def _is_second_channel(path: Path) -> bool:
    """Whether this is NAME_0001, NAME_0002, … beside a NAME_0000 of nnU-Net; one channel is read."""
    stem, _, number = path.name.partition(".")[0].rpartition("_")
    labelled = (path.parent.with_name("labelsTr") / path.name).exists()  # then the number is part of its name
    if labelled or not (len(number) == 4 and number.startswith("000") and number != "0000"):
        return False
    return path.with_name(path.name.replace(f"{stem}_{number}", f"{stem}_0000", 1)).exists()


def _of_origin(scans: Sequence[Found], root: Path, which: str) -> list[Found]:
    """The real or the synthetic scans, by the folder's provenance.json."""
    source = root / PROVENANCE
    if not source.is_file():
        raise DatasetError(
            f"{root}: to take the {which} cases alone there must be a {PROVENANCE}, found none; take all"
        )
    synthetic = read_json(source).get("synthetic")
    if not isinstance(synthetic, dict):
        raise DatasetError(f"{source}: 'synthetic' must be an object of case names, found {type(synthetic).__name__}")
    chosen = [scan for scan in scans if (scan.name in synthetic) == (which == "synthetic")]
    if not chosen:
        raise DatasetError(f"{root}: none of its {len(scans)} cases is {which}, says {PROVENANCE}; take all")
    return chosen
