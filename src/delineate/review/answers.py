"""An answer on disk: masks as `Proposals.save` writes them, and what is told of it.

`delineate segment` leaves many in one folder, described by `case.json`. Here an answer has a folder of its own, in
which `answer.json` is written last: without it there is no answer.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from delineate.errors import ScanError
from delineate.files import safe_name, write_json
from delineate.review.runs import mask_of, toggles_of
from delineate.review.schema import AnswerInfo, Mark
from delineate.review.work import NotHere
from delineate.scan import Scan, read_labels, read_scan

if TYPE_CHECKING:
    from delineate.proposals import Proposals

ANSWER = "answer.json"
SUFFIXES = (".nii.gz", ".png")


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer and where its masks lie.

    Attributes:
        info: what is told of it.
        folder: of its files.
        stem: of the consensus' file; those of the proposals and maps begin with it.
        asked: who answered what: model, adapter and calibration by hash, versions; for provenance.
    """

    info: AnswerInfo
    folder: Path
    stem: str
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
        stem = self.stem if k is None else f"{self.stem}_proposal_{k:02d}"
        file = self._file(stem)
        if file is None:
            raise ScanError(f"{self.folder / stem}: the mask of this answer is gone; ask again")
        return _toggles_in(file, file.stat().st_mtime_ns, shape)

    def doubt(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Doubt in [0, 1], float32: the map that was saved, else the entropy of the share of proposals, in bits."""
        if (saved := self._file(f"{self.stem}_doubt")) is not None:
            return _of_shape(read_scan(saved), shape) / (255 if saved.suffix == ".png" else 1)
        if (saved := self._file(f"{self.stem}_probability")) is not None:
            return _entropy(_of_shape(read_scan(saved), shape) / (255 if saved.suffix == ".png" else 1))
        share = np.zeros(shape, np.float32)
        for k in range(self.info.proposals):
            share += self.proposal(k, shape)
        return _entropy(share / max(1, self.info.proposals))

    def _file(self, stem: str) -> Path | None:
        return next((f for s in SUFFIXES if (f := self.folder / f"{stem}{s}").is_file()), None)


@lru_cache(maxsize=128)
def _toggles_in(file: Path, changed: int, shape: tuple[int, int, int]) -> np.ndarray:
    """The toggles of the mask in a file; `changed` tells its versions apart."""
    toggles = toggles_of(_of_shape(read_labels(file), shape) != 0)
    toggles.flags.writeable = False
    return toggles


def _of_shape(scan: Scan, shape: tuple[int, int, int]) -> np.ndarray:
    if scan.voxels.shape != shape:
        raise ScanError(
            f"{scan.source}: a mask must have the scan's shape {shape}, found {scan.voxels.shape}; ask again"
        )
    return scan.voxels


def _entropy(p: np.ndarray) -> np.ndarray:
    p = p.clip(1e-6, 1 - 1e-6)
    return np.where((doubt := -(p * np.log2(p) + (1 - p) * np.log2(1 - p))) < 1e-4, 0, doubt).astype(np.float32)


def info_of(entry: Mapping[str, Any], id_: str, **more: Any) -> AnswerInfo:
    """What is told of an answer, from what `cohort.describe` says of one target."""
    unit = "pixels" if "consensus_pixels" in entry else "ml"
    distinct = [
        {name: one[name] for name in ("proposal", "weight", "quality", "spread")} | {"volume": one[unit]}
        for one in entry.get("distinct", ())
    ]
    told = {name: entry.get(name) for name in ("prompt", "target", "outcome", "message", "quality", "doubt")}
    return AnswerInfo(
        id=id_,
        **told,  # type: ignore[arg-type]  # checked by the model
        score=entry.get("score", 0.0),
        nearest=list(entry.get("nearest", ())),
        proposals=len(entry.get(f"proposals_{unit}", ())),
        distinct=distinct,  # type: ignore[arg-type]
        volume=entry.get(f"consensus_{unit}"),
        unit=unit,
        interval=entry.get(f"interval_{unit}"),
        doubtful_slices=entry.get("doubtful_slices"),
        **more,
    )


def answers_of_run(folder: Path, entry: Mapping[str, Any]) -> tuple[Answer, ...]:
    """The answers in a case folder of `delineate segment`, in the order asked: "s0", "s1", ...

    Args:
        folder: of the case.
        entry: its `case.json`.
    """
    stems: dict[str, int] = {}
    answers = []
    asked = {name: value for name, value in entry.items() if name.endswith("_sha256")}
    for number, target in enumerate(entry["targets"]):
        stem = safe_name(target["target"] or target["prompt"])
        if target["outcome"] != "unknown prompt":
            stems[stem] = stems.get(stem, 0) + 1
            stem = stem if stems[stem] == 1 else f"{stem}_{stems[stem]}"
        request = entry["request"]
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
    """Write the answer for one prompt into a folder of its own, and return it.

    Args:
        folder: new; its name becomes the answer's id.
        proposals: of one target.
        marks: that were given.
        refines: the answer that this one corrects.
        seed: of the proposals.
        started: when the asking began, by `time.monotonic`.
        asked: see `Answer`.
    """
    from delineate.cohort import describe

    target = proposals.targets[0]
    proposals.save(folder, maps=True)
    (entry,) = describe(proposals, "mean")
    seconds = round(time.monotonic() - started, 2)
    info = info_of(entry, folder.name, seed=seed, marks=list(marks), refines=refines, seconds=seconds)
    answer = Answer(info, folder, safe_name(target.name or target.prompt.text), {**asked, "consensus": "mean"})
    write_json(folder / ANSWER, {"answer": info.model_dump(mode="json"), "stem": answer.stem, "asked": answer.asked})
    return answer


def read_answer(folder: Path) -> Answer:
    """The answer that `save_answer` wrote.

    Raises:
        ScanError: it is damaged.
    """
    try:
        told = json.loads((folder / ANSWER).read_text(encoding="utf-8"))
        return Answer(AnswerInfo.model_validate(told["answer"]), folder, safe_name(told["stem"]), told["asked"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ScanError(f"{folder / ANSWER}: this answer is damaged; move its folder away and ask again") from error
