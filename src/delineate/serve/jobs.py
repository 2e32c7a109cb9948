"""Long work: asked for now, fetched later. What was done is kept over a restart, what was being done is not."""

import threading
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from delineate.errors import DelineateError
from delineate.jobs.segment import SegmentRequest
from delineate.review.schema import Exact
from delineate.review.work import NotHere
from delineate.serve.door import tell_of_fault
from delineate.serve.places import Ending, Errand, Gone
from delineate.serve.results import Result
from delineate.serve.service import Sent, Service

State = Literal["working", "done", "failed", "cancelled"]
MOST_ENDED = 1000  # failed and cancelled ones that are still told of


class NotYet(DelineateError):
    """It is not done."""


class JobState(Exact):
    """How a job stands. `share` is how much of the computing is done; `result` where the answer lies, once it does."""

    id: str
    state: State
    share: Annotated[float, Field(ge=0, le=1)] = 0.0
    message: str | None = None
    result: str | None = None


@dataclass(eq=False)
class Job:
    """A job that has not ended well, or not yet."""

    errand: Errand
    state: State = "working"
    message: str | None = None


class Jobs:
    """The jobs of a service, each seen by who asked for it alone."""

    def __init__(self, service: Service):
        self._service = service
        self._jobs: dict[str, Job] = {}

    def begin(self, errand: Errand, sent: Sent, request: SegmentRequest) -> JobState:
        """Work on it in a thread; the errand keeps its place until that ends."""
        job = Job(errand)
        while len(self._jobs) >= MOST_ENDED:
            ended = next((name for name, one in self._jobs.items() if one.state != "working"), None)
            if ended is None:
                break
            self._jobs.pop(ended, None)
        self._jobs[errand.id], errand.kept = job, True
        threading.Thread(target=self._run, args=(job, sent, request), daemon=True).start()
        return self.state(errand.user, errand.id)

    def state(self, user: str, name: str) -> JobState:
        """How a user's job stands. Raises `NotHere`."""
        if self._done(user, name) is not None:
            return JobState(id=name, state="done", share=1.0, result=f"/api/jobs/{name}/result")
        job = self._own(user, name)
        return JobState(id=name, state=job.state, share=round(min(1.0, job.errand.share), 3), message=job.message)

    def result(self, user: str, name: str) -> Result:
        """The answer of a user's job.

        Raises:
            NotHere: there is no such job, or its answer was forgotten.
            NotYet: it is not done, or failed.
        """
        if (found := self._done(user, name)) is not None:
            return found
        job = self._own(user, name)
        raise NotYet(job.message or "the job is being worked on; ask for its state until that is 'done'")

    def drop(self, user: str, name: str) -> None:
        """Stop a user's job, or forget its answer. Raises `NotHere`."""
        if self._done(user, name) is not None:
            self._service.results.drop(name)
            return
        self._own(user, name).errand.stop(Gone("the job was cancelled"))

    def _done(self, user: str, name: str) -> Result | None:
        found = self._service.results.get(name)
        return found if found is not None and found.user == user else None

    def _own(self, user: str, name: str) -> Job:
        job = self._jobs.get(name)
        if job is None or job.errand.user != user:
            raise NotHere("no such job here, or its answer was kept long enough; send the scan again")
        return job

    def _run(self, job: Job, sent: Sent, request: SegmentRequest) -> None:
        errand, service = job.errand, self._service
        try:
            path = service.segment(errand, sent, request)
            service.results.keep(errand.id, path, errand.user)
            self._jobs.pop(errand.id, None)
        except Gone as error:
            job.state, job.message = "cancelled", str(error)
        except Ending:
            job.state, job.message = "failed", "the server was stopped before this was done; send the scan again"
        except (DelineateError, OSError) as error:
            job.state, job.message = "failed", " ".join(str(error).split())
        except Exception as error:  # a fault of ours ends a job, not the server
            tell_of_fault(error)
            job.state, job.message = "failed", f"a fault of the server ({type(error).__name__}), which its log tells"
        finally:
            service.places.leave(errand)
