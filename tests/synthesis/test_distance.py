import json

import nibabel
import numpy as np
import pytest
from PIL import Image
from scipy import linalg, ndimage

from delineate.data.phantom import make_phantom_image, write_phantom_dataset
from delineate.errors import DatasetError, ScanError
from delineate.synthesis.distance import (
    CLIP,
    FEWEST,
    FeatureDifference,
    feature_table,
    frechet_distance,
    image_set,
    squared_frechet,
)
from delineate.synthesis.distance_chart import distance_chart
from delineate.synthesis.radiomics import feature_names


def tissue(count, seed=0, shape=(40, 48), grain=1.5):
    """Smooth random images of varying brightness and contrast, one distribution whatever the seed."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        noise = ndimage.gaussian_filter(rng.normal(size=shape), grain)
        images.append((rng.normal(-0.2, 0.1) + rng.uniform(0.2, 0.4) * noise / noise.std()).clip(-1, 1))
    return images


@pytest.fixture(scope="module")
def reference():
    return feature_table(tissue(60))


# The Fréchet distance


def test_gaussians_with_known_shift_and_scale():
    """Diagonal covariances commute: d² is the sum of the squared differences of means and of deviations."""
    x = np.random.default_rng(0).normal(size=(400, 5))
    scale, shift = np.array([1, 2, 0.5, 1, 3]), np.array([0, 1, -1, 2, 0])
    x -= x.mean(axis=0)
    x = np.linalg.qr(x)[0] * np.sqrt(399)  # covariance 1, exactly
    assert squared_frechet(x, x * scale + shift) == pytest.approx((shift**2).sum() + ((scale - 1) ** 2).sum())


def test_it_equals_the_formula_with_a_matrix_root():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(300, 6)) @ rng.normal(size=(6, 6)), rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) + 1
    s, t = np.cov(x.T), np.cov(y.T)
    root = linalg.sqrtm(s @ t).real
    expected = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + np.trace(s + t - 2 * root)
    assert squared_frechet(x, y) == pytest.approx(expected)
    assert squared_frechet(y, x) == pytest.approx(expected)


def test_fewer_images_than_features_is_no_harder():
    """Features that repeat others add copies of the same distance: singular covariances, a known answer."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(20, 3)), 2 * rng.normal(size=(25, 3)) + 1
    once = squared_frechet(x, y)
    assert squared_frechet(np.tile(x, 100), np.tile(y, 100)) == pytest.approx(100 * once)


def test_a_set_is_at_no_distance_from_itself(reference):
    result = frechet_distance(reference, reference)
    assert result.distance == 0
    assert result.log_distance is None
    assert {group.distance for group in result.groups.values()} == {0}
    assert result.floor > 1
    assert squared_frechet(reference[:, :5], reference[::-1, :5]) == 0  # order does not matter


def test_z_scores_are_of_the_reference():
    """A scale common to both sets changes nothing; exchanging the sets does."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(60, 4)), 3 * rng.normal(size=(60, 4)) + 1
    names = [f"original_glcm_{k}" for k in "abcd"]
    there = frechet_distance(x, y, names=names).distance
    assert frechet_distance(x * 1e4 - 7, y * 1e4 - 7, names=names).distance == pytest.approx(there)
    assert frechet_distance(y, x, names=names).distance < 0.6 * there


def test_one_feature_cannot_outweigh_the_rest():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(60, 4)), rng.normal(size=(60, 4))
    y[:, 2] += 1e6
    names = [f"original_glcm_{k}" for k in "abcd"]
    result = frechet_distance(x, y, names=names)
    assert result.distance == pytest.approx(CLIP, rel=0.05)
    assert result.clipped == pytest.approx(0.25)
    assert result.features[0].name == "original_glcm_c"
    assert result.features[0].shift > 1e5  # told as it is


def test_constant_features_are_dropped_and_named():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(60, 3)), rng.normal(size=(60, 3))
    x[:, 1] = 0.1
    result = frechet_distance(x, y, names=["a_b_c", "a_b_d", "a_b_e"])
    assert result.dropped == ("a_b_d",)
    assert {feature.name for feature in result.features} == {"a_b_c", "a_b_e"}


def test_parts_add_up_where_features_are_independent():
    rng = np.random.default_rng(6)
    x = np.linalg.qr(rng.normal(size=(400, 4)) - 0)[0]
    x = np.linalg.qr(x - x.mean(axis=0))[0] * np.sqrt(399)
    y = x * [1, 2, 1, 1] + [0, 0, 3, 0]
    names = ["original_glcm_a", "original_glrlm_b", "log_glcm_c", "log_glrlm_d"]
    result = frechet_distance(x, y, names=names)
    assert result.distance**2 == pytest.approx(sum(feature.contribution for feature in result.features), rel=1e-3)
    assert [feature.name for feature in result.features[:2]] == ["log_glcm_c", "original_glrlm_b"]
    assert result.features[0].shift == pytest.approx(3)
    assert result.features[1].variance_ratio == pytest.approx(4)
    groups = {name: group.distance for name, group in result.groups.items()}
    assert groups["log"] ** 2 + groups["original"] ** 2 == pytest.approx(result.distance**2, rel=1e-3)
    assert groups["glcm"] == pytest.approx(3, rel=1e-3)
    assert groups["glrlm"] == pytest.approx(1, rel=0.05)


# What it sees in images


def test_it_grows_with_blur(reference):
    images = tissue(30)
    found = [
        frechet_distance(reference, feature_table([ndimage.gaussian_filter(i, s) for i in images])).distance
        for s in (0.3, 0.6, 1.2)
    ]
    assert 0 < found[0] < found[1] < found[2]


def test_it_grows_with_noise(reference):
    noise = np.random.default_rng(0).normal(size=(30, 40, 48))
    found = [
        frechet_distance(
            reference, feature_table([(i + s * n).clip(-1, 1) for i, n in zip(tissue(30), noise, strict=True)])
        ).distance
        for s in (0.01, 0.04, 0.16)
    ]
    assert 0 < found[0] < found[1] < found[2]


def test_a_shift_of_intensity_is_seen_and_told(reference):
    result = frechet_distance(reference, feature_table([(i + 0.3).clip(-1, 1) for i in tissue(60, seed=1)]))
    assert result.distance > 1.2 * result.floor
    found = {feature.name: feature for feature in result.features}
    assert found["original_firstorder_Mean"].shift > 2
    assert "higher" in found["original_firstorder_Mean"].in_words()
    assert abs(found["wavelet-HH_firstorder_Mean"].shift) < 0.5  # details do not know of brightness
    assert result.groups["original"].distance > 4 * result.groups["wavelet-HH"].distance


def test_fifty_images_tell_one_distribution_from_a_blurred_one():
    """Far fewer images than features: both halves of one distribution stay at the floor, a blurred one does not."""
    half, other = feature_table(tissue(50, seed=2)), feature_table(tissue(50, seed=3))
    blurred = feature_table([ndimage.gaussian_filter(i, 1) for i in tissue(50, seed=3)])
    same, different = frechet_distance(half, other), frechet_distance(half, blurred)
    assert same.distance < same.floor  # halves of 25 are noisier than sets of 50
    assert different.distance > 3 * same.distance
    assert different.distance > 2 * different.floor
    assert same.floor == different.floor
    assert same.warnings == ()


def test_phantoms_of_ct_and_mr_are_further_apart_than_two_sets_of_ct(tmp_path):
    sets = []
    for number, (modality, seed) in enumerate((("CT", 0), ("CT", 50), ("MR", 0))):
        folder = write_phantom_dataset(
            tmp_path / str(number), cases=6, modality=modality, seed=seed, shape=(10, 64, 64), missing=()
        )
        sets.append(image_set(folder, size=64, limit=30))
    tables = [feature_table(found.images) for found in sets]
    same, different = (frechet_distance(tables[0], table, scans=sets[0].scans) for table in tables[1:])
    assert different.distance > 2 * same.distance
    assert different.distance > different.floor


# The floor


def test_the_floor_repeats_and_depends_on_the_seed(reference):
    floors = [frechet_distance(reference, reference, seed=seed).floor for seed in (0, 0, 1)]
    assert floors[0] == floors[1] != floors[2]


def test_the_floor_rises_where_the_other_set_is_small(reference):
    assert frechet_distance(reference, reference[:10]).floor > 1.3 * frechet_distance(reference, reference).floor


def test_slices_of_one_scan_stay_in_one_half():
    """Ten scans of ten slices that are near-duplicates: halves by slice see the same scans twice."""
    rng = np.random.default_rng(7)
    x = (rng.normal(size=(10, 1, 30)) + 0.05 * rng.normal(size=(10, 10, 30))).reshape(100, 30)
    names = [f"original_glcm_{k}" for k in range(30)]
    scans = [f"scan{k // 10}" for k in range(100)]
    by_slice = frechet_distance(x, x, names=names).floor
    by_scan = frechet_distance(x, x, names=names, scans=scans).floor
    assert by_scan > 3 * by_slice


def test_too_few_scans_for_halves_are_told():
    x = np.random.default_rng(8).normal(size=(60, 4))
    names = [f"a_b_{k}" for k in range(4)]
    result = frechet_distance(x, x, names=names, scans=["one"] * 30 + ["two"] * 30)
    assert "fewer than 4 scans; the floor halves their slices and is too low" in result.warnings[0]


# Errors and warnings


def test_small_sets_are_warned_about_and_tiny_ones_refused(reference):
    result = frechet_distance(reference, reference[:20])
    assert result.warnings == ("the other set has 20 images; below 50 sampling noise is large",)
    with pytest.raises(DatasetError, match=r"the other set must have 8 images at least .* found 7; add scans"):
        frechet_distance(reference, reference[: FEWEST - 1])
    with pytest.raises(DatasetError, match="the reference set must have 8 images"):
        frechet_distance(reference[:5], reference)


def test_tables_that_do_not_belong_together_are_refused(reference):
    with pytest.raises(ValueError, match=r"the other table must be \(images, 448 features\), not \(60, 3\)"):
        frechet_distance(reference, reference[:, :3])
    with pytest.raises(ValueError, match="must be finite"):
        frechet_distance(reference, np.where(reference > 0, reference, np.nan))
    with pytest.raises(ValueError, match="one scan a row of the reference, 60, not 2"):
        frechet_distance(reference, reference, scans=["a", "b"])
    with pytest.raises(DatasetError, match="all its images are alike"):
        frechet_distance(reference[:1].repeat(60, axis=0), reference)


# What is written


def test_the_json_and_the_picture_are_whole(reference, tmp_path):
    result = frechet_distance(reference, feature_table(tissue(60, seed=1, grain=2)))
    told = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert told["log_distance"] == pytest.approx(np.log(told["distance"]))
    assert (told["n_reference"], told["n_other"]) == (60, 60)
    assert len(told["features"]) + len(told["dropped"]) == len(feature_names())
    assert set(told["features"][0]) == {"name", "shift", "variance_ratio", "contribution"}
    assert set(told["groups"]) >= {"original", "log-sigma-1-px", "wavelet-HH", "firstorder", "glcm", "ngtdm"}
    path = distance_chart(result, tmp_path / "new" / "distance.png")
    with Image.open(path) as picture:
        assert picture.size[0] > 800
    assert [p.name for p in path.parent.iterdir()] == ["distance.png"]


def test_a_difference_in_words():
    assert FeatureDifference("a_b_c", -2.13, 0.25, 4.0).in_words() == "2.1 sd lower, 0.5 times the spread"


# Sets of images


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Nine flat images, wide, tall and black, in the layout of a dataset with provenance.json."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "images").mkdir()
    for number in range(9):
        voxels = make_phantom_image(number, shape=(40, 48) if number % 2 else (60, 48)).voxels[0]
        grey = np.interp(voxels, (-150, 250), (0, 255)).astype(np.uint8)
        Image.fromarray(grey * (number != 8)).save(folder / "images" / f"case{number}.png")
    (folder / "provenance.json").write_text(json.dumps({"synthetic": {"case1": {}, "case3": {}, "case8": {}}}))
    return folder


def test_padding_is_cut_off_and_black_images_do_not_count(pictures):
    found = image_set(pictures, size=64)
    assert found.scans == tuple(f"case{k}" for k in range(8))
    assert {image.shape for image in found.images} == {(53, 64), (64, 51)}
    assert all(image.dtype == np.float32 and np.abs(image).max() <= 1 for image in found.images)


@pytest.mark.parametrize(("which", "numbers"), [("real", [0, 2, 4, 5, 6, 7]), ("synthetic", [1, 3])])
def test_real_or_synthetic_cases_alone(pictures, which, numbers):
    assert image_set(pictures, size=64, which=which).scans == tuple(f"case{k}" for k in numbers)


def test_volumes_give_axial_slices_evenly(phantom_dataset):
    everything = image_set(phantom_dataset, size=64, limit=1000)
    assert len(set(everything.scans)) == 6
    assert 6 < len(everything) <= 60
    few = image_set(phantom_dataset, size=64, limit=20)
    assert len(few) == 20
    assert sorted(few.scans.count(name) for name in set(few.scans)) == [3, 3, 3, 3, 4, 4]
    again = image_set(phantom_dataset, size=64, limit=20)
    assert all(np.array_equal(a, b) for a, b in zip(few.images, again.images, strict=True))
    assert len(image_set(phantom_dataset, size=64, limit=3)) == 3


def test_a_folder_of_scans_and_one_scan_will_do(phantom_dataset):
    folder = phantom_dataset / "imagesTr"
    by_dataset, by_folder = (image_set(path, size=64, limit=12) for path in (phantom_dataset, folder))
    assert by_dataset.scans == by_folder.scans
    one = image_set(folder / "phantom000_0000.nii.gz", size=64, limit=5)
    assert one.scans == ("phantom000",) * 5


def test_one_channel_of_several_is_read(tmp_path):
    for name in ("a_0000", "a_0001", "b_0001"):
        voxels = np.random.default_rng(0).normal(size=(16, 16, 3)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / f"{name}.nii.gz")
    assert sorted(set(image_set(tmp_path, size=32).scans)) == ["a", "b_0001"]


def test_colours_are_averaged(tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "colour.png")
    (image,) = image_set(tmp_path, size=32).images
    assert np.corrcoef(image.ravel(), pixels.mean(axis=2).ravel())[0, 1] > 0.999


def test_what_cannot_be_a_set_is_refused(tmp_path, pictures):
    with pytest.raises(ScanError, match="no such file or folder"):
        image_set(tmp_path / "nowhere")
    with pytest.raises(ScanError, match="no scan in this folder"):
        image_set(tmp_path)
    Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "black.png")
    with pytest.raises(DatasetError, match="every slice is constant or nearly empty"):
        image_set(tmp_path)
    with pytest.raises(DatasetError, match=r"there must be a provenance\.json, found none"):
        image_set(tmp_path, which="synthetic")
    (tmp_path / "provenance.json").write_text('{"synthetic": ["black"]}')
    with pytest.raises(DatasetError, match="'synthetic' must be an object of case names, found list"):
        image_set(tmp_path, which="real")
    (tmp_path / "provenance.json").write_text('{"synthetic": {}}')
    with pytest.raises(DatasetError, match="none of its 1 cases is synthetic"):
        image_set(tmp_path, which="synthetic")
    with pytest.raises(ValueError, match="which must be one of"):
        image_set(pictures, which="some")
    with pytest.raises(ValueError, match="limit must be 1 or more"):
        image_set(pictures, limit=0)


def test_slivers_are_refused(tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 10), dtype=np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="slices must be 8 pixels wide at least on a grid of 64, got 64 x 3"):
        image_set(tmp_path, size=64)
