"""What protocols share: every target asked in every case, a line of figures for each, and their means over subjects."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from delineate.data.dataset import IGNORED, Case, Dataset
from delineate.metrics.overlap import mean_interval
from delineate.proposals.target import TargetProposals
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter
from delineate.storage.files import write_text


@dataclass(frozen=True, eq=False)
class Answered:
    """One target in one case: what the segmenter proposed, and what people drew.

    Attributes:
        case: whose name and subject go into the line.
        scan: with its spacing.
        answer: of the segmenter; a known target.
        truth: bool (I, J, K), the label file.
        readings: bool (M, I, J, K), one a rater; the truth alone where raters are not told apart.
    """

    case: Case
    scan: Scan
    answer: TargetProposals
    truth: np.ndarray
    readings: np.ndarray

    def masks(self) -> np.ndarray:
        """The proposals, bool (N, I, J, K): p >= 0.5. N may be less than was asked for."""
        return np.stack([self.answer.choose(k) for k in range(len(self.answer))])

    def probability(self) -> np.ndarray:
        """The mean of the proposals as they were drawn, before any calibration, float32 (I, J, K) in [0, 1]."""
        return self.answer.mean()

    @property
    def unit(self) -> str:
        """Of volumes: "ml", or "pixels" where the file states no spacing."""
        return "ml" if self.scan.has_spacing and not self.scan.is_flat else "pixels"

    @property
    def step(self) -> tuple[float, float, float]:
        """A voxel's sides for `rater_metrics`, which counts in ml: the spacing in mm, or 10 each where pixels count."""
        return self.scan.spacing_mm if self.unit == "ml" else (10.0, 10.0, 10.0)


@dataclass(frozen=True, eq=False)
class Line:
    """What a protocol found out about one target in one case.

    Attributes:
        case: the case's name.
        subject: whose it is; means and intervals are over subjects.
        target: the vocabulary's name.
        proposals: N, how many were drawn.
        raters: M, how many readings there are; 1 where there is the one truth only.
        present: whether anybody drew a voxel of the target.
        drawn: whether any proposal has a voxel.
        outcome: what the segmenter said.
        score: its presence score, in [0, 1].
        figures: by name; None where a figure is not defined for this line.
        kept: what else the protocol needs for its summary.
    """

    case: str
    subject: str
    target: str
    proposals: int
    raters: int
    present: bool
    drawn: bool
    outcome: str
    score: float
    figures: Mapping[str, float | None]
    kept: Mapping[str, Any] = field(default_factory=dict)


def line_of(answered: Answered, figures: Mapping[str, float | None], **kept: Any) -> Line:
    """The line with these figures."""
    answer = answered.answer
    return Line(
        case=answered.case.name,
        subject=answered.case.subject,
        target=answer.name or "",
        proposals=len(answer),
        raters=len(answered.readings),
        present=bool(answered.readings.any()),
        drawn=any(answer.choose(k).any() for k in range(len(answer))),
        outcome=answer.outcome.value,
        score=answer.score,
        figures=figures,
        kept=kept,
    )


def lines_of(
    line: Callable[[Answered], Line],
    segmenter: Segmenter,
    dataset: Dataset,
    *,
    split: str = "test",
    n: int = 8,
    seed: int = 0,
    limit: int | None = None,
    on_step: Callable[[float], None] = lambda share: None,
) -> list[Line]:
    """A line for every target that the dataset annotates and the model knows, in every case of `split`.

    Arguments as for `delineate.evaluation.evaluation.evaluate`. One target is in memory at a time.
    """
    names = [name for name in dataset.targets if name in segmenter.vocabulary.names]
    cases = dataset.split(split)[:limit]
    found = []
    for answered in answers(segmenter, dataset, cases, names, n, seed):
        found.append(line(answered))
        on_step(len(found) / (len(cases) * len(names)))
    return found


def answers(
    segmenter: Segmenter, dataset: Dataset, cases: Sequence[Case], names: Sequence[str], n: int, seed: int
) -> Iterator[Answered]:
    """Every target of every case, one at a time; names that the segmenter knows.

    Voxels that nobody labelled are background of truth, readings and answers.
    """
    for case in cases if names else ():
        scan, labels = dataset.read(case)
        raters = dataset.read_raters(case)
        seen, unlabelled = segmenter.look(scan), labels == IGNORED
        raters = None if raters is None else raters & ~unlabelled
        for name in names:
            truth = dataset.truth(name, labels)
            answer = segmenter(seen, [name], n=n, seed=seed, anyway=True)[name].without(unlabelled)
            yield Answered(case, scan, answer, truth, truth[None] if raters is None else raters)


def summarise(
    lines: Sequence[Line], more: Callable[[Sequence[Line]], dict[str, Any]] = lambda lines: {}
) -> dict[str, Any]:
    """Figures of each target and of all: means over subjects with 95 % intervals (Student's t) over subjects.

    A subject counts once, however many cases and targets it has: its cases are averaged first, then its targets.
    Cases in which nobody drew the target stay in, by the conventions of `docs/concepts/empty-masks.md`; `empty` says
    how many they are, and `present` of a figure is its mean over the others.

    Args:
        lines: of one protocol.
        more: what else to say of the lines of one target, and of all.

    Returns:
        cases, subjects, drawn (the mean number of proposals, N) and raters (of readings, M); for each of `targets` and
        for `mean` the same with `n` (lines, so cases times targets in `mean`), `empty` (in how many lines all readings
        are, all proposals are, both are), `figures` (see `figure_of`) and what `more` says.
    """
    if not lines:
        return {"cases": 0, "subjects": 0, "targets": {}, "mean": {}}

    def block(some: Sequence[Line]) -> dict[str, Any]:
        keys = dict.fromkeys(key for line in some for key in line.figures)
        figures = {key: figure for key in keys if (figure := figure_of(some, key))}
        empty = {
            "readings": sum(not line.present for line in some),
            "proposals": sum(not line.drawn for line in some),
            "both": sum(not line.present and not line.drawn for line in some),
        }
        return {"n": len(some), **_counts(some), "empty": empty, "figures": figures, **more(some)}

    names = dict.fromkeys(line.target for line in lines)
    targets = {name: block([line for line in lines if line.target == name]) for name in names}
    overall = block(lines) if len(targets) > 1 else next(iter(targets.values()))
    return {**_counts(lines), "targets": targets, "mean": overall}


def _counts(lines: Sequence[Line]) -> dict[str, Any]:
    return {
        "cases": len({line.case for line in lines}),
        "subjects": len({line.subject for line in lines}),
        "drawn": fmean(line.proposals for line in lines),
        "raters": fmean(line.raters for line in lines),
    }


def counted(summary: Mapping[str, Any]) -> str:
    """What a summary is of, in words: "4 cases of 2 subjects, 8 proposals against 3 raters"."""

    def several(number: float, word: str) -> str:
        return f"{number:.3g} {word}{'' if number == 1 else 's'}"

    raters = several(summary["raters"], "rater") if summary["raters"] > 1 else "the truth alone"
    cases, subjects = (f"{summary[key]} {key[:-1] if summary[key] == 1 else key}" for key in ("cases", "subjects"))
    return f"{cases} of {subjects}, {several(summary['drawn'], 'proposal')} against {raters}"


def figure_of(lines: Sequence[Line], key: str) -> dict[str, float | int | None] | None:
    """One figure of these lines; None where no line has it.

    Returns:
        mean, low and high (over subjects; low and high are None for one subject), over_cases (the plain mean over
        lines), present (the mean over subjects of lines in which somebody drew the target; None without), n (lines).
    """
    held = [line for line in lines if line.figures.get(key) is not None]
    if not held:
        return None
    value = itemgetter(key)
    values = by_subject(held, lambda line: value(line.figures))
    mean, low, high = mean_interval(values)
    there = by_subject([line for line in held if line.present], lambda line: value(line.figures))
    return {
        "mean": mean,
        "low": low,
        "high": high,
        "over_cases": fmean(value(line.figures) for line in held),
        "present": float(there.mean()) if len(there) else None,
        "n": len(held),
    }


def by_subject(lines: Sequence[Line], value: Callable[[Line], Any]) -> np.ndarray:
    """Float64 (subjects,): the mean over a subject's targets of the mean over its cases with that target."""
    subjects: dict[str, dict[str, list[float]]] = {}
    for line in lines:
        subjects.setdefault(line.subject, {}).setdefault(line.target, []).append(float(value(line)))
    return np.array([fmean(fmean(cases) for cases in targets.values()) for targets in subjects.values()])


def write_lines(lines: Sequence[Line], path: Path) -> None:
    """One line a target and case as CSV; an empty cell where a figure is not defined."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = list(dict.fromkeys(key for line in lines for key in line.figures))
    head = ["case", "subject", "target", "proposals", "raters", "present", "drawn", "outcome", "score"]
    writer.writerow(head + keys)
    for line in lines:
        cells = [line.figures.get(key) for key in keys]
        told = [getattr(line, name) for name in head[:-1]]
        writer.writerow([*told, f"{line.score:.4f}", *("" if cell is None else f"{cell:.6g}" for cell in cells)])
    write_text(path, text.getvalue())
