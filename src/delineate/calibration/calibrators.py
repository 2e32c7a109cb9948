"""Do probabilities mean what they say, and how to mend those that do not. NumPy and SciPy only.

For the probabilities of voxels and for the scores of presence of a target alike. A calibrator is fitted on held-out
data, never on what the network was trained on, and maps [0, 1] to [0, 1] without changing the order:

    identity      p                                                  nothing to fit
    temperature   sigma(logit(p) / T)                                Guo et al., ICML 2017, eq. 9, for two classes
    beta          sigma(a ln p - b ln(1 - p) + c), a and b >= 0      Kull, Silva Filho, Flach, AISTATS 2017

A temperature leaves 0.5 where it is, so masks of p >= 0.5 stay as they were. A beta map moves it in general: such
masks change, and so does the score from which a target counts as found.

Zeros and ones are moved in by `CLIP` before a logarithm, while fitting and while mapping. Votes of few proposals (0 of
20, 20 of 20) are not probabilities of 0 and 1: give the fit (k + 1/2) / (N + 1) rather than k / N.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize, minimize_scalar
from scipy.special import betaincinv, expit, logit

from delineate.errors import ModelError

REACHED = 1e-3  # probabilities below are left as they are: nearly all voxels, and nothing that a map could sharpen
CLIP = 1e-7  # the float32 next to 1 is 1 - 6e-8: what is nearer to 0 or 1 is rounding, not knowledge
MOST_TEMPERATURE = 100.0  # separable data ask for T = 0, useless scores for T = infinity
MOST_BETA = 100.0
LOGIT_STEPS = 4096  # of `histogram`: 0.008 a step


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram; bins that hold nothing are left out, so that no number is NaN.

    Attributes:
        count: (bins,) how many voxels or targets (or what weight of them) each bin holds, above 0.
        confidence: (bins,) their mean probability, rising.
        frequency: (bins,) the share of them that is true.
    """

    count: np.ndarray
    confidence: np.ndarray
    frequency: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1]: the mean gap over what is in the bins (Naeini et al., AAAI 2015)."""
        return float(np.average(np.abs(self.frequency - self.confidence), weights=self.count))

    @property
    def mce(self) -> float:
        """Maximum calibration error, in [0, 1]: the largest gap of a bin, however little it holds."""
        return float(np.abs(self.frequency - self.confidence).max())


def reliability(
    probability: Float[np.ndarray, "*shape"],
    truth: Bool[np.ndarray, "*shape"],
    bins: int = 15,
    adaptive: bool = False,
    weight: Float[np.ndarray, "*shape"] | None = None,
) -> Reliability:
    """How often what was given a probability near p is true.

    >>> seen = reliability(np.array([0.2, 0.2, 0.9, 0.9]), np.array([False, True, True, True]), bins=2)
    >>> seen.confidence.round(2).tolist(), seen.frequency.tolist(), round(seen.ece, 3)
    ([0.2, 0.9], [0.5, 1.0], 0.2)

    Args:
        probability: in [0, 1].
        truth: whether it is so.
        bins: how many; of equal width, [low, high), the last closed.
        adaptive: bins of equal mass instead. Equal probabilities share a bin, so there may be fewer.
        weight: how often each pair counts; once if left out.

    Raises:
        ValueError: no data, other shapes, not bool, out of range, no weight, or fewer than one bin.
    """
    p, y, w = _checked(probability, truth, weight)
    if bins < 1:
        raise ValueError(f"bins must be 1 or more, not {bins}.")
    if adaptive:
        _, which = np.unique(p, return_inverse=True)
        mass = np.bincount(which, w)
        middle = (np.cumsum(mass) - mass / 2) / mass.sum()
        index = np.minimum((middle * bins).astype(np.intp), bins - 1)[which]
    else:
        edges = np.arange(bins + 1) / bins  # linspace has a fourth edge of 0.30000000000000004
        index = np.minimum(np.searchsorted(edges, p, side="right") - 1, bins - 1)
    count = np.bincount(index, w, bins)
    held = count > 0
    sums = np.stack([np.bincount(index, w * p, bins), np.bincount(index, w * y, bins)])[:, held] / count[held]
    return Reliability(count[held], sums[0], sums[1])


def brier(
    probability: Float[np.ndarray, "*shape"],
    truth: Bool[np.ndarray, "*shape"],
    weight: Float[np.ndarray, "*shape"] | None = None,
) -> float:
    """The mean of (p - y)^2, in [0, 1]; 1/4 for 0.5 everywhere (Brier, 1950, in its form for one class)."""
    p, y, w = _checked(probability, truth, weight)
    return float(np.average((p - y) ** 2, weights=w))


def nll(
    probability: Float[np.ndarray, "*shape"],
    truth: Bool[np.ndarray, "*shape"],
    weight: Float[np.ndarray, "*shape"] | None = None,
) -> float:
    """The mean of -ln p of what is so, in nats; p is kept `CLIP` off 0 and 1, so it is at most 16.2."""
    p, y, w = _checked(probability, truth, weight)
    return float(-np.average(np.log(np.where(y, _inside(p), 1 - _inside(p))), weights=w))


def histogram(
    probability: Float[np.ndarray, "*shape"], truth: Bool[np.ndarray, "*shape"], steps: int = LOGIT_STEPS
) -> tuple[Float[np.ndarray, " kept"], Bool[np.ndarray, " kept"], Float[np.ndarray, " kept"]]:
    """(probability, truth, weight): millions of voxels as at most 2 x `steps` weighted ones, for `fit`.

    The steps are equal in logit(p), fine near 0 and 1 where a map has most of its voxels; each is stood for by its
    mean probability. Histograms of several subjects may be concatenated.
    """
    p, y, _ = _checked(probability, truth, None)
    end = float(logit(1 - CLIP))
    step = np.rint((logit(_inside(p)) + end) / (2 * end) * (steps - 1)).astype(np.intp)
    count = np.stack([np.bincount(step[~y], minlength=steps), np.bincount(step[y], minlength=steps)])
    total = count.sum(axis=0)
    mean = np.bincount(step, p, steps) / np.maximum(total, 1)
    truths, kept = np.nonzero(count)
    return np.clip(mean[kept], 0, 1), truths == 1, count[truths, kept].astype(np.float64)


@dataclass(frozen=True)
class Identity:
    """Leaves a probability as it is: what the others are measured against."""

    def __call__(self, probability: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The same probabilities."""
        return _as_given(_probabilities(probability), probability)

    @classmethod
    def fit(cls, probability: np.ndarray, truth: np.ndarray, weight: np.ndarray | None = None) -> "Identity":
        """Nothing is fitted; the data are checked as for the others."""
        _to_fit(probability, truth, weight)
        return cls()


@dataclass(frozen=True)
class Temperature:
    """sigma(logit(p) / T): above 1 it makes bold probabilities timid, below 1 the reverse; 0.5 stays.

    Source: Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, ICML 2017, section 4.2.

    Attributes:
        temperature: T, above 0.
    """

    temperature: float

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"a temperature must be above 0 and finite, not {self.temperature}.")

    def __call__(self, probability: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The calibrated probabilities, in [0, 1], of the type given."""
        return _as_given(expit(logit(_inside(_probabilities(probability))) / self.temperature), probability)

    @classmethod
    def fit(cls, probability: np.ndarray, truth: np.ndarray, weight: np.ndarray | None = None) -> "Temperature":
        """The T in [0.01, 100] of the least NLL on held-out data: arrays of one shape, as for `reliability`.

        Raises:
            ValueError: as `reliability`, or data of one kind only.
        """
        p, y, w = _to_fit(probability, truth, weight)
        wrong_side = np.where(y, -1, 1) * logit(_inside(p))

        def loss(log_temperature: float) -> float:
            return float(w @ np.logaddexp(0, wrong_side * math.exp(-log_temperature)))

        end = math.log(MOST_TEMPERATURE)
        found: Any = minimize_scalar(loss, bounds=(-end, end), method="bounded", options={"xatol": 1e-9})
        return cls(float(math.exp(found.x)))


@dataclass(frozen=True)
class Beta:
    """sigma(a ln p - b ln(1 - p) + c), a, b >= 0: also skewed maps, and the identity at (1, 1, 0); 0.5 moves.

    Source: Kull, Silva Filho, Flach, Beta calibration, AISTATS 2017: p^a e^c / (p^a e^c + (1 - p)^b).

    Attributes:
        a: how steep it is near 0, at least 0.
        b: how steep it is near 1, at least 0.
        c: the shift, in logits.
    """

    a: float
    b: float
    c: float

    def __post_init__(self) -> None:
        if not (0 <= self.a < math.inf and 0 <= self.b < math.inf and math.isfinite(self.c)):
            raise ValueError(f"a and b must be 0 or more and c finite, not {self.a}, {self.b} and {self.c}.")

    def __call__(self, probability: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
        """The calibrated probabilities, in [0, 1], of the type given."""
        p = _inside(_probabilities(probability))
        return _as_given(expit(self.a * np.log(p) - self.b * np.log1p(-p) + self.c), probability)

    @classmethod
    def fit(cls, probability: np.ndarray, truth: np.ndarray, weight: np.ndarray | None = None) -> "Beta":
        """The (a, b, c) of the least NLL on held-out data: arrays of one shape, as for `reliability`.

        A convex problem with bounds; the paper drops a feature whose sign is wrong and fits again, which is the same.

        Raises:
            ValueError: as `reliability`, or data of one kind only.
        """
        p, y, w = _to_fit(probability, truth, weight)
        p = _inside(p)
        features = np.stack([np.log(p), -np.log1p(-p), np.ones_like(p)])
        side = np.where(y, -1.0, 1.0)

        def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
            wrong_side = side * (x @ features)
            return float(w @ np.logaddexp(0, wrong_side)), features @ (w * side * expit(wrong_side))

        ends = [(0, MOST_BETA), (0, MOST_BETA), (-MOST_BETA, MOST_BETA)]
        tight = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
        found: Any = minimize(loss, np.array([1.0, 1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=ends, options=tight)
        return cls(*(float(value) for value in found.x))


Calibrator = Identity | Temperature | Beta
CALIBRATORS: dict[str, type[Calibrator]] = {"identity": Identity, "temperature": Temperature, "beta": Beta}


def to_json(calibrator: Calibrator) -> dict[str, Any]:
    """As plain JSON values.

    >>> to_json(Temperature(1.5))
    {'kind': 'temperature', 'temperature': 1.5}
    """
    (kind,) = (name for name, made in CALIBRATORS.items() if made is type(calibrator))
    return {"kind": kind} | asdict(calibrator)


def from_json(value: Any) -> Calibrator:
    """What `to_json` wrote. Raises `ModelError` at an unknown kind or key, a missing one, or a bad value."""
    kind = value.get("kind") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in CALIBRATORS:
        raise ModelError(f"a calibrator's kind must be one of {', '.join(CALIBRATORS)}; got {value!r:.120}.")
    made = CALIBRATORS[kind]
    wanted, numbers = {field.name for field in fields(made)}, {key: value[key] for key in value if key != "kind"}
    if set(numbers) != wanted or not all(type(number) in (int, float) for number in numbers.values()):
        keys = ", ".join(sorted(wanted)) or "nothing"
        raise ModelError(
            f"a calibrator of kind {kind} must have numbers for {keys} and no other key; got {value!r:.120}."
        )
    try:
        return made(**{key: float(number) for key, number in numbers.items()})
    except (ValueError, OverflowError) as error:
        raise ModelError(f"a calibrator of kind {kind} cannot be read: {error}") from error


@dataclass(frozen=True, eq=False)
class Roc:
    """What each threshold on a score would do; a target counts as found where score >= threshold.

    Attributes:
        threshold: (points,) falling, from infinity (nothing is found) through every score that occurs.
        false_alarm: (points,) the share of absent targets that are found, rising from 0 to 1.
        sensitivity: (points,) the share of present targets that are found, rising from 0 to 1.
    """

    threshold: np.ndarray
    false_alarm: np.ndarray
    sensitivity: np.ndarray


def roc(score: Float[np.ndarray, " targets"], truth: Bool[np.ndarray, " targets"]) -> Roc:
    """The receiver operating characteristic; equal scores are one point. Raises `ValueError` as `auroc`."""
    absent, present = _absent_and_present(score, truth)
    threshold = np.concatenate([[np.inf], np.unique(np.concatenate([absent, present]))[::-1]])

    def found(scores: np.ndarray) -> np.ndarray:
        return 1 - np.searchsorted(np.sort(scores), threshold, side="left") / len(scores)

    return Roc(threshold, found(absent), found(present))


def auroc(score: Float[np.ndarray, " targets"], truth: Bool[np.ndarray, " targets"]) -> float:
    """P(a present target scores above an absent one) + half of P(they tie), in [0, 1] (Mann and Whitney, 1947).

    >>> auroc(np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, False, True, True]))
    0.875

    Args:
        score: of any scale, finite.
        truth: whether the target is there.

    Raises:
        ValueError: other shapes, not bool, not finite, or no target of one kind.
    """
    from scipy import stats  # here, as it takes a third of a second

    absent, present = _absent_and_present(np.asarray(score, np.float64), truth)
    pairs = len(absent) * len(present)
    return float(stats.mannwhitneyu(present, absent, method="asymptotic").statistic / pairs)


@dataclass(frozen=True)
class FalseAlarms:
    """A threshold on a score of presence and what is known of its false alarms.

    Attributes:
        threshold: a target counts as found where score >= threshold.
        rate: the share of absent targets that may be found, as asked.
        false_alarms: how many of the absent ones here are.
        absent: how many absent ones there were to choose by.
        sensitivity: the share of the present ones that are found.
        confidence: of `upper`.
        upper: the true rate is no higher, with this confidence (exact).
        absent_needed: the fewest absent ones by which `upper` could be `rate` or less, were none of them found.
    """

    threshold: float
    rate: float
    false_alarms: int
    absent: int
    sensitivity: float
    confidence: float
    upper: float
    absent_needed: int

    @property
    def too_few(self) -> bool:
        """Whether so few absent targets could not vouch for the rate whatever they scored: get `absent_needed`."""
        return self.absent < self.absent_needed


def threshold_for_false_alarms(
    score: Float[np.ndarray, " targets"], truth: Bool[np.ndarray, " targets"], rate: float, confidence: float = 0.95
) -> FalseAlarms:
    """The lowest threshold that finds at most `rate` of the absent targets here, and what may be said of others.

    With k = floor(rate n) alarms allowed among n absent targets, it lies one step (of the scores' float type) above
    the k + 1st highest score among them. The upper bound is that of Clopper and Pearson, 1934, for k of n. It holds
    although the threshold was chosen on the same targets: the share of all absent ones above their k + 1st highest
    score is Beta(k + 1, n - k) at most, of which it is the quantile.

    Args:
        score: of any scale, finite.
        truth: whether the target is there; absent ones decide, present ones say what it costs.
        rate: between 0 and 1, both excluded.
        confidence: of the upper bound.

    Raises:
        ValueError: as `auroc`, or a rate or confidence not between 0 and 1.
    """
    absent, present = _absent_and_present(score, truth)
    if not (0 < rate < 1 and 0 < confidence < 1):
        raise ValueError(f"rate and confidence must be between 0 and 1, not {rate} and {confidence}.")
    n = len(absent)
    allowed = min(math.floor(rate * n + 1e-9), n - 1)  # 0.29 * 100 is a hair less than 29
    highest = np.sort(absent)[::-1][allowed]
    threshold = np.nextafter(highest, np.inf, dtype=highest.dtype)
    return FalseAlarms(
        threshold=float(threshold),
        rate=float(rate),
        false_alarms=int((absent >= threshold).sum()),
        absent=n,
        sensitivity=float((present >= threshold).mean()),
        confidence=float(confidence),
        upper=float(betaincinv(allowed + 1, n - allowed, confidence)),
        absent_needed=math.ceil(math.log(1 - confidence) / math.log1p(-rate) - 1e-9),
    )


def _probabilities(probability: np.ndarray) -> np.ndarray:
    p = np.asarray(probability, np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("probabilities must be in [0, 1]; apply a sigmoid to logits first.")
    return p


def _inside(p: np.ndarray) -> np.ndarray:
    return np.clip(p, CLIP, 1 - CLIP)


def _as_given(p: np.ndarray, like: np.ndarray) -> np.ndarray:
    given = np.asarray(like).dtype
    return p.astype(given if np.issubdtype(given, np.floating) else np.float64)


def _checked(
    probability: np.ndarray, truth: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p, y = _probabilities(probability).ravel(), np.asarray(truth)
    w = np.ones(len(p)) if weight is None else np.asarray(weight, np.float64)
    shapes = {np.shape(probability), y.shape, np.shape(probability) if weight is None else w.shape}
    if len(shapes) > 1 or not len(p) or y.dtype != np.bool_:
        raise ValueError(
            f"probability, truth and weight must have one shape, not empty, and truth be bool; got "
            f"{', '.join(str(shape) for shape in sorted(shapes, key=str))} and {y.dtype}."
        )
    if not (w >= 0).all() or not 0 < w.sum() < math.inf:
        raise ValueError("weights must be 0 or more, finite, and not all 0.")
    return p, y.ravel(), w.ravel()


def _to_fit(
    probability: np.ndarray, truth: np.ndarray, weight: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Checked data whose weights sum to 1."""
    p, y, w = _checked(probability, truth, weight)
    if not (w[y].any() and w[~y].any()):
        raise ValueError("calibrating needs examples that are true and examples that are not; add the kind that lacks.")
    return p, y, w / w.sum()


def _absent_and_present(score: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    score, truth = np.asarray(score), np.asarray(truth)
    if not np.issubdtype(score.dtype, np.floating):
        score = score.astype(np.float64)
    if score.ndim != 1 or score.shape != truth.shape or truth.dtype != np.bool_ or not np.isfinite(score).all():
        raise ValueError(
            f"scores must be finite and truth bool, one each a target, not {score.shape}, {truth.shape} {truth.dtype}."
        )
    if truth.all() or not truth.any():
        raise ValueError(f"both present and absent targets are needed, not {truth.sum()} and {(~truth).sum()}.")
    return score[~truth], score[truth]
