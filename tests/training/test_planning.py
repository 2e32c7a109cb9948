import json

import nibabel
import numpy as np
import pytest

from delineate.data.dataset import open_dataset
from delineate.storage.files import write_json
from delineate.training.planning import make_plan


def volumes(folder, shapes, spacing=(2.0, 2.0, 5.0), lowest=0):
    """A CT dataset of noise with a block as the target, axes LPS."""
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1])
    for number, shape in enumerate(shapes):
        labels = np.zeros(shape, np.uint8)
        labels[2:5, 2:5] = 1
        image = rng.integers(lowest, 200, shape).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(image, affine), folder / "imagesTr" / f"c{number}_0000.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, affine), folder / "labelsTr" / f"c{number}.nii.gz")
    write_json(
        folder / "dataset.json",
        {"labels": {"background": 0, "liver": 1}, "channel_names": {"0": "CT"}, "file_ending": ".nii.gz"},
    )
    names = [f"c{n}" for n in range(len(shapes))]
    write_json(folder / "splits.json", {"train": names[:-1], "val": [], "test": names[-1:]})
    return open_dataset(folder)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((40, 50, 4), 64), ((70, 90, 4), 96), ((96, 96, 4), 96), ((97, 96, 4), 128), ((300, 200, 4), 128)],
)
def test_the_grid_holds_the_median_slice_and_no_more(tmp_path, shape, size):
    assert make_plan([volumes(tmp_path / "d", [shape] * 3)], 128).size == size


def test_the_median_ignores_one_odd_case_and_the_test_subject(tmp_path):
    shapes = [(60, 60, 4), (60, 60, 4), (200, 200, 4), (60, 60, 4), (250, 250, 4)]
    plan = make_plan([volumes(tmp_path / "d", shapes)], 128)
    assert plan.size == 64
    assert plan.datasets["d"].shape == (60, 60)


def test_pixel_size_and_intensities_are_stated(tmp_path):
    windowed = make_plan([volumes(tmp_path / "grey", [(100, 64, 4)] * 2)], 64).datasets["grey"]
    assert windowed.pixel_mm == pytest.approx(200 / 64, abs=1e-3)
    assert windowed.intensities == "percentiles"
    hounsfield = make_plan([volumes(tmp_path / "hu", [(64, 64, 4)] * 2, lowest=-1000)], 64).datasets["hu"]
    assert hounsfield.intensities == "HU window"


def test_several_datasets_share_the_grid_of_the_largest(tmp_path):
    plan = make_plan([volumes(tmp_path / "a", [(40, 40, 4)] * 2), volumes(tmp_path / "b", [(90, 80, 4)] * 2)], 256)
    assert plan.size == 96
    assert set(plan.datasets) == {"a", "b"}
    json.dumps(plan.to_json())
