"""Filtering of synthetic scans, the quality gate: which are fit to train on. DiffBoost's released code has none.

A scan passes if its edges are where they were asked for, if it is neither darker, brighter, flatter nor harsher than
scans of its dataset are, and if a first segmenter, trained on the real scans, finds in it what the mask says.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from delineate.synthesis.edges import scharr


@dataclass(frozen=True)
class Verdict:
    """What the gate saw of one synthetic scan, and why it was rejected ("" where it was not).

    Attributes:
        edges: `edge_agreement`, in [-1, 1].
        brightness: mean intensity, in [-1, 1].
        contrast: standard deviation of the intensities.
        mask: Dice of the first segmenter's answer against the mask.
        mask_of_real: the same on the real scan; where this is low the check of the mask says little.
        reason: "edges", "intensity", "mask", or "".
    """

    edges: float
    brightness: float
    contrast: float
    mask: float
    mask_of_real: float
    reason: str


@dataclass(frozen=True)
class Gate:
    """What must hold.

    Attributes:
        brightness: lowest and highest mean intensity, as `Gate.of` measures them on real scans.
        contrast: likewise of the standard deviation.
        least_edges: correlation of the edges drawn with those asked for.
        least_mask: Dice of the first segmenter on the synthetic scan, as a share of its Dice on the real one.
    """

    brightness: tuple[float, float]
    contrast: tuple[float, float]
    least_edges: float = 0.5
    least_mask: float = 0.6

    @classmethod
    def of(cls, pictures: Tensor, **limits: float) -> "Gate":
        """A gate for scans like `pictures` (N, C, S, S): their range of means and spreads, a half wider either way."""
        flat = pictures.flatten(1)
        return cls(_widened(flat.mean(dim=1)), _widened(flat.std(dim=1)), **limits)

    def judge(self, drawn: Tensor, asked: Tensor, mask: float, mask_of_real: float) -> Verdict:
        """The verdict on one scan.

        Args:
            drawn: its slices (S, C, size, size) in [-1, 1].
            asked: the edge hints (S, 1, size, size) they were drawn from.
            mask: Dice of the first segmenter against the mask, all slices together (`foreground_dice`).
            mask_of_real: the same on the real scan.
        """
        agreement = edge_agreement(drawn, asked)
        brightness, contrast = drawn.mean().item(), drawn.flatten(1).std(dim=1).mean().item()
        inside = self.brightness[0] <= brightness <= self.brightness[1]
        inside &= self.contrast[0] <= contrast <= self.contrast[1]
        failed = {
            "intensity": not inside,
            "edges": agreement < self.least_edges,
            "mask": mask < self.least_mask * mask_of_real,
        }
        reason = next((name for name, is_so in failed.items() if is_so), "")
        return Verdict(agreement, brightness, contrast, mask, mask_of_real, reason)


def edge_agreement(drawn: Tensor, asked: Tensor) -> float:
    """Correlation between the soft edges of scans (S, C, H, W) and the hints (S, 1, H, W), both blurred by a pixel.

    Blurred, because a hint has boundaries of labels two pixels wide where a scan has a slope.
    """
    a, b = (F.avg_pool2d(edges, 3, 1, 1).flatten() for edges in (scharr(drawn), asked))
    a, b = a - a.mean(), b - b.mean()
    return (a @ b / (a.norm() * b.norm()).clamp(min=1e-9)).item()


def foreground_dice(answer: Tensor, labels: Tensor) -> float:
    """Dice over all targets at once of label maps (S, H, W); 1 where both are empty."""
    right = ((answer == labels) & (labels > 0)).sum().item()
    total = ((answer > 0).sum() + (labels > 0).sum()).item()
    return 2 * right / total if total else 1.0


def _widened(values: Tensor) -> tuple[float, float]:
    low, high = values.min().item(), values.max().item()
    margin = 0.5 * max(high - low, 0.1)
    return low - margin, high + margin
