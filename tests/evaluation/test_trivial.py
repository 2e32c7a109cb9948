from dataclasses import replace

import pytest
import torch

from delineate.evaluation.trivial import TRIVIAL, Atlas, OneMask, Otsu, brighter, heights_in
from delineate.prompts.vocabulary import Concept
from delineate.scans.grid import View
from delineate.systems.system import Asked


def asked(name):
    return Asked(Concept(name), name)


@pytest.mark.parametrize("name", TRIVIAL)
def test_each_draws_one_mask_a_slice_of_every_target(phantom_bank, name):
    baseline = TRIVIAL[name](phantom_bank)
    seen = baseline.see(View(torch.rand(7, 3, 64, 64) * 2 - 1))
    for concept in phantom_bank.vocabulary.concepts:
        drawn = baseline.propose(seen, asked(concept.name), 4, 0).probabilities
        assert drawn.shape == (1, 7, 64, 64)
        assert set(drawn.unique().tolist()) <= {0.0, 1.0}


def test_one_mask_is_the_same_in_every_slice_and_the_atlas_is_not(phantom_bank):
    stack = torch.zeros(20, 3, 64, 64)
    name = phantom_bank.vocabulary.names[0]
    one, atlas = OneMask(phantom_bank).masks_of(stack, name), Atlas(phantom_bank).masks_of(stack, name)
    assert (one == one[0]).all()
    assert (atlas != atlas[0]).any()


def test_the_atlas_draws_what_its_training_scans_agree_on(phantom_bank):
    """Of one scan alone, it is that scan at the height asked."""
    only = phantom_bank.subset((phantom_bank.case == 0).nonzero()[:, 0])
    shown = only.present.any(dim=0).nonzero()[:, 0].tolist()
    stack = torch.zeros(len(only), 3, 64, 64)
    name = only.vocabulary.names[shown[0]]
    truth = only.labels == 1 + shown[0]
    drawn = Atlas(only).masks_of(stack, name).bool()
    assert 2 * (drawn & truth).sum() / (drawn.sum() + truth.sum()) > 0.7


def test_heights_are_equal_parts_of_each_scan():
    assert heights_in(torch.tensor([0, 0, 0, 0, 1, 1]), 2).tolist() == [0, 0, 1, 1, 0, 1]


@pytest.mark.parametrize("bright", [True, False])
def test_otsu_takes_the_side_that_training_slices_show(phantom_bank, bright):
    picture = torch.full((16, 3, 64, 64), 50 if bright else 220, dtype=torch.uint8)
    picture[:, :, 8:20, 8:20] = 200 if bright else 60
    labels = torch.zeros(16, 64, 64, dtype=torch.uint8)
    labels[:, 8:20, 8:20] = 1
    present = torch.zeros(16, len(phantom_bank.vocabulary.concepts), dtype=torch.bool)
    present[:, 0] = True
    made = replace(phantom_bank.subset(torch.arange(16)), images=picture, labels=labels, present=present)
    drawn = Otsu(made).masks_of(picture.float() / 127.5 - 1, phantom_bank.vocabulary.names[0])
    assert torch.equal(drawn.bool(), labels == 1)


def test_otsu_splits_two_greys_between_them():
    grey = torch.cat([torch.full((1, 3, 4, 4), -0.5), torch.full((1, 3, 4, 4), 0.5)], dim=-1)
    assert brighter(grey).float().mean() == 0.5
    assert not brighter(torch.zeros(1, 3, 4, 4)).any()
