"""Clicks and scribbles: how fast an answer gets right, by people's own scribbles and by simulated clicks.

    python benchmarks/marks.py --data ../shared/data

**scribbles**: MedScribble, 56 images of 12 tasks (one called BTCV, as a training set is), as three people scribbled; a
person's strokes (connected pieces of a sign, the largest first) are shown in three rounds, a third of each sign more at
a time. **clicks**: the same images, up to five clicks in the middle of the largest error of each method's own answer.
Nobody knows the words there, so the marks have to do. **words**: lesions and organs of test subjects that the house
model knows, asked in words and then corrected by three clicks. **time**: of one interaction on 256², with one
thread and with two.

Compared: the marks network with its proposals, through the door (consensus, the mean of single ones, the best of them);
the marks network alone; Gaussian process regression and geodesic distance on grey values, tuned on val subjects of
other sets; where there are words also words whose proposals are weighed and told the known pixels, without the network.
Dice with a 95 % bootstrap interval over images, people averaged first.

Writes benchmarks/results/marks.json and docs/pictures/marks.png.
"""

import argparse
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does, before torch is loaded; see the lab note

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import ndimage, sparse
from scipy.sparse.csgraph import dijkstra

from delineate import Prompt, Scan, Segmenter, open_dataset
from delineate.data.slices import build_slices
from delineate.interaction.marker import house_marker
from delineate.interaction.simulated_user import next_click
from delineate.metrics.overlap import dice, mean_interval
from delineate.pictures import contour
from delineate.prompts.marks import Marks
from delineate.scans.geometry import FLAT_AFFINE
from delineate.scans.grid import stack_of
from delineate.storage.files import write_json

RESULT = Path(__file__).parent / "results" / "marks.json"
PICTURE = Path(__file__).parents[1] / "docs" / "pictures" / "marks.png"
N, CLICKS, ROUNDS, CORRECTIONS = 8, 5, 3, 3
EVERYWHERE = np.ones((3, 3), dtype=bool)
TUNED_ON = {"btcv_ct": {}, "isic2018": {"targets": ["skin lesion"]}, "busi": {"targets": ["breast lesion"]}}
UNKNOWN = "what is marked"
OURS = "marks network + proposals"
LIMIT = 30  # images a set, of those that are asked in words
WORDS = {"isic2018": ("skin lesion", "dermoscopy"), "busi": ("breast lesion", "US")}
SHOWN = ("HipXRay", "SCD", "PanDental", "WBC", "STARE")  # one picture each

INSIDE_OUTSIDE = ((0.34, 0.71, 0.91, 1.0), (0.84, 0.37, 0.0, 1.0))  # blue and vermilion of Okabe and Ito
Answer = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray | float]]  # (image, marks (2, H, W)) to masks or Dice


def main() -> None:
    """Tune what has to be, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--limit", type=int, help="so many images of each part only, and nothing is written")
    parser.add_argument("--only", nargs="*", default=["marks", "words", "time"], choices=("marks", "words", "time"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    segmenter, result = Segmenter.load(), json.loads(RESULT.read_text()) if RESULT.exists() else {}
    keep = (lambda: write_json(RESULT, result)) if args.limit is None else (lambda: None)
    if "marks" in args.only:
        tuned = {name: tune(method, args.data) for name, method in CLASSICAL.items()}
        methods = {OURS: through_the_door(segmenter)}
        methods |= {name: classical(name, tuned[name]["chosen"]) for name in CLASSICAL}
        images = list(scribbled(args.data / "medscribble"))[:: 1 if args.limit is None else 56 // args.limit]
        result["tuned"] = tuned
        result["scribbles"] = scribbles(images, methods)
        keep()
        picture(images, methods[OURS], PICTURE)
        result["clicks"] = clicks(images, methods | {"marks network alone": network_alone})
    keep()
    if "words" in args.only:
        result["words"] = words(args.data, segmenter, args.limit or LIMIT)
    keep()
    if "time" in args.only:
        result["time"] = timing(args.data, segmenter)
    keep()
    print(json.dumps(result, indent=1))


@dataclass(frozen=True, eq=False)
class Scribbled:
    """An image (256, 256) uint8, what is meant, and what three people scribbled (3, 2, 256, 256)."""

    task: str
    name: str
    image: np.ndarray
    truth: np.ndarray
    scribbles: np.ndarray

    def rounds(self, person: int) -> Iterator[np.ndarray]:
        """What is marked after each round, (2, 256, 256): a third more of the strokes of each sign, the largest first.

        Pixels that were scribbled on with both signs say nothing.
        """
        both = self.scribbles[person] & ~self.scribbles[person].all(axis=0)
        for share in (np.arange(ROUNDS) + 1) / ROUNDS:
            yield np.stack([largest_strokes(sign, share) for sign in both])


def scribbled(folder: Path) -> Iterator[Scribbled]:
    """All images, in the order of their names."""
    for path in sorted(folder.glob("*.npz")):
        with np.load(path) as held:
            read = {key: held[key] for key in ("image", "seg", "scribbles")}
        task, name = path.stem.split("__")
        yield Scribbled(task, name, read["image"], read["seg"] >= 128, read["scribbles"] >= 128)


def largest_strokes(marks: np.ndarray, share: float) -> np.ndarray:
    """The largest connected pieces, a share of them rounded up."""
    parts, count = ndimage.label(marks, EVERYWHERE)
    order = 1 + np.argsort(-np.bincount(parts.ravel())[1:], kind="stable")
    return np.isin(parts, order[: int(np.ceil(share * count))])


# The methods.


class Noting:
    """The marks network that ships, and what it said last."""

    @property
    def size(self) -> int:
        """As `Marker.size`."""
        return house_marker().size

    def probability(self, stack: torch.Tensor, marks: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """As `Marker.probability`, noted."""
        self.last = house_marker().probability(stack, marks, previous)
        return self.last

    def draw(self, *how: Any) -> torch.Tensor:
        """As `Marker.draw`."""
        return house_marker().draw(*how)


def through_the_door(segmenter: Segmenter) -> Answer:
    """Words that nobody knows, and marks: the marks network's answer, and that of its proposals."""
    noting = Noting()
    door = Segmenter(segmenter.system, segmenter.modalities, marker=noting)

    def answer(image: np.ndarray, marks: np.ndarray) -> dict[str, Any]:
        seen = door.look(flat(image))
        target = door(seen, [Prompt(UNKNOWN, Marks.from_masks(marks[:1], marks[1:]))], n=N)[UNKNOWN]
        return {
            OURS: target.consensus()[0],
            "marks network alone": noting.last[0].numpy() >= 0.5,
            "proposals": [target.choose(k)[0] for k in range(N)],
        }

    return answer


def network_alone(image: np.ndarray, marks: np.ndarray) -> dict[str, np.ndarray]:
    """The same network, no proposals."""
    stack, nothing = stack_of(flat(image), house_marker().size), torch.full((1, *image.shape), 0.5)
    p = house_marker().probability(stack, torch.from_numpy(marks)[None], nothing)
    return {"marks network alone": p[0].numpy() >= 0.5}


def flat(image: np.ndarray, modality: str | None = None) -> Scan:
    """An image (H, W) or (H, W, 3) as a scan."""
    return Scan(image[None].astype(np.float32), FLAT_AFFINE, modality, None, has_spacing=False)


def greys_of(image: np.ndarray) -> np.ndarray:
    """Grey in [0, 1] and the same a little blurred, (H, W, 2)."""
    grey = image.astype(np.float64) / 255
    return np.stack([grey, ndimage.gaussian_filter(grey, 2)], axis=-1)


def gaussian_process(image: np.ndarray, marks: np.ndarray, alike: float, near: float) -> np.ndarray:
    """Regression of ±1 on greys and place, from a mean of -1/2: most of a picture is not what is meant.

    At most 100 marked pixels a sign, spread evenly; noise of variance 0.05.
    """
    y, x = np.mgrid[: image.shape[0], : image.shape[1]] / max(image.shape)
    features = np.concatenate([greys_of(image) / alike, np.stack([y, x], axis=-1) / near], axis=-1)
    chosen, values = [], []
    for sign, value in zip(marks, (1.5, -0.5), strict=True):
        at = features[sign]
        at = at[np.linspace(0, len(at) - 1, min(100, len(at))).astype(int)]
        chosen.append(at)
        values.append(np.full(len(at), value))
    known = np.concatenate(chosen)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        squares = (a**2).sum(1)[:, None] - 2 * a @ b.T + (b**2).sum(1)
        return np.exp(-squares.clip(0) / 2)

    alpha = np.linalg.solve(kernel(known, known) + 0.05 * np.eye(len(known)), np.concatenate(values))
    return (kernel(features.reshape(-1, features.shape[-1]), known) @ alpha >= 0.5).reshape(image.shape)


def geodesic(image: np.ndarray, marks: np.ndarray, weight: float, reach: float) -> np.ndarray:
    """What is nearer to a positive mark than to a negative one, and than `reach`, along the way of least change.

    A step between neighbours costs 1 + `weight` × the difference in grey, over the side of the picture.
    """
    grey = greys_of(image)[..., 1]
    index, ends, costs = np.arange(grey.size).reshape(grey.shape), [], []
    for axis in range(2):
        here, there = (index.take(range(a, grey.shape[axis] - 1 + a), axis=axis).ravel() for a in (0, 1))
        ends.append((here, there))
        costs.append((1 + weight * np.abs(np.diff(grey, axis=axis)).ravel()) / max(grey.shape))
    rows, columns = (np.concatenate([pair[side] for pair in ends]) for side in range(2))
    graph = sparse.csr_matrix((np.concatenate(costs), (rows, columns)), shape=(grey.size, grey.size))
    far = [np.full(grey.size, np.inf), np.full(grey.size, reach)]
    for sign in range(2):
        sources = np.flatnonzero(marks[sign])
        if len(sources):
            away = dijkstra(graph, directed=False, indices=sources, min_only=True, limit=reach)
            far[sign] = np.minimum(far[sign], away)
    return (far[0] < far[1]).reshape(grey.shape)


CLASSICAL = {  # what is tried for their two constants
    "Gaussian process": (gaussian_process, (0.05, 0.1, 0.2), (0.05, 0.1, 0.2)),
    "geodesic distance": (geodesic, (10.0, 50.0, 200.0), (0.1, 0.3, 1.0)),
}


def classical(name: str, constants: list[float]) -> Answer:
    """A tuned method; what is marked is as marked."""
    method = CLASSICAL[name][0]
    return lambda image, marks: {name: (method(image, marks, *constants) | marks[0]) & ~marks[1]}


def tune(method: tuple[Any, ...], data: Path) -> dict[str, Any]:
    """The constants with the best mean Dice over three clicks on val subjects of `TUNED_ON`, five slices each."""
    function, first, second = method
    tried = []
    cases = []
    for name, how in TUNED_ON.items():
        bank = build_slices([open_dataset(data / name, **how)], "val", 256)
        shows = bank.present.any(1).nonzero()[:, 0]
        for index in shows[:: len(shows) // 5][:5]:
            labels = bank.labels[index].numpy()
            names = np.unique(labels[labels > 0])
            cases.append((bank.images[index].float().mean(0).numpy(), labels == names[int(index) % len(names)]))
    for constants in itertools.product(first, second):
        rows = [clicked(t, lambda m, i=i, c=constants: function(i, m, *c), CORRECTIONS)[0] for i, t in cases]
        tried.append({"constants": list(constants), "dice": float(np.mean(rows))})
    best = max(tried, key=lambda entry: entry["dice"])
    return {"chosen": best["constants"], "tried": tried}


# What is measured.


def clicked(
    truth: np.ndarray,
    answer: Callable[[np.ndarray], np.ndarray],
    most: int,
    now: np.ndarray | None = None,
) -> tuple[list[float], np.ndarray]:
    """Dice after each click in the middle of the largest error of `answer(marks)`, and the marks (2, H, W).

    Starts from the answer `now`, or from nothing. Once there is no error, nothing more is clicked.
    """
    marks, rows = np.zeros((2, *truth.shape), dtype=bool), []
    now = np.zeros_like(truth) if now is None else now
    for _ in range(most):
        if (where := next_click(truth, now)) is not None:
            row, column, positive = where
            marks[1 - int(positive), row, column] = True
            now = answer(marks)
        rows.append(dice(now, truth))
    return rows, marks


def scribbles(images: list[Scribbled], methods: dict[str, Answer]) -> dict[str, Any]:
    """Dice of every method after each round, people averaged."""
    table: dict[str, list[np.ndarray]] = {}
    for place, one in enumerate(images):
        people: dict[str, list[list[float]]] = {}
        for person in range(len(one.scribbles)):
            rows: dict[str, list[float]] = {}
            for marks in one.rounds(person):
                for method in methods.values():
                    for name, value in scored(method(one.image, marks), one.truth).items():
                        rows.setdefault(name, []).append(value)
            for name, line in rows.items():
                people.setdefault(name, []).append(line)
        for name, lines in people.items():
            table.setdefault(name, []).append(np.array(lines))
        print(f"scribbles {place + 1}/{len(images)}", flush=True)
    tasks = [one.task for one in images]
    told = compared({name: np.stack(lines).mean(1) for name, lines in table.items()}, tasks)
    for name, lines in table.items():
        told[name]["people"] = np.stack(lines).mean(0)[:, -1].round(4).tolist()  # after the last round
    return {"images": len(images), "methods": told}


def scored(masks: dict[str, Any], truth: np.ndarray) -> dict[str, float]:
    """Dice of each mask; of proposals the mean and the best."""
    drawn = [dice(mask, truth) for mask in masks.pop("proposals", [])]
    rows = {name: dice(mask, truth) for name, mask in masks.items()}
    return rows | ({"single proposals": float(np.mean(drawn)), "best of 8 proposals": max(drawn)} if drawn else {})


def clicks(images: list[Scribbled], methods: dict[str, Answer]) -> dict[str, Any]:
    """Dice after 1 to 5 clicks; each method gets clicks in its own errors."""
    table: dict[str, list[list[float]]] = {}
    for place, one in enumerate(images):
        for name, method in methods.items():

            def answer(marks: np.ndarray, one=one, method=method, name=name) -> np.ndarray:
                return method(one.image, marks)[name]

            table.setdefault(name, []).append(clicked(one.truth, answer, CLICKS)[0])
        print(f"clicks {place + 1}/{len(images)}", flush=True)
    tasks = [one.task for one in images]
    told = compared({name: np.array(rows) for name, rows in table.items()}, tasks)
    return {"images": len(images), "methods": told}


def compared(table: dict[str, np.ndarray], groups: list[str]) -> dict[str, Any]:
    """For every method its Dice (images, rounds): means, intervals, groups, and how far it is above `OURS`."""
    told = {}
    for name, rows in table.items():
        own = {g: rows[[other == g for other in groups]].mean(0).round(4).tolist() for g in dict.fromkeys(groups)}
        told[name] = {"rounds": [interval(column) for column in rows.T], "groups": own}
        if name != OURS:
            told[name]["above ours"] = [interval(column) for column in (rows - table[OURS]).T]
        told[name]["images"] = rows.round(4).tolist()
    return told


def interval(values: np.ndarray) -> dict[str, float]:
    """Mean and 95 % bootstrap interval over images."""
    return {k: round(v, 4) for k, v in zip(("mean", "low", "high"), mean_interval(values), strict=True)}


class Believing:
    """A marker that heeds no mark: what the known pixels and the weights do alone."""

    size = 256

    def probability(self, stack: torch.Tensor, marks: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
        """What was believed before."""
        return previous


def words(data: Path, segmenter: Segmenter, limit: int) -> dict[str, Any]:
    """Dice of targets that the house model knows: in words, and after 1 to 3 clicks by each method."""
    without = Segmenter(segmenter.system, segmenter.modalities, habits=segmenter.habits, marker=Believing())
    told = {}
    for name, cases in (*((n, flat_cases(data, n, limit)) for n in WORDS), ("btcv_ct", slabs(data, limit))):
        table: dict[str, list[list[float]]] = {}
        for case in cases:
            for method, line in corrected(case, segmenter, without).items():
                table.setdefault(method, []).append(line)
        groups = [case.text for case in cases]
        told[name] = {"cases": len(cases), "methods": compared({m: np.array(r) for m, r in table.items()}, groups)}
        print(name, flush=True)
    return told


@dataclass(frozen=True, eq=False)
class Case:
    """A scan, the words, and what they mean in the slice that counts: the only one, or `middle` along the last axis."""

    scan: Scan
    text: str
    truth: np.ndarray
    middle: int | None = None

    def slice_of(self, volume: np.ndarray) -> np.ndarray:
        """The slice that counts, a view."""
        return volume[0] if self.middle is None else volume[:, :, self.middle]

    def prompt(self, text: str, marks: np.ndarray) -> Prompt:
        """Words, with marks (2, H, W) in that slice."""
        masks = np.zeros((2, *self.scan.shape), dtype=bool)
        for mask, own in zip(masks, marks, strict=True):
            self.slice_of(mask)[...] = own
        return Prompt(text, Marks.from_masks(*masks))


def corrected(case: Case, segmenter: Segmenter, without: Segmenter) -> dict[str, list[float]]:
    """Dice in words and after each click, by both; then by the marks network where nothing is known in words."""
    seen = segmenter.look(case.scan)
    first = segmenter(seen, [case.text], n=N)
    before = case.slice_of(first[case.text].consensus())
    nothing, told = np.zeros_like(before), {}
    ways = {
        OURS: (segmenter, case.text, before),
        "known pixels and weights": (without, case.text, before),
        "marks without words": (segmenter, UNKNOWN, nothing),
    }
    for method, (door, text, start) in ways.items():

        def answer(marks: np.ndarray, door: Segmenter = door, text: str = text) -> np.ndarray:
            return case.slice_of(door(seen, [case.prompt(text, marks)], n=N, earlier=first)[text].consensus())

        told[method] = [dice(start, case.truth), *clicked(case.truth, answer, CORRECTIONS, start)[0]]
    return told


def flat_cases(data: Path, name: str, limit: int) -> list[Case]:
    """Test images with a lesion."""
    text, modality = WORDS[name]
    dataset, cases = open_dataset(data / name, targets=[text], modality=modality), []
    for case in dataset.split("test"):
        scan, ids = dataset.read(case)
        if (ids > 0).any() and len(cases) < limit:
            cases.append(Case(scan, text, ids[0] > 0))
    return cases


def slabs(data: Path, limit: int) -> list[Case]:
    """Test patients, organ by organ: three slices about its largest cross-section, of which the middle one counts."""
    dataset, cases = open_dataset(data / "btcv_ct"), []
    for case in dataset.split("test"):
        scan, ids = dataset.read(case)
        for text, value in dataset.labels.items():
            areas = (ids == value).sum(axis=(0, 1))
            k = int(areas[1:-1].argmax()) + 1
            if areas[k] >= 30:
                slab = Scan(scan.voxels[:, :, k - 1 : k + 2], scan.affine, scan.modality, scan.source)
                cases.append(Case(slab, text, ids[:, :, k] == value, 1))
    return cases if limit >= LIMIT else cases[:limit]


def timing(data: Path, segmenter: Segmenter) -> dict[str, Any]:
    """Milliseconds of one interaction with two clicks on 256², scan seen and words asked before."""
    told = {}
    images = [flat(one.image) for one in itertools.islice(scribbled(data / "medscribble"), 20)]
    skin = [case.scan for case in flat_cases(data, "isic2018", 20)]
    for name, scans, text in (("unknown word", images, UNKNOWN), ("known word", skin, "skin lesion")):
        told[name] = {}
        for threads in (1, 2):
            torch.set_num_threads(threads)
            spent = np.array(list(interactions(segmenter, scans, text)))[2:]  # the first ones load weights and warm up
            (wall, late), cpu = np.percentile(spent[:, 0], (50, 95)), np.median(spent[:, 1])
            figures = {"interactions": len(spent), "median_ms": wall, "p95_ms": late, "processor_ms": cpu}
            told[name][f"{threads} threads"] = {key: round(float(v), 1) for key, v in figures.items()}
    torch.set_num_threads(1)
    return {"proposals": N, "pixels": 256, **told}


def interactions(segmenter: Segmenter, scans: list[Scan], text: str) -> Iterator[tuple[float, float]]:
    """Milliseconds of wall and of processor time of two interactions on each scan, a click of each sign."""
    for place, scan in enumerate(scans):
        seen = segmenter.look(scan)
        first = segmenter(seen, [text], n=N)
        rng = np.random.default_rng(place)
        for _ in range(2):
            rows, columns = (rng.choice(np.arange(20, 236), size=2, replace=False).tolist() for _ in range(2))
            clicks = [(0, row, column) for row, column in zip(rows, columns, strict=True)]
            begun = time.perf_counter(), time.process_time()
            segmenter(seen, [Prompt(text, Marks(clicks[:1], clicks[1:]))], n=N, earlier=first)[text].consensus()
            yield 1000 * (time.perf_counter() - begun[0]), 1000 * (time.process_time() - begun[1])


def picture(images: list[Scribbled], answer: Answer, path: Path) -> Path:
    """Image and truth, then the first person's strokes and the answer round by round, for one image of some tasks."""
    shown = [next(one for one in images if one.task == task) for task in SHOWN if any(o.task == task for o in images)]
    figure = Figure(figsize=(2.2 * (ROUNDS + 1), 2.2 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), ROUNDS + 1, squeeze=False)
    for one, row in zip(shown, axes, strict=True):
        row[0].imshow(one.image, cmap="gray")
        contour(row[0], one.truth, "#F0E442", 1.0)
        row[0].set_ylabel(one.task)
        for place, (marks, axis) in enumerate(zip(one.rounds(0), row[1:], strict=True), start=1):
            mask = answer(one.image, marks)[OURS]
            axis.imshow(one.image, cmap="gray")
            for sign, colour in zip(marks, INSIDE_OUTSIDE, strict=True):
                axis.imshow(sign[..., None] * np.array(colour))
            contour(axis, mask, "#F0E442", 1.0)
            axis.set_title(f"round {place}: Dice {dice(mask, one.truth):.2f}", fontsize=8)
    axes[0, 0].set_title("what is meant", fontsize=8)
    for axis in axes.ravel():
        axis.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


if __name__ == "__main__":
    main()
