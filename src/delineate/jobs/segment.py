"""One run over one or many scans: the model loaded once, finished cases skipped, one failure stopping nothing."""

import json
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delineate import __version__
from delineate.errors import DelineateError
from delineate.proposals.description import describe
from delineate.proposals.proposals import Outcome, Proposals
from delineate.scans.finding import Found, Kind
from delineate.scans.reading import read_scan
from delineate.storage.files import write_json

if TYPE_CHECKING:  # which imports torch
    from delineate.segmenter import Segmenter


@dataclass(frozen=True)
class SegmentRequest:
    """What is asked of every scan of a run. A finished case is skipped on `resume` only if all of this is equal."""

    prompts: tuple[str, ...]
    n: int = 8
    seed: int = 0
    how: str = "mean"
    maps: bool = False
    modality: str | None = None
    volume: int | None = None
    pictures: bool = True
    missed_at_most: float | None = None
    false_at_most: float | None = None
    series: str | None = None
    fill_gaps: bool = False
    seg: str | None = "binary"

    @property
    def shares(self) -> dict[str, float | None]:
        """What is to be guaranteed, as `TargetProposals.guarantees` takes it."""
        return {"missed_at_most": self.missed_at_most, "false_at_most": self.false_at_most}


def run_cohort(
    segmenter: "Segmenter",
    scans: Sequence[Found],
    request: SegmentRequest,
    folder: Path,
    *,
    model_hash: str,
    adapter_hash: str | None = None,
    calibration_hash: str | None = None,
    device: str = "cpu",
    resume: bool = False,
    on_case: Callable[[int, Found], None] = lambda number, scan: None,
    on_step: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Segment every scan into `folder/<case>/` and return the report, also written to `folder/run.json`.

    A case's `case.json` is written last: where it is, the case is complete. An unreadable scan is reported as
    failed, with its reason, and the next one is taken.
    """
    import torch

    started = time.time()
    report: dict[str, Any] = {
        "delineate": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
        "threads": torch.get_num_threads(),
        "model_sha256": model_hash,
        "adapter_sha256": adapter_hash,
        "calibration_sha256": calibration_hash,
        "request": {**request.__dict__, "prompts": list(request.prompts)},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "cases": [],
    }
    for number, scan in enumerate(scans):
        on_case(number, scan)
        done = folder / scan.name / "case.json"
        signature = {"request": report["request"]} | {k: v for k, v in report.items() if k.endswith("_sha256")}
        try:
            entry = _finished(done, scan, signature) if resume else None
            if entry is None:
                _forget(done)
                entry = _segment_case(segmenter, scan, request, done.parent, on_step)
                write_json(done, {**entry, **signature})
        except (DelineateError, OSError, MemoryError) as error:
            entry = {"case": scan.name, "file": str(scan.path), "status": "failed", "reason": _one_line(error)}
        report["cases"].append(entry)
        report["seconds"] = round(time.time() - started, 2)
        write_json(folder / "run.json", report)
    return report


def _segment_case(
    segmenter: "Segmenter", found: Found, request: SegmentRequest, folder: Path, on_step: Callable[[float], None]
) -> dict[str, Any]:
    started = time.monotonic()
    digest, dicom = found.digest, found.kind is Kind.DICOM
    options: dict[str, Any] = {"series": request.series, "fill_gaps": request.fill_gaps} if dicom else {}
    scan = read_scan(found, modality=request.modality, volume=request.volume, **options)
    proposals = segmenter(scan, request.prompts, n=request.n, seed=request.seed, on_step=on_step)
    written = [p.name for p in proposals.save(folder, how=request.how, maps=request.maps, **request.shares)]
    more = []
    if scan.dicom is not None and request.seg is not None:
        named, more = _write_seg(proposals, request, folder, f"delineate {(segmenter.fingerprint or '')[:16]}".strip())
        written += named
    if request.pictures:
        from delineate.pictures import montage

        montage(proposals, folder / "montage.png", how=request.how)
        written.append("montage.png")
    return {
        "case": found.name,
        "file": str(found.path),
        "sha256": digest,
        "status": "done",
        "seconds": round(time.monotonic() - started, 2),
        "shape": list(scan.shape),
        "spacing_mm": [round(float(s), 4) for s in scan.spacing_mm],
        "notes": [*scan.notes, *more],
        "targets": describe(proposals, request.how, segmenter.habits.usual_doubt, request.shares),
        "written": written,
    }


def _write_seg(
    proposals: Proposals, request: SegmentRequest, folder: Path, algorithm: str
) -> tuple[list[str], list[str]]:
    """Write `segmentation.dcm` with a segment for every found target; its name, or a note why there is none."""
    from delineate.scans.dicom.seg import write_seg

    scan, masks, concepts = proposals.scan, {}, {}
    if scan.dicom is not None and scan.dicom.missing:
        return [], [f"no DICOM SEG: the source lacks {', '.join(scan.dicom.missing)}"]
    for target in proposals:
        if target.outcome is Outcome.FOUND and target.name is not None:
            count = sum(known == target.name for known in concepts.values())
            name = target.name if count == 0 else f"{target.name} {count + 1}"
            mask = target.probability() if request.seg == "fractional" else target.consensus(request.how)
            if mask.any():
                masks[name], concepts[name] = mask, target.name
    if not masks:
        return [], ["no DICOM SEG: nothing was found"]
    options: dict[str, Any] = {"kind": request.seg, "algorithm": algorithm, "concepts": concepts}
    return [write_seg(folder / "segmentation.dcm", masks, scan, **options).name], []


def _finished(done: Path, scan: Found, signature: dict[str, Any]) -> dict[str, Any] | None:
    """The entry of a case that was finished before, from the same scan, request and model; else None."""
    try:
        entry = json.loads(done.read_text())
        same = all(entry[k] == v for k, v in signature.items()) and entry["sha256"] == scan.digest
        whole = all((done.parent / name).is_file() for name in entry["written"])
    except (OSError, ValueError, KeyError):
        return None
    return {k: v for k, v in entry.items() if k not in signature} | {"status": "skipped"} if same and whole else None


def _forget(done: Path) -> None:
    """Remove what an earlier run wrote for this case, so that answers of two requests never lie side by side."""
    try:
        written = json.loads(done.read_text())["written"]
    except (OSError, ValueError, KeyError, TypeError):
        written = []
    done.unlink(missing_ok=True)  # first: without it the case counts as unfinished
    for name in written:
        (done.parent / Path(name).name).unlink(missing_ok=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
