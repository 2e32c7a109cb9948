"""Options that several commands share, and what is made of their values."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from delineate.evaluation.protocols import PROTOCOLS
from delineate.prompts.modality import modality_code
from delineate.systems import SYSTEMS

if TYPE_CHECKING:
    from delineate.data.folds import Fold

# Names out of files are printed as they are: markup in them would be obeyed, or fail.
out = Console(markup=False, emoji=False)
err = Console(stderr=True, markup=False, emoji=False)

ModelOption = Annotated[
    Path | None, typer.Option("--model", "-m", help="Model folder. Without it the model that ships with delineate.")
]
AdapterOption = Annotated[
    Path | None, typer.Option("--adapter", "-a", help="Adapter folder that `delineate adapt` wrote for this model.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts instead of text.")]
SeedOption = Annotated[int, typer.Option(help="Proposal k depends on model, scan, prompt, seed and k alone.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads; recorded, since results depend on it.")]
DeviceOption = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")]
TargetOption = Annotated[
    list[str] | None,
    typer.Option("--target", help='What the masks of every images/ + masks/ folder show, such as "breast lesion".'),
]


def fraction(text: str | None) -> float | None:
    """A share as a person writes it, "5%" or "0.05", above 0 and below 1."""
    if text is None:
        return None
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise typer.BadParameter(f"a share is written as 5% or 0.05, above 0 and below 1; got '{text}'")
    return value


ModalityOption = Annotated[
    str | None,
    typer.Option(callback=modality_code, help="CT, MR, US, …; for datasets it overrides what dataset.json says."),
]
SystemArgument = Annotated[str, typer.Argument(help=f"A named system: {', '.join(SYSTEMS)}.")]
DATASET_HELP = "nnU-Net/MSD layout, or images/ + masks/. FOLDER=TARGET[,TARGET][@MODALITY] says what its masks show."
DatasetArgument = Annotated[str, typer.Argument(help=f"Dataset folder: {DATASET_HELP}")]
DatasetsArgument = Annotated[list[str], typer.Argument(help=f"One or more dataset folders: {DATASET_HELP}")]
PresetOption = Annotated[
    str, typer.Option(help="Size: tiny is for a CPU; what else there is, `delineate systems` tells for each system.")
]
FoldOption = Annotated[
    str | None, typer.Option(help="NUMBER/OF, as 1/4: that fold of a cross-validation by subject, not splits.json.")
]
MinutesOption = Annotated[float | None, typer.Option(min=0.01, help="Train for this much wall time (default 10).")]
ImagesOption = Annotated[
    int | None,
    typer.Option(min=1, help="Train on this many images instead; only this repeats, to the bit on one machine."),
]
HOUSE = "house"
BaseArgument = Annotated[Path, typer.Argument(help=f"Model folder; '{HOUSE}' for the one that ships.")]
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
    float | None, typer.Option(min=0, max=1, help="Chance of a patch, or weight of a loss, to be the real one (0.6).")
]
CellOption = Annotated[
    int | None, typer.Option(min=1, help="Side of a merged patch in pixels of the working grid (a sixth of its side).")
]


def say(text: str) -> None:
    """A line for the user on standard error, as it is."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """JSON for scripts on standard output."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def preset_of(name: str, known: Iterable[str]) -> str:
    """The preset, or wrong usage."""
    if name not in known:
        raise typer.BadParameter(f"--preset is one of {', '.join(known)}; got '{name}'")
    return name


def base_of(path: Path) -> Path | None:
    """The folder, or None for the model that ships (a folder of that name comes first)."""
    return None if str(path) == HOUSE and not path.exists() else path


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
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"--device {device} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
