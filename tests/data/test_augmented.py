import gzip
import json
import shutil
from dataclasses import replace

import nibabel
import numpy as np
import pytest
from PIL import Image
from tests.data.test_dataset import pictures
from tests.scans.test_geometry import ALL_48, affine_with
from tests.scans.test_volume_formats import written

from delineate.data.augmented import AugmentedDataset, cropped, slab_of
from delineate.data.check import check_dataset
from delineate.data.dataset import open_dataset
from delineate.data.slices import build_slices
from delineate.data.synthetic import Origin
from delineate.errors import DatasetError
from delineate.scans.geometry import from_canonical, orientation_of, to_canonical
from delineate.scans.reading import read_labels, read_scan
from delineate.scans.scan import Scan
from delineate.scans.writing import write_scan
from delineate.storage.files import write_json

SHAPE = (4, 5, 6)


def world(scan):
    """Position of every voxel in mm, (I, J, K, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, scan.shape), indexing="ij"), axis=-1)
    return index @ scan.affine[:3, :3].T + scan.affine[:3, 3]


@pytest.mark.parametrize("codes", ALL_48, ids="".join)
def test_a_slab_has_every_voxel_at_its_place_in_the_world(codes):
    voxels = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    scan = Scan(voxels, affine_with(codes), "CT")
    slices = to_canonical(voxels, orientation_of(scan.affine))
    for first, end in ((0, len(slices)), (1, 3), (len(slices) - 1, len(slices))):
        where = slab_of(scan, first, end)
        slab = cropped(scan, where)
        np.testing.assert_allclose(world(slab), world(scan)[where], rtol=0, atol=1e-9)
        assert np.array_equal(to_canonical(slab.voxels, orientation_of(slab.affine)), slices[first:end])
        assert np.array_equal(from_canonical(slices[first:end], orientation_of(scan.affine)), slab.voxels)
        assert slab.modality == "CT"


def test_cropping_leaves_the_scan_as_it_was():
    scan = Scan(np.zeros(SHAPE, np.float32), np.diag([2.0, 3.0, 4.0, 1.0]), space_code=4)
    slab = cropped(scan, (slice(0, 4), slice(2, 5), slice(1, 3)))
    assert np.array_equal(scan.affine, np.diag([2.0, 3.0, 4.0, 1.0]))
    assert slab.affine[:3, 3].tolist() == [0, 6, 4]
    assert (slab.shape, slab.spacing_mm, slab.space_code) == ((4, 3, 2), (2, 3, 4), 4)


def test_a_colour_image_is_its_own_slab():
    scan = Scan(np.arange(60, dtype=np.float32).reshape(1, 4, 5, 3), np.eye(4))
    assert cropped(scan, (slice(0, 1), slice(0, 4), slice(0, 5))).voxels.shape == (1, 4, 5, 3)


# the folder


def entry(source, variant=0, slices=(0, 1), seed=1):
    return {"source": source, "variant": variant, "slices": list(slices), "seed": seed}


def enlarged(folder, dataset, slices=(3, 7)):
    """All of train and val, and one likeness of the first two train cases: darker slices of them."""
    first, *_ = train = dataset.split("train")
    flat = dataset.read(first)[0].is_flat
    written, drawn = AugmentedDataset(folder, dataset, flat=flat), folder.with_name("drawn")
    for case in (*train, *dataset.split("val")):
        written.add_real(case)
    made = {}
    for case in train[:2]:
        name, scan = f"{case.name}_syn0", dataset.read(case)[0]
        part = scan if flat else cropped(scan, slab_of(scan, *slices))
        own = slices if not flat else (0, 1)
        path = drawn / f"{name}{'.png' if flat else '.nii.gz'}"
        darker = np.clip(np.rint(0.8 * part.voxels - (0 if flat else 20)), None, None)
        write_scan(path, Scan(darker, part.affine, part.modality, scan.source, scan.has_spacing))
        written.add_synthetic(name, case, path, own)
        made[name] = entry(case.name, slices=own)
    written.finish({"made_by": "test", "synthetic": made}, dataset.modality)
    return folder


@pytest.fixture(scope="module")
def dataset(phantom_dataset):
    return open_dataset(phantom_dataset)


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    return enlarged(tmp_path_factory.mktemp("enlarged") / "big", dataset)


def test_the_folder_is_a_dataset_and_has_no_fault(folder):
    report = check_dataset(folder)
    assert report.ok, report.to_json()
    made = open_dataset(folder)
    assert made.origins == {
        "phantom000_syn0": Origin("phantom000", 0, (3, 7)),
        "phantom001_syn0": Origin("phantom001", 0, (3, 7)),
    }
    assert made.modality == "CT"
    assert [case.name for case in made.split("train")] == [f"phantom00{k}" for k in range(4)]
    assert [case.name for case in made.split("val")] == ["phantom004"]
    assert made.split("test") == ()
    assert not list(folder.rglob("*phantom005*"))  # of the test split nothing


def test_real_cases_are_there_byte_for_byte(folder, phantom_dataset):
    for part, name in (("imagesTr", "phantom000_0000.nii.gz"), ("labelsTr", "phantom004.nii.gz")):
        assert (folder / part / name).read_bytes() == (phantom_dataset / part / name).read_bytes()


def test_labels_of_a_likeness_are_those_of_its_slab(folder, dataset):
    made = open_dataset(folder)
    likeness = next(case for case in made.cases if case.name == "phantom001_syn0")
    source = next(case for case in dataset.cases if case.name == "phantom001")
    scan, ids = made.read(likeness)  # refuses another grid
    real, real_ids = dataset.read(source)
    where = slab_of(real, 3, 7)
    assert np.array_equal(ids, real_ids[where])
    np.testing.assert_allclose(scan.affine, cropped(real, where).affine, atol=1e-4)
    assert ids.any()


def test_likenesses_go_along_with_their_slices(folder):
    bank = build_slices([open_dataset(folder)], "train", 64, synthetic="pair")
    assert (bank.variants.of[:10, 0] >= 0).tolist() == [k in range(3, 7) for k in range(10)]


def test_nnunet_s_own_folds_keep_a_case_and_its_likeness_on_one_side(folder):
    subjects = json.loads((folder / "subjects.json").read_text())
    (fold,) = json.loads((folder / "splits_final.json").read_text())
    assert sorted(fold["train"] + fold["val"]) == sorted(subjects)
    assert not {subjects[name] for name in fold["train"]} & {subjects[name] for name in fold["val"]}
    assert {"phantom000", "phantom000_syn0"} <= set(fold["train"])
    assert fold["val"] == ["phantom004"]
    description = json.loads((folder / "dataset.json").read_text())
    assert description["numTraining"] == len(list((folder / "labelsTr").iterdir())) == 7
    assert description["labels"]["background"] == 0
    assert {p.name.removesuffix("_0000.nii.gz") for p in (folder / "imagesTr").iterdir()} == set(subjects)


@pytest.mark.parametrize("held", ["val", "test"])
def test_nothing_may_come_from_a_held_out_subject(dataset, tmp_path, held):
    written = AugmentedDataset(tmp_path / "big", dataset, flat=False)
    case = dataset.split(held)[0]
    with pytest.raises(DatasetError, match=f"must come from a training subject, not from '{case.subject}'"):
        written.add_synthetic("x", case, case.image, (0, 10))
    assert not list((tmp_path / "big").rglob("*.nii.gz"))


def test_two_cases_of_one_name_are_refused(dataset, tmp_path):
    written = AugmentedDataset(tmp_path / "big", dataset, flat=False)
    case = dataset.split("train")[0]
    written.add_real(case)
    before = (tmp_path / "big" / "imagesTr" / "phantom000_0000.nii.gz").read_bytes()
    with pytest.raises(DatasetError, match="'phantom000' is there already"):
        written.add_synthetic("phantom000", case, case.image, (0, 10))
    assert (tmp_path / "big" / "imagesTr" / "phantom000_0000.nii.gz").read_bytes() == before


def test_targets_that_are_left_out_become_background(phantom_dataset, tmp_path):
    dataset = open_dataset(phantom_dataset, targets=["liver", "spleen"])
    folder = enlarged(tmp_path / "big", dataset)
    made = open_dataset(folder)
    assert (made.labels, made.other_ids) == (dataset.labels, frozenset())
    assert check_dataset(folder).ok
    for case in made.cases:
        stored = read_labels(case.labels).voxels
        assert set(np.unique(stored)) <= {0, *dataset.labels.values()}
        assert stored.any()


def test_a_case_without_labels_is_refused(dataset, tmp_path):
    written = AugmentedDataset(tmp_path / "big", dataset, flat=False)
    with pytest.raises(DatasetError, match="has no label file"):
        written.add_real(replace(dataset.cases[0], labels=None))


def test_unzipped_volumes_are_zipped_on_the_way(phantom_dataset, tmp_path):
    root = shutil.copytree(phantom_dataset, tmp_path / "plain")
    for path in root.rglob("phantom000*.nii.gz"):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    dataset = open_dataset(root)
    written = AugmentedDataset(tmp_path / "big", dataset, flat=False)
    written.add_real(dataset.cases[0])
    for part, name in (("imagesTr", "phantom000_0000"), ("labelsTr", "phantom000")):
        ours, theirs = (
            nibabel.load(p) for p in (tmp_path / "big" / part / f"{name}.nii.gz", root / part / f"{name}.nii")
        )
        assert np.array_equal(ours.get_fdata(), theirs.get_fdata())


@pytest.fixture
def flat(tmp_path):
    root = pictures(tmp_path / "flat", names=("a.v2", "b", "c"), ending="_mask")
    for case, colour in (("b", (200, 10, 90)), ("c", (1, 2, 3))):  # a colour image, and a JPEG
        image = Image.new("RGB", (9, 8), colour)
        (root / "images" / f"{case}.png").unlink()
        image.save(root / "images" / f"{case}.{'jpg' if case == 'c' else 'png'}")
    write_json(root / "splits.json", {"train": ["a.v2", "b"], "val": ["c"], "test": []})
    return root


def test_flat_images_stay_flat(flat, tmp_path):
    dataset = open_dataset(flat, targets=["polyp"])
    folder = enlarged(tmp_path / "big", dataset)
    assert sorted(p.name for p in (folder / "images").iterdir()) == [
        "a.v2.png",
        "a.v2_syn0.png",
        "b.png",
        "b_syn0.png",
        "c.jpg",
    ]
    assert check_dataset(folder).ok
    made = open_dataset(folder)
    assert set(made.origins) == {"a.v2_syn0", "b_syn0"}
    assert made.labels == {"polyp": 1}
    for case in made.cases:
        scan, ids = made.read(case)
        source = made.origins[case.name].source if case.name in made.origins else case.name
        real, real_ids = dataset.read(next(c for c in dataset.cases if c.name == source))
        assert np.array_equal(ids, real_ids)
        assert scan.is_colour == real.is_colour
    with Image.open(folder / "images" / "b_syn0.png") as image:
        assert image.mode == "RGB"
        assert image.getpixel((0, 0)) == (160, 8, 72)


def test_an_unknown_modality_stays_unknown(flat, tmp_path):
    """Else captions would speak of "unknown" as of a kind of picture."""
    assert open_dataset(enlarged(tmp_path / "big", open_dataset(flat, targets=["polyp"]))).modality is None


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "endoscopy"])
def test_a_known_modality_is_kept(flat, tmp_path, modality):
    dataset = open_dataset(flat, targets=["polyp"], modality=modality)
    assert open_dataset(enlarged(tmp_path / "big", dataset)).modality == modality


@pytest.mark.parametrize(("image", "label"), [(".nrrd", ".seg.nrrd"), (".mhd", ".mha"), (".hdr", ".nii")])
def test_volumes_of_other_formats_become_nifti(tmp_path, image, label):
    voxels = np.arange(120, dtype=np.int16).reshape(SHAPE)
    for part in ("images", "masks"):
        (tmp_path / "set" / part).mkdir(parents=True)
    for n in range(3):
        written(tmp_path / "set" / "images" / f"c{n}{image}", voxels + n)
        written(tmp_path / "set" / "masks" / f"c{n}{label}", (voxels > 60).astype(np.uint8))
    write_json(tmp_path / "set" / "splits.json", {"train": ["c0", "c1"], "val": ["c2"], "test": []})
    dataset = open_dataset(tmp_path / "set", targets=["liver"], modality="MR")
    enlarged = AugmentedDataset(tmp_path / "out", dataset, flat=False)
    enlarged.add_real(dataset.cases[1])
    scan, ids = dataset.read(dataset.cases[1])
    back = read_scan(tmp_path / "out" / "imagesTr" / "c1_0000.nii.gz")
    assert np.array_equal(back.voxels, scan.voxels)
    np.testing.assert_allclose(back.affine, scan.affine, rtol=1e-5, atol=1e-4)
    assert np.array_equal(read_labels(tmp_path / "out" / "labelsTr" / "c1.nii.gz").voxels, ids)
