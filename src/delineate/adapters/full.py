"""Fine-tuning as an adapter: its layers are copies, all of whose weights are its own."""

from copy import deepcopy

from torch import nn

from delineate.adapters import AdapterConfig


def fits(path: str, layer: nn.Module, config: AdapterConfig, decoder: str) -> bool:
    """Every layer that has weights."""
    return not any(layer.children()) and any(True for _ in layer.parameters())


def wrap(root: nn.Module, paths: list[str], config: AdapterConfig) -> None:
    """Put copies in the place of the layers."""
    for path in paths:
        root.set_submodule(path, deepcopy(root.get_submodule(path)))


def learnt(layer: nn.Module) -> list[str]:
    """Every parameter."""
    return [name for name, _ in layer.named_parameters()]


def fold(layer: nn.Module) -> nn.Module:
    """The copy itself."""
    return layer
