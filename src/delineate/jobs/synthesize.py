"""A small labelled dataset made larger: the whole job behind `delineate synthesize`.

Fine-tune a synthesizer on the train split (stage b of DiffBoost), train a first segmenter for the gate, draw K variants
of every training case, judge them, and write a dataset that holds the real cases and what passed.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from torch import Tensor

from delineate.data.augmented import AugmentedDataset
from delineate.data.dataset import Case, Dataset
from delineate.data.folds import Fold, held_out
from delineate.data.named import NamedFolder, parse_named
from delineate.data.slices import slices_of
from delineate.data.synthetic import PROVENANCE
from delineate.errors import DatasetError, DelineateError
from delineate.jobs.opening import open_all, read_bank, refuse_channels
from delineate.jobs.pretrain import HELD_OUT, seen_by_foundation
from delineate.jobs.watch import Nobody, Watch, finished_before, reporter, work_folder
from delineate.pictures import training_curves
from delineate.scans.grid import stack_of
from delineate.scans.reading import read_scan
from delineate.storage.files import write_json
from delineate.storage.schema import read_json
from delineate.storage.shipped import HOUSE_SYNTHESIS, house_folder
from delineate.storage.swapping import swapping
from delineate.synthesis.artist import Artist, Drawing
from delineate.synthesis.contact_sheet import contact_sheet
from delineate.synthesis.edges import EDGES, Extractor, hint
from delineate.synthesis.synthesizer import Synthesizer, train_synthesizer
from delineate.systems import PRESETS, SYSTEMS
from delineate.training.loop import Budget, Interrupted, Run, polite_stop
from delineate.training.planning import make_plan

SEGMENTER_SHARE = 0.2  # of the training budget goes to the gate's first segmenter
TUNING_RATE = 5e-4  # half of the first stage's; DiffBoost takes a tenth, of a rate that is a hundredth


@dataclass(frozen=True)
class SynthesizeRequest:
    """A labelled dataset to be made larger.

    Attributes:
        dataset: with splits, named as in `delineate.jobs.train.TrainRequest`.
        drawing: how many, and how.
        foundation: a Stable Diffusion folder, with or without an edge control (`PretrainRequest(edges=True)` asks for
            one with); None takes the one that ships with the package.
        hed: a folder with the weights of HED, for `drawing.edges` "hed".
        preset: size of a new edge control, where the foundation has none.
        minutes: of fine-tuning and of the first segmenter together.
        images: the same in images seen, which repeats (`Budget`).
        seed: of everything.
        target: as in `TrainRequest`.
        modality: as in `TrainRequest`.
        fold: as in `TrainRequest`; the folder then holds this fold's train and val cases.

    Raises:
        DelineateError: no such edges, or HED without its weights, or the reverse.
    """

    dataset: Path | str
    drawing: Drawing = field(default_factory=Drawing)
    foundation: Path | None = None
    hed: Path | None = None
    preset: str = "tiny"
    minutes: float | None = None
    images: int | None = None
    seed: int = 0
    target: Sequence[str] | None = None
    modality: str | None = None
    fold: Fold | None = None

    def __post_init__(self):
        _ = self.folder
        if self.drawing.edges == "hed":
            if self.hed is None:
                raise DelineateError("edges 'hed' need the folder with its weights; name it with --hed")
        elif self.hed is not None:
            raise DelineateError(f"--hed is for edges 'hed'; edges are '{self.drawing.edges}'")
        elif self.drawing.edges not in (*EDGES, "none"):
            raise DelineateError(f"edges are one of {', '.join(EDGES)}, hed, none; got '{self.drawing.edges}'")

    @property
    def folder(self) -> NamedFolder:
        """The dataset, read as people write it."""
        return parse_named(self.dataset, self.target, self.modality)

    def to_json(self) -> dict[str, Any]:
        """All of it, with folders from the root."""
        return asdict(self) | {
            "dataset": str(self.folder),
            "foundation": None if self.foundation is None else str(Path(self.foundation).resolve()),
            "hed": None if self.hed is None else str(Path(self.hed).resolve()),
            "target": list(self.target or ()),
            "fold": None if self.fold is None else str(self.fold),
        }


DRAWN_BY = ("drawing", "preset", "minutes", "images", "seed", "fold")
"""Of a request, what the provenance tells: no path of this machine."""


def synthesize(
    request: SynthesizeRequest, output: Path, *, device: str = "cpu", watch: Watch = Nobody()
) -> dict[str, Any]:
    """Write an enlarged dataset to `output`, a new folder, and return what `provenance.json` says in short.

    Until it is done, checkpoints and drawn scans live in `<output>-training/`; the fine-tuned synthesizer and the
    curves stay there. After a stop the same request goes on; another one is refused.
    """
    output, seed, drawing = Path(output), request.seed, request.drawing
    if (Path(f"{output}-training") / "settings.json").is_file() and (output / PROVENANCE).is_file():
        return _cleared(output, work_folder(output, request))  # killed when all but this was done
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DelineateError(f"{output}: exists and is not empty; choose another folder")
    source = request.folder.folder
    if (source / PROVENANCE).exists():
        raise DatasetError(f"{source}: holds synthetic scans already; synthesize from the real dataset")
    extractor = _extractor(request)
    base = request.foundation
    base = house_folder().with_name(HOUSE_SYNTHESIS) if base is None else Path(base)
    work = work_folder(output, request)
    (dataset,) = open_all([request.folder], request.fold)
    refuse_channels([dataset], "a synthesizer")
    held = held_out([dataset], request.fold) + seen_by_foundation(base, [dataset], request.fold)
    synthesizer = Synthesizer.load(base, request.preset, seed=seed).to(device)
    if synthesizer.colours == 1 and any(dataset.read(case)[0].is_colour for case in dataset.split("train")[:8]):
        raise DelineateError(f"{base}: draws grey scans and {dataset.root} is in colour; pretrain one with --edges")
    plan = make_plan([dataset], PRESETS[synthesizer.preset])
    bank = read_bank([dataset], plan.size, watch)
    with polite_stop() as should_stop:
        run = Run(Budget(request.images, request.minutes), work, seed, reporter(logs := {}, watch), should_stop)
        tuned = work / "tuned"
        if tuned.is_dir():
            synthesizer = Synthesizer.load(tuned).to(device)
        else:
            train_synthesizer(
                synthesizer,
                bank,
                run.part(1 - SEGMENTER_SHARE),
                edges=(extractor,),
                label_boundary=drawing.label_boundary,
                unlocked=(base / "delineate.json").is_file(),  # a real Stable Diffusion stays as it is
                learning_rate=TUNING_RATE,
            )
            _save(synthesizer, tuned, held)
        judge = SYSTEMS["unet"].train(bank, "tiny", run.part(SEGMENTER_SHARE, "judge"), device=device)
        if logs := finished_before(work, logs) | logs:
            training_curves(logs, work / "curves.png")
        artist = Artist(synthesizer, judge, bank, dataset, drawing, extractor, seed, work / "drawn")
        cases = dataset.split("train")
        total = len(cases) * drawing.variants
        watch.start(f"drawing {drawing.variants} variants of {len(cases)} cases")
        for done, (case, variant) in enumerate((c, k) for c in cases for k in range(drawing.variants)):
            if should_stop():
                raise Interrupted(f"stopped after {done} of {total} scans; the same command goes on from there")
            artist.draw(case, variant)
            watch.update((done + 1) / total)
    records = artist.records(cases)
    summary = _assemble(request, output, dataset, records, synthesizer, extractor, bank.size, held)
    _cleared(output, work)
    return summary


def _cleared(output: Path, work: Path) -> dict[str, Any]:
    """What is left of the work once the folder is whole: the synthesizer and the curves."""
    tuned = work / "tuned"
    if tuned.is_dir():
        with swapping(work / "synthesizer") as building:
            shutil.copytree(tuned, building, dirs_exist_ok=True)
    for part in ("tuned", "drawn", "judge", "estimate", "edges"):
        shutil.rmtree(work / part, ignore_errors=True)
    (work / "settings.json").unlink(missing_ok=True)
    return read_json(output / PROVENANCE, error=DatasetError, fix="remove the folder and synthesize again")["summary"]


def _extractor(request: SynthesizeRequest) -> Extractor | None:
    if request.hed is None:
        return EDGES.get(request.drawing.edges)
    from delineate.synthesis.hed import Hed

    return Hed.load(request.hed)


def _save(synthesizer: Synthesizer, folder: Path, record: Any) -> None:
    with swapping(folder) as building:
        synthesizer.save(building)
        write_json(building / HELD_OUT, record)


def _assemble(
    request: SynthesizeRequest,
    output: Path,
    dataset: Dataset,
    records: dict[str, dict[str, Any]],
    synthesizer: Synthesizer,
    extractor: Extractor | None,
    size: int,
    held: list[dict[str, Any]],
) -> dict[str, Any]:
    """The folder, whole or not at all, from what was drawn."""
    from delineate import __version__

    drawn = Path(f"{output}-training") / "drawn"
    train, by_name = dataset.split("train"), {case.name: case for case in dataset.cases}
    flat = dataset.read(train[0])[0].is_flat
    with swapping(output) as building:
        written = AugmentedDataset(building, dataset, flat=flat)
        for case in (*train, *(dataset.split("val") if "val" in dataset.splits else ())):
            written.add_real(case)
        synthetic, rejected = {}, {}
        for name, record in records.items():
            about = {k: v for k, v in record.items() if k not in ("file", "kept")}
            if record["kept"]:
                first, end = record["slices"]
                written.add_synthetic(name, by_name[record["source"]], drawn / record["file"], (first, end))
                synthetic[name] = about
            else:
                rejected[name] = about
        reasons = [record["verdict"]["reason"] for record in rejected.values()]
        summary = {
            "cases": len(train),
            "drawn": len(records),
            "kept": len(synthetic),
            "rejected": {reason: reasons.count(reason) for reason in sorted(set(reasons))},
            "segmenter_on_real": round(fmean(record["verdict"]["mask_of_real"] for record in records.values()), 3),
        }
        told = request.to_json()
        written.finish(
            {
                "made_by": f"delineate {__version__}, DiffBoost (arXiv 2310.12868)",
                "source": {"name": dataset.name, "fold": told["fold"]},
                "model_sha256": synthesizer.fingerprint(),
                "foundation": synthesizer.foundation.pretraining,
                "settings": {name: told[name] for name in DRAWN_BY},
                "held_out": held,
                "summary": summary,
                "synthetic": synthetic,
                "rejected": rejected,
            },
            dataset.modality,
        )
        rows = _rows(dataset, train, records, drawn, request.drawing, extractor, size)
        contact_sheet(list(rows), building / "contact_sheet.png")
    return summary


def _rows(
    dataset: Dataset,
    cases: Sequence[Case],
    records: dict[str, dict[str, Any]],
    drawn: Path,
    drawing: Drawing,
    extractor: Extractor | None,
    size: int,
    most: int = 8,
    variants: int = 5,
) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Of up to `most` cases the slice with the largest target: real, edges, and the first variants that were kept."""
    picked = sorted({int(i) for i in np.linspace(0, len(cases) - 1, min(most, len(cases)))})
    for case in (cases[i] for i in picked):
        stack, labels, flat = slices_of(dataset, case, dataset.vocabulary(), size)
        k = int((labels > 0).flatten(1).sum(1).argmax())
        real = stack[k : k + 1] if flat else stack[k : k + 1, 1:2]
        asked = hint(real, labels[k : k + 1], extractor, label_boundary=drawing.label_boundary)
        row = [_shown(real), _shown(2 * asked - 1)]
        kept = [r for r in records.values() if r["source"] == case.name and r["kept"]][:variants]
        for record in kept:
            scan = read_scan(drawn / record["file"], modality=dataset.modality)
            picture = stack_of(scan, size)[k - record["slices"][0]][None]
            row.append(_shown(picture if flat else picture[:, 1:2]))
        yield case.name, row


def _shown(picture: Tensor) -> np.ndarray:
    """(1, 1 or 3, size, size) in [-1, 1] as (size, size, 3) in [0, 1]."""
    picture = picture.expand(-1, 3, -1, -1)[0]
    return ((picture.permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy()
