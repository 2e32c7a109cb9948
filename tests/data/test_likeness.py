import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from delineate.data import likeness
from delineate.data.likeness import groups_alike, look_of, pairs_alike, whole_groups


def scene(seed, shape=(120, 150)):
    """A smooth grey picture, (H, W) float in 20..235, of coarse shapes and finer texture."""
    rng = np.random.default_rng(seed)
    coarse, fine = (gaussian_filter(rng.normal(size=shape), sigma) for sigma in (10, 2))
    field = coarse / coarse.std() + 0.3 * fine / fine.std()
    return 20 + 215 * (field - field.min()) / np.ptp(field)


def saved(path, pixels):
    Image.fromarray(np.rint(np.clip(pixels, 0, 255)).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def strangers(tmp_path):
    """Twelve pictures that have nothing in common."""
    return [saved(tmp_path / f"{seed:02d}.png", scene(seed)) for seed in range(12)]


def deep(path, pixels):
    tifffile.imwrite(path, np.rint(pixels * 200).astype(np.uint16))
    return path


def as_jpeg(path, pixels):
    Image.fromarray(pixels.astype(np.uint8)).save(path.with_suffix(".jpg"), quality=60)
    return path.with_suffix(".jpg")


TINT = np.array([0.9, 1.0, 0.85])
SAME = {  # ways to save the same picture again
    "JPEG": as_jpeg,
    "brighter": lambda path, pixels: saved(path, pixels + 12),
    "less contrast": lambda path, pixels: saved(path, 0.8 * pixels + 20),
    "cropped": lambda path, pixels: saved(path, pixels[3:, 2:-2]),
    "half the size": lambda path, pixels: saved(path, pixels[::2, ::2]),
    "noisy": lambda path, pixels: saved(path, pixels + np.random.default_rng(9).normal(0, 5, pixels.shape)),
    "in colour": lambda path, pixels: saved(path, pixels[..., None] * TINT),
    "16 bits": lambda path, pixels: deep(path.with_suffix(".tif"), pixels),
}


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("among", [0, 12])
def test_the_same_picture_saved_otherwise_is_found_whoever_else_is_there(name, among, strangers, tmp_path):
    one = saved(tmp_path / "one.png", scene(77))
    again = SAME[name](tmp_path / "again.png", scene(77))
    paths = [*strangers[:among], one, again]
    assert pairs_alike(paths) == [(among, among + 1)]


def test_strangers_are_not_alike(tmp_path):
    assert pairs_alike([saved(tmp_path / f"{seed}.png", scene(seed)) for seed in range(60)]) == []


def test_what_all_pictures_of_a_set_share_makes_nobody_a_twin(tmp_path):
    """A bright frame and a chest, say: 85 % of every picture. Two of one subject are found among them all the same."""
    common = 6 * scene(1000)
    seeds = [*range(20), 7]
    paths = [saved(tmp_path / f"{n}.png", (common + scene(seed)) / 7 + 2 * (n == 20)) for n, seed in enumerate(seeds)]
    looks = [look_of(path) for path in paths]
    assert min(float(one.thumbnail @ looks[0].thumbnail) for one in looks) > likeness.LEAST_CORRELATION
    assert pairs_alike(paths) == [(7, 20)]


def test_blank_pictures_are_alike_only_if_their_files_are_equal(tmp_path):
    """Even and nearly even ones have nothing to be known by."""
    grey = np.full((64, 80), 90.0)
    spot = grey.copy()
    spot[30, 40] = 200
    names = {"a": grey, "b": grey + 1, "c": grey[:-4], "d": grey, "e": spot, "f": spot[:, :-1]}
    paths = [saved(tmp_path / f"{name}.png", pixels) for name, pixels in names.items()]
    assert all(look_of(path) is None for path in paths)
    assert pairs_alike(paths) == [(0, 3)]


def test_pictures_too_small_volumes_and_what_is_no_picture_are_compared_by_their_bytes(strangers, tmp_path):
    small = [saved(tmp_path / f"small{n}.png", scene(5, (31, 90)) + n) for n in range(2)]
    broken = [tmp_path / "x.png", tmp_path / "y.png", tmp_path / "z.tif"]
    for path, content in zip(broken, (b"no picture", b"no picture", b"II*"), strict=True):
        path.write_bytes(content)
    volumes = [tmp_path / f"v{n}.nii" for n in range(3)]
    for number, path in enumerate(volumes):
        voxels = np.stack([scene(6)] * 4, axis=-1).astype(np.float32) + number // 2
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    paths = [*small, *broken, *volumes, strangers[0]]
    assert [look_of(path) is None for path in paths] == [True] * 8 + [False]
    assert pairs_alike(paths) == [(2, 3), (5, 6)]


def test_a_mirrored_picture_is_not_claimed(tmp_path):
    """It may be found or not; left and right breast are no twins, so nothing looks for it."""
    paths = [saved(tmp_path / "a.png", scene(3)), saved(tmp_path / "b.png", scene(3)[:, ::-1])]
    assert pairs_alike(paths) == []


def test_the_camera_s_rotation_is_applied_first(tmp_path):
    picture = Image.fromarray(scene(4).astype(np.uint8))
    picture.save(tmp_path / "a.jpg", quality=95)
    exif = Image.Exif()
    exif[274] = 6  # turn to the right to see it upright
    picture.rotate(90, expand=True).save(tmp_path / "b.jpg", quality=95, exif=exif)
    assert pairs_alike([tmp_path / "a.jpg", tmp_path / "b.jpg"]) == [(0, 1)]


def test_pixels_without_a_number_do_not_hide_a_twin(tmp_path):
    pixels = scene(5).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    pixels[:2, :2] = np.nan, np.inf
    tifffile.imwrite(tmp_path / "b.tif", pixels)
    tifffile.imwrite(tmp_path / "c.tif", np.full((40, 40), np.nan, np.float32))
    assert pairs_alike([tmp_path / f"{name}.tif" for name in "abc"]) == [(0, 1)]


def test_blocks_do_not_show(strangers, tmp_path, monkeypatch):
    again = [as_jpeg(tmp_path / f"again{n}.png", scene(n)) for n in range(12)]
    whole = pairs_alike([*strangers, *again])
    assert whole == [(n, n + 12) for n in range(12)]
    for block in (1, 5, 23):
        monkeypatch.setattr(likeness, "_BLOCK", block)
        assert pairs_alike([*strangers, *again]) == whole


def test_the_closed_form_is_the_correlation_without_the_mean_of_the_others():
    rng = np.random.default_rng(0)
    looks = rng.normal(size=(7, 1024)) + rng.normal(size=1024)
    looks /= np.linalg.norm(looks, axis=1, keepdims=True)
    together, (a, b) = looks.sum(axis=0), looks[:2]
    mean = (together - a - b) / 6  # of five others and an even picture
    wanted = (a - mean) @ (b - mean) / np.linalg.norm(a - mean) / np.linalg.norm(b - mean)
    dots = (np.array([v]) for v in (a @ b, a @ together, b @ together))
    (found,) = likeness._own_correlation(*dots, together @ together, 7)
    assert found == pytest.approx(wanted)


def test_likeness_is_passed_on_and_binds_subjects(strangers, tmp_path):
    """a1 is like b1, b2 has the bytes of c1: a, b and c are one group, in whatever order they come."""
    images = [
        *(("a", strangers[0]), ("b", as_jpeg(tmp_path / "b1.png", scene(0))), ("b", strangers[1])),
        *(("c", saved(tmp_path / "c1.png", scene(1))), ("d", strangers[2]), ("e", strangers[3]), ("e", strangers[4])),
    ]
    assert groups_alike(images) == groups_alike(images[::-1]) == [("a", "b", "c"), ("d",), ("e",)]
    assert groups_alike([]) == []


def test_a_file_that_changes_is_looked_at_again_and_another_is_not(strangers, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(likeness, "read_flat", lambda path, *a, f=likeness.read_flat, **k: read.append(path) or f(path, *a, **k))  # fmt: skip
    path = saved(tmp_path / "one.png", scene(50))
    assert look_of(path) is look_of(path)
    before = look_of(path)
    saved(path, scene(51))
    os.utime(path, ns=(1, 1))
    assert not np.array_equal(look_of(path).thumbnail, before.thumbnail)
    assert read == [path, path]


def test_whole_groups_fill_a_part_and_one_at_least_is_taken():
    groups = [("a", "b", "c"), ("d",), ("e", "f"), ("g",)]
    assert whole_groups(groups, 2) == [("d",), ("g",)]
    assert whole_groups(groups, 4) == [("a", "b", "c"), ("d",)]
    assert whole_groups(groups[:1], 1) == groups[:1]
    assert whole_groups(groups, 0) == whole_groups([], 3) == []


FOUND = {  # what a look at them shows to be the same, and one pair of strangers (the last)
    "busi": [
        *("malignant_27 malignant_28", "malignant_39 malignant_42", "malignant_4 malignant_5", "normal_13 normal_5"),
        *("malignant_6 malignant_7 malignant_8 malignant_9", "normal_38 normal_43 normal_50", "normal_39 normal_48"),
        *("normal_40 normal_46", "normal_41 normal_44 normal_47", "normal_42 normal_45 normal_49"),
    ],
    "isic2018": [],
    "dsb2018_he": [],
    "dsb2018_fl": [],
    "shenzhen_cxr": [],
    "hc18_us": ["720_2HC 720_HC"],
    "kvasir_seg": ["cju1hhj6mxfp90835n3wofrap cju3x9lttikfb0818a0g104zn"],
    "chase_db1": ["Image_09L Image_11L"],
}


@pytest.mark.parametrize("name", FOUND)
def test_twins_of_real_sets_are_found_and_strangers_are_not(name, shared_data):
    if not (shared_data / name).is_dir():
        pytest.skip(f"no real data at {shared_data / name}")
    images = [(path.stem, Path(path)) for path in (shared_data / name / "images").iterdir()]
    assert [group for group in groups_alike(images) if len(group) > 1] == sorted(tuple(t.split()) for t in FOUND[name])
