"""`delineate split`."""

from typing import Annotated

import typer
from rich.table import Table

from delineate.cli.options import DatasetArgument, JsonOption, print_json, seed_option
from delineate.cli.progress import progress_bar
from delineate.cli.telling import err, out

SHOWN = 6  # names of a split, groups that look alike


def split(
    dataset: DatasetArgument,
    fractions: Annotated[
        tuple[float, float, float],
        typer.Option(metavar="TRAIN VAL TEST", help="Shares of the subjects; 0 leaves val or test empty."),
    ] = (0.7, 0.1, 0.2),
    seed: Annotated[int, seed_option("Of the draw.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Divide a dataset into train, val and test by subject; those whose images look alike stay together."""
    with progress_bar(err, quiet=as_json) as bar:
        bar.start("comparing images")
        from delineate.jobs.split import SplitRequest, split_dataset

        report = split_dataset(SplitRequest(dataset, fractions, seed))
    if as_json:
        print_json(report)
        return
    table = Table("split", "subjects", "cases", "who", box=None, pad_edge=False)
    for name, subjects in report["subjects"].items():
        table.add_row(name, str(len(subjects)), str(report["cases"][name]), shortened(subjects))
    out.print(table)
    if report["alike"]:
        out.print(
            f"alike, so kept together: {shortened(['/'.join(group) for group in report['alike']])}", soft_wrap=True
        )
    else:
        out.print("no two subjects look alike")
    out.print(report["splits"], soft_wrap=True)


def shortened(names: list[str]) -> str:
    """The first of many names, and how many more."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
