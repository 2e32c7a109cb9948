"""A clock of processor time that is worth the same whatever else the machine does: how benchmarks budget trainings.

    python benchmarks/steady.py --kept runs/company/clock.json       on an idle machine, once: what it can do at best

A second of processor time buys less where neighbours share caches and memory: the same network saw 11,848 images in
1,200 s of an idle machine and 6,800 beside other work. So a fixed piece of work is timed every half minute, and seconds
count by how long it takes now against how long it takes here at best. Its best is kept beside the runs, `clock.json`
in their folder; a machine has one. Seconds can only become shorter than processor time, never longer. Writes the file
that it is told.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from delineate.storage.files import write_json

EVERY = 30.0  # seconds of processor time between two looks
TIMES = 12  # single ones differ by a third on an idle machine


def piece_of_work() -> float:
    """Seconds of processor time of a convolution, there and back, on a picture that no cache holds."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(8, 32, 96, 96, generator=generator, requires_grad=True)
    weight = torch.randn(32, 32, 3, 3, generator=generator, requires_grad=True)
    for number in range(1 + TIMES):
        if number == 1:  # the first is for waking up
            started = time.process_time()
        torch.nn.functional.conv2d(image, weight, padding=1).square().mean().backward()
    return (time.process_time() - started) / TIMES


class SteadyClock:
    """In the place of `time` within a training: seconds of an idle machine that this process had."""

    def __init__(self, kept: Path, work: Callable[[], float] = piece_of_work, now: Callable[[], float] | None = None):
        """Of a process; `kept` is the file that holds the best that this machine has shown."""
        self.kept, self.work, self.now = kept, work, now or time.process_time
        self.seconds = 0.0
        self.looks: list[float] = []
        self.look()

    def monotonic(self) -> float:
        """Seconds, from 0; what the looks themselves take is not counted."""
        if (since := self.now() - self.last) >= EVERY:
            self.seconds += since * self._worth()
            self.look()
            return self.seconds
        return self.seconds + since * self._worth()

    def look(self) -> None:
        """See what a second is worth now."""
        self.looks.append(self.work())
        known = json.loads(self.kept.read_text())["best"] if self.kept.exists() else self.looks[-1]
        self.best = min(known, self.looks[-1])
        if self.best < known or not self.kept.exists():
            write_json(self.kept, {"best": self.best})
        self.last = self.now()

    def _worth(self) -> float:
        """Of a second of processor time since the last look."""
        return self.best / self.looks[-1]

    def about(self) -> dict[str, float]:
        """For the figures: what seconds were worth on average, and at the worst."""
        worth = [self.best / look for look in self.looks]
        return {"worth": round(sum(worth) / len(worth), 3), "worst": round(min(worth), 3)}


def main() -> None:
    """Look at the machine for half a minute, and keep the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=Path, required=True, help="file that holds the best that this machine has shown")
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.kept.parent.mkdir(parents=True, exist_ok=True)
    clock, until = SteadyClock(args.kept), time.monotonic() + 30
    while time.monotonic() < until:
        clock.look()
    print(f"{args.kept}: {1000 * clock.best:.1f} ms at best, {1000 * max(clock.looks):.1f} ms at worst")


if __name__ == "__main__":
    main()
