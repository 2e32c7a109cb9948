"""`delineate demo`: the house model on real scans that it never saw, then taught a new kind of scan by five of them."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from rich.console import Console
from rich.table import Table

from delineate.adapters import AdapterConfig
from delineate.data.dataset import open_dataset
from delineate.jobs.adapt import AdaptRequest, adapt
from delineate.jobs.watch import Watch
from delineate.metrics.overlap import dice
from delineate.pictures import montage, tiles, tiles_of
from delineate.proposals.proposals import Proposals
from delineate.proposals.target import Outcome
from delineate.samples import sample
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json

NEW = "nuclei"  # the sample of a kind that the house model was not trained on: it knows nuclei in stained tissue only


@dataclass(frozen=True)
class DemoRequest:
    """How much the demo does. All of it is counted, none of it timed, so it does the same on any machine.

    The numbers fit three minutes of two cores that have other work as well.

    Attributes:
        organs: what is asked of the CT, of those that the model knows.
        proposals: a target, here and everywhere.
        flat: samples of flat images; whatever they show is asked.
        kind: of the adapter; "full" learns most from few images, and its size does not matter here.
        learning_rate: twice that of the kind, for so few images.
        images: that the adapter learns by, drawn from the five and varied.
    """

    organs: tuple[str, ...] = ("liver", "spleen", "right kidney", "left kidney", "stomach", "aorta")
    proposals: int = 4
    flat: tuple[str, ...] = ("dermoscopy", "breast", "fetal_head")
    kind: str = "full"
    learning_rate: float = 2e-3
    images: int = 240


@dataclass(frozen=True, eq=False)
class Answered:
    """A scan, what is really there, and what was found; masks by target, on the scan's own voxels."""

    case: str
    scan: Scan
    truth: Mapping[str, np.ndarray]
    proposals: Proposals

    @property
    def found(self) -> dict[str, np.ndarray]:
        """The consensus of every target that was found."""
        return {str(t.name): t.consensus() for t in self.proposals if t.outcome is Outcome.FOUND}

    @property
    def dice(self) -> dict[str, float | None]:
        """Of every target; None where the model does not know the word."""
        known = {str(t.name): t.consensus() for t in self.proposals if t.drawn is not None}
        return {name: dice(known[name], truth) if name in known else None for name, truth in self.truth.items()}


def run_demo(request: DemoRequest, folder: Path, *, device: str, watch: Watch, console: Console) -> list[str]:
    """Segment held-out scans of the samples with the house model, adapt it to another kind, score before and after.

    Args:
        request: how much of it.
        folder: where everything goes.
        device: to compute on.
        watch: told of progress.
        console: where Dice is printed as soon as it is known.

    Returns:
        Lines that say where the pictures lie.
    """
    started = time.monotonic()
    watch.start("reading the house model")
    house = Segmenter.load(None, device)
    [ct] = ask(house, "ct", request, watch, "looking for organs in a CT", request.organs)
    ct.proposals.save(folder / "ct")
    montage(ct.proposals, folder / "ct" / "montage.png")
    organs = tiles(compared([ct], {"house model": [ct]}, slices=4), folder / "organs.png")
    flat = [one for name in request.flat for one in ask(house, name, request, watch, f"looking at {name}")]
    figures = {"house model": {name: value for one in (ct, *flat) for name, value in one.dice.items()}}
    _print(console, "Scans that the house model never saw:", figures)
    drawn = tiles(compared(flat, {"house model": flat}), folder / "flat.png")

    before = ask(house, NEW, request, watch, "another kind of scan: fluorescence")
    asked = AdaptRequest(
        None,
        sample(NEW).folder,
        AdapterConfig(request.kind),
        shots="all",
        hold_out="none",
        learning_rate=request.learning_rate,
        images=request.images,
    )
    adapt(asked, folder / "adapter", device=device, watch=watch)
    adapted = house.with_adapter(folder / "adapter")
    after = ask(adapted, NEW, request, watch, "the same scans, adapted")
    taught = {label: _by_case(answers) for label, answers in (("before", before), ("after", after))}
    shots = len(open_dataset(sample(NEW).folder).split("train"))
    _print(console, f"Nuclei in fluorescence, new to it, before and after learning from {shots} images:", taught)
    nuclei = tiles(compared(before, {"before": before, "after": after}), folder / "nuclei.png")
    write_json(folder / "dice.json", {**figures, **taught})
    return [
        f"organs in CT:           {organs}",
        f"proposals and doubt:    {folder / 'ct' / 'montage.png'}",
        f"skin, breast and fetus: {drawn}",
        f"a new kind, learnt:     {nuclei}",
        f"masks:                  {folder / 'ct'}",
        f"adapter:                {folder / 'adapter'}",
        f"{time.monotonic() - started:.0f} s in all",
    ]


def ask(
    segmenter: Segmenter,
    name: str,
    request: DemoRequest,
    watch: Watch,
    what: str,
    targets: Sequence[str] | None = None,
) -> list[Answered]:
    """What a segmenter finds in the held-out scans of a sample.

    Of `targets` those that it knows are asked; without any, all that the sample shows, known or not.
    """
    watch.start(what)
    dataset = open_dataset(sample(name).folder)
    names = list(dataset.labels) if targets is None else [t for t in targets if t in segmenter.vocabulary.names]
    cases, answers = dataset.split("test"), []
    for number, case in enumerate(cases):

        def report(share: float, number: int = number) -> None:
            watch.update((number + share) / len(cases))

        scan, ids = dataset.read(case)
        proposals = segmenter(scan, names, n=request.proposals, anyway=True, on_step=report)
        truth = {target: ids == dataset.labels[target] for target in names}
        answers.append(Answered(case.name, scan, truth, proposals))
    return answers


def compared(cases: Sequence[Answered], answers: Mapping[str, Sequence[Answered]], slices: int = 1) -> dict:
    """Rows of a picture: what is really there, then what each of several segmenters found."""
    rows = {"truth": [tile for one in cases for tile in tiles_of(one.scan, one.truth, slices)]}
    for label, answered in answers.items():
        rows[label] = [tile for one in answered for tile in tiles_of(one.scan, one.found, slices, _title(one))]
    return rows


def _title(one: Answered) -> str:
    """How it went with a scan of one target; a volume's many go into a table."""
    if len(one.truth) != 1:
        return ""
    [value], [target] = one.dice.values(), one.proposals
    return target.outcome.value if value is None else f"{target.outcome.value}, Dice {value:.2f}"


def _by_case(answers: Sequence[Answered]) -> dict[str, float | None]:
    """The mean Dice of every scan, and that of all under "mean"."""
    scores = {one.case: fmean(value or 0.0 for value in one.dice.values()) for one in answers}
    return {**scores, "mean": fmean(scores.values())}


def _print(console: Console, title: str, figures: Mapping[str, Mapping[str, float | None]]) -> None:
    """Dice, a row a name and a column an evaluation."""
    table = Table("Dice", box=None, pad_edge=False)
    for label in figures:
        table.add_column(label, justify="right")
    for name in dict.fromkeys(name for column in figures.values() for name in column):
        values = [column.get(name) for column in figures.values()]
        table.add_row(name, *("unknown prompt" if value is None else f"{value:.2f}" for value in values))
    console.print(title)
    console.print(table)
    console.print()
