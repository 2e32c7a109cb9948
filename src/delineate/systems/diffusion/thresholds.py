"""Proposals that no network draws: a probability map against smooth noise."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from delineate.systems.diffusion.fields import smooth_fields
from delineate.systems.system import OnShare

SOFT = 0.2  # τ
SURE = 1e-3  # a probability below it is 0 in every proposal, one above one minus it is 1


def thresholds(
    probability: Tensor,
    n: int,
    seed: int,
    known: tuple[Tensor, Tensor] | None = None,
    on_step: OnShare = lambda share: None,
) -> Tensor:
    """Proposals (n, S, size, size) on the CPU: a pixel is in one where its noise is high enough for its probability.

    With noise z of variance 1 - τ² it has the value Φ((z + Φ⁻¹(p)) / τ), which is p on average, whatever τ; τ above
    0 makes edges soft. Neighbours have like noise, so they come and go together. Pixels that are sure are 0 or 1
    in every proposal: most of a scan then costs nothing (`delineate.scans.sparse`). Proposal k depends on (seed, k)
    alone.

    Args:
        probability: (S, size, size) in [0, 1].
        n: proposals.
        seed: of the noise.
        known: what pixels are, and which are known, as `Clues.known`.
        on_step: told the share that is done.
    """
    fields, size = smooth_fields(probability.shape[-1], n, seed), probability.shape[-1]
    flat = probability.flatten()
    doubtful = ((flat > SURE) & (flat < 1 - SURE)).nonzero()[:, 0]
    threshold, pixel, place = torch.special.ndtri(flat[doubtful]), doubtful % size**2, doubtful.cpu()
    sure = (flat >= 1 - SURE).nonzero()[:, 0].cpu()
    out = torch.from_numpy(np.zeros((n, *probability.shape), np.float32))  # NumPy's cost nothing where not touched
    for k, one in enumerate(out.flatten(1)):
        noise = (1 - SOFT**2) ** 0.5 * fields[k].flatten().to(pixel.device)[pixel]
        drawn = torch.special.ndtr((noise + threshold) / SOFT)
        one[place] = F.threshold(drawn, SURE, 0.0).cpu()
        one[sure] = 1.0
        on_step((k + 1) / n)
    if known is not None:
        value, where = (pixels[:, 0].cpu() for pixels in known)
        out = torch.where(where, value, out)
    return out
