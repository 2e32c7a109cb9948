"""Pictures of benchmarks/doubt.py: its figures as charts, and nodules as people and models outline them.

    python benchmarks/doubt_pictures.py

Draws the charts again from benchmarks/results/doubt.json; writes docs/pictures/doubt.png.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from delineate.data.dataset import Dataset
from delineate.pictures import COLOURS, contour
from delineate.segmenter import Segmenter

LABELS = {"spread": "Spread", "unisegdiff": "UniSegDiff", "encoder": "encoder"}


def chart(result: dict[str, Any], path: Path) -> Path:
    """Left what guaranteed masks miss, right reliability before and after."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    middle, right = figure.subplots(1, 2)
    middle.plot([0, 0.12], [0, 0.12], color="0.7", linewidth=1)
    for (system, told), colour in zip(result["coverage"].items(), COLOURS[4:], strict=False):
        for kind, marker in (("missed", "o"), ("false", "s")):
            held = [e for name, e in told.items() if name.startswith(kind) and e.get("area_over_truth")]
            asked = [e["asked"] for e in held]
            label = f"{LABELS.get(system, system)}, {'misses' if kind == 'missed' else 'adds'}"
            middle.plot(asked, [e["realised"] for e in held], marker, color=colour, label=label)
    middle.set(xlabel="asked for, at most", ylabel="realised, mean of 200 divisions", xlim=(0, 0.12), ylim=(0, 0.12))
    middle.set_title("guaranteed masks on patients not calibrated on", fontsize=10)
    middle.legend(fontsize=8, frameon=False)
    right.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    told = result["btcv"]["reliability"]["four others, each test patient in turn"]
    for kind, colour in (("as_drawn", COLOURS[0]), ("calibrated", COLOURS[4])):
        own = told[kind]
        label = f"{kind.replace('_', ' ')}, ECE {own['ece']:.3f}"
        right.plot(own["confidence"], own["frequency"], marker="o", color=colour, label=label)
    right.set(xlabel="mean probability", ylabel="share that is true", xlim=(0, 1), ylim=(0, 1))
    right.set_title("BTCV, 4 test patients, voxels in a box", fontsize=10)
    right.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=90)
    return path


def nodules(segmenter: Segmenter, dataset: Dataset, path: Path, *, rows: int = 4, n: int = 16) -> Path:
    """Test crops in which the raters differ most: raters, proposals, doubt, and a mask with a guarantee."""
    cases, chosen = dataset.split("test"), []
    for case in cases:
        raters = dataset.read_raters(case)
        if raters is not None and (area := raters.sum((1, 2, 3))).max() > 150 and (area > 0).sum() >= 3:
            chosen.append((float(np.std(area / area.max())), case))
    chosen.sort(key=lambda pair: -pair[0])
    picked, seen = [], set()
    for _, case in chosen:
        if case.subject not in seen:
            picked.append(case)
            seen.add(case.subject)
    picked = picked[:: max(1, len(picked) // rows)][:rows]
    figure = Figure(figsize=(12, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 5, squeeze=False)
    for line, case in zip(axes, picked, strict=True):
        scan = dataset.read(case)[0]
        raters = dataset.read_raters(case)
        assert raters is not None
        answer = segmenter(scan, list(dataset.labels), n=n).targets[0]
        window = (slice(24, 104), slice(24, 104))
        for axis in line:
            axis.imshow(np.asarray(scan.voxels)[0][window], cmap="gray")
            axis.set_axis_off()
        for rater, colour in zip(raters, COLOURS, strict=False):
            contour(line[1], rater[0][window], colour, 1.2)
        for number in range(len(answer)):
            contour(line[2], answer.choose(number)[0][window], COLOURS[number % len(COLOURS)], 0.7)
        line[3].imshow(answer.disagreement()[0][window], cmap="magma", vmin=0, vmax=1)
        contour(line[4], answer.consensus()[0][window], "#D55E00", 1.4)
        for one in answer.guarantees(missed_at_most=0.1):
            if one.threshold is not None:
                contour(line[4], answer.guaranteed(one)[0][window], "#56B4E9", 1.4)
        empty = int((~raters.any((1, 2, 3))).sum())
        line[1].set_title(f"{len(raters)} raters" + (f", {empty} saw nothing" if empty else ""), fontsize=9)
        blank = sum(not answer.choose(k).any() for k in range(len(answer)))
        line[2].set_title(f"{len(answer)} proposals" + (f", {blank} empty" if blank else ""), fontsize=9)
    for axis, title in ((axes[0, 0], "test crop"), (axes[0, 3], "doubt")):
        axis.set_title(title, fontsize=9)
    axes[0, 4].set_title("consensus; misses ≤ 10 %", fontsize=9)
    figure.savefig(path, dpi=80)
    return path


def main() -> None:
    """The charts alone."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--result", type=Path, default=here / "results" / "doubt.json")
    parser.add_argument("--picture", type=Path, default=here.parent / "docs" / "pictures" / "doubt.png")
    args = parser.parse_args()
    print(chart(json.loads(args.result.read_text()), args.picture))


if __name__ == "__main__":
    main()
