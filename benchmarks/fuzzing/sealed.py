"""Models, adapters and foundations whose JSON or weights are changed, and whose hashes are then made to fit again."""

import json
import shutil
import struct
from pathlib import Path
from random import Random

import numpy as np

from delineate.storage.shipped import house_folder
from fuzzing import checks, jsons
from fuzzing.trial import Done, Trial, Verdict
from fuzzing.world import World, copy_of, own

ODD = (float("nan"), float("inf"), 1e30, 0.0)


def model_trial(rng: Random, world: World, folder: Path) -> Trial:
    """A command with a changed model; unsealed it must be refused, sealed it may be used where it makes sense."""
    house = rng.random() < 0.25
    if not house:
        model = copy_of(world["model"], folder / "model")
    else:
        model = Path(shutil.copytree(house_folder(), folder / "model"))
    what, sealed, nonsense = _changed(model, rng)
    scan = str(sorted(world["scans"].iterdir())[0])
    dataset = str(world["dataset"])
    quick = ("segment",) * 6 + ("prompts", "prompts", "review")
    name = rng.choice(quick if house else (*quick, "evaluate", "calibrate", "adapt"))
    commands = {
        "segment": ["segment", scan, "-p", "liver", "-m", "model", "-n", "1", "--no-pictures", "-o", "out"],
        "prompts": ["prompts", "-m", "model", *rng.choice(([], ["liver"], ["--json"]))],
        "evaluate": ["evaluate", dataset, "-m", "model", "-n", "1", "-o", "out"],
        "calibrate": ["calibrate", "model", dataset, "-n", "1", "-o", "out"],
        "adapt": ["adapt", "model", dataset, "--images", "8", "--shots", "1", "-o", "out"],
        "review": ["review", scan, "-m", "model", "--no-browser", "-o", "out", "--json"],
    }
    trial = Trial(commands[name], f"model: {what}, {'sealed' if sealed else 'not sealed'}")
    if name == "review":
        trial.stop_when, trial.stop_after = '"url"', 20.0
    if not sealed and name != "prompts":
        trial.checks.append(checks.must_be_refused("a file of the model is not what its manifest says"))
    if nonsense and name == "segment":
        trial.checks.append(_found_nothing(folder / "out", what))
    trial.checks.append(checks.cases_are_whole(folder / "out"))
    return trial


def adapter_trial(rng: Random, world: World, folder: Path) -> Trial:
    """A command with a changed adapter."""
    adapter = copy_of(world["adapter"], folder / "adapter")
    what, sealed, _ = _changed(adapter, rng)
    scan, model = str(sorted(world["scans"].iterdir())[0]), str(world["model"])
    commands = (
        ["segment", scan, "-p", "liver", "-m", model, "-a", "adapter", "-n", "1", "--no-pictures", "-o", "out"],
        ["merge", model, "adapter", "-o", "out"],
        ["evaluate", str(world["dataset"]), "-m", model, "-a", "adapter", "-n", "1", "-o", "out"],
    )
    trial = Trial(rng.choice(commands), f"adapter: {what}, {'sealed' if sealed else 'not sealed'}")
    if not sealed:
        trial.checks.append(checks.must_be_refused("a file of the adapter is not what its manifest says"))
    return trial


def foundation_trial(rng: Random, world: World, folder: Path) -> Trial:
    """A training on a changed foundation, or synthetic scans from one; it has no manifest."""
    edges = rng.random() < 0.5
    copy_of(world["edges"] if edges else world["foundation"], folder / "base")
    files = sorted(p for p in (folder / "base").rglob("*") if p.suffix in (".json", ".safetensors"))
    file = rng.choice(files if rng.random() < 0.4 else [p for p in files if p.suffix == ".json"])
    if rng.random() < 0.15:
        file.unlink()
        what = f"{file.name} is gone"
    elif file.suffix == ".json":
        what = jsons.change_file(own(file), rng)
    else:
        what, _ = _weights(own(file), rng)
    dataset = str(world["dataset"])
    arguments = ["train", "progidiff", dataset, "--images", "8", "--no-calibrate"]
    if edges:
        arguments = ["synthesize", dataset, "--images", "8", "-k", "1", "--steps", "2"]
    where = str(file.relative_to(folder / "base"))
    return Trial([*arguments, "--foundation", "base", "-o", "out"], f"foundation: {where}: {what}", stop_after=40)


def seal(folder: Path) -> None:
    """Make the manifest say what is there."""
    manifest = {
        path.relative_to(folder).as_posix(): checks.digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != "manifest.json"
    }
    own(folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


def _changed(folder: Path, rng: Random) -> tuple[str, bool, bool]:
    """Change one file of a sealed folder; what, whether it was sealed again, whether no sound answer can come of it."""
    documents = [p for p in sorted(folder.rglob("*.json")) if p.name != "manifest.json"]
    top = [p for p in documents if p.parent == folder]
    weights = sorted(folder.rglob("*.safetensors"))
    how, nonsense = rng.random(), False
    if how < 0.07:
        what = jsons.change_file(own(folder / "manifest.json"), rng)
        return what, True, False  # as it may be: the manifest vouches for itself
    if how < 0.65:
        what = jsons.change_file(own(rng.choice(top if rng.random() < 0.8 else documents)), rng)
    elif how < 0.9 and weights:
        file = rng.choice(weights)
        what, nonsense = _weights(own(file), rng)
    else:
        file = rng.choice(documents + weights)
        file.unlink()
        what = f"{file.name} is gone"
    sealed = rng.random() < 0.85
    if sealed:
        seal(folder)
    return what, sealed, nonsense and weights[0].parent == folder


def _weights(path: Path, rng: Random) -> tuple[str, bool]:
    """Change a safetensors file; what, and whether its numbers are no numbers any more."""
    data = bytearray(path.read_bytes())
    (length,) = struct.unpack_from("<Q", data)
    head = json.loads(data[8 : 8 + length])
    names = [n for n in head if n != "__metadata__"]
    how = rng.choice(
        ("cut", "one value", "all values", "a name changed", "a shape changed", "a type changed", "head", "empty")
    )
    if how == "cut":
        del data[rng.randrange(len(data)) :]
    elif how == "empty":
        data.clear()
    elif how == "head":
        struct.pack_into("<Q", data, 0, rng.choice((0, 2**63, 10**9, length + 1, 8)))
    elif how in ("one value", "all values"):
        value = rng.choice(ODD)
        some = [n for n in names if head[n]["dtype"] in ("F32", "F16")]
        for name in some if how == "all values" else rng.sample(some, min(1, len(some))):
            start, end = head[name]["data_offsets"]
            kind = np.float32 if head[name]["dtype"] == "F32" else np.float16
            with np.errstate(over="ignore"):
                data[8 + length + start : 8 + length + end] = np.full(
                    (end - start) // kind().itemsize, value, kind
                ).tobytes()
        path.write_bytes(data)
        return f"{path.name}: {how} of it {value}", how == "all values" and not np.isfinite(value)
    else:
        name = rng.choice(names)
        if how == "a name changed":
            head[f"{name}.x"] = head.pop(name)
        elif how == "a shape changed":
            head[name]["shape"] = rng.choice(
                ([], [0], [1, *head[name]["shape"]], head[name]["shape"][::-1], [2**40, 2**40])
            )
        else:
            head[name]["dtype"] = rng.choice(("I64", "BF16", "F16", "U8", "XX"))
        text = json.dumps(head).encode()
        data = bytearray(struct.pack("<Q", len(text)) + text + data[8 + length :])
    path.write_bytes(data)
    return f"{path.name}: {how}", False


def _found_nothing(output: Path, what: str):
    def check(done: Done) -> Verdict | None:
        for file in output.glob("*/case.json") if done.code == 0 else ():
            for target in json.loads(file.read_text())["targets"]:
                return "silent wrong", f"'{target['outcome']}' from weights that are no numbers ({what})"
        return None

    return check
