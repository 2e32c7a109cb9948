"""Masks on disk, and beside each `<stem>.json`: where it comes from, to the last stroke."""

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from delineate import __version__
from delineate.errors import DelineateError
from delineate.review.answers import Answer
from delineate.review.cases import ReviewCase
from delineate.review.log import now
from delineate.review.runs import mask_of
from delineate.review.schema import Format, SavedFile
from delineate.review.work import Layer, Past, Work
from delineate.scans.scan import Scan
from delineate.scans.writing import write_labels
from delineate.storage.files import safe_name, sha256_of, write_json

TAKEN = ("pick", "combine", "rename_layer")  # kinds of events that leave a mask as a model drew it
SUFFIXES: Mapping[Format, str] = {"nifti": ".nii.gz", "png": ".png", "seg": ".dcm"}


class SavingError(DelineateError):
    """A mask cannot be written in the format that was asked for."""


@dataclass(frozen=True, eq=False)
class Source:
    """What a layer was drawn on, by whom, and the answers it can come from."""

    case: ReviewCase
    scan: Scan
    user: str
    answers: Mapping[str, Answer]


def formats_for(source: Source, asked: Format | None) -> tuple[Format, ...]:
    """What is written: the format asked for; for None PNG for flat scans, else NIfTI.

    For None also SEG where the scan is a DICOM series that lacks nothing that a SEG needs.

    Raises:
        SavingError: the scan cannot be written so.
    """
    flat, dicom = source.case.info.flat, source.case.info.dicom
    if asked == "png" and not flat:
        raise SavingError(f"'{source.case.name}' is a volume; PNG holds flat images: save it as NIfTI")
    if asked == "seg" and not dicom:
        raise SavingError(f"'{source.case.name}' is no DICOM series; a DICOM SEG has to refer to one: save it as NIfTI")
    if asked is not None:
        return (asked,)
    complete = source.scan.dicom is not None and not source.scan.dicom.missing
    return ("png" if flat else "nifti", *(("seg",) if complete else ()))


def write_mask(path: Path, mask: np.ndarray, layer: Layer, work: Work, source: Source, format_: Format) -> None:
    """Write the mask of a layer, whole or not at all.

    Raises:
        DelineateError: it cannot be written, as an empty mask cannot in DICOM SEG.
    """
    if format_ != "seg":
        write_labels(path, mask, source.scan)
        return
    from delineate.scans.dicom.seg import write_seg

    if not mask.any():
        raise SavingError(f"'{layer.name}' is empty; a DICOM SEG needs a voxel at least: save it as NIfTI")
    edits = work.touched(layer.id)
    answers = _answers_in(edits, source)
    targets = [t for a in answers if (t := a.info.target) is not None and layer.name.lower().startswith(t.lower())]
    by = "manual" if not answers else "automatic" if all(p.event["kind"] in TAKEN for p in edits) else "semiautomatic"
    algorithm = f"delineate {answers[-1].asked.get('model_sha256', '')}"[:64] if answers else "delineate review"
    concepts = {layer.name: targets[-1]} if targets else None
    write_seg(path, {layer.name: mask}, source.scan, algorithm=algorithm, by=by, concepts=concepts)


def file_of(layer: Layer, work: Work, source: Source, format_: Format) -> bytes:
    """The bytes of a file with the layer as it is now.

    Raises:
        DelineateError: as `formats_for` and `write_mask`.
    """
    formats_for(source, format_)
    folder = Path(tempfile.mkdtemp(prefix="delineate-"))
    try:
        path = folder / f"layer{SUFFIXES[format_]}"
        write_mask(path, mask_of(layer.toggles, work.shape), layer, work, source, format_)
        return path.read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save_layers(
    folder: Path, layers: Sequence[Layer], work: Work, source: Source, asked: Format | None
) -> tuple[list[SavedFile], list[dict[str, Any]]]:
    """Write layers into `folder`; what was written, and for each layer what the log keeps of it.

    A layer keeps the file name that it was first saved under until it is renamed, and no other layer gets it. Where SEG
    comes along with another format, it is left out for empty layers, which it cannot hold.

    Raises:
        DelineateError: as `formats_for` and `write_mask`.
        OSError: the disk is full or gone.
    """
    formats = formats_for(source, asked)
    files, kept, taken = [], [], set[str]()
    for layer in layers:
        stem = stem_for(layer, work.stems_of_others(layer.id) | taken)
        taken.add(stem)
        mask = mask_of(layer.toggles, work.shape)
        written = []
        for format_ in formats:
            if format_ == "seg" and len(formats) > 1 and not mask.any():
                continue
            path = folder / f"{stem}{SUFFIXES[format_]}"
            write_mask(path, mask, layer, work, source, format_)
            size, digest = path.stat().st_size, sha256_of(path)
            written.append(SavedFile(name=path.name, layer=layer.id, sha256=digest, bytes=size))
        write_json(folder / f"{stem}.json", provenance(layer, work, source, written))
        files += written
        kept.append({"layer": layer.id, "name": layer.name, "stem": stem, "content": layer.content})
    return files, kept


def stem_for(layer: Layer, taken: set[str]) -> str:
    """The layer's file name without its suffix: its name made safe, with a number where another layer has that."""
    if layer.stem is not None and layer.saved_name == layer.name:
        return layer.stem
    stem, number = safe_name(layer.name), 1
    while (name := stem if number == 1 else f"{stem}_{number}") in taken:
        number += 1
    return name


def provenance(layer: Layer, work: Work, source: Source, files: Sequence[SavedFile]) -> dict[str, Any]:
    """Where a layer comes from, as JSON: the scan, the answers it was taken from, every edit that was not undone."""
    edits = work.touched(layer.id)
    return {
        "delineate": __version__,
        "saved": now(),
        "reviewer": source.user,
        "case": source.case.name,
        "scan": {"name": source.case.file.name, "sha256": source.case.digest},
        "layer": {"id": layer.id, "name": layer.name, "voxels": layer.voxels},
        "files": [{"name": file.name, "sha256": file.sha256, "bytes": file.bytes} for file in files],
        "answers": [_answer(answer) for answer in _answers_in(edits, source)],
        "edits": [_edit(past) for past in edits],
    }


def _answers_in(edits: Sequence[Past], source: Source) -> list[Answer]:
    used = dict.fromkeys(past.event.get("detail", {}).get("answer") for past in edits)
    return [source.answers[answer] for answer in used if answer in source.answers]


def _answer(answer: Answer) -> dict[str, Any]:
    info = answer.info.model_dump(
        mode="json", include={"id", "prompt", "target", "outcome", "seed", "marks", "refines"}
    )
    return info | {"proposals": answer.info.proposals, **answer.asked}


def _edit(past: Past) -> dict[str, Any]:
    event = {name: past.event[name] for name in ("n", "time", "kind", "detail") if name in past.event}
    return event | {"text": past.text, "voxels_added": past.gained, "voxels_removed": past.lost}
