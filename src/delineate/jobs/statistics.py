"""The figures of a cohort in one table, and those of a case beside its masks.

The table is made anew of what lies in the folder, so that it is whole whoever wrote the cases: one run, several that
were stopped and went on, or sixteen parts at once.
"""

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from delineate.proposals.proposals import Proposals
from delineate.proposals.statistics import measured
from delineate.storage.files import write_text
from delineate.storage.places import CASE, read_case
from delineate.storage.swapping import waiting

TABLE = "statistics.csv"
STATISTICS = "statistics.json"
COLUMNS = (
    "case",
    "target",
    "prompt",
    "outcome",
    "score",
    "expected_dice",
    "expected_dice_low",
    "expected_dice_high",
    *("volume_ml", "volume_ml_low", "volume_ml_high"),
    *("area_pixels", "area_pixels_low", "area_pixels_high"),
    "interval_calibrated",
    *("mean_grey", "std_grey", "grey_unit"),
    *("longest_axial_diameter_mm", "longest_diameter_pixels"),
    "components",
    *("slice_axis", "first_slice", "last_slice"),
    "model_sha256",
    "adapter_sha256",
)
FORMULAS = ("=", "+", "-", "@", "\t", "\r", "'")  # how a cell begins that a spreadsheet would work out, or unquote


def figures_of(proposals: Proposals, how: str) -> list[dict[str, Any]]:
    """What is measured of each target's consensus, in the order asked; empty where nothing was drawn."""
    figures: list[dict[str, Any]] = []
    for target in proposals:
        told = {} if target.drawn is None else asdict(measured(target.consensus(how), proposals.scan))
        figures.append({name: round(v, 3) if isinstance(v, float) else v for name, v in told.items()})
    return figures


def write_table(folder: Path) -> Path:
    """Write `statistics.csv` of all cases that are finished in a folder, a row a target, and return its path.

    Several commands at work in the folder write it one after another: the last of them finds all cases.
    """
    with waiting(folder / "run.jsonl"):
        out = io.StringIO()
        table = csv.DictWriter(out, COLUMNS, lineterminator="\n")
        table.writeheader()
        for place in sorted(path.parent for path in folder.glob(f"[!.]*/{CASE}")):
            if (entry := read_case(place)) is None:
                continue
            whole = {"case": place.name} | {name: entry.get(name) for name in ("model_sha256", "adapter_sha256")}
            for row in rows_of(entry):
                table.writerow({name: cell(value) for name, value in (row | whole).items()})
        write_text(folder / TABLE, out.getvalue())
    return folder / TABLE


def rows_of(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every target of a case, by its `case.json`: `COLUMNS`, as far as they are known."""
    rows = []
    for target in entry["targets"]:
        row: dict[str, Any] = {name: target.get(name) for name in ("target", "prompt", "outcome", "score")}
        if (expected := target.get("expected_dice")) is not None:
            row |= {"expected_dice": expected["dice"]} | {f"expected_dice_{e}": expected[e] for e in ("low", "high")}
        for name, key in (("volume_ml", "ml"), ("area_pixels", "pixels")):
            if (interval := target.get(f"interval_{key}")) is not None:
                row |= {name: target[f"consensus_{key}"]} | {f"{name}_{e}": interval[e] for e in ("low", "high")}
                row["interval_calibrated"] = interval["calibrated"]
        row |= target.get("measured", {})
        rows.append({name: row[name] for name in COLUMNS if row.get(name) is not None})
    return rows


def cell(value: Any) -> Any:
    """A value as it is written. Text that a spreadsheet would take for a formula gets an apostrophe before it.

    >>> cell("=1+1"), cell("liver"), cell(-3.5), cell(True), cell(None)
    ("'=1+1", 'liver', -3.5, 'true', '')
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = value.encode(errors="backslashreplace").decode()
        return f"'{text}" if text.startswith(FORMULAS) else text
    return value
