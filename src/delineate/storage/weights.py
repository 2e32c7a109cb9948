"""Weights of one module in one safetensors file, and networks that cannot grow beyond the files they are read from."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from delineate.errors import DelineateError, ModelError
from delineate.storage.schema import COPY

SPARE = 2_000_000  # weights that a network may make and throw away while it is built, such as a ControlNet's hint


def save_weights(module: nn.Module, path: Path) -> None:
    """Write every weight of `module`, in the precision it has."""
    save_file({k: v.detach().contiguous() for k, v in module.state_dict().items()}, path)


def load_weights(module: nn.Module, path: Path) -> None:
    """Fill `module` from `path`; half-precision files are widened to the module's own precision.

    Raises:
        ModelError: the file is damaged, its names or shapes are not the module's, or a weight is no finite number.
    """
    try:
        weights = read_weights(path)
        own = module.state_dict()
        if odd := [n for n, w in weights.items() if n in own and w.is_floating_point() != own[n].is_floating_point()]:
            raise RuntimeError(f"'{odd[0]}' is of the type {weights[odd[0]].dtype}")
        module.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise ModelError(f"{path}: the weights do not fit this model: {reason}") from error


def read_weights(path: Path, fix: str = COPY) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name.

    Raises:
        ModelError: the file is missing or damaged, or a weight is no finite number; the message ends with `fix`.
    """
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: the weights cannot be read ({reason}); {fix}") from error
    refuse_infinite(weights.items(), path, fix)
    return weights


def refuse_infinite(weights: Any, path: Path, fix: str = COPY) -> None:
    """Raise `ModelError` at the first of `weights`, pairs of a name and a tensor, that holds NaN or an infinity.

    A sum is finite where all that it adds up is: nothing is as large as the largest double, and nothing is copied.
    """
    for name, value in weights:
        if value.is_floating_point() and not torch.isfinite(value.sum(dtype=torch.float64)):
            raise ModelError(f"{path}: the weight '{name}' holds numbers that are not finite; {fix}")


@contextmanager
def building(folder: Path, fix: str = COPY, more: int = 0) -> Iterator[None]:
    """For building networks as the configuration in `folder` says: they cannot outgrow the weights that lie there.

    A configuration says how large a network is, before its weights are looked at: one wrong number could take all
    memory. So every parameter is counted when a module takes it, before it is filled, which is before the memory is
    used; more of them than the safetensors files below `folder` have bytes cannot be right. Whatever else a library
    makes of numbers that fit nothing is one line too.

    Args:
        folder: of the configuration and the weights.
        fix: what to do, for messages.
        more: weights that may be made beside those: of networks that lie elsewhere.

    Raises:
        ModelError: the configuration asks for more weights than there are, or nothing can be built from it.
    """
    limit = more + SPARE + sum(path.stat().st_size for path in folder.rglob("*.safetensors") if path.is_file())
    thread, made = threading.get_ident(), 0

    def count(module: nn.Module, name: str, parameter: Any) -> None:
        nonlocal made
        if parameter is None or threading.get_ident() != thread:
            return
        made += parameter.numel()
        if made > limit:
            raise ModelError(f"{folder}: its configuration asks for more weights than its files hold; {fix}")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    except DelineateError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(f"{folder}: cannot be loaded ({reason}); {fix}") from error
    finally:
        handle.remove()
