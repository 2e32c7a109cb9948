"""`delineate pretrain`."""

from pathlib import Path
from typing import Annotated

import typer

from delineate.cli.options import (
    DatasetsArgument,
    DeviceOption,
    FoldOption,
    ImagesOption,
    MinutesOption,
    ModalityOption,
    PresetOption,
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
from delineate.systems import PRESETS


def pretrain(
    datasets: DatasetsArgument,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the foundation (Stable Diffusion layout).")
    ],
    preset: PresetOption = "tiny",
    codec: Annotated[
        str | None,
        typer.Option(
            help="unshuffle (lossless, grey), unshuffle-rgb (in colour; usual with --edges) or vae (latents)."
        ),
    ] = None,
    edges: Annotated[
        bool, typer.Option("--edges", help="Also learn to draw scans from edges, for `delineate synthesize`.")
    ] = False,
    minutes: MinutesOption = None,
    images: ImagesOption = None,
    seed: Annotated[int, seed_option("Of the whole training.")] = 0,
    target: TargetOption = None,
    modality: ModalityOption = None,
    fold: FoldOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Train a foundation: a text-to-image model of scans and masks, for `train progidiff` and `synthesize`."""
    from delineate.jobs.pretrain import PretrainRequest, pretrain_foundation

    chosen = compute(threads, device)
    request = PretrainRequest(
        datasets,
        preset_of(preset, PRESETS),
        codec,
        edges,
        **budget_of(minutes, images),
        seed=seed,
        target=target,
        modality=modality,
        fold=fold_of(fold),
    )
    with progress_bar(err) as bar:
        pretrain_foundation(request, output, device=chosen, watch=bar)
    out.print(f"foundation: {output}", soft_wrap=True)
