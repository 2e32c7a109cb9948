"""Trials made, run and judged by several workers; what a fault needs to be repeated is kept."""

import json
import multiprocessing
import re
import shutil
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import checks, server
from fuzzing.kinds import KINDS
from fuzzing.trial import FAULTS, Judged, Trial, judge, printable
from fuzzing.world import World

Record = dict[str, Any]


def one_trial(seed: int, kind: str, number: int, world: World, work: Path) -> Record:
    """Make, run and judge the trial of this kind and number; its folder stays where it ended in a fault."""
    name = f"{seed}-{kind}-{number}"
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    trial = KINDS[kind].make(Random(name), world, folder)
    trial.checks += [checks.nothing_else_changed(folder, trial.touches, trial.adds_anywhere), checks.terminal_is_plain]
    if "--json" in trial.arguments and trial.stop_when is None:
        trial.checks.append(checks.json_is_json)
    done = server.run(
        trial.arguments,
        folder,
        folder / ".log",
        seconds=trial.seconds,
        stop_after=trial.stop_after,
        stop_when=trial.stop_when,
        largest_file=trial.largest_file,
        hard=trial.hard_limit,
    )
    judged = judge(trial, done, world.documented)
    if judged.outcome not in FAULTS:
        shutil.rmtree(folder, ignore_errors=True)
    return recorded(name, kind, trial, judged) | {"code": done.code, "seconds": done.seconds, "mb": done.megabytes}


def recorded(name: str, kind: str, trial: Trial, judged: Judged) -> Record:
    """What is kept of a trial."""
    return {
        "id": name,
        "kind": kind,
        "outcome": judged.outcome,
        "reason": judged.reason,
        "what": printable(trial.what),
        "command": trial.command,
        **({"about": trial.about} if trial.about else {}),
    }


def in_workers(
    jobs: Sequence[Any], do: Callable[[Any], Record], workers: int, log: Path, tell: Callable[[Record], None]
) -> list[Record]:
    """The records of all jobs, each done in one of several forks; the next free worker takes the next job.

    Records are appended to `log`, a line each, as they come. `do` and the jobs must be picklable.
    """
    records = []
    with multiprocessing.get_context("fork").Pool(workers) as pool, log.open("a") as kept:
        for record in pool.imap_unordered(partial(_safely, do), jobs):
            records.append(record)
            kept.write(json.dumps(record) + "\n")
            kept.flush()
            tell(record)
    return records


def _safely(do: Callable[[Any], Record], job: Any) -> Record:
    """The record of a job; of one that this campaign itself failed in, what went wrong."""
    try:
        return do(job)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {error} ({Path(where.filename).name}:{where.lineno})"
        return {
            "id": str(job),
            "kind": "campaign",
            "outcome": "broken",
            "reason": told[:400],
            "what": "",
            "command": "",
        }


def alike(records: Sequence[Record]) -> list[Record]:
    """Faults that are probably one, gathered: how many, of which kinds, a command of them; the most frequent first."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        plain = re.sub(r"'[^']*'|\"[^\"]*\"|(/[\w.\-+]+)+|[\d.]+(e[+-]?\d+)?|x{5,}|o{5,}", "…", record["reason"])
        groups.setdefault((record["outcome"], plain[:160]), []).append(record)
    ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
    return [
        {
            "count": len(those),
            "outcome": outcome,
            "reason": those[0]["reason"][:200],
            "kinds": dict(Counter(r["kind"] for r in those)),
            "example": those[0]["id"],
            "what": those[0].get("what", "")[:200],
            "command": those[0].get("command", "")[:300],
        }
        for (outcome, _), those in ordered
    ]
