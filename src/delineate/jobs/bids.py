"""Masks as a BIDS derivative: `segment --layout bids`.

    OUT/dataset_description.json, README, .bidsignore
    OUT/sub-<label>/[ses-<label>/]anat/<entities>_space-orig[_desc-<label>]_dseg.nii.gz, .json, .tsv
    OUT/sub-<label>/[ses-<label>/]anat/<entities>_space-orig_label-<target>[_desc-<label>]_probseg.nii.gz   with maps
    OUT/cases/<case>/        everything, as without this layout; here a case is replaced whole, and a run goes on

The BIDS files are copies of files of the cases, each written whole; they can be made again of those at any time.
Entities and their order are those of the specification's schema for segmentations in derivatives (1.10).
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delineate import __version__
from delineate.errors import OutputError, ScanError
from delineate.jobs.statistics import cell
from delineate.storage.files import replacing, sha256_of, write_json, write_text
from delineate.storage.places import mask_stems, read_case
from delineate.storage.schema import read_json
from delineate.storage.swapping import waiting

CASES = "cases"
DESCRIPTION = "dataset_description.json"
VERSION = "1.10.0"  # of the specification
README = """Masks that delineate drew: a proposal for a person to judge, not a diagnosis.

sub-*/ holds all targets of a scan in one map (dseg), what its numbers stand for (.tsv), and probabilities (probseg).
cases/ holds everything else: each target's masks, pictures, figures, and what was asked of which model.
"""
KEPT = ("sub", "ses", "task", "acq", "ce", "rec", "run", "echo", "part", "space", "seg", "res")
"""Entities that names of segmentations may have, in the order of the specification; `label` and `desc` come behind."""
ORDER = (
    *("sub", "ses", "sample", "task", "tracksys", "acq", "nuc", "voi", "ce", "trc", "stain", "rec", "dir", "run"),
    *("mod", "echo", "flip", "inv", "mt", "part", "proc", "hemi", "space", "split", "recording", "chunk", "seg"),
    *("res", "den", "label", "desc"),
)
ENTITY = re.compile(r"([a-z]+)-([0-9A-Za-z]+)")
MOST = 40  # letters of a label that was no label before


@dataclass(frozen=True)
class Named:
    """The entities of a file, by key, in order."""

    entities: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, case: str) -> "Named":
        """The entities of what is made of a case.

        A name in BIDS keeps those that a segmentation may have. Its others and its suffix go into `desc`, so that the
        masks of a T1w and of a T2w are told apart. Any other name becomes a subject, its letters and digits.

        >>> Named.of("sub-01_ses-2_run-1_T1w").stem("dseg")
        'sub-01_ses-2_run-1_space-orig_desc-T1w_dseg'
        >>> Named.of("Patient 7 (T2)").stem("dseg")
        'sub-Patient7T2_space-orig_dseg'
        """
        *pairs, suffix = case.split("_")
        found = [ENTITY.fullmatch(pair) for pair in pairs]
        told = {one[1]: one[2] for one in found if one is not None}
        keys = [key for key in ORDER if key in told]
        is_bids = None not in found and list(told) == keys and len(told) == len(pairs) and "sub" in told
        if not (is_bids and re.fullmatch(r"[0-9A-Za-z]+", suffix)):
            return cls((("sub", label_of(case)[:MOST] or "scan"), ("space", "orig")))
        kept = [(key, told.get(key, "orig")) for key in KEPT if key in told or key == "space"]
        others = "".join(f"{key}{told[key]}" for key in keys if key not in (*KEPT, "desc"))
        return cls((*kept, ("desc", f"{others}{told.get('desc', '')}{suffix}")))

    def apart(self, digits: str) -> "Named":
        """The same for another scan of that name."""
        told = dict(self.entities)
        return Named(tuple((told | {"desc": f"{told.get('desc', '')}{digits}"}).items()))

    def stem(self, suffix: str, label: str | None = None) -> str:
        """The name of a file without what comes behind the dot; `label`: of a target."""
        told = dict(self.entities) | ({} if label is None else {"label": label})
        ordered = [f"{key}-{told[key]}" for key in ORDER if key in told]
        return "_".join((*ordered, suffix))

    @property
    def folder(self) -> Path:
        """Where its files lie in the dataset."""
        told = dict(self.entities)
        return Path(*(f"{key}-{told[key]}" for key in ("sub", "ses") if key in told), "anat")


def label_of(name: str) -> str:
    """A name as the value of an entity: ASCII letters and digits alone, words told apart by capitals.

    >>> label_of("left kidney"), label_of("IVC"), label_of("../../etc")
    ('leftKidney', 'IVC', 'etc')
    """
    first, *others = re.findall(r"[0-9A-Za-z]+", name) or [""]
    return first + "".join(word[:1].upper() + word[1:] for word in others)


def begin(root: Path) -> None:
    """Write what a dataset needs at its top.

    Raises:
        OutputError: it is another dataset's folder.
    """
    described = root / DESCRIPTION
    if described.exists():
        told = read_json(described, dict[str, Any], error=OutputError, fix="choose another folder")
        makers = told.get("GeneratedBy")
        if not (isinstance(makers, list) and {"delineate"} & {m.get("Name") for m in makers if isinstance(m, dict)}):
            raise OutputError(
                f"{described}: describes a dataset that delineate did not make; choose a folder of its own, such as "
                f"{root / 'derivatives' / 'delineate'}"
            )
    made = {"Name": "Masks by delineate", "BIDSVersion": VERSION, "DatasetType": "derivative"}
    write_json(described, made | {"GeneratedBy": [{"Name": "delineate", "Version": __version__}]})
    for name, text in {".bidsignore": f"{CASES}\n", "README": README}.items():  # no slash: the validator heeds none
        if not (root / name).exists():
            write_text(root / name, text)


def lay_out(root: Path, place: Path, name: str) -> None:
    """Write the BIDS files of a case that is finished at `place`; `name` is what its scan is called.

    Where another case has the name already, some digits of the scan's hash tell them apart.

    Raises:
        ScanError: it is not a volume, or its files are not whole.
    """
    with waiting(place.parent / "run.jsonl"):
        if (entry := read_case(place)) is None or "labels.nii.gz" not in entry["written"]:
            raise ScanError(f"{place}: only volumes have a place in BIDS; leave --layout bids out")
        named = Named.of(name)
        if _owner(root, named) not in (None, place.name):
            named = named.apart(entry["sha256"][:8])
        folder = root / named.folder
        table = read_json(place / "labels.json", dict[str, Any], error=ScanError, fix="segment its scan again")
        about: dict[str, Any] = {"Manual": False, "Description": "Targets that delineate found"}
        about |= {"Case": place.name, "SourceSHA256": entry["sha256"]}
        if ("space", "orig") in named.entities:
            about["SpatialReference"] = "orig"
        labels = dict(one for one in _probabilities(entry["targets"]) if f"{one[0]}.nii.gz" in entry["written"])
        ours = re.compile(rf"{named.stem('probseg', '([0-9A-Za-z]+)')}\.(nii\.gz|json)")
        for file in folder.iterdir() if folder.is_dir() else ():
            if (one := ours.fullmatch(file.name)) and one[1] not in labels.values():
                file.unlink()  # of an earlier answer
        for stem, label in labels.items():
            target = named.stem("probseg", label)
            _copy(place / f"{stem}.nii.gz", folder / f"{target}.nii.gz", entry["written"][f"{stem}.nii.gz"])
            write_json(folder / f"{target}.json", about | {"Description": "Probability of a target"})
        target = named.stem("dseg")
        rows = [(number, cell(key), table["colours"][key]) for key, number in table["labels"].items() if number]
        write_text(folder / f"{target}.tsv", tsv([("index", "name", "color"), *rows]))
        write_json(folder / f"{target}.json", about)
        _copy(place / "labels.nii.gz", folder / f"{target}.nii.gz", entry["written"]["labels.nii.gz"])


def tsv(rows: Sequence[Sequence[object]]) -> str:
    """Rows as BIDS has them: parted by tabs, with no quotes."""
    return "".join("\t".join(" ".join(str(one).split()) for one in row) + "\n" for row in rows)


def _owner(root: Path, named: Named) -> str | None:
    """The case whose files have these names; None where nobody's have."""
    sidecar = root / named.folder / f"{named.stem('dseg')}.json"
    if not sidecar.is_file():
        return None
    return str(read_json(sidecar, dict[str, Any], error=ScanError, fix="remove it").get("Case"))


def _probabilities(targets: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The file of each target's probability, without its end, and the label that is given to it; no label twice."""
    drawn = [target["target"] or target["prompt"] for target in targets if "score" in target]
    labels: list[str] = []
    for name in drawn:
        own, number = label_of(name) or "target", 1
        while (label := own if number == 1 else f"{own}{number}") in labels:
            number += 1
        labels.append(label)
    return [(f"{stem}_probability", label) for stem, label in zip(mask_stems(drawn), labels, strict=True)]


def _copy(file: Path, to: Path, digest: str) -> None:
    if to.is_file() and sha256_of(to) == digest:
        return

    def check(temporary: Path) -> None:
        if sha256_of(temporary) != digest:
            raise ScanError(f"{file}: is not what was written; segment its scan again without --resume")

    with replacing(to, check) as temporary:
        shutil.copyfile(file, temporary)
