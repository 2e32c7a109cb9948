"""One run over one or many scans: the model loaded once, finished cases skipped, one failure stopping nothing."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from delineate import __version__
from delineate.calibrated import LEVEL
from delineate.dicom.source import DICOM_SUFFIXES, files_in, is_dicom
from delineate.errors import DelineateError, ScanError
from delineate.files import sha256_of, write_json
from delineate.ordering import doubtful_slices
from delineate.prompt import unknown_prompt_message
from delineate.proposals import Outcome, Proposals, TargetProposals
from delineate.scan import NIFTI_SUFFIXES, Scan, is_scan_file, read_scan, stem_of

if TYPE_CHECKING:  # which imports torch
    from delineate.segmenter import Segmenter


@dataclass(frozen=True)
class Request:
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


def find_scans(path: Path) -> list[Path]:
    """The scans that `path` stands for: itself, or all directly in the folder, sorted.

    A folder with DICOM files in it is one scan; so is each such folder directly in a folder.

    Raises:
        ScanError: nothing there, DICOM beside NIfTI, or two scans that would be written to the same case folder.
    """
    path = Path(path)
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder; check the path")
    if path.is_file():
        return [path]
    scans = sorted(p for p in path.iterdir() if p.is_file() and is_scan_file(p))
    if is_dicom(path):
        if volumes := [p.name for p in scans if p.name.endswith(NIFTI_SUFFIXES)]:
            raise ScanError(
                f"{path}: found DICOM beside {len(volumes)} NIfTI files; name one, or part them in two folders"
            )
        return [path]
    scans = sorted([*scans, *(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".") and is_dicom(p))])
    if not scans:
        raise ScanError(
            f"{path}: no scan in this folder; it is searched for NIfTI, DICOM, PNG, JPEG and TIFF, not below"
        )
    names = [case_name(p) for p in scans]
    for scan, name in zip(scans, names, strict=True):
        if names.count(name) > 1:
            raise ScanError(f"{scan}: another scan of this folder is also called '{name}'; rename one of them")
    return scans


def case_name(path: Path) -> str:
    """The name of a scan's case: a folder's name, or the file's stem without nnU-Net's channel number."""
    path = Path(path)
    if path.is_dir():
        return path.resolve().name or "scan"
    known = is_scan_file(path) or path.suffix.lower() in DICOM_SUFFIXES
    return (stem_of(path) if known else path.name).removesuffix("_0000")  # names of DICOM files are often full of dots


def digest_of(path: Path) -> str:
    """The SHA-256 of a scan: of the file, or for a DICOM folder of its files' own, sorted, whatever they are called."""
    if not path.is_dir():
        return sha256_of(path)
    return hashlib.sha256("".join(sorted(sha256_of(file) for file in files_in(path))).encode()).hexdigest()


def run_cohort(
    segmenter: "Segmenter",
    scans: Sequence[Path],
    request: Request,
    folder: Path,
    *,
    model_hash: str,
    adapter_hash: str | None = None,
    calibration_hash: str | None = None,
    device: str = "cpu",
    resume: bool = False,
    on_case: Callable[[int, Path], None] = lambda number, path: None,
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
    for number, path in enumerate(scans):
        on_case(number, path)
        done = folder / case_name(path) / "case.json"
        signature = {"request": report["request"]} | {k: v for k, v in report.items() if k.endswith("_sha256")}
        try:
            entry = _finished(done, path, signature) if resume else None
            if entry is None:
                _forget(done)
                entry = _segment_case(segmenter, path, request, done.parent, on_step)
                write_json(done, {**entry, **signature})
        except (DelineateError, OSError, MemoryError) as error:
            entry = {"case": case_name(path), "file": str(path), "status": "failed", "reason": _one_line(error)}
        report["cases"].append(entry)
        report["seconds"] = round(time.time() - started, 2)
        write_json(folder / "run.json", report)
    return report


def _segment_case(
    segmenter: "Segmenter", path: Path, request: Request, folder: Path, on_step: Callable[[float], None]
) -> dict[str, Any]:
    started = time.monotonic()
    digest = digest_of(path)
    options: dict[str, Any] = {"series": request.series, "fill_gaps": request.fill_gaps} if is_dicom(path) else {}
    scan = read_scan(path, modality=request.modality, volume=request.volume, **options)
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
        "case": case_name(path),
        "file": str(path),
        "sha256": digest,
        "status": "done",
        "seconds": round(time.monotonic() - started, 2),
        "shape": list(scan.shape),
        "spacing_mm": [round(float(s), 4) for s in scan.spacing_mm],
        "notes": [*scan.notes, *more],
        "targets": describe(proposals, request.how, segmenter.habits.usual_doubt, request.shares),
        "written": written,
    }


def _write_seg(proposals: Proposals, request: Request, folder: Path, algorithm: str) -> tuple[list[str], list[str]]:
    """Write `segmentation.dcm` with a segment for every found target; its name, or a note why there is none."""
    from delineate.dicom.seg import write_seg

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


def describe(
    proposals: Proposals,
    how: str,
    usual_doubt: Mapping[str, float] = MappingProxyType({}),
    shares: Mapping[str, float | None] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Each target as JSON: outcome, score, doubt, volume of the consensus and of each proposal (ml; pixels if flat).

    A found target whose doubt is above `usual_doubt` is marked as unusual. What to look at first: `seen_first`. How
    far it can be believed: `believed`.
    """
    scan = proposals.scan
    unit = 1.0 if scan.is_flat else float(abs(scan.spacing_mm[0] * scan.spacing_mm[1] * scan.spacing_mm[2])) / 1000
    key = "pixels" if scan.is_flat else "ml"
    out = []
    for target in proposals:
        entry: dict[str, Any] = {"prompt": target.prompt.text, "target": target.name, "outcome": target.outcome.value}
        if target.outcome is Outcome.UNKNOWN_PROMPT:
            entry["nearest"] = list(target.nearest)
            entry["message"] = unknown_prompt_message(target.prompt.text, target.nearest)
        else:
            volumes = [float(target.choose(k).sum() * unit) for k in range(len(target))]
            entry["score"] = round(target.score, 4)
            entry["doubt"] = round(target.doubt, 4)
            if (usual := usual_doubt.get(str(target.name))) is not None:
                entry |= {"usual_doubt": usual, "unusual": target.outcome is Outcome.FOUND and target.doubt > usual}
            entry[f"consensus_{key}"] = round(float(target.consensus(how).sum() * unit), 3)
            entry[f"proposals_{key}"] = [round(v, 3) for v in volumes]
            entry |= seen_first(target, how, scan, key, volumes) | believed(target, unit, key, shares)
        out.append(entry)
    return out


def seen_first(target: TargetProposals, how: str, scan: Scan, key: str, volumes: Sequence[float]) -> dict[str, Any]:
    """What a person looks at first, as JSON: `quality` of the consensus, the `distinct` proposals, `doubtful_slices`.

    `quality` is the Dice that a mask can expect, `weight` the share of all proposals that one stands for, `spread` how
    far those lie from one another (mean 1 - IoU); see `delineate.ordering`. Slices are those of the file, counted
    from 0 along its own array `axis`, each with its share of all doubt; flat images have none.

    Args:
        target: a known one.
        how: the fusion.
        scan: the one that was asked about.
        key: the unit of the volumes, "ml" or "pixels".
        volumes: of each proposal.
    """
    quality = target.quality()
    entry: dict[str, Any] = {"quality": round(target.expected_dice(how), 4), "distinct": []}
    for one in target.distinct():
        told = {"proposal": one.k, "weight": round(one.weight, 4), "quality": round(float(quality[one.k]), 4)}
        entry["distinct"].append({**told, "spread": round(one.spread, 4), key: round(volumes[one.k], 3)})
    if not scan.is_flat:
        axis, slices = doubtful_slices(target.disagreement(), scan.affine)
        shares = [round(share, 4) for _, share in slices]
        entry["doubtful_slices"] = {"axis": axis, "slices": [index for index, _ in slices], "shares": shares}
    return entry


def believed(
    target: TargetProposals, unit: float, key: str, shares: Mapping[str, float | None] = MappingProxyType({})
) -> dict[str, Any]:
    """How far the answer for a known target can be believed, as JSON: `presence`, `interval_<key>`, `guarantees`.

    `presence` says by which score the outcome was decided and how often that calls an absent target found; None where
    nobody knows. The interval is of the volume: where the truth lies with a chance of 90 % by held-out subjects, or,
    `calibrated` false, from the fifth to the ninety-fifth percentile of the proposals, which promises nothing.

    Args:
        target: a known one.
        unit: of a voxel, in `key`.
        key: "ml" or "pixels".
        shares: what is to be guaranteed, as `TargetProposals.guarantees` takes it.
    """
    calibration, volume = target.calibration, float(target.consensus("mean").sum()) * unit  # as it was calibrated
    drawn = [float(target.choose(k).sum()) * unit for k in range(len(target))]
    ends = None if calibration is None else calibration.volume_interval(str(target.name), volume)
    low, high = (float(v) for v in (ends or np.percentile(drawn, (5, 95))))
    interval = {"low": round(low, 3), "high": round(high, 3), "level": LEVEL, "calibrated": ends is not None}
    entry: dict[str, Any] = {"presence": None, f"interval_{key}": interval}
    if calibration is not None and (known := calibration.presence) is not None:
        entry["presence"] = {
            "found_from": round(known.threshold, 4),
            "false_alarms_at_most": round(known.rate, 4),
            "absent_scans": known.absent,
            "probability": round(float(known.calibrator(np.array([target.score]))[0]), 4),
        }
    if any(share is not None for share in shares.values()):
        entry["guarantees"] = [
            {
                **asdict(one),
                key: None if one.threshold is None else round(float(target.guaranteed(one).sum()) * unit, 3),
            }
            for one in target.guarantees(**shares)
        ]
    return entry


def _finished(done: Path, path: Path, signature: dict[str, Any]) -> dict[str, Any] | None:
    """The entry of a case that was finished before, from the same scan, request and model; else None."""
    try:
        entry = json.loads(done.read_text())
        same = all(entry[k] == v for k, v in signature.items()) and entry["sha256"] == digest_of(path)
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
