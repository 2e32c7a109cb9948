"""From a DICOM series to a DICOM SEG and back: is the mask where it should be, on the frames that it names?

    python benchmarks/dicom_seg.py --data ../shared/data

A held-out CT becomes a DICOM series twice: as it is, and as a scanner with a gantry tilted by 15 degrees would have
stored it. `delineate segment` reads both; highdicom reads the SEG back. Every frame of it is drawn on the very instance
that it refers to, and its Dice with the labels, brought onto the same pixels, is taken there. Writes
benchmarks/results/dicom_seg.json and docs/pictures/dicom_seg.png.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy.ndimage import shift

from delineate.metrics.overlap import dice
from delineate.pictures import COLOURS, contour
from delineate.scans.geometry import canonical_spacing, orientation_of, to_canonical
from delineate.scans.reading import read_labels, read_scan
from delineate.storage.files import write_json

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))  # who writes series for the tests writes them here
from dicom_series import write_series  # noqa: E402

NAMES = ("liver", "spleen", "right kidney", "aorta")
TILT_DEGREES = 15
ROOM = 36  # rows added at both ends, for a tilted patient leaves the picture


def main() -> None:
    """Write, segment, read back, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the shared data sets")
    data = parser.parse_args().data / "btcv_ct"
    case = json.loads((data.parent / "splits.json").read_text())["btcv_ct"]["test"][0]
    scan = read_scan(data / "imagesTr" / f"{case}_0000.nii.gz", modality="CT")
    orientation = orientation_of(scan.affine)
    spacing = canonical_spacing(scan.affine, orientation)
    voxels = to_canonical(scan.voxels, orientation)
    labels = to_canonical(read_labels(data / "labelsTr" / f"{case}.nii.gz").voxels, orientation)
    ids = json.loads((data / "dataset.json").read_text())["labels"]
    result: dict[str, Any] = {"case": case}
    figure = Figure(figsize=(12.4, 8.2), layout="constrained")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        truths = {"plain": plain(root / "plain", voxels, labels, spacing)}
        truths["tilted"] = tilted(root / "tilted", voxels, labels, spacing)
        segment = [sys.executable, "-m", "delineate", "segment", folder, "-o", f"{folder}/out", "-n", "4"]
        subprocess.run([*segment, *(word for name in NAMES for word in ("-p", name))], check=True)
        for axes, (name, truth) in zip(figure.subplots(2, 3), truths.items(), strict=True):
            instances, masks = read_back(root / name, root / "out" / name / "segmentation.dcm")
            truth_of = {target: truth == ids[target] for target in masks}
            result[name] = {target: round(dice(masks[target], truth_of[target]), 4) for target in masks}
            draw(axes, name, instances, masks, truth_of, spacing)
    figure.legend(
        handles=[Line2D([], [], color=c, label=n) for n, c in zip(NAMES, COLOURS, strict=False)],
        loc="outside lower center",
        ncols=len(NAMES),
    )
    figure.savefig(HERE.parent / "docs" / "pictures" / "dicom_seg.png", dpi=85)
    write_json(HERE / "results" / "dicom_seg.json", result)
    print(json.dumps(result, indent=2))


def plain(folder: Path, voxels: np.ndarray, labels: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Write the CT as it is; the labels on its pixels."""
    write_series(folder, stored(voxels), step_mm=spacing[0], pixel_mm=spacing[1:], origin=(-170, -170, 0))
    return labels


def tilted(folder: Path, voxels: np.ndarray, labels: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """Write the CT as a tilted gantry stores it: each slice a little further back; the labels on its pixels."""
    down = spacing[0] * np.tan(np.radians(TILT_DEGREES))  # mm towards the back from slice to slice
    middle = len(voxels) // 2

    def moved(volume: np.ndarray, order: int) -> np.ndarray:
        grown = np.pad(volume, ((0, 0), (ROOM, ROOM), (0, 0)))
        return np.stack([shift(s, (-(k - middle) * down / spacing[1], 0), order=order) for k, s in enumerate(grown)])

    origin = (-170, -170 - ROOM * spacing[1] - middle * down, 0)
    write_series(
        folder, stored(moved(voxels, 1)), step_mm=spacing[0], pixel_mm=spacing[1:], origin=origin, shear=(0, down)
    )
    return moved(labels, 0)


def stored(voxels: np.ndarray) -> np.ndarray:
    """Values as a CT stores them."""
    return np.clip(np.rint(voxels.astype(np.float32) + 1024), 0, 4095).astype(np.int16)


def read_back(series: Path, file: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The instances in order, and for each target the SEG's frames on the instances that they refer to."""
    headers = {path: pydicom.dcmread(path) for path in series.glob("*.dcm")}
    ordered = sorted(headers.values(), key=lambda header: float(header.ImagePositionPatient[2]))
    place = {header.SOPInstanceUID: k for k, header in enumerate(ordered)}
    instances = np.stack([header.pixel_array.astype(float) - 1024 for header in ordered])
    seg = highdicom.seg.segread(file)
    names = {one.SegmentNumber: one.SegmentLabel for one in seg.SegmentSequence}
    masks = {name: np.zeros(instances.shape, dtype=bool) for name in names.values()}
    for number, groups in enumerate(seg.PerFrameFunctionalGroupsSequence):
        source = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        segment = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        masks[names[segment]][place[source]] = seg.pixel_array[number] > 0
    return instances, masks


def draw(
    axes: Any, name: str, instances: np.ndarray, masks: dict[str, np.ndarray], truth: dict[str, np.ndarray], mm: Any
) -> None:
    """Two instances with the frames that refer to them, and a sagittal cut through the stack as it is stored."""
    most = int(
        np.argmax(
            [sum(1000 * mask[k].any() + mask[k].mean() for mask in masks.values()) for k in range(len(instances))]
        )
    )
    column = instances.shape[2] // 3
    cuts = [(most, mm[1] / mm[2]), (max(0, most - 6), mm[1] / mm[2])]
    for axis, (k, aspect) in zip(axes, cuts, strict=False):
        axis.imshow(instances[k], cmap="gray", vmin=-125, vmax=275, aspect=aspect)
        outline(axis, {n: (m[k], truth[n][k]) for n, m in masks.items()})
        axis.set_title(f"{name}: instance {k + 1} of {len(instances)}, its SEG frames; thin: labels", fontsize=8)
    axes[2].imshow(instances[::-1, :, column], cmap="gray", vmin=-125, vmax=275, aspect=mm[0] / mm[1])
    outline(axes[2], {n: (m[::-1, :, column], truth[n][::-1, :, column]) for n, m in masks.items()})
    axes[2].set_title(f"{name}: the instances stacked as stored, sagittal", fontsize=8)
    for axis in axes:
        axis.axis("off")


def outline(axis: Any, pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> None:
    """A mask's outline thick, its label's thin, one colour a target."""
    for target, (mask, label) in pairs.items():
        colour = COLOURS[NAMES.index(target)]
        contour(axis, mask, colour, 1.8)
        contour(axis, label, colour, 0.7)


if __name__ == "__main__":
    main()
