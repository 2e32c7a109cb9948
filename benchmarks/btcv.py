"""What proposals add on organs: a model's generator beside the floor and level sets, on BTCV's held-out patients.

    python benchmarks/btcv.py --data ../shared/data/btcv_ct

Dice in 3-D of 13 organs, of the model that ships or of a folder (`--model`), N = 20 proposals: the consensus, the
encoder alone, the *floor* (the encoder's calibrated estimate against noise, no generator), and the best of N, chosen
with the truth for every organ and patient: of the model's proposals, of the floor's, and of 20 level sets of the
encoder's probability. Of a model that tells how masks spread also with another organ's words told to it. Single
proposals by their shape: pieces and holes in 3-D, and NSD at 2 mm, beside level sets. Differences are paired by
patient, with 95 % intervals by Student's t.

Writes benchmarks/results/btcv.json for the test split. How a U-Net does in the same time: `benchmarks/company.py`.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from plural import halves
from scipy import ndimage

from delineate import open_dataset
from delineate.data.dataset import Dataset
from delineate.evaluation.alone import EstimateAlone, Floor
from delineate.evaluation.protocols.lines import Answered, answers
from delineate.jobs.calibrate import calibrate
from delineate.metrics.overlap import dice, mean_interval, nsd, paired_interval
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.storage.shipped import house_folder
from delineate.systems.diffusion.spread import SpreadSystem

RESULT = Path(__file__).parent / "results" / "btcv.json"
LEVELS = np.linspace(0.025, 0.975, 20)
NSD_MM = 2.0
LOOKED_AT = 4  # proposals, or level sets, whose shape is measured


def main() -> None:
    """Answer, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/btcv_ct"))
    parser.add_argument("--model", type=Path, help="a model folder; the model that ships without")
    parser.add_argument("--proposals", type=int, default=20)
    parser.add_argument("--split", default="test", choices=("val", "test"), help="val while choosing, test at the end")
    parser.add_argument("--out", type=Path, help="instead of benchmarks/results/btcv.json (for test)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset = open_dataset(args.data)
    segmenter = Segmenter.load(args.model or house_folder())
    alone: Any = EstimateAlone(segmenter.system)  # type: ignore[arg-type]
    floor: Any = Floor(segmenter.system)  # type: ignore[arg-type]

    def of(system: Any) -> Segmenter:
        return Segmenter(system, segmenter.modalities, habits=segmenter.habits)

    rows: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    tried = [("model", segmenter, args.proposals, False), ("encoder alone", of(alone), 1, False)]
    tried.append(("floor", of(floor), args.proposals, True))
    if isinstance(segmenter.system, SpreadSystem):
        changed = with_words_of_others(Segmenter.load(args.model or house_folder()))
        tried.append(("words of others", changed, args.proposals, False))
    for name, own, n, crossed in tried:
        rows[name] = {}
        for known, scored in halves(dataset, args.split) if crossed else [(None, dataset)]:
            ready = own if known is None else own.calibrated(calibrate(own, [known], n=8))
            measure = with_levels if name == "encoder alone" else measured
            gather(rows[name], ready, scored, args.split, n, measure)
        print(name, {key: round(value["mean"], 4) for key, value in told(rows[name]).items()}, flush=True)
    pairs = {
        "consensus, model minus encoder alone": (("model", "consensus"), ("encoder alone", "consensus")),
        "consensus, model minus floor": (("model", "consensus"), ("floor", "consensus")),
        "best of N, model minus floor": (("model", "best"), ("floor", "best")),
        "best of N, model minus level sets": (("model", "best"), ("encoder alone", "best level set")),
    }
    for name in [name for name, *_ in tried[3:]]:
        pairs[f"best of N, model minus {name}"] = ("model", "best"), (name, "best")
        pairs[f"consensus, model minus {name}"] = ("model", "consensus"), (name, "consensus")
    result = {
        "command": " ".join(["python", *sys.argv]),
        "split": args.split,
        "proposals": args.proposals,
        "patients": sorted({subject for by in rows["model"].values() for subject in by}),
        "rows": {name: told(own) for name, own in rows.items()},
        "organs": {name: {o: means(by) for o, by in own.items()} for name, own in rows.items()},
        "differences": {
            what: dict(zip(("difference", "low", "high"), apart(rows, *pair), strict=True))
            for what, pair in pairs.items()
        },
    }
    print(json.dumps(result["differences"], indent=1))
    if args.split == "test" or args.out:
        write_json(args.out or RESULT, result)


def with_words_of_others(segmenter: Segmenter) -> Segmenter:
    """Spread that is told the words of another name of the vocabulary; its encoder is told the right ones."""
    system: Any = segmenter.system
    names = list(system.vocabulary.names)
    plain = system.foundation.encode_text(names).pooled
    told = system.control.spread.forward

    def other(features: Any, odds: Any, pooled: torch.Tensor) -> Any:
        own = torch.cosine_similarity(pooled[:, None], plain[None], dim=2).argmax(dim=1)
        return told(features, odds, plain[(own + len(names) // 2) % len(names)])

    system.control.spread.forward = other
    return segmenter


def gather(
    rows: dict[str, dict[str, dict[str, float]]],
    segmenter: Segmenter,
    dataset: Dataset,
    split: str,
    n: int,
    measure: Callable[[Answered], dict[str, float]],
) -> None:
    """Figures by organ and patient."""
    for one in answers(segmenter, dataset, dataset.split(split), list(dataset.labels), n, 0):
        if one.truth.any():
            rows.setdefault(str(one.answer.name), {})[one.case.subject] = measure(one)


def measured(one: Answered) -> dict[str, float]:
    """Of proposals."""
    masks = [one.answer.choose(k) for k in range(len(one.answer))]
    overlaps = [dice(mask, one.truth) for mask in masks]
    figures = {"consensus": dice(one.answer.consensus(), one.truth), "single": float(np.mean(overlaps))}
    return figures | {"best": max(overlaps)} | shapes(masks[:LOOKED_AT], one)


def with_levels(one: Answered) -> dict[str, float]:
    """Of the encoder's probability: its mask, and its level sets."""
    p = one.probability()
    levels = [p >= level for level in LEVELS]
    best = max(dice(mask, one.truth) for mask in levels)
    some = levels[len(levels) // (2 * LOOKED_AT) :: len(levels) // LOOKED_AT]
    return {"consensus": dice(p >= 0.5, one.truth), "best level set": best} | shapes(some, one)


def shapes(masks: list[np.ndarray], one: Answered) -> dict[str, float]:
    """Means over masks that are not empty: pieces and holes (in 3-D), NSD."""
    box = tuple(
        slice(max(0, int(i.min()) - 2), int(i.max()) + 3) for i in np.nonzero(one.truth | np.any(masks, axis=0))
    )
    truth = one.truth[box]
    own = [mask[box] for mask in masks if mask.any()]
    if not own:
        return {}
    return {
        "pieces": float(np.mean([ndimage.label(mask)[1] for mask in own])),
        "holes": float(np.mean([ndimage.label(~np.pad(mask, 1))[1] - 1 for mask in own])),
        "nsd": float(np.mean([nsd(mask, truth, one.scan.spacing_mm, NSD_MM) for mask in own])),
    }


def means(by_patient: dict[str, dict[str, float]]) -> dict[str, float]:
    """Over patients."""
    keys = dict.fromkeys(key for figures in by_patient.values() for key in figures)
    return {k: float(np.mean([f[k] for f in by_patient.values() if k in f])) for k in keys}


def column(rows: dict[str, dict[str, dict[str, float]]], key: str) -> np.ndarray:
    """Means over organs, a value a patient."""
    patients = sorted({subject for by in rows.values() for subject in by})
    return np.array([np.mean([by[p][key] for by in rows.values() if p in by and key in by[p]]) for p in patients])


def apart(rows: Any, one: tuple[str, str], other: tuple[str, str]) -> tuple[float, float | None, float | None]:
    """The difference of two columns, each (row, figure)."""
    return paired_interval(column(rows[one[0]], one[1]), column(rows[other[0]], other[1]))


def told(rows: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """The mean over patients of the means over organs, with its interval."""
    keys = dict.fromkeys(key for by in rows.values() for figures in by.values() for key in figures)
    return {k: dict(zip(("mean", "low", "high"), mean_interval(column(rows, k)), strict=True)) for k in keys}


if __name__ == "__main__":
    main()
