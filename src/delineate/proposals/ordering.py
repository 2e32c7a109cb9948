"""What a person sees first of N proposals: which are distinct, how good each probably is, and where to look.

Proposals are taken for draws of the truth. Then what Dice one of them can expect is its mean Dice with the others, and
the share of the proposals that resemble one another is how likely the truth resembles them. NumPy and SciPy only.

    case                      Dice, IoU
    both empty                1
    one of the two empty      0
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Bool, Float
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from delineate.scans.geometry import orientation_of

APART = 0.25  # 1 - IoU: two radiologists who outline the same lung nodule differ so much (see `distinct`)
MOST = 4  # distinct proposals: as many as a person compares at a glance
BYTES_AT_ONCE = 2**15  # of 8 voxels each, a matrix product: little memory, and float32 counts to 2^24 exactly


@dataclass(frozen=True, eq=False)
class Overlaps:
    """How many voxels every two of N masks share: all that the functions here need to know of the masks.

    Attributes:
        shared: |A and B|, float64 (N, N) of whole numbers; the diagonal holds the sizes of the masks.
    """

    shared: np.ndarray

    def __len__(self) -> int:
        return len(self.shared)

    @property
    def sizes(self) -> Float[np.ndarray, " N"]:
        """Voxels of each mask."""
        return self.shared.diagonal()

    def nested(self) -> float | None:
        """How far each of two masks lies in the other, the smaller in the larger: the least share over all pairs.

        1 for level sets of one map, of which STAPLE leans to the union; None without two that are not empty.
        """
        sizes = self.sizes
        pairs = [(i, j) for i in range(len(self)) for j in range(i) if min(sizes[i], sizes[j]) > 0]
        return min((self.shared[i, j] / min(sizes[i], sizes[j]) for i, j in pairs), default=None)

    def iou(self) -> Float[np.ndarray, "N N"]:
        """|A and B| / |A or B| of every two masks, in [0, 1]; 1 if both are empty."""
        return _ratio(self.shared, self.sizes[:, None] + self.sizes - self.shared)

    def dice(self) -> Float[np.ndarray, "N N"]:
        """2 |A and B| / (|A| + |B|) of every two masks, in [0, 1]; 1 if both are empty."""
        return _ratio(2 * self.shared, self.sizes[:, None] + self.sizes)


def overlaps(masks: Bool[np.ndarray, " N *space"] | Iterable[np.ndarray]) -> Overlaps:
    """The overlaps of N >= 1 masks of one shape, which may come one by one: a bit a voxel is all that is kept of each.

    Voxels in which all masks agree are only counted, eight at a time; the rest goes through a matrix product.

    Raises:
        ValueError: no mask, masks that are not bool, or of different shapes.
    """
    packed, shapes = [], set()
    for mask in masks:
        mask = np.asarray(mask)
        if mask.dtype != np.bool_:
            raise ValueError(f"masks must be bool, not {mask.dtype}. Threshold them first.")
        shapes.add(mask.shape)
        packed.append(np.packbits(mask))
    if len(shapes) != 1:
        raise ValueError(f"masks must be one or more of the same shape, not of {sorted(shapes) or 'no mask at all'}.")
    everyone = reduce(np.bitwise_and, packed)
    mixed = np.flatnonzero(everyone != reduce(np.bitwise_or, packed))
    agreed = np.bitwise_count(everyone).sum(dtype=np.int64) - np.bitwise_count(everyone[mixed]).sum(dtype=np.int64)
    shared = np.full((len(packed), len(packed)), float(agreed))
    for start in range(0, len(mixed), BYTES_AT_ONCE):
        some = mixed[start : start + BYTES_AT_ONCE]
        bits = np.unpackbits(np.stack([mask[some] for mask in packed]), axis=1).astype(np.float32)
        shared += bits @ bits.T
    return Overlaps(shared)


@dataclass(frozen=True)
class Distinct:
    """A proposal that stands for those that resemble it.

    Attributes:
        k: its index: the member of its group that is nearest to all others there, the first of several.
        weight: the group's share of all proposals, in (0, 1].
        members: the indices of the group, rising; k is one of them.
        spread: the mean 1 - IoU of every two members, in [0, 1]; 0 for a group of one.
    """

    k: int
    weight: float
    members: tuple[int, ...]
    spread: float


def distinct(
    masks: Bool[np.ndarray, " N *space"] | Overlaps, apart: float = APART, most: int = MOST
) -> tuple[Distinct, ...]:
    """The proposals that stand for all others, the one with the largest group first, at a tie the lower k first.

    Average linkage on 1 - IoU. Two groups stay apart if their members differ by more than `apart` on average. The
    default is what two radiologists differ by who outline the same lung nodule (LIDC-IDRI, 5391 pairs on 1085 slices:
    median 0.27, middle half 0.18 to 0.36), a Dice of 0.86: whatever lies nearer together is one answer.

    Proposals of real models mostly have no gap at which to cut: on 53 targets that the house model found, 8 proposals
    made one group on 23 and eight on 22 of them. So the cut is raised to where at most `most` groups are left. What is
    shown first is then the most central proposal (as good, measured, as the one of the best `agreement`), followed
    by those that stray most; `spread` says how loose such a group is.

    Args:
        masks: N >= 1 proposals, or their overlaps.
        apart: 1 - IoU, 0 or more.
        most: groups, 1 or more.
    """
    if not (apart >= 0 and most >= 1):
        raise ValueError(f"apart must be 0 or more and most 1 or more, not {apart} and {most}.")
    distance = 1 - _overlaps(masks).iou()
    n = len(distance)
    if n == 1:
        return (Distinct(0, 1.0, (0,), 0.0),)
    tree = linkage(squareform(distance, checks=False), "average")
    heights = tree[:, 2]  # rising: of the n - 1 merges, the last most - 1 are left undone
    label = fcluster(tree, max(apart, heights[n - 1 - most]) if n > most else apart, "distance")
    groups = []
    for one in np.unique(label):
        members = np.flatnonzero(label == one)
        within = distance[np.ix_(members, members)]
        away = within.sum(axis=1).round(9)  # equal sums may differ in the last bit
        spread = float(away.sum() / max(1, len(members) * (len(members) - 1)))
        groups.append(Distinct(int(members[away.argmin()]), len(members) / n, tuple(members.tolist()), spread))
    return tuple(sorted(groups, key=lambda group: (-group.weight, group.k)))


def agreement(
    masks: Bool[np.ndarray, " N *space"] | Overlaps, probability: Float[np.ndarray, "*space"] | None = None
) -> Float[np.ndarray, " N"]:
    """How far each proposal agrees with the others, in [0, 1]: its mean Dice with them.

    That would be its expected Dice if the truth were one more draw of the same kind. Where proposals are surer than
    they should be it is too high; it ranks all the same (`calibration.quality` says what held-out subjects make of it).

    Args:
        masks: N proposals, or their overlaps.
        probability: of the one mask, in [0, 1]; needed for N = 1, where `probable_dice` is taken, and only there.
    """
    if len(masks) == 1:
        if isinstance(masks, Overlaps) or probability is None:
            raise ValueError("one proposal has no others to be compared with: give the mask and its probability.")
        return np.array([probable_dice(masks[0], probability)])
    dice = _overlaps(masks).dice()
    return (dice.sum(axis=1) - 1) / (len(dice) - 1)


def agreement_of(
    mask: Bool[np.ndarray, "*space"],
    masks: Bool[np.ndarray, " N *space"] | Iterable[np.ndarray],
    probability: Float[np.ndarray, "*space"] | None = None,
    others: int = 0,
) -> float:
    """How far a mask that is no proposal, such as the consensus, agrees with all N, in [0, 1]: its mean Dice with them.

    Args:
        mask: the one in question.
        masks: N proposals, all at once or one by one.
        probability: of the one proposal, in [0, 1]; needed for N = 1, where `probable_dice` is taken, and only there.
        others: voxels more of the mask, in which there is no proposal.
    """
    size = np.count_nonzero(mask) + others
    counts = np.array([(np.count_nonzero(one & mask), np.count_nonzero(one)) for one in masks], float)
    if len(counts) == 0:
        raise ValueError("masks must hold one proposal at least.")
    if len(counts) == 1:
        if probability is None:
            raise ValueError("one proposal is too few to compare a mask with: give the probability.")
        return probable_dice(mask, probability)
    return float(_ratio(2 * counts[:, 0], size + counts[:, 1]).mean())


def probable_dice(mask: Bool[np.ndarray, "*space"], probability: Float[np.ndarray, "*space"]) -> float:
    """2 Σ_M p / (|M| + Σ p), in [0, 1]: about the Dice that mask M can expect if p is the probability of each voxel.

    1 where there is less than one voxel of both together.
    """
    total = float(np.count_nonzero(mask) + probability.sum(dtype="float64"))
    return 2 * float(probability[mask].sum(dtype="float64")) / total if total >= 1 else 1.0


def doubtful_slices(
    doubt: Float[np.ndarray, "I J K"], affine: Float[np.ndarray, "4 4"], top: int = 5
) -> tuple[int, list[tuple[int, float]]]:
    """The array's axial axis, and along it the slices that hold most of the doubt, each with its share of all doubt.

    Args:
        doubt: 0 or more a voxel, such as `TargetProposals.disagreement`, in the file's own axis order.
        affine: voxel index to world mm, RAS+.
        top: so many slices at most.

    Returns:
        The axis, and what `most_doubtful` says of it.
    """
    axis = orientation_of(affine).order[0]
    across = [other for other in range(3) if other != axis]
    return axis, most_doubtful(doubt.sum(axis=(across[0], across[1]), dtype="float64"), top)


def most_doubtful(each: Float[np.ndarray, " slices"], top: int = 5) -> list[tuple[int, float]]:
    """The slices that hold most of the doubt, with the share of all doubt that is in each.

    Args:
        each: the doubt in every slice, such as `TargetProposals.doubt_across`.
        top: so many slices at most.

    Returns:
        (index from 0, share in (0, 1]), the largest first, at a tie the lower index. No slice where there is no doubt,
        or only one slice.
    """
    if len(each) == 1:
        return []
    order = np.argsort(-each, kind="stable")[:top]
    return [(int(index), float(each[index] / each.sum())) for index in order if each[index] > 0]


def _overlaps(masks: np.ndarray | Overlaps) -> Overlaps:
    return masks if isinstance(masks, Overlaps) else overlaps(masks)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, and 1 where there is nothing of either."""
    return np.divide(part, whole, out=np.ones_like(part), where=whole > 0)
