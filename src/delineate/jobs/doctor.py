"""Is this installation sound? One finding for each thing that has broken somebody's."""

import importlib.util
import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from delineate import __version__
from delineate.errors import ModelError

# Lowest release without a known hole; see the comments beside the dependencies in pyproject.toml.
FLOORS = {"torch": (2, 10), "transformers": (5, 3), "monai": (1, 6), "diffusers": (0, 37), "nibabel": (5, 3)}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    ok: bool


def examine() -> list[Finding]:
    """Look at versions, torchvision, threads and device, the house model, and whether files can be written."""
    findings = [Finding(f"delineate {__version__}, Python {platform.python_version()}, {platform.system()}", True)]
    findings += [_package(name, floor) for name, floor in FLOORS.items()]
    if importlib.util.find_spec("torchvision") is None:
        findings.append(Finding("torchvision is not installed (none is needed)", True))
    else:
        findings.append(
            Finding(
                "torchvision is installed; one that does not fit torch breaks peft: pip uninstall torchvision", False
            )
        )
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU, everything runs on the CPU"
    findings.append(Finding(f"{torch.get_num_threads()} threads on {os.cpu_count()} cores; {device}", True))
    findings.append(_house())
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    findings.append(Finding(f"{free:.1f} GiB free in {Path.cwd()}", free > 1))
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()) as file:
            file.write(b"delineate")
        findings.append(Finding("files can be written here", True))
    except OSError as error:
        findings.append(Finding(f"files cannot be written here: {error.strerror}; change to another folder", False))
    return findings


def _package(name: str, floor: tuple[int, ...]) -> Finding:
    wanted = ".".join(map(str, floor))
    try:
        found = version(name)
    except PackageNotFoundError:
        return Finding(f"{name} is missing: pip install '{name}>={wanted}'", False)
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
    return Finding(
        f"{name} {found}" + ("" if numbers >= floor else f" is older than {wanted}: update it"), numbers >= floor
    )


def _house() -> Finding:
    from delineate.model_folder import check_model, read_vocabulary

    try:
        folder, config = check_model(None)
        count = len(read_vocabulary(folder).concepts)
    except ModelError as error:
        return Finding(f"house model: {error}", False)
    return Finding(f"house model: {config['system']}, {count} targets, every hash right", True)
