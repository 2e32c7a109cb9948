"""Everything a running server holds: the cases, who answers, and for every person and case a place to work at."""

import shutil
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from threading import Lock, RLock

from delineate import __version__
from delineate.errors import DelineateError, PromptError
from delineate.prompts.understanding import in_words, understood
from delineate.review import schema
from delineate.review.actions import event_of
from delineate.review.answers import ANSWER, Answer, read_answer
from delineate.review.asking import Answering, Asking, prompt_of
from delineate.review.cases import ReviewCase
from delineate.review.log import Log
from delineate.review.saving import Source, save_layers
from delineate.review.work import Layer, NotHere, Work
from delineate.storage.files import safe_name, write_json
from delineate.storage.places import REVIEWS, SCAN

HISTORY = 50
PATIENCE = 5.0  # seconds that a question gets to stop in
ASKS_KEPT = 50  # states of questions that ended


class Stale(DelineateError):
    """An action was made for another revision than the present one."""


class Busy(DelineateError):
    """A question is being answered already."""


class Place:
    """The work of one person on one case. Whatever changes it holds `lock`; what is told is on the disk.

    Raises:
        LogError: the event log is damaged or open elsewhere.
        ScanError: the scan cannot be read, or an answer is damaged.
    """

    def __init__(self, case: ReviewCase, user: str, answering: Answering):
        self.case, self.user, self.answering = case, user, answering
        self.lock = RLock()
        self.info = case.info
        self.folder = case.folder / REVIEWS / safe_name(user)
        self.log = Log(self.folder / "events.jsonl")
        try:
            write_json(self.folder / SCAN, {"sha256": case.digest, "file": case.file.name})
            self.work = Work(self.info.shape, self.log.events)
            self.answers = {answer.info.id: answer for answer in case.earlier} | self._own_answers()
        except BaseException:
            self.log.close()
            raise
        self.asks: dict[str, Asking] = {}
        self._numbers = max((int(name[1:]) for name in self.answers if name.startswith("a")), default=0)

    def _own_answers(self) -> dict[str, Answer]:
        found = {}
        for folder in sorted((self.folder / "answers").glob("a*"), key=lambda f: (len(f.name), f.name)):
            if (folder / ANSWER).is_file():
                found[folder.name] = read_answer(folder)
            else:
                shutil.rmtree(folder)  # the server was stopped while it was written
        return found

    @cached_property
    def voxel(self) -> float:
        """The volume of a voxel in `unit`."""
        i, j, k = self.info.spacing_mm
        return 1.0 if self.info.flat else i * j * k / 1000

    @property
    def running(self) -> Asking | None:
        """The question that is being answered."""
        return next((ask for ask in self.asks.values() if ask.state == "running"), None)

    def told(self) -> schema.WorkInfo:
        """All that a page shows."""
        with self.lock:
            running, work = self.running, self.work
            return schema.WorkInfo(
                case=self.info,
                revision=work.revision,
                layers=[self._layer(layer) for layer in work.layers],
                answers=[answer.info for answer in self.answers.values()],
                running=None if running is None else running.told(),
                undo=work.next_text("undo"),
                redo=work.next_text("redo"),
                history=[
                    schema.Event(
                        n=past.event["n"],
                        time=past.event["time"],
                        kind=past.event["kind"],
                        layer=past.event.get("layer"),
                        text=past.text,
                    )
                    for past in work.past[-HISTORY:]
                ],
            )

    def _layer(self, layer: Layer) -> schema.LayerInfo:
        return schema.LayerInfo(
            id=layer.id,
            name=layer.name,
            colour=layer.colour,
            voxels=layer.voxels,
            volume=round(layer.voxels * self.voxel, 3),
            unit="pixels" if self.info.flat else "ml",
            saved=layer.saved,
        )

    def act(self, request: schema.ActionRequest) -> schema.Changed:
        """Do an action; once this returns it is on the disk.

        Raises:
            Stale: the work is not as the action takes it to be.
            NotHere, RunsError, WorkError, ScanError: see `actions.event_of`.
            OSError: it cannot be written; nothing has changed.
        """
        with self.lock:
            if request.revision != self.work.revision:
                raise Stale(f"the case is at revision {self.work.revision}, the action was for {request.revision}")
            event = event_of(request.action, self.work, self.answers, self.info.spacing_mm)
            changed = []
            if event is not None:
                about = event.get("layer") or self.work.past[event["of"] - 1].event["layer"]
                self.work.apply(self.log.append(**event))
                changed = [about]
            return schema.Changed(**dict(self.told()), changed=changed)

    def meant(self, words: str) -> schema.Meant:
        """What words ask the model for, in a scan of this kind."""
        found = understood(words, self.answering.vocabulary, self.info.modality)
        return schema.Meant(targets=list(found.targets), said=found.said, nearest=list(found.nearest))

    def ask(self, request: schema.AskRequest) -> Asking:
        """Begin to answer a question.

        Raises:
            Busy: another one is being answered.
            NotHere: the answer that it refines is not here.
            PromptError: marks outside of the scan, or of both signs; or several targets.
        """
        if len(several := self.meant(request.prompt).targets) > 1:
            raise PromptError(f"'{request.prompt}' is {in_words(several)}; ask for one after another")
        with self.lock:
            if self.running is not None:
                raise Busy(f"'{self.running.request.prompt}' is being answered; wait for it, or cancel it")
            if request.refines is not None and request.refines not in self.answers:
                raise NotHere(f"no answer '{request.refines}' here; look at the case again")
            if (marks := prompt_of(request).marks) is not None:
                marks.check(self.info.shape)
            self._numbers += 1
            asking = Asking(f"q{self._numbers}", request)
            while len(self.asks) >= ASKS_KEPT:
                del self.asks[next(iter(self.asks))]
            self.asks[asking.id] = asking
            folder = self.folder / "answers" / f"a{self._numbers}"
            asking.start(self.answering, self.case.id, self.case.scan, folder, self._keep)
            return asking

    def save(self, request: schema.SaveRequest) -> schema.Saved:
        """Write layers with their provenance; once this returns they are on the disk.

        Raises:
            NotHere: no such layer.
            SavingError, ScanError: the scan cannot be written in this format.
            OSError: it cannot be written.
        """
        with self.lock:
            ids = request.layers or [layer.id for layer in self.work.layers]
            layers = [self.work.layer(layer) for layer in dict.fromkeys(ids)]
            folder = self.folder / "saved"
            about = Source(self.case, self.case.scan(), self.user, self.answers)
            files, detail = save_layers(folder, layers, self.work, about, request.format)
            if detail:
                self.work.apply(self.log.append("saved", detail={"layers": detail}))
            return schema.Saved(files=files, folder=str(folder.relative_to(self.case.folder.parent)))

    def _keep(self, answer: Answer) -> None:
        with self.lock:
            self.answers[answer.info.id] = answer

    def asking(self, ask: str) -> Asking:
        """A question by its id.

        Raises:
            NotHere: it was not asked here, or long ago.
        """
        if ask not in self.asks:
            raise NotHere(f"no question '{ask}' here; look at the case again")
        return self.asks[ask]

    def answer(self, answer: str) -> Answer:
        """An answer by its id.

        Raises:
            NotHere: it was not given here.
        """
        if answer not in self.answers:
            raise NotHere(f"no answer '{answer}' here; look at the case again")
        return self.answers[answer]

    def cancel(self) -> list[Asking]:
        """Stop what is running; the questions that have not ended yet."""
        running = [ask for ask in list(self.asks.values()) if not ask.wait(0)]
        for ask in running:
            ask.cancel()
        return running

    def close(self) -> None:
        """Let go of the log."""
        with self.lock:
            self.log.close()


class Desk:
    """The cases of a server and the places of its users.

    Attributes:
        cases: by id.
        answering: who answers.
    """

    def __init__(self, cases: Sequence[ReviewCase], answering: Answering):
        self.cases: Mapping[str, ReviewCase] = {case.id: case for case in cases}
        self.answering = answering
        self._places: dict[tuple[str, str], Place] = {}
        self._opening: dict[tuple[str, str], Lock] = {}
        self._lock = Lock()

    def place(self, user: str, case: str) -> Place:
        """Where a person works on a case; it is opened when it is first asked for.

        Raises:
            NotHere: no such case.
            ScanError, LogError: it cannot be opened.
        """
        if case not in self.cases:
            raise NotHere(f"no case '{case}' here; the session lists those there are")
        with self._lock:
            opening = self._opening.setdefault((user, case), Lock())
        with opening:  # reading a large scan holds up nobody else
            if (user, case) not in self._places:
                self._places[user, case] = Place(self.cases[case], user, self.answering)
            return self._places[user, case]

    def session(self, user: str) -> schema.Session:
        """Who is here and what there is."""
        return schema.Session(
            user=user,
            version=__version__,
            model=self.answering.model,
            cases=[
                case.info if case.opened else schema.Listed(id=case.id, name=case.name) for case in self.cases.values()
            ],
            vocabulary=[
                schema.Term(name=c.name, synonyms=list(c.synonyms), modalities=list(c.modalities))
                for c in self.answering.vocabulary.concepts
            ],
        )

    def close(self) -> bool:
        """Stop what is running and let go of every log; whether all has ended after `PATIENCE`."""
        places = list(self._places.values())
        running = [ask for place in places for ask in place.cancel()]
        until = time.monotonic() + PATIENCE
        ended = all(ask.wait(max(0.0, until - time.monotonic())) for ask in running)
        for place in places:
            place.close()
        return ended
