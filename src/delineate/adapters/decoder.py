"""Fine-tuning of what lies on the way from features to answers, as the system's `decoder` says."""

import re

from torch import nn

from delineate.adapters import AdapterConfig, full
from delineate.adapters.full import fold, learnt, wrap

__all__ = ["fits", "fold", "learnt", "wrap"]


def fits(path: str, layer: nn.Module, config: AdapterConfig, decoder: str) -> bool:
    """Every layer with weights whose path the pattern is found in."""
    return full.fits(path, layer, config, decoder) and re.search(decoder, path) is not None
