"""Robustness: odd and broken inputs to every command, kills at any moment, two writers at once, the largest scans.

    python benchmarks/fuzz.py --inputs 1000 --kills 100          # what `make fuzz` runs: twenty minutes on two cores
    python benchmarks/fuzz.py --inputs 300 --only nifti          # one kind; --list names them
    python benchmarks/fuzz.py --repeat 7-nifti-12                # one trial again, as its record names it
    python benchmarks/fuzz.py --largest --inputs 0 --kills 0     # memory and seconds of the ten largest inputs

Each trial is `delineate` with arguments and files drawn from (seed, kind, number), run in a fork of a process that has
imported it. It ends *answered* (exit code 0, or 1, 4, 8, 75 as documented), *refused* (another documented code and a
line that says why), or in a fault: *traceback* (or an internal error, a signal, an undocumented code), *hang* (over
60 s), *memory* (more than 4 GB), *silent wrong* (an oracle knows better), *lost* (what was whole is not any more).
A killed command must leave what was there whole, old or new, and the same command must then come to the same end.
The exit code is 1 where there was a fault. What a fault was given stays in the work folder.

Writes benchmarks/results/fuzz.json.
"""

import argparse
import hashlib
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fuzzing import campaign, disks, kills, kinds, largest, server, writers
from fuzzing.trial import FAULTS, GIGABYTES, SECONDS
from fuzzing.world import World

import delineate

SOURCE = Path(__file__).resolve().parents[1] / "src"
RESULT = Path(__file__).parent / "results" / "fuzz.json"


def main() -> None:
    """Try, count, write."""
    args = arguments()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if args.list:
        print("\n".join(f"{name:14} {kind.share:4g} of a hundred" for name, kind in kinds.KINDS.items()))
        return
    try_this_tree()
    started = time.monotonic()
    documented = server.warm_up()
    work = args.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    fresh(work, everything=not args.repeat)
    with disks.small_disks(work) as (full, read_only):
        world = World(work / "world", documented, full, read_only)
        if args.repeat:
            repeat(args.repeat, world, work)
            return
        result = run_all(args, world, work)
    result["seconds"] = round(time.monotonic() - started)
    faults = result["faults"]
    keep(args, result)
    for kind, counts in result["inputs_by_kind"].items():
        print(f"{kind:14} " + ", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    for one in result["kinds_of_faults"]:
        print(f"{one['count']:4} {one['outcome']}: {one['reason']}\n       {one['example']}: {one['command']}")
    print(f"{result['inputs']} inputs, {result['kills']} kills, {len(faults)} faults, {result['seconds']} s")
    sys.exit(1 if faults else 0)


def try_this_tree() -> None:
    """Start again where another tree's `delineate` would be tried than the one beside this script."""
    if not Path(delineate.__file__).resolve().is_relative_to(SOURCE):
        if os.environ.get("PYTHONPATH") == str(SOURCE):
            sys.exit(f"fuzz: {delineate.__file__} would be tried, not {SOURCE}")
        os.environ["PYTHONPATH"] = str(SOURCE)  # for the children of `delineate` too
        os.execv(sys.executable, [sys.executable, *sys.argv])


def keep(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write the result; a table of the largest inputs alone goes beside the counts that are there."""
    path = args.result or (None if args.only else RESULT)
    if path is None:
        return
    if args.largest and not args.inputs and path.is_file():
        result = json.loads(path.read_text()) | {"largest": result["largest"]}
    elif not args.largest and path.is_file() and (known := json.loads(path.read_text()).get("largest")):
        result["largest"] = known
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    path.write_text(
        text.replace(f"{args.work.resolve()}/", ""), "utf-8", "backslashreplace"
    )  # no paths of this machine


def arguments() -> argparse.Namespace:
    """What was asked on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pairs", type=int, default=8, help="of writers at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="KIND", help="kinds of inputs, or of kills; see --list"
    )
    parser.add_argument("--list", action="store_true", help="name the kinds of inputs and leave")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("runs/fuzz"), help="where it is tried; faults stay there")
    parser.add_argument(
        "--result", type=Path, help="where to write; with --only nothing is written unless this is given"
    )
    parser.add_argument("--repeat", metavar="ID", help="one trial again; prints all of it, writes nothing")
    parser.add_argument("--largest", action="store_true", help="also the ten largest inputs, one after another")
    return parser.parse_args()


def run_all(args: argparse.Namespace, world: World, work: Path) -> dict[str, Any]:
    """All that was asked for, as JSON values."""
    trials = kinds.shares(args.inputs, [k for k in args.only if k in kinds.KINDS]) if args.inputs else []
    chosen = [k for k in args.only if k in kills.KILLS]
    killed = kills.plan(args.kills, chosen) if args.kills and (chosen or not args.only) else []
    pairs = writers.plan(args.pairs) if (args.kills and not args.only) or "writers" in args.only else []
    for part in parts_for(trials, killed, pairs):
        _ = world[part]
    for kind in {kind for kind, _ in trials} & kinds.FIRST.keys():
        kinds.FIRST[kind](world)
    before = world.states()
    log = work / "records.jsonl"
    log.unlink(missing_ok=True)
    done = Counter()

    def tell(record: campaign.Record) -> None:
        done[record["outcome"]] += 1
        if record["outcome"] in (*FAULTS, "broken"):
            print(
                f"{record['id']}: {record['outcome']}: {record['reason']}",
                f"    {record['what']}",
                f"    {record['command']}",
                sep="\n",
            )
        elif sum(done.values()) % 50 == 0:
            print(", ".join(f"{count} {outcome}" for outcome, count in done.items()))

    each = partial(tried, args.seed, world, work)
    inputs = campaign.in_workers(trials, each, args.workers, log, tell)
    references = kills.references(sorted({kind for kind, _ in killed}), world, work)
    ended = campaign.in_workers(
        killed, partial(kills.one_kill, args.seed, references, world, work), args.workers, log, tell
    )
    two = campaign.in_workers(pairs, partial(writers.one_pair, args.seed, world, work), args.workers, log, tell)
    changed = sorted(name for name, state in before.items() if world.states().get(name) != state)
    everything = [*inputs, *ended, *two]
    result = told(args, inputs, ended, two)
    result["faults"] = [r for r in everything if r["outcome"] in (*FAULTS, "broken")]
    result["faults"] += [{"id": "world", "outcome": "lost", "reason": f"{name} was changed"} for name in changed[:5]]
    result["kinds_of_faults"] = campaign.alike(result["faults"])
    if args.largest:
        result["largest"] = largest.table(world, work, tell)
    return result


def tried(seed: int, world: World, work: Path, job: tuple[str, int]) -> campaign.Record:
    """`campaign.one_trial` of (kind, number)."""
    return campaign.one_trial(seed, *job, world, work)


def parts_for(trials: Sequence[tuple[str, int]], killed: Sequence[tuple[str, int]], pairs: Sequence[Any]) -> list[str]:
    """The parts of the world that these need, each once."""
    needed = [part for kind, _ in trials for part in kinds.KINDS[kind].needs]
    needed += [part for kind, _ in killed for part in kills.KILLS[kind].needs]
    needed += writers.NEEDS if pairs else []
    return list(dict.fromkeys(needed))


def told(args: argparse.Namespace, inputs: list, ended: list, two: list) -> dict[str, Any]:
    """Counts and settings."""

    def counted(records: list) -> dict[str, dict[str, int]]:
        names = sorted({r["kind"] for r in records})
        return {n: dict(Counter(r["outcome"] for r in records if r["kind"] == n).most_common()) for n in names}

    commands = Counter(r["command"].split()[1] for r in inputs if len(r["command"].split()) > 1)
    return {
        "command": f"python benchmarks/fuzz.py --inputs {args.inputs} --kills {args.kills} --seed {args.seed}",
        "delineate": delineate.__version__,
        "python": platform.python_version(),
        "seed": args.seed,
        "bounds": {"seconds": SECONDS, "gigabytes": GIGABYTES},
        "inputs": len(inputs),
        "kills": len(ended),
        "pairs_of_writers": len(two),
        "outcomes": dict(Counter(r["outcome"] for r in inputs).most_common()),
        "inputs_by_command": dict(commands.most_common()),
        "inputs_by_kind": counted(inputs),
        "kills_by_kind": counted(ended),
        "leftovers_after_kills": sum(r.get("leftovers", 0) for r in ended),
        "writers": counted(two),
        "most_seconds": max((r.get("seconds", 0) for r in inputs), default=0),
        "most_megabytes": max((r.get("mb", 0) for r in inputs), default=0),
    }


def fresh(work: Path, everything: bool) -> None:
    """Remove what an earlier campaign left, and the world where another version of the program made it."""
    sources = sorted(Path(delineate.__file__).parent.rglob("*.py"))
    version = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    known = work / "world" / ".version"
    if not known.is_file() or known.read_text() != version:
        server.remove(work / "world")
        known.parent.mkdir()
        known.write_text(version)
    for folder in work.glob("[0-9]*-*-[0-9]*") if everything else ():
        server.remove(folder)


def repeat(name: str, world: World, work: Path) -> None:
    """One trial or kill again, with all that it says."""
    seed, kind, number = name.split("-", 1)[0], name.split("-", 1)[1].rsplit("-", 1)[0], int(name.rsplit("-", 1)[1])
    if kind in kills.KILLS:
        record = kills.one_kill(int(seed), kills.references([kind], world, work), world, work, (kind, number))
    elif kind == "writers":
        record = writers.one_pair(int(seed), world, work, number)
    else:
        record = campaign.one_trial(int(seed), kind, number, world, work)
    print(json.dumps(record, indent=1, ensure_ascii=False))
    for stream in ("out", "err"):
        path = work / name / ".log" / stream
        if path.exists():
            print(f"--- {stream}\n{path.read_text(errors='backslashreplace')[-6000:]}")


if __name__ == "__main__":
    main()
