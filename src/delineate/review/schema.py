"""What goes over the wire: requests, bounded in every list and text, and answers. The page's contract."""

from typing import Annotated, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from delineate.prompts.prompt import LONGEST_PROMPT
from delineate.storage.hidden import hidden_in

MOST_RUNS = 500_000  # of one stroke
MOST_MARKS = 10_000
LARGEST = 2**32 - 1


def _all_seen(text: str) -> str:
    if (found := hidden_in(text)) is not None:
        raise PydanticCustomError(
            "hidden_character",
            "every character must be one that is seen, found {found}; leave it out",
            {"found": found},
        )
    return text


Seen = AfterValidator(_all_seen)
SEEN = Field(  # the same for clients, as far as a pattern can tell it
    json_schema_extra={
        "pattern": r"^[^\u0000-\u001f\u007f-\u009f\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]*$"
    }
)
Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=80), Seen, SEEN]
Id = Annotated[str, StringConstraints(pattern=r"^[a-z][0-9]{1,9}$")]
Index = Annotated[int, Field(ge=0, le=LARGEST, strict=True)]
Proposal = Annotated[int, Field(ge=0, le=63, strict=True)]
How = Literal["replace", "add", "subtract", "intersect"]
Unit = Literal["ml", "pixels"]
Format = Literal["nifti", "png", "seg"]


Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=LONGEST_PROMPT), Seen, SEEN]


class Exact(BaseModel):
    """A model that knows all its fields."""

    model_config = ConfigDict(extra="forbid")


class Problem(Exact):
    """What went wrong, in one line."""

    detail: str


class Window(Exact):
    """Grey values from black to white."""

    name: str
    low: float
    high: float


class CaseInfo(Exact):
    """A scan to be looked at. `intensity` are its smallest and largest value."""

    id: str
    name: str
    flat: bool
    colour: bool
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    has_spacing: bool
    axis_codes: str
    modality: str | None
    notes: list[str]
    intensity: tuple[float, float]
    windows: list[Window]
    dicom: bool


class Listed(Exact):
    """A case that nobody has opened yet, so that little is known of it."""

    id: str
    name: str


class Term(Exact):
    """What the model can be asked for."""

    name: str
    synonyms: list[str]
    modalities: list[str]


class Model(Exact):
    """What answers."""

    name: str
    fingerprint: str


class Session(Exact):
    """Who is here and what there is."""

    user: str
    version: str
    model: Model | None
    cases: list[CaseInfo | Listed]
    vocabulary: list[Term]


class LayerInfo(Exact):
    """A mask by name; `saved` says whether it is on disk as it is now."""

    id: str
    name: str
    colour: int
    voxels: int
    volume: float
    unit: Unit
    saved: bool


class Distinct(Exact):
    """A proposal that stands for a group of them."""

    proposal: int
    weight: float
    agreement: float = Field(validation_alias=AliasChoices("agreement", "quality"))  # as answers of before call it
    spread: float
    volume: float


class Interval(Exact):
    """Where the true volume lies."""

    low: float
    high: float
    level: float
    calibrated: bool


class Expected(Exact):
    """What Dice the consensus can expect, by held-out subjects."""

    dice: float
    low: float
    high: float
    level: float
    subjects: int


class DoubtfulSlices(Exact):
    """Where most of the doubt is."""

    axis: int
    slices: list[int]
    shares: list[float]


class Mark(Exact):
    """A voxel that a person says is inside, or outside."""

    voxel: tuple[Index, Index, Index]
    positive: bool


class Candidate(Exact):
    """Where a target that is likely absent would be if anywhere."""

    axis: int
    slice: int
    probability: float
    slices_searched: int


class AnswerInfo(Exact):
    """What the model said."""

    id: str
    prompt: str
    target: str | None
    outcome: Literal["found", "likely absent", "unknown prompt", "not learnt here", "scan unlike any known"]
    score: float
    nearest: list[str]
    understood: str | None = None  # of answers of before there is none
    message: str | None
    agreement: float | None = Field(None, validation_alias=AliasChoices("agreement", "quality"))
    expected_dice: Expected | None = None
    uncalibrated: str | None = None
    why: str | None = None
    doubt: float | None
    proposals: int
    distinct: list[Distinct]
    volume: float | None
    unit: Unit
    interval: Interval | None
    doubtful_slices: DoubtfulSlices | None
    candidate: Candidate | None = None
    misfit: str | None = None
    seed: int
    marks: list[Mark]
    refines: str | None
    seconds: float


class Meant(Exact):
    """What words ask for: names to ask one by one, how they were taken, and names that resemble unknown words."""

    targets: list[str]
    said: str
    nearest: list[str]


class Ask(Exact):
    """A question on its way; `share` is the part of the work that is done."""

    id: str
    prompt: str
    state: Literal["running", "done", "cancelled", "failed"]
    share: float
    answer: str | None
    message: str | None


class Event(Exact):
    """One line of history."""

    n: int
    time: str
    kind: str
    layer: str | None
    text: str


class WorkInfo(Exact):
    """All that a page shows of a case."""

    case: CaseInfo
    revision: int
    layers: list[LayerInfo]
    answers: list[AnswerInfo]
    running: Ask | None
    undo: str | None
    redo: str | None
    history: list[Event]


class Changed(WorkInfo):
    """The work after an action, and which layers to fetch again."""

    changed: list[str]


class Conflict(Problem):
    """The action was made for an older revision: here is the present one."""

    work: WorkInfo


class AskRequest(Exact):
    """A question. A correction is a new one, with `marks`, that `refines` an earlier answer."""

    prompt: Words
    proposals: Annotated[int, Field(ge=1, le=64, strict=True)] = 8
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)] = 0
    marks: Annotated[list[Mark], Field(max_length=MOST_MARKS)] = []
    refines: Id | None = None
    anyway: bool = False


class AddLayer(Exact):
    """A new, empty layer."""

    kind: Literal["add_layer"]
    name: Name


class RenameLayer(Exact):
    """Another name."""

    kind: Literal["rename_layer"]
    layer: Id
    name: Name


class RemoveLayer(Exact):
    """Take a layer away; undo brings it back."""

    kind: Literal["remove_layer"]
    layer: Id


class Pick(Exact):
    """A proposal, or the consensus, of an answer into a layer; without one, into a new layer."""

    kind: Literal["pick"]
    answer: Id
    proposal: Proposal | None = None
    layer: Id | None = None
    how: How = "replace"


class Combine(Exact):
    """Several proposals of an answer as one mask; a layer's content is replaced by it."""

    kind: Literal["combine"]
    answer: Id
    proposals: Annotated[list[Proposal], Field(min_length=1, max_length=64)]
    how: Literal["union", "intersection", "majority"]
    layer: Id | None = None


class Paint(Exact):
    """Voxels whose membership changes, as (start, length) in the flattened scan."""

    kind: Literal["paint"]
    layer: Id
    flips: Annotated[
        list[tuple[Index, Annotated[int, Field(ge=1, le=LARGEST, strict=True)]]],
        Field(min_length=1, max_length=MOST_RUNS),
    ]
    tool: Literal["brush", "eraser", "fill"]


class FillBetween(Exact):
    """Fill the gaps between drawn slices of an axis."""

    kind: Literal["fill_between"]
    layer: Id
    axis: Literal[0, 1, 2]


class Smooth(Exact):
    """Take details away that are smaller than the radius."""

    kind: Literal["smooth"]
    layer: Id
    radius_mm: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]


class Whole(Exact):
    """A change of a whole layer that needs no numbers."""

    kind: Literal["keep_largest", "fill_holes", "clear"]
    layer: Id


class Step(Exact):
    """Back, or forth again."""

    kind: Literal["undo", "redo"]


Action = Annotated[
    AddLayer | RenameLayer | RemoveLayer | Pick | Combine | Paint | FillBetween | Smooth | Whole | Step,
    Field(discriminator="kind"),
]


class ActionRequest(Exact):
    """An action, and the revision of the work that it was made for."""

    revision: Annotated[int, Field(ge=0, le=LARGEST, strict=True)]
    action: Action


class SaveRequest(Exact):
    """Which layers to save (all) and how (as the scan asks for)."""

    layers: Annotated[list[Id], Field(min_length=1, max_length=1000)] | None = None
    format: Format | None = None


class SavedFile(Exact):
    """A file that was written."""

    name: str
    layer: str
    sha256: str
    bytes: int


class Saved(Exact):
    """What was written, and where."""

    files: list[SavedFile]
    folder: str
