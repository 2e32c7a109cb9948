"""Weights of one module in one safetensors file."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from delineate.errors import ModelError


def save_weights(module: nn.Module, path: Path) -> None:
    """Write every weight of `module`, in the precision it has."""
    save_file({k: v.detach().contiguous() for k, v in module.state_dict().items()}, path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill `module` from `path`; half-precision files are widened to the module's own precision.

    Raises:
        ModelError: the file is damaged, or its names or shapes are not the module's.
    """
    try:
        module.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path}: the weights do not fit this model: {reason}") from error
