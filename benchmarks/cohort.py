"""What a cohort costs beside the model: seconds, bytes and files a scan, whether they grow, and what workers give.

    python benchmarks/cohort.py overhead --scans 10000 --parts 10
    python benchmarks/cohort.py overhead --scans 10000 --parts 50 --real 4
    python benchmarks/cohort.py workers --workers 1 2

`overhead`: tiny NIfTI scans (16×16×4 voxels) in as many parts as asked, one after another in this process, by a system
that only compares grey values with a threshold: nearly all that is left is what a cohort costs. Then all parts again
with `resume`, which skips every case; what ends each part; and what finding the scans takes. With `--real 4` the first
three parts and the last are done, and what the others would write is made of copies: it shows whether the last scans
of a large cohort cost more than the first, and what ends it, in a fraction of the time.

`workers`: copies of the CT that ships, by the model that ships, by that many processes of one thread each
(`jobs.processes`). Seconds of the clock, and of processors: those of a scan, measured in this process, and those of
the command that hands out; scans an hour of more workers are computed from these. Computed figures are called so.

Writes benchmarks/results/cohort.json, a part for each of the two.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

RESULT = Path(__file__).parent / "results" / "cohort.json"
SHAPE = (16, 16, 4)
COMPUTED = (4, 16, 64, 256, 1000)  # workers


def cpu(who: int = resource.RUSAGE_SELF) -> float:
    """Seconds of processors that this process (or those that it waited for) took."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def memory_mb() -> float:
    """What this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Threshold:
    """A system without a network: what is brighter than the middle of what can be seen."""

    accepts, open_words, about, size = frozenset(), False, "", 32

    def __init__(self) -> None:
        from delineate.prompts.vocabulary import Vocabulary

        self.vocabulary = Vocabulary.from_names(["liver"], "CT")

    def to(self, device: str) -> "Threshold":
        """On one device only."""
        return self

    def see(self, view: Any) -> Any:
        """The slices."""
        return view.stack

    def propose(self, seen: Any, asked: Any, n: int, seed: int, on_step: Any = None) -> Any:
        """`n` masks that are all alike."""
        import torch

        from delineate.systems.system import Drawn

        return Drawn(torch.stack([(seen[:, 1] > 0).float()] * n))


def make_scans(folder: Path, count: int) -> None:
    """Write tiny scans, none like another."""
    import nibabel
    import numpy as np

    folder.mkdir(parents=True)
    for number in range(count):
        voxels = np.random.default_rng(number).integers(-100, 200, SHAPE).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.diag([2, 2, 4, 1])), folder / f"s{number:06d}.nii")


def size_of(folder: Path) -> tuple[int, int]:
    """Files in a folder and below, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return len(sizes), sum(sizes)


def pretend(out: Path, found: list[Any], numbers: list[int], parts: int) -> None:
    """Write what these parts would: the cases of the first one under their names, files as links; reports and lines."""
    from delineate.jobs.parts import Part, report_name

    first = json.loads((out / report_name(Part(1, parts))).read_text())
    was = first["cases"][0]["case"]
    told = (out / was / "case.json").read_text()
    lines = [line for line in (out / "run.jsonl").read_text().splitlines(keepends=True) if f'"{was}"' in line][:1]
    for number in numbers:
        own = [scan.name for index, scan in enumerate(found) if index % parts == number - 1]
        for name in own:
            (out / name).mkdir()
            (out / name / "case.json").write_text(told.replace(was, name))
            for path in (out / was).iterdir():
                if path.name != "case.json":
                    os.link(path, out / name / path.name)
        cases = [{**first["cases"][0], "case": name} for name in own]
        report = {**first, "part": f"{number}/{parts}", "cases": cases}
        (out / report_name(Part(number, parts))).write_text(json.dumps(report, indent=2))
        with (out / "run.jsonl").open("a") as file:
            file.writelines(lines[0].replace(was, name) for name in own)


def overhead(scans: int, parts: int, real: int, work: Path) -> dict[str, Any]:
    """See the module's docstring."""
    import delineate.jobs.segment as job
    from delineate.jobs.parts import Part
    from delineate.scans.finding import find_scans
    from delineate.segmenter import Segmenter

    segmenter, request = Segmenter(Threshold()), job.SegmentRequest(("liver",), n=2, pictures=False)
    make_scans(work / "scans", scans)
    model = [0.0]
    plain = Segmenter.__call__

    def timed(*args: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return plain(*args, **options)
        finally:
            model[0] += time.process_time() - start

    Segmenter.__call__ = timed  # type: ignore[method-assign]
    start = time.process_time()
    found = find_scans(work / "scans")
    finding = time.process_time() - start
    rows, out = [], work / "out"
    done_now = [*range(1, real), parts] if real else [*range(1, parts + 1)]
    for resume in (False, True):
        for number in done_now:
            if real and not resume and number == parts:
                pretend(out, found, [*range(real, parts)], parts)
            wall, start, model[0], last = time.monotonic(), time.process_time(), 0.0, [0.0]
            report = job.run_cohort(
                segmenter,
                found,
                request,
                out,
                model_hash="none",
                resume=resume,
                part=Part(number, parts) if parts > 1 else None,
                on_case=lambda n, s, last=last: last.__setitem__(0, time.process_time()),
            )
            took, count = time.process_time() - start, len(report["cases"])
            ended = time.process_time() - last[0]  # the last case, and what ends the part
            row = {"part": number, "resumed": resume, "scans": count, "cpu_seconds": round(took, 2)}
            row |= {"wall_seconds": round(time.monotonic() - wall, 2), "ending_cpu_seconds": round(ended, 2)}
            row["ms_a_scan_outside_the_model"] = round(1000 * (took - ended - model[0]) / count, 2)
            rows.append(row | {"memory_mb": round(memory_mb(), 1)})
            print(json.dumps(rows[-1]), flush=True)
    files, size = size_of(out)
    case_files, case_size = size_of(out / found[0].name)
    lines = (out / "run.jsonl").stat().st_size
    done = [row["ms_a_scan_outside_the_model"] for row in rows if not row["resumed"]]
    return {
        "scans": scans,
        "parts": parts,
        "parts_done": len(done_now),
        "finding_cpu_seconds": round(finding, 2),
        "last_part_over_second": round(done[-1] / done[min(1, len(done) - 1)], 3),  # the first one warms up
        "files_a_scan": round(files / scans, 2),
        "bytes_a_scan": round(size / scans),
        "of_a_case": {"files": case_files, "bytes": case_size},
        "bytes_of_run_jsonl_a_scan_and_run": round(lines / scans / 2),
        "bytes_of_run_json": (out / "run.json").stat().st_size,
        "rows": rows,
    }


def by_workers(counts: list[int], copies: int, work: Path) -> dict[str, Any]:
    """See the module's docstring."""
    from delineate.cli.workers import answering
    from delineate.jobs.segment import SegmentRequest, run_cohort
    from delineate.model_folder import check_model, fingerprint
    from delineate.samples import sample
    from delineate.scans.finding import find_scans

    (scan, *_), model = sample("ct").images, check_model(None)[0]
    for number in range(copies):
        (work / "scans").mkdir(exist_ok=True)
        shutil.copy(scan, work / "scans" / f"ct{number}.nii.gz")
    request = SegmentRequest(("liver", "spleen"), n=4, modality="CT", pictures=False)
    found, kept = find_scans(work / "scans"), {"model_hash": fingerprint(model)}
    times: list[float] = []
    alone = answering(model, None, "cpu", 1, None, None, None)
    begin = time.process_time()
    run_cohort(alone, found, request, work / "alone", on_case=lambda n, s: times.append(time.process_time()), **kept)
    times.append(time.process_time())
    scans = [after - before for before, after in itertools.pairwise(times)]
    told: dict[str, Any] = {
        "processors_used": len(os.sched_getaffinity(0)),
        "begin_a_worker_cpu_seconds": round(begin, 2),
        "scans_cpu_seconds": [round(one, 2) for one in scans],
        "a_scan_cpu_seconds": round(median(scans), 2),
        "rows": [],
    }
    print(json.dumps(told), flush=True)
    for workers in counts:
        crew = answering(model, None, "cpu", 1, workers, None, None)
        wall, own, theirs = time.monotonic(), cpu(), cpu(resource.RUSAGE_CHILDREN)
        run_cohort(crew, found, request, work / f"out{workers}", **kept)
        took = time.monotonic() - wall
        told["rows"].append(
            {
                "workers": workers,
                "scans": copies,
                "wall_seconds": round(took, 1),
                "scans_an_hour": round(3600 * copies / took, 1),
                "command_cpu_ms_a_scan": round(1000 * (cpu() - own) / copies, 2),
                "workers_cpu_seconds": round(cpu(resource.RUSAGE_CHILDREN) - theirs, 1),
            }
        )
        print(json.dumps(told["rows"][-1]), flush=True)
    return told | computed(told)


def computed(told: dict[str, Any]) -> dict[str, Any]:
    """Scans an hour with a processor a worker, from the seconds of a scan; at most what one command can hand out."""
    hand = max(row["command_cpu_ms_a_scan"] for row in told["rows"]) / 1000
    most = 3600 / hand
    hourly = {str(w): round(min(w * 3600 / told["a_scan_cpu_seconds"], most)) for w in (1, 2, *COMPUTED)}
    return {
        "computed_scans_an_hour_with_a_processor_each": hourly,
        "computed_most_scans_an_hour_of_one_command": round(most),
    }


def draw(told: dict[str, Any], path: Path) -> None:
    """Scans an hour against workers, as measured and as computed."""
    from delineate.pictures import COLOURS, new_figure, write_figure

    own = told["workers"]
    figure = new_figure(6.4, 3.8)
    axis = figure.subplots()
    computed = {int(k): v for k, v in own["computed_scans_an_hour_with_a_processor_each"].items()}
    label = f"computed: a processor each, {own['a_scan_cpu_seconds']:.1f} s a scan"
    axis.plot(list(computed), list(computed.values()), "--", color=COLOURS[0], label=label)
    measured = [(row["workers"], row["scans_an_hour"]) for row in own["rows"]]
    label = f"measured, beginning included, {own['processors_used']} processors"
    axis.plot(*zip(*measured, strict=True), "o", color=COLOURS[1], label=label)
    axis.set(xlabel="workers", ylabel="scans an hour", xscale="log", yscale="log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, frameon=False)
    write_figure(figure, path)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=("overhead", "workers"))
    parser.add_argument("--scans", type=int, default=10_000)
    parser.add_argument("--parts", type=int, default=10)
    parser.add_argument("--real", type=int, default=0, help="parts that are done, the others being made up; 0: all")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--copies", type=int, default=6, help="of the CT, for `workers`")
    parser.add_argument("--result", type=Path, default=RESULT)
    given = parser.parse_args()
    import torch

    from delineate.storage.files import write_json

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="cohort-") as work:
        if given.question == "overhead":
            answer = overhead(given.scans, given.parts, given.real, Path(work))
        else:
            answer = by_workers(given.workers, given.copies, Path(work))
    told = json.loads(given.result.read_text()) if given.result.is_file() else {}
    told |= {given.question: answer, "python": platform.python_version(), "torch": torch.__version__}
    write_json(given.result, told)


if __name__ == "__main__":
    main()
