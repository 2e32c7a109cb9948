"""A small labelled dataset made larger: the whole job behind `delineate synthesize`.

Fine-tune a synthesizer on the train split (stage b of DiffBoost), train a first segmenter for the gate, draw K variants
of every training case, judge them, and write a dataset that holds the real cases and what passed.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from delineate.codec import noise_fields
from delineate.contact_sheet import contact_sheet
from delineate.data.augmented import AugmentedDataset, cropped, slab_of
from delineate.data.dataset import Case, Dataset
from delineate.data.folds import Fold, held_out
from delineate.data.named import parse_named
from delineate.data.slices import SliceBank, slices_of
from delineate.data.synthetic import PROVENANCE
from delineate.edges import EDGES, Extractor, hint
from delineate.errors import DatasetError, DelineateError
from delineate.files import write_json
from delineate.gate import Gate, foreground_dice
from delineate.grid import canonical_fit, intensity_range, is_in_hounsfield_units, stack_of, with_neighbours
from delineate.model_folder import HOUSE_SYNTHESIS, house_folder
from delineate.networks.text import Encoded
from delineate.pictures import training_curves
from delineate.planning import make_plan
from delineate.running import (
    HELD_OUT,
    Nobody,
    Watch,
    finished_before,
    open_all,
    read_bank,
    reporter,
    seen_by_foundation,
    work_folder,
)
from delineate.scan import Scan, from_canonical, orientation_of, read_scan, write_scan
from delineate.synthesis import LOOKS, Synthesizer, caption, train_synthesizer
from delineate.systems import PRESETS
from delineate.systems.plain import SIZES, Plain, PlainConfig, build, train_plain
from delineate.training import Budget, Interrupted, polite_stop

SEGMENTER_SHARE = 0.2  # of the training budget goes to the gate's first segmenter
TUNING_RATE = 5e-4  # half of the first stage's; DiffBoost takes a tenth, of a rate that is a hundredth
AT_ONCE = 16  # slices in one forward: bounds memory, changes nothing else
MARGIN = 1  # slices beyond the first and last that show a target
AIR_SHARE = 0.02  # of the window of CT, its lowest part: 8 HU above its end


@dataclass(frozen=True)
class Drawing:
    """How synthetic scans are drawn; every field goes into the provenance.

    Attributes:
        variants: K, of each training case.
        edges: a key of `EDGES`, "hed", or "none".
        label_boundary: whether the labels' boundaries are merged into the hint.
        steps: of DDIM.
        guidance: classifier-free, of the caption; 1 is none.
        look: the weight of a random appearance phrase in the caption's embedding, in [0, 1].
        keep_all: whether the gate only judges and rejects nothing.
    """

    variants: int = 10
    edges: str = "scharr"
    label_boundary: bool = True
    steps: int = 20
    guidance: float = 1.0
    look: float = 0.5
    keep_all: bool = False

    def __post_init__(self):
        if self.variants < 1 or self.steps < 1:
            raise DelineateError(f"variants and steps must be at least 1, got {self.variants} and {self.steps}")
        if not 0 <= self.look <= 1:
            raise DelineateError(f"the weight of an appearance must lie in [0, 1], got {self.look}")
        if self.edges == "none" and not self.label_boundary:
            raise DelineateError("with neither edges nor label boundaries nothing would hold a scan to its mask")


def synthesize(
    path: Path | str,
    output: Path,
    drawing: Drawing = Drawing(),
    *,
    foundation: Path | None = None,
    hed: Path | None = None,
    preset: str = "tiny",
    minutes: float | None = None,
    images: int | None = None,
    seed: int = 0,
    target: Sequence[str] | None = None,
    modality: str | None = None,
    fold: str | None = None,
    device: str = "cpu",
    watch: Watch = Nobody(),
) -> dict[str, Any]:
    """Write an enlarged dataset to `output` and return what `provenance.json` says in short.

    Checkpoints, drawn scans, the fine-tuned synthesizer and the curves live in `<output>-training/`. After a stop the
    same call goes on from there; a call with other settings is refused.

    Args:
        path: a dataset with splits, named as in `delineate.data.named`.
        output: a new folder.
        drawing: how many, and how.
        foundation: a Stable Diffusion folder, with or without an edge control (`pretrain_foundation(edges=True)` makes
            one with); None takes the one that ships with the package.
        hed: a folder with the weights of HED, for `drawing.edges` "hed".
        preset: size of a new edge control, where the foundation has none.
        minutes: of fine-tuning and of the first segmenter together.
        images: the same in images seen, which repeats to the bit.
        seed: of everything.
        target: as in `train_system`.
        modality: as in `train_system`.
        fold: as in `train_system`; the folder then holds this fold's train and val cases.
        device: where to compute.
        watch: told how far it is.
    """
    output, named = Path(output), parse_named(path, target, modality)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DelineateError(f"{output}: exists and is not empty; choose another folder")
    if (named.folder / PROVENANCE).exists():
        raise DatasetError(f"{named.folder}: holds synthetic scans already; synthesize from the real dataset")
    extractor = _extractor(drawing.edges, hed)
    base = house_folder().with_name(HOUSE_SYNTHESIS) if foundation is None else Path(foundation)
    part = None if fold is None else Fold.parse(fold)
    settings = {
        "dataset": str(named),
        "drawing": asdict(drawing),
        "foundation": None if foundation is None else str(base.resolve()),
        "preset": preset,
        "minutes": minutes,
        "images": images,
        "seed": seed,
        "fold": None if part is None else str(part),
        **({} if hed is None else {"hed": str(Path(hed).resolve())}),
    }
    work = work_folder(output, settings)
    (dataset,) = open_all([path], target, modality, part)
    held = held_out([dataset], part) + seen_by_foundation(base, [dataset], part)
    synthesizer = Synthesizer.load(base, preset, seed=seed).to(device)
    if synthesizer.colours == 1 and any(dataset.read(case)[0].is_colour for case in dataset.split("train")[:8]):
        raise DelineateError(f"{base}: draws grey scans and {dataset.root} is in colour; pretrain one with --edges")
    plan = make_plan([dataset], PRESETS[synthesizer.preset])
    bank = read_bank([dataset], plan.size, watch)
    with polite_stop() as should_stop:
        how = {"seed": seed, "should_stop": should_stop, "on_step": reporter(logs := {}, watch)}
        budget = Budget(images, minutes)
        tuned = work / "synthesizer"
        if tuned.is_dir():
            synthesizer = Synthesizer.load(tuned).to(device)
        else:
            train_synthesizer(
                synthesizer,
                bank,
                budget=budget.share(1 - SEGMENTER_SHARE),
                folder=work,
                edges=(extractor,),
                label_boundary=drawing.label_boundary,
                unlocked=(base / "delineate.json").is_file(),  # a real Stable Diffusion stays as it is
                learning_rate=TUNING_RATE,
                **how,
            )
            _save(synthesizer, tuned, held)
        widths, blocks = SIZES["unet"]["tiny"]
        judge = build(PlainConfig(bank.size, widths, "unet", blocks), bank.vocabulary, seed=seed).to(
            torch.device(device)
        )
        train_plain(judge, bank, budget=budget.share(SEGMENTER_SHARE), folder=work / "judge", **how)
        if logs := finished_before(work, logs) | logs:
            training_curves(logs, work / "curves.png")
        artist = _Artist(synthesizer, judge, bank, dataset, drawing, extractor, seed, work / "drawn")
        cases = dataset.split("train")
        total = len(cases) * drawing.variants
        watch.start(f"drawing {drawing.variants} variants of {len(cases)} cases")
        for done, (case, variant) in enumerate((c, k) for c in cases for k in range(drawing.variants)):
            if should_stop():
                raise Interrupted(f"stopped after {done} of {total} scans; the same command goes on from there")
            artist.draw(case, variant)
            watch.update((done + 1) / total)
    return _assemble(output, dataset, artist.records(cases), settings, synthesizer, drawing, extractor, bank.size, held)


class _Artist:
    """Draws one synthetic case at a time into a folder, judged, with a record of each."""

    def __init__(
        self,
        synthesizer: Synthesizer,
        judge: Plain,
        bank: SliceBank,
        dataset: Dataset,
        drawing: Drawing,
        extractor: Extractor | None,
        seed: int,
        folder: Path,
    ):
        self.synthesizer, self.judge, self.dataset = synthesizer, judge, dataset
        self.vocabulary, self.size = bank.vocabulary, bank.size
        self.drawing, self.extractor, self.seed, self.folder = drawing, extractor, seed, folder
        middle = bank.images[:, 1:2] if not bool(bank.mirrored.all()) else bank.images
        self.gate = Gate.of(middle.float() / 127.5 - 1)
        self.model = synthesizer.fingerprint()
        self.held: tuple[str, Any] | None = None  # the case last read: its variants follow one another
        folder.mkdir(parents=True, exist_ok=True)

    def records(self, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
        """What was recorded of every scan drawn, by its name."""
        names = [name_of(case, k) for case in cases for k in range(self.drawing.variants)]
        return {name: json.loads((self.folder / f"{name}.json").read_text()) for name in names}

    def draw(self, case: Case, variant: int) -> None:
        """Draw a variant of a case, unless an earlier run did."""
        name = name_of(case, variant)
        if (self.folder / f"{name}.json").exists():
            return
        scan, pictures, labels, first, real = self._read(case)
        seed = seed_of(self.seed, case.name, variant)
        asked = hint(pictures, labels, self.extractor, label_boundary=self.drawing.label_boundary)
        text, said = self._text(labels, seed)
        device = self.synthesizer.foundation.device
        parts = []
        for chunk in asked.split(AT_ONCE):
            codec = self.synthesizer.foundation.codec
            shape = (codec.channels, self.size // 8, self.size // 8)
            field = noise_fields(codec, 1, shape, seed)(0)  # one for all slices, so that neighbours agree
            parts.append(
                self.synthesizer.draw(
                    chunk.to(device),
                    Encoded(text.tokens.expand(len(chunk), -1, -1), text.pooled.expand(len(chunk), -1)),
                    lambda step, field=field, n=len(chunk): field.expand(n, -1, -1, -1).to(device),
                    steps=self.drawing.steps,
                    guidance=self.drawing.guidance,
                ).cpu()
            )
        drawn = torch.cat(parts)
        if not scan.is_colour:
            drawn = drawn.mean(dim=1, keepdim=True)
        mask = foreground_dice(self._segmented(drawn), labels)
        verdict = self.gate.judge(drawn, asked, mask, real)
        kept = self.drawing.keep_all or not verdict.reason
        record = {
            "source": case.name,
            "variant": variant,
            "seed": seed,
            "caption": said,
            "model_sha256": self.model,
            "slices": [first, first + len(labels)],
            "verdict": asdict(verdict),
            "kept": kept,
        }
        if kept:
            record["file"] = self._write(name, scan, drawn, first)
        write_json(self.folder / f"{name}.json", record)

    def _read(self, case: Case) -> tuple[Scan, Tensor, Tensor, int, float]:
        """The scan; pictures and labels of the slices that show a target; the first of them; Dice on the real one."""
        if self.held is None or self.held[0] != case.name:
            scan, _ = self.dataset.read(case)
            stack, labels, flat = slices_of(self.dataset, case, self.vocabulary, self.size)
            shown = labels.flatten(1).any(1).nonzero()[:, 0]
            first = max(0, int(shown[0]) - MARGIN) if len(shown) else 0
            end = min(len(labels), int(shown[-1]) + MARGIN + 1) if len(shown) else len(labels)
            stack, labels = stack[first:end], labels[first:end]
            pictures = stack if flat else stack[:, 1:2]
            real = foreground_dice(self._segmented(pictures), labels)
            self.held = case.name, (scan, pictures, labels, first, real)
        return self.held[1]

    def _segmented(self, pictures: Tensor) -> Tensor:
        """The first segmenter's label map of slices (S, 1 or 3, size, size)."""
        stack = with_neighbours(pictures[:, 0]) if pictures.shape[1] == 1 and len(pictures) > 1 else pictures
        with torch.no_grad():
            chunks = stack.expand(-1, 3, -1, -1).split(AT_ONCE)
            return torch.cat([self.judge.logits(c.to(self.judge.device)).argmax(dim=1).cpu() for c in chunks])

    def _text(self, labels: Tensor, seed: int) -> tuple[Encoded, str]:
        """The caption of the case mixed with one that also names a random look, and the latter in words."""
        names = [self.vocabulary.names[int(v) - 1] for v in labels.unique() if v > 0]
        generator = Generator().manual_seed(seed)
        draws = torch.randint(3, (len(LOOKS),), generator=generator).tolist()
        looks = [pair[draw] for pair, draw in zip(LOOKS, draws, strict=True) if draw < 2]
        plain, looking = (caption(names, self.dataset.modality, words) for words in ((), looks))
        weight = self.drawing.look if looks else 0.0
        weights = {plain: 1.0} if weight == 0 else {plain: 1 - weight, looking: weight}
        with torch.no_grad():
            return self.synthesizer.mixed(weights), looking if weight else plain

    def _write(self, name: str, scan: Scan, drawn: Tensor, first: int) -> str:
        """Bring slices back onto the scan's own voxels and intensities, and write them."""
        fit, end = canonical_fit(scan, self.size), first + len(drawn)
        low, high = intensity_range(scan.voxels, scan.modality)
        own = (fit.from_grid(drawn).clamp(-1, 1) + 1) * ((high - low) / 2) + low
        if is_in_hounsfield_units(scan.voxels, scan.modality):
            # Below the window is air, as in the real scan: else the values would look as if windowed before, and who
            # reads them would stretch them.
            own[own <= low + AIR_SHARE * (high - low)] = float(scan.voxels.min())
        if scan.is_colour:
            part, voxels = scan, own.permute(0, 2, 3, 1).numpy()
        else:
            part = cropped(scan, slab_of(scan, first, end))
            voxels = np.ascontiguousarray(from_canonical(own[:, 0].numpy(), orientation_of(scan.affine)))
        if np.array_equal(scan.voxels, np.rint(scan.voxels)):  # whole numbers stay whole
            voxels = np.rint(voxels)
        file = f"{name}{'.png' if scan.is_flat else '.nii.gz'}"
        write_scan(self.folder / file, replace(part, voxels=voxels))
        return file


def name_of(case: Case, variant: int) -> str:
    """What a synthetic case is called."""
    return f"{case.name}_syn{variant}"


def seed_of(seed: int, case: str, variant: int) -> int:
    """A seed of its own for every (case, variant).

    >>> seed_of(0, "case00", 1) != seed_of(0, "case00", 2) != seed_of(0, "case01", 1)
    True
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{case}/{variant}".encode()).digest()[:4], "big")


def _extractor(name: str, hed: Path | None) -> Extractor | None:
    if name == "hed":
        if hed is None:
            raise DelineateError("edges 'hed' need the folder with its weights; name it with --hed")
        from delineate.networks.hed import Hed

        return Hed.load(hed)
    if hed is not None:
        raise DelineateError(f"--hed is for edges 'hed'; edges are '{name}'")
    if name not in (*EDGES, "none"):
        raise DelineateError(f"edges are one of {', '.join(EDGES)}, hed, none; got '{name}'")
    return EDGES.get(name)


def _save(synthesizer: Synthesizer, folder: Path, record: Any) -> None:
    building = folder.with_name(f".writing-{folder.name}")
    shutil.rmtree(building, ignore_errors=True)
    synthesizer.save(building)
    write_json(building / HELD_OUT, record)
    building.rename(folder)


def _assemble(
    output: Path,
    dataset: Dataset,
    records: dict[str, dict[str, Any]],
    settings: dict[str, Any],
    synthesizer: Synthesizer,
    drawing: Drawing,
    extractor: Extractor | None,
    size: int,
    held: list[dict[str, Any]],
) -> dict[str, Any]:
    """The folder, whole or not at all, from what was drawn."""
    from delineate import __version__

    drawn = Path(f"{output}-training") / "drawn"
    building = output.with_name(f".writing-{output.name}")
    shutil.rmtree(building, ignore_errors=True)
    train, by_name = dataset.split("train"), {case.name: case for case in dataset.cases}
    flat = dataset.read(train[0])[0].is_flat
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
    }
    written.finish(
        {
            "made_by": f"delineate {__version__}, DiffBoost (arXiv 2310.12868)",
            "source": {"name": dataset.name, "fold": settings["fold"]},
            "model_sha256": synthesizer.fingerprint(),
            "foundation": synthesizer.foundation.pretraining,
            "settings": {k: v for k, v in settings.items() if k not in ("dataset", "foundation", "hed")},
            "held_out": held,
            "summary": summary,
            "synthetic": synthetic,
            "rejected": rejected,
        },
        dataset.modality,
    )
    contact_sheet(list(_rows(dataset, train, records, drawn, drawing, extractor, size)), building / "contact_sheet.png")
    output.parent.mkdir(parents=True, exist_ok=True)
    if output.exists():
        output.rmdir()
    building.rename(output)
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
