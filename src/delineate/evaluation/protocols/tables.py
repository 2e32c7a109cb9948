"""What the texts of several protocols share: tables for the screen."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from delineate.evaluation.protocols.lines import counted


def blocks_of(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The targets and, where there are several, all of them."""
    targets = list(summary["targets"].items())
    return targets if len(targets) == 1 else [*targets, ("all", summary["mean"])]


def print_targets(summary: dict[str, Any], headings: Mapping[str, str], console: Console) -> None:
    """A line a target; nothing where there is one only."""
    blocks = blocks_of(summary)
    if len(blocks) == 1:
        return
    keys = [key for key in headings if any(key in block["figures"] for _, block in blocks)]
    table = Table(box=None, pad_edge=False)
    table.add_column("target")
    for heading in ("n", *(headings[key] for key in keys)):
        table.add_column(heading, justify="right")
    for name, block in blocks:
        means = (block["figures"].get(key) for key in keys)
        table.add_row(name, str(block["n"]), *("" if m is None else _number(m["mean"]) for m in means))
    console.print(table)
    console.print()


def print_figures(summary: dict[str, Any], headings: Mapping[str, str], console: Console) -> None:
    """A line a figure: mean, interval, where drawn."""
    figures = summary["mean"]["figures"]
    name = next(iter(summary["targets"])) if len(summary["targets"]) == 1 else "mean of targets"
    table = Table(box=None, pad_edge=False)
    table.add_column(name)
    for heading in ("mean", "95 % interval", "where drawn", "n"):
        table.add_column(heading, justify="right")
    for key in (key for key in headings if key in figures):
        figure = figures[key]
        interval = "" if figure["low"] is None else f"{_number(figure['low'])} to {_number(figure['high'])}"
        present = "" if figure["present"] is None else _number(figure["present"])
        table.add_row(headings[key], _number(figure["mean"]), interval, present, str(figure["n"]))
    console.print(table)


def print_counts(summary: dict[str, Any], console: Console) -> None:
    """How many scans and subjects, and what was empty."""
    empty = summary["mean"]["empty"]
    console.print(
        f"{counted(summary)}; empty in every reading: {empty['readings']} of {summary['mean']['n']}, "
        f"of these empty in every proposal: {empty['both']}; means are over subjects",
        highlight=False,
    )


def _number(value: float) -> str:
    return f"{value:.{3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0}f}"
