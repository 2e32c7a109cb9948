"""The DICOM objects of a case: which are written of what was found, and what is told where one cannot be."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from delineate.errors import DelineateError
from delineate.proposals.proposals import Outcome, Proposals

OBJECTS = {"seg": "segmentation.dcm", "rtstruct": "rtstruct.dcm", "report": "report.dcm"}


def parsed(text: str, seg: str | None) -> tuple[str, ...]:
    """The objects that "seg,rtstruct" names, in the order of `OBJECTS`; without a SEG where `seg` is None.

    >>> parsed("report, seg", "binary"), parsed("none", "binary"), parsed("seg,rtstruct", None)
    (('seg', 'report'), (), ('rtstruct',))

    Raises:
        DelineateError: no such object, or a report without a SEG.
    """
    asked = [word.strip().lower() for word in text.split(",")]
    if asked == ["none"]:
        return ()
    if unknown := [word for word in asked if word not in OBJECTS]:
        raise DelineateError(f"DICOM objects are {', '.join(OBJECTS)} or none, with commas; got '{unknown[0][:40]}'")
    if "report" in asked and (seg is None or "seg" not in asked):
        raise DelineateError("a report refers to the segments of a SEG; ask for seg,report, and not for --seg none")
    return tuple(name for name in OBJECTS if name in asked and (name != "seg" or seg is not None))


def write_objects(
    proposals: Proposals,
    asked: Sequence[str],
    folder: Path,
    *,
    how: str,
    seg: str | None,
    compress: bool,
    algorithm: str,
    targets: Sequence[Mapping[str, Any]],
) -> tuple[list[str], list[str]]:
    """Write the objects that are asked for, of every found target; the names of the files, and notes.

    Args:
        proposals: of a scan that comes from DICOM.
        asked: of `OBJECTS`, in their order.
        folder: of the case.
        how: proposals are fused.
        seg: the kind of SEG; None for none, and no report on it.
        compress: whether it may be stored in runs.
        algorithm: what drew them.
        targets: what is told of each of the proposals' targets, and measured of it.
    """
    from delineate.scans.dicom.report import Measurements, write_report
    from delineate.scans.dicom.rtstruct import write_rtstruct
    from delineate.scans.dicom.seg import overlapping, write_seg

    scan, masks, maps, measured, notes = proposals.scan, {}, {}, [], []
    concepts: dict[str, str] = {}
    asked = [name for name in asked if name == "rtstruct" or seg is not None]
    if scan.dicom is None or not asked:
        return [], []
    none = f"no DICOM {'SEG' if 'seg' in asked else 'objects'}"
    if scan.dicom.missing:
        return [], [f"{none}: the source lacks {', '.join(scan.dicom.missing)}"]
    for target, told in zip(proposals, targets, strict=True):
        if target.outcome is not Outcome.FOUND or target.name is None or not (mask := target.consensus(how)).any():
            continue
        count = sum(known == target.name for known in concepts.values())
        name = target.name if count == 0 else f"{target.name} {count + 1}"
        masks[name], concepts[name] = mask, target.name
        maps[name] = target.probability() if seg == "fractional" and "seg" in asked else mask
        figures = {k: v for k, v in told.get("measured", {}).items() if k in Measurements.__dataclass_fields__}
        measured.append(Measurements(name=name, volume_ml=told.get("consensus_ml"), **figures))
    if not masks:
        return [], [f"{none}: nothing was found"]
    kind, options = seg or "binary", {"algorithm": algorithm, "concepts": concepts}
    if kind == "labelmap" and (pair := overlapping(masks)) is not None:
        kind = "binary"
        notes.append(f"DICOM SEG written as binary: in a label map {pair[0]} and {pair[1]} could not overlap")
    written = []
    for name in asked:
        path = folder / OBJECTS[name]
        if name == "seg":
            write_seg(path, maps, scan, kind=kind, compress=compress, **options)
        elif name == "rtstruct" and not scan.dicom.placed:
            notes.append("no RT Structure Set: the images have no place in the patient")
            continue
        elif name == "rtstruct":
            write_rtstruct(path, masks, scan, **options)
        else:
            write_report(path, folder / OBJECTS["seg"], measured, scan, **options)
        written.append(path.name)
    return written, notes
