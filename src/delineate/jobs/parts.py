"""A cohort in equal parts, for as many commands at once: which scans are whose, and one report of all at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from delineate.errors import DelineateError, OutputError
from delineate.storage.files import write_json
from delineate.storage.schema import read_json
from delineate.storage.swapping import waiting

LARGEST = 1 << 30  # bytes of a report
SAME = ("request", "model_sha256", "adapter_sha256", "calibration_sha256")  # in all parts of one cohort


@dataclass(frozen=True)
class Part:
    """One of several equal parts of a cohort, to be worked on by as many commands.

    Attributes:
        number: from 1 on.
        of: how many there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """The part that "3/16" names. Raises `DelineateError` where it names none."""
        number, slash, of = text.partition("/")
        if not (slash and number.isascii() and of.isascii() and number.isdigit() and of.isdigit() and len(of) < 6):
            raise DelineateError(f"a part is written NUMBER/OF, as 3/16; got '{text}'")
        if not 1 <= int(number) <= int(of):
            raise DelineateError(f"the number of a part is from 1 to {of}; got '{text}'")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, index: int) -> bool:
        """Whether the scan with this index, from 0 on, is in it."""
        return index % self.of == self.number - 1


def report_name(part: Part | None) -> str:
    """The file that a command's report is written to."""
    return "run.json" if part is None else f"run-{part.number}-of-{part.of}.json"


def begin_part(folder: Path, part: Part) -> None:
    """Take away what the part reported when it was run before: until it ends, the cohort is not done."""
    (folder / report_name(part)).unlink(missing_ok=True)


def end_part(folder: Path, part: Part, report: Mapping[str, Any]) -> bool:
    """Write a part's report; and, if it is the last one that was missing, `run.json` of all. Whether it was.

    Of two that end at once at least one finds all. Parts of which other things were asked are not put together.
    """
    write_json(folder / report_name(part), dict(report))
    with waiting(folder / "run.jsonl"):
        paths = [folder / report_name(Part(number, part.of)) for number in range(1, part.of + 1)]
        if not all(path.is_file() for path in paths):
            return False
        try:
            reports = [read_json(path, dict[str, Any], error=OutputError, most_bytes=LARGEST) for path in paths]
        except OutputError:  # begun again just now, or damaged: whoever runs that part puts them together
            return False
        if any(one.get(name) != report[name] for one in reports for name in SAME):
            return False
        write_json(folder / report_name(None), put_together(reports))
    return True


def put_together(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The report of all by those of the parts, in their order: the cases as one command would have them.

    Seconds are those of all parts together.
    """
    rows = zip_longest(*(report["cases"] for report in reports))
    return {
        **reports[0],
        "part": None,
        "parts": len(reports),
        "started": min(report["started"] for report in reports),
        "cases": [case for row in rows for case in row if case is not None],
        "seconds": round(sum(report["seconds"] for report in reports), 2),
    }
