"""`delineate distance`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from delineate.cli.options import (
    JsonOption,
    ModalityOption,
    number,
    print_json,
)
from delineate.cli.progress import progress_bar
from delineate.cli.telling import err, out, say

if TYPE_CHECKING:
    from delineate.synthesis.distance import Distance

SET_HELP = "a dataset folder (imagesTr/ or images/), a folder of scans, or one volume"
CASES_HELP = "all, real or synthetic, as the folder's provenance.json says."


def distance(
    reference: Annotated[Path, typer.Argument(metavar="REAL", help=f"The reference set: {SET_HELP}.")],
    other: Annotated[Path, typer.Argument(metavar="OTHER", help=f"The set to compare with it: {SET_HELP}.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for distance.json and distance.png.")
    ] = None,
    limit: Annotated[
        int,
        number(8, 10**6, "The most images from each set; scans share it equally, slices evenly spaced."),
    ] = 200,
    size: Annotated[int, typer.Option(min=32, max=512, help="Pixels of the longer side of an image.")] = 128,
    modality: ModalityOption = None,
    reference_cases: Annotated[str, typer.Option(help=f"Of the reference set: {CASES_HELP}")] = "all",
    other_cases: Annotated[str, typer.Option(help=f"Of the other set: {CASES_HELP}")] = "all",
    as_json: JsonOption = False,
) -> None:
    """Measure how far a set of scans lies from a reference set: synthetic from real, one site from another."""
    from delineate.synthesis.distance import WHICH, feature_table, frechet_distance, image_set

    for option, value in (("--reference-cases", reference_cases), ("--other-cases", other_cases)):
        if value not in WHICH:
            raise typer.BadParameter(f"{option} is one of {', '.join(WHICH)}; got '{value}'")
    tables, scans = [], []
    with progress_bar(err, quiet=as_json) as bar:
        for path, which in ((reference, reference_cases), (other, other_cases)):
            bar.start(f"reading {path.name}")
            found = image_set(path, size=size, limit=limit, modality=modality, which=which, on_scan=bar.update)
            bar.start(f"features of {path.name}")
            tables.append(feature_table(found.images, bar.update))
            scans.append(found.scans)
        bar.start("distance")
        result = frechet_distance(*tables, scans=scans[0])
    if output is not None:
        from delineate.storage.files import write_json
        from delineate.synthesis.distance_chart import distance_chart

        write_json(output / "distance.json", result.to_json())
        distance_chart(result, output / "distance.png")
    if as_json:
        print_json(result.to_json())
        return
    _print_distance(result)
    if output is not None:
        out.print(f"{output / 'distance.json'}  {output / 'distance.png'}", soft_wrap=True)


def _print_distance(result: "Distance") -> None:
    """The distance, its groups and the features that differ most; warnings go to standard error."""
    out.print(
        f"distance {result.distance:.2f}, floor {result.floor:.2f} "
        f"({result.n_reference} reference images, {result.n_other} others, {len(result.features)} features)",
        highlight=False,
        soft_wrap=True,
    )
    groups = Table("group", box=None, pad_edge=False)
    for heading in ("distance", "floor"):
        groups.add_column(heading, justify="right")
    for name, group in result.groups.items():
        groups.add_row(name, f"{group.distance:.2f}", f"{group.floor:.2f}")
    out.print(groups)
    features = Table(box=None, pad_edge=False)
    for heading in ("differs most", "in the other set"):
        features.add_column(heading, overflow="fold")
    for feature in result.features[:5]:
        features.add_row(feature.name, feature.in_words())
    out.print(features)
    for line in result.warnings:
        say(f"delineate: {line}")
