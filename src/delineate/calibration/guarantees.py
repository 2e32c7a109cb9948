"""What held-out subjects taught about a segmenter: do its probabilities hold, when is a target absent, what is missed.

A `Calibration` lies in the model folder. `delineate.jobs.calibrate` makes one.
"""

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval, Len
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from delineate.calibration.calibrators import REACHED, Calibrator, Identity, from_json, to_json
from delineate.calibration.conformal import RiskControl, risk_control
from delineate.calibration.presence import Presence, PresenceFile, shortened, told_of
from delineate.calibration.quality import Quality
from delineate.calibration.recogniser import Recogniser, RecogniserFile, from_file
from delineate.errors import DelineateError, ModelError
from delineate.storage.files import write_json
from delineate.storage.schema import read_json

VOXELS_AT_ONCE = 1 << 20  # that are mended together: bounds memory
FILES = ("calibration.json", "calibration.safetensors")
LEVEL = 0.9  # of volume intervals
NOT_LEARNT = 0.05  # mean Dice on held-out subjects below which a target was not learnt at all
FEWEST = 3  # of them, to say so
ENOUGH = 20  # held-out subjects with a target, from where on they speak for it alone: five cost Dice (docs/lab)
# Rising; below the least of them lies only the whole scan, above the last only the empty mask.
THRESHOLDS = np.concatenate([[0.0], 1 / (1 + np.exp(-np.linspace(-6.9, 6.9, 139))), [1.001]])


class GuaranteeError(DelineateError):
    """A mask with a guarantee was asked for and cannot be given."""

    exit_code = 8


@dataclass(frozen=True)
class Guarantee:
    """A mask with a guarantee: where the mean probability is `threshold` or more; or why there is none.

    Attributes:
        kind: "missed", the share of the target that the mask leaves out, or "false", the share of the mask that is
            something else.
        alpha: that share of a new subject is at most this, in expectation.
        threshold: None where nothing can be guaranteed.
        subjects: held-out ones by which it was set.
        subjects_needed: the fewest by which `alpha` could be guaranteed at all.
        why_not: what to do, where nothing can be guaranteed.
    """

    kind: str
    alpha: float
    threshold: float | None
    subjects: int
    subjects_needed: int
    why_not: str | None = None

    @property
    def name(self) -> str:
        """As in file names: "missed_at_most_5pct"."""
        return f"{self.kind}_at_most_{100 * self.alpha:g}pct"


Target = Annotated[str, Len(0, 200)]
Number = dict[str, str | float]  # a calibrator, as `calibrators.to_json` tells it


@dataclass(frozen=True)
class CalibrationFile:
    """What calibration.json must hold; the names of targets may be none, "" for all others."""

    proposals: Annotated[int, Interval(ge=1, le=1024)]
    voxel: Number
    presence: dict[Target, PresenceFile]
    about: dict[str, Any]
    estimate: dict[Target, Number] = field(default_factory=dict)
    consensus: dict[Target, Annotated[float, Interval(ge=0, le=2)]] = field(default_factory=dict)
    one_piece: dict[Target, bool] = field(default_factory=dict)
    quality: dict[Target, Quality] = field(default_factory=dict)
    recogniser: RecogniserFile | None = None


@dataclass(frozen=True, eq=False)
class Calibration:
    """What one segmenter's held-out subjects say about its answers.

    Attributes:
        proposals: N, as drawn; all of it holds for means of the first N proposals.
        voxel: mends the mean probability of a voxel where it reaches `REACHED`.
        estimate: mends what proposals are drawn from, by target; under "" for those that too few subjects show. Empty
            for a system that does not draw its estimate (`systems.system.Refines`).
        consensus: one of `THRESHOLDS` by target, from which mean on a voxel is in the consensus; "" as above.
        one_piece: by target, whether small pieces beside the largest are left out of the consensus; "" for those that
            are not named.
        presence: by target, when it is found; none of those of which too few held-out subjects tell. "" is for all
            that are not named.
        quality: by target, what Dice the consensus can expect where it is found; none of those of which too few
            held-out subjects tell.
        missed: for each target (subjects, thresholds), the share of the truth below each of `THRESHOLDS`.
        false: likewise the share of what is above that is not truth (`conformal.false_fraction`).
        volume_errors: for each target (subjects,), |ln(true volume / predicted volume)|.
        dice: for each target (subjects,), of the consensus.
        recogniser: tells what kind of scan the model looks at, and of whether it learnt from such; None for one that
            nobody taught to.
        about: datasets, figures, whatever tells how it came about; JSON values.
    """

    proposals: int
    voxel: Calibrator = field(default_factory=Identity)
    estimate: Mapping[str, Calibrator] = field(default_factory=dict)
    consensus: Mapping[str, float] = field(default_factory=dict)
    one_piece: Mapping[str, bool] = field(default_factory=dict)
    presence: Mapping[str, Presence] = field(default_factory=dict)
    quality: Mapping[str, Quality] = field(default_factory=dict)
    missed: Mapping[str, np.ndarray] = field(default_factory=dict)
    false: Mapping[str, np.ndarray] = field(default_factory=dict)
    volume_errors: Mapping[str, np.ndarray] = field(default_factory=dict)
    dice: Mapping[str, np.ndarray] = field(default_factory=dict)
    recogniser: Recogniser | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def calibrated(
        self, probability: Float[np.ndarray, "*space"], *, in_place: bool = False
    ) -> Float[np.ndarray, "*space"]:
        """The mean probability of voxels, mended; in [0, 1]."""
        out = probability if in_place else np.array(probability, order="C")
        flat = out.reshape(-1)
        for start in range(0, flat.size, VOXELS_AT_ONCE):
            part = flat[start : start + VOXELS_AT_ONCE]
            reached = part >= REACHED
            part[reached] = self.voxel(part[reached])
        return out

    def of_estimate(self, target: str) -> Calibrator | None:
        """What mends the estimate of a target before it is drawn; None for nothing."""
        return self.estimate.get(target, self.estimate.get(""))

    def consensus_at(self, target: str) -> float:
        """The mean probability from which a voxel is in the consensus: where Dice was best on held-out subjects."""
        return self.consensus.get(target, self.consensus.get("", 0.5))

    def is_one_piece(self, target: str) -> bool:
        """Whether the consensus is better without small pieces beside its largest, by held-out subjects."""
        return self.one_piece.get(target, self.one_piece.get("", False))

    def presence_of(self, target: str) -> Presence | None:
        """When a target is found; None where held-out subjects do not say."""
        return self.presence.get(target, self.presence.get(""))

    def is_learnt(self, target: str) -> bool:
        """Whether held-out subjects show the target to be known at all; without enough of them nobody denies it."""
        held_out = self.dice.get(target, np.zeros(0))
        return len(held_out) < FEWEST or float(held_out.mean()) >= NOT_LEARNT

    def held_out_dice(self) -> dict[str, dict[str, Any]]:
        """Of the consensus, for each target: mean, standard deviation `sd` (0 of one) and number of `subjects`."""
        return {
            name: {"mean": round(float(d.mean()), 4), "sd": round(float(d.std(ddof=len(d) > 1)), 4), "subjects": len(d)}
            for name, d in self.dice.items()
        }

    def guarantees(
        self, target: str, *, missed_at_most: float | None = None, false_at_most: float | None = None
    ) -> tuple[Guarantee, ...]:
        """Thresholds by conformal risk control (`conformal`), in the order of the arguments given.

        With both the masks are an outer and an inner one. Should they cross, a threshold between serves both.
        """
        missed = false = None
        if missed_at_most is not None:
            missed = self._control(self.missed, target, missed_at_most, step=-1)
        if false_at_most is not None:
            false = self._control(self.false, target, false_at_most, step=1)
        values = {"missed": missed and missed.value, "false": false and false.value}
        if missed and false and missed.index is not None and false.index is not None:
            outer, inner = len(THRESHOLDS) - 1 - missed.index, false.index
            if outer > inner:
                values = dict.fromkeys(values, float(THRESHOLDS[(outer + inner) // 2]))
        return tuple(
            Guarantee(kind, control.alpha, values[kind], control.subjects, control.subjects_needed, control.why_not)
            for kind, control in (("missed", missed), ("false", false))
            if control is not None
        )

    def _control(self, curves: Mapping[str, np.ndarray], target: str, alpha: float, step: int) -> RiskControl:
        if target in curves:
            control = risk_control(curves[target][:, ::step], THRESHOLDS[::step], alpha)
            if control.index != len(THRESHOLDS) - 1:
                return control
            useless = "the whole scan" if step < 0 else "an empty mask"
            why = f"by {control.subjects} subjects nothing but {useless} would do: the model misses or adds too much."
            return replace(control, index=None, value=None, why_not=why)
        needed = math.ceil(1 / alpha - 1 - 1e-9)
        why = f"the model was calibrated on no subject with this target: needs at least {needed}."
        return RiskControl(None, None, None, alpha, 0, needed, why)

    def volume_interval(self, target: str, volume: float, level: float = LEVEL) -> tuple[float, float] | None:
        """Where the true volume of a new subject lies with a chance of `level` or more, in the unit of `volume`.

        Split conformal prediction with |ln(true / predicted)| as the score; None with fewer than level / (1 - level)
        subjects, or where too many predictions were empty.
        """
        errors = np.sort(self.volume_errors.get(target, np.zeros(0)))
        at = math.ceil((len(errors) + 1) * level - 1e-9)
        if not 1 <= at <= len(errors) or not np.isfinite(errors[at - 1]):
            return None
        factor = math.exp(float(errors[at - 1]))
        return volume / factor, volume * factor

    def summary(self, shares: Sequence[float] = (0.01, 0.05, 0.1)) -> dict[str, Any]:
        """What people want to know, as JSON: for each target its subjects and thresholds, and the rest in `lines`."""
        targets = {}
        for name, losses in self.missed.items():
            values = [self.guarantees(name, missed_at_most=share)[0].threshold for share in shares]
            targets[name] = {"subjects": len(losses), "missed": values}
        lines = [*told_of(self.presence, list(self.missed)), *carried(self.missed, shares)]
        voxel = to_json(self.voxel)
        numbers = ", ".join(f"{key} {value:.3g}" for key, value in voxel.items() if key != "kind")
        lines.append(f"probability of a voxel: {voxel['kind']} {numbers}".strip())
        return {
            "proposals": self.proposals,
            "voxel": voxel,
            "presence": {name: one.to_json() for name, one in self.presence.items()},
            "shares": list(shares),
            "targets": targets,
            "lines": lines,
            "about": dict(self.about),
        }

    def save(self, folder: Path) -> None:
        """Write calibration.json and calibration.safetensors into a model folder that is being written."""
        write_json(
            folder / FILES[0],
            {
                "proposals": self.proposals,
                "voxel": to_json(self.voxel),
                "estimate": {target: to_json(one) for target, one in self.estimate.items()},
                "consensus": dict(self.consensus),
                "one_piece": dict(self.one_piece),
                "presence": {name: one.to_json() for name, one in self.presence.items()},
                "quality": {name: asdict(one) for name, one in self.quality.items()},
                "recogniser": None if self.recogniser is None else self.recogniser.to_json(),
                "about": dict(self.about),
            },
        )
        curves = {"missed": self.missed, "false": self.false, "volume_errors": self.volume_errors, "dice": self.dice}
        arrays = {f"{kind}/{name}": a for kind, targets in curves.items() for name, a in targets.items()}
        if self.recogniser is not None:
            arrays |= self.recogniser.arrays
        # safetensors heeds no strides
        arrays = {name: np.ascontiguousarray(a, np.float32) for name, a in arrays.items()}
        save_file({"thresholds": THRESHOLDS.astype(np.float32), **arrays}, folder / FILES[1])

    @classmethod
    def load(cls, folder: Path) -> "Calibration | None":
        """That of a checked model folder; None where it has none.

        Raises:
            ModelError: it is not as `save` writes it.
        """
        if not (folder / FILES[0]).is_file():
            return None
        fix = f"run: delineate calibrate {folder}"
        told = read_json(folder / FILES[0], CalibrationFile, fix=fix)
        try:
            arrays = load_file(folder / FILES[1])
            if not np.allclose(arrays.pop("thresholds"), THRESHOLDS):
                raise ModelError(f"{folder}: was calibrated by another release; {fix}")
            presence = {name: one.read() for name, one in told.presence.items()}
            kinds: dict[str, dict[str, np.ndarray]] = {"missed": {}, "false": {}, "volume_errors": {}, "dice": {}}
            recogniser = None if told.recogniser is None else from_file(told.recogniser, arrays)
            for name, array in arrays.items():
                kind, _, target = name.partition("/")
                shape = array.shape if kind in ("volume_errors", "dice") else (len(array), len(THRESHOLDS))
                if array.shape != shape or array.ndim != len(shape) or not (array >= 0).all():
                    raise ValueError(f"'{name}' is no curve")
                kinds[kind][target] = array.astype(np.float64)
            mended = {target: from_json(one) for target, one in told.estimate.items()}
            voxel = from_json(told.voxel)
        except (ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
            raise ModelError(f"{folder}: its calibration cannot be read; {fix}") from error
        cuts, whole = told.consensus, told.one_piece
        made = cls(told.proposals, voxel, mended, cuts, whole, presence, about=told.about, **kinds)  # type: ignore[arg-type]
        return replace(made, recogniser=recogniser, quality=told.quality)


def together(old: Calibration, new: Calibration) -> Calibration:
    """What `new` says of its targets, and of all others and of kinds of scan `old`; both of as many proposals."""
    own = list(new.missed)
    others = {*old.missed, *old.estimate, *old.consensus, *old.one_piece} - {""}
    estimate = dict(old.estimate) | {t: made for t in own if (made := new.of_estimate(t)) is not None}
    return Calibration(
        new.proposals,
        old.voxel if others - {*own} else new.voxel,  # one for all targets
        estimate=estimate,
        consensus={**old.consensus, **{t: new.consensus_at(t) for t in own}},
        one_piece={**old.one_piece, **{t: new.is_one_piece(t) for t in own}},
        presence={**{t: one for t, one in old.presence.items() if t not in own}, **new.presence},
        quality={**{t: one for t, one in old.quality.items() if t not in own}, **new.quality},
        missed={**old.missed, **new.missed},
        false={**old.false, **new.false},
        volume_errors={**old.volume_errors, **new.volume_errors},
        dice={**old.dice, **new.dice},
        recogniser=old.recogniser,
        about={**old.about, "local": dict(new.about)},
    )


def carried(losses: Mapping[str, Sized], shares: Sequence[float]) -> list[str]:
    """Which of the shares the subjects of a target are too few for, in words: a line for each number of subjects."""
    alike: dict[int, list[str]] = {}
    for name, subjects in losses.items():
        alike.setdefault(len(subjects), []).append(name)
    lines = []
    for count, names in sorted(alike.items()):
        needs = {share: math.ceil(1 / share - 1 - 1e-9) for share in sorted(shares, reverse=True)}
        lacking = ", ".join(f"{share:.0%} needs {needed}" for share, needed in needs.items() if count < needed)
        if lacking:
            many = f"{count} subject{'s' * (count != 1)} carr{'y' if count != 1 else 'ies'}"
            best = f"a guarantee of {1 / (count + 1):.1%} at best, were nothing missed"
            lines.append(f"{shortened(names)}: {many} {best}; {lacking}")
    return lines


def refused_guarantees(
    folder: Path,
    targets: Sequence[str],
    n: int,
    adapter: Path | None = None,
    *,
    missed_at_most: float | None = None,
    false_at_most: float | None = None,
) -> list[str]:
    """Of a model folder, which of the guarantees cannot be given, a line each with the reason; before any work.

    Args:
        folder: of a checked model.
        targets: names of its vocabulary.
        n: proposals that shall be drawn.
        adapter: the folder of one that is on: the model's calibration does not hold with it, its own does.
        missed_at_most: as in `Calibration.guarantees`.
        false_at_most: likewise.

    Raises:
        GuaranteeError: none of them can be given.
    """
    asked = {"missed_at_most": missed_at_most, "false_at_most": false_at_most}
    asked = {name: share for name, share in asked.items() if share is not None}
    if not asked:
        return []
    option = "--" + next(iter(asked)).replace("_", "-")
    calibration = Calibration.load(folder if adapter is None else adapter)
    if calibration is None and adapter is not None:
        raise GuaranteeError(
            f"{option}: the model's calibration does not hold with an adapter on; calibrate both together on labelled "
            f"scans of yours: delineate calibrate {folder} DATASET --adapter {adapter}"
        )
    if calibration is None:
        raise GuaranteeError(f"{option}: {folder} is not calibrated; run: delineate calibrate {folder} DATASET")
    if n < calibration.proposals:
        raise GuaranteeError(
            f"{option}: the model was calibrated with {calibration.proposals} proposals; ask for -n "
            f"{calibration.proposals} or more"
        )
    found = {target: calibration.guarantees(target, **asked) for target in targets}
    lines = [
        f"{target}, --{one.kind}-at-most {100 * one.alpha:g}%: {one.why_not}"
        for target, every in found.items()
        for one in every
        if one.threshold is None
    ]
    if len(lines) == len(asked) * len(targets):
        raise GuaranteeError(" ".join(lines))
    return lines
