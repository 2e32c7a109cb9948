"""What comes out: the proposals of all targets that were asked of one scan, as masks, a label map, files and HTML."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from delineate.proposals.target import Outcome, TargetProposals
from delineate.scans.label_table import BACKGROUND, LabelTable
from delineate.scans.scan import Scan
from delineate.scans.writing import write_labels, write_map
from delineate.storage.files import write_json
from delineate.storage.places import mask_stems

LARGE = 1 << 26  # voxels of a scan
FILES_AT_ONCE = 2  # that are written; each holds one array as large as the scan


@dataclass(frozen=True, eq=False, repr=False)
class Proposals:
    """The proposals of all targets that were asked of one scan.

    Attributes:
        scan: the one.
        targets: in the order asked.
        names: what the model can be asked, in its order: a target's number in `label_map` is its place there.
    """

    scan: Scan
    targets: tuple[TargetProposals, ...]
    names: tuple[str, ...] = ()

    def __repr__(self) -> str:
        told = "".join(f"\n  {target!r}" for target in self.targets)
        return f"Proposals of {self.scan!r}:{told or ' nothing was asked'}"

    def _repr_html_(self) -> str:
        """What notebooks show: see `delineate.proposals.html.page`."""
        from delineate.proposals.html import page  # which wants Matplotlib

        return page(self.scan, self.targets)

    def __iter__(self) -> Iterator[TargetProposals]:
        return iter(self.targets)

    def __getitem__(self, text: str) -> TargetProposals:
        for target in self.targets:
            if text in (target.name, target.prompt.text):
                return target
        raise KeyError(f"'{text}' was not asked; asked were: {', '.join(t.prompt.text for t in self.targets)}")

    @property
    def table(self) -> LabelTable:
        """Which number is whose: the same for every scan, whatever is asked and found, as the model's names are.

        Names that the model does not know, which some systems answer all the same, come behind, in the order asked.
        """
        return LabelTable.of(self.names, [target.name for target in self.targets if target.name is not None])

    def label_map(self, how: str = "mean") -> tuple[np.ndarray, dict[str, int]]:
        """All found targets in one map, uint8 or uint16 (I, J, K), and the number of each target that was asked.

        A voxel claimed by several consensus masks goes to the target with the highest mean probability there, and
        to the one asked first where they tie; a region (`TargetProposals.parts`) gives way to all others and to those
        of fewer parts. `save` also keeps masks one by one, overlaps included. Asked twice in other words it has one
        number.
        """
        table = self.table
        labels = np.zeros(self.scan.shape, dtype=table.dtype, order="F")
        best = np.zeros(labels.size, dtype=np.float32)  # zeros cost nothing until they are touched
        for target in sorted(self.targets, key=lambda one: -len(one.parts)):
            if target.outcome is Outcome.FOUND:
                where, inside, probability = target.claims(how)
                wins = inside if target.parts else inside & (probability > best[where])
                labels.reshape(-1, order="F")[where[wins]] = table.ids[str(target.name)]
                best[where[wins]] = 0 if target.parts else probability[wins]
        return labels, {name: table.ids[name] for target in self.targets if (name := target.name) is not None}

    def about_labels(self, labels: np.ndarray) -> dict[str, Any]:
        """What `labels.json` says of a `label_map`.

        `labels` (as nnU-Net's dataset.json has them) and `colours` are of all that the model knows; `targets` of what
        was asked: number, name, the words, the outcome, and whether any voxel of the map has its number.
        """
        table, flat = self.table, labels.reshape(-1, order="F")
        targets: dict[str, dict[str, Any]] = {}
        for target in self.targets:
            number = table.ids.get(target.name or "")
            entry = {"id": number, "name": target.name, "asked": [], "outcome": target.outcome.value, "in_map": False}
            entry = targets.setdefault(target.name or target.prompt.text, entry)
            entry["asked"].append(target.prompt.text)
            if target.outcome is Outcome.FOUND:
                entry["outcome"] = target.outcome.value  # in other words it may be absent
                entry["in_map"] |= bool((flat[target.claims()[0]] == number).any())
        named = {"labels": {BACKGROUND: 0, **table.ids}, "colours": table.colours}
        return named | {"targets": list(targets.values())}

    def save(
        self,
        folder: Path,
        *,
        how: str = "mean",
        maps: bool = False,
        missed_at_most: float | None = None,
        false_at_most: float | None = None,
    ) -> list[Path]:
        """Write masks into `folder`, on the scan's own grid: PNG for flat images, NIfTI for volumes.

        For every known target: `<target>.…`, the consensus, and `<target>_proposal_<k>.…`; with `maps` also
        `<target>_probability.…` and `<target>_doubt.…`. `labels.…` holds all that are found, none included (rule of
        overlaps: `label_map`), `labels.json` what its numbers stand for (`about_labels`). Where `missed_at_most` or
        `false_at_most` can be guaranteed, so is `<target>_missed_at_most_5pct.…` or
        `<target>_false_at_most_5pct.…`. A target asked twice in different words gets a number behind its name.
        """
        suffix = ".png" if self.scan.is_flat else ".nii.gz"
        files: dict[
            Path, tuple[Callable[..., Path], Callable[[], np.ndarray]]
        ] = {}  # how it is written; what, when due
        drawn = [target for target in self.targets if target.drawn is not None]
        stems = mask_stems([target.name or target.prompt.text for target in drawn])
        for target, stem in zip(drawn, stems, strict=True):
            files[folder / f"{stem}{suffix}"] = write_labels, partial(target.consensus, how)
            for k in range(len(target)):
                files[folder / f"{stem}_proposal_{k:02d}{suffix}"] = write_labels, partial(target.choose, k)
            if missed_at_most is not None or false_at_most is not None:
                for one in target.guarantees(missed_at_most=missed_at_most, false_at_most=false_at_most):
                    if one.threshold is not None:
                        path = folder / f"{stem}_{one.name}{suffix}"
                        files[path] = write_labels, partial(target.guaranteed, one)
            if maps:
                files[folder / f"{stem}_probability{suffix}"] = write_map, target.probability
                files[folder / f"{stem}_doubt{suffix}"] = write_map, target.disagreement
        at_once = FILES_AT_ONCE if self.scan.voxels.size < LARGE else 1
        with ThreadPoolExecutor(at_once) as pool:  # zlib lets other threads run
            written = list(pool.map(lambda path: files[path][0](path, files[path][1](), self.scan), files))
        labels, _ = self.label_map(how)
        written.append(write_labels(folder / f"labels{suffix}", labels, self.scan, self.table))
        write_json(folder / "labels.json", self.about_labels(labels))
        return [*written, folder / "labels.json"]
