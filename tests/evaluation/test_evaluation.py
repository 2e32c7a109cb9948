import csv
import dataclasses
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console

from delineate.data.dataset import Case, Dataset
from delineate.evaluation.evaluation import consensus_dice, evaluate, summarise
from delineate.evaluation.report import print_comparison, print_summary, write_rows
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter
from delineate.systems.system import Drawn

LABELS = {"liver": 1, "spleen": 2}
NAMES = ("one", "two", "three")


class Known(Dataset):
    """Three volumes of 32³ whose intensity tells the label; the third has no spleen."""

    def read(self, case):
        ids = np.zeros((32, 32, 32), np.int32)
        ids[4:12, 4:20, 8:20] = 1
        if case.name != "three":
            ids[20:28, 4:20, 10:16] = 2
        voxels = np.where(ids > 0, ids * 100.0, -200.0).astype(np.float32)
        return Scan(voxels, np.diag([-1.0, -1, 1, 1]), "CT"), ids


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("known")
    cases = tuple(Case(name, name, root / name, root / name) for name in NAMES)
    return Known(root, "known", "CT", LABELS, cases, {"train": (), "val": (), "test": NAMES})


class Oracle:
    """Draws the truth, nothing, the other organ, everything, or better and better proposals."""

    accepts, open_words, about = frozenset(), False, ""
    vocabulary = Vocabulary.from_names(["liver", "spleen", "aorta"], "CT")
    size = 32

    def __init__(self, kind):
        self.kind = kind

    def to(self, device):
        return self

    def see(self, view):
        stack = view.stack
        hu = (stack[:, 1] + 1) * 200 - 125
        return (hu / 100).round().clamp(0, 2)

    def propose(self, seen, target, n, seed, on_step=lambda share: None):
        wanted = {"liver": 1, "spleen": 2, "aorta": 3}[target.concept.name]
        truth = (seen == wanted).float()
        match self.kind:
            case "truth":
                masks = [truth] * n
            case "empty":
                masks = [truth * 0] * n
            case "other":
                masks = [(seen == 3 - wanted).float()] * n
            case "everything":
                masks = [truth * 0 + 1] * n
            case "one in three":
                masks = [truth if k % 3 == 1 else truth * 0 for k in range(n)]
        return Drawn(torch.stack(masks))


def summary_of(kind, dataset, n=3):
    rows = evaluate(Segmenter(Oracle(kind)), dataset, n=n)
    return rows, summarise(rows)


def test_the_truth_scores_one_everywhere_and_nothing_for_the_wrong_prompt(dataset):
    rows, summary = summary_of("truth", dataset)
    assert len(rows) == 6
    for name in LABELS:
        figures = summary["targets"][name]
        for key in ("single_dice", "consensus_dice", "oracle_dice", "iou", "nsd", "mean_dice", "staple_dice"):
            assert figures[key] == 1.0, key
        assert figures["hd95_mm"] == 0.0
        assert figures["wrong_prompt_dice"] == 0.0
    assert summary["mean"]["right_minus_wrong"] == 1.0
    assert summary["mean"]["consensus_dice_interval"] == [1.0, 1.0, 1.0]
    assert summary["present"] == {"n": 5, "said_absent": 0}
    assert summary["absent"] == {"n": 1, "said_found": 0, "false_voxels": 0}
    assert summary["absent_slices"]["false"] == 0
    assert (summary["targets"]["liver"]["n"], summary["targets"]["spleen"]["n"]) == (3, 2)
    assert summary["cases"] == 3


def test_empty_masks_score_zero_and_call_everything_absent(dataset):
    _, summary = summary_of("empty", dataset)
    assert summary["mean"]["consensus_dice"] == summary["mean"]["iou"] == summary["mean"]["nsd"] == 0.0
    assert summary["mean"]["hd95_mm"] == pytest.approx(np.sqrt(3 * 32**2))  # the diagonal, by convention
    assert summary["present"]["said_absent"] == 5
    assert summary["absent"] == {"n": 1, "said_found": 0, "false_voxels": 0}


def test_masks_of_another_organ_are_betrayed_by_the_wrong_prompt(dataset):
    rows, summary = summary_of("other", dataset)
    assert summary["mean"]["consensus_dice"] == 0.0
    assert summary["targets"]["liver"]["wrong_prompt_dice"] == 1.0
    assert summary["mean"]["right_minus_wrong"] == -1.0
    assert summary["absent"] == {"n": 1, "said_found": 1, "false_voxels": 1}
    three = next(r for r in rows if (r.case, r.target) == ("three", "spleen"))
    assert not three.present
    assert (three.absent_slices, three.false_slices) == (32, 12)  # the liver's slices


def test_drawing_everything_is_counted_where_nothing_is(dataset):
    rows, summary = summary_of("everything", dataset)
    assert summary["absent_slices"]["rate"] == 1.0
    assert summary["absent_slices"]["n"] == 3 * 20 + 2 * 26 + 32
    liver = rows[0]
    both, total = 8 * 16 * 12, 8 * 16 * 12 + 32**3
    assert liver.consensus["mean"]["dice"] == pytest.approx(2 * both / total)


def test_the_oracle_is_the_best_proposal_and_singles_are_their_mean(dataset):
    rows, summary = summary_of("one in three", dataset)
    for row in (r for r in rows if r.present):
        assert row.oracle == 1.0
        assert row.single["dice"] == 0.0  # of proposal 0
        assert row.single["mean_dice"] == pytest.approx(1 / 3)
        assert row.oracle >= row.single["mean_dice"]
        assert row.consensus["majority"]["dice"] == 0.0
    assert summary["mean"]["single_dice"] == pytest.approx(1 / 3)


EVERYWHERE = ("single_dice", "consensus_dice", "oracle_dice", "iou")


@pytest.mark.parametrize(
    ("kind", "liver", "spleen"),
    [
        ("truth", (1, 1, 1, 1), (1, 1, 1, 1)),
        ("empty", (0, 0, 0, 0), (1 / 3, 1 / 3, 1 / 3, 1 / 3)),  # rightly empty in one of three
        ("everything", None, (None, None, None, None)),
        ("one in three", (1 / 3, 0, 1, 0), ((2 / 3 + 1) / 3, 1 / 3, 1, 1 / 3)),
    ],
)
def test_the_second_reading_counts_every_case_with_empty_masks_one_or_zero(dataset, kind, liver, spleen):
    _, summary = summary_of(kind, dataset)
    targets, mean = summary["targets"], summary["mean"]["all_cases"]
    assert {name: t["all_cases"]["n"] for name, t in targets.items()} == {"liver": 3, "spleen": 3}
    assert {name: t["n"] for name, t in targets.items()} == {"liver": 3, "spleen": 2}
    assert mean["n"] == 6
    assert set(mean) == {"n", *EVERYWHERE}
    for key in EVERYWHERE:
        assert targets["liver"]["all_cases"][key] == pytest.approx(targets["liver"][key])  # present in all
        assert mean[key] == pytest.approx(
            (targets["liver"]["all_cases"][key] + targets["spleen"]["all_cases"][key]) / 2
        )
    if liver:
        assert [targets["liver"]["all_cases"][key] for key in EVERYWHERE] == pytest.approx(liver)
        assert [targets["spleen"]["all_cases"][key] for key in EVERYWHERE] == pytest.approx(spleen)
    else:  # voxels where nothing is: 0, so the mean falls by a third
        for key in EVERYWHERE:
            assert targets["spleen"]["all_cases"][key] == pytest.approx(targets["spleen"][key] * 2 / 3)


def test_a_target_that_no_case_shows_counts_in_the_second_reading_alone(dataset):
    rows = [r for r in summary_of("empty", dataset)[0] if not r.present or r.target == "liver"]
    summary = summarise(rows)
    assert list(summary["targets"]) == ["liver"]
    assert summary["mean"]["consensus_dice"] == 0
    assert summary["mean"]["all_cases"]["consensus_dice"] == 0.5  # the liver 0, the spleen 1
    assert summary["mean"]["all_cases"]["n"] == 4
    nothing_there = summarise([r for r in rows if not r.present])
    assert nothing_there["mean"] == {"all_cases": {"n": 1} | dict.fromkeys(EVERYWHERE, 1.0)}
    text = io.StringIO()
    print_summary(nothing_there, Console(file=text, width=200))
    assert "Over all 1, where two empty masks score 1 and one of two 0: single 1.000" in text.getvalue()


def test_iou_is_told_of_singles_and_of_the_best_as_dice_is(dataset):
    rows, summary = summary_of("everything", dataset)
    for name, t in summary["targets"].items():
        alike = [r.consensus["mean"]["iou"] for r in rows if r.target == name and r.present]
        assert t["single_iou"] == t["iou"] == pytest.approx(sum(alike) / len(alike))  # all proposals are the same
        assert t["oracle_iou"] == pytest.approx(t["iou"])
    _, summary = summary_of("one in three", dataset)
    assert summary["mean"]["single_iou"] == pytest.approx(1 / 3)
    assert (summary["mean"]["iou"], summary["mean"]["oracle_iou"]) == (0, 1)


def test_the_energy_distance_is_to_the_truth_or_to_the_raters(dataset):
    _, summary = summary_of("truth", dataset)
    assert summary["mean"]["ged"] == 0
    assert summary["targets"]["liver"]["raters"] == 1
    _, summary = summary_of("empty", dataset)
    assert summary["mean"]["ged"] == 2
    rows, summary = summary_of("one in three", dataset)  # 2 · 2/3 of the proposals are 1 away, 4/9 of their pairs
    assert [r.ged for r in rows if r.present] == pytest.approx([2 * 2 / 3 - 4 / 9] * 5)
    assert [r.ged for r in rows if not r.present] == [0]
    assert summary["targets"]["liver"]["ged"] == pytest.approx(8 / 9)


def test_the_energy_distance_to_raters_who_spread_as_the_proposals_do_is_none(dataset):
    class Read(Known):
        def read_raters(self, case):
            truth = self.read(case)[1] == 1
            return np.stack([truth, truth & False, truth & False])

    fields = {f.name: getattr(dataset, f.name) for f in dataclasses.fields(dataset)}
    rows = evaluate(Segmenter(Oracle("one in three")), Read(**fields | {"labels": {"liver": 1}}), n=3)
    assert [r.raters for r in rows] == [3, 3, 3]
    assert [r.ged for r in rows] == pytest.approx([0, 0, 0])
    assert rows[0].oracle == 1  # of the truth, as ever
    assert summarise(rows)["mean"]["raters"] == 3


def test_absent_targets_do_not_enter_the_means(dataset):
    rows, summary = summary_of("truth", dataset)
    without = summarise([r for r in rows if r.present])
    for name, figures in summary["targets"].items():
        assert {k: v for k, v in figures.items() if k != "all_cases"}.items() <= without["targets"][name].items()
    assert without["absent"]["n"] == 0


def test_targets_that_the_model_does_not_know_are_left_out(dataset):
    other = replace(dataset, labels={"liver": 1, "pancreas": 2})
    rows = evaluate(Segmenter(Oracle("truth")), other, n=1)
    assert {r.target for r in rows} == {"liver"}
    assert all(r.wrong == 0.0 for r in rows)  # no other prompt to be wrong with
    assert evaluate(Segmenter(Oracle("truth")), replace(dataset, labels={"pancreas": 2})) == []


def test_the_first_of_the_fusions_is_the_consensus(dataset):
    rows = evaluate(Segmenter(Oracle("truth")), dataset, n=2, fusions=("staple", "mean"), limit=1)
    assert {r.case for r in rows} == {"one"}
    assert list(rows[0].consensus) == ["staple", "mean"]
    assert summarise(rows)["fusion"] == "staple"
    assert "consensus_dice_interval" not in summarise(rows)["mean"]  # one case has no interval


def test_progress_rises_to_one(dataset):
    told = []
    evaluate(Segmenter(Oracle("truth")), dataset, n=1, on_step=told.append)
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)


def test_a_summary_is_json_and_of_nothing_too(dataset):
    json.dumps(summary_of("truth", dataset)[1], allow_nan=False)
    empty = summarise([])
    assert empty["targets"] == empty["mean"] == {}
    json.dumps(empty, allow_nan=False)


def test_rows_as_csv_hold_every_figure(dataset, tmp_path):
    rows, _ = summary_of("one in three", dataset)
    write_rows(rows, tmp_path / "rows.csv")
    lines = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text())))
    assert len(lines) == len(rows)
    assert {"case", "target", "present", "outcome", "score", "single_dice", "mean_single_dice"} <= lines[0].keys()
    assert {"oracle_dice", "mean_dice", "majority_dice", "staple_dice", "iou", "ged", "hd95_mm", "nsd"} <= lines[
        0
    ].keys()
    for line, row in zip(lines, rows, strict=True):
        assert (line["case"], line["target"], line["present"]) == (row.case, row.target, str(row.present))
        assert float(line["mean_single_dice"]) == pytest.approx(row.single["mean_dice"], abs=1e-4)
        assert float(line["mean_single_iou"]) == pytest.approx(row.single["mean_iou"], abs=1e-4)
        assert float(line["oracle_dice"]) == pytest.approx(row.oracle)
        assert line["emptiness"] == row.consensus["mean"]["emptiness"]


def test_tables_for_the_screen_name_every_target_and_the_mean(dataset):
    text = io.StringIO()
    _, summary = summary_of("truth", dataset)
    print_summary(summary, Console(file=text, width=120))
    print_comparison({"ours": summary, "theirs": summary_of("empty", dataset)[1]}, Console(file=text, width=120))
    for words in ("liver", "spleen", "mean", "ours", "theirs", "1.000", "0.000", "absent targets: 1"):
        assert words in text.getvalue()


def test_the_quick_dice_is_that_of_the_rows(dataset):
    segmenter = Segmenter(Oracle("truth"))
    rows = evaluate(segmenter, dataset, split="test", n=1, fusions=("mean",))
    quick = consensus_dice(segmenter, dataset, split="test", n=1)
    assert quick
    assert {(r.case, r.target): r.consensus["mean"]["dice"] for r in rows if r.present} == {
        (case, name): value for case, own in quick.items() for name, value in own.items()
    }
