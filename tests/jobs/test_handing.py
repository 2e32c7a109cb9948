"""Every case is answered for exactly once, whatever becomes of the workers."""

import sys
from pathlib import Path

import pytest
from tests.jobs.crews import Fake

from delineate.errors import DelineateError
from delineate.jobs.handing import TRIES, Heard, hand_out
from delineate.jobs.processes import Processes
from delineate.jobs.worker import scan_of, told_of
from delineate.scans.finding import Found, Kind

CASES = [(number, Found(Path(f"case{number}.png"), f"case{number}", Kind.PICTURE)) for number in range(7)]


def failed(scan, reason):
    return {"case": scan.name, "reason": reason}


def answers(crew, cases=CASES):
    return list(hand_out(crew, {"run": "a"}, cases, failed))


@pytest.mark.parametrize("workers", [1, 2, 3, 50])
@pytest.mark.parametrize("lost", [(), ("case0",), ("case0", "case0", "case6"), tuple(f"case{k}" for k in range(7))])
def test_each_case_is_answered_once_and_those_of_lost_workers_by_others(workers, lost):
    crew = Fake(workers=workers, lost=lost)
    told = answers(crew)
    assert sorted(told) == [(number, {"case": scan.name}) for number, scan in CASES]
    assert len(crew.given) == len(CASES) + len(lost)
    again = [name for _, name, again in crew.given if again]
    assert sorted(again) == sorted(lost)
    of = {}
    for worker, name, _ in crew.given:
        assert worker not in of.setdefault(name, [])  # elsewhere
        of[name].append(worker)
    assert crew.hired <= workers + len(lost)
    assert crew.ended == 1


def test_no_more_workers_are_hired_than_there_are_cases():
    crew = Fake(workers=50)
    answers(crew, CASES[:3])
    assert crew.hired == 3
    assert answers(Fake(), []) == []


def test_a_case_that_costs_worker_after_worker_is_given_up_and_the_others_are_done():
    crew = Fake(lost=["case2"] * 10)
    told = dict(answers(crew))
    assert len(told) == len(CASES)
    assert "3 workers were lost at it, one after another (killed by SIGKILL); where it was memory" in told[2]["reason"]
    assert sum(name == "case2" for _, name, _ in crew.given) == TRIES
    assert all("reason" not in entry for number, entry in told.items() if number != 2)


def test_workers_that_never_begin_end_it_in_words():
    crew = Fake(unborn=100)
    with pytest.raises(DelineateError, match=r"workers end before they can begin \(no room\); try it without"):
        answers(crew)
    assert crew.hired < TRIES + crew.workers
    assert crew.ended == 1
    assert len(answers(Fake(unborn=2))) == len(CASES)


def test_what_a_worker_refuses_ends_it_with_its_exit_code():
    crew = Fake()
    crew.hear = lambda: Heard(0, {"refused": "another model", "exit_code": 6})
    with pytest.raises(DelineateError, match="another model") as caught:
        answers(crew)
    assert caught.value.exit_code == 6
    assert crew.ended == 1


def test_whoever_stops_listening_ends_the_crew():
    crew = Fake()
    entries = hand_out(crew, {}, CASES, failed)
    next(entries)
    entries.close()
    assert crew.ended == 1


def test_a_scan_is_told_and_understood():
    scan = Found(Path("a\udcff/b_0000.nii.gz"), "b", Kind.NIFTI, (Path("a\udcff/b_0001.nii.gz"),))
    assert scan_of(told_of(scan)) == scan


SMALL = """
import json, os, sys
begin = json.loads(sys.stdin.readline())
print(json.dumps({"ready": {"pid": os.getpid()}}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    name = asked["scan"]["name"]
    if name == begin["kills"] and not asked["again"]:
        os.kill(os.getpid(), 9)
    if name == begin["faulty"]:
        sys.exit("no such luck")
    print(json.dumps({"entry": {"case": name, "again": asked["again"]}}), flush=True)
"""


def test_processes_are_given_cases_killed_and_replaced():
    begin = {"threads": 1, "device": "cpu", "kills": "case1", "faulty": "case4"}
    crew = Processes(begin, 2, (sys.executable, "-S", "-c", SMALL))
    told = dict(answers(crew))
    assert sorted(told) == list(range(7))
    assert told[1] == {"case": "case1", "again": True}
    assert "(exit code 1: no such luck)" in told[4]["reason"]
    assert crew.running == {}


def test_processes_that_are_at_work_end_when_they_are_to():
    crew = Processes(
        {"threads": 1, "device": "cpu", "kills": "case0", "faulty": ""}, 2, (sys.executable, "-S", "-c", SMALL)
    )
    entries = hand_out(crew, {}, CASES, failed)
    next(entries)
    running = [*crew.running.values()]
    entries.close()
    assert running
    assert all(process.poll() is not None for process in running)
