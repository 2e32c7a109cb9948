"""Out to DICOM and in again: is a mask the same after SEG, contours and a PACS, and what does each of them cost?

    python benchmarks/pacs.py --data ../shared/data
    python benchmarks/pacs.py --data ../shared/data --pacs http://127.0.0.1:8042/dicom-web

The labels of a held-out CT (four organs) are written on a DICOM series of it as SEG of every kind, as an RT Structure
Set and as a structured report, and read back: by this package, by highdicom, by SimpleITK where it can, and the
contours also by matplotlib, which knows nothing of ours. Then SEG and contours as a gantry tilted by 15 degrees stores
the series. With --pacs the objects of the first go there and come back before they are read. Files are read and written
in this process, without the child that the package starts for them, so that seconds are those of the work. Writes
benchmarks/results/pacs.json and docs/pictures/contours.png.
"""

import argparse
import json
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import SimpleITK
from dicom_seg import NAMES, plain, tilted
from dicom_series import answer_here
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from scipy.ndimage import distance_transform_edt

from delineate.metrics.overlap import dice
from delineate.prompts.colours import colour_of
from delineate.scans.dicom import objects, regions, series
from delineate.scans.dicom.regions import read_regions
from delineate.scans.dicom.report import Measurements, write_report
from delineate.scans.dicom.rtstruct import write_rtstruct
from delineate.scans.dicom.seg import write_seg
from delineate.scans.dicom.series import read_series
from delineate.scans.dicom.web import Address, fetch, store
from delineate.scans.geometry import canonical_spacing, orientation_of, to_canonical
from delineate.scans.reading import read_labels, read_scan
from delineate.scans.scan import Scan
from delineate.storage.files import write_json

HERE = Path(__file__).parent
KINDS = {
    "SEG binary": ("binary", True),
    "SEG labelmap": ("labelmap", False),
    "SEG labelmap, RLE": ("labelmap", True),
    "SEG fractional, RLE": ("fractional", True),
}


def main() -> None:
    """Write, send, read back, compare, draw."""
    for module in (objects, regions, series):
        module.ask_child = answer_here
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the shared data sets")
    parser.add_argument("--pacs", help="a DICOMweb service to send all to and fetch all from; without it none")
    options = parser.parse_args()
    data = options.data / "btcv_ct"
    case = json.loads((data.parent / "splits.json").read_text())["btcv_ct"]["test"][0]
    scan = read_scan(data / "imagesTr" / f"{case}_0000.nii.gz", modality="CT")
    orientation = orientation_of(scan.affine)
    spacing = canonical_spacing(scan.affine, orientation)
    voxels = to_canonical(scan.voxels, orientation)
    labels = to_canonical(read_labels(data / "labelsTr" / f"{case}.nii.gz").voxels, orientation)
    names = {number: name for name, number in json.loads((data / "dataset.json").read_text())["labels"].items()}
    result: dict[str, Any] = {"case": case}
    with tempfile.TemporaryDirectory() as folder:
        for how, write in (("plain", plain), ("tilted", tilted)):
            truth = write(Path(folder) / how, voxels, labels, spacing)
            result[how] = trip(Path(folder) / how, truth, names, options.pacs if how == "plain" else None)
    write_json(HERE / "results" / "pacs.json", result)
    print(json.dumps(result, indent=2))


def trip(folder: Path, truth: np.ndarray, names: dict[int, str], pacs: str | None) -> dict[str, Any]:
    """All objects of a series, out and in again: what each takes, and what is left of the masks."""
    told: dict[str, Any] = {}
    files = sorted(folder.iterdir())
    if pacs is not None:
        header = pydicom.dcmread(files[0], stop_before_pixels=True)
        began = time.monotonic()
        store(pacs, files)
        stored = time.monotonic()
        address = Address(pacs, header.StudyInstanceUID, header.SeriesInstanceUID)
        got = fetch(address, folder.parent / "fetched")
        told["series"] = {"files": len(files), "store_s": stored - began, "fetch_s": time.monotonic() - stored}
        assert sorted(f.read_bytes() for f in got.iterdir()) == sorted(f.read_bytes() for f in files)
        folder = got
    scan = read_series(folder)
    full = on_scan(truth, scan)
    masks = {name: full == number for number, name in names.items() if name in NAMES}
    made = folder.parent / f"made-{folder.name}"
    made.mkdir()
    straight = scan.dicom is not None and scan.dicom.shifts is None
    for what, (kind, compress) in list(KINDS.items())[: None if straight else 1]:
        path, began = made / f"{what}.dcm", time.monotonic()
        write_seg(path, masks, scan, kind=kind, compress=compress, algorithm="labels")
        told[what] = cost(path, began) | compared(back(path, pacs), masks, scan)
    path, began = made / "contours.dcm", time.monotonic()
    write_rtstruct(path, masks, scan, algorithm="labels")
    told["RT Structure Set"] = cost(path, began) | compared(back(path, pacs), masks, scan)
    told["RT Structure Set"] |= {"by matplotlib": by_matplotlib(path, masks, scan)}
    if not straight:
        return told
    voxel = float(np.prod(scan.spacing_mm)) / 1000
    volumes = [Measurements(name, float(mask.sum()) * voxel) for name, mask in masks.items()]
    path, began = made / "report.dcm", time.monotonic()
    write_report(path, made / "SEG binary.dcm", volumes, scan, algorithm="labels")
    groups = highdicom.sr.srread(back(path, pacs)).content.get_volumetric_roi_measurement_groups()
    apart = [abs(g.get_measurements()[0].value - v.volume_ml) for g, v in zip(groups, volumes, strict=True)]
    told["report"] = cost(path, began) | {"groups": len(groups), "largest_difference_ml": max(apart)}
    told["by highdicom"] = by_highdicom(made / "SEG binary.dcm", masks, scan)
    told["by SimpleITK"] = by_simpleitk(made / "SEG binary.dcm", masks, scan)
    draw(made / "contours.dcm", masks, scan)
    return told


def on_scan(truth: np.ndarray, scan: Scan) -> np.ndarray:
    """Labels on the slices of a scan: those of a tilted one are moved as its slices were, to the nearest pixel."""
    if scan.dicom is None or scan.dicom.shifts is None:
        return truth
    out = np.zeros(scan.shape, truth.dtype)
    for k, (down, right) in enumerate(np.rint(scan.dicom.shifts).astype(int)):
        out[k, down : down + truth.shape[1], right : right + truth.shape[2]] = truth[k]
    return out


def cost(path: Path, began: float) -> dict[str, Any]:
    """Bytes, as they are and as a network or a disk would pack them; seconds to write and to check."""
    data = path.read_bytes()
    return {"bytes": len(data), "bytes_deflated": len(zlib.compress(data)), "write_s": time.monotonic() - began}


def back(path: Path, pacs: str | None) -> Path:
    """The file, or what a PACS gives back of it."""
    if pacs is None:
        return path
    told = pydicom.dcmread(path, stop_before_pixels=True)
    store(pacs, [path])
    (got,) = fetch(Address(pacs, told.StudyInstanceUID, told.SeriesInstanceUID), path.parent / "fetched").iterdir()
    return got


def compared(path: Path, masks: dict[str, np.ndarray], scan: Scan) -> dict[str, Any]:
    """What this package reads of a file, against the masks: the worst of the targets."""
    began = time.monotonic()
    read = read_regions(path, scan)
    seconds = time.monotonic() - began
    pairs = [(one.mask(), masks[one.name]) for one in read.regions]
    assert len(pairs) == len(masks)
    return {
        "read_s": seconds,
        "voxels_that_differ": sum(int((got != mask).sum()) for got, mask in pairs),
        "least_dice": min(dice(got, mask) for got, mask in pairs),
        "farthest_mm": max(farthest(got, mask, scan.spacing_mm) for got, mask in pairs),
        "notes": list(read.notes),
    }


def farthest(got: np.ndarray, mask: np.ndarray, spacing: tuple[float, ...]) -> float:
    """How far the farthest voxel that is in one of the two alone lies from the other, in mm."""
    if np.array_equal(got, mask):
        return 0.0
    apart = [distance_transform_edt(~b, spacing)[a & ~b].max(initial=0) for a, b in ((got, mask), (mask, got))]
    return float(max(apart))


def by_matplotlib(path: Path, masks: dict[str, np.ndarray], scan: Scan) -> dict[str, Any]:
    """Contours filled by another library, in mm and from the file alone."""
    told, worst = pydicom.dcmread(path), 1.0
    inverse = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ scan.affine)
    for drawn, mask in zip(told.ROIContourSequence, masks.values(), strict=True):
        got = np.zeros(scan.shape, bool)
        for contour in drawn.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3) @ inverse[:3, :3].T + inverse[:3, 3]
            k = round(float(points[:, 0].mean()))
            closed = Outline(np.concatenate([points[:, 1:], points[:1, 1:]]))
            low, high = np.floor(points.min(axis=0)).astype(int), np.ceil(points.max(axis=0)).astype(int) + 1
            rows, columns = np.mgrid[low[1] : high[1], low[2] : high[2]]
            inside = closed.contains_points(np.c_[rows.ravel(), columns.ravel()]).reshape(rows.shape)
            got[k, low[1] : high[1], low[2] : high[2]] ^= inside
        worst = min(worst, dice(got, mask))
    return {"least_dice": worst}


def by_highdicom(path: Path, masks: dict[str, np.ndarray], scan: Scan) -> dict[str, Any]:
    """Where highdicom says that the voxels of a SEG lie, against the scan's own affine."""
    volume = highdicom.seg.segread(path).get_volume(combine_segments=False)
    affine = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    worst = 0.0
    for number, mask in enumerate(masks.values()):
        theirs = np.argwhere(volume.array[..., number] > 0)
        theirs = np.sort(theirs @ affine[:3, :3].T + affine[:3, 3], axis=0)
        ours = np.sort(np.argwhere(mask) @ scan.affine[:3, :3].T + scan.affine[:3, 3], axis=0)
        worst = max(worst, float(np.abs(theirs - ours).max()))
    return {"farthest_mm": worst}


def by_simpleitk(path: Path, masks: dict[str, np.ndarray], scan: Scan) -> dict[str, Any]:
    """The frames as SimpleITK reads them, each laid where the file says that it lies; it knows no label maps."""
    frames, told = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))) > 0, pydicom.dcmread(path)
    inverse = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ scan.affine)
    got = {number: np.zeros(scan.shape, bool) for number in range(1, len(masks) + 1)}
    for frame, groups in zip(frames, told.PerFrameFunctionalGroupsSequence, strict=True):
        place = inverse @ [*map(float, groups.PlanePositionSequence[0].ImagePositionPatient), 1.0]
        got[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber][round(float(place[0]))] = frame
    return {"voxels_that_differ": sum(int((g != m).sum()) for g, m in zip(got.values(), masks.values(), strict=True))}


def draw(path: Path, masks: dict[str, np.ndarray], scan: Scan) -> None:
    """The contours of two slices on the CT, as the file has them; beside them a kidney pixel by pixel."""
    told = pydicom.dcmread(path)
    inverse = np.linalg.inv(np.diag([-1.0, -1, 1, 1]) @ scan.affine)
    kidney = masks["right kidney"]
    k = int(kidney.sum(axis=(1, 2)).argmax())
    rows, columns = (np.flatnonzero(kidney[k].any(axis=axis)) for axis in (1, 0))
    figure = Figure(figsize=(12, 6), layout="constrained")
    for axes, zoom in zip(figure.subplots(1, 2), (False, True), strict=True):
        axes.imshow(scan.voxels[k], cmap="gray", vmin=-160, vmax=240, aspect=scan.spacing_mm[1] / scan.spacing_mm[2])
        if zoom:
            axes.set_xlim(columns[0] - 3.5, columns[-1] + 3.5)
            axes.set_ylim(rows[-1] + 3.5, rows[0] - 3.5)
            axes.plot(*np.argwhere(kidney[k])[:, ::-1].T, ".", color="white", markersize=2)
        for drawn, name in zip(told.ROIContourSequence, masks, strict=True):
            for contour in drawn.ContourSequence:
                points = np.array(contour.ContourData, float).reshape(-1, 3) @ inverse[:3, :3].T + inverse[:3, 3]
                if round(float(points[:, 0].mean())) == k:
                    closed = np.concatenate([points, points[:1]])
                    axes.plot(closed[:, 2], closed[:, 1], color=colour_of(name), linewidth=1.2)
        axes.set_axis_off()
    figure.savefig(HERE.parent / "docs" / "pictures" / "contours.png", dpi=85)


if __name__ == "__main__":
    main()
