"""The summaries of the protocols as text for the screen."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from delineate.evaluation.protocols import calibration, curvas, raters
from delineate.evaluation.protocols.lines import counted


def print_raters(summary: dict[str, Any], console: Console) -> None:
    """The table of `raters.summarise_raters`, and what its figures depend on."""
    short = {"ged": "GED²", "hm_iou": "IoU", "dice_match": "Dice", "dice_soft": "agreement", "diversity": "diversity"}
    _print_targets(summary, short, console)
    _print_figures(summary, raters.HEADINGS, console)
    _print_counts(summary, console)
    console.print(
        "GED² in its V form and the Dice with the nearest proposal change with N alone: compare them at equal N only "
        "(raters.png has both against N).",
        highlight=False,
    )


def print_curvas(summary: dict[str, Any], console: Console) -> None:
    """The table of `curvas.summarise_curvas`."""
    short = {"consensus_dice": "Dice", "threshold_dice": "agreement", "ece": "ECE", "ece_crop": "ECE box"}
    short |= {"crps_ml": "CRPS ml", "crps_pixels": "CRPS pixels"}
    _print_targets(summary, short, console)
    _print_figures(summary, curvas.HEADINGS, console)
    _print_counts(summary, console)


def print_calibration(summary: dict[str, Any], console: Console) -> None:
    """The pooled figures of `calibration.summarise_calibration`, the risk–coverage curve and presence in words."""
    for region, where in (
        (calibration.BOX, f"in a box, {summary['margin_voxels']} voxels around what is drawn or true"),
        (calibration.WHOLE, "over all voxels, most of which are easy background"),
    ):
        console.print(f"all cases together, {where}", highlight=False)
        table = Table(box=None, pad_edge=False)
        table.add_column("target")
        for heading in ("ECE", "adaptive", "MCE", "Brier", "NLL"):
            table.add_column(heading, justify="right")
        for name, block in _blocks(summary):
            for kind, regions in block["pooled"].items():
                for against, told in regions[region].items():
                    words = [name, *([] if kind == calibration.DRAWN else ["calibrated"])]
                    words += ["against the raters"] if against == "raters" else []
                    numbers = (told[key] for key in ("ece", "adaptive_ece", "mce", "brier", "nll"))
                    table.add_row(", ".join(words), *(f"{number:.4f}" for number in numbers))
        console.print(table)
        console.print()
    mean = summary["mean"]
    for kind, curves in mean["risk_coverage"].items():
        for which, curve in curves.items():
            told = "" if kind == calibration.DRAWN else " of the calibrated map"
            masks = "masks" if which == "all" else "masks that are not empty"
            console.print(
                f"risk–coverage over {curve['n']} {masks} in the order of doubt{told}: 1 - Dice {curve['area']:.3f} "
                f"(in the best order {curve['least']:.3f}, in none {curve['mean_risk']:.3f})",
                highlight=False,
            )
    presence = mean["presence"]
    area = "no ROC, for which both are needed" if presence["auroc"] is None else f"AUROC {presence['auroc']:.3f}"
    console.print(
        f"presence: {presence['present']} present, {presence['found_of_present']} of them called found; "
        f"{presence['absent']} absent, {presence['found_of_absent']} of them called found; {area}",
        highlight=False,
    )
    _print_counts(summary, console)


def _blocks(summary: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The targets and, where there are several, all of them."""
    targets = list(summary["targets"].items())
    return targets if len(targets) == 1 else [*targets, ("all", summary["mean"])]


def _print_targets(summary: dict[str, Any], headings: Mapping[str, str], console: Console) -> None:
    """A line a target; nothing where there is one only."""
    blocks = _blocks(summary)
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


def _print_figures(summary: dict[str, Any], headings: Mapping[str, str], console: Console) -> None:
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


def _print_counts(summary: dict[str, Any], console: Console) -> None:
    empty = summary["mean"]["empty"]
    console.print(
        f"{counted(summary)}; empty in every reading: {empty['readings']} of {summary['mean']['n']}, "
        f"of these empty in every proposal: {empty['both']}; means are over subjects",
        highlight=False,
    )


def _number(value: float) -> str:
    return f"{value:.{3 if abs(value) < 10 else 1 if abs(value) < 1000 else 0}f}"
