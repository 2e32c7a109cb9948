"""Datasets that are not as they should be: JSON, splits, names, masks; and damaged folders of answers and trainings."""

import gzip
import json
import shutil
import struct
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from fuzzing import checks, jsons
from fuzzing.trial import Trial
from fuzzing.world import UNFINISHED, World, copy_of, own


def dataset_trial(rng: Random, world: World, folder: Path) -> Trial:
    """A command that reads a dataset of which one or two things are wrong."""
    flat = rng.random() < 0.35
    data = copy_of(world["flat"] if flat else world["dataset"], folder / "data")
    what = "; ".join(_changed(data, rng, flat) for _ in range(rng.choice((1, 1, 2))))
    model = str(world["model"])
    commands = {
        "check": ["check", "data", *rng.choice(([], ["--json"]))],
        "train": ["train", rng.choice(("unet", "encoder")), "data", "--images", "8", "-o", "out"],
        "evaluate": ["evaluate", "data", "-m", model, "-n", "1", "-o", "out"],
        "adapt": ["adapt", model, "data", "--images", "8", "--shots", "1", "-o", "out"],
        "calibrate": ["calibrate", model, "data", "-n", "1", "-o", "out"],
        "pretrain": ["pretrain", "data", "--images", "8", "-o", "out"],
        "study": ["study", "ubench", "data", "--images", "8", "--system", "unet", "-o", "out"],
        "synthesize": [
            *("synthesize", "data", "--images", "8", "-k", "1", "--steps", "2"),
            *("--foundation", str(world["edges"]), "-o", "out"),
        ],
        "distance": ["distance", "data", str(world["dataset"]), "--limit", "8", "--size", "32", "-o", "out"],
    }
    name = rng.choice(("check", "check", "check", "train", "train", *commands))
    divides = name == "train"  # writes the splits.json that the dataset lacks
    return Trial(commands[name], f"dataset: {what}", stop_after=45, adds_anywhere=divides)


def answers_trial(rng: Random, world: World, folder: Path) -> Trial:
    """A run into a folder of earlier answers of which something is damaged: they must come out whole and right."""
    output = folder / "out"
    shutil.copytree(world["answers"], output)
    cases = sorted(p.parent for p in output.glob("*/case.json"))
    case = rng.choice(cases)
    what = ""
    if rng.random() < 0.85:
        what = _damaged(output, case, rng)
    how = rng.choice(("resume", "resume", "resume", "again", "other", "review", "bad scan"))
    scans, model = str(world["scans"]), str(world["model"])
    same = ["segment", scans, "-p", "liver", "-p", "spleen", "-m", model, "-n", "2", "-o", "out"]
    if how == "review":
        arguments = ["review", "out", "-m", model, "--no-browser", "--json"]
        return Trial(arguments, f"answers for review: {what}", stop_when='"url"', stop_after=20)
    if how == "bad scan":
        shutil.rmtree(output)
        shutil.copytree(world["answers"], output)
        shutil.copytree(world["scans"], folder / "in")
        for file in rng.sample(sorted((folder / "in").iterdir()), rng.choice((1, 2))):
            file.write_bytes(file.read_bytes()[: rng.randrange(400)])
        same[1] = "in"
        kept = checks.answers_kept(output)
        return Trial(
            [*same, *rng.choice(([], ["--resume"]))], "earlier answers, and a scan that is damaged now", [kept]
        )
    if how == "other":
        return Trial(
            [*same[:-2], "--seed", "5", "-o", "out"], f"other answers over: {what}", [checks.cases_are_whole(output)]
        )
    more = ["--resume"] if how == "resume" else []
    return Trial([*same, *more], f"answers, {how}: {what}", [_as_answered(output, world["answers"])])


def unfinished_trial(rng: Random, world: World, folder: Path) -> Trial:
    """The same training again, of which a checkpoint or the request is damaged."""
    shutil.copytree(world["unfinished"] / "m-training", folder / "out-training")
    shutil.copytree(world["dataset"], folder / "dataset")
    settings = folder / "out-training" / "settings.json"
    told = json.loads(settings.read_text())
    told["datasets"] = [text.replace(str(world["dataset"]), str(folder / "dataset")) for text in told["datasets"]]
    settings.write_text(json.dumps(told))
    files = sorted(p for p in (folder / "out-training").rglob("*") if p.is_file() and p.stat().st_size)
    file = rng.choice(files)
    name = file.relative_to(folder / "out-training")
    how = rng.random()
    if file.suffix == ".json" and how < 0.7:
        what = jsons.change_file(file, rng)
    elif how < 0.85:
        data = bytearray(file.read_bytes())
        for _ in range(rng.choice((1, 20))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        what = "bits flipped"
    else:
        file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])
        what = "cut"
    arguments = [
        a.replace("../dataset", "dataset").replace("m", "out") if a in ("../dataset", "m") else a for a in UNFINISHED
    ]
    return Trial(arguments, f"an unfinished training: {name}: {what}", stop_after=6)


def _as_answered(output: Path, reference: Path):
    """Whether every mask is what it is in whole answers to the same."""

    def check(done):
        if done.code != 0:
            return None
        for file in sorted(reference.glob("*/*.nii.gz")):
            here = output / file.parent.name / file.name
            if checks.digest(here) != checks.digest(file):
                return "silent wrong", f"exit code 0, and {file.parent.name}/{file.name} is not what it was"
        return None

    return check


def _damaged(output: Path, case: Path, rng: Random) -> str:
    masks = sorted(case.glob("*.nii.gz"))
    mask = rng.choice(masks)
    ways = (
        "mask empty",
        "mask cut",
        "mask gone",
        "mask of another",
        "case.json",
        "case.json",
        "run.json",
        "picture gone",
        "folder",
    )
    how = rng.choice(ways)
    if how == "mask empty":
        mask.write_bytes(b"")
    elif how == "mask cut":
        mask.write_bytes(mask.read_bytes()[: rng.randrange(mask.stat().st_size)])
    elif how == "mask gone":
        mask.unlink()
    elif how == "mask of another":
        mask.write_bytes(rng.choice([m for m in masks if m != mask]).read_bytes())
    elif how == "case.json":
        return jsons.change_file(case / "case.json", rng)
    elif how == "run.json":
        return jsons.change_file(output / "run.json", rng)
    elif how == "picture gone":
        (case / "montage.png").unlink(missing_ok=True)
    else:
        (case / "case.json").unlink()
        (case / "case.json").mkdir()
    return f"{how} ({mask.name})"


def _changed(data: Path, rng: Random, flat: bool) -> str:
    images, labels = (data / name for name in (("images", "masks") if flat else ("imagesTr", "labelsTr")))
    documents = sorted(p for p in data.glob("*.json"))
    how = rng.random()
    if how < 0.5:
        file = rng.choice(documents)
        return jsons.change_file(own(file), rng)
    folder: Path = rng.choice([images, labels, labels, *([data / "raters"] if (data / "raters").is_dir() else [])])
    files = sorted(folder.iterdir())
    if not files:
        return "nothing left"
    file = rng.choice(files)
    what = rng.choice(
        ("gone", "cut", "rubbish", "another name", "values", "shape", "a folder", "a link", "twice", "all gone")
    )
    if what == "gone":
        file.unlink()
    elif what == "cut":
        raw = own(file).read_bytes()
        file.write_bytes(raw[: rng.randrange(len(raw))])
    elif what == "rubbish":
        own(file).write_bytes(rng.randbytes(2000))
    elif what == "another name":
        file.rename(
            file.with_name(
                rng.choice(("\x1b[31m.nii.gz", "a\nb.png", "x.nii.gz", "é.png", ".hid.png", "[red]x.nii.gz"))
            )
        )
    elif what in ("values", "shape"):
        what = _pixels(own(file), rng, what)
    elif what == "a folder":
        file.unlink()
        file.mkdir()
    elif what == "a link":
        file.unlink()
        file.symlink_to(rng.choice(("nothing", file.name, "/dev/zero")))
    elif what == "twice":
        copy_of(file, file.with_name("copy-" + file.name))
    else:
        for one in files:
            one.unlink()
    return f"{folder.name}/{file.name}: {what}"


def _pixels(file: Path, rng: Random, what: str) -> str:
    """Change an image's values or shape."""
    if file.suffix == ".png":
        with Image.open(file) as opened:
            values = np.asarray(opened).copy()
        if what == "shape":
            Image.fromarray(values[:-3]).save(file)
        else:
            values[: len(values) // 2] = rng.choice((1, 7, 128, 255))
            Image.fromarray(values).save(file)
        return what
    raw = bytearray(gzip.decompress(file.read_bytes()))
    offset = int(struct.unpack_from("<f", raw, 108)[0])
    if what == "values":
        for _ in range(20):
            raw[rng.randrange(offset, len(raw))] = rng.choice((0, 77, 200, 255))
    elif rng.random() < 0.5:
        at = 76 + 4 * rng.randrange(1, 4)
        struct.pack_into("<f", raw, at, rng.choice((0.5, -1.0, 99.0)))
        struct.pack_into("<f", raw, 280, rng.choice((0.5, 3.0, float("nan"))))
        what = "spacing"
    else:
        sizes = struct.unpack_from("<3h", raw, 42)
        struct.pack_into("<3h", raw, 42, sizes[0] // 2, sizes[1] * 2, sizes[2])
    file.write_bytes(gzip.compress(bytes(raw)))
    return what
