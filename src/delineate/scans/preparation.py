"""What is done to the grey values of a scan before a model sees it; the grid stays as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from annotated_types import Interval

from delineate.prompts.concept import Concept
from delineate.scans.histogram import PERCENTILES, landmarks, standard_of, standardise
from delineate.scans.scan import Scan
from delineate.storage.schema import Line, Name


@dataclass(frozen=True)
class Preparation:
    """Bias-field correction, then grey values on a standard scale; by default neither.

    Attributes:
        n4: correct the bias field (`delineate.scans.bias.corrected`); for MR.
        standard: as `delineate.scans.histogram.standard_of` gives it; () for none.
    """

    n4: bool = False
    standard: tuple[Annotated[float, Interval(ge=-1e6, le=1e6)], ...] = ()

    def __post_init__(self):
        if self.standard and len(self.standard) != len(PERCENTILES):
            raise ValueError(f"a standard scale has {len(PERCENTILES)} landmarks; got {len(self.standard)}")

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


@dataclass(frozen=True)
class Habits:
    """How a segmenter treats scans, where that is not what every segmenter does.

    Attributes:
        preparation: what is done to the grey values first.
        modality: of a scan that does not tell its own.
        usual_doubt: for each target, the doubt (`TargetProposals.doubt`) above which a scan is unlike those that the
            model was checked on; none is known by default.
        channels: of the scans that it reads (`Scan.channels`); of the model, as is the next.
        apart_mm: how far the neighbours of a slice are away that a network sees with it (`delineate.scans.grid`); None
            for the next slices. Of the model, so an adapter does not tell it.
        regions: what it can be asked beside its system's names, of which they are made; likewise.
    """

    preparation: Preparation = field(default_factory=Preparation)
    modality: Name | None = None
    usual_doubt: Mapping[Name, Annotated[float, Interval(ge=0, le=1e6)]] = field(default_factory=dict)
    channels: tuple[Line, ...] = ()
    apart_mm: Annotated[float, Interval(gt=0, le=1000)] | None = None
    regions: tuple[Concept, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        told = {"modality": self.modality, "usual_doubt": dict(self.usual_doubt)}
        return {"preparation": self.preparation.to_json(), **told}
