"""The pictures of the documents, made anew: `make pictures`, or some of them by name.

    python recipes/pictures.py
    python recipes/pictures.py ubench.png adapt.png

`MADE` has those that come from what ships and from figures in benchmarks/results/, with the files they depend on. What
these were when a picture was made is kept in docs/pictures/made.json, so that a test says which is stale. `OTHERS` need
scans, hours or a browser, or belong to the day of a note; it says what makes each, and the page that tells of it.

Writes docs/pictures/*.png and docs/pictures/made.json.
"""

import argparse
import hashlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ROOT / "docs" / "pictures"
RECORD = PICTURES / "made.json"
PROMPTS = ("liver", "left kidney", "spleen", "pancreas")


def script(name: str) -> ModuleType:
    """A benchmark as a module."""
    path = ROOT / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # they import one another
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def result(name: str) -> Any:
    """What a benchmark measured."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def segment(path: Path) -> None:
    """The montage of the CT that ships, by the model that ships."""
    from delineate import Segmenter, read_scan
    from delineate.pictures import montage
    from delineate.samples import sample

    scan = read_scan(sample("ct").images[0], modality="CT")
    montage(Segmenter.load()(scan, PROMPTS), path)


def adapt(path: Path) -> None:
    """Dice against shots, and against the strength of a bias field."""
    module = script("adapt")
    module.PICTURE = path
    module.picture(result("adapt"))


def ubench(path: Path) -> None:
    """Dice against milliseconds."""
    from delineate.evaluation.studies.ubench import draw

    draw(result("ubench"), path)


def cohort(path: Path) -> None:
    """Scans an hour against workers."""
    script("cohort").draw(result("cohort"), path)


RESULTS, HOUSE = "benchmarks/results/", "src/delineate/house/manifest.json"
MADE: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "segment.png": (segment, (HOUSE, "src/delineate/samples/samples.json", "src/delineate/pictures.py")),
    "adapt.png": (adapt, (f"{RESULTS}adapt.json",)),
    "ubench.png": (ubench, (f"{RESULTS}ubench.json",)),
    "cohort.png": (cohort, (f"{RESULTS}cohort.json",)),
}
OTHERS: dict[str, tuple[str, str]] = {  # how each is made, and the page that tells of it
    "adapt_slices.png": ("make adapt", "docs/lab/2026-11-21-adapt.md"),
    "contours.png": ("python benchmarks/pacs.py", "docs/lab/2026-11-29-hospital.md"),
    "dicom_seg.png": ("make review", "docs/lab/2026-11-22-review.md"),
    "doubt.png": (
        "nothing any more: it is of its note; python benchmarks/doubt_pictures.py --picture FILE draws two of its "
        "three panels",
        "docs/lab/2026-11-21-doubt.md",
    ),
    "doubt_nodules.png": ("make doubt", "README.md"),
    "lesions.png": ("make lesions, of its day", "README.md"),
    "marks.png": ("make review", "docs/lab/2026-11-22-marks.md"),
    "review.png": ("SCREENSHOTS=docs/pictures make test-browser", "docs/how-to/review.md"),
    "review_tablet.png": ("SCREENSHOTS=docs/pictures make test-browser", "docs/how-to/review.md"),
    "synthetic.png": ("make diffboost", "docs/lab/2026-11-21-diffboost.md"),
}


def sources(name: str) -> dict[str, str]:
    """The SHA-256 of each file that a picture depends on."""
    return {one: hashlib.sha256((ROOT / one).read_bytes()).hexdigest() for one in MADE[name][1]}


def stale(name: str) -> bool:
    """Whether a picture was made of something else than what is there now, or changed since."""
    told = json.loads(RECORD.read_text()).get(name) if RECORD.is_file() else None
    return told != {**sources(name), "picture": hashlib.sha256((PICTURES / name).read_bytes()).hexdigest()}


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MADE)}; all, where none is given")
    names = parser.parse_args().names or list(MADE)
    if unknown := [name for name in names if name not in MADE]:
        known = {name: told[0] for name, told in OTHERS.items()}
        sys.exit(f"{', '.join(unknown)}: made by {[known.get(name, 'nothing that is known') for name in unknown]}")
    told = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            made = Path(folder) / name
            MADE[name][0](made)
            (PICTURES / name).write_bytes(made.read_bytes())
        told[name] = {**sources(name), "picture": hashlib.sha256((PICTURES / name).read_bytes()).hexdigest()}
        print(PICTURES / name)
    RECORD.write_text(json.dumps(dict(sorted(told.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
