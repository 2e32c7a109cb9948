"""Figures as tables: CSV for spreadsheets, text for the screen."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from delineate.storage.files import write_text

if TYPE_CHECKING:
    from delineate.data.check import CheckReport
    from delineate.evaluation.evaluation import Row

MOST_CASES = 200  # in the table of a run


def write_rows(rows: Sequence["Row"], path: Path) -> None:
    """One line a target and case."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    first = next(iter(rows[0].consensus))
    fused = list(rows[0].consensus)
    writer.writerow(
        ["case", "target", "present", "outcome", "score", "single_dice", "mean_single_dice", "mean_single_iou"]
        + ["oracle_dice"]
        + [f"{how}_dice" for how in fused]
        + ["iou", "ged", "hd95_mm", "nsd", "emptiness", "wrong_prompt_dice"]
    )
    for row in rows:
        scores = row.consensus[first]
        numbers = [row.score, row.single["dice"], row.single["mean_dice"], row.single["mean_iou"], row.oracle]
        numbers += [row.consensus[how]["dice"] for how in fused]
        numbers += [scores["iou"], row.ged, scores["hd95_mm"], scores["nsd"]]
        cells = [f"{v:.4f}" for v in numbers]
        head = [row.case, row.target, str(row.present), row.outcome]
        writer.writerow([*head, *cells, str(scores["emptiness"]), f"{row.wrong:.4f}"])
    write_text(path, text.getvalue())


def print_summary(summary: dict[str, Any], console: Console) -> None:
    """The table of a `delineate.evaluation.evaluation.summarise`."""
    table = Table(box=None, pad_edge=False)
    for heading in ("target", "n", "single", "consensus", "oracle", "GED²", "HD95 mm", "NSD", "wrong prompt"):
        table.add_column(heading, justify="left" if heading == "target" else "right")
    for name, t in [*summary["targets"].items(), ("mean", summary["mean"])]:
        if "single_dice" not in t:  # no case shows any target
            continue
        table.add_row(
            name,
            str(t.get("n", "")),
            *(f"{t[k]:.3f}" for k in ("single_dice", "consensus_dice", "oracle_dice", "ged")),
            f"{t['hd95_mm']:.1f}",
            f"{t['nsd']:.3f}",
            f"{t['wrong_prompt_dice']:.3f}",
        )
    console.print(table)
    absent, present = summary["absent"], summary["present"]
    if everywhere := summary["mean"].get("all_cases"):
        console.print(
            f"The table is of cases in which a target is present. Over all {everywhere['n']}, where two empty masks "
            f"score 1 and one of two 0: single {everywhere['single_dice']:.3f}, consensus "
            f"{everywhere['consensus_dice']:.3f}, oracle {everywhere['oracle_dice']:.3f}, IoU {everywhere['iou']:.3f}.",
            highlight=False,
        )
    console.print(
        f"absent targets: {absent['n']}, of which called found: {absent['said_found']}; "
        f"present targets: {present['n']}, of which called likely absent: {present['said_absent']}; "
        f"slices without the target that got voxels of it: {summary['absent_slices']['rate']:.1%}",
        highlight=False,
    )


def print_run(report: dict[str, Any], folder: Path, console: Console, name: str = "run.json") -> None:
    """The table of a `delineate.jobs.segment.run_cohort` that wrote into `folder`, and where the rest of it lies.

    Of a large cohort the first `MOST_CASES` are shown: `statistics.csv` has them all.
    """
    table = Table("case", "target", "outcome", "score", "consensus", "spread", "distinct", box=None, pad_edge=False)
    shown = report["cases"][:MOST_CASES]
    for case in shown:
        if case["status"] == "failed":
            table.add_row(case["case"], "", "failed", "", "", "", "")
            continue
        for target in case["targets"]:
            unit = "pixels" if "consensus_pixels" in target else "ml"
            volumes = target.get(f"proposals_{unit}", [])
            digits = 0 if unit == "pixels" or max(volumes, default=0) >= 100 else 1
            table.add_row(
                case["case"],
                target["target"] or target["prompt"],
                target["outcome"],
                f"{target['score']:.2f}" if "score" in target else "",
                f"{target[f'consensus_{unit}']:.{digits}f} {unit}" if volumes else "",
                f"{min(volumes):.{digits}f} to {max(volumes):.{digits}f}" if volumes else "",
                _distinct(target.get("distinct", [])),
            )
    console.print(table)
    if more := len(report["cases"]) - len(shown):
        console.print(f"and {more} more cases")
    console.print(f"{folder / name}", soft_wrap=True)
    if (table_of := folder / "statistics.csv").is_file():
        console.print(f"{table_of}", soft_wrap=True)
    for case in shown:
        if "montage.png" in case.get("written", ()):
            console.print(f"{folder / case['case'] / 'montage.png'}", soft_wrap=True)


def _distinct(distinct: Sequence[dict[str, Any]]) -> str:
    """How many proposals stand for all, and the share that the first of several stands for."""
    return f"{len(distinct)}, first {distinct[0]['weight']:.0%}" if len(distinct) > 1 else str(len(distinct) or "")


def print_check(report: "CheckReport", console: Console, say: Callable[[str], None]) -> None:
    """How often each target occurs in a checked dataset; `say` gets one line a problem."""
    console.print(f"{report.name}: {report.cases} cases")
    table = Table("target", "cases", "voxels", box=None, pad_edge=False)
    for name, counts in report.targets.items():
        table.add_row(name, *(str(v) for v in counts.values()))
    console.print(table)
    for problem in report.problems:
        say(f"{problem.severity}: {problem.file}: {problem.what.rstrip('.')}; {problem.fix}")
    if not report.problems:
        console.print("nothing wrong")


def print_comparison(summaries: dict[str, dict[str, Any]], console: Console) -> None:
    """Dice of the consensus, a column for each of several evaluations of the same cases."""
    table = Table(box=None, pad_edge=False)
    table.add_column("Dice")
    for label in summaries:
        table.add_column(label, justify="right")
    names = list(dict.fromkeys(t for s in summaries.values() for t in s["targets"]))
    for name in names:
        cells = [s["targets"].get(name, {}).get("consensus_dice") for s in summaries.values()]
        table.add_row(name, *("" if c is None else f"{c:.3f}" for c in cells))
    means = [s["mean"].get("consensus_dice") for s in summaries.values()]
    table.add_row("mean", *("" if m is None else f"{m:.3f}" for m in means))
    console.print(table)
