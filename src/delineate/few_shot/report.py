"""What can be said of an adapter: figures, a verdict, a card."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from types import MappingProxyType
from typing import Any

import numpy as np

from delineate.adapters.folder import AdapterFolder
from delineate.evaluation.evaluation import Row
from delineate.metrics.overlap import mean_interval

NOTICED = 0.01  # Dice; less than this is no change where there is no interval
ENOUGH = 3  # held-out subjects for an interval
DOUBT_MARGIN = 1.5  # a scan whose doubt is this much above the most doubtful held-out one is called unusual


def usual_doubt(rows: Sequence[Row]) -> dict[str, float]:
    """For each target found in held-out scans, the doubt above which a scan is unlike them."""
    targets = dict.fromkeys(row.target for row in rows if row.present)
    most = {t: max(row.doubt for row in rows if row.target == t and row.present) for t in targets}
    return {target: round(min(1.0, DOUBT_MARGIN * doubt), 4) for target, doubt in most.items()}


def figures_of(
    rows: Mapping[str, Sequence[Row]], rule: str, subject_of: Mapping[str, str] = MappingProxyType({})
) -> dict[str, Any]:
    """Consensus Dice of each target, means, and what can be said of the adaptation.

    The interval is of the mean difference over held-out subjects (Student's t). From three subjects on it decides
    between "better", "no clear change" and "worse"; with fewer it would be no interval, and all that is said is what
    it looks like.

    Args:
        rows: "before" and "after" of the held-out subjects, "source before" and "source after"; all may be missing.
        rule: by which they are held out.
        subject_of: whose a case is, where a subject has several.
    """
    scores = {
        name: {(r.case, r.target): r.consensus["mean"]["dice"] for r in some if r.present}
        for name, some in rows.items()
    }
    means: dict[str, dict[str, float]] = {}
    for name, some in scores.items():
        for target in dict.fromkeys(target for _, target in some):
            own = [score for (_, other), score in some.items() if other == target]
            means.setdefault(target, {})[name] = round(fmean(own), 4)
    before, after = scores.get("before", {}), scores.get("after", {})
    gains: dict[str, list[float]] = {}
    for case, target in (both := sorted(before.keys() & after.keys())):
        gains.setdefault(subject_of.get(case, case), []).append(after[case, target] - before[case, target])
    held: dict[str, Any] = {"rule": rule, "subjects": len(gains), "verdict": "cannot tell"}
    if gains:
        mean, low, high = mean_interval(np.array([fmean(own) for own in gains.values()]))
        held |= {"before": fmean(before[key] for key in both), "after": fmean(after[key] for key in both), "gain": mean}
        if len(gains) >= ENOUGH and low is not None and high is not None:
            held["interval"] = [low, high]
            held["verdict"] = "better" if low > 0 else "worse" if high < 0 else "no clear change"
        elif abs(mean) > NOTICED:
            held["verdict"] = "seems better" if mean > 0 else "seems worse"
        else:
            held["verdict"] = "no clear change"
    return {"targets": means, "held_out": held, "verdict": held["verdict"], "sentence": _sentence(held)}


def _sentence(held: Mapping[str, Any]) -> str:
    count = held["subjects"]
    if not count:
        return "cannot tell: no held-out subject shows a target that the model knew before"
    figures = (
        f"Dice {held['before']:.3f} before, {held['after']:.3f} after, on {count} held-out subject{'s'[: count - 1]}"
    )
    if "interval" in held:
        low, high = held["interval"]
        return f"{held['verdict']}: {figures} (difference {held['gain']:+.3f}, 95 % [{low:+.3f}, {high:+.3f}])"
    return f"{held['verdict']}: {figures}, too few for an interval"


def card_of(about: AdapterFolder, targets: Sequence[str], known: Sequence[str]) -> str:
    """What the adapter says of itself, for people."""
    training, figures = about.training, about.figures
    new = [target for target in targets if target not in known]
    columns = [
        k
        for k in ("before", "after", "source before", "source after")
        if any(k in m for m in figures["targets"].values())
    ]
    table = [f"| target | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for target, means in figures["targets"].items():
        table.append(f"| {target} | " + " | ".join(f"{means[c]:.3f}" if c in means else "–" for c in columns) + " |")
    lines = [
        f"# {about.config.kind} adapter for {about.base['name']}",
        f"Base: {about.base['system']} model '{about.base['name']}', SHA-256 {about.base['sha256']}.",
        f"Learnt from {training['subjects']} labelled subjects of {training['dataset']} ({training['modality']})"
        + (f", {training['slices']} slices of them" if training["slices"] else "")
        + f"; {figures['own_parameters']} parameters beside {figures['base_parameters']} frozen ones.",
        f"Targets: {', '.join(targets)}." + (f" New to the base: {', '.join(new)}." if new else ""),
        f"On held-out subjects: {figures['sentence']}. The point at which training stopped was chosen on the same "
        "subjects, so the figure after is a little too kind.",
        "Consensus Dice of four proposals:\n\n" + "\n".join(table) if columns else "",
        "Not a medical device. Outcomes are not calibrated.",
    ]
    return "\n\n".join(line for line in lines if line) + "\n"
