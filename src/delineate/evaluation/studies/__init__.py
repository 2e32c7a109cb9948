"""What can be learnt by comparing many systems on many datasets. Adding one is a file here and a row in `STUDIES`.

The table itself needs no torch. Every file that a row names has the same three functions:

    run(request, folder, *, device, watch) -> report      trains and scores what is missing; goes on after a stop
    draw(report, path) -> path                            the one figure
    show(report, console)                                 the table on the screen
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delineate.errors import DelineateError
from delineate.systems import SYSTEMS

if TYPE_CHECKING:
    from rich.console import Console

    from delineate.data.named import NamedFolder


@dataclass(frozen=True)
class StudyRequest:
    """A study to be made.

    Attributes:
        study: a key of `STUDIES`.
        datasets: folders, or FOLDER=TARGET@MODALITY (`delineate.data.named`).
        systems: keys of `delineate.systems.SYSTEMS`; () for every system of one network (`SystemRow.pixelwise`).
        preset: of every system.
        size: pixels along a side of the working grid; None for what training would choose.
        images: budget of each training in images seen, or
        minutes: in wall time.
        seeds: one training each.
        split: what is scored.

    Raises:
        DelineateError: no such study, system or preset, not one budget, or two datasets of one name.
    """

    study: str
    datasets: Sequence[Path | str]
    systems: Sequence[str] = ()
    preset: str = "tiny"
    size: int | None = None
    images: int | None = None
    minutes: float | None = None
    seeds: Sequence[int] = field(default_factory=lambda: (0,))
    split: str = "test"

    def __post_init__(self):
        if self.study not in STUDIES:
            raise DelineateError(f"a study is one of {', '.join(STUDIES)}; got '{self.study}'")
        if odd := [name for name in self.systems if name not in SYSTEMS]:
            raise DelineateError(f"--system is one of {', '.join(SYSTEMS)}; got '{odd[0]}'")
        for name in self.compared:
            if self.preset not in SYSTEMS[name].presets:
                known = ", ".join(SYSTEMS[name].presets)
                raise DelineateError(f"--preset of {name} is one of {known}; got '{self.preset}'")
        if (self.images is None) == (self.minutes is None):
            raise DelineateError("a study needs one budget for every training: --images or --minutes")
        if self.size is not None and self.size % 32:
            raise DelineateError(f"--size is a multiple of 32; got {self.size}")
        names = [folder.folder.name for folder in self.folders]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DelineateError(
                f"two datasets are called '{twice}', and a study keeps each under its name; rename one"
            )

    @property
    def compared(self) -> list[str]:
        """The systems, in their order."""
        return list(self.systems) or [name for name, row in SYSTEMS.items() if row.pixelwise]

    @property
    def folders(self) -> "list[NamedFolder]":
        """The datasets, read as people write them."""
        from delineate.data.named import parse_named

        return [parse_named(text) for text in self.datasets]

    def to_json(self) -> dict[str, Any]:
        """All of it, with folders from the root."""
        return asdict(self) | {
            "datasets": [str(folder) for folder in self.folders],
            "systems": list(self.systems),
            "seeds": list(self.seeds),
        }


@dataclass(frozen=True)
class Study:
    """A row: what a study compares, and in which file of this folder it lives.

    Attributes:
        module: the file's name.
        summary: one line for people.
        source: the paper it follows.
        picture: the picture's file name.
    """

    module: str
    summary: str
    source: str
    picture: str

    def _file(self) -> Any:
        return import_module(f"delineate.evaluation.studies.{self.module}")

    def run(self, request: StudyRequest, folder: Path, **how: Any) -> dict[str, Any]:
        """Train and score what is missing in `folder`, and return the report; `how` is device and watch."""
        return self._file().run(request, folder, **how)

    def draw(self, report: dict[str, Any], path: Path) -> Path:
        """The one figure."""
        return self._file().draw(report, path)

    def show(self, report: dict[str, Any], console: "Console") -> None:
        """Print a report."""
        self._file().show(report, console)


STUDIES: Mapping[str, Study] = {
    "ubench": Study(
        "ubench",
        "networks by accuracy, weights, multiplications and milliseconds, at equal training",
        "Tang et al. 2025, U-Bench, arXiv 2510.07041",
        "ubench.png",
    ),
}
