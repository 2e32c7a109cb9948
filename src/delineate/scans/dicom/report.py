"""DICOM Structured Report out: what was measured of the segments of a DICOM SEG (TID 1500)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from delineate.errors import ScanError
from delineate.scans.dicom.objects import make, source_of
from delineate.scans.scan import Scan

WHAT = "DICOM Structured Report"


@dataclass(frozen=True)
class Measurements:
    """What is reported of a segment; None where it was not measured.

    Attributes:
        name: of the segment.
        volume_ml: of its mask.
        longest_axial_diameter_mm: as `delineate.proposals.statistics` has it.
        mean_grey: of its voxels, in `grey_unit`; only Hounsfield units are reported.
        std_grey: their standard deviation.
        grey_unit: "HU", or "".
    """

    name: str
    volume_ml: float | None = None
    longest_axial_diameter_mm: float | None = None
    mean_grey: float | None = None
    std_grey: float | None = None
    grey_unit: str | None = None


def write_report(
    path: Path | str,
    segmentation: Path | str,
    measured: Sequence[Measurements],
    scan: Scan,
    *,
    algorithm: str,
    concepts: Mapping[str, str] | None = None,
) -> Path:
    """Write measurements of segments as a Comprehensive 3D SR by template 1500, and return the path.

    Each segment is a measurement group of its own: what it shows and where (the codes of the SEG), volume in ml, the
    longest diameter in an axial slice in mm, and in CT the mean and standard deviation in Hounsfield units, whichever
    were measured. A group refers to its segment, and to the source series. The observer is a device, the algorithm is
    named, and it is said that the report is for research and no diagnosis; it is preliminary and not verified.

    Args:
        path: to write; it does not depend on anything in the source.
        segmentation: of the SEG that the report refers to, as `seg.write_seg` wrote it.
        measured: of its segments, by their names; segments of which nothing is given are left out.
        scan: that the SEG was written for.
        algorithm: what drew the segments, such as the name of the model.
        concepts: as for `seg.write_seg`.

    Raises:
        ScanError: the scan is not from DICOM, or its instances lack an identifier; a name that is no segment's; nothing
            to report; it cannot be written or does not read back.
    """
    path, source = Path(path), source_of(Path(path), WHAT, scan)
    if not measured:
        raise ScanError(f"{path}: a report holds at least one measurement, got none; nothing was written")
    job = {
        "job": "report",
        "segmentation": str(segmentation),
        "measured": [asdict(one) for one in measured],
        "concepts": dict(concepts or {}),
        "algorithm": algorithm,
    }
    make(path, source, job)
    return path
