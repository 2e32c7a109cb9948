"""Scans without labels: read on the grid, drawn anew each time, and never those that are held out."""

import shutil

import numpy as np
import pytest
import torch

from delineate.data.dataset import open_dataset
from delineate.data.unlabelled import read_unlabelled
from delineate.errors import DatasetError, DelineateError
from delineate.jobs.evaluate import EvaluateRequest, evaluate_model
from delineate.jobs.train import TrainRequest, train_system
from delineate.scans.finding import find_scans
from delineate.scans.reading import read_scan
from delineate.scans.scan import Scan
from delineate.scans.writing import write_scan


@pytest.fixture
def others(phantom_dataset, tmp_path):
    """A folder with a scan that no split holds: a training scan, changed."""
    case = open_dataset(phantom_dataset).split("train")[0]
    scan = read_scan(case.image)
    (tmp_path / "others").mkdir()
    write_scan(tmp_path / "others" / "new.nii.gz", Scan(scan.voxels + np.float32(1), scan.affine, "CT"))
    return tmp_path / "others"


def test_slices_are_drawn_by_the_generator_and_augmented(others):
    bank = read_unlabelled(find_scans(others), 32, modality="CT")
    assert bank.images.dtype == torch.uint8
    first, same, other = (bank.draw(4, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == (4, 3, 32, 32)
    assert first.abs().max() <= 1
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert not bank.mirrored.any()


def test_held_out_scans_among_them_are_refused_before_training(phantom_dataset, others, tmp_path):
    held = open_dataset(phantom_dataset).split("test")[0]
    shutil.copy(held.image, others / "looks_new.nii.gz")
    request = TrainRequest("unet", [phantom_dataset], images=8, scheme="bcp", unlabelled=others)
    with pytest.raises(DatasetError, match=f"holds 1 scans that are held out for val or test, such as {held.name}"):
        train_system(request, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_is_not_scored_on_what_it_saw_without_labels(phantom_dataset, others, tmp_path):
    request = TrainRequest("mk_unet", [phantom_dataset], images=16, scheme="bcp", unlabelled=others, calibrate=False)
    train_system(request, tmp_path / "model")
    changed = tmp_path / "later"
    shutil.copytree(phantom_dataset, changed)
    held = open_dataset(changed).split("test")[0]
    shutil.copy(others / "new.nii.gz", held.image)
    with pytest.raises(DelineateError, match=r"the model: learnt from 1 of these scans"):
        evaluate_model(EvaluateRequest(changed, tmp_path / "model"), tmp_path / "report")
