"""A system trained on datasets: the whole job behind `delineate train`."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from delineate.calibration.guarantees import Calibration
from delineate.card import plain_card
from delineate.data.augmentation import AUGMENTATIONS
from delineate.data.dataset import Dataset, has_raters
from delineate.data.folds import Fold, held_out
from delineate.data.layout import nnunet_splits_in_words
from delineate.data.named import NamedFolder, parse_named
from delineate.data.slices import RATINGS, SliceBank
from delineate.data.twins import twins_in_words
from delineate.data.unlabelled import UnlabelledBank, read_unlabelled
from delineate.errors import DatasetError, DelineateError
from delineate.jobs.calibrate import calibrate_folder
from delineate.jobs.opening import held_out_slices, open_all, read_bank
from delineate.jobs.pretrain import seen_by_foundation
from delineate.jobs.watch import Nobody, Watch, finished_before, reporter, work_folder
from delineate.model_folder import check_free, check_model, save_model
from delineate.networks import NETWORKS
from delineate.pictures import training_curves
from delineate.scans.finding import digest_of, find_scans
from delineate.scans.preparation import Habits
from delineate.schemes import SCHEMES, Streams
from delineate.segmenter import Segmenter
from delineate.storage.pretrained import PRETRAINED, read_pretrained
from delineate.systems import SYSTEMS
from delineate.training.engine import PRECISIONS, Engine
from delineate.training.judging import HeldOut
from delineate.training.loop import Budget, Run, polite_stop
from delineate.training.merging import MERGES, Merging, choose_mode, merging_on
from delineate.training.planning import make_plan
from delineate.training.ranks import here, joined

OPTIONAL = ("merge", "keep_real", "cell", "augmentation", "raters", "network", "scheme", "init")
"""Of a request, what a model remembers only where it was given."""


@dataclass(frozen=True)
class TrainRequest:
    """A system to be trained on datasets.

    Attributes:
        system: a key of `delineate.systems.SYSTEMS`.
        datasets: folders, or FOLDER=TARGET@MODALITY (`delineate.data.named`) where several need different names.
        preset: one of the system's sizes.
        minutes: budget of the whole training in wall time, or
        images: the same in images seen, which alone repeats to the bit.
        foundation: a Stable Diffusion folder, for systems that take one.
        seed: of the whole training.
        target: what the masks of datasets show that do not say so themselves.
        modality: instead of what the datasets say.
        fold: divides every dataset by `delineate.data.folds.fold_of`; the model remembers which fold it saw.
        merge: what becomes of synthetic cases: "patch", "image" or "loss" merge them with the slices they were made
            from (`delineate.training.merging`), "extra" takes them as further cases, "none" leaves them out. By default
            a system that merges does so by patches, and the others take them as further cases.
        keep_real: chance of a patch, or weight of a loss, to be the real one.
        cell: side of a merged patch in pixels of the working grid.
        augmentation: a key of `delineate.data.augmentation.AUGMENTATIONS`; None is the default one.
        raters: where several drew, whose reading is learnt: that of a "random" one, drawn anew each time (the default),
            of "all" side by side, or the "consensus" in the label file.
        network: a key of `delineate.networks.NETWORKS`, for systems that can be made of any.
        scheme: a key of `delineate.schemes.SCHEMES`: how the system is taught, beyond plain supervision.
        unlabelled: folder of scans without labels, for schemes that learn from some.
        init: what the network begins with instead of chance, for systems that can: "imagenet".
        calibrate: whether the model is then calibrated on the val subjects, where there are any.
        precision: of activations, one of `delineate.training.engine.PRECISIONS`.
        compiled: whether networks are compiled (`delineate.training.engine.Engine`).

    Raises:
        DelineateError: no such value, or one that makes no sense beside the others.
    """

    system: str
    datasets: Sequence[Path | str]
    preset: str = "tiny"
    minutes: float | None = None
    images: int | None = None
    foundation: Path | None = None
    seed: int = 0
    target: Sequence[str] | None = None
    modality: str | None = None
    fold: Fold | None = None
    merge: str | None = None
    keep_real: float | None = None
    cell: int | None = None
    augmentation: str | None = None
    raters: str | None = None
    network: str | None = None
    scheme: str | None = None
    unlabelled: Path | None = None
    init: str | None = None
    calibrate: bool = True
    precision: str = "auto"
    compiled: bool = False

    def __post_init__(self):
        if self.system not in SYSTEMS:
            raise DelineateError(f"a system is one of {', '.join(SYSTEMS)}; got '{self.system}'")
        row = SYSTEMS[self.system]
        if self.preset not in row.presets:
            raise DelineateError(f"--preset of {self.system} is one of {', '.join(row.presets)}; got '{self.preset}'")
        _ = self.synthetic
        if self.network is not None and not row.takes_network:
            able = ", ".join(name for name, one in SYSTEMS.items() if one.takes_network)
            raise DelineateError(f"--network is for {able}; {self.system} is made of its own")
        if self.network is not None and self.network not in NETWORKS:
            raise DelineateError(f"--network is one of {', '.join(NETWORKS)}; got '{self.network}'")
        self._check_scheme()
        if self.init is not None and self.init not in row.starts:
            if row.starts:
                raise DelineateError(f"--init of {self.system} is one of {', '.join(row.starts)}; got '{self.init}'")
            able = ", ".join(name for name, one in SYSTEMS.items() if one.starts)
            raise DelineateError(f"--init is for {able}; {self.system} starts from chance")
        if self.augmentation is not None and self.augmentation not in AUGMENTATIONS:
            raise DelineateError(f"--augmentation is one of {', '.join(AUGMENTATIONS)}; got '{self.augmentation}'")
        if self.raters is not None and self.raters not in RATINGS:
            raise DelineateError(f"--raters is one of {', '.join(RATINGS)}; got '{self.raters}'")
        if self.precision not in PRECISIONS:
            raise DelineateError(f"--precision is one of {', '.join(PRECISIONS)}; got '{self.precision}'")
        _ = self.folders

    def _check_scheme(self) -> None:
        """Refuse a scheme that there is not, or that cannot teach this system or with what was given."""
        if self.scheme is None:
            if self.unlabelled is not None:
                raise DelineateError("--unlabelled is for a --scheme that learns from such scans, and none was named")
            return
        if self.scheme not in SCHEMES:
            raise DelineateError(f"--scheme is one of {', '.join(SCHEMES)}; got '{self.scheme}'")
        scheme, row = SCHEMES[self.scheme], SYSTEMS[self.system]
        if scheme.pixelwise and not row.pixelwise:
            able = ", ".join(name for name, one in SYSTEMS.items() if one.pixelwise)
            raise DelineateError(f"the scheme {self.scheme} teaches {able}; not {self.system}")
        if scheme.takes_unlabelled != (self.unlabelled is not None):
            missing = "needs --unlabelled, a folder of scans" if scheme.takes_unlabelled else "takes no --unlabelled"
            raise DelineateError(f"the scheme {self.scheme} {missing}")

    @property
    def folders(self) -> list[NamedFolder]:
        """The datasets, read as people write them."""
        return [parse_named(text, self.target, self.modality) for text in self.datasets]

    @property
    def synthetic(self) -> str:
        """What becomes of synthetic cases: `merge`, or what is usual for the system."""
        able = [name for name, entry in SYSTEMS.items() if entry.merges]
        return choose_mode(self.system, able, self.merge, self.keep_real, self.cell)

    def to_json(self) -> dict[str, Any]:
        """All of it, with folders from the root."""
        return asdict(self) | {
            "datasets": [str(folder) for folder in self.folders],
            "foundation": None if self.foundation is None else str(Path(self.foundation).resolve()),
            "unlabelled": None if self.unlabelled is None else str(Path(self.unlabelled).resolve()),
            "target": list(self.target or ()),
            "fold": None if self.fold is None else str(self.fold),
        }

    def about(self) -> dict[str, Any]:
        """What the model remembers of it: no folders, and of what may be left out only what was given."""
        told, optional = self.to_json(), OPTIONAL
        told = {k: v for k, v in told.items() if k not in ("datasets", "foundation", "unlabelled", "calibrate")}
        return {k: v for k, v in told.items() if k not in optional or v is not None}


def train_system(request: TrainRequest, output: Path, *, device: str = "cpu", watch: Watch = Nobody()) -> Path:
    """Train a system and write its model folder; returns the picture of its training curves.

    Checkpoints live in `<output>-training/`. After a stop the same request goes on from there; another one is refused.
    Processes that `torchrun` started train one model together; the first of them writes it.
    """
    with joined(device) as (ranks, own):
        return _train_system(request, output, device=own, watch=watch if ranks.first else Nobody())


def _train_system(request: TrainRequest, output: Path, *, device: str, watch: Watch) -> Path:
    check_free(Path(output))
    start = None if request.init is None else PRETRAINED[SYSTEMS[request.system].starts[request.init]]
    if start is not None:
        read_pretrained(start)  # what is missing or damaged is told before anything else is done
    work = work_folder(output, request)
    watch.start("comparing images across splits")
    datasets, fold = open_all(request.folders, request.fold, divide=watch), request.fold
    if several := [dataset.root for dataset in datasets if dataset.channels]:
        _refuse_channels(request, several[0])
    for dataset in datasets if fold is None else ():  # a fold has its own splits, and keeps twins together
        for line in filter(None, (nnunet_splits_in_words(dataset.root), twins_in_words(dataset))):
            watch.say(line)
    made, folders = any(dataset.origins for dataset in datasets), ", ".join(map(str, request.datasets))
    asked = [name for name in ("merge", "keep_real", "cell") if getattr(request, name) is not None]
    if asked and not made:
        option = asked[0].replace("_", "-")
        raise DelineateError(
            f"--{option} is for synthetic cases, and {folders} has none; make some with: delineate synthesize"
        )
    about = request.about()
    if start is not None:
        about["init_weights"] = start.about()
    about["held_out"] = held_out(datasets, fold) + seen_by_foundation(request.foundation, datasets, fold)
    watch.start("planning")
    plan = make_plan(datasets, SYSTEMS[request.system].presets[request.preset])
    about["plan"] = plan.to_json()
    synthetic = "pair" if request.synthetic in MERGES else request.synthetic
    if made:
        about["synthetic"] = synthetic
        if synthetic == "pair":
            about["merging"] = asdict(merging_on(plan.size, request.synthetic, request.keep_real, request.cell))
    about["augmentation"] = request.augmentation or "default"
    if several := any(has_raters(dataset) for dataset in datasets):
        about["raters"] = request.raters or "random"
    elif request.raters is not None:
        raise DelineateError(f"--raters is for datasets with a raters/ folder, and {folders} has none")
    rating = about["raters"] if several else "consensus"
    bank = read_bank(datasets, plan.size, watch, synthetic=synthetic, rating=rating, apart_mm=plan.apart_mm)
    bank = replace(bank, augmentation=about["augmentation"])
    names, unlabelled = [dataset.name for dataset in datasets], None
    if request.unlabelled is not None:
        unlabelled, about["unlabelled"] = _unlabelled(request, datasets, bank, watch)
    how: dict[str, Any] = {"unlabelled": unlabelled, "device": device, "watch": watch}
    judged = held_out_slices(datasets, bank, watch)
    curves = train_on(request, bank, output, work, about, names, judged_by=judged, **how)
    if here().first and request.calibrate and any(dataset.split("val") for dataset in datasets):
        watch.start("calibrating on the val split")
        calibrate_folder(output, datasets, fold=fold, kinds=False, device=device, on_step=watch.update)
    return curves


def _refuse_channels(request: TrainRequest, root: Path) -> None:
    """Where scans have several channels: what reads one image alone is told before any is read."""
    named = request.network or request.system
    if named in NETWORKS and not NETWORKS[named].any_channels:
        able = ", ".join(name for name, row in NETWORKS.items() if row.any_channels and 2 in row.dims)
        raise DelineateError(f"{named} is for grey and colour images; {root} has several channels: take {able}")
    if request.unlabelled is not None:
        raise DelineateError(f"--unlabelled is for scans of one image; {root} has several channels")


def trained(model: Path) -> dict[str, Any]:
    """What a training came to, as JSON: the model, what was learnt from, and held-out Dice of the val subjects.

    By target where the model was calibrated on them, in 3-D: mean, standard deviation and how many subjects; else of
    slices, the best mean of all targets that was reached while training ("val_slices"). The val subjects also chose
    which state of the training was kept: only test subjects tell how good it is.
    """
    told = check_model(model)[1]["training"]
    calibration = Calibration.load(Path(model))
    best = [stage["val"] for stage in told["stages"].values() if "val" in stage]
    return {
        "model": str(model),
        "curves": str(Path(f"{model}-training") / "curves.png"),
        **{name: told[name] for name in ("system", "preset", "datasets", "slices", "stages")},
        "val": {} if calibration is None else calibration.held_out_dice(),
        "val_slices": best[-1] if best else None,
    }


def _unlabelled(
    request: TrainRequest, datasets: Sequence[Dataset], bank: SliceBank, watch: Watch
) -> tuple[UnlabelledBank, dict[str, Any]]:
    """The unlabelled slices of a request, and what the model remembers of them: how many, and the scans' digests.

    Raises:
        DatasetError: held-out scans are among them.
    """
    assert request.unlabelled is not None
    found = find_scans(request.unlabelled)
    digests = {scan.digest for scan in found}
    held = [case for dataset in datasets for part in ("val", "test") for case in dataset.split(part)]
    if odd := [case.name for case in held if digest_of(case.image) in digests]:
        raise DatasetError(
            f"{request.unlabelled}: holds {len(odd)} scans that are held out for val or test, such as {odd[0]}; "
            "leave them out, or what is measured on them would mean nothing"
        )
    watch.start("reading the unlabelled scans")
    modality = request.modality or (bank.modalities[0] if len(set(bank.modalities)) == 1 else None)
    slices = read_unlabelled(found, bank.size, modality=modality, augmentation=bank.augmentation, on_scan=watch.update)
    return slices, {"scans": len(found), "slices": len(slices), "sha256": sorted(digests)}


def train_on(
    request: TrainRequest,
    bank: SliceBank,
    output: Path,
    work: Path,
    about: Mapping[str, Any],
    dataset_names: Sequence[str],
    *,
    unlabelled: UnlabelledBank | None = None,
    judged_by: HeldOut | None = None,
    card: str | None = None,
    device: str = "cpu",
    watch: Watch = Nobody(),
) -> Path:
    """Train on slices at hand. Returns the picture of the training curves.

    Args:
        request: of it count system, preset, budget, foundation, network, scheme, init and seed.
        bank: what is learnt from.
        output: model folder to write.
        work: where checkpoints live.
        about: what the model is to remember of its training beside the names of datasets, slices and stages;
            "merging" there is also heeded.
        dataset_names: of those in `bank`.
        unlabelled: slices without labels, for a scheme.
        judged_by: what the training is judged by, so that its best state is kept.
        card: Markdown for people, instead of the plain one.
        device: to train on.
        watch: told of progress.
    """
    logs: dict[str, list[dict[str, float]]] = {}
    merging: dict[str, Any] = {"merging": Merging(**about["merging"])} if about.get("merging") else {}
    with polite_stop() as should_stop:
        budget, engine = Budget(request.images, request.minutes), Engine(request.precision, request.compiled)
        run = Run(budget, work, request.seed, reporter(logs, watch), should_stop, engine, judged_by)
        row, given = SYSTEMS[request.system], {"network": request.network, "init": request.init}
        how = {name: value for name, value in given.items() if value is not None}
        if request.scheme is None:
            foundation = request.foundation and Path(request.foundation).resolve()
            trained = row.train(bank, request.preset, run, device=device, foundation=foundation, **how, **merging)
        else:
            streams = Streams(bank, unlabelled)
            trained = SCHEMES[request.scheme].train(row, streams, request.preset, run, device=device, **how)
    curves = Path(f"{output}-training") / "curves.png"
    if not here().first:
        return curves
    logs = finished_before(work, logs) | logs
    habits = Habits(apart_mm=bank.apart_mm, channels=bank.channels, regions=bank.regions)
    segmenter = Segmenter(trained, tuple(dict.fromkeys(bank.modalities)), habits=habits)
    training = {
        **about,
        "datasets": list(dataset_names),
        "slices": len(bank),
        **({} if bank.variants is None else {"variants": len(bank.variants.images)}),
        "stages": {stage: _told(log) for stage, log in logs.items() if log},
    }
    save_model(
        output,
        segmenter,
        request.system,
        training=training,
        card=card or plain_card(request.system, training, segmenter),
    )
    training_curves(logs, curves)
    for stage in list(work.rglob("checkpoint-*")):
        shutil.rmtree(stage, ignore_errors=True)
    for best in work.rglob("best*.*"):
        best.unlink()
    (work / "settings.json").unlink(missing_ok=True)
    return curves


def _told(log: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a model remembers of a stage: images, seconds, and the best score on held-out slices where it was judged."""
    val = [entry["val"] for entry in log if "val" in entry]
    return {k: log[-1][k] for k in ("images", "seconds")} | ({"val": max(val)} if val else {})
