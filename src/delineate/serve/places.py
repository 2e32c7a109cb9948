"""Who is let in to be worked for: so many at once, so often, and nobody any more once the server is to end.

A place is taken before a byte of a body is read and given back when the answer begins, so that what lies on the disk
and in memory for those who wait is bounded whatever they send.
"""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from delineate.errors import DelineateError

TOO_LONG = "it took longer than this server allows, sending and waiting included; send a smaller scan, or ask for less"


class Refused(DelineateError):
    """It cannot be worked on now; `retry_after` says in how many seconds it may."""

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after


class Full(Refused):
    """Too many wait already."""


class TooOften(Refused):
    """A token asks more often than it may."""


class Ending(Refused):
    """The server finishes what it has begun, and begins nothing else."""


class Gone(DelineateError):
    """Whoever asked has gone, or does not want it any more."""


class TooLong(DelineateError):
    """It took longer than it may."""


@dataclass(eq=False)
class Errand:
    """A request that is worked on.

    Attributes:
        user: who asks.
        until: when it must be done, by `time.monotonic`.
        id: for logs and for people, the same as that of its job.
        share: of the work that is done.
        kept: whether it goes on when its request is answered, as a job does.
    """

    user: str
    until: float
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    share: float = 0.0
    kept: bool = False
    begun: float = field(default_factory=time.monotonic)
    _why: DelineateError | None = None

    def stop(self, why: DelineateError) -> None:
        """Ask it to stop, which it does at its next step; the first reason counts."""
        self._why = self._why or why

    def check(self) -> None:
        """See that it may go on.

        Raises:
            TooLong: it took too long.
            DelineateError: why it was stopped.
        """
        if self._why is not None:
            raise self._why
        if time.monotonic() >= self.until:
            raise TooLong(TOO_LONG)

    def on_step(self, share: float) -> None:
        """Note how far it is, and `check`."""
        self.check()
        self.share = max(self.share, min(1.0, share))


class Places:
    """The places of those who are worked for."""

    def __init__(self, most: int, seconds: float, a_minute: int, clock: Callable[[], float] = time.monotonic):
        """`most` places, each for so many seconds; a token may ask so often a minute, at any pace."""
        self.most, self.seconds, self.a_minute, self._clock = most, seconds, a_minute, clock
        self.ending = False
        self._held: set[Errand] = set()
        self._left: dict[str, tuple[float, float]] = {}  # of each user: requests that may come at once, and since when
        self._usual = 1.0  # seconds that a request takes
        self._changed = threading.Condition()

    @property
    def taken(self) -> int:
        """How many are taken."""
        return len(self._held)

    def take(self, user: str) -> Errand:
        """A place for a user.

        Raises:
            Ending, TooOften, Full: there is none.
        """
        with self._changed:
            if self.ending:
                raise Ending("the server is being stopped; ask again when it is back", 10)
            if (wait := self._too_soon(user)) > 0:
                raise TooOften(f"a token may ask {self.a_minute} times a minute; ask again in {wait} s", wait)
            if len(self._held) >= self.most:
                after = max(1, min(600, round(self._usual * len(self._held))))
                raise Full(f"{len(self._held)} requests are waiting, which is as many as may; ask again later", after)
            errand = Errand(user, time.monotonic() + self.seconds)
            self._held.add(errand)
            return errand

    def leave(self, errand: Errand) -> None:
        """Give a place back; twice does no harm."""
        with self._changed:
            if errand in self._held:
                self._held.remove(errand)
                self._usual += 0.2 * (time.monotonic() - errand.begun - self._usual)
                self._changed.notify_all()

    def stop_all(self, why: DelineateError) -> None:
        """Stop everything that is worked on."""
        with self._changed:
            for errand in self._held:
                errand.stop(why)

    def empty(self, seconds: float) -> bool:
        """Whether all are given back within so many seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._held, seconds)

    def _too_soon(self, user: str) -> int:
        """In how many seconds the user may ask again; 0 for now, which is then counted."""
        now, most, pace = self._clock(), float(self.a_minute), self.a_minute / 60
        left, since = self._left.get(user, (most, now))
        left = min(most, left + (now - since) * pace)
        if left < 1:
            self._left[user] = left, now
            return max(1, round((1 - left) / pace))
        self._left[user] = left - 1, now
        return 0


def errand_of(state: Any) -> Errand:
    """The errand of a request, which the door has put into its state."""
    return state.errand
