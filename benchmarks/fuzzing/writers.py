"""Two commands at once that write to one place: what is there in the end is whole, and of one of them."""

import shutil
import time
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import checks, server
from fuzzing.trial import ANSWERS, Done, last_line_of, printable
from fuzzing.world import World

NEEDS = ["answers", "model", "adapter"]
COMMANDS = ("segment", "segment", "segment", "train", "calibrate", "adapt")


def plan(count: int) -> list[int]:
    """The numbers of the pairs."""
    return list(range(count))


def one_pair(seed: int, world: World, work: Path, number: int) -> dict[str, Any]:
    """Run two commands into one folder, the second a moment later, and look."""
    name = f"{seed}-writers-{number}"
    folder, rng = work / name, Random(name)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    what = COMMANDS[number % len(COMMANDS)]
    one, other = _pair(what, world)
    if what == "calibrate":
        shutil.copytree(world["model"], folder / "out")
    alone: list[dict[str, str]] = []
    if what == "segment":
        for turn, arguments in enumerate((one, other)):
            place = folder / f"alone{turn}"
            place.mkdir()
            server.run(arguments, place, place / ".log", seconds=120)
            alone.append(checks.digests(place / "out"))
    first = server.start(one, folder, folder / ".log")
    time.sleep(rng.choice((0.0, 0.0, 0.1, 0.2, 0.4)))
    second = server.start(other, folder, folder / ".log2")
    ends = [first.finish(120), second.finish(120)]
    outcome, reason = _judged(what, folder / "out", ends, alone, world)
    if outcome in ("one waited or was refused", "both whole"):
        shutil.rmtree(folder, ignore_errors=True)
    command = printable(f"delineate {' '.join(one)} & delineate {' '.join(other)}")
    return {
        "id": name,
        "kind": f"writers-{what}",
        "outcome": outcome,
        "reason": reason,
        "what": what,
        "command": command,
    }


def _pair(what: str, world: World) -> tuple[list[str], list[str]]:
    model, dataset = str(world["model"]), str(world["dataset"])
    if what == "segment":
        same = ["segment", str(world["scans"]), "-m", model, "-o", "out"]  # each asks for what the other does not
        return [*same, "-p", "liver", "-n", "2", "--seed", "1"], [*same, "-p", "spleen", "-n", "3", "--seed", "2"]
    if what == "train":
        same = ["train", "unet", dataset, "-o", "out", "--images", "160"]
    elif what == "adapt":
        same = ["adapt", model, dataset, "-o", "out", "--images", "32", "--shots", "2"]
    else:
        return (["calibrate", "out", dataset, "-n", str(n)] for n in (2, 3))  # type: ignore[return-value]
    return [*same, "--seed", "1"], [*same, "--seed", "2"]


def _judged(what: str, output: Path, ends: list[Done], alone: list[dict[str, str]], world: World) -> tuple[str, str]:
    for done in ends:
        said = done.out + done.err
        if done.timed_out:
            return "hang", "still there after 120 s"
        if "Traceback (most recent call last)" in said or "internal error" in said or done.code < 0:
            return "traceback", last_line_of(said)
        if done.code not in world.documented | ANSWERS:
            return "traceback", f"exit code {done.code} is not documented: {last_line_of(said)}"
    if what == "segment":
        for case in sorted(p.parent for p in output.glob("[!.]*/case.json")):
            if wrong := checks.case_is_whole(case):
                return "silent wrong", f"{case.name}: {wrong}"
            here = {f"{case.name}/{n}": d for n, d in checks.digests(case).items() if not n.endswith("case.json")}
            own = [
                {n: d for n, d in a.items() if n.split("/")[0] == case.name and n.split("/")[1] != "case.json"}
                for a in alone
            ]
            if here not in own:
                return "silent wrong", f"{case.name}: files of both runs, or of neither, lie side by side"
        if any(done.code == 0 for done in ends) and not list(output.glob("[!.]*/case.json")):
            return "lost", "exit code 0, and no case"
    elif any(done.code in (0, 8) for done in ends) and (wrong := checks.sealed_wrong(output)):
        return "lost", wrong
    refused = [done for done in ends if done.code not in ANSWERS]
    return ("one waited or was refused", last_line_of(refused[0].err)) if refused else ("both whole", "")
