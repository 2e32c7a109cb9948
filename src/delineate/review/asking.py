"""A question on its way: the model, loaded when first needed, and a thread a question with progress and cancel."""

import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delineate.errors import DelineateError
from delineate.prompts.marks import Marks
from delineate.prompts.prompt import Prompt
from delineate.prompts.vocabulary import Vocabulary
from delineate.review.answers import Answer, save_answer
from delineate.review.schema import Ask, AskRequest, Model

if TYPE_CHECKING:
    from delineate.proposals.proposals import Proposals
    from delineate.proposals.target import TargetProposals
    from delineate.scans.scan import Scan
    from delineate.segmenter import Segmenter
    from delineate.systems.system import Seen

DRAWN = 0.9  # of the work is done when all proposals are drawn; then they are looked through and written
MOST_KEPT = 2**30  # bytes of the last answer in words, kept for marks that follow; as many of the last with marks


class Answering:
    """Who answers: a segmenter, loaded when the first question comes, one question at a time.

    Attributes:
        model: its name and fingerprint.
        vocabulary: what it can be asked for, known without loading it.
        asked: what provenance tells of it: hashes of model, adapter and calibration.
    """

    def __init__(self, load: Callable[[], "Segmenter"], vocabulary: Vocabulary, model: Model, asked: Mapping[str, Any]):
        """Answers come from what `load` returns; it is called once."""
        self.vocabulary, self.model, self.asked = vocabulary, model, asked
        self._load = load
        self._loaded: Segmenter | None = None
        self._seen: tuple[str, Seen] | None = None
        self._words: tuple[tuple[str, Prompt, int, int, bool], Proposals] | None = None
        self._marked: tuple[TargetProposals, ...] = ()  # the last answer with marks to the same words
        self._loading, self._busy = threading.Lock(), threading.Lock()

    def segmenter(self) -> "Segmenter":
        """The segmenter.

        Raises:
            ModelError: its folder is damaged.
        """
        with self._loading:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def seen(self, case: str, scan: "Scan") -> "Seen":
        """The scan of a case as the segmenter sees it; that of the last case is kept. Not for two threads at once."""
        if self._seen is None or self._seen[0] != case:
            self._seen = None  # two at once would be too much
            self._seen = case, self.segmenter().look(scan)
        return self._seen[1]

    def answer(
        self,
        case: str,
        scan: "Scan",
        prompt: Prompt,
        n: int,
        seed: int,
        on_step: Callable[[float], None],
        anyway: bool = False,
    ) -> "Proposals":
        """The proposals for a prompt. Not for two threads at once.

        The scan as it was seen, the last answer in words and the last with marks are kept, so that the next mark costs
        as little as it can.

        Args:
            case: the id of the scan's case.
            scan: what is asked about.
            prompt: in words, or with marks.
            n: proposals.
            seed: of the proposals.
            on_step: told the share of the work that is done; whatever it raises ends the work.
            anyway: whether to draw what does not fit the scan, too.
        """
        segmenter = self.segmenter()
        on_step(0.0)
        seen = self.seen(case, scan)
        on_step(0.0)
        words = replace(prompt, marks=None)
        asked = case, words, n, seed, anyway
        if self._words is not None and self._words[0] == asked:
            answer = self._words[1]
        else:
            self._words, self._marked = None, ()
            answer = segmenter(seen, [words], n=n, seed=seed, anyway=anyway, on_step=on_step)
            if lies := segmenter.lies(seen):
                said = f"{lies}; the file says otherwise, and masks may be wrong"
                told = (replace(t, said="; ".join(filter(None, (t.said, said)))) for t in answer)
                answer = replace(answer, targets=tuple(told))
            if sum(0 if t.drawn is None else t.drawn.nbytes for t in answer) <= MOST_KEPT:
                self._words = asked, answer
        if prompt.marks is None:
            return answer
        earlier = replace(answer, targets=answer.targets + self._marked)
        marked = segmenter(seen, [prompt], n=n, seed=seed, earlier=earlier, on_step=on_step)
        if self._words is not None:
            self._marked = marked.targets
        return marked

    def turn(self, cancelled: Callable[[], None]) -> threading.Lock:
        """The lock under which a question is answered, taken; `cancelled` is called while waiting for it."""
        while not self._busy.acquire(timeout=0.1):
            cancelled()
        return self._busy


class _Cancelled(Exception):
    pass


@dataclass
class Asking:
    """One question, its thread and its state.

    Attributes:
        id: for ever the same.
        request: what is asked.
        state: running, done, cancelled or failed.
        share: of the work that is done.
        answer: the id of the answer, once it is done.
        message: why it failed.
    """

    id: str
    request: AskRequest
    state: str = "running"
    share: float = 0.0
    answer: str | None = None
    message: str | None = None
    _stop: threading.Event = field(default_factory=threading.Event)
    _ended: threading.Event = field(default_factory=threading.Event)

    def start(
        self, answering: Answering, case: str, scan: Callable[[], "Scan"], folder: Path, keep: Callable[[Answer], None]
    ) -> None:
        """Begin, in a thread of its own.

        Args:
            answering: who answers.
            case: the id of the case.
            scan: reads the scan.
            folder: of the answer, to be made.
            keep: called with the answer before the state is "done".
        """
        thread = threading.Thread(target=self._run, args=(answering, case, scan, folder, keep), daemon=True)
        thread.start()

    def cancel(self) -> None:
        """Ask it to stop; it does so at its next step."""
        self._stop.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Whether it ends within so many seconds."""
        return self._ended.wait(seconds)

    def told(self) -> Ask:
        """Its state as JSON has it."""
        return Ask(
            id=self.id,
            prompt=self.request.prompt,
            state=self.state,  # type: ignore[arg-type]  # checked by the model
            share=round(self.share, 3),
            answer=self.answer,
            message=self.message,
        )

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Cancelled

    def _on_step(self, share: float) -> None:
        self._check()
        self.share = max(self.share, DRAWN * min(1.0, share))

    def _run(
        self, answering: Answering, case: str, scan: Callable[[], "Scan"], folder: Path, keep: Callable[[Answer], None]
    ) -> None:
        try:
            answer = self._answered(answering, case, scan, folder)
            keep(answer)
            self.answer, self.share = answer.info.id, 1.0
            self.state = "done"
        except _Cancelled:
            self.state = "cancelled"
        except (DelineateError, OSError) as error:
            self._fail(" ".join(str(error).split()))
        except MemoryError:
            self._fail("there is not enough memory for this; ask for fewer proposals")
        except Exception as error:  # a bug of ours ends a question, not the server, and is told in the same line
            self._fail(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        finally:
            if self.state != "done":
                shutil.rmtree(folder, ignore_errors=True)  # what was written before it went wrong
            self._ended.set()

    def _fail(self, message: str) -> None:
        self.message = message
        self.state = "failed"

    def _answered(self, answering: Answering, case: str, scan: Callable[[], "Scan"], folder: Path) -> Answer:
        started = time.monotonic()
        prompt = prompt_of(self.request)
        turn = answering.turn(self._check)
        try:
            n, seed = self.request.proposals, self.request.seed
            proposals = answering.answer(case, scan(), prompt, n, seed, self._on_step, self.request.anyway)
        finally:
            turn.release()
        return save_answer(
            folder,
            proposals,
            marks=self.request.marks,
            refines=self.request.refines,
            seed=seed,
            started=started,
            asked=answering.asked,
        )


def prompt_of(request: AskRequest) -> Prompt:
    """The prompt of a request, with its marks.

    Raises:
        PromptError: a voxel is marked as both inside and outside.
    """
    voxels = {sign: tuple(m.voxel for m in request.marks if m.positive is sign) for sign in (True, False)}
    return Prompt(request.prompt, Marks(voxels[True], voxels[False]) if request.marks else None)
