"""Cases handed out one by one to workers that may be lost at any moment: each is answered for exactly once.

What a worker is, a process on this machine or an actor of a Ray cluster, only its crew knows (`jobs.processes`,
`jobs.on_ray`). A case whose worker was lost goes to the next one that is free; at the third loss it is given up, for it
may be the case that kills. Workers are hired again as long as there is work for them.
"""

from collections import Counter, deque
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol, runtime_checkable

from delineate.errors import DelineateError
from delineate.scans.finding import Found

TRIES = 3  # workers that a case may cost, and that may be lost one after another before they begin


@dataclass(frozen=True)
class Heard:
    """What came from a worker: `{"ready": …}`, `{"refused": why, "exit_code": …}`, `{"entry": …}`, or its loss.

    Attributes:
        worker: its number.
        said: None where it was lost.
        why: it was lost, as far as one knows.
    """

    worker: int
    said: Mapping[str, Any] | None
    why: str = ""


@runtime_checkable
class Crew(Protocol):
    """Workers that have a segmenter each.

    Attributes:
        workers: how many, at most.
        threads: of each.
        device: on which each has it.
    """

    workers: int
    threads: int
    device: str

    def hire(self, worker: int, doing: Mapping[str, Any]) -> None:
        """Begin one, told what is the same for every case; when it can work, it is heard to be ready."""
        ...

    def give(self, worker: int, scan: Found, again: bool) -> None:
        """Give it a case; when that is done its entry is heard. `again`: a worker was lost at it."""
        ...

    def hear(self) -> Heard:
        """Wait until one has something to say, or is lost."""
        ...

    def end(self) -> None:
        """End all, whatever they are at; in vain where they ended."""
        ...


def hand_out(
    crew: Crew,
    doing: Mapping[str, Any],
    cases: Sequence[tuple[int, Found]],
    failed: Callable[[Found, str], dict[str, Any]],
) -> Generator[tuple[int, dict[str, Any]]]:
    """Yield the number and the entry of every case, as they are done, each once. The crew is ended at the end.

    Args:
        crew: who does them.
        doing: what is the same for all, told to each worker.
        cases: numbers and scans, handed out in this order.
        failed: the entry of a case that cost too many workers, by the reason.

    Raises:
        DelineateError: the workers cannot begin, for one has said why, or too many were lost at it.
    """
    waiting, at = deque(cases), dict[int, tuple[int, Found]]()
    free, hired, lost, unborn = deque[int](), set[int](), Counter[int](), 0
    numbers, why = count(), ""

    try:
        while waiting or at:
            while waiting and free:
                worker = free.popleft()
                at[worker] = waiting.popleft()
                crew.give(worker, at[worker][1], lost[at[worker][0]] > 0)
            while unborn < TRIES and len(hired) < min(crew.workers, len(waiting) + len(at)):
                hired.add(worker := next(numbers))
                crew.hire(worker, doing)
            if not hired:
                raise DelineateError(f"workers end before they can begin ({why}); try it without --workers and --ray")
            heard = crew.hear()
            worker, said = heard.worker, heard.said
            if worker not in hired:  # given up already
                continue
            if said is None:
                why = heard.why
                hired.discard(worker)
                if worker in free:
                    free.remove(worker)
                elif worker not in at:
                    unborn += 1
                else:
                    number, scan = at.pop(worker)
                    lost[number] += 1
                    if lost[number] < TRIES:
                        waiting.appendleft((number, scan))
                    else:
                        more = "where it was memory, give fewer --workers or a machine with more"
                        yield (
                            number,
                            failed(scan, f"{TRIES} workers were lost at it, one after another ({why}); {more}"),
                        )
            elif "refused" in said:
                error = DelineateError(str(said["refused"]))
                error.exit_code = int(said["exit_code"])
                raise error
            elif "ready" in said:
                unborn = 0
                free.append(worker)
            else:
                number, _ = at.pop(worker)
                free.append(worker)
                yield number, dict(said["entry"])
    finally:
        crew.end()
