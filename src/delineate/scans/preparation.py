"""What is done to the grey values of a scan before a model sees it; the grid stays as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from delineate.errors import ModelError
from delineate.scans.histogram import landmarks, standard_of, standardise
from delineate.scans.scan import Scan


@dataclass(frozen=True)
class Preparation:
    """Bias-field correction, then grey values on a standard scale; by default neither.

    Attributes:
        n4: correct the bias field (`delineate.scans.bias.corrected`); for MR.
        standard: as `delineate.scans.histogram.standard_of` gives it; () for none.
    """

    n4: bool = False
    standard: tuple[float, ...] = ()

    @classmethod
    def learnt(cls, scans: Sequence[Scan], n4: bool) -> "Preparation":
        """With the standard scale of these scans, none where there are none."""
        plain = cls(n4)
        return cls(n4, standard_of([landmarks(plain(scan).voxels) for scan in scans]))

    def __call__(self, scan: Scan) -> Scan:
        """The scan, prepared. Raises `ScanError` where N4 is asked for and cannot be."""
        if self.n4:
            from delineate.scans.bias import corrected

            scan = corrected(scan)
        if self.standard:
            scan = replace(scan, voxels=standardise(scan.voxels, self.standard))
        return scan

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self) | {"standard": list(self.standard)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Preparation":
        """What `to_json` wrote. Raises `ModelError` at an unknown key."""
        try:
            return cls(**{**value, "n4": value["n4"], "standard": tuple(value["standard"])})
        except (TypeError, KeyError) as error:
            raise ModelError(f"an adapter's preparation must have n4 and standard; got {value!r:.120}") from error


@dataclass(frozen=True)
class Habits:
    """How a segmenter treats scans, where that is not what every segmenter does.

    Attributes:
        preparation: what is done to the grey values first.
        modality: of a scan that does not tell its own.
        usual_doubt: for each target, the doubt (`TargetProposals.doubt`) above which a scan is unlike those that the
            model was checked on; none is known by default.
        apart_mm: how far the neighbours of a slice are away that a network sees with it (`delineate.scans.grid`); None
            for the next slices. Of the model, so an adapter does not tell it.
    """

    preparation: Preparation = field(default_factory=Preparation)
    modality: str | None = None
    usual_doubt: Mapping[str, float] = field(default_factory=dict)
    apart_mm: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        told = {"modality": self.modality, "usual_doubt": dict(self.usual_doubt)}
        return {"preparation": self.preparation.to_json(), **told}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Habits":
        """What `to_json` wrote."""
        return cls(Preparation.from_json(value["preparation"]), value["modality"], value["usual_doubt"])
