"""A foundation from datasets: the whole job behind `delineate pretrain`."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from delineate.data.dataset import Dataset
from delineate.data.folds import Fold, held_out, refuse_seen
from delineate.data.layout import IGNORE
from delineate.data.named import NamedFolder, parse_named
from delineate.diffusion.codec import CODECS
from delineate.errors import DelineateError
from delineate.foundation.foundation import FIX, Foundation
from delineate.foundation.pretraining import caption_corpus, pretrain
from delineate.jobs.opening import open_all, read_bank, refuse_channels
from delineate.jobs.watch import Nobody, Watch, finished_before, reporter, work_folder
from delineate.pictures import training_curves
from delineate.storage.files import write_json
from delineate.storage.schema import checked, read_json
from delineate.storage.seen import Seen
from delineate.storage.swapping import swapping
from delineate.systems import PRESETS
from delineate.training.loop import Budget, Run, polite_stop
from delineate.training.planning import make_plan

EDGES_SHARE = 0.95  # of a pre-training with edges; the rest is the foundation's own
HELD_OUT = "held_out.json"  # beside a foundation made here: what it may not be scored on


@dataclass(frozen=True)
class PretrainRequest:
    """A foundation to be trained on the train split of datasets.

    Attributes:
        datasets: as in `delineate.jobs.train.TrainRequest`, and so are those not told of here.
        preset: its size, one of `delineate.systems.PRESETS`.
        codec: one of `delineate.diffusion.codec.CODECS`; None is "unshuffle", with `edges` the one in colour.
        edges: whether most of the budget goes to drawing scans from edge maps (stage a of DiffBoost), the foundation
            learning with the edge control, which lies in the folder's `edges/`.
        shares: how often each dataset is drawn; None goes by their slices.

    Raises:
        DelineateError: no such codec.
    """

    datasets: Sequence[Path | str]
    preset: str = "tiny"
    codec: str | None = None
    edges: bool = False
    shares: Sequence[float] | None = None
    minutes: float | None = None
    images: int | None = None
    seed: int = 0
    target: Sequence[str] | None = None
    modality: str | None = None
    fold: Fold | None = None

    def __post_init__(self):
        if self.chosen_codec not in CODECS:
            raise DelineateError(f"--codec is one of {', '.join(CODECS)}; got '{self.codec}'")
        _ = self.folders

    @property
    def chosen_codec(self) -> str:
        """The codec that is asked for, or the usual one."""
        return self.codec or ("unshuffle-rgb" if self.edges else "unshuffle")

    @property
    def folders(self) -> list[NamedFolder]:
        """The datasets, read as people write them."""
        return [parse_named(text, self.target, self.modality) for text in self.datasets]

    def to_json(self) -> dict[str, Any]:
        """All of it, with folders from the root."""
        return asdict(self) | {
            "datasets": [str(folder) for folder in self.folders],
            "codec": self.chosen_codec,
            "target": list(self.target or ()),
            "fold": None if self.fold is None else str(self.fold),
        }


def pretrain_foundation(
    request: PretrainRequest, output: Path, *, device: str = "cpu", watch: Watch = Nobody()
) -> Foundation:
    """Train a foundation and write it as a Stable Diffusion folder.

    After a stop the same request goes on from `<output>-training/`; another one is refused.
    """
    from delineate.synthesis.synthesizer import Synthesizer, train_synthesizer

    output, preset, seed = Path(output), request.preset, request.seed
    if output.exists() and any(output.iterdir()) and not (output / "delineate.json").exists():
        raise DelineateError(f"{output}: exists and is not a foundation made here; choose another folder")
    work = work_folder(output, request)
    datasets = open_all(request.folders, request.fold)
    refuse_channels(datasets, "a foundation")
    if unlabelled := [dataset.root for dataset in datasets if dataset.ignore is not None]:
        raise DelineateError(
            f"{unlabelled[0]}: a foundation learns whole pictures of masks, and here some voxels are labelled "
            f"'{IGNORE}'; leave this dataset out"
        )
    bank = read_bank(datasets, make_plan(datasets, PRESETS[preset]).size, watch, request.shares)
    corpus = caption_corpus(bank.vocabulary, bank.modalities)
    foundation = Foundation.make(preset, request.chosen_codec, corpus, seed=seed).to(device)
    logs: dict[str, list[dict[str, float]]] = {}
    drawn = Synthesizer.make(foundation, preset, seed=seed) if request.edges else foundation
    budget = Budget(request.images, request.minutes)
    with polite_stop() as should_stop:
        run = Run(budget, work, seed, reporter(logs, watch), should_stop)
        pretrain(foundation, bank, run.part(1 - EDGES_SHARE) if request.edges else run)
        if isinstance(drawn, Synthesizer):
            train_synthesizer(drawn, bank, run.part(EDGES_SHARE))
            stages = finished_before(work, logs) | logs
            seen = sum(stages[name][-1]["images"] for name in ("estimate", "edges") if stages.get(name))
            foundation.pretraining += f", then on drawing them from edges, {seen} pictures"
    logs = finished_before(work, logs) | logs
    with swapping(output) as building:
        drawn.save(building)
        write_json(building / HELD_OUT, held_out(datasets, request.fold))
    training_curves(logs, Path(f"{output}-training") / "curves.png")
    for stage in list(work.rglob("checkpoint-*")):
        shutil.rmtree(stage, ignore_errors=True)
    (work / "settings.json").unlink(missing_ok=True)
    return foundation


def seen_by_foundation(foundation: Path | None, datasets: Sequence[Dataset], fold: Fold | None) -> list[dict]:
    """What a foundation made here was pre-trained on; refused if it saw subjects that `datasets` hold out.

    A downloaded one says nothing of medical data and is taken as it is.
    """
    if foundation is None or not (Path(foundation) / "delineate.json").is_file():
        return []
    record = Path(foundation) / HELD_OUT
    if record.is_file():
        seen = read_json(record)
        checked(seen, list[Seen], record, fix=FIX)
        for dataset in datasets:
            refuse_seen(seen, dataset, fold, f"the foundation {foundation}")
        return seen
    if fold is not None:
        raise DelineateError(
            f"{foundation}: does not say on which subjects it was pre-trained ({HELD_OUT}), maybe those that fold "
            f"{fold} holds out; leave --foundation out, or make one with: delineate pretrain --fold {fold}"
        )
    return []
