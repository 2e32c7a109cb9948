"""How a system is taught beyond plain supervision. Adding one is a file in this folder and a row in `SCHEMES`.

The table itself needs no torch. Every file that a row names has one function:

    phases(learner, streams) -> list[Phase]

`streams` hold labelled slices and, where the scheme wants them, unlabelled ones; a step of training has a teacher, the
averaged weights (`delineate.training.loop.Step`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from delineate.data.slices import SliceBank
    from delineate.data.unlabelled import UnlabelledBank
    from delineate.systems import SystemRow
    from delineate.training.loop import Phase, Run


@dataclass(frozen=True, eq=False)
class Streams:
    """What a training reads.

    Attributes:
        labelled: slices with labels.
        unlabelled: slices without, of the same kind; None where there are none.
    """

    labelled: "SliceBank"
    unlabelled: "UnlabelledBank | None" = None


@dataclass(frozen=True)
class Scheme:
    """A row: what a scheme is, and in which file of this folder it lives.

    Attributes:
        module: the file's name.
        summary: one line for people.
        source: the paper it follows.
        options: given to its `phases`, where one file holds several schemes.
        takes_unlabelled: whether it needs unlabelled scans; given to another they would be ignored silently.
        pixelwise: whether it teaches systems alone whose network gives every pixel a logit of every name.
    """

    module: str
    summary: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    takes_unlabelled: bool = True
    pixelwise: bool = True

    def phases(self, learner: Any, streams: Streams) -> "list[Phase]":
        """How the learner's parts learn from the streams."""
        return import_module(f"delineate.schemes.{self.module}").phases(learner, streams, **self.options)

    def train(
        self, row: "SystemRow", streams: Streams, preset: str, run: "Run", *, device: str = "cpu", **how: Any
    ) -> Any:
        """A system of a row of `SYSTEMS` that learnt from the streams; `how` is for its `make`."""
        from delineate.training.loop import train_phases

        bank = streams.labelled
        how |= {"modalities": bank.modalities, "channels": bank.images.shape[1]}
        made = row.make(preset, bank.size, bank.vocabulary, seed=run.seed, **how)
        learner = made.to(device)
        train_phases(self.phases(learner, streams), run)
        return learner


SCHEMES: Mapping[str, Scheme] = {
    "bcp": Scheme(
        "bcp",
        "mean teacher with bidirectional copy-paste: rectangles of labelled slices in unlabelled ones, and the reverse",
        "Bai et al. 2023 (CVPR), arXiv 2305.00673",
    ),
    "copypaste": Scheme(
        "bcp",
        "rectangles of labelled slices in labelled ones: bcp's first phase alone, the row beside it without a teacher",
        "Bai et al. 2023 (CVPR), arXiv 2305.00673, Sec. 3.3",
        {"guessing": False},
        takes_unlabelled=False,
    ),
}
