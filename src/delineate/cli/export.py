"""`delineate export` and `delineate import`."""

from pathlib import Path
from typing import Annotated

import typer

from delineate.cli.options import BaseArgument, JsonOption, ModalityOption, base_of, number, print_json
from delineate.cli.telling import out


def export(
    model: BaseArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    layout: Annotated[
        str,
        typer.Option("--format", help="monai: a bundle for monai.bundle; hub: as the Hugging Face Hub has it."),
    ] = "hub",
    licence: Annotated[
        str | None, typer.Option("--license", help="hub: the model's licence as the Hub names it, such as cc-by-4.0.")
    ] = None,
    targets: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", help="monai: what it outlines (repeatable); all that was learnt without."),
    ] = None,
    modality: ModalityOption = None,
    proposals: Annotated[int, number(1, 1000, "monai: proposals a target.")] = 8,
    as_json: JsonOption = False,
) -> None:
    """Write a model for other programs: a MONAI bundle, or a repository of the Hugging Face Hub."""
    from delineate.jobs.export import ExportRequest
    from delineate.jobs.export import export as write

    names = tuple(targets or ())
    request = ExportRequest(base_of(model), layout, licence, names, modality, proposals)
    told = write(request, output)
    if as_json:
        print_json(told)
    else:
        out.print(f"{told['layout']}: {told['folder']} ({told['bytes'] / 2**20:.1f} MiB)", soft_wrap=True)


def import_(
    source: Annotated[str, typer.Argument(help="A bundle that `export` wrote, a folder of the Hub, or hf://ORG/NAME.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.")],
    as_json: JsonOption = False,
) -> None:
    """Write the model in a MONAI bundle of ours or on the Hugging Face Hub as a model folder; hashes are compared."""
    from delineate.jobs.export import import_model

    told = import_model(source, output)
    if as_json:
        print_json(told)
    else:
        out.print(f"model: {told['model']}", soft_wrap=True)
