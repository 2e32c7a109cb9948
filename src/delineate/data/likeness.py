"""Which subjects share an image, or show nearly the same one: what must not be parted between train, val and test.

Public sets hold frames of one film, views of one lesion and files saved twice under different names. Two images are
alike if their files are equal byte for byte or, of pictures (PNG, JPEG, TIFF; colours as grey), if four measures agree:

* pHash (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions"): which of the lowest cosine
  frequencies of a 32 × 32 thumbnail lie above their median; here the 9 × 9 lowest without the mean, 80 bits;
* dHash (Krawetz 2013, "Kind of Like That"): which pixels are brighter than their left neighbour; here of 16 × 16;
* the correlation of the two thumbnails;
* the same after the mean of all other thumbnails is taken away: two radiographs correlate because both show a chest,
  two frames of one film also in what sets them apart from the rest.

Each alone takes strangers of one modality for twins. The limits were chosen by looking at the pairs found in public
sets: the twins that were seen in breast ultrasound are all found, and nothing in dermoscopy, histology, fluorescence,
chest radiographs and crops of CT; of 28 fundus photographs two left eyes of strangers are taken for one. A wrong pair
costs little (two subjects stay together), a missed one flatters a figure.

Saving as JPEG, another size or depth, a change of brightness or contrast and a crop of a few pixels leave images alike;
mirrored, turned and larger crops do not. Likeness is passed on: if a is like b and b like c, all three are one group.

Volumes (NIfTI, NRRD, MetaImage) are compared byte for byte alone: it would take long to read them all, and slices of
one volume belong to one subject anyway. So are pictures too small (`LEAST_PIXELS`) or too even (`LEAST_SPREAD`) to tell
apart: all blank ones look the same.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn

from delineate.errors import ScanError
from delineate.scans.finding import digest_of
from delineate.scans.flat_images import DAMAGE, PICTURE_SUFFIXES, TIFF_SUFFIXES, read_flat
from delineate.scans.scan import MAX_VOXELS, suffix_of

MOST_PHASH_BITS = 16  # of 80 may differ
MOST_DHASH_BITS = 64  # of 256
LEAST_CORRELATION = 0.95
LEAST_OWN_CORRELATION = 0.8  # of what is left without the mean of the others
LEAST_PIXELS = 32  # of the shorter side: a thumbnail of less is made up
LEAST_SPREAD = 1.0  # standard deviation of a thumbnail in grey values of 255
_BLOCK = 256  # rows compared at once: memory stays at a few MB a thousand images


class Look(NamedTuple):
    """What is compared of a picture.

    Attributes:
        phash: (80,) float32, ±1.
        dhash: (256,) float32, ±1.
        thumbnail: (1024,) float32 of mean 0 and length 1.
    """

    phash: np.ndarray
    dhash: np.ndarray
    thumbnail: np.ndarray


def look_of(path: Path) -> Look | None:
    """What a picture looks like, or None where it has none: a volume, too small, too even, not readable.

    Remembered for as long as the process lives, by path, size and time of change; nothing is written.
    """
    path = Path(path)
    if suffix_of(path) not in (*PICTURE_SUFFIXES, *TIFF_SUFFIXES):
        return None
    state = path.stat()
    return _look(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=50_000)  # 5 kB each, 270 MB at the very most
def _look(path: Path, size: int, changed: int) -> Look | None:  # size and changed are the cache's alone
    try:
        pixels, _ = read_flat(path, MAX_VOXELS, as_labels=False)
    except (ScanError, *DAMAGE):
        return None  # whoever needs the image complains
    if min(pixels.shape[:2]) < LEAST_PIXELS:
        return None
    grey = Image.fromarray(_eight_bits(pixels)).convert("L")
    thumbnail = np.asarray(grey.resize((32, 32), Image.Resampling.BOX), np.float64)
    if thumbnail.std() < LEAST_SPREAD:
        return None
    low = np.asarray(dctn(thumbnail, norm="ortho"))[:9, :9].ravel()[1:]
    wide = np.asarray(grey.resize((17, 16), Image.Resampling.BOX))
    centred = (thumbnail - thumbnail.mean()).ravel()
    return Look(
        _signs(low > np.median(low)),
        _signs((wide[:, 1:] > wide[:, :-1]).ravel()),
        (centred / np.linalg.norm(centred)).astype(np.float32),
    )


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Pixels as uint8: as they are, or where they are deeper (or of two values), darkest to brightest on 0..255."""
    if pixels.dtype == np.uint8:
        return pixels
    values = pixels.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8)


def _signs(bits: np.ndarray) -> np.ndarray:
    return np.where(bits, np.float32(1), np.float32(-1))


def pairs_alike(paths: Sequence[Path]) -> list[tuple[int, int]]:
    """The pairs of images of one set that are alike, as indices (i < j), sorted; of equal files each with the first.

    All pairs are compared, in blocks: seconds for a few thousand pictures, most of it to read them.
    """
    return sorted({*_equal_files(paths), *_twins([look_of(path) for path in paths])})


def _equal_files(paths: Sequence[Path]) -> list[tuple[int, int]]:
    sizes = defaultdict(list)
    for index, path in enumerate(paths):
        sizes[path.stat().st_size].append(index)  # files of one size alone can be the same
    pairs = []
    for indices in sizes.values():
        first: dict[str, int] = {}
        for index in indices if len(indices) > 1 else ():
            if (twin := first.setdefault(digest_of(paths[index]), index)) != index:
                pairs.append((twin, index))
    return pairs


def _twins(looks: Sequence[Look | None]) -> list[tuple[int, int]]:
    seen = [(index, look) for index, look in enumerate(looks) if look is not None]
    if len(seen) < 2:
        return []
    index = np.array([index for index, _ in seen])
    phash, dhash, thumbnail = (np.stack(part) for part in zip(*(look for _, look in seen), strict=True))
    together = thumbnail.sum(axis=0, dtype=np.float64)
    with_all = thumbnail @ together
    pairs = []
    for start in range(0, len(seen), _BLOCK):
        rows = slice(start, start + _BLOCK)
        near = _differing(phash[rows], phash[start:]) <= MOST_PHASH_BITS
        near &= np.arange(near.shape[1]) > np.arange(len(near))[:, None]
        columns = np.flatnonzero(near.any(axis=0))  # few: the longer comparisons are of these alone
        near = near[:, columns] & (_differing(dhash[rows], dhash[start:][columns]) <= MOST_DHASH_BITS)
        correlation = thumbnail[rows] @ thumbnail[start:][columns].T
        near &= correlation >= LEAST_CORRELATION
        one, other = np.nonzero(near)
        between = correlation[one, other].astype(np.float64)
        one, other = start + one, start + columns[other]
        own = _own_correlation(between, with_all[one], with_all[other], together @ together, len(seen))
        one, other = (index[side[own >= LEAST_OWN_CORRELATION]].tolist() for side in (one, other))
        pairs += zip(one, other, strict=True)
    return pairs


def _own_correlation(between: np.ndarray, one: np.ndarray, other: np.ndarray, total: float, count: int) -> np.ndarray:
    """The correlation of a and b without m, the mean of all others and of one even picture (or m might be all of a).

    With S the sum of all `count` thumbnails of length 1, m = (S - a - b) / (count - 1): dot products tell the rest.

    Args:
        between: a·b of each pair, as `one` S·a, as `other` S·b.
        one: see there.
        other: see there.
        total: S·S.
        count: of thumbnails.
    """
    m_one, m_other = ((side - 1 - between) / (count - 1) for side in (one, other))
    m_m = (total - 2 * one - 2 * other + 2 + 2 * between) / (count - 1) ** 2
    lengths = (1 - 2 * m_one + m_m) * (1 - 2 * m_other + m_m)
    return (between - m_one - m_other + m_m) / np.sqrt(np.maximum(lengths, 1e-12))


def _differing(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How many bits differ, (A, B), of (A, bits) and (B, bits), ±1."""
    return (one.shape[1] - one @ other.T) / 2


def groups_alike(images: Iterable[tuple[str, Path]]) -> list[tuple[str, ...]]:
    """All subjects in groups, such that whoever shares or nearly shares an image is in one.

    Args:
        images: (subject, image file); several of one subject are fine.

    Returns:
        Groups, each sorted, in the order of their first subjects.
    """
    images = sorted(images)
    leader = {subject: subject for subject, _ in images}

    def lead(subject: str) -> str:
        while leader[subject] != subject:
            leader[subject] = leader[leader[subject]]
            subject = leader[subject]
        return subject

    for one, other in pairs_alike([path for _, path in images]):
        leader[lead(images[other][0])] = lead(images[one][0])
    members = defaultdict(list)
    for subject in leader:  # in sorted order, as `images` is
        members[lead(subject)].append(subject)
    return [tuple(group) for group in members.values()]


def whole_groups(groups: Sequence[tuple[str, ...]], wanted: int) -> list[tuple[str, ...]]:
    """Of groups in their order those that fit into `wanted` subjects; the smallest where none does."""
    chosen, taken = [], 0
    for group in groups:
        if taken + len(group) <= wanted:
            chosen.append(group)
            taken += len(group)
    return chosen if chosen or not wanted or not groups else [min(groups, key=len)]
