"""Models into and out of other houses' folders: the job behind `delineate export` and `delineate import`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delineate.errors import ModelError
from delineate.storage.shipped import house_folder


@dataclass(frozen=True)
class ExportRequest:
    """A model to be written in another layout.

    Attributes:
        model: folder; None for the model that ships.
        layout: a key of `LAYOUTS`.
        licence: of the model, as the Hugging Face Hub names it.
        targets: what a bundle outlines unless it is told otherwise; none for all.
        modality: of a bundle's scans.
        proposals: of a bundle, a target.
    """

    model: Path | None
    layout: str
    licence: str | None = None
    targets: tuple[str, ...] = ()
    modality: str | None = None
    proposals: int = 8


def _hub(request: ExportRequest, output: Path) -> Path:
    from delineate.hub.repository import write_repository

    return write_repository(request.model, output, licence=request.licence)


def _monai(request: ExportRequest, output: Path) -> Path:
    from delineate.bundle.folder import write_bundle

    how = {"targets": request.targets, "modality": request.modality, "n": request.proposals}
    return write_bundle(request.model, output, **how)  # type: ignore[arg-type]


LAYOUTS: dict[str, Callable[[ExportRequest, Path], Path]] = {"hub": _hub, "monai": _monai}


def export(request: ExportRequest, output: Path) -> dict[str, Any]:
    """Write the folder; returns as JSON where it lies, what it is and how many bytes it has.

    Raises:
        ModelError: another layout, a model that is none, or a folder that holds something else.
    """
    if request.layout not in LAYOUTS:
        raise ModelError(f"'{request.layout}': a layout is one of {', '.join(LAYOUTS)}")
    folder = LAYOUTS[request.layout](request, Path(output))
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {"folder": str(folder), "layout": request.layout, "bytes": size}


def import_model(source: str, output: Path) -> dict[str, Any]:
    """Write the model in a bundle, in a folder of the Hub's layout, or at `hf://…` as a model folder.

    Of a bundle nothing is read but the model folder that `export` put there, every file by its hash: no configuration
    is parsed, no code runs.

    Raises:
        ModelError: there is no such model, or it was changed.
    """
    from delineate.hub.repository import place_of, write_model

    folder = place_of(source)
    if folder.resolve() == house_folder().resolve():
        raise ModelError(f"{source}: is the model that ships; use it as -m house")
    return {"model": str(write_model(folder, Path(output))), "source": source}
