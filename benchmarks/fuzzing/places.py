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
    ways: dict[str, Callable[[], str]] = {
        "a file": lambda: (file.write_text("mine"), "there")[1],
        "below a file": lambda: (file.write_text("mine"), "there/out")[1],
        "/dev/null": lambda: "/dev/null",
        "/dev/full": lambda: "/dev/full/x",
        "/proc": lambda: "/proc/nothing",
        "/sys": lambda: "/sys/out",
        "a pipe": lambda: (os.mkfifo(folder / "out"), "out")[1],
        "a link to itself": lambda: ((folder / "out").symlink_to("out"), "out")[1],
        "a link to nothing": lambda: ((folder / "out").symlink_to("there"), "out")[1],
        "a link to /dev/null": lambda: ((folder / "out").symlink_to("/dev/null"), "out")[1],
        "a folder of other things": lambda: (
            (folder / "out").mkdir(),
            (folder / "out" / "mine.txt").write_text("x"),
            "out",
        )[2],
        "a name too long": lambda: "o" * 300,
        "a path too long": lambda: "/".join(["o" * 200] * 30),
        "no name": lambda: "",
        "a dot": lambda: ".",
        "a name with a newline": lambda: "out/a\nb\x1b[31m",
        "a name of bytes": lambda: "out/\udcff\udcfe",
        "a folder whose training folder is a file": lambda: ((folder / "out-training").write_text("mine"), "out")[1],
        "a folder whose run.json is a folder": lambda: ((folder / "out" / "run.json").mkdir(parents=True), "out")[1],
        "a folder whose report.json is a folder": lambda: ((folder / "out" / "report.json").mkdir(parents=True), "out")[
            1
        ],
    }
    if world.full:
        ways["a full disk"] = lambda: str(world.full / f"o{rng.randrange(10**6)}")
    if world.read_only:
        ways["a disk that cannot be written"] = lambda: str(world.read_only / "out")
    name = rng.choice([*ways, "small files only", "small files only"])
    if name == "small files only":
        limit = rng.choice((0, 10, 1000, 20_000, 500_000))
        return "out", f"a disk that is full after {limit} bytes a file", limit
    return ways[name](), name, None


def _input(rng: Random, world: World, folder: Path) -> Trial:
    command = rng.choice(READERS)
    arguments = baseline(command, world, rng)
    there = [n for n, a in enumerate(arguments) if a.startswith(str(world.root)) and arguments[n - 1] != "-o"]
    ways: dict[str, Callable[[], str]] = {
        "a pipe": lambda: (os.mkfifo(folder / "p"), "p")[1],
        "a pipe called as a scan": lambda: (os.mkfifo(folder / "p.nii.gz"), "p.nii.gz")[1],
        "/dev/zero": lambda: "/dev/zero",
        "/dev/stdin": lambda: "/dev/stdin",
        "/dev/null": lambda: "/dev/null",
        "a link to itself": lambda: ((folder / "l.nii.gz").symlink_to("l.nii.gz"), "l.nii.gz")[1],
        "a link to /dev/zero": lambda: ((folder / "z.nii.gz").symlink_to("/dev/zero"), "z.nii.gz")[1],
        "a folder called as a scan": lambda: ((folder / "d.nii.gz").mkdir(), "d.nii.gz")[1],
        "an empty folder": lambda: ((folder / "d").mkdir(), "d")[1],
        "a folder with a link to nothing": lambda: (
            (folder / "d").mkdir(),
            (folder / "d" / "x.nii.gz").symlink_to("y"),
            "d",
        )[2],
        "a folder with a pipe": lambda: ((folder / "d").mkdir(), os.mkfifo(folder / "d" / "x.nii.gz"), "d")[2],
        "a folder with a link to /dev/zero": lambda: (
            (folder / "d").mkdir(),
            (folder / "d" / "x.nii").symlink_to("/dev/zero"),
            "d",
        )[2],
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
