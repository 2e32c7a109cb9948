"""An answer on disk: its masks, its map of doubt, and what is told of it.

`delineate segment` leaves many in one folder, as `Proposals.save` writes them, described by `case.json`. An answer that
was asked for here has a folder of its own: `masks.npz`, which holds masks as toggles and is read and written many times
faster than images are, and `answer.json`, which is written last: without it there is no answer.
"""

import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from delineate.errors import ScanError
from delineate.proposals.target import entropy
from delineate.review.runs import mask_of, toggles_of
from delineate.review.schema import AnswerInfo, Mark
from delineate.review.work import NotHere
from delineate.scans.reading import read_labels, read_scan
from delineate.scans.scan import Scan
from delineate.storage.files import replacing, write_json
from delineate.storage.places import mask_stems
from delineate.storage.schema import read_json

if TYPE_CHECKING:
    from delineate.proposals.proposals import Proposals
    from delineate.proposals.target import TargetProposals

ANSWER = "answer.json"
MASKS = "masks.npz"  # toggles of "consensus" and "proposal_00", ..., uint32; "doubt" in 255 steps, uint8 (I, J, K)
SUFFIXES = (".nii.gz", ".png")
MOST_ANSWER = 64 << 20  # bytes of answer.json, which names every marked voxel


@dataclass(frozen=True)
class AnswerFile:
    """What answer.json must hold."""

    answer: AnswerInfo
    asked: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer and where its masks lie.

    Attributes:
        info: what is told of it.
        folder: of its files.
        stem: of the consensus' file; those of the proposals and maps begin with it. None for an answer that was asked
            for here.
        asked: who answered what: model, adapter and calibration by hash, versions; for provenance.
    """

    info: AnswerInfo
    folder: Path
    stem: str | None
    asked: Mapping[str, Any]

    def consensus(self, shape: tuple[int, int, int]) -> np.ndarray:
        """The consensus, bool of this shape.

        Raises:
            ScanError: its file is missing, damaged or of another shape.
        """
        return mask_of(self.toggles(None, shape), shape)

    def proposal(self, k: int, shape: tuple[int, int, int]) -> np.ndarray:
        """Proposal k, likewise.

        Raises:
            NotHere: there is no such proposal.
            ScanError: as for `consensus`.
        """
        return mask_of(self.toggles(k, shape), shape)

    def toggles(self, k: int | None, shape: tuple[int, int, int]) -> np.ndarray:
        """The toggles of proposal k, or for None of the consensus; the last that were read are kept.

        Raises:
            NotHere, ScanError: as for `proposal` and `consensus`.
        """
        if self.info.proposals == 0:
            raise NotHere(f"answer '{self.info.id}' has no masks: {self.info.outcome}")
        if k is not None and not 0 <= k < self.info.proposals:
            raise NotHere(f"answer '{self.info.id}' has {self.info.proposals} proposals; there is no {k}")
        name = "consensus" if k is None else f"proposal_{k:02d}"
        if self.stem is None:
            file = self._masks()
            return _toggles_kept(file, file.stat().st_mtime_ns, name, shape)
        stem = self.stem if k is None else f"{self.stem}_{name}"
        file = self._file(stem)
        if file is None:
            raise ScanError(f"{self.folder / stem}: the mask of this answer is gone; ask again")
        return _toggles_in(file, file.stat().st_mtime_ns, shape)

    def doubt(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Doubt in [0, 1], float32: the map that was saved, else the entropy of the share of proposals, in bits."""
        if self.stem is None:
            return _array_in(self._masks(), "doubt", shape).astype(np.float32) / 255
        if (saved := self._file(f"{self.stem}_doubt")) is not None:
            return _of_shape(read_scan(saved), shape) / (255 if saved.suffix == ".png" else 1)
        if (saved := self._file(f"{self.stem}_probability")) is not None:
            return entropy(_of_shape(read_scan(saved), shape) / (255 if saved.suffix == ".png" else 1))
        share = np.zeros(shape, np.float32)
        for k in range(self.info.proposals):
            share += self.proposal(k, shape)
        return entropy(share / max(1, self.info.proposals))

    def _masks(self) -> Path:
        file = self.folder / MASKS
        if not file.is_file():
            raise ScanError(f"{file}: the masks of this answer are gone; ask again")
        return file

    def _file(self, stem: str) -> Path | None:
        return next((f for s in SUFFIXES if (f := self.folder / f"{stem}{s}").is_file()), None)


@lru_cache(maxsize=128)
def _toggles_in(file: Path, changed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """The toggles of the mask in a file; `changed` tells its versions apart."""
    toggles = toggles_of(_of_shape(read_labels(file), shape) != 0)
    toggles.flags.writeable = False
    return toggles


@lru_cache(maxsize=128)
def _toggles_kept(file: Path, changed: int, name: str, shape: tuple[int, int, int]) -> np.ndarray:
    """The toggles that `save_answer` wrote under a name; `changed` tells versions of the file apart."""
    toggles = _array_in(file, name, shape)
    toggles.flags.writeable = False
    return toggles


def _array_in(file: Path, name: str, shape: tuple[int, int, int]) -> np.ndarray:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            stored, array = tuple(arrays["shape"].tolist()), arrays[name]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ScanError(f"{file}: the masks of this answer are damaged; ask again") from error
    if stored != shape:
        raise ScanError(f"{file}: a mask must have the scan's shape {shape}, found {stored}; ask again")
    return array


def _of_shape(scan: Scan, shape: tuple[int, int, int]) -> np.ndarray:
    if scan.voxels.shape != shape:
        raise ScanError(
            f"{scan.source}: a mask must have the scan's shape {shape}, found {scan.voxels.shape}; ask again"
        )
    return scan.voxels


def info_of(entry: Mapping[str, Any], id_: str, **more: Any) -> AnswerInfo:
    """What is told of an answer, from what `proposals.description.describe` says of one target."""
    unit = "pixels" if "consensus_pixels" in entry else "ml"
    distinct = [
        {name: one[name] for name in ("proposal", "weight", "spread")}
        | {"agreement": one.get("agreement", one.get("quality")), "volume": one[unit]}
        for one in entry.get("distinct", ())
    ]
    told = {name: entry.get(name) for name in ("prompt", "target", "outcome", "understood", "message", "doubt")}
    return AnswerInfo(
        id=id_,
        **told,  # type: ignore[arg-type]  # checked by the model
        agreement=entry.get("agreement", entry.get("quality")),
        expected_dice=entry.get("expected_dice"),
        uncalibrated=entry.get("uncalibrated"),
        why=entry.get("why"),
        score=entry.get("score", 0.0),
        nearest=list(entry.get("nearest", ())),
        proposals=len(entry.get(f"proposals_{unit}", ())),
        distinct=distinct,  # type: ignore[arg-type]
        volume=entry.get(f"consensus_{unit}"),
        unit=unit,
        interval=entry.get(f"interval_{unit}"),
        doubtful_slices=entry.get("doubtful_slices"),
        candidate=entry.get("candidate"),
        misfit=entry.get("misfit"),
        **more,
    )


def answers_of_run(folder: Path, entry: Mapping[str, Any]) -> tuple[Answer, ...]:
    """The answers in a case folder of `delineate segment`, in the order asked: "s0", "s1", ...

    Args:
        folder: of the case.
        entry: its `case.json`.
    """
    answers = []
    asked = {name: value for name, value in entry.items() if name.endswith("_sha256")}
    drawn = [number for number, target in enumerate(entry["targets"]) if "score" in target]
    names = [entry["targets"][number]["target"] or entry["targets"][number]["prompt"] for number in drawn]
    stems = dict(zip(drawn, mask_stems(names), strict=True))
    for number, target in enumerate(entry["targets"]):
        request, stem = entry["request"], stems.get(number, "")
        more = {"seed": request["seed"], "marks": [], "refines": None, "seconds": entry["seconds"]}
        info = info_of(target, f"s{number}", **more)
        answers.append(Answer(info, folder, stem, {**asked, "consensus": request["how"]}))
    return tuple(answers)


def save_answer(
    folder: Path,
    proposals: "Proposals",
    *,
    marks: Sequence[Mark],
    refines: str | None,
    seed: int,
    started: float,
    asked: Mapping[str, Any],
) -> Answer:
    """Write the answer for one prompt into a folder of its own, and return it. Masks are read back and compared.

    Args:
        folder: new; its name becomes the answer's id.
        proposals: of one target.
        marks: that were given.
        refines: the answer that this one corrects.
        seed: of the proposals.
        started: when the asking began, by `time.monotonic`.
        asked: see `Answer`.
    """
    from delineate.proposals.description import describe

    target = proposals.targets[0]
    if target.drawn is not None:
        _write_masks(folder / MASKS, target)
    (entry,) = describe(proposals, "mean")
    seconds = round(time.monotonic() - started, 2)
    info = info_of(entry, folder.name, seed=seed, marks=list(marks), refines=refines, seconds=seconds)
    answer = Answer(info, folder, None, {**asked, "consensus": "mean"})
    write_json(folder / ANSWER, {"answer": info.model_dump(mode="json"), "asked": answer.asked})
    return answer


def _write_masks(path: Path, target: "TargetProposals") -> None:
    masks = {"consensus": target.consensus()} | {f"proposal_{k:02d}": target.choose(k) for k in range(len(target))}
    arrays = {name: toggles_of(mask) for name, mask in masks.items()}
    arrays["shape"] = np.array(target.choose(0).shape)
    arrays["doubt"] = np.rint(255 * target.disagreement()).astype(np.uint8)

    def check(temporary: Path) -> None:
        with np.load(temporary, allow_pickle=False) as back:
            if not all(np.array_equal(back[name], array) for name, array in arrays.items()):
                raise ScanError(f"{path}: what was written does not read back the same; check the disk")

    with replacing(path, check) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **arrays)


def read_answer(folder: Path) -> Answer:
    """The answer that `save_answer` wrote.

    Raises:
        ScanError: it is damaged.
    """
    fix = "move its folder away and ask again"
    told = read_json(folder / ANSWER, AnswerFile, error=ScanError, fix=fix, most_bytes=MOST_ANSWER)
    return Answer(told.answer, folder, None, told.asked)
