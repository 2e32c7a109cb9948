import pytest
import torch

from delineate.metrics.overlap import dice
from delineate.training.judging import HeldOut, mean_score


def test_the_truth_scores_one_and_silence_nothing(two_organ_bank):
    held_out = HeldOut.of(two_organ_bank)
    labels = iter(held_out.bank.labels.split(16))
    assert held_out.dice(lambda image, possible: next(labels).long()) == pytest.approx({"liver": 1.0, "spleen": 1.0})
    assert held_out.dice(lambda image, possible: torch.zeros(len(image), *image.shape[2:], dtype=torch.long)) == {
        "liver": 0,
        "spleen": 0,
    }


def test_dice_is_of_whole_scans_and_their_mean(two_organ_bank):
    held_out = HeldOut.of(two_organ_bank, most=10_000)
    bank = held_out.bank
    found = torch.randint(3, bank.labels.shape, generator=torch.Generator().manual_seed(0))
    chunks = iter(found.split(16))
    scores = held_out.dice(lambda image, possible: next(chunks))
    for value, name in enumerate(bank.vocabulary.names, start=1):
        of_cases = [
            dice((found[bank.case == c] == value).numpy(), (bank.labels[bank.case == c] == value).numpy())
            for c in bank.case.unique()
        ]
        assert scores[name] == pytest.approx(sum(of_cases) / len(of_cases))
    assert mean_score(scores) == pytest.approx(sum(scores.values()) / 2)


def test_few_slices_of_every_set_are_taken_evenly(two_organ_bank):
    held_out = HeldOut.of(two_organ_bank, most=7)
    assert len(held_out.bank) == 7
    assert held_out.bank.case.min() == two_organ_bank.case.min()
    assert held_out.bank.case.max() == two_organ_bank.case.max()
