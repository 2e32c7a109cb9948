"""The clues of a prompt on the working grid: what a system accepts it gets, the rest is served here or refused."""

import numpy as np
import torch

from delineate.errors import PromptError
from delineate.prompts.clues import Box
from delineate.prompts.prompt import Prompt
from delineate.scans.geometry import orientation_of, to_canonical
from delineate.scans.grid import canonical_fit, stack_of
from delineate.scans.scan import Scan
from delineate.systems.system import Clue, Clues, Reference, System

WORDS = {Clue.MASK: "mask", Clue.REFERENCES: "examples", Clue.STYLE: "style"}  # nobody but a system can serve these


def refuse_what_it_does_not_take(prompt: Prompt, system: System) -> None:
    """Marks and a box are served for every system; a mask, examples and a style only by one that accepts them.

    Raises:
        PromptError: the system does not.
    """
    given = {Clue.MASK: prompt.mask, Clue.REFERENCES: prompt.examples, Clue.STYLE: prompt.style}
    for clue, value in given.items():
        if value not in (None, ()) and clue not in system.accepts:
            takes = ", ".join(sorted({"marks", "box"} | {WORDS[c] for c in system.accepts if c in WORDS}))
            raise PromptError(
                f"this model takes no {WORDS[clue]} with '{prompt.text}' (it takes {takes}); leave it out"
            )


def clues_of(prompt: Prompt, scan: Scan, system: System) -> Clues:
    """What the system accepts of a prompt's clues but for marks, on its grid."""
    slices = mask = box = None
    if prompt.mask is not None and Clue.MASK in system.accepts:
        mask = _on_grid(prompt.mask.values, scan, system.size)
        slices = torch.arange(len(mask))
    if prompt.box is not None and Clue.BOX in system.accepts:
        box = _on_grid(voxels_of(prompt.box, scan), scan, system.size) >= 0.5
    examples = prompt.examples if Clue.REFERENCES in system.accepts else ()
    references = tuple(
        Reference(stack_of(one.scan, system.size), _on_grid(one.mask, one.scan, system.size)) for one in examples
    )
    return Clues(slices=slices, mask=mask, box=box, references=references, style=prompt.style)


def voxels_of(box: Box, scan: Scan) -> np.ndarray:
    """The voxels of a box, bool (I, J, K)."""
    voxels = np.zeros(scan.shape, dtype=bool)
    voxels[tuple(slice(a, b) for a, b in zip(box.start, box.stop, strict=True))] = True
    return voxels


def _on_grid(values: np.ndarray, scan: Scan, size: int) -> torch.Tensor:
    """Values (I, J, K) of a scan as (S, size, size) in [0, 1]."""
    slices = np.ascontiguousarray(to_canonical(values, orientation_of(scan.affine)), dtype=np.float32)
    return canonical_fit(scan, size).to_grid(torch.from_numpy(slices)[:, None], fill=0.0)[:, 0].clamp(0, 1)
