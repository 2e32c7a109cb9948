"""delineate outlines what a person names in a medical image.

    from delineate import Segmenter, read_scan

    proposals = Segmenter.load()(read_scan("ct.nii.gz"), ["liver", "left kidney"], n=8)
    proposals["liver"].consensus()      # bool, on the scan's own voxels

Names are imported when first used, so that nothing waits for torch that does not need it. What the package does is told
to Python's `logging`, to the logger "delineate" and those below it; nothing is printed.
"""

import logging
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

logging.getLogger("delineate").addHandler(logging.NullHandler())

_HOME = {
    "DelineateError": "delineate.errors",
    "Outcome": "delineate.proposals.target",
    "Prompt": "delineate.prompts.prompt",
    "Proposals": "delineate.proposals.proposals",
    "Scan": "delineate.scans.scan",
    "Segmenter": "delineate.segmenter",
    "TargetProposals": "delineate.proposals.target",
    "Vocabulary": "delineate.prompts.vocabulary",
    "open_dataset": "delineate.data.dataset",
    "read_scan": "delineate.scans.reading",
    "segment": "delineate.notebook",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'delineate' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
