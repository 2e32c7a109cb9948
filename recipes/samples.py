"""The small real scans that ship: `delineate.samples`.

    python recipes/samples.py --data ../shared/data

Reads BTCV CT, ISIC 2018, BUSI, HC18 and DSB 2018 fluorescence with the splits of `splits.json`; writes
src/delineate/samples/: a dataset folder a sample, `splits.json`, `samples.json` (origin, terms, SHA-256 of each file)
and README.md (the same for people). All are test subjects, which no model that ships has learnt from, but for the five
images of nuclei that `delineate demo` adapts by. Chosen by eye, before any model had seen them.
"""

import argparse
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from delineate.samples import folder as samples_folder
from delineate.storage.files import sha256_of, write_json, write_text

MARGIN = 4  # voxels about the body
BODY = 20  # of 255: darker is air, and the table is thin
SLAB = slice(10, 58, 2)  # of case13: from below the kidneys to the dome of the liver, every second slice


@dataclass(frozen=True)
class Chosen:
    """What one sample is made of, and what is told of it."""

    title: str
    modality: str
    labels: dict[str, int]
    source: str
    origin: str
    terms: str
    attribution: str
    changes: str
    cases: dict[str, str] = field(default_factory=dict)  # name of the case to its split


CHOSEN = {
    "ct": Chosen(
        "CT of the abdomen, 13 organs",
        "CT",
        {},
        "btcv_ct",
        "Beyond the Cranial Vault (BTCV) challenge, MICCAI 2015; Synapse syn3193805, doi:10.7303/syn3193805",
        "usually quoted CC BY 4.0",
        "Landman B, Xu Z, Iglesias JE, Styner M, Langerak TR, Klein A: MICCAI Multi-Atlas Labeling Beyond the "
        "Cranial Vault, workshop and challenge, 2015",
        "8 bit (window about -125 to 275 HU) at half resolution in the plane; every second slice of the slab that "
        "shows the organs (now 6 mm apart), cropped to the body",
        {"case13": "test"},
    ),
    "dermoscopy": Chosen(
        "a skin lesion in dermoscopy",
        "dermoscopy",
        {"skin lesion": 1},
        "isic2018",
        "ISIC 2018 challenge, task 1",
        "quoted CC0 1.0",
        "Codella N et al.: Skin Lesion Analysis Toward Melanoma Detection 2018, arXiv:1902.03368; the image is of the "
        "ISIC Archive, www.isic-archive.com",
        "scaled to 256 x 256",
        {"ISIC_0000034": "test"},
    ),
    "breast": Chosen(
        "a benign lesion in breast ultrasound",
        "US",
        {"breast lesion": 1},
        "busi",
        "Breast Ultrasound Images (BUSI)",
        "quoted CC0 (the data) and CC BY 4.0 (the article)",
        "Al-Dhabyani W, Gomaa M, Khaled H, Fahmy A: Dataset of breast ultrasound images, Data in Brief 28, 104863, "
        "2020, doi:10.1016/j.dib.2019.104863",
        "scaled to a longer side of 320",
        {"benign_48": "test"},
    ),
    "fetal_head": Chosen(
        "a fetal head in ultrasound",
        "US",
        {"fetal head": 1},
        "hc18_us",
        "HC18 grand challenge, Zenodo, doi:10.5281/zenodo.1322001",
        "CC BY 4.0",
        "van den Heuvel TLA, de Bruijn D, de Korte CL, van Ginneken B: Automated measurement of fetal head "
        "circumference using 2D ultrasound images, PLoS ONE 13(8), e0200412, 2018, doi:10.1371/journal.pone.0200412",
        "scaled to 400 x 270; the outline of the skull filled",
        {"724_HC": "test"},
    ),
    "nuclei": Chosen(
        "nuclei in fluorescence microscopy: 5 images to learn from, 6 to test",
        "fluorescence",
        {"nuclei": 1},
        "dsb2018_fl",
        "2018 Data Science Bowl, BBBC038v1 of the Broad Bioimage Benchmark Collection, corrected masks",
        "CC0 1.0",
        "Caicedo JC et al.: Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl, Nature "
        "Methods 16, 1247-1253, 2019, doi:10.1038/s41592-019-0612-7",
        "grey, one mask for all nuclei",
        {
            "fl_02903040e19ddf92": "train",
            "fl_0bf4b144167694b6": "train",
            "fl_0e5edb072788c7b1": "train",
            "fl_1d4a5e729bb96b08": "train",
            "fl_2c840a94d216f5ef": "train",
            "fl_0a7d30b252359a10": "test",
            "fl_1b6044e4858a9b7c": "test",
            "fl_1a75de9e11303142": "test",
            "fl_45cc00f2ef95da66": "test",
            "fl_4185b9369fc8bdcc": "test",
            "fl_5953af5080d981b5": "test",
        },
    ),
}


def main() -> None:
    """Choose, crop, copy, describe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--output", type=Path, default=samples_folder(), help="Folder to write to.")
    args = parser.parse_args()
    told = {}
    for name, chosen in CHOSEN.items():
        shutil.rmtree(args.output / name, ignore_errors=True)
        labels = chosen.labels or _labels(args.data / chosen.source)
        write_json(
            args.output / name / "dataset.json",
            {"channel_names": {"0": chosen.modality}, "labels": {"background": 0, **labels}},
        )
        subjects = _subjects(args.data, chosen)
        (_write_slab if name == "ct" else _copy)(args.data / chosen.source, list(chosen.cases), args.output / name)
        files = sorted(p for p in (args.output / name).rglob("*") if p.is_file() and p.suffix != ".json")
        told[name] = {
            **{k: v for k, v in asdict(chosen).items() if k not in ("labels", "cases")},
            "targets": list(labels),
            "subjects": subjects,
            "sha256": {path.relative_to(args.output / name).as_posix(): sha256_of(path) for path in files},
        }
    write_json(args.output / "samples.json", told)
    splits = {name: _by_split(chosen.cases) for name, chosen in CHOSEN.items()}
    write_json(args.output / "splits.json", splits)
    write_text(args.output / "README.md", readme(told))
    size = sum(p.stat().st_size for p in args.output.rglob("*") if p.is_file())
    print(f"{args.output}: {size / 1e6:.2f} MB")


def readme(told: dict[str, dict[str, Any]]) -> str:
    """Origin and terms of every sample, for people."""
    lines = [
        "# Samples",
        "",
        "Real scans with their masks, made by `recipes/samples.py` from public sets; `samples.json` has the SHA-256",
        "of each file. They are not under delineate's own licence but under the terms below. No model that ships has",
        "learnt from them. For trying things, not for judging a model by.",
        "",
    ]
    for name, about in told.items():
        lines += [
            f"## {name}: {about['title']}",
            "",
            f"* From: {about['origin']}.",
            f"* Terms: {about['terms']}.",
            f"* By: {about['attribution']}.",
            f"* Changed: {about['changes']}.",
            f"* Subjects: {', '.join(about['subjects'].values())}.",
            "",
        ]
    return "\n".join(lines)


def _labels(folder: Path) -> dict[str, int]:
    """The labels that a set of the nnU-Net layout declares, the background left out."""
    declared = json.loads((folder / "dataset.json").read_text())["labels"]
    return {name: number for name, number in declared.items() if number}


def _subjects(data: Path, chosen: Chosen) -> dict[str, str]:
    """Every case's subject; raises where one is not of the split that it is said to be of."""
    splits = json.loads((data / "splits.json").read_text())[chosen.source]
    written = data / chosen.source / "subjects.json"
    known = json.loads(written.read_text()) if written.exists() else {}
    subjects = {name: known.get(name, name) for name in chosen.cases}
    for name, split in chosen.cases.items():
        if subjects[name] not in splits[split]:
            raise SystemExit(f"{chosen.source}: '{name}' is not of the {split} split")
    return subjects


def _by_split(cases: dict[str, str]) -> dict[str, list[str]]:
    return {split: [n for n, s in cases.items() if s == split] for split in ("train", "val", "test")}


def _copy(source: Path, cases: list[str], folder: Path) -> None:
    """Flat images and their masks as they are."""
    for part in ("images", "masks"):
        (folder / part).mkdir()
        for name in cases:
            path = next((source / part).glob(f"{name}.*"))
            shutil.copyfile(path, folder / part / path.name)


def _write_slab(source: Path, cases: list[str], folder: Path) -> None:
    """The slab of a volume, cropped to the body; nibabel moves and stretches the affine along."""
    for name in cases:
        image = nib.load(source / "imagesTr" / f"{name}_0000.nii.gz")
        labels = nib.load(source / "labelsTr" / f"{name}.nii.gz")
        body = np.asarray(image.dataobj)[:, :, SLAB] > BODY
        # a row or column is of the body where a good part of it is bright in some slice: the table never is
        wide = [np.flatnonzero((body.mean(axis=axis) > 0.1).any(axis=-1)) for axis in (1, 0)]
        crop = [slice(max(0, at[0] - MARGIN), at[-1] + 1 + MARGIN) for at in wide]
        for part, whole in (("images", image), ("masks", labels)):
            (folder / part).mkdir(exist_ok=True)
            cut = whole.slicer[crop[0], crop[1], SLAB]
            bare = nib.Nifti1Image(np.asarray(cut.dataobj).astype(np.uint8), cut.affine)
            bare.header.set_xyzt_units("mm")
            nib.save(bare, folder / part / f"{name}.nii.gz")
        print(f"{name}: {bare.shape} at {tuple(round(float(z), 2) for z in bare.header.get_zooms())} mm")


if __name__ == "__main__":
    main()
