"""Labelled sets of pictures in which mask and picture may not fit: used, refused, or told by a check."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from delineate.data.check import check_dataset
from delineate.data.dataset import open_dataset
from delineate.errors import DatasetError

MASK = np.zeros((40, 48), np.uint8)
MASK[5:12, 9:30] = 255


def picture_set(root, image=None, mask=None, **options):
    """One picture `a.png` and its mask, as arrays or pictures; `options` are of saving the picture."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    if image is None:
        image = np.random.default_rng(0).integers(0, 255, (40, 48, 3), dtype=np.uint8)
    Image.fromarray(image).save(root / "images" / "a.png", **options)
    Image.fromarray(MASK if mask is None else mask).save(root / "masks" / "a.png")
    return root


def told(root, file="", severity="warning"):
    report = check_dataset(root, targets=["polyp"])
    assert all(problem.severity == severity for problem in report.problems)
    return [problem for problem in report.problems if file in problem.file]


def exif(turn):
    made = Image.Exif()
    made[274] = turn
    return made


@pytest.mark.parametrize("turn", [2, 3, 4])
def test_a_turned_picture_of_a_labelled_set_is_told_and_the_advice_ends_it(tmp_path, turn):
    root = picture_set(tmp_path, exif=exif(turn))
    (problem,) = told(root, "images/a.png")
    assert f"EXIF orientation {turn} applied" in problem.what
    assert "save both without EXIF" in problem.fix
    with Image.open(root / "images" / "a.png") as image:  # as it says
        upright = np.asarray(ImageOps.exif_transpose(image))
    picture_set(root, upright)
    assert told(root) == []


@pytest.mark.parametrize("turn", [6, 8])
def test_shapes_that_differ_by_a_turn_name_it_and_the_advice_ends_it(tmp_path, turn):
    root = picture_set(tmp_path, exif=exif(turn))
    dataset = open_dataset(root, targets=["polyp"])
    with pytest.raises(
        DatasetError, match=f"EXIF orientation {turn} applied: turn both alike, or save both without EXIF"
    ):
        dataset.read(dataset.cases[0])
    report = check_dataset(root, targets=["polyp"])
    assert any("EXIF" in p.what and p.severity == "error" for p in report.problems)
    picture_set(root)  # as it says
    assert told(root) == []


def test_a_turned_mask_is_told_too(tmp_path):
    root = picture_set(tmp_path)
    Image.fromarray(MASK).save(root / "masks" / "a.png", exif=exif(3))
    assert len(told(root, "masks/a.png")) == 1


@pytest.mark.parametrize("colour", [0, 255])
def test_a_mask_in_an_alpha_channel_is_used(tmp_path, colour):
    root = picture_set(tmp_path, mask=np.dstack([np.full((40, 48, 3), colour, np.uint8), MASK]))
    assert told(root) == []
    dataset = open_dataset(root, targets=["polyp"])
    assert np.array_equal(dataset.read(dataset.cases[0])[1][0], MASK // 255)


@pytest.mark.parametrize(
    ("mask", "what"),
    [
        (np.full_like(MASK, 255), "100% of the image is labelled"),
        (
            np.where(np.arange(MASK.size).reshape(MASK.shape) > 9, 255, 0).astype(np.uint8),
            "99% of the image is labelled",
        ),
        (np.where(np.arange(MASK.size).reshape(MASK.shape) < 3, 255, 0).astype(np.uint8), "only 3 voxels are labelled"),
        (0 * MASK, "no voxel is labelled"),
    ],
)
def test_masks_of_nearly_everything_or_nothing_are_told(tmp_path, mask, what):
    assert any(problem.what == what for problem in told(picture_set(tmp_path, mask=mask), "masks/a.png"))


def test_kept_cases_are_used_or_told(shared_cases):
    assert check_dataset(shared_cases / "K05_mask_in_alpha" / "png_alphamask", targets=["polyp"]).ok
    report = check_dataset(shared_cases / "K06_exif_mask_raw" / "exif_photo_rawmask", targets=["polyp"])
    turned = {problem.file for problem in report.problems if "EXIF" in problem.what}
    assert turned == {f"images/im{number}.jpg" for number in range(4)}
