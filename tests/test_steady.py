"""The clock by which benchmarks budget trainings: a second is worth what the machine gives for it."""

import json

import pytest
from steady import EVERY, SteadyClock, piece_of_work


class Machine:
    """One whose processor time and speed are told."""

    def __init__(self, cost: float = 0.1):
        self.time, self.cost = 0.0, cost

    def now(self) -> float:
        return self.time

    def work(self) -> float:
        self.time += 4 * self.cost
        return self.cost

    def clock(self, kept) -> SteadyClock:
        return SteadyClock(kept, self.work, self.now)


def passed(machine: Machine, clock: SteadyClock, seconds: float) -> float:
    """What the clock counts of so many of processor time, asked at every one."""
    before = clock.monotonic()
    for _ in range(round(seconds)):
        machine.time += 1
        clock.monotonic()
    return clock.monotonic() - before


def test_on_an_idle_machine_it_is_processor_time_without_the_looks(tmp_path):
    machine = Machine()
    clock = machine.clock(tmp_path / "clock.json")
    assert passed(machine, clock, 305) == pytest.approx(305)
    assert len(clock.looks) == 1 + 300 // EVERY
    assert clock.about() == {"worth": 1.0, "worst": 1.0}


def test_beside_others_a_second_is_worth_less(tmp_path):
    machine = Machine()
    clock = machine.clock(tmp_path / "clock.json")
    machine.cost = 0.2  # found out at the next look
    assert passed(machine, clock, 30 + 270) == pytest.approx(30 + 270 / 2)
    assert clock.about()["worst"] == 0.5


def test_what_the_machine_has_shown_before_is_known_to_the_next_run(tmp_path):
    Machine(0.1).clock(tmp_path / "clock.json")
    slow = Machine(0.4)
    clock = slow.clock(tmp_path / "clock.json")
    assert passed(slow, clock, 60) == pytest.approx(15)
    assert json.loads((tmp_path / "clock.json").read_text()) == {"best": 0.1}


def test_the_work_takes_processor_time():
    assert 0 < piece_of_work() < 10
