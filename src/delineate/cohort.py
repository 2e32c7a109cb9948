"""One run over one or many scans: the model loaded once, finished cases skipped, one failure stopping nothing."""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from delineate import __version__
from delineate.errors import DelineateError, ScanError
from delineate.files import sha256_of, write_json
from delineate.prompt import unknown_prompt_message
from delineate.proposals import Outcome, Proposals
from delineate.scan import is_scan_file, read_scan, stem_of
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


def find_scans(path: Path) -> list[Path]:
    """The scan files that `path` stands for: itself, or all scans directly in the folder, sorted.

    Raises:
        ScanError: nothing there, or two files that would be written to the same case folder.
    """
    path = Path(path)
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder; check the path")
    if path.is_file():
        return [path]
    scans = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".") and is_scan_file(p))
    if not scans:
        raise ScanError(f"{path}: no scan in this folder; it is searched for NIfTI, PNG, JPEG and TIFF, not below")
    names = [case_name(p) for p in scans]
    for scan, name in zip(scans, names, strict=True):
        if names.count(name) > 1:
            raise ScanError(f"{scan}: another scan of this folder is also called '{name}'; rename one of them")
    return scans


def case_name(path: Path) -> str:
    """The name of a scan's case: the file's stem without nnU-Net's channel number."""
    return stem_of(path).removesuffix("_0000")


def run_cohort(
    segmenter: Segmenter,
    scans: Sequence[Path],
    request: Request,
    folder: Path,
    *,
    model_hash: str,
    adapter_hash: str | None = None,
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
        "request": {**request.__dict__, "prompts": list(request.prompts)},
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "cases": [],
    }
    for number, path in enumerate(scans):
        on_case(number, path)
        done = folder / case_name(path) / "case.json"
        signature = {name: report[name] for name in ("request", "model_sha256", "adapter_sha256")}
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
    segmenter: Segmenter, path: Path, request: Request, folder: Path, on_step: Callable[[float], None]
) -> dict[str, Any]:
    started = time.monotonic()
    digest = sha256_of(path)
    scan = read_scan(path, modality=request.modality, volume=request.volume)
    proposals = segmenter(scan, request.prompts, n=request.n, seed=request.seed, on_step=on_step)
    written = [p.name for p in proposals.save(folder, how=request.how, maps=request.maps)]
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
        "notes": list(scan.notes),
        "targets": describe(proposals, request.how, segmenter.habits.usual_doubt),
        "written": written,
    }


def describe(
    proposals: Proposals, how: str, usual_doubt: Mapping[str, float] = MappingProxyType({})
) -> list[dict[str, Any]]:
    """Each target as JSON: outcome, score, doubt, volume of the consensus and of each proposal (ml; pixels if flat).

    A found target whose doubt is above `usual_doubt` is marked as unusual.
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
        out.append(entry)
    return out


def _finished(done: Path, path: Path, signature: dict[str, Any]) -> dict[str, Any] | None:
    """The entry of a case that was finished before, from the same scan, request and model; else None."""
    try:
        entry = json.loads(done.read_text())
        same = all(entry[k] == v for k, v in signature.items()) and entry["sha256"] == sha256_of(path)
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
