import hashlib
import time

import numpy as np
import pytest
from scipy import ndimage

from delineate.data import open_dataset
from delineate.data.phantom import LESION_ID, PHANTOM_LABELS, make_phantom, make_phantom_image, write_phantom_dataset
from delineate.errors import DatasetError
from delineate.scans.geometry import CANONICAL, orientation_of, to_canonical

SMALL = (24, 48, 48)
SPINE_MM = 56  # the middle of a vertebral body lies this far behind the middle of the trunk


def centre_mm(phantom, name):
    """Left, back, up of an organ's centre."""
    indices = np.argwhere(phantom.labels == PHANTOM_LABELS[name]).mean(axis=0)
    right, front, up = (phantom.affine @ [*indices, 1])[:3]
    return np.array([-right, -front, up])


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_same_seed_gives_the_same_bytes_and_another_another(modality):
    one, again, other = (make_phantom(seed, modality=modality, shape=SMALL, lesions=1, raters=2) for seed in (5, 5, 6))
    for name in ("voxels", "labels", "lesions", "raters", "affine"):
        assert getattr(one, name).tobytes() == getattr(again, name).tobytes()
    assert (one.labels != other.labels).any()
    assert (one.voxels.dtype, one.labels.dtype, one.lesions.dtype, one.raters.dtype) == (
        np.float32,
        np.uint8,
        np.uint8,
        bool,
    )
    assert one.voxels.shape == one.labels.shape == one.lesions.shape == one.raters.shape[1:] == SMALL
    assert np.isfinite(one.voxels).all()


@pytest.mark.parametrize("seed", range(6))
def test_everybody_has_every_organ_in_its_place(seed):
    phantom = make_phantom(seed, shape=SMALL)
    place = {name: centre_mm(phantom, name) for name in PHANTOM_LABELS}
    for right in ("liver", "gallbladder", "right kidney", "inferior vena cava"):
        assert place[right][0] < -8, right
    for left in ("spleen", "stomach", "left kidney"):
        assert place[left][0] > 20, left
    assert abs(place["aorta"][0]) < 20
    assert place["inferior vena cava"][0] < place["aorta"][0]
    assert place["stomach"][1] < place["spleen"][1]
    assert place["right kidney"][2] < place["liver"][2]
    for kidney in ("right kidney", "left kidney"):
        assert place[kidney][1] > place["aorta"][1]
    assert all(place[name][1] < SPINE_MM for name in ("aorta", "pancreas", "gallbladder", "inferior vena cava"))


@pytest.mark.parametrize("seed", range(4))
def test_organs_are_of_human_size(seed):
    phantom = make_phantom(seed)
    voxel_ml = abs(np.linalg.det(phantom.affine[:3, :3])) / 1000
    ml = {name: (phantom.labels == number).sum() * voxel_ml for name, number in PHANTOM_LABELS.items()}
    assert 900 < ml["liver"] < 2600
    for name, least, most in (("spleen", 50, 400), ("right kidney", 70, 280), ("left kidney", 70, 280), ("pancreas", 30, 160), ("gallbladder", 8, 90), ("stomach", 150, 900)):  # fmt: skip
        assert least < ml[name] < most, (name, ml[name])


def test_the_array_is_in_canonical_order_and_the_affine_says_so():
    phantom = make_phantom(0, shape=(10, 20, 30), spacing_mm=(8, 6, 4))
    assert np.linalg.norm(phantom.affine[:3, :3], axis=0).tolist() == [8, 6, 4]
    assert to_canonical(phantom.voxels, orientation_of(phantom.affine)).tobytes() == phantom.voxels.tobytes()
    assert CANONICAL == "SPL"
    middle = phantom.affine @ [4.5, 9.5, 14.5, 1]
    np.testing.assert_allclose(middle[:3], 0, atol=1e-9)


def test_ct_is_in_hu_and_mr_shows_the_same_person():
    ct, mr = (make_phantom(3, modality=modality) for modality in ("CT", "MR"))
    assert (ct.labels == mr.labels).all()
    deep = {
        name: ndimage.binary_erosion(ct.labels == number, np.ones((1, 3, 3))) for name, number in PHANTOM_LABELS.items()
    }
    hu = {name: np.median(ct.voxels[mask]) for name, mask in deep.items()}
    assert ct.voxels[:, 0, 0].mean() < -900
    assert -15 < hu["gallbladder"] < 40
    assert 85 < hu["liver"] < 135 < hu["right kidney"]
    bright = {name: np.median(mr.voxels[mask]) for name, mask in deep.items()}
    assert bright["aorta"] < bright["liver"] < bright["spleen"] < bright["gallbladder"]
    assert mr.voxels.min() >= 0


def test_a_person_is_the_same_at_any_resolution():
    coarse, fine = make_phantom(1, shape=SMALL), make_phantom(1, shape=(48, 96, 96))
    for name, number in PHANTOM_LABELS.items():
        ratio = (fine.labels == number).sum() / 8 / (coarse.labels == number).sum()
        assert 0.7 < ratio < 1.4, name
    slice_ = make_phantom_image(1, shape=(96, 96), height_mm=2.5)
    assert (slice_.labels[0] == fine.labels[24]).mean() > 0.999


def test_lesions_lie_in_organs_and_are_seen():
    phantom = make_phantom(2, lesions=3)
    plain = make_phantom(2)
    assert set(np.unique(phantom.lesions)) == {0, 1, 2, 3}
    assert (phantom.labels == plain.labels).all()
    assert (phantom.labels[phantom.lesions > 0] > 0).all()
    assert phantom.voxels[phantom.lesions > 0].mean() < plain.voxels[phantom.lesions > 0].mean() - 30


def test_raters_agree_on_the_whole_and_differ_at_the_edge():
    phantom = make_phantom(4, lesions=1, raters=40)
    truth = phantom.lesions > 0
    empty = [not reader.any() for reader in phantom.raters]
    assert 1 <= sum(empty) <= 15
    dice = [2 * (reader & truth).sum() / (reader.sum() + truth.sum()) for reader in phantom.raters if reader.any()]
    assert np.median(dice) > 0.6
    assert len({reader.tobytes() for reader in phantom.raters}) > 20
    assert not make_phantom(4, shape=SMALL, raters=3).raters.any()
    assert make_phantom(4, shape=SMALL, lesions=1).raters is None


def test_organs_can_be_missing_without_moving_the_others():
    whole = make_phantom(7, shape=SMALL)
    without = make_phantom(7, shape=SMALL, missing=("gallbladder",), missing_chance=1)
    assert not (without.labels == PHANTOM_LABELS["gallbladder"]).any()
    aorta = PHANTOM_LABELS["aorta"]
    assert ((whole.labels == aorta) == (without.labels == aorta)).all()
    absent = [not (make_phantom(seed, shape=(12, 32, 32), missing=("spleen",)).labels == 1).any() for seed in range(16)]
    assert 3 <= sum(absent) <= 13


@pytest.mark.parametrize("lesions", [0, 2])
def test_one_slice_is_one_slice(lesions):
    image = make_phantom_image(11, modality="MR", shape=(64, 80), lesions=lesions, raters=2)
    assert image.voxels.shape == image.labels.shape == (1, 64, 80)
    assert len(np.unique(image.labels)) > 4
    assert image.lesions.any() == bool(lesions)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="PET"):
        make_phantom(0, modality="PET")
    with pytest.raises(ValueError, match="tail"):
        make_phantom(0, missing=("tail",))


def test_a_phantom_takes_no_time():
    start = time.process_time()
    make_phantom(0)
    assert time.process_time() - start < 3  # 0.6 s here; a slow and busy machine passes


def test_a_phantom_dataset_opens_reads_and_repeats(tmp_path):
    options = {"cases": 5, "modality": "MR", "seed": 20, "shape": (12, 32, 32), "lesions": 1}
    folder = write_phantom_dataset(tmp_path / "one", **options)
    dataset = open_dataset(folder)
    assert dataset.modality == "MR"
    assert dataset.labels == PHANTOM_LABELS | {"lesion": LESION_ID}
    assert [len(dataset.split(name)) for name in ("train", "val", "test")] == [3, 1, 1]
    scan, labels = dataset.read(dataset.cases[0])
    assert scan.axis_codes == "LPS"
    phantom = make_phantom(
        20, modality="MR", shape=(12, 32, 32), lesions=1, missing=("gallbladder",), missing_chance=0.25
    )
    order = orientation_of(scan.affine)
    np.testing.assert_allclose(to_canonical(scan.voxels, order), np.round(phantom.voxels))
    assert (to_canonical(labels, order)[phantom.lesions == 0] == phantom.labels[phantom.lesions == 0]).all()
    again = write_phantom_dataset(tmp_path / "two", **options)
    for path in sorted(folder.rglob("*.nii.gz")):
        twin = again / path.relative_to(folder)
        assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(twin.read_bytes()).digest()


def test_a_phantom_dataset_is_whole_or_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("delineate.data.phantom._save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_phantom_dataset(tmp_path / "set", cases=3, shape=(4, 16, 16))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DatasetError, match="exists; name a folder that does not"):
        write_phantom_dataset(tmp_path)
    with pytest.raises(DatasetError, match="at least 3 cases"):
        write_phantom_dataset(tmp_path / "set", cases=2)
