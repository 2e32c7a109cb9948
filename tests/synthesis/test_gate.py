import pytest
import torch

from delineate.data.slices import SliceBank
from delineate.synthesis.edges import hint
from delineate.synthesis.gate import Gate, edge_agreement, foreground_dice


@pytest.fixture(scope="module")
def volume(phantom_bank: SliceBank):
    """Slices (10, 1, 64, 64) of one case, their labels, and the hints they give."""
    pictures = phantom_bank.images[:10, 1:2].float() / 127.5 - 1
    labels = phantom_bank.labels[:10]
    return pictures, labels, hint(pictures, labels)


@pytest.fixture(scope="module")
def gate(phantom_bank):
    return Gate.of(phantom_bank.images[:, 1:2].float() / 127.5 - 1)


def reason(gate, drawn, asked, mask=0.9, real=0.9):
    return gate.judge(drawn, asked, mask, real).reason


def test_a_real_scan_passes_with_its_own_edges(volume, gate):
    pictures, _, asked = volume
    verdict = gate.judge(pictures, asked, 0.9, 0.9)
    assert verdict.reason == ""
    assert verdict.edges > 0.5
    assert verdict.brightness == pytest.approx(pictures.mean().item())
    assert 0 < verdict.contrast < 1
    assert verdict.mask == 0.9


def test_every_real_scan_of_the_dataset_is_within_its_range(phantom_bank, gate):
    for pictures in (phantom_bank.images[:, 1:2].float() / 127.5 - 1).split(10):
        assert reason(gate, pictures, hint(pictures, torch.zeros(10, 64, 64))) == ""


def test_edges_at_another_place_fail(volume, gate):
    pictures, _, asked = volume
    for shift in (16, 24, -12):
        assert reason(gate, pictures.roll(shift, dims=2), asked) == "edges"
        assert reason(gate, pictures, asked.roll(shift, dims=2)) == "edges"
    for dim in (2, 3):  # the farther away, the worse; a pixel does little
        apart = [edge_agreement(pictures, asked.roll(shift, dims=dim)) for shift in (0, 1, 2, 4, 8, 12)]
        assert apart == sorted(apart, reverse=True)
        assert apart[1] > 0.8 > 0.7 > apart[3]
    assert reason(gate, pictures.flip(0).roll(5, dims=0), asked.roll(16, dims=2)) == "edges"


def test_the_agreement_of_edges_is_a_correlation(volume):
    pictures, _, asked = volume
    own = edge_agreement(pictures, asked)
    assert edge_agreement(-pictures, asked) == pytest.approx(own, abs=1e-4)
    assert edge_agreement(0.5 * pictures, 0.3 * asked) == pytest.approx(own, abs=1e-3)
    assert edge_agreement(pictures, hint(pictures, torch.zeros(10, 64, 64))) == pytest.approx(1, abs=1e-5)
    assert edge_agreement(torch.zeros_like(pictures), asked) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("level", [-1.0, 0.0, 1.0])
def test_a_constant_scan_fails_by_its_intensity(volume, gate, level):
    pictures, _, asked = volume
    blank = torch.full_like(pictures, level)
    assert reason(gate, blank, asked) == "intensity"
    assert reason(Gate((-1, 1), (-1, 1)), blank, asked) == "edges"


def test_too_dark_too_bright_too_flat_and_too_harsh_fail(volume, gate):
    pictures, _, asked = volume
    middle = pictures.mean()
    harsh = torch.where(pictures > middle, 1.0, -1.0)
    flat = middle + 0.02 * (pictures - middle)
    bright = 1 - 0.3 * (1 - pictures)
    for drawn in (harsh, flat, bright):
        assert reason(gate, drawn, asked) == "intensity"
    assert reason(gate, 0.95 * pictures, asked) == ""


def test_a_scan_whose_organ_is_gone_fails_by_its_mask(volume, gate):
    pictures, labels, asked = volume
    erased = labels.clone()
    erased[labels == labels[labels > 0].mode().values] = 0  # what a segmenter would say: the largest organ is not there
    right, gone = foreground_dice(labels, labels), foreground_dice(erased, labels)
    assert right == 1
    assert gone < 0.6
    assert reason(gate, pictures, asked, mask=right, real=1) == ""
    assert reason(gate, pictures, asked, mask=gone, real=1) == "mask"
    assert reason(gate, pictures, asked, mask=gone, real=gone) == ""  # a segmenter that is no better on the real one


def test_limits_can_be_chosen(volume):
    pictures, _, asked = volume
    strict = Gate.of(pictures, least_edges=0.99, least_mask=1)
    assert (strict.least_edges, strict.least_mask) == (0.99, 1)
    assert reason(strict, pictures, asked) == "edges"
    assert reason(Gate.of(pictures, least_mask=1), pictures, asked, mask=0.89) == "mask"


def test_the_first_reason_is_the_one_that_is_told(volume, gate):
    pictures, _, asked = volume
    assert reason(gate, torch.ones_like(pictures), asked, mask=0.0) == "intensity"
    assert reason(gate, pictures, asked, mask=0.0) == "mask"


def test_the_range_is_a_half_wider_either_way():
    pictures = torch.stack([torch.full((1, 8, 8), level) for level in (-0.5, 0.0, 0.5)])
    pictures = pictures + 0.2 * torch.where(torch.arange(8) % 2 == 0, 1.0, -1.0)
    gate = Gate.of(pictures)
    assert gate.brightness == pytest.approx((-1.0, 1.0), abs=1e-5)
    spread = 0.2 * (64 / 63) ** 0.5
    assert gate.contrast == pytest.approx((spread - 0.05, spread + 0.05), abs=1e-4)  # scans alike: 0.05 is allowed
    assert Gate.of(pictures.expand(-1, 3, -1, -1)).brightness == pytest.approx(gate.brightness)


def test_dice_is_of_all_targets_at_once():
    labels = torch.tensor([[[1, 1, 2, 0]]])
    assert foreground_dice(labels, labels) == 1
    assert foreground_dice(torch.tensor([[[1, 2, 2, 0]]]), labels) == pytest.approx(2 * 2 / 6)
    assert foreground_dice(torch.tensor([[[2, 2, 1, 0]]]), labels) == 0  # another organ is no hit
    assert foreground_dice(torch.zeros(1, 1, 4), labels) == 0
    assert foreground_dice(labels, torch.zeros(1, 1, 4)) == 0
    assert foreground_dice(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)) == 1
