"""What a SEG or a structure set holds becomes voxels of a scan: segments frame by frame, contours slice by slice.

This runs in the child process of `delineate.scans.dicom.limits`: `read` is its job "masks".
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.uid import UID

from delineate.errors import ScanError
from delineate.scans.dicom.contours import filled
from delineate.scans.dicom.headers import DEFLATED, RLE, RLE_LIMIT, Header, frames_of, printable, read_whole, whole
from delineate.scans.dicom.pixels import decode

MOST_REGIONS = 2000  # of a file: TotalSegmentator has 117, an atlas of the brain some hundreds
MOST_CONTOURS = 500_000
UNDEFINED = 0xFFFFFFFF  # length of an element that has an end instead
FARTHEST_MM = 1e6  # of a coordinate from the origin
BETWEEN = 0.1  # voxels: beyond this it is said that what is drawn lies between the voxels
ASKEW = 0.5  # voxels: how far a contour or a frame may leave the slice, or the row, that it lies in
FOREIGN = "read it on the series that it was drawn on, or resample it in 3D Slicer"

Found = dict[str, Any]  # "name", "code", "voxels": a list of int64 arrays


def read(job: dict[str, Any], folder: Path, allow: Callable[[int], None]) -> dict[str, Any]:
    """Write `folder/voxels.npy`, int64: places in the scan's array, region by region; return what they are.

    Args:
        job: "name", "files" [path], "series" (an instance of the scan's, or null), "affine" (4, 4) voxel to mm LPS,
            "shape", "max_voxels".
        folder: for what is written.
        allow: told how many bytes the pixels take, once that is known and found allowed.
    """
    path, notes = Path(job["files"][0]), []
    try:
        data = read_whole(path, stop_before_pixels=True)
        syntax = UID(str(data.file_meta.TransferSyntaxUID))
        if syntax in DEFLATED:
            raise ScanError(
                f"{path}: deflated DICOM is not read, since it can expand a thousandfold before any check; convert it, "
                "for example with dcmconv +te"
            )
        kind = printable(data.get("Modality"))
        if kind not in ("SEG", "RTSTRUCT"):
            raise ScanError(
                f"{path}: masks are read from a DICOM SEG or an RT Structure Set, found {kind or 'no modality'}; name "
                "another file"
            )
        for raw in map(data.get_item, list(data.keys())):  # pydicom reads on over the end of a file
            if isinstance(raw, RawDataElement) and raw.value is not None and len(raw.value) < raw.length < UNDEFINED:
                raise ScanError(f"{path}: a file must be readable to its end, this one was cut short; copy it again")
        notes += _same_frame(path, data, job["series"])
        found = _segments(path, data, syntax, job, allow, notes) if kind == "SEG" else _contours(path, data, job, notes)
    except (ScanError, MemoryError):
        raise
    except Exception as error:  # damaged headers raise nearly anything
        raise ScanError(
            f"{path}: what is drawn must be readable, this file is damaged ({printable(f'{error!r}')}); export it again"
        ) from error
    regions: list[Found] = [one | {"voxels": np.unique(np.concatenate([_NONE, *one["voxels"]]))} for one in found]
    if empty := [one["name"] for one in regions if not len(one["voxels"])]:
        listed = ", ".join(empty[:5]) + (f" and {len(empty) - 5} more" if len(empty) > 5 else "")
        notes.append(f"left out, for nothing of them lies on the scan: {listed}")
    regions = [one for one in regions if len(one["voxels"])]
    if not regions:
        raise ScanError(f"{path}: nothing is drawn on this scan{''.join(f'; {note}' for note in notes)}; {FOREIGN}")
    _name(regions)
    np.save(folder / "voxels.npy", np.concatenate([one["voxels"] for one in regions]))
    told = [{"name": one["name"], "code": one["code"], "count": len(one["voxels"])} for one in regions]
    return {"regions": told, "notes": notes}


_NONE = np.zeros(0, np.int64)


def _same_frame(path: Path, data: Dataset, series: str | None) -> list[str]:
    """Compare frames of reference; a note where one of the two is not known.

    Raises:
        ScanError: they are others.
    """
    own = {printable(data.get("FrameOfReferenceUID"))}
    own |= {printable(item.get("FrameOfReferenceUID")) for item in data.get("ReferencedFrameOfReferenceSequence") or ()}
    own.discard("")
    tags: Any = {"specific_tags": ["FrameOfReferenceUID"], "stop_before_pixels": True}
    theirs = "" if series is None else printable(read_whole(series, **tags).get("FrameOfReferenceUID"))
    if not own or not theirs:
        return ["the frame of reference is not known on both sides: places in the patient are taken as they stand"]
    if theirs not in own:
        raise ScanError(f"{path}: drawn in another frame of reference than that of the scan; {FOREIGN}")
    return []


def _segments(
    path: Path, data: Dataset, syntax: UID, job: dict[str, Any], allow: Callable[[int], None], notes: list[str]
) -> list[Found]:
    """The segments of a SEG."""
    told = list(data.get("SegmentSequence") or ())
    _few(path, len(told), "segments", MOST_REGIONS)
    kind, top = printable(data.get("SegmentationType")), max(1, whole(data, "MaximumFractionalValue", 1))
    found: dict[int, Found] = {}
    for one in told:
        number = whole(one, "SegmentNumber", 0)
        if number or kind != "LABELMAP":  # there it is the background
            found[number] = {"name": printable(one.get("SegmentLabel")), "code": _code(one), "voxels": []}
    header = _header(path, data, syntax, job["max_voxels"])
    stored = header.frames * header.rows * header.columns
    allow(24 * header.rows * header.columns + 16 * stored)
    back, shape = np.linalg.inv(np.array(job["affine"])), tuple(job["shape"])
    outside, between = 0, 0.0
    groups = data.get("PerFrameFunctionalGroupsSequence") or ()
    shared = (data.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    for frame, group, pixels in zip(frames_of(header), groups, decode(header, range(header.frames)), strict=True):
        if frame.plane is None or frame.pixel_mm is None:
            raise ScanError(f"{path}: every frame must have a place in the patient, frame {frame.number + 1} has none")
        if kind == "LABELMAP":
            marked = [(int(number), pixels == number) for number in np.unique(pixels) if number]
        else:
            of = (group.get("SegmentIdentificationSequence") or shared.get("SegmentIdentificationSequence"))[0]
            marked = [
                (whole(of, "ReferencedSegmentNumber", 0), pixels >= top / 2 if kind == "FRACTIONAL" else pixels > 0)
            ]
        down = np.array(frame.plane.along_column) * frame.pixel_mm[0]
        across = np.array(frame.plane.along_row) * frame.pixel_mm[1]
        start, steps = back @ [*frame.plane.position, 1.0], (back[:3, :3] @ np.stack([down, across], axis=1)).T
        straight = np.rint(steps)
        if (np.abs(straight).sum(axis=1) != 1).any() or (
            np.abs(steps - straight).max(axis=1) * (header.rows, header.columns) > ASKEW
        ).any():
            raise ScanError(
                f"{path}: the pixels of the segments must be those of the scan, but these are "
                f"{frame.pixel_mm[0]:g} x {frame.pixel_mm[1]:g} mm or lie otherwise; {FOREIGN}"
            )
        for number, mask in marked:
            if not (places := np.argwhere(mask)).size:
                continue
            at = start[:3] + places @ steps
            nearest = np.rint(at).astype(np.int64)
            inside = ((nearest >= 0) & (nearest < shape)).all(axis=1)
            outside += int((~inside).sum())
            between = max(between, float(np.abs(at - nearest)[inside].max(initial=0)))
            if number not in found:
                found[number] = {"name": f"segment {number}", "code": None, "voxels": []}
            found[number]["voxels"].append(np.ravel_multi_index(tuple(nearest[inside].T), shape).astype(np.int64))
    if kind == "FRACTIONAL":
        notes.append("fractions cut at one half")
    if outside:
        notes.append(f"{outside} voxels that are drawn lie outside of the scan")
    if between > BETWEEN:
        notes.append(f"what is drawn lies up to {between:.2f} voxels beside the scan's: the nearest are taken")
    return list(found.values())


def _header(path: Path, data: Dataset, syntax: UID, max_voxels: int) -> Header:
    """What is needed to decode the frames of a SEG, checked against the size of the file."""
    rows, columns, frames = (whole(data, key, 0) for key in ("Rows", "Columns", "NumberOfFrames"))
    bits, size = whole(data, "BitsAllocated", 1), path.stat().st_size
    if min(rows, columns, frames) < 1 or whole(data, "SamplesPerPixel", 1) != 1 or bits not in (1, 8, 16):
        raise ScanError(f"{path}: a SEG must hold frames of 1, 8 or 16 bits a pixel, its header says otherwise")
    if frames * rows * columns > 64 * max_voxels:  # of many segments, a bit each
        raise ScanError(f"{path}: the header asks for {frames} x {rows} x {columns}, more than is read; split it")
    expands = RLE_LIMIT if syntax == RLE else None if syntax.is_encapsulated else 1
    if (expands is not None and frames * rows * columns * bits // 8 > expands * size) or rows * columns > max_voxels:
        raise ScanError(
            f"{path}: the header asks for {frames} x {rows} x {columns} at {bits} bits, but a file of {size} bytes "
            "cannot hold them; it was cut short or its header is wrong: copy it again"
        )
    if not syntax.is_encapsulated:
        pixels: Any = read_whole(path, specific_tags=["PixelData"]).get("PixelData") or b""
        if 8 * len(pixels) < frames * rows * columns * bits:
            raise ScanError(f"{path}: the pixels must be there to the last, some are lacking; copy it again")
    return Header(path, 0, data, syntax, True, frames, rows, columns, 1)


def _contours(path: Path, data: Dataset, job: dict[str, Any], notes: list[str]) -> list[Found]:
    """The regions of a structure set."""
    named = {
        whole(one, "ROINumber", -1): printable(one.get("ROIName")) for one in data.get("StructureSetROISequence") or ()
    }
    coded = {
        whole(one, "ReferencedROINumber", -1): _code(one, "RTROIIdentificationCodeSequence")
        for one in data.get("RTROIObservationsSequence") or ()
    }
    drawn = list(data.get("ROIContourSequence") or ())
    _few(path, len(drawn), "regions", MOST_REGIONS)
    back, shape = np.linalg.inv(np.array(job["affine"])), tuple(job["shape"])
    found: list[Found] = []
    left: Counter[str] = Counter()
    count, between, outside, thinner, apart = 0, 0.0, 0, 0, []
    for one in drawn:
        number = whole(one, "ReferencedROINumber", -1)
        name = named.get(number, "")
        drawn_at: dict[tuple[int, int], list[tuple[float, np.ndarray]]] = {}  # of a slice: how far beside it, and what
        contours: Any = one.get("ContourSequence") or ()
        for contour in contours:
            count += 1
            _few(path, count, "contours", MOST_CONTOURS)
            shown = printable(contour.get("ContourGeometricType"))
            if not shown.replace("_", "").startswith("CLOSEDPLANAR"):
                left[shown or "without a type"] += 1
                continue
            points = _points(path, contour, name)
            if len(points) < 3:
                left["with fewer than three points"] += 1
                continue
            at = points @ back[:3, :3].T + back[:3, 3]
            axis = int(np.ptp(at, axis=0).argmin())
            if float(np.ptp(at[:, axis])) > ASKEW:
                raise ScanError(
                    f"{path}: contours must lie in the slices of the scan, one of '{name}' does not; {FOREIGN}"
                )
            middle = float(at[:, axis].mean())
            k = round(middle)
            if not 0 <= k < shape[axis]:
                outside += 1
                continue
            drawn_at.setdefault((axis, k), []).append((middle - k, np.delete(at, axis, axis=1)))
        voxels = []
        for (axis, k), own in drawn_at.items():
            # contours of one plane are holes in one another, those of two are not: the plane nearest to a slice counts
            beside = min((off for off, _ in own), key=abs)
            polygons = [polygon for off, polygon in own if abs(off - beside) <= BETWEEN]
            between, thinner = max(between, abs(beside)), thinner + len(own) - len(polygons)
            voxels.append(_voxels(filled(polygons, tuple(np.delete(shape, axis))), axis, k, shape))
        found.append({"name": name, "code": coded.get(number), "voxels": voxels})
        slices = sorted(k for _, k in drawn_at)
        if len(slices) > 2 and min(np.diff(slices)) > 1:
            apart.append(name)
    notes += [f"left out: {number} x contours {what}" for what, number in left.most_common(5)]
    if outside:
        notes.append(f"{outside} contours lie outside of the scan")
    if between > BETWEEN:
        notes.append(f"contours lie up to {between:.2f} slices beside the scan's: the nearest are taken")
    if thinner:
        notes.append(f"drawn on thinner slices than the scan's: {thinner} contours between them are left out")
    if apart:
        notes.append(f"contours on some slices only, those between them stay empty: {', '.join(apart[:5])}")
    return found


def _points(path: Path, contour: Dataset, name: str) -> np.ndarray:
    """The points of a contour, (N, 3) mm LPS, read as numbers without a library's object for each."""
    raw = contour.get_item("ContourData")
    text = raw.value if isinstance(raw, RawDataElement) else None
    try:
        if text is not None:
            values = np.array(bytes(text).decode("ascii").strip("\0 \\").split("\\"), np.float64)
        else:
            values = np.array(contour.get("ContourData") or (), np.float64).reshape(-1)
        points = values.reshape(-1, 3)
    except ValueError:
        points = np.full((1, 3), np.nan)
    if not (np.abs(points) <= FARTHEST_MM).all():  # NaN is not
        raise ScanError(
            f"{path}: a contour must be points of three numbers within a kilometre, one of '{name}' is not; export it "
            "again"
        )
    if len(points) < whole(contour, "NumberOfContourPoints", 0):
        raise ScanError(
            f"{path}: a contour must have as many points as it says, one of '{name}' has fewer; export it again"
        )
    return points


def _voxels(mask: np.ndarray, axis: int, k: int, shape: tuple[int, ...]) -> np.ndarray:
    """Where the pixels of slice `k` across an axis lie in the scan's array."""
    places = list(np.nonzero(mask))
    places.insert(axis, np.full(len(places[0]), k))
    return np.ravel_multi_index(tuple(places), shape).astype(np.int64)


def _code(item: Dataset, keyword: str = "SegmentedPropertyTypeCodeSequence") -> list[str] | None:
    for code in item.get(keyword) or ():
        return [printable(code.get(key)) for key in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")]
    return None


def _few(path: Path, count: int, what: str, most: int) -> None:
    if count > most:
        raise ScanError(f"{path}: at most {most} {what} are read, found more; split the file")


def _name(regions: list[Found]) -> None:
    """Give every region a name, and none that another has."""
    taken: set[str] = set()
    for number, one in enumerate(regions, start=1):
        first, own, count = one["name"] or f"region {number}", one["name"] or f"region {number}", 1
        while own in taken:
            count += 1
            own = f"{first} {count}"
        taken.add(own)
        one["name"] = own
