"""Options that several commands share, and what is made of their values."""

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from delineate.cli import completing
from delineate.cli.completing import HOUSE
from delineate.evaluation.protocols import PROTOCOLS
from delineate.prompts.modality import modality_code
from delineate.systems import SYSTEMS

if TYPE_CHECKING:
    from delineate.data.folds import Fold


def base_of(path: Path | None) -> Path | None:
    """The folder, or None for the model that ships (a folder of that name comes first)."""
    return None if str(path) == HOUSE and path is not None and not path.exists() else path


ModelOption = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        callback=base_of,
        autocompletion=completing.models,
        help=f"Model folder; '{HOUSE}', the usual, is the one that ships.",
    ),
]
AdapterOption = Annotated[
    Path | None, typer.Option("--adapter", "-a", help="Adapter folder that `delineate adapt` wrote for this model.")
]
DryRunOption = Annotated[
    bool, typer.Option("--dry-run", help="Print as JSON what would be done, with every option as it was understood.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of text.")]
MOST_MINUTES = 1e6  # two years
LARGEST_SEED = 2**31 - 1
SMALLEST_SHARE = 0.001
MOST_IMAGES = 10**9


def finite(value: float | None) -> float | None:
    """A number as it is; click's bounds let NaN through."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("must be a number; got nan")
    return value


def number(low: float, high: float, help: str) -> Any:
    """An option that takes numbers from `low` to `high`."""
    return typer.Option(min=low, max=high, callback=finite, help=help)


def seed_option(help: str) -> Any:
    """An option that takes a seed."""
    return number(0, LARGEST_SEED, help)


SeedOption = Annotated[int, seed_option("Proposal k depends on model, scan, prompt, seed and k alone.")]
ThreadsOption = Annotated[int | None, number(1, 1024, "CPU threads; recorded, since results depend on it.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")]
VolumeOption = Annotated[int | None, number(0, 10**6, "Which volume of a 4-D file or DICOM series.")]
TargetOption = Annotated[
    list[str] | None,
    typer.Option("--target", help='What the masks of every images/ + masks/ folder show, such as "breast lesion".'),
]


def fraction(text: str | None) -> float | None:
    """A share as a person writes it, "5%" or "0.05", from 0.001 to 0.999."""
    if text is None:
        return None
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not SMALLEST_SHARE <= value <= 1 - SMALLEST_SHARE:
        raise typer.BadParameter(f"a share is written as 5% or 0.05, from 0.1% to 99.9%; got '{text}'")
    return value


ModalityOption = Annotated[
    str | None,
    typer.Option(callback=modality_code, help="CT, MR, US, …; for datasets it overrides what dataset.json says."),
]
SystemArgument = Annotated[
    str, typer.Argument(autocompletion=completing.systems, help=f"A named system: {', '.join(SYSTEMS)}.")
]
DATASET_HELP = "nnU-Net/MSD layout, or images/ + masks/. FOLDER=TARGET[,TARGET][@MODALITY] says what its masks show."
DatasetArgument = Annotated[str, typer.Argument(help=f"Dataset folder: {DATASET_HELP}")]
DatasetsArgument = Annotated[list[str], typer.Argument(help=f"One or more dataset folders: {DATASET_HELP}")]
PresetOption = Annotated[
    str,
    typer.Option(
        autocompletion=completing.presets,
        help="Size: tiny is for a CPU; what else there is, `delineate systems` tells for each system.",
    ),
]
FoldOption = Annotated[
    str | None, typer.Option(help="NUMBER/OF, as 1/4: that fold of a cross-validation by subject, not splits.json.")
]
MinutesOption = Annotated[
    float | None,
    number(0.01, MOST_MINUTES, "Train for this much wall time (default 10)."),
]
ImagesOption = Annotated[
    int | None,
    number(1, MOST_IMAGES, "Train on this many images instead; only this repeats, to the bit on one machine."),
]
BaseArgument = Annotated[
    Path, typer.Argument(autocompletion=completing.models, help=f"Model folder; '{HOUSE}' for the one that ships.")
]
AugmentationOption = Annotated[
    str | None,
    typer.Option(
        help="How slices are varied: none, default, nnunet, strong, or one change alone: contrast, gamma, brightness, "
        "noise, blur, bias, mirror, rotation, scale."
    ),
]
ProtocolOption = Annotated[
    str,
    typer.Option(help="What is measured: " + ", ".join(f"{name} ({p.summary})" for name, p in PROTOCOLS.items()) + "."),
]
RatersOption = Annotated[
    str | None,
    typer.Option(
        help="Where several raters drew (raters/): learn a random one's each time (usual), all side by side, or "
        "the consensus."
    ),
]
MergeOption = Annotated[
    str | None,
    typer.Option(
        help="What becomes of synthetic cases: patch, image or loss merge them with their sources (unet, mednext), "
        "extra takes them as cases, none leaves them out."
    ),
]
KeepRealOption = Annotated[
    float | None,
    number(0, 1, "Chance of a patch, or weight of a loss, to be the real one (0.6)."),
]
CellOption = Annotated[
    int | None,
    number(1, 4096, "Side of a merged patch in pixels of the working grid (a sixth of its side)."),
]


def print_json(value: Any) -> None:
    """JSON for scripts on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def preset_of(name: str, known: Iterable[str]) -> str:
    """The preset, or wrong usage."""
    if name not in known:
        raise typer.BadParameter(f"--preset is one of {', '.join(known)}; got '{name}'")
    return name


def fold_of(text: str | None) -> "Fold | None":
    """The fold. Raises `DelineateError` where `text` names none."""
    from delineate.data.folds import Fold

    return None if text is None else Fold.parse(text)


def budget_of(minutes: float | None, images: int | None) -> dict[str, Any]:
    """The budget of a training as keyword arguments: ten minutes unless told otherwise."""
    if minutes is not None and images is not None:
        raise typer.BadParameter("give --minutes or --images, not both")
    return {"minutes": 10.0 if minutes is None and images is None else minutes, "images": images}


def compute(threads: int | None, device: str) -> str:
    """Set the number of threads and return the device to use."""
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=device).item()  # which "meta", a device without memory, cannot answer
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise typer.BadParameter(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
