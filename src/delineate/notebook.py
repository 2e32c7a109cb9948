"""What is asked of an array in one call, as in a notebook."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delineate.prompts.prompt import Prompt
from delineate.proposals.proposals import Proposals
from delineate.scans.arrays import scan_of
from delineate.segmenter import Segmenter


def segment(
    array: Any,
    affine: Any,
    prompts: Sequence[Prompt | str] | Prompt | str,
    *,
    modality: str | None = None,
    model: Segmenter | Path | str | None = None,
    n: int = 8,
    seed: int = 0,
) -> Proposals:
    """Proposals for every prompt on an array, as from a file of the same voxels; notebooks show them as pictures.

    Example::

        image = nibabel.load("ct.nii.gz")
        delineate.segment(image.get_fdata(), image.affine, ["liver", "left kidney"], modality="CT")

    Who asks more than once makes a `Segmenter` once, and gives it as `model`.

    Args:
        array: a volume (I, J, K), or a picture (H, W) or (H, W, 3): `delineate.scans.arrays.scan_of`.
        affine: 4 x 4, from voxel index to world mm, RAS+; or three numbers, the spacing in mm; None for a picture.
        prompts: targets in words; one alone may stand without a list.
        modality: CT, MR, US, …
        model: a segmenter, or a model folder; None for the model that ships.
        n: proposals a target.
        seed: as in `Segmenter`.

    Raises:
        DelineateError: as `scan_of`, `Segmenter.load` and a `Segmenter` raise it.
    """
    scan = scan_of(array, affine, modality=modality)
    segmenter = model if isinstance(model, Segmenter) else Segmenter.load(model)
    return segmenter(scan, [prompts] if isinstance(prompts, Prompt | str) else prompts, n=n, seed=seed)
