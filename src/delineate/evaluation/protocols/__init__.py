"""What can be measured of a segmenter on a dataset. Adding one is a file in this folder and a row in `PROTOCOLS`.

The table itself needs no torch. Every file that a row names has the same five functions:

    rows(segmenter, dataset, *, split, n, seed, limit, on_step)     what is known of every case and target
    summarise(rows) -> dict                                         what goes into report.json: `targets` and `mean`
    write(rows, path)                                               them as CSV
    draw(name, report, path)                                        the picture
    show(report, console)                                           the table on the screen
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Protocol:
    """A row: one way to score a segmenter, and in which file of this folder it lives.

    Attributes:
        module: the file's name.
        summary: one line for people.
        picture: the picture's file name.
    """

    module: str
    summary: str
    picture: str

    def _file(self) -> Any:
        return import_module(f"delineate.evaluation.protocols.{self.module}")

    def rows(self, segmenter: Any, dataset: Any, **how: Any) -> Sequence[Any]:
        """What is known of every case and target; `how` is split, n, seed, limit and on_step."""
        return self._file().rows(segmenter, dataset, **how)

    def summarise(self, rows: Sequence[Any]) -> dict[str, Any]:
        """Rows as what goes into report.json, with `targets` and `mean`."""
        return self._file().summarise(rows)

    def write(self, rows: Sequence[Any], path: Path) -> None:
        """Rows as CSV."""
        self._file().write(rows, path)

    def draw(self, name: str, report: dict[str, Any], path: Path) -> Path:
        """The picture of a report on the dataset `name`."""
        return self._file().draw(name, report, path)

    def show(self, report: dict[str, Any], console: "Console") -> None:
        """Print a report."""
        self._file().show(report, console)


PROTOCOLS: Mapping[str, Protocol] = {
    "overlap": Protocol("overlap", "Dice, surfaces", "dice.png"),
    "raters": Protocol("raters", "proposals against several raters: GED²", "raters.png"),
    "curvas": Protocol("curvas", "the CURVAS challenges' figures", "curvas.png"),
    "calibration": Protocol("calibration", "probabilities, doubt, presence", "reliability.png"),
}
