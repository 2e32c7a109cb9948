"""`delineate synthesize`."""

from pathlib import Path
from typing import Annotated

import typer

from delineate.cli.completing import presets
from delineate.cli.options import (
    DatasetArgument,
    DeviceOption,
    FoldOption,
    ImagesOption,
    JsonOption,
    MinutesOption,
    ModalityOption,
    TargetOption,
    ThreadsOption,
    budget_of,
    compute,
    fold_of,
    number,
    preset_of,
    print_json,
    seed_option,
)
from delineate.cli.progress import progress_bar
from delineate.cli.telling import err, out, say
from delineate.systems import PRESETS

WEAK = 0.5  # Dice of the gate's segmenter on its own training scans


def synthesize(
    dataset: DatasetArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the enlarged dataset.")],
    variants: Annotated[
        int, typer.Option("--variants", "-k", min=1, max=100, help="New scans for each real one.")
    ] = 10,
    foundation: Annotated[
        Path | None,
        typer.Option(help="Stable Diffusion folder, or what `pretrain --edges` wrote; else the one of the package."),
    ] = None,
    edges: Annotated[str, typer.Option(help="What is kept of the real scan: scharr, canny, hed or none.")] = "scharr",
    label_boundary: Annotated[bool, typer.Option(help="Draw the outlines of the masks into the edges.")] = True,
    hed: Annotated[Path | None, typer.Option(help="Folder with HED's weights (.safetensors), for --edges hed.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps of DDIM.")] = 20,
    guidance: Annotated[
        float,
        number(0, 100, "How far the caption is exaggerated; 1 is not at all."),
    ] = 1.0,
    look: Annotated[
        float,
        number(0, 1, "Weight of a random look (dark, sharp, …) in the caption."),
    ] = 0.5,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Judge every scan, but reject none.")] = False,
    preset: Annotated[
        str, typer.Option(autocompletion=presets, help="Size of a new edge control, where the foundation has none.")
    ] = "tiny",
    minutes: MinutesOption = None,
    images: ImagesOption = None,
    seed: Annotated[int, seed_option("Of the training and of every scan drawn.")] = 0,
    target: TargetOption = None,
    modality: ModalityOption = None,
    fold: FoldOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
) -> None:
    """Enlarge a labelled dataset: new scans on the old masks, made from its train split; run again to go on."""
    from delineate.jobs.synthesize import SynthesizeRequest, synthesize
    from delineate.synthesis.artist import Drawing

    chosen = compute(threads, device)
    request = SynthesizeRequest(
        dataset,
        Drawing(variants, edges, label_boundary, steps, guidance, look, keep_all),
        foundation,
        hed,
        preset_of(preset, PRESETS),
        **budget_of(minutes, images),
        seed=seed,
        target=target,
        modality=modality,
        fold=fold_of(fold),
    )
    with progress_bar(err, quiet=as_json) as bar:
        summary = synthesize(request, output, device=chosen, watch=bar)
    if as_json:
        print_json(summary)
        return
    rejected = ", ".join(f"{count} for {reason}" for reason, count in summary["rejected"].items()) or "none"
    out.print(
        f"{summary['cases']} real training cases, {summary['drawn']} scans drawn, {summary['kept']} kept; "
        f"rejected: {rejected}\n{output / 'contact_sheet.png'}  {output / 'provenance.json'}",
        highlight=False,
        soft_wrap=True,
    )
    if not keep_all and summary["segmenter_on_real"] < WEAK:
        say(
            f"delineate: the gate's segmenter reaches Dice {summary['segmenter_on_real']:.2f} on the real training "
            "scans, so its check of the masks says little; train longer (--minutes)"
        )
