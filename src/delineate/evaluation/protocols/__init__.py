"""What can be measured of a segmenter on a dataset: named protocols. Adding one is an entry in `PROTOCOLS`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from delineate.data.dataset import Dataset
from delineate.evaluation.evaluation import evaluate, summarise
from delineate.evaluation.protocols.calibration import calibration_line, summarise_calibration
from delineate.evaluation.protocols.charts import curvas_chart, raters_chart, reliability_chart
from delineate.evaluation.protocols.curvas import curvas_line, summarise_curvas
from delineate.evaluation.protocols.lines import Line, lines_of, write_lines
from delineate.evaluation.protocols.raters import raters_line, summarise_raters
from delineate.evaluation.protocols.tables import print_calibration, print_curvas, print_raters
from delineate.evaluation.report import print_summary, write_rows
from delineate.pictures import dice_chart
from delineate.segmenter import Segmenter


@dataclass(frozen=True)
class Protocol:
    """One way to score a segmenter.

    Attributes:
        rows: (segmenter, dataset, split=, n=, seed=, limit=, on_step=) to what is known of every case and target.
        summarise: rows to what goes into report.json, with `targets` and `mean`.
        write: (rows, path) writes them as CSV.
        picture: the picture's file name.
        draw: (dataset's name, report, path) draws it.
        show: (report, console) prints it.
    """

    rows: Callable[..., Sequence[Any]]
    summarise: Callable[[Sequence[Any]], dict[str, Any]]
    write: Callable[[Sequence[Any], Path], None]
    picture: str
    draw: Callable[[str, dict[str, Any], Path], Path]
    show: Callable[[dict[str, Any], Console], None]


def _calibration_lines(segmenter: Segmenter, dataset: Dataset, **how: Any) -> list[Line]:
    """With what the segmenter makes of its means, where it is calibrated."""
    calibrator = None if segmenter.calibration is None else segmenter.calibration.calibrated
    return lines_of(partial(calibration_line, calibrator=calibrator), segmenter, dataset, **how)


def _dice_chart(name: str, report: dict[str, Any], path: Path) -> Path:
    return dice_chart({name: report}, path)


PROTOCOLS: dict[str, Protocol] = {
    "overlap": Protocol(evaluate, summarise, write_rows, "dice.png", _dice_chart, print_summary),
    "raters": Protocol(
        partial(lines_of, raters_line), summarise_raters, write_lines, "raters.png", raters_chart, print_raters
    ),
    "curvas": Protocol(
        partial(lines_of, curvas_line), summarise_curvas, write_lines, "curvas.png", curvas_chart, print_curvas
    ),
    "calibration": Protocol(
        _calibration_lines, summarise_calibration, write_lines, "reliability.png", reliability_chart, print_calibration
    ),
}
