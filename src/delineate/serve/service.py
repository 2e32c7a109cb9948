"""The work on one scan, from the file that was sent to the zip that is sent back, and all that a server has for it."""

import logging
import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from delineate import __version__
from delineate.errors import ScanError
from delineate.jobs.segment import SegmentRequest, proposed, scan_of, written
from delineate.review.asking import Answering
from delineate.review.uploads import MOST_VOXELS, SUFFIXES, UploadError, suffix_sent
from delineate.scans.dicom.source import DICOM_SUFFIXES
from delineate.scans.finding import Found, Kind, digest_of
from delineate.scans.scan import VOLUME_SUFFIXES, stem_of
from delineate.serve.metrics import Metrics
from delineate.serve.packed import ZIP, unpack_dicom
from delineate.serve.places import Errand, Places
from delineate.serve.results import Results
from delineate.serve.worker import Turnstile, Worker
from delineate.storage.files import write_json
from delineate.storage.hidden import without_hidden
from delineate.storage.memory import OutOfMemory, in_smaller_batches, is_out_of_memory
from delineate.storage.places import CASE, case_folder_name

if TYPE_CHECKING:
    from delineate.review.monai_desk import OnStep
    from delineate.segmenter import Segmenter

LOG = logging.getLogger(__name__)
TAKEN = (*SUFFIXES, *DICOM_SUFFIXES, ZIP)
AT_ONCE = 3  # scans in memory: one is read, one computed, one written
UNPACKED = 4  # times what may be sent may come out of a zip
SENT = "the scan that was sent"
PACKED = (".gz", ".png")  # files that a zip takes as they are


@dataclass(frozen=True)
class Limits:
    """What a server takes upon itself.

    Attributes:
        places: requests that are worked on or wait.
        seconds: that one may take, waiting included.
        a_minute: requests that a token may make.
        upload: bytes of one.
        keep_seconds: how long answers of jobs are kept,
        keep_bytes: and how much they may take.
        grace: seconds that what has begun gets, once the server is to end.
    """

    places: int = 16
    seconds: float = 600.0
    a_minute: int = 600
    upload: int = 512 << 20
    keep_seconds: float = 3600.0
    keep_bytes: int = 4 << 30
    grace: float = 30.0


@dataclass(frozen=True)
class Sent:
    """A file that was sent, where it lies and how its sender calls it."""

    folder: Path
    path: Path
    name: str


class Service:
    """One model and those who wait for it.

    Attributes:
        answering: who answers.
        loaded: whether the model is in memory.
    """

    def __init__(self, answering: Answering, folder: Path, limits: Limits = Limits()):
        """A service that has `folder` for itself. Raises `OSError` where that cannot be written to."""
        self.answering, self.limits, self.loaded = answering, limits, False
        self.places = Places(limits.places, limits.seconds, limits.a_minute)
        self.results = Results(folder, limits.keep_seconds, limits.keep_bytes)
        self.worker, self.gate = Worker(), Turnstile(AT_ONCE)
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "ready": ("Whether the model is loaded and work is taken", lambda: float(self.ready)),
            "places_taken": ("Requests that are worked on or wait", lambda: self.places.taken),
            "places": ("Requests that may be worked on or wait", lambda: self.places.most),
            "waiting": ("Requests that wait for their turn", lambda: self.gate.waiting),
            "results_bytes": ("What the kept answers take on the disk", lambda: self.results.bytes),
        }
        about = {"version": __version__, "model": answering.model.name, "model_sha256": answering.model.fingerprint}
        self.metrics = Metrics(gauges, about)

    @property
    def ready(self) -> bool:
        """Whether work is taken and can be begun at once."""
        return self.loaded and not self.places.ending

    def load(self) -> None:
        """Have the model in memory. Raises `ModelError`."""
        self.worker(Errand("", float("inf")), lambda on_step: self.answering.segmenter())
        self.loaded = True

    @contextmanager
    def inside(self, errand: Errand) -> Iterator[None]:
        """Be one of the few whose scan is in memory."""
        with self.metrics.stage("wait"):
            passing = self.gate.passing(errand.check)
            passing.__enter__()
        try:
            yield
        finally:
            passing.__exit__(None, None, None)

    def compute(self, errand: Errand, work: Callable[["OnStep"], Any]) -> Any:
        """What `work` returns, done by the one that computes."""

        def timed(on_step: "OnStep") -> Any:
            with self.metrics.stage("compute"):
                return in_smaller_batches(lambda: work(on_step))

        return self.worker(errand, timed)

    def bring(self, errand: Errand, file: BinaryIO, name: str | None) -> Sent:
        """Put a file that was sent onto the disk. Raises `UploadError` where its name tells no format."""
        suffix = suffix_sent(name, TAKEN)
        folder = self.results.work / errand.id
        folder.mkdir(mode=0o700)
        sent = Sent(folder, folder / f"sent{suffix}", _shown(name or ""))
        try:
            with sent.path.open("wb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
        except OSError:  # the disk is full
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return sent

    def segment(self, errand: Errand, sent: Sent, request: SegmentRequest) -> Path:
        """A zip with all that `delineate segment` writes for a case; it lies in `results.work`, and nothing else does.

        Raises:
            UploadError: the scan cannot be read.
            PromptError: as the segmenter says.
            DelineateError: the errand was stopped, or took too long.
        """
        started = time.monotonic()
        try:
            with self.inside(errand):
                segmenter = self.answering.segmenter()
                with self.metrics.stage("read"):
                    found = self._found(sent)
                    digest, scan = digest_of(found.path), self._read(segmenter, found, request)
                proposals, said = self.compute(errand, lambda step: proposed(segmenter, scan, request, step))
                errand.check()
                with self.metrics.stage("write"):
                    case = sent.folder / "case"
                    case.mkdir()
                    told = written(segmenter, proposals, said, request, case, started)
                    entry = {
                        "case": case_folder_name(stem_of(Path(sent.name))),
                        "file": sent.name,
                        "sha256": digest,
                        "status": "done",
                        **told,
                        "delineate": __version__,
                        "request": request.to_json(),
                        **self.answering.asked,
                    }
                    write_json(case / CASE, _without(entry, sent))
                    return _zipped(case, self.results.work / f"{errand.id}{ZIP}")
        except ScanError as error:
            kind = OutOfMemory if isinstance(error, OutOfMemory) else UploadError
            raise kind(_plain(str(error), sent)) from error
        except Exception as error:
            if not is_out_of_memory(error) or isinstance(error, OutOfMemory):
                raise
            raise OutOfMemory("there is not enough memory for this; send a smaller scan, or ask for less") from error
        finally:
            shutil.rmtree(sent.folder, ignore_errors=True)

    def _found(self, sent: Sent) -> Found:
        if not sent.path.name.endswith(ZIP):
            return Found.at(sent.path)
        series = sent.folder / "series"
        unpack_dicom(sent.path, series, UNPACKED * self.limits.upload)
        return Found(series, "series", Kind.DICOM)

    def _read(self, segmenter: "Segmenter", found: Found, request: SegmentRequest) -> Any:
        flat = found.path.suffix and not found.path.name.endswith((*VOLUME_SUFFIXES, *DICOM_SUFFIXES))
        return scan_of(segmenter, found, request, MOST_VOXELS // (3 if flat else 1))

    def load_in_background(self, on_failure: Callable[[Exception], None]) -> None:
        """`load`, in a thread; what goes wrong is handed on."""

        def loading() -> None:
            try:
                self.load()
            except Exception as error:
                on_failure(error)

        threading.Thread(target=loading, daemon=True).start()


def _shown(name: str) -> str:
    """How the sender calls a file, as it may be repeated: without folders, and short."""
    return without_hidden(name.replace("\\", "/").rpartition("/")[2])[-120:] or "scan"


def _plain(line: str, sent: Sent) -> str:
    """A message without the places where the file lies here."""
    for path in (sent.path, sent.folder / "series"):
        line = line.replace(f"{path}/", f"{SENT}, ").replace(str(path), SENT)
    return line.replace(f"{sent.folder}/", "").replace(str(sent.folder), "")


def _without(entry: dict[str, Any], sent: Sent) -> dict[str, Any]:
    """An entry of `case.json`, its notes without those places."""
    return {**entry, "notes": [_plain(note, sent) for note in entry["notes"]]}


def _zipped(folder: Path, path: Path) -> Path:
    """The files of a folder in a zip."""
    with zipfile.ZipFile(path, "w") as packed:
        for file in sorted(folder.iterdir()):
            how = zipfile.ZIP_STORED if file.suffix in PACKED else zipfile.ZIP_DEFLATED
            packed.write(file, file.name, how, 1)
    return path
