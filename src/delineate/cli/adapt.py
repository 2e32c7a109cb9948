"""`delineate adapt`."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from delineate.adapters import ADAPTERS, TARGETS, AdapterConfig
from delineate.cli.options import (
    MOST_MINUTES,
    BaseArgument,
    DatasetArgument,
    DeviceOption,
    DryRunOption,
    ImagesOption,
    JsonOption,
    ModalityOption,
    TargetOption,
    ThreadsOption,
    base_of,
    budget_of,
    compute,
    number,
    print_json,
    seed_option,
)
from delineate.cli.progress import progress_bar
from delineate.cli.telling import err, out, say

MINUTES = 3.0  # of adapting, unless told otherwise


def adapt(
    model: BaseArgument,
    dataset: DatasetArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="Adapter folder to write.")],
    shots: Annotated[
        str | None,
        typer.Option(help="Labelled subjects to learn from, drawn from the train split: a number or all (5)."),
    ] = None,
    slices: Annotated[int | None, number(1, 10**6, "Learn from this many slices of them only.")] = None,
    kind: Annotated[str, typer.Option(help="; ".join(f"{k}: {e.summary}" for k, e in ADAPTERS.items()) + ".")] = "lora",
    rank: Annotated[int, number(1, 1024, "Of the low-rank part (lora, salt).")] = 8,
    alpha: Annotated[
        float | None,
        number(0.001, 1e6, "LoRA's factor times rank; the rank itself."),
    ] = None,
    targets: Annotated[str, typer.Option(help=f"Layers that lora and salt change: {', '.join(TARGETS)}.")] = "all",
    singular: Annotated[int, number(0, 4096, "Singular values that salt scales and shifts.")] = 16,
    hold_out: Annotated[
        str,
        typer.Option(
            help="Who is asked when to stop, and whether it helped: val (that split), rest (train subjects that were "
            "not drawn), one-out (each shot in turn), none; auto takes the first that can be."
        ),
    ] = "auto",
    source: Annotated[
        str | None, typer.Option(help="Dataset of the model's own kind of scan: what does the adapter cost there?")
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option(help="Folder of more scans of the new kind, to learn its usual grey values from.")
    ] = None,
    n4: Annotated[
        bool, typer.Option("--n4", help="Correct bias fields first, now and whenever it is used (MR).")
    ] = False,
    name: Annotated[
        list[str] | None,
        typer.Option("--map", help="LABEL=NAME: a label of the dataset by the model's name, or a new one."),
    ] = None,
    augmentation: Annotated[
        str, typer.Option(help="How slices are varied; `delineate train --help` lists them all.")
    ] = "nnunet",
    rate: Annotated[
        float | None,
        number(1e-9, 10, "Learning rate; by default that of the kind."),
    ] = None,
    minutes: Annotated[
        float | None,
        number(0.01, MOST_MINUTES, "Train for this much wall time (default 3)."),
    ] = None,
    images: ImagesOption = None,
    seed: Annotated[int, seed_option("Of the draw of subjects and the whole training.")] = 0,
    target: TargetOption = None,
    modality: ModalityOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = "auto",
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Carry a model to another kind of scan by a few labelled ones; run again to go on after a stop."""
    from delineate.data.augmentation import AUGMENTATIONS
    from delineate.few_shot.shots import HOLD_OUT

    for option, value, known in (
        ("--kind", kind, ADAPTERS),
        ("--targets", targets, TARGETS),
        ("--hold-out", hold_out, HOLD_OUT),
        ("--augmentation", augmentation, AUGMENTATIONS),
    ):
        if value not in known:
            raise typer.BadParameter(f"{option} is one of {', '.join(known)}; got '{value}'")
    names = dict(_pair(text) for text in name or ())
    from delineate.jobs.adapt import AdaptRequest
    from delineate.jobs.adapt import adapt as run

    chosen = compute(threads, device)
    budget = {"minutes": MINUTES, "images": None} if minutes is None and images is None else budget_of(minutes, images)
    request = AdaptRequest(
        base_of(model),
        dataset,
        AdapterConfig(kind, rank, alpha or float(rank), targets, singular),
        shots=_count(shots),
        slices=slices,
        hold_out=hold_out,
        source=source,
        unlabelled=unlabelled,
        n4=n4,
        names=names,
        augmentation=augmentation,
        learning_rate=rate,
        **budget,
        seed=seed,
        target=target,
        modality=modality,
    )
    if dry_run:
        from delineate.jobs.preview import of_adapting

        print_json(of_adapting(request) | {"output": str(output), "device": chosen})
        return
    with progress_bar(err, quiet=as_json) as bar:
        report = run(request, output, device=chosen, watch=bar)
    if as_json:
        print_json(report)
        return
    _print_report(report, output)


def _count(text: str | None) -> int | str | None:
    """A number of shots, "all", or None for the usual."""
    if text is None or (text := text.strip().lower()) == "all":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise typer.BadParameter(f"--shots is a number from 1, or all; got '{text}'")
    return int(text)


def _pair(text: str) -> tuple[str, str]:
    label, mark, name = (part.strip() for part in text.partition("="))
    if not (label and mark and name):
        raise typer.BadParameter(f"--map is LABEL=NAME, as in lk=\"left kidney\"; got '{text}'")
    return label, name


def _print_report(report: dict[str, Any], output: Path) -> None:
    """Dice before and after, on the source too where it was measured, and the verdict."""
    columns = ("before", "after", "source before", "source after")
    there = [c for c in columns if any(c in means for means in report["targets"].values())]
    table = Table("target", box=None, pad_edge=False)
    for column in there:
        table.add_column(column, justify="right")
    for target, means in report["targets"].items():
        table.add_row(target, *(f"{means[c]:.3f}" if c in means else "–" for c in there))
    if there:
        out.print(table)
    for label, name in report["training"]["renamed"].items():
        out.print(f"label '{label}' is taken for '{name}'", soft_wrap=True)
    share = report["own_parameters"] / report["base_parameters"]
    out.print(
        f"{report['sentence']}\n{report['own_parameters']} parameters, {share:.1%} of the model's\n"
        f"adapter: {output}  {output / 'dice.png' if there else ''}",
        highlight=False,
        soft_wrap=True,
    )
    if report["verdict"] not in ("better", "seems better"):
        say("delineate: the held-out subjects do not show that this adapter helps")
