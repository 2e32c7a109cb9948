"""`delineate calibrate`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from delineate.cli.completing import HOUSE, models
from delineate.cli.options import (
    AdapterOption,
    DatasetsArgument,
    DeviceOption,
    FoldOption,
    JsonOption,
    ModalityOption,
    TargetOption,
    ThreadsOption,
    base_of,
    compute,
    fold_of,
    fraction,
    print_json,
)
from delineate.cli.progress import progress_bar
from delineate.cli.telling import err, out, say


def calibrate(
    model: Annotated[
        Path,
        typer.Argument(
            autocompletion=models,
            help=f"Model folder; what is found is kept in it, or in the adapter. '{HOUSE}' with --output or --adapter.",
        ),
    ],
    datasets: DatasetsArgument,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a calibrated copy there and leave the model as it is.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Whose subjects: val (of local scans all), test or all; not those it was trained on."),
    ] = None,
    local: Annotated[
        bool,
        typer.Option("--local", help="Labelled scans of your own place: keep all that is known of other targets."),
    ] = False,
    adapter: AdapterOption = None,
    proposals: Annotated[
        int, typer.Option("--proposals", "-n", min=1, max=64, help="Masks a target; guarantees hold for this many.")
    ] = 8,
    false_alarms: Annotated[
        str,
        typer.Option(
            callback=fraction, metavar="SHARE", help="How often a target that is not there may be called found."
        ),
    ] = "5%",
    target: TargetOption = None,
    modality: ModalityOption = None,
    fold: FoldOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Let held-out subjects say how far a model can be believed: probabilities, likely absent, guarantees.

    With --local, on labelled scans of another scanner or place, from which nothing was learnt; with --adapter, of the
    model and that adapter together. Ten subjects carry a guarantee of 10 %, 5 % needs 19, 1 % needs 99.
    """
    from delineate.storage.shipped import house_folder

    if base_of(model) is None:
        if output is None and adapter is None:
            raise typer.BadParameter("the model that ships stays as it is; give --output for a calibrated copy of it")
        model = house_folder()
    from delineate.jobs.calibrate import CalibrateRequest, calibrate_model

    chosen = compute(threads, device)
    alarms: Any = false_alarms  # a float by `fraction`
    request = CalibrateRequest(
        model, datasets, split, proposals, alarms, target, modality, fold_of(fold), local, adapter
    )
    with progress_bar(err, quiet=as_json) as bar:
        found = calibrate_model(request, output, device=chosen, watch=bar)
    summary = found.summary()
    if as_json:
        print_json(summary)
        return
    table = Table(
        "target", "subjects", *(f"misses ≤ {100 * a:g}%" for a in summary["shares"]), box=None, pad_edge=False
    )
    for name, row in summary["targets"].items():
        table.add_row(name, str(row["subjects"]), *(f"p ≥ {t:.3g}" if t is not None else "-" for t in row["missed"]))
    out.print(table)
    for line in summary["lines"]:
        say(line)
    out.print(f"{output or adapter or model}", soft_wrap=True)
