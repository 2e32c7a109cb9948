"""Commands killed at any moment: what was whole stays whole, old or new, and the same command comes to the same end.

Half of the kills come after a share of the time that the command takes, half at one of its changes to the file system
(opened for writing, renamed, removed, made), counted by an audit hook: the moments at which something could be lost.
"""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import checks, server
from fuzzing.trial import Done, last_line_of, printable
from fuzzing.world import World

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "os.symlink", "os.truncate"}
LONGEST = 120.0
USAGE = 2  # the exit code of a command that cannot be meant


@dataclass(frozen=True)
class Kill:
    """A command that is killed.

    Attributes:
        share: how many of a hundred kills.
        needs: parts of the world.
        arguments: of the command, with its output in `out`.
        again: what is added when it is run again.
        before: puts into the trial's folder what was there before; None for nothing.
        whole: what is wrong with `out` at any moment, given digests of what was there before and of the reference's
            files; None if nothing.
        same: the files (globs) that must be equal to the reference's in the end.
    """

    share: float
    needs: Sequence[str]
    arguments: Callable[[World], list[str]]
    whole: Callable[[Path, dict[str, str], dict[str, str]], str | None]
    same: Sequence[str]
    again: Sequence[str] = ()
    before: Callable[[World, Path], None] | None = None


@dataclass(frozen=True)
class Reference:
    """The command left alone: what it made, how long it took, how often it changed the file system."""

    files: dict[str, str]
    seconds: float
    changes: int


def cases_whole(output: Path, before: dict[str, str], after: dict[str, str]) -> str | None:
    """Of a run of `segment`: every finished case is whole, all old or all new, and none that was finished is gone."""
    for file in sorted(output.glob("[!.]*/case.json")):  # hidden is what was being built, or is on its way out
        if wrong := checks.case_is_whole(file.parent):
            return f"{file.parent.name}: {wrong}"
        case = file.parent.name
        masks = {f"{case}/{p.name}": checks.digest(p) for p in file.parent.glob("[!.]*.nii.gz")}
        old = {name: d for name, d in before.items() if name.startswith(f"{case}/") and name.endswith(".nii.gz")}
        new = {name.removeprefix("out/"): d for name, d in after.items() if name.startswith(f"out/{case}/")}
        if masks not in (old, new):
            return f"{case}: masks of two runs, or of none, lie side by side"
    for name in sorted(name for name in before if name.endswith("/case.json")):
        if not (output / name).is_file():
            return f"{name} was there before"
    return None


def sealed_whole(output: Path, before: dict[str, str], after: dict[str, str]) -> str | None:
    """Of a model or adapter: whole, or not there where none was before."""
    if not output.exists() and not before:
        return None
    if not output.exists():
        return "the older one is gone, and no new one is there"
    return checks.sealed_wrong(output)


def foundation_whole(output: Path, before: dict[str, str], after: dict[str, str]) -> str | None:
    """Of a foundation: all files of the old or of a new one, or nothing where nothing was before."""
    if not output.exists():
        return "the older one is gone, and no new one is there" if before else None
    needed = ("delineate.json", "model_index.json", "unet/diffusion_pytorch_model.safetensors", "held_out.json")
    missing = [name for name in needed if not (output / name).is_file()]
    if missing:
        return f"{missing[0]} is missing"
    weights = {str(p.relative_to(output)): checks.digest(p) for p in output.glob("*/*.safetensors")}
    old = {name: d for name, d in before.items() if name.endswith(".safetensors")}
    new = {name.removeprefix("out/"): d for name, d in after.items()}
    return None if weights in (old, new) else "its weights are neither all old nor all new"


def synthetic_whole(output: Path, before: dict[str, str], after: dict[str, str]) -> str | None:
    """Of an enlarged dataset: there is nothing, or what there is can be gone on with (seen when it is run again)."""
    return None


def _answers(world: World, folder: Path) -> None:
    shutil.copytree(world["answers"], folder / "out")


def _older(part: str) -> Callable[[World, Path], None]:
    return lambda world, folder: (shutil.copytree(world[part], folder / "out"), None)[1]


def _segment(world: World) -> list[str]:
    model = str(world["model"])
    return [
        "segment",
        str(world["scans"]),
        "-p",
        "liver",
        "-p",
        "spleen",
        "-m",
        model,
        "-n",
        "2",
        "-o",
        "out",
        "--seed",
        "3",
    ]


def _train(world: World) -> list[str]:
    return ["train", "unet", str(world["dataset"]), "-o", "out", "--images", "160"]


def _pretrain(world: World) -> list[str]:
    return ["pretrain", str(world["dataset"]), "-o", "out", "--images", "48"]


def _adapt(world: World) -> list[str]:
    return ["adapt", str(world["model"]), str(world["dataset"]), "-o", "out", "--images", "32", "--shots", "2"]


def _synthesize(world: World) -> list[str]:
    base = str(world["edges"])
    return [
        "synthesize",
        str(world["dataset"]),
        "-o",
        "out",
        "--images",
        "16",
        "-k",
        "1",
        "--steps",
        "2",
        "--foundation",
        base,
    ]


def _calibrate(world: World) -> list[str]:
    return ["calibrate", "out", str(world["dataset"]), "-n", "2"]


def _merge(world: World) -> list[str]:
    return ["merge", str(world["model"]), str(world["adapter"]), "-o", "out"]


WEIGHTS = ("out/*.safetensors",)
FOUNDATION = ("out/*/*.safetensors",)
MASKS = ("out/*/*.nii.gz",)
KILLS: dict[str, Kill] = {
    "kill-segment": Kill(16, ("answers",), _segment, cases_whole, MASKS, ("--resume",)),
    "kill-segment-over": Kill(20, ("answers",), _segment, cases_whole, MASKS, ("--resume",), _answers),
    "kill-train": Kill(12, ("model",), _train, sealed_whole, WEIGHTS),
    "kill-train-over": Kill(12, ("model",), _train, sealed_whole, WEIGHTS, (), _older("model")),
    "kill-adapt-over": Kill(9, ("model", "adapter"), _adapt, sealed_whole, WEIGHTS, (), _older("adapter")),
    "kill-synthesize": Kill(9, ("edges",), _synthesize, synthetic_whole, ("out/imagesTr/*.nii.gz", "out/images/*")),
    "kill-pretrain-over": Kill(9, ("foundation",), _pretrain, foundation_whole, FOUNDATION, (), _older("foundation")),
    "kill-calibrate": Kill(8, ("model",), _calibrate, sealed_whole, WEIGHTS, (), _older("model")),
    "kill-merge": Kill(5, ("adapter",), _merge, sealed_whole, WEIGHTS),
}


def plan(count: int, only: Sequence[str] = ()) -> list[tuple[str, int]]:
    """(kind, number) of every kill."""
    chosen = {name: kill for name, kill in KILLS.items() if not only or name in only}
    total = sum(kill.share for kill in chosen.values())
    order: list[tuple[str, int]] = []
    for name, kill in chosen.items():
        order += [(name, number) for number in range(max(1, round(count * kill.share / total)))]
    order.sort(key=lambda one: (one[1] / KILLS[one[0]].share, one[0]))
    return (
        order[:count]
        if len(order) >= count
        else [*order, *((order[0][0], 10_000 + n) for n in range(count - len(order)))]
    )


def references(names: Sequence[str], world: World, work: Path) -> dict[str, Reference]:
    """Each command left alone, by kind."""
    return {name: _reference(name, world, work / f"reference-{name}") for name in names}


def _reference(name: str, world: World, folder: Path) -> Reference:
    kill = KILLS[name]
    _prepare(kill, world, folder)
    count = folder / ".log" / "changes"
    done = server.run(
        kill.arguments(world), folder, folder / ".log", seconds=600, before=lambda: _watch(folder, None, count)
    )
    if done.code not in (0, 8):
        raise RuntimeError(f"{name}: left alone it ends with {done.code}: {done.err[-400:]}")
    return Reference(_files(folder, kill.same), done.seconds, len(count.read_bytes()))


def one_kill(seed: int, known: dict[str, Reference], world: World, work: Path, job: tuple[str, int]) -> dict[str, Any]:
    """Kill a command once, look, run it again, and compare."""
    kind, number = job
    kill, reference = KILLS[kind], known[kind]
    name = f"{seed}-{kind}-{number}"
    folder, rng = work / name, Random(name)
    _prepare(kill, world, folder)
    before = checks.digests(folder / "out") if (folder / "out").exists() else {}
    arguments = kill.arguments(world)
    if rng.random() < 0.5:
        moment = rng.random() * reference.seconds * 1.1
        done = server.run(arguments, folder, folder / ".log", seconds=LONGEST, kill_after=moment)
        what = f"killed after {moment:.2f} s of {reference.seconds:.2f}"
    else:
        last = max(1, reference.changes)
        change = rng.randrange(max(0, last - 40), last) if rng.random() < 0.5 else rng.randrange(last)
        count = folder / ".log" / "changes"
        done = server.run(
            arguments, folder, folder / ".log", seconds=LONGEST, before=lambda: _watch(folder, change, count)
        )
        what = f"killed at change {change} of {reference.changes} to the file system"
    outcome, reason, leftovers = _after(kill, reference, before, world, folder, done)
    if outcome in ("went on", "had ended"):
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "id": name,
        "kind": kind,
        "outcome": outcome,
        "reason": reason,
        "what": what,
        "command": printable("delineate " + " ".join(arguments)),
        "leftovers": leftovers,
    }


def _after(
    kill: Kill, reference: Reference, before: dict[str, str], world: World, folder: Path, done: Done
) -> tuple[str, str, int]:
    """What came of a kill, why, and how many temporary files are left in the end."""
    killed = done.code == -signal.SIGKILL
    if done.timed_out:
        return "hang", "still there after the time allowed", 0
    if not killed and done.code not in (0, 8):
        return "traceback", f"not killed, exit code {done.code}: {last_line_of(done.err)}", 0
    output = folder / "out"
    there = checks.digests(output) if output.exists() else {}
    if there != before and (wrong := kill.whole(output, before, reference.files)):
        return "lost", printable(f"after the kill: {wrong}"), 0
    all_done = _files(folder, kill.same) == reference.files
    again = server.run([*kill.arguments(world), *kill.again], folder, folder / ".log2", seconds=LONGEST)
    if again.timed_out:
        return "hang", "run again it does not end", 0
    if all_done and again.code == USAGE and "exists and is not empty" in again.err:
        return "had ended", "killed when all was done; asked again it is refused, as after any other end", 0
    if again.code not in (0, 8):
        return "lost", f"run again it ends with {again.code}: {last_line_of(again.err)}", 0
    if wrong := kill.whole(output, before, reference.files):
        return "lost", printable(f"run again: {wrong}"), 0
    files = _files(folder, kill.same)
    if odd := sorted(n for n in reference.files.keys() | files.keys() if files.get(n) != reference.files.get(n)):
        return "silent wrong", f"run again, {odd[0]} is not what it is when left alone", 0
    leftovers = sum(1 for p in folder.rglob(".writing-*"))
    return ("went on" if killed else "had ended"), "", leftovers


def _prepare(kill: Kill, world: World, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if kill.before is not None:
        kill.before(world, folder)


def _files(folder: Path, globs: Sequence[str]) -> dict[str, str]:
    there = (path for glob in globs for path in folder.glob(glob))
    found = sorted(path for path in there if path.is_file() and not path.name.startswith("."))  # leftovers are counted
    return {str(path.relative_to(folder)): checks.digest(path) for path in found}


def _watch(folder: Path, last: int | None, count: Path) -> None:
    """In the fork: count changes to files below `folder`, a byte each; be killed at the one numbered `last`."""
    root, seen = str(folder), 0
    written = os.open(count, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event == "open":
            path, _, flags = arguments
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in CHANGES:
            path = arguments[0]
        else:
            return
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str | Path) or not os.path.abspath(path).startswith(root):
            return
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)
        seen += 1
        os.write(written, b".")

    sys.addaudithook(hook)
