"""Dice, IoU and surfaces of single proposals, of every fusion and of the best: `delineate.evaluation.evaluation`."""

from pathlib import Path
from typing import Any

from delineate.evaluation.evaluation import evaluate as rows
from delineate.evaluation.evaluation import summarise
from delineate.evaluation.report import print_summary as show
from delineate.evaluation.report import write_rows as write
from delineate.pictures import dice_chart

__all__ = ["draw", "rows", "show", "summarise", "write"]


def draw(name: str, report: dict[str, Any], path: Path) -> Path:
    """A chart of Dice, a group a target."""
    return dice_chart({name: report}, path)
