"""Generation of one synthetic scan: drawn from a training case, judged, and written on that case's own voxels."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from delineate.data.augmented import cropped, slab_of
from delineate.data.dataset import Case, Dataset
from delineate.data.slices import UNLABELLED, SliceBank, slices_of
from delineate.diffusion.codec import noise_fields
from delineate.errors import DelineateError
from delineate.foundation.text import Encoded
from delineate.scans.geometry import from_canonical, orientation_of
from delineate.scans.grid import canonical_fit, intensity_range, is_in_hounsfield_units, with_neighbours
from delineate.scans.scan import Scan
from delineate.scans.writing import write_scan
from delineate.storage.files import write_json
from delineate.storage.schema import Count, Name, read_json
from delineate.synthesis.edges import Extractor, hint
from delineate.synthesis.gate import Gate, Verdict, foreground_dice
from delineate.synthesis.synthesizer import LOOKS, Synthesizer, caption
from delineate.systems.plain import Plain

AT_ONCE = 16  # slices in one forward: bounds memory, changes nothing but rounding
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


@dataclass(frozen=True)
class Record:
    """What must be recorded of a scan that was drawn; more is for people."""

    source: Name
    slices: tuple[Count, Count]
    kept: bool
    verdict: Verdict
    file: Name | None = None  # of what was not kept there is none

    def __post_init__(self):
        if self.kept and self.file is None:
            raise ValueError("file must be named where it is kept")
        if self.file is not None and Path(self.file).name != self.file:
            raise ValueError(f"file must be a name in the folder; got '{self.file}'")


class Artist:
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
        middle = bank.images[:, 1:2] if not bool((bank.mirrored > 0).all()) else bank.images
        self.gate = Gate.of(middle.float() / 127.5 - 1)
        self.model = synthesizer.fingerprint()
        self.held: tuple[str, Any] | None = None  # the case last read: its variants follow one another
        folder.mkdir(parents=True, exist_ok=True)

    def records(self, cases: Sequence[Case]) -> dict[str, dict[str, Any]]:
        """What was recorded of every scan drawn, by its name."""
        names = [name_of(case, k) for case in cases for k in range(self.drawing.variants)]
        files = {name: self.folder / f"{name}.json" for name in names}
        for path in files.values():
            read_json(path, Record, fix=f"remove {self.folder} and synthesise again")
        return {name: read_json(path) for name, path in files.items()}

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
            labels = labels.masked_fill(labels == UNLABELLED, 0)
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
