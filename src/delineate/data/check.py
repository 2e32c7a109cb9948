"""Every fault of a dataset folder in one pass, each with the file it is in and what to do about it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from delineate.data.dataset import Dataset
from delineate.data.drawn import NOT_TARGETS, read_drawn
from delineate.data.layout import (
    NNUNET_SPLITS,
    SPLITS,
    Files,
    choose_targets,
    declared_channels,
    declared_modality,
    find_files,
    nnunet_splits_in_words,
    read_declared,
    read_json,
    read_splits,
    read_subjects,
    split_faults,
    summary,
)
from delineate.data.likeness import groups_alike
from delineate.errors import DatasetError, ScanError
from delineate.prompts.modality import modality_code
from delineate.scans.channels import grid_difference
from delineate.scans.dicom.regions import holds_regions
from delineate.scans.finding import digest_of
from delineate.scans.reading import read_labels
from delineate.scans.scan import Scan

OUTLIER_FACTOR = 3.0  # a spacing this many times the median of its axis, or a third of it, is remarked on
NEARLY_ALL, HARDLY_ANY = 0.98, 4  # of an image, and how many voxels: shares of labels that are remarked on
TURNED = "EXIF orientation"
REMARKS = {  # of notes that reading leaves: what to do
    "NaN": "export the image without NaN if that is not intended",
    TURNED: "see in a viewer that the mask lies on it: one drawn on pixels as stored does not; save both without EXIF",
    "pixdim says": "find out which is right, and write it in both places",
    "implausible": "correct the header's unit (xyzt_units) or its sizes",
    "sform and qform differ": "find out which is right, and write it in both places",
    NOT_TARGETS: "declare them in dataset.json if they are meant",
    "beside the scan's": "see in a viewer that they lie on the image",
    "lie outside of the scan": "see in a viewer that they lie on the image",
    "stay empty": "draw on every slice, or interpolate between them first",
    "added to Hounsfield units: it": "state the modality in dataset.json, or export the scan in Hounsfield units",
}


@dataclass(frozen=True)
class Problem:
    """One fault: the file (relative to the dataset), what is wrong, what to do, and whether it can stay."""

    file: str
    what: str
    fix: str
    severity: Literal["error", "warning"]


@dataclass
class CheckReport:
    """What a check saw.

    Attributes:
        name: The dataset's folder.
        cases: How many images have a label file.
        targets: For every target, how many cases hold it ("cases") and in how many voxels ("voxels").
        problems: Errors first, then by file.
    """

    name: str
    cases: int = 0
    targets: dict[str, dict[str, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether there is no error; warnings may remain."""
        return not any(problem.severity == "error" for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """The report as plain values for a JSON file."""
        return {**asdict(self), "ok": self.ok}


def check_dataset(
    path: str | Path,
    *,
    targets: Mapping[str, int] | Sequence[str] | None = None,
    modality: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Read every file of a dataset folder and report all that is wrong with it; never stop at the first.

    Args:
        path: A folder in one of the layouts of `delineate.data.layout`.
        targets: As in `open_dataset`.
        modality: As in `open_dataset`.
        progress: Called with (images done, images in all).

    Raises:
        DatasetError: The folder has neither layout, so that there is nothing to check.
    """
    root = Path(path).resolve()
    files = find_files(root)
    report = CheckReport(root.name, cases=len(files.images.keys() & files.labels.keys()))
    checks = _Checks(root, files, report)
    checks.pairs()
    dataset = checks.description(targets, modality)
    report.targets.update({name: {"cases": 0, "voxels": 0} for name in dataset.labels})
    for number, (name, image) in enumerate(files.images.items(), start=1):
        checks.case(dataset, (image, *files.more.get(name, ())), files.labels.get(name), files.raters.get(name, ()))
        if progress is not None:
            progress(number, len(files.images))
    checks.spacings()
    checks.splits_and_duplicates(dataset)
    checks.twins(dataset)
    checks.unseen(dataset)
    report.problems.sort(key=lambda problem: (problem.severity, problem.file, problem.what))
    return report


@dataclass
class _Checks:
    """The state of one check: what was found so far."""

    root: Path
    files: Files
    report: CheckReport
    spacing_of: dict[Path, tuple[float, ...]] = field(default_factory=dict)
    subjects: dict[str, str] = field(default_factory=dict)

    def add(self, file: Path, what: str, fix: str, severity: Literal["error", "warning"] = "error") -> None:
        """Note a problem; inside the dataset files are named from its root."""
        name = str(file.relative_to(self.root)) if file.is_relative_to(self.root) else str(file)
        what = what.removeprefix(f"{file}: ")
        if (problem := Problem(name, what, fix, severity)) not in self.report.problems:
            self.report.problems.append(problem)

    def pairs(self) -> None:
        """Ambiguous names, images without labels and labels without images."""
        images, labels = self.files.images, self.files.labels
        for file, fault in self.files.faults:
            what, _, fix = fault.partition("; ")
            self.add(file, what, fix)
        for name in images.keys() - labels.keys():
            self.add(
                images[name],
                f"no label file '{name}.*' in {self.files.label_folder}",
                "label it or remove it",
            )
        for name in labels.keys() - images.keys():
            self.add(labels[name], f"no image '{name}' in {self.files.image_folder}", "add the image or remove it")
        for name in self.files.raters.keys() - images.keys():
            for path in self.files.raters[name]:
                fix = "name it NAME_r<number> after its image, or remove it; it is not used"
                self.add(path, "no image for this rater's mask", fix, "warning")
        if not images:
            self.add(self.root / self.files.image_folder, "no image in this folder", "put the images there")

    def description(self, targets: Mapping[str, int] | Sequence[str] | None, modality: str | None) -> Dataset:
        """The dataset as far as its JSON files can be understood; each that cannot is one problem."""
        source = self.root / "dataset.json"
        described = self._try(source, read_json, source) or {}
        declared, chosen = self._try(source, read_declared, described, self.root), None
        if declared is not None:
            chosen = self._try(source, choose_targets, declared.labels, targets, self.root)
        labels, others = chosen or ({}, frozenset())
        stated = self._try(source, declared_modality, described, self.root)
        channels = self._try(source, declared_channels, described, self.root, self.files.images.values()) or ()
        subjects = self._try(self.root / "subjects.json", read_subjects, self.root, self.files.images) or {}
        self.subjects = {name: subjects.get(name, name) for name in self.files.images}
        splits = self._try(self.root / "splits.json", read_splits, self.root) or {}
        kind = modality_code(modality) or stated
        ignored, same = (declared.ignore, declared.same) if declared is not None else (None, {})
        more: dict[str, Any] = {"channels": channels, "ignore": ignored, "same": same}
        return Dataset(self.root, self.root.name, kind, labels, (), splits, others, **more)

    def _try(self, file: Path, read: Callable, *arguments):
        """What `read` returns, or None and a problem."""
        try:
            return read(*arguments)
        except DatasetError as error:
            self.add(file, str(error), "correct the file as said")
            return None

    def _read(self, file: Path, read: Callable[[Path], Scan], whole: str) -> Scan | None:
        try:
            return read(file)
        except ScanError as error:
            self.add(file, str(error), whole)
            return None

    def case(self, dataset: Dataset, files: Sequence[Path], labels: Path | None, raters: Sequence[Path]) -> None:
        """One image, a file a channel, its labels, and what single raters drew."""
        image = files[0]
        scan = self._read(
            image, lambda _: dataset.scan_of(*files), "replace the file by a good copy, or remove the case"
        )
        if scan is not None:
            self.remarks(image, scan)
            of_channels = np.moveaxis(scan.voxels, -1, 0) if scan.channels else [scan.voxels]
            for number, voxels in enumerate(of_channels):
                if voxels.size and voxels.min() == voxels.max():
                    file, what = files[min(number, len(files) - 1)], f"every voxel is {voxels.flat[0]:g}"
                    what += f" in {scan.channels[number]}" if scan.channels and len(files) == 1 else ""
                    self.add(file, what, "export the image again, or remove it")
            if scan.has_spacing:
                self.spacing_of[image] = scan.spacing_mm
        for file in (*([] if labels is None else [labels]), *raters):
            drawn = self._drawn(dataset, file, scan)
            if drawn is None:
                continue
            self.remarks(file, drawn)
            if scan is not None and (difference := grid_difference(scan, drawn)):
                self.add(file, f"not on the grid of its image: {difference}", "export the labels on the image's grid")
            self.values(dataset, file, drawn, single_rater=file != labels)

    def _drawn(self, dataset: Dataset, file: Path, scan: Scan | None) -> Scan | None:
        """The ids in a label file; regions of DICOM can be read on their scan alone."""
        if holds_regions(file) and scan is None:
            return None
        read = read_labels if scan is None else partial(read_drawn, scan=scan, labels=dataset.labels)
        return self._read(file, read, "labels are whole numbers, one a voxel, or regions by name: export them as such")

    def remarks(self, file: Path, scan: Scan) -> None:
        """What reading noted of a file and a person should see."""
        for note in scan.notes:
            for words, fix in REMARKS.items():
                if words in note:
                    self.add(file, note, fix, "warning")

    def values(self, dataset: Dataset, file: Path, drawn: Scan, *, single_rater: bool) -> None:
        """The ids in one label file; what single raters drew may well be empty, and is not counted."""
        values, voxels = np.unique(drawn.voxels, return_counts=True)
        targets = (values != 0) & (values != dataset.ignore)
        if not single_rater and not targets.any():
            self.add(file, "no voxel is labelled", "fine where the image shows no target; else label it", "warning")
        drawn_on = int(voxels[targets].sum())
        if not single_rater and 0 < drawn_on <= HARDLY_ANY:
            self.add(file, f"only {drawn_on} voxels are labelled", "see that this is meant", "warning")
        if drawn_on >= NEARLY_ALL * drawn.voxels.size:
            what = f"{drawn_on / drawn.voxels.size:.0%} of the image is labelled"
            self.add(file, what, "see that this is meant, and that the mask is not inverted", "warning")
        if not dataset.declared_ids:  # nobody could say what the ids mean: that is a problem already
            return
        ids, unknown = dataset.ids_of(drawn.voxels)
        counts = dict(zip(values.tolist(), voxels.tolist(), strict=True))
        if unknown:
            self.add(file, f"undeclared ids: {summary(unknown)}", self._advice(dataset, file, unknown, counts))
        for name, number in dataset.labels.items():
            if not single_rater and (seen := int((ids == number).sum())):
                self.report.targets[name]["cases"] += 1
                self.report.targets[name]["voxels"] += seen

    def _advice(self, dataset: Dataset, file: Path, unknown: list[int], counts: dict[int, int]) -> str:
        if file.suffix.lower() in {".jpg", ".jpeg"}:
            return "JPEG changes mask values: export the mask again as PNG"
        declared = summary(sorted(dataset.declared_ids))
        if 255 in unknown:
            return f"masks of 0 and 255 are for datasets of one target; here write the ids {declared}"
        many = f" ({sum(counts[number] for number in unknown)} voxels)"
        return f"name them in dataset.json, or change them{many} to 0 or one of {declared}"

    def spacings(self) -> None:
        """Spacings far from the dataset's own median, axis by axis."""
        if len(self.spacing_of) < 4:  # a median of fewer says little
            return
        middle = np.median(list(self.spacing_of.values()), axis=0)
        for file, spacing in self.spacing_of.items():
            ratio = np.asarray(spacing) / middle
            if ratio.max() > OUTLIER_FACTOR or ratio.min() < 1 / OUTLIER_FACTOR:
                here, usual = (" × ".join(f"{mm:.3g}" for mm in numbers) for numbers in (spacing, middle))
                self.add(
                    file,
                    f"spacing {here} mm where {usual} mm is usual",
                    "see that its header is right",
                    "warning",
                )

    def splits_and_duplicates(self, dataset: Dataset) -> None:
        """Faults of the splits; images with the same bytes, which are a leak where two splits hold them."""
        own, parents = self.root / "splits.json", self.root.parent / "splits.json"
        source = own if own.exists() else parents
        if said := nnunet_splits_in_words(self.root):
            source = self.root / NNUNET_SPLITS
            self.add(source, said, "write splits.json if others are to be held out", "warning")
        home: dict[str, str] = {subject: name for name, members in dataset.splits.items() for subject in members}
        for fault in split_faults(dataset.splits, set(self.subjects.values())):
            self.add(source, fault, "name every subject once, in one split")
        outside = sorted(set(self.subjects.values()) - set(home)) if dataset.splits else []
        if outside:
            names = ", ".join(outside[:8]) + ", …" * (len(outside) > 8)
            what = f"{len(outside)} subjects are in no split: {names}"
            self.add(source, what, "add them to a split, or leave them unused", "warning")
        for wanted in SPLITS:
            if not dataset.splits or wanted in dataset.splits:
                continue
            self.add(source, f"no split '{wanted}'", "add it, empty if it is meant to be", "warning")
        first: dict[str, str] = {}
        for name, image in self.files.images.items():
            digest = digest_of(image)
            if (twin := first.setdefault(digest, name)) == name:
                continue
            splits = [home.get(self.subjects[one]) for one in (twin, name)]
            what = f"the same bytes as {self.files.images[twin].name}"
            if splits[0] != splits[1] and None not in splits:
                self.add(image, f"{what}, which is in '{splits[0]}' while this is in '{splits[1]}'", "remove one")
            else:
                self.add(image, what, "remove one", "warning")

    def twins(self, dataset: Dataset) -> None:
        """Images in two splits that are not the same file and look nearly alike: for a person to see and decide."""
        home = {subject: name for name, members in dataset.splits.items() for subject in members}
        images = self.files.images
        for group in groups_alike(images.items()) if home else ():
            held = sorted(
                (name for name in group if self.subjects[name] in home), key=lambda name: self._rank(home, name)
            )
            splits = [home[self.subjects[name]] for name in held]
            if len(set(splits)) < 2 or len({digest_of(images[name]) for name in held}) == 1:
                continue
            others = ", ".join(f"{images[n].name} in '{s}'" for n, s in zip(held[1:], splits[1:], strict=True))
            self.add(
                images[held[0]],
                f"in '{splits[0]}', looks nearly the same as {others}",
                "see whether they show one thing; if so put their subjects into one split, use --fold, or train "
                "without them (delineate.data.twins.without_twins)",
                "warning",
            )

    def _rank(self, home: Mapping[str, str], name: str) -> tuple[int, str]:
        """Train before val before test before other splits, then by name."""
        split = home[self.subjects[name]]
        return (SPLITS.index(split) if split in SPLITS else len(SPLITS), name)

    def unseen(self, dataset: Dataset) -> None:
        """Targets that no label file holds."""
        for name, number in dataset.labels.items():
            if self.files.labels and not self.report.targets[name]["cases"]:
                what = f"'{name}' (id {number}) is in no label file"
                self.add(
                    self.root / "dataset.json",
                    what,
                    "remove the name, or see that its id is right",
                    "warning",
                )
