"""What kind of scan a model looks at: one of those that it learnt from, or unlike them all. NumPy only.

A linear head on the frozen encoder's features (`networks.encoder.gist_of`): whitened principal components, then the
softmax over the kinds of scan that were learnt and one class for all else. That class is taught by pictures that are
certainly none of them (`data.strange`): outlier exposure after Hendrycks, Mazeika and Dietterich (ICLR 2019), which
tells of sets that nobody showed, while densities of the features do not (`docs/lab/2026-11-29-trust.md`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import numpy as np
from annotated_types import Interval, Len
from jaxtyping import Float, Int
from scipy.optimize import minimize

from delineate.storage.schema import Name

COMPONENTS = 128
RIDGE = 1e-3  # of the weights, on components of unit variance
OTHERS = 3.0  # what all that is unlike weighs in the fit, one kind being 1
REFUSED = 0.03  # of the held-out scans of the kinds themselves that may be called unlike them
TURNS = 8  # quarter turns counter-clockwise as people look at a slice, 0 to 3; the same and then mirrored, 4 to 7
LIE = (
    *("as they should", "turned a quarter counter-clockwise", "upside down", "turned a quarter clockwise"),
    *("mirrored left to right", "with rows and columns exchanged, from the lower left"),
    *("mirrored top to bottom", "with rows and columns exchanged"),
)
TURN_COMPONENTS = 200
FALSELY_TURNED = 0.02  # of held-out slices that lie as they should and may be called turned
DEPTH = 0.5  # of a volume's slices, the best of them speak: others may lie outside of what was learnt


@dataclass(frozen=True)
class Kind:
    """One kind of scan that a model learnt from.

    Attributes:
        name: of the dataset.
        modality: of its scans; None where nobody said.
        targets: what was learnt in it.
    """

    name: Name
    modality: Annotated[str, Len(0, 100)] | None
    targets: Annotated[tuple[Name, ...], Len(0, 1000)]

    def __str__(self) -> str:
        """As one speaks of it: "CT of liver, spleen and 11 more"."""
        first, rest = self.targets[:2], len(self.targets) - 2
        what = ", ".join(first) + (f" and {rest} more" if rest > 0 else "")
        return f"{self.modality or 'scans'} of {what}"


@dataclass(frozen=True, eq=False)
class Head:
    """A linear head on whitened components of features.

    Attributes:
        middle: (D,), of the features.
        basis: (D, P), to whitened components.
        weights: (P + 1, C), a row for each component and one for the rest.
    """

    middle: np.ndarray
    basis: np.ndarray
    weights: np.ndarray

    def __post_init__(self) -> None:
        fits = self.middle.ndim == 1 and self.basis.shape[:1] == self.middle.shape and self.basis.ndim == 2
        if not fits or self.weights.ndim != 2 or len(self.weights) != self.basis.shape[1] + 1:
            raise ValueError("the arrays of a head do not fit together")

    def __call__(self, gist: Float[np.ndarray, "slices D"]) -> Float[np.ndarray, "slices C"]:
        """Ln P of each class, slice by slice."""
        return _log_softmax(self.components(gist) @ self.weights[:-1] + self.weights[-1])

    def components(self, gist: Float[np.ndarray, "slices D"]) -> Float[np.ndarray, "slices P"]:
        """What the classes are told from."""
        return (np.asarray(gist, np.float32) - self.middle) @ self.basis

    @classmethod
    def fit(
        cls,
        x: Float[np.ndarray, "n D"],
        y: Int[np.ndarray, " n"],
        weight: Float[np.ndarray, " n"],
        classes: int,
        components: int,
    ) -> "Head":
        """By ridge softmax regression, of examples that weigh as told."""
        middle, scale = x.mean(axis=0), x.std(axis=0) + 1e-3
        some = (x - middle)[:: max(1, len(x) // 4000)] / scale
        _, values, rows = np.linalg.svd(some, full_matrices=False)
        kept = min(components, int((values > 1e-3 * values[0]).sum()))
        basis = (rows[:kept] / (values[:kept, None] / np.sqrt(len(some)))).T / scale[:, None]
        weights = _softmax_regression((x - middle) @ basis, y, weight / weight.sum(), classes)
        return cls(middle, basis.astype(np.float32), weights)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """By name."""
        return {name: getattr(self, name) for name in ARRAYS}


Looks = tuple[np.ndarray, np.ndarray]  # of scans: (n, K + 1) and (n, P), as `Recogniser.looks` gives them of one


@dataclass(frozen=True, eq=False)
class Local:
    """A kind of scan on which a model was calibrated later, without learning from it: known by its nearest neighbours.

    Attributes:
        kind: with the targets that were calibrated.
        scans: how a recogniser of K kinds looks at each of those n scans.
        reach: how far from the nearest of them a scan of this kind may lie, in either look, by Euclid.
    """

    kind: Kind
    scans: Looks
    reach: tuple[float, float]

    @classmethod
    def of(cls, kind: Kind, looks: Sequence[Looks]) -> "Local":
        """Of two scans at least: as far as the one of them that lies farthest from all others."""
        shares, components = (np.stack(one).astype(np.float32) for one in zip(*looks, strict=True))
        return cls(kind, (shares, components), (_farthest(shares), _farthest(components)))

    def holds(self, looks: Looks, modality: str | None) -> bool:
        """Whether a scan that a recogniser looks at so is of this kind."""
        if modality is not None and self.kind.modality not in (None, modality):
            return False
        return all(
            np.linalg.norm(known - one, axis=-1).min() <= reach * (1 + 1e-6)
            for known, one, reach in zip(self.scans, looks, self.reach, strict=True)
        )


def _farthest(scans: Float[np.ndarray, "n D"]) -> float:
    away = np.linalg.norm(scans[:, None] - scans[None], axis=-1) + np.diag(np.full(len(scans), np.inf))
    return float(away.min(axis=1).max())


@dataclass(frozen=True, eq=False)
class Recognised:
    """What a scan was taken for.

    Attributes:
        kind: the likeliest; None for a scan unlike any known.
        unlike: ln P(unlike any known), at most 0.
        turn: one of `TURNS`, how the slices lie beside those that were learnt from; 0 where they lie alike, or where
            their kind has no orientation.
        local: kinds that the model was calibrated on later and that it is like (`Local`).
    """

    kind: Kind | None
    unlike: float
    turn: int = 0
    local: tuple[Kind, ...] = ()

    def fits(self, target: str) -> bool:
        """Whether a target may be asked of such a scan."""
        return any(target in kind.targets for kind in (self.kind, *self.local) if kind is not None)


@dataclass(frozen=True, eq=False)
class Turns:
    """Tells how slices of one kind lie.

    Attributes:
        head: of `TURNS` classes.
        threshold: ln P(upright) below which slices count as turned.
        slices: held-out ones that the threshold was set on.
    """

    head: Head
    threshold: float
    slices: int

    def __call__(self, gist: Float[np.ndarray, "slices D"]) -> int:
        """One of `TURNS`; of a volume what its slices say together."""
        told = self.head(gist).mean(axis=0)
        return 0 if told[0] >= self.threshold else int(told.argmax())


@dataclass(frozen=True, eq=False)
class Recogniser:
    """Tells kinds of scans apart, and how they lie.

    Attributes:
        kinds: K that it knows.
        head: of K + 1 classes; the last is "unlike".
        threshold: ln P(unlike) above which a scan is unlike any known.
        scans: how many held-out scans of the kinds the threshold was set on.
        turns: by the name of a kind that has an orientation.
        local: kinds of scan on which the model was calibrated later.
    """

    kinds: tuple[Kind, ...]
    head: Head
    threshold: float
    scans: int = 0
    turns: Mapping[str, Turns] = field(default_factory=dict)
    local: tuple[Local, ...] = ()

    def log_shares(self, gist: Float[np.ndarray, "slices D"]) -> Float[np.ndarray, " kinds"]:
        """Ln P of each kind and of "unlike", of a scan by its slices, (K + 1,)."""
        return of_scan(self.head(gist))

    def looks(self, gist: Float[np.ndarray, "slices D"]) -> Looks:
        """What a `Local` kind is known by: `log_shares` and the components, each of all slices together."""
        return self.log_shares(gist), self.head.components(gist).mean(axis=0)

    def __call__(self, gist: Float[np.ndarray, "slices D"], modality: str | None = None) -> Recognised:
        """What a scan is taken for; where its modality is told, among the kinds of that one and those of none."""
        told = self.log_shares(gist)
        looks = self.looks(gist) if self.local else None
        local = tuple(one.kind for one in self.local if looks is not None and one.holds(looks, modality))
        possible = [modality is None or kind.modality in (None, modality) for kind in self.kinds]
        if not any(possible):
            return Recognised(None, 0.0, local=local)
        among = np.where(possible, told[:-1], -np.inf)
        together = np.logaddexp.reduce(among)
        unlike = float(told[-1] - np.logaddexp(told[-1], together))
        kind = self.kinds[int(among.argmax())]
        turns = self.turns.get(kind.name)
        turn = 0 if turns is None else turns(gist)
        return Recognised(None if unlike > self.threshold else kind, unlike, turn, local)

    def with_local(self, found: Sequence[Local]) -> "Recogniser":
        """The same with these kinds too; of two with one name the later."""
        local = {one.kind.name: one for one in (*self.local, *found)}
        return replace(self, local=tuple(local.values()))

    def to_json(self) -> dict[str, Any]:
        """All but the arrays."""
        kinds = [asdict(kind) for kind in self.kinds]
        local = [{"kind": asdict(one.kind), "reach": list(one.reach)} for one in self.local]
        turns = {name: {"threshold": one.threshold, "slices": one.slices} for name, one in self.turns.items()}
        return {"kinds": kinds, "threshold": self.threshold, "scans": self.scans, "turns": turns, "local": local}

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """By name."""
        heads = {"recogniser": self.head, **{f"turns/{name}": one.head for name, one in self.turns.items()}}
        arrays = {f"{name}/{what}": array for name, head in heads.items() for what, array in head.arrays.items()}
        return arrays | {
            f"local/{k}/{name}": a for k, one in enumerate(self.local) for name, a in zip(LOOKS, one.scans, strict=True)
        }


ARRAYS, LOOKS = ("middle", "basis", "weights"), ("shares", "components")
Distance = Annotated[float, Interval(ge=0, le=1e6)]


@dataclass(frozen=True)
class TurnsFile:
    """What calibration.json says of `Turns`."""

    threshold: Annotated[float, Interval(le=0)]
    slices: Annotated[int, Interval(ge=0)] = 0


@dataclass(frozen=True)
class LocalFile:
    """What calibration.json says of `Local`."""

    kind: Kind
    reach: tuple[Distance, Distance]


@dataclass(frozen=True)
class RecogniserFile:
    """What calibration.json says of a recogniser."""

    kinds: Annotated[tuple[Kind, ...], Len(1, 1000)]
    threshold: Annotated[float, Interval(le=0)]
    scans: Annotated[int, Interval(ge=0)] = 0
    turns: dict[Name, TurnsFile] = field(default_factory=dict)
    local: Annotated[tuple[LocalFile, ...], Len(0, 1000)] = ()


def from_file(told: RecogniserFile, arrays: dict[str, np.ndarray]) -> Recogniser:
    """As `Recogniser.to_json` and its `arrays` were written; takes its own out of `arrays`.

    Raises:
        ValueError: they do not fit together.
        KeyError: one is not there.
    """

    def head(name: str, classes: int) -> Head:
        found = Head(*(np.asarray(arrays.pop(f"{name}/{what}"), np.float32) for what in ARRAYS))
        if found.weights.shape[1] != classes:
            raise ValueError(f"'{name}' has {found.weights.shape[1]} classes, not {classes}")
        return found

    turns = {name: Turns(head(f"turns/{name}", TURNS), one.threshold, one.slices) for name, one in told.turns.items()}
    main = head("recogniser", len(told.kinds) + 1)
    local = []
    for number, one in enumerate(told.local):
        shares, components = (np.asarray(arrays.pop(f"local/{number}/{name}"), np.float32) for name in LOOKS)
        n = len(shares)
        if not n or shares.shape != (n, len(told.kinds) + 1) or components.shape != (n, main.basis.shape[1]):
            raise ValueError(f"'local/{number}' does not fit its recogniser")
        local.append(Local(one.kind, (shares, components), one.reach))
    return Recogniser(told.kinds, main, told.threshold, told.scans, turns, tuple(local))


def of_scan(slices: Float[np.ndarray, "slices classes"]) -> Float[np.ndarray, " classes"]:
    """What a scan says by its slices: the mean of what the best of them say of each kind, and the others of "unlike".

    Of P(kind) the larger half counts, of P(unlike) the smaller: air above a body is no evidence against it.
    """
    few = max(1, round(DEPTH * len(slices)))
    rising = np.sort(slices, axis=0)
    told = np.append(rising[-few:, :-1].mean(axis=0), rising[:few, -1].mean())
    return told - np.logaddexp.reduce(told)


def fit_recogniser(
    kinds: Sequence[Kind],
    gists: Sequence[Float[np.ndarray, "_ D"]],
    others: Float[np.ndarray, "_ D"],
    held_out: Sequence[tuple[int, Float[np.ndarray, "slices D"]]],
    *,
    components: int = COMPONENTS,
) -> Recogniser:
    """Fit the head, and set its threshold.

    Args:
        kinds: what is to be told apart.
        gists: of slices of each kind that the model was trained on.
        others: of pictures that are none of them.
        held_out: scans that it was not trained on: the index of the kind of each, and its slices. Without any, the
            threshold is that of chance.
        components: at most.
    """
    x = np.concatenate([*gists, others]).astype(np.float32)
    y = np.repeat(np.arange(len(kinds) + 1), [*(len(one) for one in gists), len(others)])
    weight = np.array([*(1 / max(1, len(one)) for one in gists), OTHERS / max(1, len(others))])[y]
    found = Recogniser(tuple(kinds), Head.fit(x, y, weight, len(kinds) + 1, components), 0.0)
    unlike = np.sort([found.log_shares(gist)[-1] for _, gist in held_out])
    at = math.ceil((1 - REFUSED) * (len(unlike) + 1)) - 1
    # With fewer scans than the share needs, somewhat above the one that was least like its kind.
    threshold = unlike[at] if at < len(unlike) else max(-math.log(len(kinds) + 1), *(unlike[-1:] + 0.5))
    return replace(found, threshold=min(float(threshold), -1e-3), scans=len(unlike))


def fit_turns(
    gists: Float[np.ndarray, "n D"], turns: Int[np.ndarray, " n"], upright: Float[np.ndarray, "m D"]
) -> Turns:
    """Fit a head to slices that were turned so, and set its threshold on held-out ones that lie as they should."""
    head = Head.fit(gists.astype(np.float32), turns, np.ones(len(turns)), TURNS, TURN_COMPONENTS)
    told = np.sort(head(upright)[:, 0])
    at = int(FALSELY_TURNED * len(told))
    return Turns(head, min(float(told[at]), -1e-3), len(told))


def _softmax_regression(
    x: Float[np.ndarray, "n P"], y: Int[np.ndarray, " n"], weight: Float[np.ndarray, " n"], classes: int
) -> Float[np.ndarray, "_ classes"]:
    """Weights (P + 1, classes), the last row without a ridge."""
    ones = np.concatenate([x, np.ones((len(x), 1))], axis=1).astype(np.float64)
    target = np.eye(classes)[y]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(-1, classes)
        told = _log_softmax(ones @ w)
        ridge = w.copy()
        ridge[-1] = 0
        value = -(weight[:, None] * target * told).sum() + RIDGE * (ridge**2).sum()
        slope = ones.T @ (weight[:, None] * (np.exp(told) - target)) + 2 * RIDGE * ridge
        return float(value), slope.ravel()

    start = np.zeros((ones.shape[1], classes))
    found = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 200})
    return found.x.reshape(-1, classes).astype(np.float32)


def _log_softmax(logit: np.ndarray) -> np.ndarray:
    return logit - np.logaddexp.reduce(logit, axis=-1, keepdims=True)
