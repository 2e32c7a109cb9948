"""Whole jobs on datasets: pre-train, train, evaluate. The command line and the recipes call these."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from delineate.adapters.folder import read_adapter
from delineate.calibrating import calibrate_model
from delineate.card import plain_card
from delineate.checkpoint import TrainState
from delineate.data.augmentation import AUGMENTATIONS
from delineate.data.dataset import Dataset, has_raters
from delineate.data.folds import Fold, fold_of, held_out, refuse_seen, trained_on
from delineate.data.named import open_named, parse_named
from delineate.data.slices import RATINGS, SliceBank, build_slices
from delineate.errors import DatasetError, DelineateError
from delineate.files import sha256_of, write_json
from delineate.merging import MERGES, Merging, choose_mode, merging_on
from delineate.model_folder import check_free, check_model, fingerprint, save_model
from delineate.networks.foundation import Foundation
from delineate.pictures import training_curves
from delineate.planning import make_plan
from delineate.pretraining import caption_corpus, pretrain
from delineate.protocols import PROTOCOLS
from delineate.segmenter import Segmenter
from delineate.systems import PRESETS, SYSTEMS
from delineate.training import Budget, polite_stop

EDGES_SHARE = 0.95  # of a pre-training with edges; the rest is the foundation's own
HELD_OUT = "held_out.json"  # beside a foundation made here: what it may not be scored on


class Watch(Protocol):
    """Who is told how far a job is: a progress bar, or nobody."""

    def start(self, what: str, done: float = 0.0) -> None: ...  # noqa: D102
    def update(self, done: float, note: str = "") -> None: ...  # noqa: D102


class Nobody:
    """A `Watch` that looks away."""

    def start(self, what: str, done: float = 0.0) -> None:
        """Ignored."""

    def update(self, done: float, note: str = "") -> None:
        """Ignored."""


def open_all(
    paths: Sequence[Path | str], target: Sequence[str] | None, modality: str | None, fold: Fold | None = None
) -> list[Dataset]:
    """The datasets at `paths`, each as in `data.named`, with the splits of `fold` or their own.

    Those without a train split are refused with the way out.
    """
    datasets = [open_named(path, target, modality) for path in paths]
    if fold is not None:
        return [fold_of(dataset, *fold) for dataset in datasets]
    for dataset in datasets:
        if not dataset.splits:
            raise DatasetError(
                f"{dataset.root}: no splits.json, so nothing says which subjects are held out; write one as "
                '{"train": [...], "val": [...], "test": [...]}, call delineate.data.dataset.write_splits, or use --fold'
            )
    return datasets


def read_bank(
    datasets: Sequence[Dataset],
    size: int,
    watch: Watch,
    shares: Sequence[float] | None = None,
    synthetic: str = "extra",
    rating: str = "consensus",
) -> SliceBank:
    """The train split of every dataset, with progress; `shares`, `synthetic` and `rating` as in `build_slices`."""

    def progress(items: Any, total: int) -> Iterator[Any]:
        for done, item in enumerate(items):
            watch.update(done / total)
            yield item

    watch.start("reading the training scans")
    return build_slices(datasets, "train", size, shares=shares, synthetic=synthetic, rating=rating, progress=progress)


def train_system(
    system: str,
    paths: Sequence[Path | str],
    output: Path,
    *,
    preset: str = "tiny",
    minutes: float | None = None,
    images: int | None = None,
    foundation: Path | None = None,
    seed: int = 0,
    target: Sequence[str] | None = None,
    modality: str | None = None,
    fold: str | None = None,
    augmentation: str | None = None,
    raters: str | None = None,
    merge: str | None = None,
    keep_real: float | None = None,
    cell: int | None = None,
    calibrate: bool = True,
    device: str = "cpu",
    watch: Watch = Nobody(),
) -> Path:
    """Train a system and write its model folder; returns the picture of its training curves.

    A dataset is a folder, or FOLDER=TARGET@MODALITY (`delineate.data.named`) where several need different names. With
    `fold` ("1/4") every dataset is divided by `delineate.data.folds.fold_of`; the model remembers which fold it saw.

    Checkpoints live in `<output>-training/`. After a stop the same call goes on from there; a call with other
    settings is refused.

    Where datasets hold synthetic cases, `merge` says what becomes of them: "patch", "image" or "loss" merge them with
    the slices they were made from (`delineate.merging`, with `keep_real` and `cell` in pixels of the working grid),
    "extra" takes them as further cases, "none" leaves them out. By default a system that merges does so by patches,
    and the others take them as further cases. `augmentation` is a key of `delineate.data.augmentation.AUGMENTATIONS`.

    Where several raters drew, `raters` says whose reading is learnt: that of a "random" one, drawn anew each time (the
    default), of "all" side by side, or the "consensus" in the label file.

    Then the model is calibrated on the val subjects, where there are any and `calibrate` allows
    (`delineate.calibrating`).
    """
    mode = choose_mode(system, [n for n, entry in SYSTEMS.items() if entry.merges], merge, keep_real, cell)
    if augmentation is not None and augmentation not in AUGMENTATIONS:
        raise DelineateError(f"--augmentation is one of {', '.join(AUGMENTATIONS)}; got '{augmentation}'")
    if raters is not None and raters not in RATINGS:
        raise DelineateError(f"--raters is one of {', '.join(RATINGS)}; got '{raters}'")
    settings = {
        "system": system,
        "datasets": [str(parse_named(p, target, modality)) for p in paths],
        "preset": preset,
        "minutes": minutes,
        "images": images,
        "foundation": None if foundation is None else str(Path(foundation).resolve()),
        "seed": seed,
        "target": list(target or ()),
        "modality": modality,
        "fold": None if fold is None else str(Fold.parse(fold)),
    }
    asked = {"merge": merge, "keep_real": keep_real, "cell": cell}
    asked = {name: value for name, value in asked.items() if value is not None}
    optional = {"augmentation": augmentation, "raters": raters}
    settings |= asked | {name: value for name, value in optional.items() if value is not None}
    check_free(Path(output))
    work = work_folder(output, settings)
    part = None if fold is None else Fold.parse(fold)
    datasets = open_all(paths, target, modality, part)
    made = any(dataset.origins for dataset in datasets)
    if asked and not made:
        option, folders = next(iter(asked)).replace("_", "-"), ", ".join(map(str, paths))
        raise DelineateError(
            f"--{option} is for synthetic cases, and {folders} has none; make some with: delineate synthesize"
        )
    settings["held_out"] = held_out(datasets, part) + seen_by_foundation(foundation, datasets, part)
    watch.start("planning")
    plan = make_plan(datasets, SYSTEMS[system].presets[preset])
    settings["plan"] = plan.to_json()
    synthetic = "pair" if mode in MERGES else mode
    if made:
        settings["synthetic"] = synthetic
        if synthetic == "pair":
            settings["merging"] = asdict(merging_on(plan.size, mode, keep_real, cell))
    settings["augmentation"] = augmentation or "default"
    if several := any(has_raters(dataset) for dataset in datasets):
        settings["raters"] = raters or "random"
    elif raters is not None:
        raise DelineateError(
            f"--raters is for datasets with a raters/ folder, and {', '.join(map(str, paths))} has none"
        )
    bank = read_bank(
        datasets, plan.size, watch, synthetic=synthetic, rating=settings["raters"] if several else "consensus"
    )
    bank = replace(bank, augmentation=settings["augmentation"])
    curves = train_on(system, bank, output, work, settings, [d.name for d in datasets], device=device, watch=watch)
    if calibrate and any(dataset.split("val") for dataset in datasets):
        watch.start("calibrating on the val split")
        calibrate_model(output, datasets, fold=part, device=device, on_step=watch.update)
    return curves


def train_on(
    system: str,
    bank: SliceBank,
    output: Path,
    work: Path,
    settings: dict[str, Any],
    dataset_names: Sequence[str],
    *,
    card: str | None = None,
    device: str = "cpu",
    watch: Watch = Nobody(),
) -> Path:
    """Train on slices at hand; `settings` as in `train_system`. Returns the picture of the training curves."""
    logs: dict[str, list[dict[str, float]]] = {}
    merging = {"merging": Merging(**settings["merging"])} if settings.get("merging") else {}
    with polite_stop() as should_stop:
        trained = SYSTEMS[system].train(
            bank,
            settings["preset"],
            budget=Budget(settings["images"], settings["minutes"]),
            folder=work,
            seed=settings["seed"],
            foundation=settings["foundation"],
            device=device,
            on_step=reporter(logs, watch),
            should_stop=should_stop,
            **merging,
        )
    logs = finished_before(work, logs) | logs
    segmenter = Segmenter(trained, tuple(dict.fromkeys(bank.modalities)))
    training = {k: v for k, v in settings.items() if k not in ("datasets", "foundation")} | {
        "datasets": list(dataset_names),
        "slices": len(bank),
        **({} if bank.variants is None else {"variants": len(bank.variants.images)}),
        "stages": {stage: {k: log[-1][k] for k in ("images", "seconds")} for stage, log in logs.items() if log},
    }
    save_model(output, segmenter, system, training=training, card=card or plain_card(system, training, segmenter))
    curves = training_curves(logs, Path(f"{output}-training") / "curves.png")
    write_json(curves.with_name("log.json"), logs)
    for stage in list(work.rglob("checkpoint-*")):
        shutil.rmtree(stage, ignore_errors=True)
    (work / "settings.json").unlink(missing_ok=True)
    return curves


def pretrain_foundation(
    paths: Sequence[Path | str],
    output: Path,
    *,
    preset: str = "tiny",
    codec: str | None = None,
    edges: bool = False,
    shares: Sequence[float] | None = None,
    minutes: float | None = None,
    images: int | None = None,
    seed: int = 0,
    target: Sequence[str] | None = None,
    modality: str | None = None,
    fold: str | None = None,
    device: str = "cpu",
    watch: Watch = Nobody(),
) -> Foundation:
    """Train a foundation on the train split of datasets and write it as a Stable Diffusion folder.

    With `edges` most of the budget goes to drawing scans from edge maps (stage a of DiffBoost), the foundation learning
    with the edge control, which lies in the folder's `edges/`. The codec is then by default one in colour.
    """
    from delineate.codec import CODECS
    from delineate.synthesis import Synthesizer, train_synthesizer

    codec = codec or ("unshuffle-rgb" if edges else "unshuffle")
    if codec not in CODECS:
        raise DelineateError(f"--codec is one of {', '.join(CODECS)}; got '{codec}'")
    output = Path(output)
    if output.exists() and any(output.iterdir()) and not (output / "delineate.json").exists():
        raise DelineateError(f"{output}: exists and is not a foundation made here; choose another folder")
    settings = {"datasets": [str(parse_named(p, target, modality)) for p in paths], "preset": preset, "codec": codec}
    settings |= ({"edges": True} if edges else {}) | ({"shares": list(shares)} if shares else {})
    part = None if fold is None else Fold.parse(fold)
    settings |= {"target": list(target or ()), "modality": modality, "fold": None if part is None else str(part)}
    work = work_folder(output, {**settings, "minutes": minutes, "images": images, "seed": seed})
    datasets = open_all(paths, target, modality, part)
    bank = read_bank(datasets, make_plan(datasets, PRESETS[preset]).size, watch, shares)
    foundation = Foundation.make(preset, codec, caption_corpus(bank.vocabulary, bank.modalities), seed=seed).to(device)
    logs: dict[str, list[dict[str, float]]] = {}
    budget, drawn = Budget(images, minutes), Synthesizer.make(foundation, preset, seed=seed) if edges else foundation
    with polite_stop() as should_stop:
        how: dict[str, Any] = {"seed": seed, "on_step": reporter(logs, watch), "should_stop": should_stop}
        pretrain(foundation, bank, budget=budget.share(1 - EDGES_SHARE) if edges else budget, folder=work, **how)
        if isinstance(drawn, Synthesizer):
            train_synthesizer(drawn, bank, budget=budget.share(EDGES_SHARE), folder=work, **how)
            stages = finished_before(work, logs) | logs
            seen = sum(stages[name][-1]["images"] for name in ("estimate", "edges") if stages.get(name))
            foundation.pretraining += f", then on drawing them from edges, {seen} pictures"
    logs = finished_before(work, logs) | logs
    building = output.with_name(f".writing-{output.name}")
    shutil.rmtree(building, ignore_errors=True)
    drawn.save(building)
    write_json(building / HELD_OUT, held_out(datasets, part))
    shutil.rmtree(output, ignore_errors=True)
    building.rename(output)
    training_curves(logs, Path(f"{output}-training") / "curves.png")
    for stage in list(work.rglob("checkpoint-*")):
        shutil.rmtree(stage, ignore_errors=True)
    (work / "settings.json").unlink(missing_ok=True)
    return foundation


def evaluate_model(
    path: Path | str,
    output: Path,
    model: Path | None,
    *,
    adapter: Path | None = None,
    protocol: str = "overlap",
    split: str = "test",
    n: int = 8,
    seed: int = 0,
    target: Sequence[str] | None = None,
    modality: str | None = None,
    fold: str | None = None,
    device: str = "cpu",
    watch: Watch = Nobody(),
) -> dict[str, Any]:
    """Score a model on a split of a dataset, named as in `train_system`, by one of `PROTOCOLS`.

    Writes report.json, rows.csv and a picture into `output`, and returns the report. With `fold` ("1/4") the splits are
    those of that fold. A model that was trained on the dataset in another fold is refused, as is one that was trained
    with a fold where none is given here, or the reverse: it would be scored on its own training subjects.
    """
    if protocol not in PROTOCOLS:
        raise DelineateError(f"--protocol is one of {', '.join(PROTOCOLS)}; got '{protocol}'")
    dataset = open_named(path, target, modality)
    part = None if fold is None else Fold.parse(fold)
    if part is not None:
        dataset = fold_of(dataset, *part)
    refuse_seen(trained_on(check_model(model)[1]["training"]), dataset, part, "the model")
    if adapter is not None:
        learnt_from = set(read_adapter(adapter).training.get("learnt_from", ()))
        if seen_too := [case.name for case in dataset.split(split) if sha256_of(case.image) in learnt_from]:
            raise DelineateError(
                f"{adapter}: learnt from {len(seen_too)} of these scans ({seen_too[0]}); score it on others (--split)"
            )
    segmenter = Segmenter.load(model, device, adapter)
    watch.start(f"scoring the {split} split of {dataset.name}")
    if not dataset.split(split):
        raise DatasetError(f"{dataset.root}: the {split} split is empty; choose another, or correct splits.json")
    how = PROTOCOLS[protocol]
    rows = how.rows(segmenter, dataset, split=split, n=n, seed=seed, on_step=watch.update)
    if not rows:
        raise DatasetError(
            f"{dataset.root}: the model knows none of its targets ({', '.join(dataset.labels)}); "
            "see what it knows with: delineate prompts"
        )
    report = {
        "dataset": dataset.name,
        "protocol": protocol,
        "calibrated_on": None if segmenter.calibration is None else dict(segmenter.calibration.about),
        "split": split,
        "fold": None if part is None else str(part),
        "model_sha256": fingerprint(model),
        **({} if adapter is None else {"adapter_sha256": sha256_of(Path(adapter) / "manifest.json")}),
        "proposals": n,
        "seed": seed,
        **how.summarise(rows),
    }
    output.mkdir(parents=True, exist_ok=True)
    how.write(rows, output / "rows.csv")
    how.draw(dataset.name, report, output / how.picture)
    write_json(output / "report.json", report)
    return report


def seen_by_foundation(foundation: Path | None, datasets: Sequence[Dataset], fold: Fold | None) -> list[dict]:
    """What a foundation made here was pre-trained on; refused if it saw subjects that `datasets` hold out.

    A downloaded one says nothing of medical data and is taken as it is.
    """
    if foundation is None or not (Path(foundation) / "delineate.json").is_file():
        return []
    record = Path(foundation) / HELD_OUT
    if record.is_file():
        seen = json.loads(record.read_text())
        for dataset in datasets:
            refuse_seen(seen, dataset, fold, f"the foundation {foundation}")
        return seen
    if fold is not None:
        raise DelineateError(
            f"{foundation}: does not say on which subjects it was pre-trained ({HELD_OUT}), maybe those that fold "
            f"{fold} holds out; leave --foundation out, or make one with: delineate pretrain --fold {fold}"
        )
    return []


def reporter(logs: dict[str, list], watch: Watch) -> Callable[[str, TrainState, float], None]:
    """An `on_step` that keeps every stage's log and tells `watch`."""

    def on_step(stage: str, state: TrainState, spent: float) -> None:
        if stage not in logs:
            watch.start(f"training: {stage}")
        logs[stage] = state.log
        recent = state.log[-20:]
        watch.update(min(1.0, spent), f"loss {sum(e['loss'] for e in recent) / len(recent):.3f}")

    return on_step


def finished_before(work: Path, logs: dict[str, list]) -> dict[str, list]:
    """The logs of stages that an earlier, stopped run had finished: this one never came by them."""
    states = sorted(work.rglob("checkpoint-*/state.json"), key=lambda path: path.parent.name)
    newest = {path.parent.parent: path for path in states}
    earlier = sorted(newest.values(), key=lambda path: path.stat().st_mtime)
    named = {path.parent.parent.name: path for path in earlier if path.parent.parent.name not in logs}
    return {stage: json.loads(path.read_text())["log"] for stage, path in named.items()}


def work_folder(output: Path, settings: dict[str, Any]) -> Path:
    """The folder of an unfinished training's checkpoints; made, or found with the same settings."""
    work = Path(f"{output}-training")
    written = work / "settings.json"
    begun = any(work.rglob("checkpoint-*"))  # else the earlier call failed at the door, and nothing can be lost
    if begun and written.exists() and json.loads(written.read_text()) != settings:
        raise DelineateError(
            f"{work}: holds an unfinished training with other settings; repeat those to go on, or remove the folder"
        )
    work.mkdir(parents=True, exist_ok=True)
    write_json(written, settings)
    return work
