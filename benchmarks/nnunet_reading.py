"""Folders with channels, regions and an ignore label, read by delineate and by nnU-Net itself: are they the same?

    PYTHON benchmarks/nnunet_reading.py            PYTHON has nnunetv2 beside delineate, see company_nnunet.txt

Made-up volumes in nnU-Net's layout, described as BraTS, KiTS, PET/CT and scribbles are. nnU-Net reads each with its own
reader (`SimpleITKIO`), label manager and the transform that makes regions in training; compared are the voxels of every
channel, where every region is, and which voxels are left out of the loss. Counts voxels that differ; none is expected.
Writes benchmarks/results/nnunet_reading.json.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch

from delineate import open_dataset
from delineate.data.dataset import IGNORED
from delineate.prompts.vocabulary import canonical_name
from delineate.storage.files import write_json

RESULTS = Path(__file__).parent / "results"
SETS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "BraTS": (
        ["T1", "T1ce", "T2", "FLAIR"],
        {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [2, 3], "enhancing tumor": [3]},
    ),
    "KiTS": (["CT"], {"background": 0, "kidney and masses": [1, 2, 3], "masses": [2, 3], "tumor": [2]}),
    "PET/CT": (["CT", "PET"], {"background": 0, "tumour": 1}),
    "scribbles": (["MRI"], {"background": 0, "left ventricle": 1, "myocardium": 2, "ignore": 3}),
    "regions that cross, some ignored": (["T2", "ADC"], {"background": 0, "a": [1, 2], "b": [2, 3], "ignore": 4}),
}


def main() -> None:
    """Write, read twice, compare."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    told = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (channels, labels)) in enumerate(SETS.items()):
            root = written(Path(folder) / f"Dataset{number:03d}", channels, labels, number)
            told[name] = compared(root, channels, labels)
            print(name, told[name], flush=True)
    write_json(RESULTS / "nnunet_reading.json", {"command": "python benchmarks/nnunet_reading.py", "sets": told})


def written(root: Path, channels: list[str], labels: dict[str, Any], seed: int) -> Path:
    """Three cases of an oblique volume each."""
    rng = np.random.default_rng(seed)
    ids = sorted({i for value in labels.values() for i in (value if isinstance(value, list) else [value])})
    affine = nibabel.affines.from_matvec(np.array([[-0.9, 0.1, 0], [0.1, 0.95, 0], [0, 0, 3.0]]), [10, -20, 30])
    affine[:3, :3], scale = np.linalg.qr(affine[:3, :3])
    affine[:3, :3] *= np.abs(np.diag(scale))
    for part in ("imagesTr", "labelsTr"):
        (root / part).mkdir(parents=True)
    for case in "abc":
        for k in range(len(channels)):
            image = nibabel.Nifti1Image(rng.integers(-1000, 1000, (24, 20, 8)).astype(np.int16), affine)
            nibabel.save(image, root / "imagesTr" / f"{case}_{k:04d}.nii.gz")
        drawn = rng.choice(ids, (24, 20, 8)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(drawn, affine), root / "labelsTr" / f"{case}.nii.gz")
    described = {"channel_names": {str(k): c for k, c in enumerate(channels)}, "labels": labels}
    described |= {"numTraining": 3, "file_ending": ".nii.gz"}
    if any(isinstance(value, list) for value in labels.values()):  # what wins in its own label maps: not compared
        described["regions_class_order"] = list(range(1, 1 + len(labels.keys() - {"background", "ignore"})))
    (root / "dataset.json").write_text(json.dumps(described))
    return root


def compared(root: Path, channels: list[str], labels: dict[str, Any]) -> dict[str, int]:
    """How many voxels differ."""
    from batchgeneratorsv2.transforms.utils.seg_to_regions import (  # type: ignore[import-not-found]
        ConvertSegmentationToRegionsTransform,
    )
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO  # type: ignore[import-not-found]
    from nnunetv2.utilities.label_handling.label_handling import LabelManager  # type: ignore[import-not-found]

    dataset, reader = open_dataset(root), SimpleITKIO()
    described = json.loads((root / "dataset.json").read_text())
    manager = LabelManager(labels, described.get("regions_class_order"))
    names = [name for name in labels if name not in ("background", "ignore")]
    count = {"cases": 0, "voxels": 0, "channels differ": 0, "targets differ": 0, "ignored differ": 0}
    for case in dataset.cases:
        files = [str(root / "imagesTr" / f"{case.name}_{k:04d}.nii.gz") for k in range(len(channels))]
        theirs, _ = reader.read_images(files)
        drawn, _ = reader.read_seg(str(root / "labelsTr" / f"{case.name}.nii.gz"))
        scan, ids = dataset.read(case)
        ours = np.moveaxis(scan.voxels, -1, 0) if scan.channels else scan.voxels[None]
        count["channels differ"] += int((ours.transpose(0, 3, 2, 1) != theirs).sum())
        ids = ids.transpose(2, 1, 0)
        regions = manager.foreground_regions if manager.has_regions else [(i,) for i in manager.foreground_labels]
        transform = ConvertSegmentationToRegionsTransform([tuple(int(i) for i in r) for r in regions])
        theirs_drawn = transform(segmentation=torch.from_numpy(drawn.astype(np.int16)))["segmentation"].numpy()
        for name, wanted in zip(names, theirs_drawn, strict=True):
            count["targets differ"] += int((dataset.truth(canonical_name(name), ids) != (wanted > 0)).sum())
        left_out = drawn[0] == manager.ignore_label if manager.has_ignore_label else np.zeros(ids.shape, bool)
        count["ignored differ"] += int(((ids == IGNORED) != left_out).sum())
        count["cases"], count["voxels"] = count["cases"] + 1, count["voxels"] + ids.size
    return count


if __name__ == "__main__":
    main()
