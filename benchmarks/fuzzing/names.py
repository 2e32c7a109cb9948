"""Scans with names that a terminal, a file system or this program itself might stumble over."""

import os
from pathlib import Path
from random import Random

from fuzzing import checks
from fuzzing.options import VALUES
from fuzzing.trial import Trial, printable
from fuzzing.world import World, copy_of

STEMS = (*VALUES["stems"], "x" * 200, "é" * 120)
SUFFIXES = (
    ".nii.gz",
    ".nii.gz",
    ".nii",
    ".NII.GZ",
    ".nii.gz.nii.gz",
    ".png",
    "",
    ".dcm",
    ".nrrd",
    ".mha",
    ".zip",
    ".gz",
)


def trial(rng: Random, world: World, folder: Path) -> Trial:
    """A segmentation of a scan, or of a folder of scans, of odd names."""
    several = rng.random() < 0.5
    source = sorted(world["scans"].iterdir())
    place = folder / "in"
    place.mkdir()
    chosen: list[str] = []
    for _ in range(rng.choice((2, 3)) if several else 1):
        stem, suffix = rng.choice(STEMS), rng.choice(SUFFIXES)
        if several and rng.random() < 0.3:
            stem += rng.choice(("_0000", ".", " "))
        name = stem + suffix
        if len(os.fsencode(name)) > 255 or (place / name).exists() or name in (".", ".."):
            name = f"plain{len(chosen)}.nii.gz"
        copy_of(source[len(chosen)], place / name)
        chosen.append(name)
    if several and rng.random() < 0.3:
        copy_of(source[0], place / "ct.nii.gz")
        chosen.append("ct.nii.gz")
    path = "in" if several else f"in/{chosen[0]}"
    command = ["segment"] if rng.random() < 0.85 else ["review"]
    where = ["-m", str(world["model"]), "-o", "out"]
    what = f"names: {', '.join(printable(name)[:60] for name in chosen)}"
    if command == ["review"]:
        arguments = ["review", path, *where, "--no-browser", "--json"]
        return Trial(arguments, what, stop_when='"url"', stop_after=20, touches=("out",))
    arguments = ["segment", path, "-p", "liver", "-n", "1", *where]
    if rng.random() < 0.6:
        arguments.append("--no-pictures")
    if rng.random() < 0.2:
        arguments.append("--json")
    scans = [name for name in chosen if name.lower().endswith((".nii.gz", ".nii"))]
    check = [checks.cases_are_whole(folder / "out")]
    if not several and len(scans) == 1:
        check.append(checks.each_scan_has_a_case(folder / "out", 1))
    return Trial(arguments, what, check)
