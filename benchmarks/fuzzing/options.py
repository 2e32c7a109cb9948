"""Options of every command, read from the command line itself: new ones are tried the day they are added."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import checks
from fuzzing.trial import Done, Trial, Verdict
from fuzzing.world import World

VALUES: dict[str, Any] = json.loads((Path(__file__).parent / "values.json").read_text(encoding="utf-8"))
LONG = ("liver" * 20000, "liver " * 300)
KINDS_OF = {"bool": "flag", "float": "float", "int": "int", "Path": "path"}
SLOW = {"demo": 8.0, "review": 12.0, "serve": 12.0}
ENDLESS = ("train", "adapt", "pretrain", "synthesize", "study", "demo", "calibrate", "evaluate")
COMMANDS = {  # how often each
    "segment": 5,
    "train": 4,
    "adapt": 3,
    "evaluate": 2,
    "calibrate": 2,
    "synthesize": 2,
    "pretrain": 2,
    "study": 2,
    "distance": 2,
    "prompts": 2,
    "check": 2,
    "split": 2,
    "review": 2,
    "serve": 2,
    "merge": 1,
    "export": 1,
    "import": 1,
    "demo": 0.5,
    "samples": 0.2,
    "systems": 0.2,
    "doctor": 0.2,
}


def trial(rng: Random, world: World, folder: Path) -> Trial:
    """A command that is right but for one to three options, or words too many."""
    command = rng.choices(list(COMMANDS), list(COMMANDS.values()))[0]
    arguments = baseline(command, world, rng)
    options = parameters(command)
    said, checks_of, logs = [], [], []
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if not options or rng.random() < 0.05:
            extra = rng.choice(
                ("--nothing", "-Z", "extra", "--", "--threads", "-n", "--seed=", "\x1b[31m", "x" * 100_000)
            )
            arguments.append(extra)
            said.append(repr(extra[:40]))
            continue
        option = rng.choices(options, [0.25 if dull(one) else 1.0 for one in options])[0]
        if option["kind"] == "flag":
            arguments.append(rng.choice(option["names"]))
            said.append(arguments[-1])
            continue
        value = _value(option, rng, world)
        name = rng.choice([n for n in option["names"] if n.startswith("-")] or option["names"])
        _set(arguments, option["names"], name, value)
        said.append(f"{name} {value[:40]!r}")
        logs += Path(value).parts[:1] if name == "--log-file" else ()
        if option["kind"] == "float" and value.strip("%").lower() in ("nan", "inf", "-inf", "1e400"):
            checks_of.append(_not_finite(f"{name} {value}"))
    said_of = ", ".join(said)
    trial = Trial(arguments, f"{command} with {said_of}", checks_of)
    if command == "segment":
        trial.checks.append(checks.cases_are_whole(folder / "out"))
    if command in ENDLESS:
        trial.stop_after = 8.0 if "--minutes" in said_of else 20.0
    if command in SLOW:
        trial.stop_after = SLOW[command]
    if command in ("review", "serve"):
        trial.stop_when = "http"
    trial.touches = (*trial.touches, "demo", "ct-review", *logs)
    return trial


def baseline(command: str, world: World, rng: Random) -> list[str]:
    """A command that would succeed, as quick as can be; what it writes goes to `-o out`."""
    model, dataset = str(world["model"]), str(world["dataset"])
    scan = str(sorted(world["scans"].iterdir())[0])
    small = ["--images", "8"]
    made: dict[str, Callable[[], list[str]]] = {
        "segment": lambda: ["segment", scan, "-p", "liver", "-m", model, "-n", "2", "--no-pictures", "-o", "out"],
        "prompts": lambda: ["prompts", "liver", "-m", model],
        "check": lambda: ["check", rng.choice((dataset, f"{world['flat']}=disc@US"))],
        "split": lambda: ["split", str(world["flat"])],  # which has splits: it is shared, and must stay as it is
        "pretrain": lambda: ["pretrain", dataset, *small, "-o", "out"],
        "train": lambda: [
            "train",
            rng.choice(("unet", "unet", "encoder", "spread", "mcdropout")),
            dataset,
            *small,
            "-o",
            "out",
        ],
        "evaluate": lambda: ["evaluate", dataset, "-m", model, "-n", "2", "-o", "out"],
        "study": lambda: ["study", "ubench", dataset, *small, "--system", "unet", "-o", "out"],
        "adapt": lambda: ["adapt", model, dataset, *small, "--shots", "1", "-o", "out"],
        "export": lambda: ["export", model, "--format", rng.choice(("hub", "monai")), "-o", "out"],
        "import": lambda: ["import", model, "-o", "out"],
        "merge": lambda: ["merge", model, str(world["adapter"]), "-o", "out"],
        "calibrate": lambda: ["calibrate", model, dataset, "-n", "2", "-o", "out"],
        "review": lambda: ["review", scan, "-m", model, "--no-browser", "-o", "out"],
        "serve": lambda: ["serve", "-m", model, "--port", "0", "--results", "out"],
        "synthesize": lambda: [
            *("synthesize", dataset, *small, "-k", "1", "--steps", "2"),
            *("--foundation", str(world["edges"]), "-o", "out"),
        ],
        "distance": lambda: ["distance", dataset, f"{world['scans']}", "--limit", "8", "--size", "32", "-o", "out"],
        "demo": lambda: ["demo", "--images", "1", "-o", "out"],
        "samples": lambda: ["samples"],
        "systems": lambda: ["systems"],
        "doctor": lambda: ["doctor"],
    }
    return made[command]()


@cache
def parameters(command: str) -> list[dict[str, Any]]:
    """The options of a command: names, kind (flag, int, float, path, text)."""
    from typer.main import get_command

    from delineate.cli.app import app

    found = []
    for parameter in get_command(app).commands[command].params:  # type: ignore[attr-defined]
        names = [*parameter.opts, *parameter.secondary_opts]
        if not any(name.startswith("-") for name in names) or "--help" in names:
            continue
        told = str(parameter.type_descriptor.annotation)
        what = next((kind for word, kind in KINDS_OF.items() if word in told), "text")
        if "SHARE" in str(parameter.metavar or ""):
            what = "float"
        found.append({"names": names, "kind": what})
    return found


def dull(option: dict[str, Any]) -> bool:
    """Whether little can go wrong with an option: a flag, or where to write, which is tried elsewhere."""
    return option["kind"] == "flag" or "-o" in option["names"]


def _value(option: dict[str, Any], rng: Random, world: World) -> str:
    known = next((VALUES["known"][name] for name in option["names"] if name in VALUES["known"]), ())
    if known and rng.random() < 0.6:
        return rng.choice(known)
    if option["kind"] in ("int", "float"):
        sense = VALUES["whole numbers" if option["kind"] == "int" else "numbers"]
        return rng.choice(sense if rng.random() < 0.8 else [*VALUES["no numbers"], "9" * 5000])
    if option["kind"] == "path" and "-o" in option["names"]:
        return rng.choice(("out/a/b/c", "out", "./out/../out", "out/é", "out/ "))
    if option["kind"] == "path" and rng.random() < 0.7:
        parts = ("ct", "pictures", "dataset", "flat", "scans", "model", "adapter", "foundation", "edges", "answers")
        there = [str(world.root / part) for part in parts if (world.root / f".{part}.ready").exists()]
        return rng.choice([*there, "/dev/null", "nothing", "", "/", "x" * 300])
    return rng.choice([*VALUES["words"], *LONG])


def _set(arguments: list[str], names: list[str], name: str, value: str) -> None:
    """Give an option this value, in place of the one that it has; minutes take the place of images."""
    if name == "--minutes" and "--images" in arguments:
        at = arguments.index("--images")
        del arguments[at : at + 2]
    for at, word in enumerate(arguments[:-1]):
        if word in names:
            arguments[at + 1] = value
            return
    if name.startswith("--") and value.startswith("-"):
        arguments.append(f"{name}={value}")
    else:
        arguments += [name, value]


def _not_finite(what: str) -> Callable[[Done], Verdict | None]:
    def check(done: Done) -> Verdict | None:
        return ("silent wrong", f"{what} was taken as a number") if done.code in (0, 75) else None

    return check
