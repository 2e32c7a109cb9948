"""A trained model carried to another kind of scan by a few labelled ones: the whole job behind `delineate adapt`."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from delineate.adapters import ADAPTERS, AdapterConfig
from delineate.adapters.adapter import Adapted, attach
from delineate.adapters.folder import AdapterFolder, in_half, is_adapter, save_adapter
from delineate.data.dataset import Dataset
from delineate.data.folds import refuse_seen
from delineate.data.named import NamedFolder, open_named, parse_named
from delineate.data.slices import SliceBank
from delineate.errors import DatasetError, DelineateError
from delineate.evaluation.evaluation import Row, evaluate
from delineate.few_shot.learning import PROPOSALS, learn, training_slices
from delineate.few_shot.report import card_of, figures_of, usual_doubt
from delineate.few_shot.shots import draw_shots, only, pool_of
from delineate.jobs.watch import Nobody, Watch, reporter, work_folder
from delineate.model_folder import check_model, fingerprint
from delineate.pictures import adaptation_chart, training_curves
from delineate.prompts.vocabulary import Vocabulary, canonical_name
from delineate.scans.finding import digest_of, find_scans
from delineate.scans.preparation import Habits, Preparation
from delineate.scans.reading import read_scan
from delineate.segmenter import Segmenter, unlike_channels
from delineate.storage.sealed import check_free
from delineate.training.loop import Budget, polite_stop

USUAL_SHOTS = 5


@dataclass(frozen=True)
class AdaptRequest:
    """A model to be carried to another kind of scan.

    Attributes:
        model: folder of the base; None for the model that ships.
        dataset: of the new kind of scan, named as in `delineate.jobs.train.TrainRequest`.
        config: which adapter.
        shots: how many labelled subjects are learnt from, drawn from the train split, or "all"; by default 5, or as
            many as there are.
        slices: learn from this many slices of them only.
        hold_out: by whom to check (`delineate.few_shot.shots.draw_shots`).
        source: dataset of the base's own kind of scan, to see what the adapter costs there.
        unlabelled: folder of further scans, for the standard scale of grey values.
        n4: correct bias fields, in training and ever after.
        names: labels of the dataset to names of the model, or to new ones, where the vocabulary would not know.
        augmentation: a key of `delineate.data.augmentation.AUGMENTATIONS`.
        learning_rate: instead of the adapter kind's own.
        minutes: budget of all training, or
        images: the same in images, which alone repeats (`Budget`).
        seed: of the draw, the first weights and the training.
        target: as in `TrainRequest`.
        modality: as in `TrainRequest`.
    """

    model: Path | None
    dataset: Path | str
    config: AdapterConfig = field(default_factory=AdapterConfig)
    shots: int | str | None = None
    slices: int | None = None
    hold_out: str = "auto"
    source: Path | str | None = None
    unlabelled: Path | None = None
    n4: bool = False
    names: Mapping[str, str] | None = None
    augmentation: str = "nnunet"
    learning_rate: float | None = None
    minutes: float | None = None
    images: int | None = None
    seed: int = 0
    target: Sequence[str] | None = None
    modality: str | None = None

    def __post_init__(self):
        _ = self.folder

    @property
    def folder(self) -> NamedFolder:
        """The dataset, read as people write it."""
        return parse_named(self.dataset, self.target, self.modality)

    def to_json(self) -> dict[str, Any]:
        """All of it but the model, which is told apart by its hash."""
        told = asdict(self) | {
            "dataset": str(self.folder),
            "source": None if self.source is None else str(self.source),
            "unlabelled": None if self.unlabelled is None else str(self.unlabelled),
            "names": dict(self.names or {}),
            "target": list(self.target or ()),
        }
        return {name: value for name, value in told.items() if name != "model"}


LEARNT_BY = ("shots", "slices", "hold_out", "n4", "seed", "augmentation", "minutes", "images")
"""Of a request, what the adapter remembers as it was asked for."""


def adapt(request: AdaptRequest, output: Path, *, device: str = "cpu", watch: Watch = Nobody()) -> dict[str, Any]:
    """Adapt a model and write the adapter folder; returns the report that its `figures` hold.

    Checkpoints live in `<output>-training/`, and the same request goes on there.

    Raises:
        DelineateError: of any kind, before training where it can be known by then.
    """
    output, seed, config = Path(output), request.seed, request.config
    check_free(output, is_adapter, "adapter")
    folder, about_model = check_model(request.model)
    base_hash = fingerprint(folder)
    dataset = request.folder.open()
    refuse_seen(about_model["training"].get("held_out") or (), dataset, None, "the model")
    base = Segmenter.load(folder, device)
    if dataset.channels != base.habits.channels:
        raise DatasetError(f"{dataset.root}: {unlike_channels(dataset.channels, base.habits.channels)}")
    if dataset.channels and (request.n4 or request.unlabelled is not None):
        raise DelineateError(f"--n4 and --unlabelled are for scans of one image; {dataset.root} has several channels")
    if dataset.regions:
        raise DatasetError(
            f"{dataset.root}: an adapter learns names that exclude each other, and here are regions "
            f"({', '.join(dataset.regions)}); declare their parts alone, each with an id"
        )
    dataset, renamed = with_names(dataset, base.system.vocabulary, request.names or {})
    vocabulary = base.system.vocabulary.merged(dataset.vocabulary())
    drawn = draw_shots(dataset, _count(request.shots, dataset), hold_out=request.hold_out, seed=seed)
    learnt = attach(base.system, config, vocabulary).system.learnt  # what cannot be adapted is refused here
    source_set = None if request.source is None else _source(request.source, base)
    work = work_folder(output, request, base=base_hash)
    if not any(work.rglob("checkpoint-*")):  # checks of a call that was stopped before it had learnt anything
        _remove(work.rglob("check*.*"))
    watch.start("preparing scans")
    preparation = _preparation(request, only(dataset, drawn.drawn))
    habits = Habits(preparation, dataset.modality)

    def bank_of(subjects: Sequence[str]) -> SliceBank:
        few = only(dataset, subjects)
        how = request.slices, request.augmentation, seed, base.habits.apart_mm
        return training_slices(few, learnt, base.system.size, preparation, *how)

    def fresh() -> Adapted:
        return attach(base.system, config, vocabulary, seed=seed)

    rate = request.learning_rate or ADAPTERS[config.kind].learning_rate
    logs: dict[str, list[dict[str, float]]] = {}
    with polite_stop() as should_stop:
        how = {"rate": rate, "seed": seed, "should_stop": should_stop, "on_step": reporter(logs, watch)}
        adapted, checks, unseen = learn(
            fresh, base, dataset, drawn, habits, bank_of, Budget(request.images, request.minutes), work, how
        )
    watch.start("measuring")
    in_half(adapted)
    after = base.adapted(adapted, habits)
    rows: dict[str, list[Row]] = {}
    if drawn.held_out:
        known = replace(only(dataset, drawn.held_out), splits={"val": drawn.held_out})
        rows["before"] = evaluate(base, known, split="val", n=PROPOSALS, seed=seed)
        rows["after"] = unseen or evaluate(after, known, split="val", n=PROPOSALS, seed=seed)
        habits = replace(habits, usual_doubt=usual_doubt(rows["after"]))
    if source_set is not None:
        for name, segmenter in (("source before", base), ("source after", after)):
            rows[name] = evaluate(segmenter, source_set, split="val", n=PROPOSALS, seed=seed)
    figures = figures_of(rows, drawn.rule, {case.name: case.subject for case in dataset.cases}) | {
        "checks": checks,
        "own_parameters": sum(p.numel() for p in adapted.own.values()),
        "base_parameters": sum(p.numel() for part in base.system.parts.values() for p in part.parameters()),
    }
    training = {
        **{name: getattr(request, name) for name in LEARNT_BY},
        "learning_rate": rate,
        "dataset": dataset.name,
        "modality": dataset.modality,
        "renamed": renamed,
        "subjects": len(drawn.drawn),
        "learnt_from": [digest_of(case.image) for case in only(dataset, drawn.drawn).cases],
        "stages": {stage: log[-1] for stage, log in logs.items() if log},
    }
    told = {"sha256": base_hash, "name": folder.name, "system": about_model["system"]}
    about = AdapterFolder(config, told, habits, training, figures)
    targets = figures["targets"]
    picture = {"dice.png": adaptation_chart(targets, figures["sentence"])} if targets else {}
    save_adapter(output, adapted, about, card_of(about, list(dataset.labels), base.vocabulary.names), picture)
    if logs:
        training_curves(logs, work / "curves.png")
    _remove([*work.rglob("checkpoint-*"), *work.rglob("check*.*"), work / "settings.json"])
    return {"adapter": str(output), **figures, "training": training}


def with_names(dataset: Dataset, vocabulary: Vocabulary, told: Mapping[str, str]) -> tuple[Dataset, dict[str, str]]:
    """The dataset with its labels named as the model names them, and which were renamed.

    A label is what `told` says, or what the vocabulary takes it for (it never guesses), or a new name.

    Raises:
        DatasetError: `told` names a label that is not there, or two labels come to the same name.
    """
    told = {label if label in dataset.labels else canonical_name(label): name for label, name in told.items()}
    if odd := sorted(told.keys() - dataset.labels.keys()):
        raise DatasetError(f"{dataset.root}: has no label '{odd[0]}'; it has {', '.join(dataset.labels)}")
    names: dict[str, str] = {}
    for label in dataset.labels:
        asked = told.get(label, label)
        concept = vocabulary.match(asked).concept
        name = concept.name if concept else canonical_name(asked)
        if name in names.values():
            other = next(k for k, v in names.items() if v == name)
            raise DatasetError(f"{dataset.root}: '{other}' and '{label}' would both be '{name}'; tell one with --map")
        names[label] = name
    renamed = {label: name for label, name in names.items() if label != name}
    return replace(dataset, labels={names[label]: value for label, value in dataset.labels.items()}), renamed


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _count(shots: int | str | None, dataset: Dataset) -> int | None:
    """How many subjects are drawn; None is all."""
    if shots is None:
        return min(USUAL_SHOTS, len(pool_of(dataset)))
    return None if shots == "all" else int(shots)


def _preparation(request: AdaptRequest, shots: Dataset) -> Preparation:
    """N4 where asked for, and the standard scale of the unlabelled scans and the shots where there are any of those."""
    if request.unlabelled is None:
        return Preparation(request.n4)
    scans = [*find_scans(request.unlabelled), *(case.image for case in shots.cases)]
    modality = request.modality or shots.modality
    return Preparation.learnt([read_scan(scan, modality=modality) for scan in scans], request.n4)


def _source(path: Path | str, base: Segmenter) -> Dataset:
    """The dataset to look for forgetting in. Raises `DatasetError` where it has no val split, or no known target."""
    dataset, _ = with_names(open_named(path), base.vocabulary, {})
    if not dataset.split("val"):
        raise DatasetError(f"{dataset.root}: --source needs a val split, of subjects the base did not learn from")
    if not set(dataset.labels) & set(base.vocabulary.names):
        raise DatasetError(f"{dataset.root}: the base knows none of its targets ({', '.join(dataset.labels)})")
    return dataset
