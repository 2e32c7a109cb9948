"""`delineate study`."""

from pathlib import Path
from typing import Annotated

import typer

from delineate.cli.completing import systems
from delineate.cli.options import (
    DatasetsArgument,
    DeviceOption,
    ImagesOption,
    JsonOption,
    MinutesOption,
    PresetOption,
    ThreadsOption,
    budget_of,
    compute,
    number,
    print_json,
    seed_option,
)
from delineate.cli.progress import progress_bar
from delineate.cli.telling import err, out
from delineate.evaluation.studies import STUDIES, StudyRequest


def study(
    name: Annotated[str, typer.Argument(help="; ".join(f"{n}: {row.summary}" for n, row in STUDIES.items()) + ".")],
    datasets: DatasetsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for report.json, a picture and the models.")],
    system: Annotated[
        list[str] | None,
        typer.Option(autocompletion=systems, help="A system to compare; repeat for several. Without it every network."),
    ] = None,
    preset: PresetOption = "tiny",
    size: Annotated[int | None, number(32, 1024, "Side of the working grid; a multiple of 32.")] = None,
    minutes: MinutesOption = None,
    images: ImagesOption = None,
    seed: Annotated[list[int] | None, seed_option("Of a training; repeat for several (0).")] = None,
    split: Annotated[str, typer.Option(help="val or test; only test is a result.")] = "test",
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Compare many systems on datasets at equal training; run again to go on after a stop."""
    budget = budget_of(minutes, images)
    request = StudyRequest(
        name, datasets, tuple(system or ()), preset, size, **budget, seeds=tuple(seed or (0,)), split=split
    )
    from delineate.jobs.study import make_study

    chosen = compute(threads, device)
    with progress_bar(err, quiet=as_json) as bar:
        report = make_study(request, output, device=chosen, watch=bar)
    if as_json:
        print_json(report)
        return
    STUDIES[name].show(report, out)
    out.print(f"{output / 'report.json'}  {output / STUDIES[name].picture}", soft_wrap=True)
