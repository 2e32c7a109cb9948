"""A desk as MONAI Label's clients see it: what they may ask, the label maps they get, and those that they send back.

3D Slicer (`ImportLabelmapToSegmentationNode` with segment ids) takes value v of a label map for the v-th of the names
it is told, and clears the segments of all names it is told. So values run from 1 without a gap, and only names that
were asked are told.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from delineate import __version__
from delineate.errors import DelineateError, PromptError, ScanError
from delineate.prompts.marks import Marks
from delineate.prompts.prompt import LONGEST_PROMPT, Prompt
from delineate.prompts.understanding import understood
from delineate.prompts.vocabulary import unknown_prompt_message
from delineate.review import schema
from delineate.review.desk import Busy, Desk, Place
from delineate.review.runs import pack, toggles_of, xor
from delineate.review.uploads import Sessions
from delineate.review.work import NotHere
from delineate.scans.scan import Scan
from delineate.scans.writing import write_labels
from delineate.storage.files import safe_name
from delineate.storage.places import REVIEWS

if TYPE_CHECKING:
    from delineate.proposals.target import TargetProposals

WORDS, CLICKS = "delineate", "delineate-clicks"  # models: all names at once; one name with clicks
TOOL = "MONAI Label client"  # what history calls the tool that drew a label map

Extension = Literal[".nii.gz", ".nii", ".nrrd"]
Voxel = tuple[int, int, int]
Model = TypeVar("Model", bound=BaseModel)
OnStep = Callable[[float], None]
Compute = Callable[[Callable[[OnStep], Any]], Any]  # does what needs the model; it tells how far it is


class MonaiError(DelineateError):
    """A request that has the shape of MONAI Label's but cannot be answered."""


class Params(BaseModel):
    """What `infer` heeds of a client's "params"; the rest is its own affair.

    Attributes:
        prompt: names to segment, with commas between them; all that fit the scan where it is empty.
        label: the one name that clicks are about.
        foreground: voxels (i, j, k) inside it.
        background: voxels outside of it.
        proposals: how many a name; the label map shows their consensus.
        seed: of the proposals.
        result_extension: format of the label map.
    """

    prompt: Annotated[str, Field(max_length=5000), schema.Seen] = ""
    label: Annotated[str, Field(max_length=LONGEST_PROMPT), schema.Seen] = ""
    foreground: Annotated[list[Voxel], Field(max_length=schema.MOST_MARKS)] = []
    background: Annotated[list[Voxel], Field(max_length=schema.MOST_MARKS)] = []
    proposals: Annotated[int, Field(ge=1, le=64)] = 8
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] = 0
    result_extension: Extension = ".nii.gz"


class LabelName(BaseModel):
    """The name of a value in a label map that a client sends."""

    name: schema.Name
    idx: Annotated[int, Field(ge=1, le=2**31 - 1)]


class LabelParams(BaseModel):
    """What `datastore/label` heeds of a client's "params"."""

    label_info: Annotated[list[LabelName], Field(max_length=1000)] = []


class MonaiDesk:
    """A desk, the scans that clients sent to it, who is being answered, and which case each was given last."""

    def __init__(self, desk: Desk):
        self.desk, self.sessions = desk, Sessions()
        self._asking: set[str] = set()
        self._given: dict[str, str] = {}
        self._lock = Lock()

    @property
    def names(self) -> tuple[str, ...]:
        """All names that the model knows; the v-th has the value v where all are asked."""
        return self.desk.answering.vocabulary.names

    def saved(self, user: str, case: str) -> bool:
        """Whether a person has kept a mask of a case."""
        folder = self.desk.cases[case].folder / REVIEWS / safe_name(user) / "saved"
        return next(folder.glob("*.json"), None) is not None

    def status(self, user: str) -> dict[str, Any]:
        """How many cases there are and how many this person has kept masks of."""
        completed = sum(self.saved(user, case) for case in self.desk.cases)
        return {"total": len(self.desk.cases), "completed": completed, "label_tags": {"final": completed}}

    def next_case(self, user: str) -> str | None:
        """The next case, in turn, of which this person has not kept a mask."""
        cases = list(self.desk.cases)
        with self._lock:
            last = self._given.get(user)
            start = cases.index(last) + 1 if last in cases else 0
            found = next((case for case in cases[start:] + cases[:start] if not self.saved(user, case)), None)
            if found is not None:
                self._given[user] = found
            return found

    @contextmanager
    def turn(self, user: str) -> Iterator[None]:
        """The model to oneself. One question a person, so that nobody fills the queue; raises `Busy`."""
        with self._lock:
            if user in self._asking:
                raise Busy("a question of yours is being answered; wait for it")
            self._asking.add(user)
        try:
            held = self.desk.answering.turn(lambda: None)
            try:
                yield
            finally:
                held.release()
        finally:
            with self._lock:
                self._asking.discard(user)

    def prompts(self, model: str, params: Params, scan: Scan) -> list[Prompt]:
        """What is asked, in the order of the label map's values.

        Raises:
            NotHere: no such model.
            PromptError, MonaiError: the words, or the marks, name nothing.
        """
        if model == CLICKS:
            if not params.foreground and not params.background:
                raise MonaiError("clicks are needed: place one inside the target, or use the model for words")
            return [Prompt(params.label, Marks(tuple(params.foreground), tuple(params.background)))]
        if model != WORDS:
            raise NotHere(f"no such model here; there are {WORDS} and {CLICKS}")
        if asked := list(dict.fromkeys(word.strip() for word in params.prompt.split(",") if word.strip())):
            meant = {word: understood(word, self.desk.answering.vocabulary, scan.modality).targets for word in asked}
            named = {name: None for word in asked for name in (meant[word] if len(meant[word]) > 1 else (word,))}
            return [Prompt(name) for name in named]
        concepts = self.desk.answering.vocabulary.concepts
        fitting = [c for c in concepts if scan.modality is None or not c.modalities or scan.modality in c.modalities]
        if not fitting:
            raise MonaiError(f"the model knows no names for {scan.modality}; give some in 'prompt'")
        return [Prompt(concept.name) for concept in fitting]

    def alone(self, user: str, work: Callable[[OnStep], Any]) -> Any:
        """What `work` returns, with the model to itself (`turn`)."""
        with self.turn(user):
            return work(lambda share: None)

    def infer(
        self, key: str, scan: Scan, model: str, params: Params, compute: Compute
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """The label map, uint16 (I, J, K), and what is told of it.

        Where two targets claim a voxel the more probable one has it, as in `Proposals.label_map`; names are asked one
        after another, so that the proposals of one name at a time are in memory. A name that does not fit the scan
        stays empty, and the answer says why.

        Raises:
            PromptError, MonaiError: as `prompts`; or none of the names fits the scan.
        """
        prompts = self.prompts(model, params, scan)
        everything = model == WORDS and not params.prompt.strip(", ")
        names = self.names if everything else tuple(prompt.text for prompt in prompts)
        labels, best, told = np.zeros(scan.shape, np.uint16), np.zeros(scan.shape, np.float32), []
        started = time.monotonic()

        def draw(on_step: OnStep) -> None:
            segmenter = self.desk.answering.segmenter()
            on_step(0.0)
            seen = self.desk.answering.seen(key, scan)
            for prompt in prompts:
                more = {"n": params.proposals, "seed": params.seed, "on_step": on_step}
                target = segmenter(seen, [prompt], **more).targets[0]
                if target.name is None:
                    raise PromptError(unknown_prompt_message(prompt.text, target.nearest))
                told.append(_told(target))
                if target.outcome == "found":
                    probability = target.probability()
                    wins = target.consensus() & (probability > best)
                    labels[wins], best[wins] = names.index(prompt.text) + 1, probability[wins]

        compute(draw)
        if all(one["misfit"] and one["doubt"] is None for one in told):
            raise MonaiError("; ".join(f"'{one['prompt']}': {one['misfit']}" for one in told))
        values = {name: value for value, name in enumerate(names, start=1)}
        seconds = {"total": round(time.monotonic() - started, 2)}
        return labels, {"label_names": values, "latencies": seconds, "answers": told}

    def keep(self, place: Place, labels: np.ndarray, info: Sequence[LabelName]) -> list[str]:
        """Put a label map into a person's layers by name, and save those; the names of the layers."""
        named = {one.idx: one.name for one in info} or dict(enumerate(self.names, start=1))
        present = set(np.unique(labels).tolist()) - {0}
        with place.lock:
            ids = {layer.name: layer.id for layer in place.work.layers}
            kept: dict[str, str] = {}
            for value in sorted(present | set(named)):
                name = named.get(value, f"label {value}")
                if value not in present and name not in ids:
                    continue
                if name not in ids:
                    adding = schema.AddLayer(kind="add_layer", name=name)
                    request = schema.ActionRequest(revision=place.work.revision, action=adding)
                    ids[name] = place.act(request).changed[0]
                flips = xor(place.work.layer(ids[name]).toggles, toggles_of(labels == value))
                if len(flips):
                    event = place.log.append("paint", layer=ids[name], detail={"tool": TOOL}, flips=pack(flips))
                    place.work.apply(event)
                kept[name] = ids[name]
            if kept:
                place.save(schema.SaveRequest(layers=list(kept.values())))
            return list(kept)


def _told(target: "TargetProposals") -> dict[str, Any]:
    return {
        "prompt": target.prompt.text,
        "target": target.name,
        "outcome": str(target.outcome),
        "score": round(target.score, 4),
        "doubt": None if target.drawn is None else round(target.doubt, 4),
        "misfit": target.misfit or None,
    }


def read_params(kind: type[Model], text: str) -> Model:
    """The "params" of a client, checked. Raises `MonaiError` in one line."""
    try:
        return kind.model_validate_json(text or "{}")
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("params", *first["loc"])))
        raise MonaiError(f"{place}: {first['msg']}"[:500]) from None


def label_file(labels: np.ndarray, scan: Scan, extension: Extension) -> bytes:
    """A label map on the scan's grid as the bytes of a file."""
    folder = Path(tempfile.mkdtemp(prefix="delineate-"))
    try:
        path = folder / ("label.nii.gz" if extension == ".nrrd" else f"label{extension}")
        write_labels(path, labels, scan)
        if extension == ".nrrd":
            import SimpleITK

            path, nifti = folder / "label.nrrd", path
            SimpleITK.WriteImage(SimpleITK.ReadImage(str(nifti)), str(path), useCompression=False)
        return path.read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def seg_file(labels: np.ndarray, scan: Scan, names: dict[str, int]) -> bytes:
    """A label map as a DICOM SEG. Raises `MonaiError` where the scan is no DICOM series or nothing was found."""
    masks = {name: labels == value for name, value in names.items() if (labels == value).any()}
    if getattr(scan, "dicom", None) is None or not masks:
        raise MonaiError("a DICOM SEG needs a DICOM series and something found in it; ask for output=image")
    from delineate.scans.dicom.seg import write_seg

    folder = Path(tempfile.mkdtemp(prefix="delineate-"))
    try:
        path = folder / "label.dcm"
        write_seg(path, masks, scan, algorithm=f"delineate {__version__}")
        return path.read_bytes()
    except ScanError as error:
        raise MonaiError(str(error).replace(f"{folder}/", "")) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
