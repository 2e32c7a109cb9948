"""Several images of one patient as one scan."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from delineate.errors import ScanError
from delineate.scans.channels import joined, modality_of
from delineate.scans.finding import by_channel, digest_of, find_scans
from delineate.scans.grid import stack_of, view_of
from delineate.scans.scan import Scan


def grey(seed=0, shape=(20, 24, 6), modality="MR"):
    voxels = np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 100
    return Scan(voxels, np.diag([1.0, 1.0, 3.0, 1.0]), modality)


def test_each_channel_comes_to_the_grid_as_it_would_alone():
    """With its own range of greys, and without neighbours."""
    scans = [grey(seed) for seed in range(4)]
    stack = stack_of(joined(scans, ("T1", "T2", "FLAIR", "T1ce")), 32)
    assert stack.shape == (6, 4, 32, 32)
    for number, scan in enumerate(scans):
        assert torch.equal(stack[:, number], stack_of(scan, 32)[:, 1])


def test_ct_beside_pet_keeps_its_window():
    ct, pet = grey(0, modality="CT"), replace(grey(1), voxels=np.abs(grey(1).voxels), modality="PET")
    ct = replace(ct, voxels=ct.voxels * 10)
    scan = joined([ct, pet], ("CT", "PET"))
    assert scan.modality is None
    assert torch.equal(view_of(scan, 32).stack[:, 0], stack_of(ct, 32)[:, 1])


def test_some_slices_are_those_of_all():
    scan = joined([grey(0), grey(1)], ("T1", "T2"))
    assert torch.equal(stack_of(scan, 32, [4, 1]), stack_of(scan, 32)[[4, 1]])


def test_what_people_look_at_is_the_first():
    scans = [grey(0), grey(1)]
    scan = joined(scans, ("T1", "T2"))
    assert np.array_equal(scan.shown.voxels, scans[0].voxels)
    assert (scan.shown.channels, scan.shown.is_colour, scan.is_colour) == ((), False, False)
    assert scans[0].shown is scans[0]
    assert scan.shape == scans[0].shape


def test_channels_that_do_not_fit_are_refused():
    with pytest.raises(ScanError, match="share one grid"):
        joined([grey(), grey(shape=(20, 24, 7))], ("T1", "T2"))
    moved = replace(grey(), affine=np.diag([1.0, 1.0, 3.5, 1.0]))
    with pytest.raises(ScanError, match=r"corners lie up to 2\.5 mm apart"):
        joined([grey(), moved], ("T1", "T2"))
    colour = replace(grey(), voxels=np.zeros((20, 24, 6, 3), np.uint8))
    with pytest.raises(ScanError, match="in colour"):
        joined([grey(), colour], ("T1", "T2"))
    with pytest.raises(ScanError, match=r"\(I, J, K, 2\), one a channel"):
        replace(grey(), channels=("T1", "T2"))


def test_a_name_tells_its_modality_or_none():
    assert [modality_of(name) for name in ("T1", "flair", "CT", "PET", "ADC", "gadget", "PET/CT")] == [
        "MR",
        "MR",
        "CT",
        "PET",
        "MR",
        None,
        None,
    ]


def write(folder, *names):
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        nibabel.save(nibabel.Nifti1Image(np.full((4, 4, 2), number, np.int16), np.eye(4)), folder / f"{name}.nii.gz")
    return folder


def test_the_files_of_a_scan_are_found_together(tmp_path):
    folder = write(tmp_path / "in", "b_0000", "b_0001", "a_0001", "a_0000", "whole", "a_0002")
    found = by_channel(find_scans(folder), ("T1", "T2"))
    assert [(one.name, one.path.name, [p.name for p in one.more]) for one in found] == [
        ("a", "a_0000.nii.gz", ["a_0001.nii.gz"]),
        ("b", "b_0000.nii.gz", ["b_0001.nii.gz"]),
        ("whole", "whole.nii.gz", []),
    ]
    assert len({found[0].digest, found[1].digest, digest_of(found[0].path)}) == 3


def test_of_one_file_the_others_are_looked_for_beside_it(tmp_path):
    folder = write(tmp_path / "in", "a_0000", "a_0001", "ab_0000", "ab_0001")
    for name in ("a_0000", "a_0001"):
        [found] = by_channel(find_scans(folder / f"{name}.nii.gz"), ("T1", "T2"))
        assert (found.name, found.path.name, found.more) == ("a", "a_0000.nii.gz", (folder / "a_0001.nii.gz",))


def test_a_channel_that_is_not_there_is_named(tmp_path):
    folder = write(tmp_path / "in", "a_0000", "a_0001", "b_0001")
    with pytest.raises(
        ScanError, match=r"in/b: the model reads 2 channels \(T1, T2\), and T1 is not there; add b_0000"
    ):
        by_channel(find_scans(folder), ("T1", "T2"))
