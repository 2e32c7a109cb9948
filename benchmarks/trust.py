"""Is a question refused where it cannot be answered, and answered where it can: every name on every set; turned scans.

    python benchmarks/trust.py --data ../shared/data --split val                    while choosing
    python benchmarks/trust.py --data ../shared/data                                once, at the end

The house model is asked every name of its vocabulary on held-out scans of every set, the kind of picture declared
nowhere. Counted by (subject, name): what is *found* though it cannot be, with the recogniser and without (accept
everything), the worst set named; and what is there, was learnt, and is refused. Nothing was fitted on the sets below
"nothing fitted". Then slices and volumes of the kinds that have an orientation, in each of the eight ways they may lie:
noticed, rightly told, and falsely so. 95 % intervals are Student's t over subjects, of sets with two or more.

Writes benchmarks/results/trust.json (trust_val.json for val).
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from delineate import Segmenter, open_dataset
from delineate.calibration.recogniser import TURNS
from delineate.data.dataset import Dataset
from delineate.data.lidc import write_lidc
from delineate.metrics.overlap import mean_interval
from delineate.proposals.target import Outcome
from delineate.scans.geometry import FLAT_AFFINE, orientation_of, to_canonical
from delineate.scans.grid import View, turned, view_of
from delineate.scans.reading import read_scan
from delineate.scans.scan import Scan
from delineate.storage.files import write_json

RESULTS = Path(__file__).parent / "results"
MEDSCRIBBLE = {  # of its tasks what may be in a picture; those that show what the model learnt from are left out
    "ACDC": (),
    "CAMUS": (),
    "HipXRay": (),
    "OASIS": ("anterior hippocampus", "posterior hippocampus"),
    "OCTA500": ("retinal vessels",),
    "PAXRay": ("lung nodule", "aorta"),
    "PanDental": (),
    "SCD": (),
    "WBC": ("nuclei",),
}


@dataclass(frozen=True)
class Asked:
    """A set and what may be in its scans.

    Attributes:
        name: of the set.
        scans: (subject, scan, names that are present), of no modality that anybody told.
        possible: names that may be there; what is none of them cannot be.
        fitted: whether the model, or anything of it, was fitted on such scans.
    """

    name: str
    scans: Iterator[tuple[str, Scan, set[str]]]
    possible: tuple[str, ...]
    fitted: bool


def main() -> None:
    """Ask, count, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--work", type=Path, default=Path("runs/trust"), help="for rewritten sets")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--drawn", type=int, default=6, help="subjects a set of which all is drawn, for `accept all`")
    parser.add_argument("--limit", type=int, default=40, help="subjects a set that are looked at")
    parser.add_argument("--proposals", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(1)
    segmenter = Segmenter.load()
    told: dict[str, Any] = {"command": " ".join(["python", *sys.argv]), "split": args.split, "sets": {}}
    for asked in sets(args):
        started = time.monotonic()
        told["sets"][asked.name] = crossed(segmenter, asked, args.drawn, args.proposals)
        print(asked.name, f"{time.monotonic() - started:.0f} s", json.dumps(told["sets"][asked.name]), flush=True)
    for fitted in (True, False):
        name = "fitted" if fitted else "nothing fitted"
        told[name] = together([one for one in told["sets"].values() if one["fitted"] == fitted])
        print(name, json.dumps(told[name]), flush=True)
    told["turns"] = {
        name: lying(segmenter, open_dataset(args.data / name), args.split) for name in ("btcv_ct", "hippocampus")
    }
    print(json.dumps(told["turns"], indent=1), flush=True)
    write_json(RESULTS / ("trust.json" if args.split == "test" else "trust_val.json"), told)


def sets(args: argparse.Namespace) -> Iterator[Asked]:
    """What is asked of what."""
    lidc = args.work / "lidc"
    if not (lidc / "splits.json").exists():
        write_lidc(args.data / "lidc4" / "lidc4.npz", args.data / "splits.json", lidc)
    learnt = {
        "btcv_ct": open_dataset(args.data / "btcv_ct"),
        "hippocampus": open_dataset(args.data / "hippocampus"),
        "isic2018": open_dataset(args.data / "isic2018", targets=["skin lesion"]),
        "busi": open_dataset(args.data / "busi", targets=["breast lesion"]),
        "dsb2018_he": open_dataset(args.data / "dsb2018_he", targets=["nuclei"]),
        "lidc": open_dataset(lidc, targets=["lung nodule"]),
        "hc18_us": open_dataset(args.data / "hc18_us", targets=["fetal head"]),
    }
    for name, dataset in learnt.items():
        yield Asked(name, of_dataset(dataset, args), tuple(dataset.labels), True)
    organs = tuple(learnt["btcv_ct"].labels)
    for name, target, possible in (
        ("chaos_mr_t2", None, organs),
        ("promise12_mr", None, ()),
        ("kvasir_seg", "polyp", ()),
        ("shenzhen_cxr", "lungs", ("lung nodule", "aorta")),
        ("dsb2018_fl", "nuclei", ("nuclei",)),
    ):
        dataset = open_dataset(args.data / name, targets=[target] if target else None)
        yield Asked(name, of_dataset(dataset, args, present=False), possible, False)
    for task, possible in MEDSCRIBBLE.items():
        yield Asked(f"medscribble {task}", of_medscribble(args.data / "medscribble", task), possible, False)


def of_dataset(
    dataset: Dataset, args: argparse.Namespace, present: bool = True
) -> Iterator[tuple[str, Scan, set[str]]]:
    """One scan of each of its subjects, and of those that were learnt from what is there."""
    first = {case.subject: case for case in reversed(dataset.split(args.split))}
    for subject, case in list(first.items())[: args.limit]:
        labels = dataset.read(case)[1] if present else np.zeros(1)
        yield (
            subject,
            read_scan(case.image),
            {name for name, number in dataset.labels.items() if (labels == number).any()},
        )


def of_medscribble(folder: Path, task: str) -> Iterator[tuple[str, Scan, set[str]]]:
    """Its pictures of one task."""
    for path in sorted(folder.glob(f"{task}__*.npz")):
        yield path.stem, Scan(np.load(path)["image"][None], FLAT_AFFINE, has_spacing=False), set()


def crossed(segmenter: Segmenter, asked: Asked, drawn: int, n: int) -> dict[str, Any]:
    """Of one set the counts, by (subject, name), and shares by subject."""
    impossible = [name for name in segmenter.vocabulary.names if name not in asked.possible]
    counts = dict.fromkeys(("subjects", "unlike", "present", "refused_present", "turned"), 0)
    asks = {"impossible": 0, "not_refused": 0, "drawn": 0, "found": 0, "found_accepting_all": 0}
    by_subject: list[float] = []
    taken: dict[str, int] = {}
    for _, scan, present in asked.scans:
        seen = segmenter.look(scan)
        recognised = segmenter.recognised(seen)
        assert recognised is not None
        counts["subjects"] += 1
        counts["unlike"] += recognised.kind is None
        counts["turned"] += recognised.turn != 0
        kind = "unlike any" if recognised.kind is None else recognised.kind.name
        taken[kind] = taken.get(kind, 0) + 1
        counts["present"] += len(present)
        counts["refused_present"] += sum(segmenter.misfit(seen, name) is not None for name in present)
        fits = {name: segmenter.misfit(seen, name) is None for name in impossible}
        asks["impossible"] += len(impossible)
        asks["not_refused"] += sum(fits.values())
        if counts["subjects"] <= drawn:
            answers = segmenter(seen, impossible, n=n, anyway=True)
            found = {name: answers[name].outcome is Outcome.FOUND for name in impossible}
            asks["drawn"] += len(impossible)
            asks["found_accepting_all"] += sum(found.values())
        else:  # only what is not refused can be found
            answers = segmenter(seen, [name for name in impossible if fits[name]], n=n)
            found = {target.name: target.outcome is Outcome.FOUND for target in answers}
        wrong = [name for name in impossible if fits[name] and found[name]]
        asks["found"] += len(wrong)
        by_subject.append(len(wrong) / len(impossible))
    return {"fitted": asked.fitted, **counts, **asks, "taken_for": taken, "found_share": interval(by_subject)}


def together(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of several sets, and the worst of them."""
    names = ("subjects", "present", "refused_present", "impossible", "found", "drawn", "found_accepting_all")
    total: dict[str, Any] = {name: sum(part[name] for part in parts) for name in names}
    total["found_share"] = total["found"] / total["impossible"]
    total["found_share_accepting_all"] = total["found_accepting_all"] / total["drawn"]
    total["refused_present_share"] = total["refused_present"] / total["present"] if total["present"] else None
    total["worst_found_share"] = max(part["found"] / part["impossible"] for part in parts)
    return total


def lying(segmenter: Segmenter, dataset: Dataset, split: str) -> dict[str, Any]:
    """How often turned slices that show a target, each as a picture of its own, and turned volumes are noticed."""
    recogniser = segmenter.calibration.recogniser if segmenter.calibration else None
    assert recogniser is not None
    turns = recogniser.turns[dataset.name]
    slices, volumes = np.zeros((TURNS, 3), int), np.zeros((TURNS, 3), int)  # of each way: noticed, told rightly, all
    for case in dataset.split(split):
        scan, labels = dataset.read(case)
        shown = np.flatnonzero(to_canonical(labels, orientation_of(scan.affine)).any(axis=(1, 2)))
        kept = shown[np.unique(np.linspace(0, len(shown) - 1, 24).round().astype(int))]
        view = view_of(scan, segmenter.system.size, segmenter.habits.apart_mm)
        whole = np.unique(np.linspace(0, len(view.stack) - 1, 24).round().astype(int))
        for turn in range(TURNS):
            gist = {
                name: gist_of(segmenter, turned(view.stack[torch.from_numpy(at)], turn))
                for name, at in (("s", kept), ("v", whole))
            }
            told = [turns(one[None]) for one in gist["s"]]
            slices[turn] += (sum(t != 0 for t in told), sum(t == turn for t in told), len(told))
            said = turns(gist["v"])
            volumes[turn] += (said != 0, said == turn, 1)
    return {"by slice": rates(slices), "by volume": rates(volumes)}


def gist_of(segmenter: Segmenter, stack: torch.Tensor) -> np.ndarray:
    """What a recogniser reads of slices."""
    return segmenter.system.see(View(stack)).gist.numpy()


def rates(counts: np.ndarray) -> dict[str, Any]:
    """Shares of what is turned, and of what is not."""
    away = counts[1:].sum(axis=0)
    return {
        "turned": int(away[2]),
        "noticed": away[0] / away[2],
        "rightly_told": away[1] / away[2],
        "upright": int(counts[0, 2]),
        "falsely_turned": counts[0, 0] / counts[0, 2],
        "noticed_each": [round(float(a / b), 3) for a, _, b in counts[1:]],
    }


def interval(values: Sequence[float]) -> list[float]:
    """Mean and 95 % of Student's t; of one value, the mean alone."""
    return [round(v, 4) for v in mean_interval(np.array(values)) if v is not None]


if __name__ == "__main__":
    main()
