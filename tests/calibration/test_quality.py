"""What Dice is expected: by a regression on held-out subjects, with an interval that holds for new ones."""

from dataclasses import replace

import numpy as np
import pytest

from delineate.calibration.guarantees import Calibration
from delineate.calibration.presence import Presence
from delineate.calibration.quality import Expected, fit_quality, probable_above
from delineate.prompts.marks import Marks
from delineate.prompts.prompt import Prompt
from delineate.proposals.description import describe
from delineate.proposals.ordering import probable_dice
from delineate.proposals.proposals import Proposals
from delineate.proposals.reasons import why
from delineate.proposals.target import Outcome, TargetProposals
from delineate.scans.geometry import FLAT_AFFINE
from delineate.scans.scan import Scan
from delineate.scans.sparse import Sparse


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def drawn(rng, subjects, targets=3, worse=0.8, noise=0.4):
    """A model that is too sure by `worse` logits, each subject a little more or less so."""
    who = np.repeat([f"s{i}" for i in range(subjects)], targets)
    names = np.tile([f"t{k}" for k in range(targets)], subjects)
    probable = rng.uniform(1, 3, len(who))
    own = np.repeat(rng.normal(0, noise / 2, subjects), targets)
    dice = sigmoid(probable - worse + own + rng.normal(0, noise, len(who)))
    agreement = np.clip(sigmoid(probable) - 0.05 + rng.normal(0, 0.02, len(who)), 0, 1)
    return list(who), list(names), agreement, sigmoid(probable), dice


def test_what_probabilities_promise_is_that_of_each_mask():
    p = np.random.default_rng(0).uniform(size=(20, 20)).astype(np.float32) ** 4
    thresholds = np.array([0.0, 0.1, 0.5, 0.9, 1.1])
    told = probable_above(p, thresholds)
    assert told[:4] == pytest.approx(
        [probable_dice(p >= t, p) if t else probable_dice(p > 0, p) for t in thresholds[:4]]
    )
    assert told[-1] == 0
    assert probable_above(np.zeros(9, np.float32), thresholds).tolist() == [0] * 5


def test_it_mends_a_model_that_is_too_sure():
    rng = np.random.default_rng(1)
    found = fit_quality(*drawn(rng, 30))
    _, names, agreement, probable, dice = drawn(rng, 200)
    told = [found[name](a, p).dice for name, a, p in zip(names, agreement, probable, strict=True)]
    assert np.abs(np.array(told) - dice).mean() < 0.7 * np.abs(probable - dice).mean()
    assert np.mean(told) == pytest.approx(dice.mean(), abs=0.03)
    assert found["t0"].error == pytest.approx(np.abs(np.array(told) - dice).mean(), abs=0.03)


@pytest.mark.parametrize(("subjects", "level"), [(4, 0.8), (8, 0.8), (9, 0.9), (30, 0.9)])
def test_the_interval_holds_for_new_subjects_as_often_as_it_says(subjects, level):
    held = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found = fit_quality(*drawn(rng, subjects))
        _, names, agreement, probable, dice = drawn(rng, 20)
        told = [found[name](a, p) for name, a, p in zip(names, agreement, probable, strict=True)]
        assert {one.level for one in told} == {level}
        held.append(np.mean([one.low <= true <= one.high for one, true in zip(told, dice, strict=True)]))
    assert np.mean(held) >= level - 0.02
    assert all(one.low <= one.dice <= one.high for one in told)


def test_three_subjects_carry_no_interval_so_nothing_is_expected():
    assert fit_quality(*drawn(np.random.default_rng(0), 3)) == {}


def test_a_target_that_is_worse_than_the_others_is_expected_to_be():
    who, names, agreement, probable, dice = drawn(np.random.default_rng(2), 20, noise=0.1)
    dice = np.where(np.array(names) == "t1", 0.5 * dice, dice)
    found = fit_quality(who, names, agreement, probable, dice)
    assert found["t1"](0.85, 0.9).dice < found["t0"](0.85, 0.9).dice - 0.2


def test_what_agrees_wholly_or_not_at_all_has_a_figure():
    found = fit_quality(*drawn(np.random.default_rng(0), 10))
    for value in (0.0, 1.0):
        told = found["t0"](value, value)
        assert isinstance(told, Expected)
        assert 0 <= told.low <= told.dice <= told.high <= 1


def answer(outcome=Outcome.FOUND, quality=None):
    masks = np.zeros((4, 1, 16, 16), np.float32)
    masks[:, :, 2:10, 2:10] = 0.9
    masks[0, :, 10:12, 2:10] = 0.6
    calibration = None if quality is None else Calibration(4, quality={"liver": quality})
    return TargetProposals(Prompt("liver"), "liver", outcome, 0.9, masks, calibration=calibration)


def test_an_answer_tells_what_to_expect_only_where_it_was_fitted_and_found():
    quality = fit_quality(*drawn(np.random.default_rng(0), 10))["t0"]
    told = answer(quality=quality).expected()
    assert told is not None
    one = answer(quality=quality)
    assert told == quality(float(one.agreement().mean()), probable_dice(one.mean() >= 0.5, one.mean()))
    assert answer().expected() is None
    assert answer(Outcome.LIKELY_ABSENT, quality).expected() is None
    assert replace(one, drawn=Sparse.of(np.ones((3, 1, 16, 16), np.float32))).expected() is None
    scan = Scan(np.zeros((1, 16, 16), np.float32), FLAT_AFFINE, has_spacing=False)
    entries = [describe(Proposals(scan, (made,)), "mean")[0] for made in (one, answer())]
    assert entries[0]["expected_dice"] == {**told.__dict__}
    assert entries[1]["expected_dice"] is None


def test_what_is_fitted_is_what_is_loaded(tmp_path):
    quality = fit_quality(*drawn(np.random.default_rng(0), 10))["t0"]
    Calibration(4, quality={"liver": quality}).save(tmp_path)
    loaded = Calibration.load(tmp_path)
    assert loaded is not None
    assert loaded.quality == {"liver": quality}


def test_every_outcome_says_what_it_rests_on_and_what_would_change_it():
    scan = Scan(np.zeros((1, 16, 16), np.float32), FLAT_AFFINE, has_spacing=False)
    found, absent = answer(), replace(answer(Outcome.LIKELY_ABSENT), score=0.25)
    assert why(found, scan).startswith("the score 0.900 reaches 0.600; below it would be likely absent")
    assert "held-out" not in why(found, scan)
    assert why(absent, scan) == "the score 0.250 stays below 0.600, from where on it would be found"
    volume = Scan(np.zeros((16, 16, 4), np.float32), np.diag([-1.0, -1, 1, 1]))
    drawn = np.zeros((2, 16, 16, 4), np.float32)
    drawn[:, 4:9, 4:9, 2] = 0.3
    hidden = replace(absent, drawn=Sparse.of(drawn))
    assert "of 4 slices searched 3 is likeliest" in why(hidden, volume)
    told = Presence(0.8, 0.1, 0.1, 9, 9, 1.0)
    known = replace(found, calibration=Calibration(4, presence={"liver": told}), found_from=0.8)
    assert "reaches 0.800" in why(known, scan)
    assert "by held-out subjects" in why(known, scan)
    half = np.zeros((4, 1, 16, 16), np.float32)
    half[:3, :, 2:10, 2:10] = half[3, :, 2:10, 6:14] = 0.9
    assert why(replace(found, drawn=Sparse.of(half)), scan).endswith("25% of the proposals differ from the first")
    marked = replace(found, prompt=Prompt("liver", marks=Marks(positive=((0, 3, 3),))))
    assert "marked inside" in why(marked, scan)


def test_figures_of_a_strange_file_are_still_answered():
    odd = replace(fit_quality(*drawn(np.random.default_rng(0), 10))["t0"], intercept=-1e3, agreement=-1e3, probable=1e3)
    told = odd(0.9, 0.1)
    assert (told.low, told.dice, told.high) == (0, 0, 0)
