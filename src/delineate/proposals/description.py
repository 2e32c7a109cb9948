"""Proposals as JSON: volumes, what to look at first, how far it can be believed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import Any

import numpy as np

from delineate.calibration.guarantees import LEVEL
from delineate.prompts.vocabulary import unknown_prompt_message
from delineate.proposals.ordering import most_doubtful
from delineate.proposals.proposals import Proposals
from delineate.proposals.reasons import candidate_of, why
from delineate.proposals.target import Outcome, TargetProposals
from delineate.scans.geometry import orientation_of
from delineate.scans.scan import Scan


def describe(
    proposals: Proposals,
    how: str,
    usual_doubt: Mapping[str, float] = MappingProxyType({}),
    shares: Mapping[str, float | None] = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """Each target as JSON: outcome, score, doubt, volume of the consensus and of each proposal (ml; pixels if flat).

    A found target whose doubt is above `usual_doubt` is marked as unusual. What to look at first: `seen_first`. How
    far it can be believed: `believed`.
    """
    scan = proposals.scan
    unit = 1.0 if scan.is_flat else float(abs(scan.spacing_mm[0] * scan.spacing_mm[1] * scan.spacing_mm[2])) / 1000
    key = "pixels" if scan.is_flat else "ml"
    out = []
    for target in proposals:
        entry: dict[str, Any] = {"prompt": target.prompt.text, "target": target.name, "outcome": target.outcome.value}
        if target.said:
            entry["understood"] = target.said
        if target.misfit:
            entry["misfit"] = target.misfit
        if target.outcome is Outcome.UNKNOWN_PROMPT:
            entry["nearest"] = list(target.nearest)
            entry["message"] = unknown_prompt_message(target.prompt.text, target.nearest)
        elif target.drawn is None:
            entry["message"] = f"'{target.prompt.text}': {target.misfit}"
        else:
            volumes = [float(size * unit) for size in target.sizes()]
            entry["score"] = round(target.score, 4)
            entry["doubt"] = round(target.doubt, 4)
            if (usual := usual_doubt.get(str(target.name))) is not None:
                entry |= {"usual_doubt": usual, "unusual": target.outcome is Outcome.FOUND and target.doubt > usual}
            entry[f"consensus_{key}"] = round(float(target.size(how) * unit), 3)
            if how == "mean" and (left_out := target.islands()):
                entry[f"islands_{key}"] = round(float(left_out * unit), 3)
            entry[f"proposals_{key}"] = [round(v, 3) for v in volumes]
            if target.scores is not None:
                entry["scores"] = [round(float(s), 4) for s in target.scores]
            entry |= seen_first(target, how, scan, key, volumes) | believed(target, unit, key, shares)
        out.append(entry)
    return out


def seen_first(target: TargetProposals, how: str, scan: Scan, key: str, volumes: Sequence[float]) -> dict[str, Any]:
    """What a person looks at first, as JSON: `agreement` of the consensus, the `distinct` proposals, `doubtful_slices`.

    `agreement` is a mask's mean Dice with the proposals, `weight` the share of all proposals that one stands for,
    `spread` how far those lie from one another (mean 1 - IoU); see `delineate.proposals.ordering`. `nested`: whether
    all proposals lie within one another, as level sets do. `why`, `candidate`: see these. Slices are those of the
    file, counted from 0 along its own array `axis`, each with its share of all doubt; flat images have none.

    Args:
        target: a known one.
        how: the fusion.
        scan: the one that was asked about.
        key: the unit of the volumes, "ml" or "pixels".
        volumes: of each proposal.
    """
    agreement = target.agreement()
    entry: dict[str, Any] = {"agreement": round(target.agreement_of(how), 4), "nested": target.nested(), "distinct": []}
    for one in target.distinct():
        told = {"proposal": one.k, "weight": round(one.weight, 4), "agreement": round(float(agreement[one.k]), 4)}
        entry["distinct"].append({**told, "spread": round(one.spread, 4), key: round(volumes[one.k], 3)})
    entry["why"] = why(target, scan)
    if target.outcome is Outcome.LIKELY_ABSENT:
        entry["candidate"] = candidate_of(target, scan)
    if not scan.is_flat:
        axis = orientation_of(scan.affine).order[0]
        slices = most_doubtful(target.doubt_across(axis))
        shares = [round(share, 4) for _, share in slices]
        entry["doubtful_slices"] = {"axis": axis, "slices": [index for index, _ in slices], "shares": shares}
    return entry


def believed(
    target: TargetProposals, unit: float, key: str, shares: Mapping[str, float | None] = MappingProxyType({})
) -> dict[str, Any]:
    """How far the answer for a known target can be believed, as JSON.

    `presence`, `interval_<key>`, `expected_dice`, `guarantees`, and `uncalibrated` where held-out subjects say nothing.
    `expected_dice` is that of the consensus (the mean) of a found target, with an interval; None where none was fitted.
    `presence` says by which score the outcome was decided and how often that calls an absent target found; None where
    nobody knows. The interval is of the volume: where the truth lies with a chance of 90 % by held-out subjects, or,
    `calibrated` false, from the fifth to the ninety-fifth percentile of the proposals, which promises nothing.

    Args:
        target: a known one.
        unit: of a voxel, in `key`.
        key: "ml" or "pixels".
        shares: what is to be guaranteed, as `TargetProposals.guarantees` takes it.
    """
    calibration, volume = target.calibration, float(target.size("mean") + target.islands()) * unit  # as calibrated
    drawn = [float(size) * unit for size in target.sizes()]
    ends = None if calibration is None else calibration.volume_interval(str(target.name), volume)
    low, high = (float(v) for v in (ends or np.percentile([*drawn, volume], (5, 95))))
    low, high = min(low, volume), max(high, volume)
    interval = {"low": round(low, 3), "high": round(high, 3), "level": LEVEL, "calibrated": ends is not None}
    expected = target.expected()
    entry: dict[str, Any] = {"presence": None, f"interval_{key}": interval}
    entry["expected_dice"] = None if expected is None else asdict(expected)
    if target.uncalibrated:
        entry["uncalibrated"] = target.uncalibrated
    if calibration is not None and (known := calibration.presence_of(str(target.name))) is not None:
        entry["presence"] = {
            "found_from": round(known.threshold, 4),
            "false_alarms_at_most": round(known.rate, 4),
            "promised": known.promised,
            "absent_subjects": known.absent,
            "probability": round(float(known.calibrator(np.array([target.score]))[0]), 4),
        }
    if any(share is not None for share in shares.values()):
        entry["guarantees"] = [
            {
                **asdict(one),
                key: None if one.threshold is None else round(float(target.guaranteed(one).sum()) * unit, 3),
            }
            for one in target.guarantees(**shares)
        ]
    return entry
