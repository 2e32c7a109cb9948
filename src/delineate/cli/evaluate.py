"""`delineate evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from delineate.cli.options import (
    AdapterOption,
    DatasetArgument,
    DeviceOption,
    DryRunOption,
    FoldOption,
    JsonOption,
    ModalityOption,
    ModelOption,
    ProtocolOption,
    SeedOption,
    TargetOption,
    ThreadsOption,
    compute,
    fold_of,
    print_json,
)
from delineate.cli.progress import progress_bar
from delineate.cli.telling import err, out


def evaluate(
    dataset: DatasetArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for report.json, rows.csv and a picture.")],
    model: ModelOption = None,
    adapter: AdapterOption = None,
    protocol: ProtocolOption = "overlap",
    split: Annotated[str, typer.Option(help="train, val, test or all; only test is a result.")] = "test",
    proposals: Annotated[int, typer.Option("--proposals", "-n", min=1, max=64, help="Masks for each target.")] = 8,
    seed: SeedOption = 0,
    target: TargetOption = None,
    modality: ModalityOption = None,
    fold: FoldOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Score a model on the held-out subjects of a dataset, in 3-D: Dice, IoU, HD95 (mm), NSD, or by --protocol."""
    from delineate.evaluation.protocols import PROTOCOLS
    from delineate.jobs.evaluate import EvaluateRequest, evaluate_model

    chosen = compute(threads, device)
    part = fold_of(fold)
    request = EvaluateRequest(dataset, model, adapter, protocol, split, proposals, seed, target, modality, part)
    if dry_run:
        from delineate.jobs.preview import of_evaluating

        print_json(of_evaluating(request) | {"output": str(output), "device": chosen})
        return
    with progress_bar(err, quiet=as_json) as bar:
        summary = evaluate_model(request, output, device=chosen, watch=bar)
    if as_json:
        print_json(summary)
    else:
        PROTOCOLS[protocol].show(summary, out)
        picture = output / PROTOCOLS[protocol].picture
        out.print(f"{output / 'report.json'}  {picture}", soft_wrap=True)
