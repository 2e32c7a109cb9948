"""Which layers low-rank adapters change."""

from torch import nn

from delineate.adapters import AdapterConfig

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "query", "key_value", "out")  # diffusers' names and ours


def is_target(path: str, layer: nn.Module, config: AdapterConfig, decoder: str) -> bool:
    """Whether a layer is a linear one or a convolution among those that `config.targets` names."""
    attends = path.endswith(tuple(f".{name}" for name in ATTENTION))
    if isinstance(layer, nn.Linear):
        return config.targets == "all" or (config.targets == "attention" and attends)
    return isinstance(layer, nn.Conv2d) and layer.groups == 1 and config.targets != "attention"
