"""One run over one or many scans: the model loaded once, finished cases skipped, one failure stopping nothing."""

import logging
import platform
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delineate import __version__
from delineate.errors import DelineateError
from delineate.jobs.dicom import write_objects
from delineate.jobs.parts import Part, begin_part, end_part, report_name
from delineate.jobs.statistics import STATISTICS, figures_of, rows_of, write_table
from delineate.prompts.listing import asks_all
from delineate.proposals.description import describe
from delineate.proposals.proposals import Proposals
from delineate.scans.channels import read_channels
from delineate.scans.finding import Found, Kind
from delineate.scans.reading import read_scan
from delineate.scans.scan import MAX_VOXELS, Scan
from delineate.storage.files import sha256_of, write_json
from delineate.storage.hidden import without_hidden
from delineate.storage.lines import Lines
from delineate.storage.memory import in_smaller_batches, is_out_of_memory
from delineate.storage.places import CASE, keep_of_people, place_for, read_case, refuse_if_reviewed
from delineate.storage.swapping import finish, locked, make_folder, swapping, sweep

if TYPE_CHECKING:  # which imports torch
    from delineate.jobs.handing import Crew
    from delineate.segmenter import Segmenter
    from delineate.systems.system import Seen

LOG = logging.getLogger(__name__)
Entries = Generator[tuple[int, dict[str, Any]]]


@dataclass(frozen=True)
class SegmentRequest:
    """What is asked of every scan of a run. A finished case is skipped on `resume` only if all of this is equal.

    The prompt "all" (`prompts.listing.asks_all`) is kept as it is: what it asks for, `asked_of` tells scan by scan.
    """

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
    compress_seg: bool = True
    dicom: tuple[str, ...] = ("seg",)
    anyway: bool = False
    turn: bool = False

    @property
    def shares(self) -> dict[str, float | None]:
        """What is to be guaranteed, as `TargetProposals.guarantees` takes it."""
        return {"missed_at_most": self.missed_at_most, "false_at_most": self.false_at_most}

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {name: list(one) if isinstance(one, tuple) else one for name, one in self.__dict__.items()}

    @classmethod
    def of_json(cls, told: Mapping[str, Any]) -> "SegmentRequest":
        """What `to_json` told."""
        values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in told.items()}
        return cls(**values)


@dataclass(frozen=True)
class Doing:
    """What is the same for every case of a run.

    Attributes:
        run: which one it is; a case remembers by which it was written.
        request: what is asked.
        folder: to write to.
        signature: what has to be equal for a case that is there to be skipped: the request, and whose answers they are.
        resume: skip those.
        lay_out: told where a finished case lies and what its scan is called, to lay its files out otherwise, too.
    """

    run: str
    request: SegmentRequest
    folder: Path
    signature: Mapping[str, Any]
    resume: bool = False
    lay_out: Callable[[Path, str], None] = lambda place, name: None

    def to_json(self) -> dict[str, Any]:
        """All but `lay_out`, as plain values."""
        told = {"run": self.run, "folder": str(self.folder), "signature": dict(self.signature), "resume": self.resume}
        return told | {"request": self.request.to_json()}


def run_cohort(
    segmenter: "Segmenter | Crew",
    scans: Sequence[Found],
    request: SegmentRequest,
    folder: Path,
    *,
    model_hash: str,
    adapter_hash: str | None = None,
    calibration_hash: str | None = None,
    device: str = "cpu",
    resume: bool = False,
    part: Part | None = None,
    lay_out: Callable[[Path, str], None] = lambda place, name: None,
    on_case: Callable[[int, Found], None] = lambda number, scan: None,
    on_step: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Segment every scan into `folder/<case>/` and return the report, also written to `folder/run.json` at the end.

    A case is built beside and put in place whole (`storage.swapping`), with the hash of each of its files in
    `case.json`. Whatever goes wrong with one is told of it, what an earlier run wrote there stays, and the next one is
    taken. Every case adds a line to `folder/run.jsonl`, which tells of all runs of this folder.

    Of several parts the last one that ends writes `run.json` of all, and the table of figures.

    Args:
        segmenter: that answers; or a crew of workers that have one each (`jobs.handing`), which take cases one by one.
        scans: all of the cohort, with their names.
        request: what is asked of each.
        folder: to write to.
        model_hash: of the model, for the report, as is what follows.
        adapter_hash: of the adapter.
        calibration_hash: of the calibration.
        device: it runs on, unless a crew has its own.
        resume: skip cases that were finished with the same request, and whose files are as they were written.
        part: of the scans, this one alone.
        lay_out: told where a finished case lies and what its scan is called, to lay its files out otherwise, too. The
            workers of a crew have their own.
        on_case: told the number of a case before it begins (by a crew: when it is done), and
        on_step: the share of it that is done.

    Raises:
        BusyError: another run is at work in the folder.
        OutputError: the folder cannot be written to.
    """
    import torch

    from delineate.jobs.handing import Crew, hand_out

    started = time.time()
    crew = segmenter if isinstance(segmenter, Crew) else None
    report: dict[str, Any] = {
        "delineate": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device if crew is None else crew.device,
        "threads": torch.get_num_threads() if crew is None else crew.threads,
        "model_sha256": model_hash,
        "adapter_sha256": adapter_hash,
        "calibration_sha256": calibration_hash,
        "request": request.to_json(),
        "part": None if part is None else str(part),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        **({} if crew is None else {"workers": crew.workers}),
        "cases": [],
    }
    signature = {"request": report["request"]} | {k: v for k, v in report.items() if k.endswith("_sha256")}
    doing = Doing(uuid.uuid4().hex[:12], request, folder, signature, resume, lay_out)
    chosen = [(number, scan) for number, scan in enumerate(scans) if part is None or part.has(number)]
    lines = Lines(folder / "run.jsonl", {"run": doing.run})
    make_folder(folder)
    with locked(folder, "is at work in this folder", shared=part is not None):
        sweep(folder, keep_of_people, None if part is None else names_of(chosen))
        if part is not None:
            begin_part(folder, part)
        lines.add({name: value for name, value in report.items() if name != "cases"})

        def one_by_one(segmenter: "Segmenter") -> Entries:
            for number, scan in chosen:
                on_case(number, scan)
                yield number, do_case(segmenter, scan, doing, on_step)

        done: dict[int, dict[str, Any]] = {}
        try:
            if isinstance(segmenter, Crew):
                entries = hand_out(segmenter, doing.to_json(), chosen, failed)
            else:
                entries = one_by_one(segmenter)
            with closing(entries):  # the workers are ended before anything else is done
                for number, entry in entries:
                    LOG.info("%s: %s", entry["case"], without_hidden(_in_short(entry)))
                    done[number] = entry
                    lines.add(entry)
                    if crew is not None:
                        on_case(number, scans[number])
        except BaseException as error:
            with suppress(OSError):
                sweep(folder, keep_of_people, names_of(chosen))  # what workers were at
                counts = Counter(entry["status"] for entry in done.values())
                lines.add({"stopped": {**counts}, "by": type(error).__name__})
            raise
        report["cases"] = [done[number] for number, _ in chosen]
        report["seconds"] = round(time.time() - started, 2)
        counts = Counter(entry["status"] for entry in report["cases"])
        lines.add({"ended": {**counts}, "seconds": report["seconds"]})
        if part is None:
            write_table(folder)
            write_json(folder / report_name(None), report)
        elif end_part(folder, part, report):
            write_table(folder)
    return report


def names_of(chosen: Sequence[tuple[int, Found]]) -> set[str]:
    """What the folders of these scans may be called (`storage.places.place_for`), those that lie apart left out."""
    return {scan.name for _, scan in chosen}


def do_case(
    segmenter: "Segmenter",
    scan: Found,
    doing: Doing,
    on_step: Callable[[float], None] = lambda share: None,
    again: bool = False,
) -> dict[str, Any]:
    """The entry of a case in the report, whatever becomes of it.

    Asked `again`, after a worker was lost at it, a case is taken as it is where that one had put it in place already.
    """
    name = scan.name
    try:
        place = place_for(doing.folder, scan.name, scan.digest)
        name = place.name
        if again:
            finish(place, keep_of_people)
        entry = _finished(place, scan, doing) if doing.resume or again else None
        if entry is not None and (doing.resume or entry["status"] == "done"):
            doing.lay_out(place, scan.name)
            return entry
        refuse_if_reviewed(place)
        changed = keep_of_people(place)
        with swapping(place, keep_of_people) as building:
            entry = in_smaller_batches(lambda: _segment_case(segmenter, scan, doing.request, building, on_step))
            entry["case"] = name
            if name != scan.name:
                entry["notes"].append(f"'{scan.name}' holds the answers for another scan of that name: these are apart")
            entry["notes"] += [
                f"{was} was changed since it was written; the changed one is kept as {now}"
                for was, now in changed.items()
                if was != now
            ]
            write_json(building / CASE, {**entry, **doing.signature, "run": doing.run})
        doing.lay_out(place, scan.name)
        return entry
    except Exception as error:  # one case never ends the others
        if not isinstance(error, (DelineateError, OSError, MemoryError)) and not is_out_of_memory(error):
            trace = {"traceback": traceback.format_exc()}
            reason = f"{scan.path}: a fault of delineate ({type(error).__name__}: {error}); run.jsonl has the traceback"
        else:
            trace, reason = {}, str(error) or type(error).__name__
        return failed(scan, reason, name) | trace


def failed(scan: Found, reason: str, name: str | None = None) -> dict[str, Any]:
    """The entry of a case that could not be done."""
    if str(scan.path) not in reason:  # memory, say, does not know whose it was
        reason = f"{scan.path}: {reason}"
    told = {"case": name or scan.name, "file": str(scan.path), "status": "failed"}
    return told | {"reason": " ".join(reason.split())}


def _segment_case(
    segmenter: "Segmenter", found: Found, request: SegmentRequest, folder: Path, on_step: Callable[[float], None]
) -> dict[str, Any]:
    started, digest = time.monotonic(), found.digest
    scan = scan_of(segmenter, found, request)
    proposals, said = proposed(segmenter, scan, request, on_step)
    _empty(folder)  # of what was written before memory ran out
    return {
        "case": found.name,
        "file": str(found.path),
        **({"more_files": [str(path) for path in found.more]} if found.more else {}),
        "sha256": digest,
        "status": "done",
        **written(segmenter, proposals, said, request, folder, started),
    }


def scan_of(segmenter: "Segmenter", found: Found, request: SegmentRequest, max_voxels: int = MAX_VOXELS) -> Scan:
    """The scan of a case, read as a request says and a model wants it. Raises `ScanError`."""
    if channels := segmenter.habits.channels:
        return read_channels((found.path, *found.more), channels)
    options: dict[str, Any] = {"max_voxels": max_voxels}
    if found.kind is Kind.DICOM:
        options |= {"series": request.series, "fill_gaps": request.fill_gaps}
    return read_scan(found, modality=request.modality, volume=request.volume, **options)


def proposed(
    segmenter: "Segmenter", scan: Scan, request: SegmentRequest, on_step: Callable[[float], None]
) -> tuple[Proposals, list[str]]:
    """The proposals for a request, and notes: what was asked, and how the scan lies. All that needs the model."""
    seen, said = looked_at(segmenter, scan, turn=request.turn)
    how: dict[str, Any] = {"n": request.n, "seed": request.seed, "anyway": request.anyway}
    prompts, which = asked_of(segmenter, seen, request.prompts)
    return segmenter(seen, prompts, **how, on_step=on_step), [*which, *said]


def written(
    segmenter: "Segmenter",
    proposals: Proposals,
    said: Sequence[str],
    request: SegmentRequest,
    folder: Path,
    started: float,
) -> dict[str, Any]:
    """Write all files of a case but `case.json` into its folder; what that tells of scan, targets and files."""
    scan = proposals.scan
    names = [p.name for p in proposals.save(folder, how=request.how, maps=request.maps, **request.shares)]
    targets = describe(proposals, request.how, segmenter.habits.usual_doubt, request.shares)
    targets = [told | {"measured": one} for told, one in zip(targets, figures_of(proposals, request.how), strict=True)]
    write_json(folder / STATISTICS, {"targets": rows_of({"targets": targets})})
    names.append(STATISTICS)
    notes = [*scan.notes, *said]
    if scan.dicom is not None:
        algorithm = f"delineate {(segmenter.fingerprint or '')[:16]}".strip()
        kind: dict[str, Any] = {"how": request.how, "seg": request.seg, "compress": request.compress_seg}
        named, why = write_objects(proposals, request.dicom, folder, **kind, algorithm=algorithm, targets=targets)
        names += named
        notes += why
    if request.pictures:
        from delineate.pictures import montage

        montage(proposals, folder / "montage.png", how=request.how)
        names.append("montage.png")
    return {
        "seconds": round(time.monotonic() - started, 2),
        "shape": list(scan.shape),
        "spacing_mm": [round(float(s), 4) for s in scan.spacing_mm],
        "notes": notes,
        "targets": targets,
        "written": {name: sha256_of(folder / name) for name in names},
    }


def _in_short(entry: Mapping[str, Any]) -> str:
    """What became of a case, in a line."""
    if entry["status"] == "failed":
        return f"failed: {entry['reason']}"
    targets = ", ".join(f"{one['target'] or one['prompt']} {one['outcome']}" for one in entry["targets"])
    return f"{entry['status']}, {entry['seconds']:.1f} s: {targets}"


def looked_at(segmenter: "Segmenter", scan: Scan, *, turn: bool = False) -> tuple["Seen", list[str]]:
    """The scan as the segmenter sees it, and a note where its slices lie otherwise than those that were learnt from.

    Such a scan is turned for the segmenter, and its masks back, if that is asked for.
    """
    seen = segmenter.look(scan)
    if not (lies := segmenter.lies(seen)):
        return seen, []
    lies += "; the file says otherwise"
    found = segmenter.recognised(seen)
    if not turn or found is None:
        return seen, [f"{lies}: masks may be wrong; --turn auto turns them for the model, and its masks back"]
    return segmenter.look(scan, turn=found.turn), [f"{lies}: turned for the model, and its masks back"]


def asked_of(segmenter: "Segmenter", seen: "Seen", prompts: Sequence[str]) -> tuple[Sequence[str], list[str]]:
    """The prompts of a request as they are asked of this scan; and a note of what "all" among them is here."""
    vocabulary = segmenter.vocabulary
    if not any(asks_all(prompt, vocabulary) for prompt in prompts):
        return prompts, []
    names, kind = segmenter.learnt_for(seen)
    asked = dict.fromkeys(one for p in prompts for one in (names if asks_all(p, vocabulary) else (p,)))
    return tuple(asked), [f"asked for all that was learnt in {kind}: {', '.join(names)}"]


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _finished(place: Path, scan: Found, doing: Doing) -> dict[str, Any] | None:
    """The entry of a case that was finished before, of this scan, request and model, every file whole; or None.

    It is "done" if this very run did it, else "skipped".
    """
    entry = read_case(place)
    if entry is None or entry["sha256"] != scan.digest or any(entry.get(k) != v for k, v in doing.signature.items()):
        return None
    try:
        whole = all(sha256_of(place / name) == digest for name, digest in entry["written"].items())
    except OSError:
        return None
    status = "done" if entry.get("run") == doing.run else "skipped"
    return (
        {k: v for k, v in entry.items() if k not in (*doing.signature, "run")} | {"status": status} if whole else None
    )
