"""Whole jobs on datasets: pre-train, train, evaluate. The command line and the recipes call these."""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from delineate.card import plain_card
from delineate.data.augmentation import AUGMENTATIONS
from delineate.data.dataset import has_raters
from delineate.data.folds import Fold, held_out
from delineate.data.named import parse_named
from delineate.data.slices import RATINGS, SliceBank
from delineate.errors import DelineateError
from delineate.jobs.calibrate import calibrate_model
from delineate.jobs.opening import open_all, read_bank
from delineate.jobs.pretrain import seen_by_foundation
from delineate.jobs.watch import Nobody, Watch, finished_before, reporter, work_folder
from delineate.model_folder import check_free, save_model
from delineate.pictures import training_curves
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.systems import SYSTEMS
from delineate.training.loop import Budget, Run, polite_stop
from delineate.training.merging import MERGES, Merging, choose_mode, merging_on
from delineate.training.planning import make_plan


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
    the slices they were made from (`delineate.training.merging`, with `keep_real` and `cell` in pixels of the working
    grid), "extra" takes them as further cases, "none" leaves them out. By default a system that merges does so by
    patches, and the others take them as further cases. `augmentation` is a key of
    `delineate.data.augmentation.AUGMENTATIONS`.

    Where several raters drew, `raters` says whose reading is learnt: that of a "random" one, drawn anew each time (the
    default), of "all" side by side, or the "consensus" in the label file.

    Then the model is calibrated on the val subjects, where there are any and `calibrate` allows
    (`delineate.jobs.calibrate`).
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
        run = Run(
            Budget(settings["images"], settings["minutes"]), work, settings["seed"], reporter(logs, watch), should_stop
        )
        how = {"device": device, "foundation": settings["foundation"], **merging}
        trained = SYSTEMS[system].train(bank, settings["preset"], run, **how)
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
