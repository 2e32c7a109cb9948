import json
from dataclasses import replace
from statistics import fmean

import numpy as np
import pytest

from delineate.calibration.calibrators import Beta, Identity, Temperature, histogram, reliability
from delineate.calibration.conformal import false_fraction, missed_fraction, overlaps_above
from delineate.calibration.evidence import Evidence, calibration_from, choose_calibrator, one_piece_of, volume_error
from delineate.calibration.guarantees import (
    THRESHOLDS,
    Calibration,
    GuaranteeError,
    refused_guarantees,
)
from delineate.calibration.presence import presence_from, told_of
from delineate.calibration.quality import probable_above
from delineate.errors import ModelError
from delineate.metrics.overlap import dice
from delineate.prompts.prompt import Prompt
from delineate.proposals.target import Outcome, TargetProposals, presence


def subject(generator, bias=0.0):
    """A map of probabilities that hold when `bias` is 0, and a truth drawn from them, 32 x 32."""
    y, x = np.mgrid[:32, :32] - 15.5
    distance = np.hypot(y, x) - generator.uniform(4, 10)
    p = 1 / (1 + np.exp(np.clip(distance, -8, 8)))
    truth = generator.random() < p  # one draw for all pixels: a person is strict or generous
    return (1 / (1 + np.exp(-(np.log(p / (1 - p)) + bias)))).astype(np.float32), truth


def evidence(generator, name, bias=0.0):
    p, truth = subject(generator, bias)
    there = truth.any()
    overlaps, sizes = overlaps_above(p, truth, THRESHOLDS) if there else (None, None)
    return Evidence(
        subject=name,
        target="disc",
        drawn=8,
        missed=missed_fraction(p, truth, THRESHOLDS) if there else None,
        false=false_fraction(p, truth, THRESHOLDS) if there else None,
        dice=overlaps,
        sizes=sizes,
        probable=probable_above(p, THRESHOLDS) if there else None,
        agreement=0.9,
        tidied=0.0 if there else None,
        voxels=histogram(p, truth),
        score_present=presence(p) if there else None,
        score_absent=None,
    )


@pytest.fixture(scope="module")
def calibration():
    generator = np.random.default_rng(0)
    return calibration_from([evidence(generator, f"s{i}") for i in range(30)])


# guarantees


@pytest.mark.parametrize("kind", ["missed", "false"])
def test_new_subjects_miss_or_add_no_more_than_was_asked_on_average(kind):
    generator, alpha, realised = np.random.default_rng(1), 0.1, []
    everyone = [evidence(generator, "s", bias=1.0) for _ in range(300)]
    losses = np.stack([getattr(e, kind) for e in everyone if e.missed is not None])
    for _ in range(150):
        order = generator.permutation(len(losses))
        made = Calibration(8, **{kind: {"disc": losses[order[:25]]}})
        (one,) = made.guarantees("disc", **{f"{kind}_at_most": alpha})
        at = int(np.flatnonzero(np.isclose(one.threshold, THRESHOLDS))[0])
        realised.append(losses[order[25:], at].mean())
    assert alpha / 4 < np.mean(realised) <= alpha + 0.005  # and not by a mask of everything or nothing


def test_too_few_subjects_are_said_in_words_and_numbers():
    generator = np.random.default_rng(2)
    made = calibration_from([evidence(generator, f"s{i}") for i in range(12)])
    (one,) = made.guarantees("disc", missed_at_most=0.01)
    assert one.threshold is None
    assert one.subjects_needed == 99
    assert f"cannot be guaranteed with {len(made.missed['disc'])} subjects: needs at least 99" in one.why_not
    (other,) = made.guarantees("spleen", missed_at_most=0.05)
    assert (other.threshold, other.subjects, other.subjects_needed) == (None, 0, 19)
    assert "on no subject with this target" in other.why_not


def test_a_mask_of_everything_or_nothing_is_no_answer():
    blind = np.ones((30, len(THRESHOLDS)))
    blind[:, 0] = 0  # misses all but at a threshold of 0
    made = Calibration(8, missed={"disc": blind}, false={"disc": blind[:, ::-1]})
    for one, useless in zip(
        made.guarantees("disc", missed_at_most=0.1, false_at_most=0.1), ("the whole scan", "an empty mask"), strict=True
    ):
        assert one.threshold is None
        assert f"by 30 subjects nothing but {useless} would do" in one.why_not


def test_cases_of_one_subject_count_once():
    generator = np.random.default_rng(3)
    made = calibration_from([evidence(generator, f"s{i // 5}") for i in range(20)])
    assert made.missed["disc"].shape == (4, len(THRESHOLDS))
    assert made.about["subjects"] == 4


def test_outer_and_inner_masks_lie_within_each_other(calibration):
    outer, inner = calibration.guarantees("disc", missed_at_most=0.05, false_at_most=0.05)
    assert (outer.kind, inner.kind) == ("missed", "false")
    assert outer.threshold <= inner.threshold
    lax = calibration.guarantees("disc", missed_at_most=0.6, false_at_most=0.6)
    assert lax[0].threshold == lax[1].threshold  # they crossed; one between serves both
    alone = [
        calibration.guarantees("disc", missed_at_most=0.6)[0].threshold,
        calibration.guarantees("disc", false_at_most=0.6)[0].threshold,
    ]
    assert alone[1] < lax[0].threshold < alone[0]


def test_the_mask_of_a_guarantee_is_that_of_the_first_proposals(calibration):
    drawn = np.random.default_rng(4).random((12, 1, 8, 8)).astype(np.float16)
    answer = TargetProposals(Prompt("disc"), "disc", Outcome.FOUND, 0.9, drawn, calibration=calibration)
    (one,) = answer.guarantees(missed_at_most=0.1)
    assert np.array_equal(answer.guaranteed(one), drawn[:8].mean(axis=0, dtype=np.float32) >= one.threshold)
    assert one.name == "missed_at_most_10pct"
    few = TargetProposals(Prompt("disc"), "disc", Outcome.FOUND, 0.9, drawn[:4], calibration=calibration)
    with pytest.raises(GuaranteeError, match="calibrated with 8 proposals, 4 were drawn; ask for -n 8"):
        few.guarantees(missed_at_most=0.1)
    bare = TargetProposals(Prompt("disc"), "disc", Outcome.FOUND, 0.9, drawn)
    with pytest.raises(GuaranteeError, match="not calibrated"):
        bare.guarantees(missed_at_most=0.1)
    refused = calibration.guarantees("disc", missed_at_most=0.001)[0]
    with pytest.raises(GuaranteeError, match="needs at least 999"):
        answer.guaranteed(refused)


# probabilities


def test_bold_probabilities_are_mended():
    generator = np.random.default_rng(5)
    told = []
    for _ in range(15):
        p, truth = subject(generator)
        told.append(histogram(1 / (1 + np.exp(-3 * np.log(p / (1 - p)))), truth))
    found, figures = choose_calibrator(told)
    assert not isinstance(found, Identity)
    assert figures["temperature"]["left_out_ece"] < figures["identity"]["left_out_ece"] / 2
    p, y, w = (np.concatenate(part) for part in zip(*told, strict=True))
    assert reliability(found(p), y, weight=w).ece < reliability(p, y, weight=w).ece / 2


def test_one_subject_gives_a_temperature_and_none_nothing():
    p, truth = subject(np.random.default_rng(8))
    assert isinstance(choose_calibrator([histogram(p, truth)])[0], Temperature)
    assert isinstance(choose_calibrator([])[0], Identity)
    assert isinstance(choose_calibrator([histogram(p, np.ones_like(truth))])[0], Identity)


def test_where_no_proposal_reaches_nothing_is_changed(calibration):
    moved = Calibration(8, voxel=Beta(0.3, 0.3, 1.0))
    p = np.array([0, 1e-4, 0.1, 0.6], np.float32)
    out = moved.calibrated(p)
    assert out[:2].tolist() == p[:2].tolist()
    assert (out[2:] > p[2:]).all()
    drawn = np.full((8, 1, 4, 4), 0.4, np.float16)
    answer = TargetProposals(Prompt("disc"), "disc", Outcome.FOUND, 0.9, drawn, calibration=moved)
    assert (answer.probability() > 0.5).all()
    assert not answer.consensus().any()  # the consensus is of the proposals


# presence


def test_absent_targets_are_called_found_no_more_often_than_stated():
    generator, alarms = np.random.default_rng(6), []
    for _ in range(400):
        made = presence_from(generator.random(30), generator.random(30) + 1, 0.1, Identity())
        alarms.append(generator.random() >= made.threshold)
    assert made.rate == made.asked == 0.1
    assert np.mean(alarms) <= 0.1 + 3 * 0.1**0.5 / 20
    assert np.mean(alarms) > 0.03


def test_few_absent_subjects_state_the_rate_that_they_allow():
    made = presence_from(np.array([0.1, 0.2, 0.8, 0.3]), np.array([0.7, 0.9]), 0.05, Identity())
    assert made.rate == pytest.approx(0.2)
    assert 0.8 < made.threshold < 0.8 + 1e-6
    assert made.sensitivity == 0.5
    assert made.promised
    assert "at most 20.0%" in made.told(["liver"])
    assert "5.0% needs 19 subjects" in made.told(["liver"])
    assert presence_from(np.array([0.1, 0.2, 0.8]), np.array([0.7]), 0.05, Identity()) is None
    assert presence_from(np.zeros(50), np.zeros(0), 0.05, Identity()) is None


def test_a_threshold_that_leaves_out_most_of_what_is_there_gives_way_to_a_greater_rate():
    made = presence_from(np.array([0.1, 0.2, 0.8, 0.3]), np.array([0.7, 0.6, 0.5]), 0.05, Identity())
    assert made.rate == pytest.approx(0.4)
    assert 0.3 < made.threshold < 0.3 + 1e-6
    assert made.sensitivity == 1
    assert not made.promised
    assert told_of({"liver": made}, ["liver", "spleen"]) == [
        "liver: found from a score of 0.3; false alarms about 40.0% of a subject's absent targets (4 subjects), 100.0% "
        "of 3 present found; 5.0% would leave out half of what is there",
        "spleen: likely absent is uncalibrated, held-out subjects do not tell",
    ]
    assert presence_from(np.full(4, 0.9), np.full(9, 0.7), 0.05, Identity()) is None


def test_the_targets_of_one_subject_count_once():
    """A subject of whom everything is called found weighs as one, however many targets it lacks."""
    one = np.full(50, 0.9)
    others = [np.array([0.1])] * 19
    made = presence_from([one, *others], np.full(10, 0.5), 0.1, Identity())
    assert made.absent == 20
    assert 0.1 < made.threshold < 0.1 + 1e-6  # (1 + 1) of 21 subjects
    assert presence_from([np.array([0.9])] * 50 + others, np.full(10, 0.95), 0.1, Identity()).threshold > 0.9


# volume


def test_the_volume_interval_holds_as_often_as_it_says():
    generator, inside = np.random.default_rng(7), []
    for _ in range(300):
        errors = np.abs(generator.normal(0, 0.3, 20))
        low, high = Calibration(8, volume_errors={"disc": errors}).volume_interval("disc", 10.0)
        inside.append(low <= 10 * np.exp(generator.normal(0, 0.3)) <= high)
    assert 0.85 <= np.mean(inside) <= 0.98


def test_no_interval_from_few_subjects_or_empty_masks():
    few = Calibration(8, volume_errors={"disc": np.zeros(8)})
    assert few.volume_interval("disc", 10.0) is None
    assert few.volume_interval("spleen", 10.0) is None
    empty = Calibration(8, volume_errors={"disc": np.array([0.1] * 8 + [np.inf] * 3)})
    assert empty.volume_interval("disc", 10.0) is None
    assert empty.volume_interval("disc", 10.0, level=0.5) == pytest.approx((10 / np.exp(0.1), 10 * np.exp(0.1)))


# where a consensus is cut


def test_dice_and_size_at_a_threshold_are_those_of_the_mask_where_precision_falls_too():
    """The surest voxels are wrong: a higher threshold makes a mask more false, which `false_fraction` levels out."""
    generator = np.random.default_rng(5)
    p, truth = subject(generator)
    p[:3] = 0.99
    overlaps, sizes = overlaps_above(p, truth, THRESHOLDS)
    for at in (1, 40, 70, 100, 138):
        mask = p >= THRESHOLDS[at]
        assert overlaps[at] == pytest.approx(dice(mask, truth), abs=1e-9)
        assert sizes[at] == pytest.approx(mask.sum() / truth.sum())
    assert overlaps[-1] == sizes[-1] == 0
    turned = overlaps_above(p, truth, THRESHOLDS[::-1])
    assert np.array_equal(turned[0][::-1], overlaps)
    assert np.array_equal(turned[1][::-1], sizes)


def test_the_consensus_is_cut_where_dice_was_best_on_held_out_subjects():
    generator = np.random.default_rng(3)
    timid = calibration_from([evidence(generator, f"s{i}", bias=-2.0) for i in range(30)])
    assert timid.consensus_at("disc") < 0.25  # of probabilities that are all too low
    assert timid.consensus_at("never seen") == timid.consensus_at("disc")
    held_out = [subject(np.random.default_rng(100 + i), bias=-2.0) for i in range(40)]
    cut, half = (fmean(dice(p >= at, truth) for p, truth in held_out) for at in (timid.consensus_at("disc"), 0.5))
    assert cut > half + 0.1
    p = held_out[0][0][None, :, :, None]
    drawn = TargetProposals(Prompt("disc"), "disc", Outcome.FOUND, 1.0, p, calibration=timid)
    assert np.array_equal(drawn.consensus()[..., 0], p[0, ..., 0].astype(np.float16) >= timid.consensus_at("disc"))
    assert np.array_equal(replace(drawn, calibration=None).consensus()[..., 0], p[0, ..., 0] >= 0.5)


def test_a_subject_s_volume_error_is_the_mean_of_its_cases_not_that_of_their_mean():
    """One mask twice as large as the truth and one half as large are off by ln 2 each, and by nothing together."""
    one = evidence(np.random.default_rng(0), "one")
    cases = [replace(one, sizes=np.full(len(THRESHOLDS), size)) for size in (2.0, 0.5)]
    assert calibration_from(cases).volume_errors["disc"] == pytest.approx([np.log(2)])
    assert volume_error(0.0) == np.inf


def test_few_subjects_together_say_whether_islands_go_and_each_target_may_object():
    few, many = np.full(5, 0.01), np.full(20, 0.01)
    assert one_piece_of({}) == {"": False}
    assert one_piece_of({"liver": few, "vessels": -few / 2}) == {"": True, "vessels": False}
    assert one_piece_of({"liver": -few, "spleen": few / 2}) == {"": False}
    assert one_piece_of({"nuclei": -many, "liver": few}) == {"": True, "nuclei": False}
    assert one_piece_of({"nodule": many, "liver": -few}) == {"": False, "nodule": True}


def test_few_subjects_do_not_speak_for_a_target_alone():
    generator = np.random.default_rng(3)
    many = [evidence(generator, f"s{i}") for i in range(30)]
    few = [replace(evidence(generator, f"t{i}", bias=-2.0), target="ring") for i in range(4)]
    both = calibration_from([*many, *few])
    assert both.consensus_at("ring") == both.consensus_at("") != both.consensus_at("disc")
    assert Calibration(8).consensus_at("disc") == 0.5


# on disk


def test_what_is_saved_is_what_is_loaded(calibration, tmp_path):
    absent, present = np.linspace(0, 0.5, 20), np.linspace(0.5, 1, 20)
    told = presence_from(absent, present, 0.05, Temperature(2.0))
    mended = {"": Beta(0.5, 0.6, 0.1), "disc": Temperature(1.5)}
    pieces = {"": True, "nuclei": False}
    whole = replace(calibration, estimate=mended, presence={"liver": told}, one_piece=pieces, about={"split": "val"})
    whole.save(tmp_path)
    back = Calibration.load(tmp_path)
    assert (back.proposals, back.voxel, back.presence, back.about) == (
        8,
        whole.voxel,
        {"liver": told},
        {"split": "val"},
    )
    assert back.estimate == mended
    assert back.one_piece == pieces
    assert back.of_estimate("disc") == Temperature(1.5)
    assert back.of_estimate("liver") == Beta(0.5, 0.6, 0.1)
    assert back.consensus_at("disc") == whole.consensus_at("disc")
    for alpha in (0.05, 0.1, 0.3):
        asked = {"missed_at_most": alpha, "false_at_most": alpha}
        assert back.guarantees("disc", **asked) == whole.guarantees("disc", **asked)
    assert Calibration.load(tmp_path / "elsewhere") is None


def test_a_damaged_calibration_is_one_line(calibration, tmp_path):
    calibration.save(tmp_path)
    told = json.loads((tmp_path / "calibration.json").read_text())
    (tmp_path / "calibration.json").write_text(json.dumps({**told, "voxel": {"kind": "magic"}}))
    with pytest.raises(ModelError):
        Calibration.load(tmp_path)
    (tmp_path / "calibration.json").write_text("{")
    with pytest.raises(ModelError, match="run: delineate calibrate"):
        Calibration.load(tmp_path)


def test_guarantees_are_refused_before_any_work(calibration, tmp_path):
    assert refused_guarantees(tmp_path, ["disc"], 8) == []
    with pytest.raises(GuaranteeError, match="not calibrated"):
        refused_guarantees(tmp_path, ["disc"], 8, missed_at_most=0.05)
    calibration.save(tmp_path)
    assert refused_guarantees(tmp_path, ["disc"], 8, missed_at_most=0.05) == []
    with pytest.raises(GuaranteeError, match="-n 8 or more"):
        refused_guarantees(tmp_path, ["disc"], 4, missed_at_most=0.05)
    with pytest.raises(GuaranteeError, match="adapter"):
        refused_guarantees(tmp_path, ["disc"], 8, tmp_path / "adapter", missed_at_most=0.05)
    (line,) = refused_guarantees(tmp_path, ["disc", "spleen"], 8, missed_at_most=0.05)
    assert line.startswith("spleen, --missed-at-most 5%:")
    with pytest.raises(GuaranteeError, match="needs at least 999"):
        refused_guarantees(tmp_path, ["disc"], 8, missed_at_most=0.001)
