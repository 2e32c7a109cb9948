"""Places that cannot be written to, or read from, or not as it seems: for every command that writes."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

from fuzzing import checks
from fuzzing.options import baseline
from fuzzing.trial import Trial
from fuzzing.world import World

WRITERS = (
    *("segment", "segment", "segment", "train", "adapt", "pretrain", "synthesize", "evaluate", "calibrate", "merge"),
    *("study", "distance", "demo", "review"),
)
READERS = ("segment", "segment", "check", "train", "evaluate", "distance", "review", "calibrate", "prompts", "merge")


def trial(rng: Random, world: World, folder: Path) -> Trial:
    """A command whose output, or input, is in an odd place."""
    return _output(rng, world, folder) if rng.random() < 0.65 else _input(rng, world, folder)


def _output(rng: Random, world: World, folder: Path) -> Trial:
    command = rng.choice(WRITERS)
    arguments = baseline(command, world, rng)
    if command == "calibrate" and "-o" not in arguments:
        arguments += ["-o", "out"]
    output, what, limit = _odd_output(rng, world, folder)
    at = arguments.index("-o") + 1
    arguments[at] = output
    more = {"stop_when": '"url"', "stop_after": 15.0} if command == "review" else {}
    touches = ("out", "out-training", "there", "there-training")
    trial = Trial(arguments, f"{command} to {what}", largest_file=limit, touches=touches, **more)
    trial.adds_anywhere = output in ("", ".")
    if command == "demo":
        trial.stop_after = 10.0
    if (folder / "there").is_file():
        before = checks.digest(folder / "there")
        trial.checks.append(
            lambda done: None if checks.digest(folder / "there") == before else ("lost", "a file is gone")
        )
    return trial


def _odd_output(rng: Random, world: World, folder: Path) -> tuple[str, str, int | None]:
    """Where to write, what that is, and the bytes at which files end."""
    file = folder / "there"
    out = folder / "out"
    ways: dict[str, Callable[[], str]] = {
        "a file": lambda: after(file.write_text("mine"), path="there"),
        "below a file": lambda: after(file.write_text("mine"), path="there/out"),
        "/dev/null": lambda: "/dev/null",
        "/dev/full": lambda: "/dev/full/x",
        "/proc": lambda: "/proc/nothing",
        "/sys": lambda: "/sys/out",
        "a pipe": lambda: after(os.mkfifo(out), path="out"),
        "a link to itself": lambda: after(out.symlink_to("out"), path="out"),
        "a link to nothing": lambda: after(out.symlink_to("there"), path="out"),
        "a link to /dev/null": lambda: after(out.symlink_to("/dev/null"), path="out"),
        "a folder of other things": lambda: after(out.mkdir(), (out / "mine.txt").write_text("x"), path="out"),
        "a name too long": lambda: "o" * 300,
        "a path too long": lambda: "/".join(["o" * 200] * 30),
        "no name": lambda: "",
        "a dot": lambda: ".",
        "a name with a newline": lambda: "out/a\nb\x1b[31m",
        "a name of bytes": lambda: "out/\udcff\udcfe",
        "a training folder that is a file": lambda: after((folder / "out-training").write_text("mine"), path="out"),
        "a run.json that is a folder": lambda: after((out / "run.json").mkdir(parents=True), path="out"),
        "a report.json that is a folder": lambda: after((out / "report.json").mkdir(parents=True), path="out"),
    }
    if full := world.full:
        ways["a full disk"] = lambda: str(full / f"o{rng.randrange(10**6)}")
    if read_only := world.read_only:
        ways["a disk that cannot be written"] = lambda: str(read_only / "out")
    name = rng.choice([*ways, "small files only", "small files only"])
    if name == "small files only":
        limit = rng.choice((0, 10, 1000, 20_000, 500_000))
        return "out", f"a disk that is full after {limit} bytes a file", limit
    return ways[name](), name, None


def _input(rng: Random, world: World, folder: Path) -> Trial:
    command = rng.choice(READERS)
    arguments = baseline(command, world, rng)
    there = [n for n, a in enumerate(arguments) if a.startswith(str(world.root)) and arguments[n - 1] != "-o"]
    inside = folder / "d"

    def link(name: str, to: str) -> str:
        return after((folder / name).symlink_to(to), path=name)

    ways: dict[str, Callable[[], str]] = {
        "a pipe": lambda: after(os.mkfifo(folder / "p"), path="p"),
        "a pipe called as a scan": lambda: after(os.mkfifo(folder / "p.nii.gz"), path="p.nii.gz"),
        "/dev/zero": lambda: "/dev/zero",
        "/dev/stdin": lambda: "/dev/stdin",
        "/dev/null": lambda: "/dev/null",
        "a link to itself": lambda: link("l.nii.gz", "l.nii.gz"),
        "a link to /dev/zero": lambda: link("z.nii.gz", "/dev/zero"),
        "a folder called as a scan": lambda: after((folder / "d.nii.gz").mkdir(), path="d.nii.gz"),
        "an empty folder": lambda: after(inside.mkdir(), path="d"),
        "a folder with a link to nothing": lambda: after(inside.mkdir(), link("d/x.nii.gz", "y"), path="d"),
        "a folder with a pipe": lambda: after(inside.mkdir(), os.mkfifo(inside / "x.nii.gz"), path="d"),
        "a folder with a link to /dev/zero": lambda: after(inside.mkdir(), link("d/x.nii", "/dev/zero"), path="d"),
        "nothing": lambda: "nothing.nii.gz",
        "below a file": lambda: str(world["ct"] / "ct.nii.gz" / "x"),
        "no name": lambda: "",
        "a name too long": lambda: "x" * 300 + ".nii.gz",
        "a name of bytes": lambda: "\udcff.nii.gz",
        "/proc/self": lambda: "/proc/self",
        "the root": lambda: "/",
    }
    name = rng.choice(sorted(ways))
    if there:
        arguments[rng.choice(there)] = ways[name]()
    more = {"stop_when": '"url"', "stop_after": 15.0} if command == "review" else {}
    return Trial(arguments, f"{command} of {name}", **more)


def after(*done: object, path: str) -> str:
    """The path, once what makes it odd is done: arguments come first."""
    return path
