"""A foundation from datasets: the whole job behind `delineate pretrain`."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from delineate.data.dataset import Dataset
from delineate.data.folds import Fold, held_out, refuse_seen
from delineate.data.named import parse_named
from delineate.errors import DelineateError
from delineate.foundation.foundation import Foundation
from delineate.foundation.pretraining import caption_corpus, pretrain
from delineate.jobs.opening import open_all, read_bank
from delineate.jobs.watch import Nobody, Watch, finished_before, reporter, work_folder
from delineate.pictures import training_curves
from delineate.storage.files import write_json
from delineate.systems import PRESETS
from delineate.training.loop import Budget, Run, polite_stop
from delineate.training.planning import make_plan

EDGES_SHARE = 0.95  # of a pre-training with edges; the rest is the foundation's own


HELD_OUT = "held_out.json"  # beside a foundation made here: what it may not be scored on


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
    from delineate.diffusion.codec import CODECS
    from delineate.synthesis.synthesizer import Synthesizer, train_synthesizer

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
        run = Run(budget, work, seed, reporter(logs, watch), should_stop)
        pretrain(foundation, bank, run.part(1 - EDGES_SHARE) if edges else run)
        if isinstance(drawn, Synthesizer):
            train_synthesizer(drawn, bank, run.part(EDGES_SHARE))
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
