"""One run over one or many scans: the model loaded once, finished cases skipped, one failure stopping nothing."""

import logging
import platform
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delineate import __version__
from delineate.errors import DelineateError
from delineate.jobs.statistics import STATISTICS, figures_of, rows_of, write_table
from delineate.prompts.listing import asks_all
from delineate.proposals.description import describe
from delineate.proposals.proposals import Proposals
from delineate.proposals.target import Outcome
from delineate.scans.channels import read_channels
from delineate.scans.finding import Found, Kind
from delineate.scans.reading import read_scan
from delineate.scans.scan import Scan
from delineate.storage.files import sha256_of, write_json
from delineate.storage.hidden import without_hidden
from delineate.storage.lines import Lines
from delineate.storage.memory import in_smaller_batches, is_out_of_memory
from delineate.storage.places import CASE, keep_of_people, place_for, read_case, refuse_if_reviewed
from delineate.storage.swapping import locked, make_folder, swapping, sweep

if TYPE_CHECKING:  # which imports torch
    from delineate.segmenter import Segmenter
    from delineate.systems.system import Seen

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """One of several equal parts of a cohort, to be worked on by as many commands.

    Attributes:
        number: from 1 on.
        of: how many there are.
    """

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """The part that "3/16" names. Raises `DelineateError` where it names none."""
        number, slash, of = text.partition("/")
        if not (slash and number.isascii() and of.isascii() and number.isdigit() and of.isdigit() and len(of) < 6):
            raise DelineateError(f"a part is written NUMBER/OF, as 3/16; got '{text}'")
        if not 1 <= int(number) <= int(of):
            raise DelineateError(f"the number of a part is from 1 to {of}; got '{text}'")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, index: int) -> bool:
        """Whether the scan with this index, from 0 on, is in it."""
        return index % self.of == self.number - 1


def report_name(part: Part | None) -> str:
    """The file that a command's report is written to."""
    return "run.json" if part is None else f"run-{part.number}-of-{part.of}.json"


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
    anyway: bool = False
    turn: bool = False

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
    part: Part | None = None,
    lay_out: Callable[[Path, str], None] = lambda place, name: None,
    on_case: Callable[[int, Found], None] = lambda number, scan: None,
    on_step: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """Segment every scan into `folder/<case>/` and return the report, also written to `folder/run.json` at the end.

    A case is built beside and put in place whole (`storage.swapping`), with the hash of each of its files in
    `case.json`. Whatever goes wrong with one is told of it, what an earlier run wrote there stays, and the next one is
    taken. Every case adds a line to `folder/run.jsonl`, which tells of all runs of this folder.

    Args:
        segmenter: that answers.
        scans: all of the cohort, with their names.
        request: what is asked of each.
        folder: to write to.
        model_hash: of the model, for the report, as is what follows.
        adapter_hash: of the adapter.
        calibration_hash: of the calibration.
        device: it runs on.
        resume: skip cases that were finished with the same request, and whose files are as they were written.
        part: of the scans, this one alone.
        lay_out: told where a finished case lies and what its scan is called, to lay its files out otherwise, too.
        on_case: told the number of a case before it begins, and
        on_step: the share of it that is done.

    Raises:
        BusyError: another run is at work in the folder.
        OutputError: the folder cannot be written to.
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
        "part": None if part is None else str(part),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(started)),
        "cases": [],
    }
    signature = {"request": report["request"]} | {k: v for k, v in report.items() if k.endswith("_sha256")}
    lines = Lines(folder / "run.jsonl", {"run": uuid.uuid4().hex[:12]})
    make_folder(folder)
    with locked(folder, "is at work in this folder", shared=part is not None):
        sweep(folder, keep_of_people)
        lines.add({name: value for name, value in report.items() if name != "cases"})
        for number, scan in enumerate(scans):
            if part is not None and not part.has(number):
                continue
            on_case(number, scan)
            entry = _case(segmenter, scan, request, folder, signature, resume, lay_out, on_step)
            LOG.info("%s: %s", entry["case"], without_hidden(_in_short(entry)))
            report["cases"].append(entry)
            lines.add(entry)
        report["seconds"] = round(time.time() - started, 2)
        counts = Counter(entry["status"] for entry in report["cases"])
        lines.add({"ended": {**counts}, "seconds": report["seconds"]})
        write_table(folder)
        write_json(folder / report_name(part), report)
    return report


def _case(
    segmenter: "Segmenter",
    scan: Found,
    request: SegmentRequest,
    folder: Path,
    signature: dict[str, Any],
    resume: bool,
    lay_out: Callable[[Path, str], None],
    on_step: Callable[[float], None],
) -> dict[str, Any]:
    """The entry of a case, whatever becomes of it."""
    name = scan.name
    try:
        place = place_for(folder, scan.name, scan.digest)
        name = place.name
        entry = _finished(place, scan, signature) if resume else None
        if entry is not None:
            lay_out(place, scan.name)
            return entry
        refuse_if_reviewed(place)
        changed = keep_of_people(place)
        with swapping(place, keep_of_people) as building:
            entry = in_smaller_batches(lambda: _segment_case(segmenter, scan, request, building, on_step))
            entry["case"] = name
            if name != scan.name:
                entry["notes"].append(f"'{scan.name}' holds the answers for another scan of that name: these are apart")
            entry["notes"] += [
                f"{was} was changed since it was written; the changed one is kept as {now}"
                for was, now in changed.items()
                if was != now
            ]
            write_json(building / CASE, {**entry, **signature})
        lay_out(place, scan.name)
        return entry
    except Exception as error:  # one case never ends the others
        if not isinstance(error, (DelineateError, OSError, MemoryError)) and not is_out_of_memory(error):
            trace = {"traceback": traceback.format_exc()}
            reason = f"{scan.path}: a fault of delineate ({type(error).__name__}: {error}); run.jsonl has the traceback"
        else:
            trace, reason = {}, str(error) or type(error).__name__
        if str(scan.path) not in reason:  # memory, say, does not know whose it was
            reason = f"{scan.path}: {reason}"
        return {"case": name, "file": str(scan.path), "status": "failed", "reason": " ".join(reason.split())} | trace


def _segment_case(
    segmenter: "Segmenter", found: Found, request: SegmentRequest, folder: Path, on_step: Callable[[float], None]
) -> dict[str, Any]:
    started = time.monotonic()
    digest, dicom = found.digest, found.kind is Kind.DICOM
    if channels := segmenter.habits.channels:
        scan = read_channels((found.path, *found.more), channels)
    else:
        options: dict[str, Any] = {"series": request.series, "fill_gaps": request.fill_gaps} if dicom else {}
        scan = read_scan(found, modality=request.modality, volume=request.volume, **options)
    seen, said = looked_at(segmenter, scan, turn=request.turn)
    how: dict[str, Any] = {"n": request.n, "seed": request.seed, "anyway": request.anyway}
    prompts, which = asked_of(segmenter, seen, request.prompts)
    proposals = segmenter(seen, prompts, **how, on_step=on_step)
    _empty(folder)  # of what was written before memory ran out
    written = [p.name for p in proposals.save(folder, how=request.how, maps=request.maps, **request.shares)]
    targets = describe(proposals, request.how, segmenter.habits.usual_doubt, request.shares)
    targets = [told | {"measured": one} for told, one in zip(targets, figures_of(proposals, request.how), strict=True)]
    write_json(folder / STATISTICS, {"targets": rows_of({"targets": targets})})
    written.append(STATISTICS)
    more = [*which, *said]
    if scan.dicom is not None and request.seg is not None:
        named, notes = _write_seg(proposals, request, folder, f"delineate {(segmenter.fingerprint or '')[:16]}".strip())
        written += named
        more += notes
    if request.pictures:
        from delineate.pictures import montage

        montage(proposals, folder / "montage.png", how=request.how)
        written.append("montage.png")
    return {
        "case": found.name,
        "file": str(found.path),
        **({"more_files": [str(path) for path in found.more]} if found.more else {}),
        "sha256": digest,
        "status": "done",
        "seconds": round(time.monotonic() - started, 2),
        "shape": list(scan.shape),
        "spacing_mm": [round(float(s), 4) for s in scan.spacing_mm],
        "notes": [*scan.notes, *more],
        "targets": targets,
        "written": {name: sha256_of(folder / name) for name in written},
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


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def _finished(place: Path, scan: Found, signature: dict[str, Any]) -> dict[str, Any] | None:
    """The entry of a case that was finished before, of this scan, request and model, every file whole; or None."""
    entry = read_case(place)
    if entry is None or entry["sha256"] != scan.digest or any(entry.get(k) != v for k, v in signature.items()):
        return None
    try:
        whole = all(sha256_of(place / name) == digest for name, digest in entry["written"].items())
    except OSError:
        return None
    return {k: v for k, v in entry.items() if k not in signature} | {"status": "skipped"} if whole else None
