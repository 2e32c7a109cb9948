"""A cohort by a crew, and in parts: the same report, and nothing lost or done twice."""

import json
import shutil
from dataclasses import replace

import pytest
from tests.jobs.crews import Fake
from tests.jobs.test_segment import REQUEST, Bright, content, lines_of, run, statuses

from delineate.jobs.parts import Part, put_together
from delineate.jobs.segment import Doing, do_case, run_cohort
from delineate.jobs.worker import doing_of
from delineate.scans.finding import find_scans
from delineate.segmenter import Segmenter

TIMES = ("started", "seconds")


def timeless(report):
    cases = [{key: value for key, value in case.items() if key not in TIMES} for case in report["cases"]]
    return {**{key: value for key, value in report.items() if key not in (*TIMES, "parts", "workers")}, "cases": cases}


def crew_of(system, lost=(), workers=2):
    """A crew whose workers do as those of `jobs.worker` do."""
    segmenter = Segmenter(system)

    def do(scan, again):
        told = json.loads(json.dumps(crew.doing))
        return json.loads(json.dumps(do_case(segmenter, scan, doing_of({"doing": told, "bids": None}), again=again)))

    crew = Fake(do, workers, lost)
    return crew


def by_crew(crew, scans, folder, **more):
    return run_cohort(crew, find_scans(scans), REQUEST, folder, model_hash="abc", **more)


def test_a_crew_gives_the_same_report_and_the_same_files(scans, tmp_path):
    plain = run(Bright(), scans, tmp_path / "plain")
    told = by_crew(crew_of(Bright(), lost=("case0",)), scans, tmp_path / "crew")
    assert timeless(told) == timeless(plain)
    assert told["workers"] == 2
    for case in ("case0", "case2"):
        ours, theirs = (content(tmp_path / where / case) for where in ("crew", "plain"))
        assert {**ours, "case.json": b""} == {**theirs, "case.json": b""}
    assert (tmp_path / "crew" / "statistics.csv").read_bytes() == (tmp_path / "plain" / "statistics.csv").read_bytes()
    assert sorted(one["case"] for one in lines_of(tmp_path / "crew") if "case" in one) == ["case0", "case1", "case2"]


def test_a_case_that_a_lost_worker_had_finished_is_not_done_twice(scans, tmp_path):
    system, folder = Bright(), tmp_path / "out"
    run(system, scans, folder)  # an older run, which does not count
    asked = system.asked
    doing = Doing("this", REQUEST, folder, {"request": {}, "model_sha256": "abc"})
    scan = find_scans(scans)[0]
    first = do_case(Segmenter(system), scan, doing, again=True)
    assert system.asked == 2 * asked / 2 + 2  # liver and spleen of one case
    assert do_case(Segmenter(system), scan, doing, again=True) == first
    assert system.asked == asked + 2
    (folder / "case0").rename(folder / ".writing-case0")  # killed before the last step
    (folder / ".writing-case0" / ".whole").touch()
    assert do_case(Segmenter(system), scan, doing, again=True) == first
    assert system.asked == asked + 2
    do_case(Segmenter(system), scan, replace(doing, run="another"), again=True)
    assert system.asked == asked + 4


def test_a_run_that_is_stopped_says_so_and_goes_on(scans, tmp_path):
    system, folder = Bright(), tmp_path / "out"

    def stop(number, scan):
        raise KeyboardInterrupt

    crew = crew_of(system, workers=1)
    with pytest.raises(KeyboardInterrupt):
        by_crew(crew, scans, folder, on_case=stop)
    assert crew.ended == 1
    assert lines_of(folder)[-1]["stopped"] == {"done": 1}
    assert not (folder / "run.json").exists()
    assert statuses(by_crew(crew_of(system), scans, folder, resume=True)) == ["skipped", "failed", "done"]


def test_the_last_part_that_ends_writes_one_report_and_one_table_of_all(scans, tmp_path):
    for number in range(3, 8):
        shutil.copy(scans / "case0.png", scans / f"case{number}.png")
    plain, folder = run(Bright(), scans, tmp_path / "plain"), tmp_path / "out"
    for number in (2, 3, 1):
        assert not (folder / "run.json").exists()
        assert not (folder / "statistics.csv").exists()
        run(Bright(), scans, folder, part=Part(number, 3))
    told = json.loads((folder / "run.json").read_text())
    assert timeless(told) == timeless(plain)
    assert told["parts"] == 3
    assert (folder / "statistics.csv").read_bytes() == (tmp_path / "plain" / "statistics.csv").read_bytes()


def test_a_part_that_was_killed_is_run_again_and_then_all_is_told(scans, tmp_path):
    folder = tmp_path / "out"
    run(Bright(), scans, folder, part=Part(1, 2))
    before = (folder / "run-1-of-2.json").read_bytes()

    def stop(number, scan):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Bright(), scans, folder, part=Part(2, 2), on_case=stop)
    (folder / ".writing-case1").mkdir()  # of a part that was killed: its own
    (folder / ".writing-case0").mkdir()  # of another machine, whose locks may not be seen
    run(Bright(), scans, folder, part=Part(2, 2), resume=True)
    assert not (folder / ".writing-case1").exists()
    assert (folder / ".writing-case0").exists()
    assert statuses(json.loads((folder / "run.json").read_text())) == ["done", "failed", "done"]
    assert (folder / "run-1-of-2.json").read_bytes() == before
    run(Bright(), scans, folder, part=Part(2, 2), resume=True)  # and whenever one is run again
    assert statuses(json.loads((folder / "run.json").read_text())) == ["done", "failed", "done"]


def test_parts_of_which_other_things_were_asked_are_not_put_together(scans, tmp_path):
    run(Bright(), scans, tmp_path, part=Part(1, 2))
    run(Bright(), scans, tmp_path, replace(REQUEST, n=1), part=Part(2, 2))
    assert not (tmp_path / "run.json").exists()
    (tmp_path / "run-1-of-2.json").write_text("{")
    run(Bright(), scans, tmp_path, part=Part(2, 2))
    assert not (tmp_path / "run.json").exists()


def test_cases_of_parts_are_put_together_in_the_order_of_one_run():
    parts = [list(range(number, 8, 3)) for number in range(3)]
    reports = [{"cases": cases, "started": f"{9 - k}", "seconds": 0.5, "part": k} for k, cases in enumerate(parts)]
    told = put_together(reports)
    assert told["cases"] == list(range(8))
    assert (told["started"], told["seconds"], told["part"], told["parts"]) == ("7", 1.5, None, 3)
