import csv
import io
import json
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from delineate.calibration.calibrators import Beta
from delineate.calibration.guarantees import Calibration
from delineate.data.dataset import Case, Dataset
from delineate.evaluation.protocols import PROTOCOLS
from delineate.evaluation.protocols.calibration import MARGIN, box_around
from delineate.evaluation.protocols.lines import Line, figure_of, summarise
from delineate.metrics.overlap import pairwise_iou
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.geometry import FLAT_AFFINE
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter
from delineate.systems.system import Drawn

SHAPE = (4, 40, 40)
CENTIMETRES = np.array([[0, 0, -10, 0], [0, -10, 0, 0], [10, 0, 0, 0], [0, 0, 0, 1.0]])  # SPL; a voxel is 1 ml
OURS = ("raters", "curvas", "calibration")


def block(rows, columns=slice(4, 14)):
    """A bool volume of `SHAPE` that fills two slices of these rows and columns."""
    mask = np.zeros(SHAPE, bool)
    mask[1:3, rows, columns] = True
    return mask


NARROW, WIDE, NOTHING = block(slice(4, 8)), block(slice(4, 14)), block(slice(0, 0))  # 80, 200 and 0 voxels
APART = 1 - 80 / 200  # 1 - IoU of the first two
ALIKE = 2 * 80 / 280  # their Dice


class Read(Dataset):
    """Scans of nothing; `drawn` has by case and target the truth and, for one target, every rater's reading."""

    def read(self, case):
        ids = np.zeros(SHAPE, np.int32)
        for name, number in self.labels.items():
            ids[DRAWN[self.root][case.name][name][0]] = number
        return Scan(np.zeros(SHAPE, np.float32), CENTIMETRES, "CT"), ids

    def read_raters(self, case):
        (_, *readings) = DRAWN[self.root][case.name][next(iter(self.labels))]
        return np.stack(readings) if readings else None


DRAWN = {}


def dataset_of(drawn, subjects=None, kind=Read):
    """`drawn`: by case, by target, the truth and the readings."""
    key = len(DRAWN)
    DRAWN[key] = drawn
    cases = tuple(Case(name, (subjects or {}).get(name, name), name, name) for name in drawn)
    labels = {name: number for number, name in enumerate(next(iter(drawn.values())), start=1)}
    tested = tuple(dict.fromkeys(case.subject for case in cases))
    return kind(key, "drawn", "CT", labels, cases, {"train": (), "val": (), "test": tested})


class Draws:
    """Gives the masks it was made with, by target, as many of them as are asked for and there."""

    accepts, open_words, about = frozenset(), False, ""
    size = 40

    def __init__(self, **masks):
        self.masks = masks
        self.vocabulary = Vocabulary.from_names(masks, "CT")

    def to(self, device):
        return self

    def see(self, view):
        stack = view.stack
        return len(stack)

    def propose(self, seen, target, n, seed, on_step=lambda share: None):
        given = np.stack(self.masks[target.concept.name][:n]).astype(np.float32)
        return Drawn(torch.from_numpy(given[:, :seen]))


def measured(protocol, proposals, dataset, n=None, calibration=None, **how):
    """Rows and summary for proposals by target, or of the one target "liver"."""
    proposals = proposals if isinstance(proposals, dict) else {"liver": proposals}
    segmenter = Segmenter(Draws(**proposals), calibration=calibration)
    rows = PROTOCOLS[protocol].rows(segmenter, dataset, n=n or max(map(len, proposals.values())), **how)
    return rows, PROTOCOLS[protocol].summarise(rows)


def read_by(*readings, truth=NARROW):
    return dataset_of({"one": {"liver": (truth, *readings)}})


def means(summary):
    return {key: figure["mean"] for key, figure in summary["mean"]["figures"].items()}


# Several raters


def test_proposals_that_are_the_raters_are_as_good_as_can_be():
    rows, summary = measured("raters", [NARROW, WIDE], read_by(NARROW, WIDE))
    found = means(summary)
    assert found["ged"] == pytest.approx(0)
    assert found["ged_unbiased"] == pytest.approx(-APART)  # below 0 for a perfect copy
    for key in ("hm_iou", "dice_match", "dice_max", "dice_max_reverse", "dice_each", "dice_soft"):
        assert found[key] == 1, key
    assert found["diversity"] == found["raters_diversity"] == pytest.approx(APART)
    assert found["crps_ml"] == pytest.approx((200 - 80) / 4)  # (|b - a| / 2 - |b - a| / 4) for either rater
    assert (summary["drawn"], summary["raters"], summary["cases"], summary["subjects"]) == (2, 2, 1, 1)
    assert (rows[0].present, rows[0].drawn) == (True, True)


def test_the_diagonal_heeds_who_is_who_and_the_matching_does_not():
    found = means(measured("raters", [WIDE, NARROW], read_by(NARROW, WIDE))[1])
    assert found["dice_each"] == pytest.approx(ALIKE)
    assert found["dice_match"] == 1


def test_what_depends_on_n_is_told_for_every_n():
    _, summary = measured("raters", [NARROW, WIDE, WIDE], read_by(NARROW, WIDE))
    told = summary["mean"]["by_n"]
    assert list(told) == ["1", "2", "3"]
    assert told["1"] == {"ged": pytest.approx(APART / 2), "dice_max_reverse": pytest.approx((1 + ALIKE) / 2)}
    assert told["2"] == {
        "ged": pytest.approx(0),
        "ged_unbiased": pytest.approx(-APART),
        "dice_max_reverse": 1,
    }
    assert told["3"]["ged"] == pytest.approx(summary["mean"]["figures"]["ged"]["mean"])
    assert "dice_each" not in summary["mean"]["figures"]  # three proposals, two raters


def test_against_one_truth_there_is_no_unbiased_form_and_no_diversity_of_raters():
    rows, summary = measured("raters", [NARROW, WIDE], read_by())
    found = means(summary)
    assert found["ged"] == pytest.approx(2 * APART / 2 - APART / 2)
    assert found["hm_iou"] == pytest.approx((1 + 80 / 200) / 2)
    assert not {"ged_unbiased", "raters_diversity", "dice_each"} & found.keys()
    assert rows[0].figures["ged_unbiased"] is None
    assert summary["raters"] == 1


def test_a_system_that_draws_less_than_was_asked_says_so():
    _, summary = measured("raters", [NARROW], read_by(NARROW, WIDE), n=8)
    assert summary["drawn"] == 1
    assert means(summary)["diversity"] == 0
    assert "ged_unbiased" not in means(summary)
    assert list(summary["mean"]["by_n"]) == ["1"]


def test_empty_readings_stay_in_by_convention_and_are_counted():
    dataset = dataset_of(
        {
            "seen": {"liver": (NARROW, NARROW, NARROW)},
            "half": {"liver": (NARROW, NARROW, NOTHING)},
            "unseen": {"liver": (NOTHING, NOTHING, NOTHING)},
        }
    )
    rows, summary = measured("raters", [NOTHING, NOTHING], dataset)
    assert [row.figures["ged"] for row in rows] == pytest.approx([2, 2 * 1 / 2 - 1 / 2, 0])
    assert [row.figures["hm_iou"] for row in rows] == pytest.approx([0, 1 / 2, 1])
    assert [row.figures["crps_ml"] for row in rows] == pytest.approx([80, 40, 0])
    assert [row.figures["dice_soft"] for row in rows] == pytest.approx([0, 3 / 5, 1])  # 1/2 is above 0.1 and 0.3
    assert summary["mean"]["empty"] == {"readings": 1, "proposals": 3, "both": 1}
    ged = summary["mean"]["figures"]["ged"]
    assert (ged["mean"], ged["present"], ged["n"]) == (pytest.approx(2.5 / 3), pytest.approx(2.5 / 2), 3)
    assert ged["low"] < ged["mean"] < ged["high"]


def test_agreement_is_that_of_probabilities_not_of_masks():
    faint = [0.4 * WIDE] * 2  # no mask at all, yet above 0.1 and 0.3
    found = means(measured("raters", faint, read_by(WIDE, WIDE))[1])
    assert found["dice_match"] == 0
    assert found["dice_soft"] == pytest.approx(2 / 5)


def test_figures_are_those_of_the_whole_volume():
    """Cutting what nobody marked away changes nothing."""
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((3, *SHAPE)) < 0.1, rng.random((2, *SHAPE)) < 0.1
    _, summary = measured("raters", list(ours), read_by(*theirs))
    agreement = pairwise_iou(ours, theirs)[2][:3, 3:]
    assert means(summary)["dice_max"] == pytest.approx((2 * agreement / (1 + agreement)).max(axis=1).mean())


# Means over subjects


def test_a_subject_counts_once_however_many_cases_it_has():
    def line(case, subject, target, value):
        return Line(case, subject, target, 1, 1, True, True, "found", 1.0, {"x": value})

    lines = [line("a1", "a", "liver", 0.0), line("a2", "a", "liver", 0.0), line("a3", "a", "liver", 0.0)]
    lines.append(line("b", "b", "liver", 1.0))
    figure = figure_of(lines, "x")
    assert (figure["mean"], figure["over_cases"], figure["n"]) == (0.5, 0.25, 4)
    assert figure["low"] < 0 < 1 < figure["high"]  # two subjects who differ say next to nothing of others
    assert figure_of(lines[:3], "x") == {"mean": 0, "low": None, "high": None, "over_cases": 0, "present": 0, "n": 3}
    assert figure_of(lines, "y") is None
    lines += [line("b", "b", "spleen", 0.0)]  # then b is 1/2, its two targets alike
    summary = summarise(lines)
    assert summary["mean"]["figures"]["x"]["mean"] == 0.25
    assert (summary["cases"], summary["subjects"], summary["mean"]["n"]) == (4, 2, 5)
    assert summary["targets"]["liver"]["figures"]["x"]["mean"] == 0.5


def test_cases_of_one_patient_are_one_subject_of_the_report():
    drawn = {name: {"liver": (NARROW, NARROW)} for name in ("a1", "a2", "b")}
    _, summary = measured("raters", [NARROW], dataset_of(drawn, {"a1": "a", "a2": "a"}))
    assert (summary["cases"], summary["subjects"]) == (3, 2)
    alone = measured("raters", [NARROW], dataset_of({"a1": drawn["a1"]}))[1]
    assert alone["mean"]["figures"]["ged"]["low"] is None  # one subject has no interval


# CURVAS


def test_curvas_of_raters_copied_is_as_good_as_can_be():
    found = means(measured("curvas", [NARROW, WIDE], read_by(NARROW, WIDE))[1])
    assert found["consensus_dice"] == 1  # what they agree on; 1/2 elsewhere does not count
    assert found["threshold_dice"] == 1
    assert found["crps_ml"] == pytest.approx(60 * (math.sqrt(2) - 1) / math.sqrt(math.pi))  # N(140, 60) at 140
    # 120 voxels of 1/2, always right by one rater and never by the other: CURVAS takes them one by one
    assert found["ece"] == pytest.approx(120 / 2 / math.prod(SHAPE))


def test_curvas_of_one_sure_mask_misses_what_raters_differ_in():
    found = means(measured("curvas", [WIDE], read_by(NARROW, WIDE))[1])
    assert found["consensus_dice"] == 1
    assert found["ece"] == pytest.approx(120 / 2 / math.prod(SHAPE))
    # rows 4 to 14 and columns 4 to 14, 20 voxels before and 20 after, the last left out; all four slices
    assert found["ece_crop"] == pytest.approx(120 / 2 / (4 * 33 * 33))
    z = (200 - 140) / 60
    gauss = z * math.erf(z / math.sqrt(2)) + math.sqrt(2 / math.pi) * math.exp(-z * z / 2) - 1 / math.sqrt(math.pi)
    assert found["crps_ml"] == pytest.approx(60 * gauss)


def test_volumes_without_a_spacing_are_counted_in_pixels():
    class Flat(Read):
        def read(self, case):
            scan, ids = super().read(case)
            return Scan(scan.voxels[:1], FLAT_AFFINE, None, None, has_spacing=False), ids[1:2]

        def read_raters(self, case):
            return super().read_raters(case)[:, 1:2]

    drawn = {"one": {"liver": (NARROW, NARROW, WIDE)}}
    flat_narrow, flat_wide = NARROW[1:2], WIDE[1:2]
    for protocol, expected in (("raters", 60 / 4), ("curvas", 30 * (math.sqrt(2) - 1) / math.sqrt(math.pi))):
        _, summary = measured(protocol, [flat_narrow, flat_wide], dataset_of(drawn, kind=Flat))
        assert means(summary)["crps_pixels"] == pytest.approx(expected)
        assert "crps_ml" not in means(summary)


# Calibration


def test_a_probability_of_one_half_is_wrong_of_the_truth_and_right_of_two_raters():
    rows, summary = measured("calibration", [WIDE, NOTHING], read_by(WIDE, NOTHING, truth=WIDE))
    pooled = summary["mean"]["pooled"]["as_drawn"]
    box = 4 * (10 + 4 + MARGIN) ** 2  # rows and columns 4 to 14: 4 voxels before, as the image ends, and 10 after
    for region, voxels in (("whole", math.prod(SHAPE)), ("box", box)):
        told = pooled[region]["truth"]
        share = 200 / voxels
        assert told["voxels"] == voxels
        assert told["mce"] == pytest.approx(0.5)
        assert told["ece"] == told["adaptive_ece"] == pytest.approx(share / 2)
        assert told["brier"] == pytest.approx(share / 4)
        assert told["nll"] == pytest.approx(share * math.log(2), rel=1e-4)
        assert told["reliability"]["count"] == [voxels - 200, 200]
        assert told["reliability"]["frequency"] == [0, 1]
        raters = pooled[region]["raters"]
        assert raters["voxels"] == voxels  # each rater counts as half
        assert raters["ece"] == pytest.approx(0, abs=1e-9)
        assert raters["brier"] == pytest.approx(share / 4)
        assert means(summary)[f"ece_{region}"] == told["ece"]  # one case
    assert summary["margin_voxels"] == MARGIN
    assert rows[0].figures["doubt"] == pytest.approx(1 - 2 * 100 / (200 + 100))
    assert set(summary["mean"]["risk_coverage"]) == {"as_drawn"}


def test_one_truth_is_not_told_twice():
    _, summary = measured("calibration", [WIDE], read_by())
    assert set(summary["mean"]["pooled"]["as_drawn"]["box"]) == {"truth"}


def test_a_calibrated_segmenter_is_measured_both_ways_on_the_same_masks_and_voxels():
    raised = Calibration(2, Beta(1.0, 1.0, math.log(9)))  # 1/2 becomes 0.9
    rows, summary = measured("calibration", [WIDE, NOTHING], read_by(truth=WIDE), calibration=raised)
    pooled = summary["mean"]["pooled"]
    assert set(pooled) == set(summary["mean"]["risk_coverage"]) == {"as_drawn", "calibrated"}
    drawn, mended = (pooled[kind]["box"]["truth"] for kind in ("as_drawn", "calibrated"))
    assert drawn["voxels"] == mended["voxels"]
    assert mended["ece"] / drawn["ece"] == pytest.approx(0.1 / 0.5)
    assert mended["brier"] / drawn["brier"] == pytest.approx(0.01 / 0.25)
    assert rows[0].figures["calibrated_doubt"] == pytest.approx(1 - 2 * 180 / (200 + 180))
    assert rows[0].figures["doubt"] == pytest.approx(1 - 2 * 100 / (200 + 100))
    assert "calibrated_dice" not in rows[0].figures  # calibration moves no mask
    assert means(summary)["calibrated_nll_whole"] < means(summary)["nll_whole"]


def test_doubt_puts_masks_in_order_but_an_empty_one_has_none():
    drawn = {
        "right": {"liver": (WIDE,), "spleen": (NOTHING,)},
        "wrong": {"liver": (NARROW,), "spleen": (block(slice(20, 30)),)},
    }
    rows, summary = measured("calibration", {"liver": [WIDE], "spleen": [NOTHING]}, dataset_of(drawn))
    assert [row.figures["doubt"] for row in rows] == [0, 0, 0, 0]
    curves = summary["mean"]["risk_coverage"]["as_drawn"]
    risk = [0, 0, 1 - ALIKE, 1]
    assert curves["all"]["n"] == 4
    assert curves["all"]["area"] == curves["all"]["mean_risk"] == pytest.approx(np.mean(risk))  # all as sure
    assert curves["all"]["least"] == pytest.approx(np.mean(np.cumsum(risk) / np.arange(1, 5)))
    assert (curves["not_empty"]["n"], curves["not_empty"]["mean_risk"]) == (2, pytest.approx((1 - ALIKE) / 2))
    assert set(summary["targets"]["spleen"]["risk_coverage"]["as_drawn"]) == {"all"}


def test_presence_needs_both_kinds():
    drawn = {"there": {"liver": (WIDE,)}, "not there": {"liver": (NOTHING,)}}
    _, summary = measured("calibration", [0.9 * WIDE], dataset_of(drawn))
    presence = summary["mean"]["presence"]
    assert (presence["present"], presence["absent"]) == (1, 1)
    assert (presence["found_of_present"], presence["found_of_absent"]) == (1, 1)
    assert presence["auroc"] == 0.5  # it always draws the same
    assert presence["roc"]["threshold"][0] is None
    assert (presence["roc"]["false_alarm"], presence["roc"]["sensitivity"]) == ([0, 1], [0, 1])
    alone = measured("calibration", [WIDE], read_by(truth=WIDE))[1]["mean"]["presence"]
    assert (alone["present"], alone["auroc"], alone["roc"]) == (1, None, None)


def test_cases_in_which_nobody_drew_anything_have_no_box():
    drawn = {"empty": {"liver": (NOTHING,)}, "not": {"liver": (WIDE,)}}
    rows, summary = measured("calibration", [NOTHING], dataset_of(drawn))
    assert rows[0].figures["ece_box"] is None
    assert rows[0].figures["ece_whole"] == 0
    pooled = summary["mean"]["pooled"]["as_drawn"]
    assert (pooled["box"]["truth"]["n"], pooled["whole"]["truth"]["n"]) == (1, 2)
    only = measured("calibration", [NOTHING], dataset_of({"empty": drawn["empty"]}))[1]
    assert only["mean"]["pooled"]["as_drawn"]["box"] == {}
    assert "not_empty" not in only["mean"]["risk_coverage"]["as_drawn"]


def test_the_box_ends_at_the_border():
    assert box_around(NOTHING, 3) is None
    box = box_around(WIDE, 3)
    assert WIDE[box].shape == (4, 16, 16)
    assert WIDE[box].sum() == WIDE.sum()
    assert box_around(WIDE, 0) == (slice(1, 3), slice(4, 14), slice(4, 14))


# All of them


def two_targets():
    spleen = block(slice(20, 30))
    return dataset_of(
        {
            "one": {"liver": (NARROW,), "spleen": (spleen,)},
            "two": {"liver": (WIDE,), "spleen": (NOTHING,)},
            "three": {"liver": (NOTHING,), "spleen": (NOTHING,)},
        }
    ), {"liver": [NARROW, WIDE, 0.7 * WIDE], "spleen": [spleen, NOTHING, 0.3 * spleen]}


@pytest.mark.parametrize("several", [False, True], ids=["raters", "targets"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_writes_draws_and_prints(protocol, several, tmp_path):
    dataset, proposals = two_targets() if several else (read_by(NARROW, WIDE), {"liver": [NARROW, WIDE, 0.7 * WIDE]})
    told, how = [], PROTOCOLS[protocol]
    rows, summary = measured(protocol, proposals, dataset, on_step=told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    assert list(summary["targets"]) == list(dataset.labels)
    json.dumps(summary, allow_nan=False)
    how.write(rows, tmp_path / "rows.csv")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert [(line["case"], line["target"]) for line in lines] == [(row.case, row.target) for row in rows]
    picture = how.draw("drawn", {**summary, "dataset": "drawn"}, tmp_path / how.picture)
    with Image.open(picture) as image:
        assert image.size[0] > 400
        assert len(image.convert("L").getcolors()) > 20
    text = io.StringIO()
    how.show(summary, Console(file=text, width=160))
    assert "liver" in text.getvalue()
    assert ("spleen" in text.getvalue()) == several
    if protocol in OURS:
        assert ("the truth alone" if several else "2 raters") in text.getvalue()
        assert f"empty in every reading: {3 if several else 0} of {len(rows)}" in text.getvalue()


@pytest.mark.parametrize("protocol", OURS)
def test_rows_hold_every_figure_and_an_empty_cell_where_there_is_none(protocol, tmp_path):
    dataset, proposals = two_targets()
    rows, _ = measured(protocol, proposals, dataset)
    PROTOCOLS[protocol].write(rows, tmp_path / "rows.csv")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    for line, row in zip(lines, rows, strict=True):
        assert (line["subject"], line["proposals"], line["raters"]) == (row.subject, "3", "1")
        for key, value in row.figures.items():
            assert line[key] == ("" if value is None else f"{value:.6g}")


@pytest.mark.parametrize("protocol", OURS)
def test_targets_that_the_model_does_not_know_are_left_out(protocol):
    rows, summary = measured(protocol, {"spleen": [WIDE]}, read_by())
    assert rows == []
    assert summary["targets"] == {}


def test_the_limit_takes_the_first_cases():
    dataset, proposals = two_targets()
    rows, _ = measured("raters", proposals, dataset, limit=1)
    assert [row.case for row in rows] == ["one", "one"]
    assert {field.name for field in fields(rows[0])} >= {"case", "subject", "target", "figures"}
