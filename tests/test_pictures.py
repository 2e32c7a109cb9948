from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from delineate import pictures
from delineate.pictures import (
    adaptation_chart,
    contour,
    dice_chart,
    montage,
    tiles,
    tiles_of,
    training_curves,
    write_figure,
)
from delineate.prompts.prompt import Prompt
from delineate.proposals.proposals import Proposals
from delineate.proposals.target import Outcome, TargetProposals
from delineate.scans.geometry import FLAT_AFFINE
from delineate.scans.scan import Scan

VOLUME = Scan(np.random.default_rng(0).normal(size=(6, 30, 40)).astype(np.float32), np.diag([3.0, 1, 1, 1]))
FLAT = Scan(np.arange(600, dtype=np.float32).reshape(1, 20, 30), FLAT_AFFINE)
COLOUR = Scan(np.random.default_rng(0).uniform(0, 255, (1, 20, 30, 3)).astype(np.float32), FLAT_AFFINE)
UNKNOWN = TargetProposals(Prompt("livr3"), None, Outcome.UNKNOWN_PROMPT, nearest=("liver",))


def target(scan, value=0.0, where=..., n=2):
    drawn = np.zeros((n, *scan.shape), np.float16)
    for one in drawn:
        one[where] = value
    return TargetProposals(Prompt("liver"), "liver", Outcome.FOUND, 0.9, drawn)


def picture(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("scan", [VOLUME, FLAT, COLOUR], ids=["volume", "flat", "colour"])
def test_a_montage_is_a_png_of_sensible_size(scan, tmp_path):
    path = montage(Proposals(scan, (target(scan, 0.9, np.s_[:, 5:15, 5:15]),)), tmp_path / "montage.png")
    height, width, _ = picture(path).shape
    assert 1000 < width < 1600
    assert 250 < height < 600
    assert picture(path).std() > 10  # something is drawn


def test_every_target_has_a_row_an_unknown_prompt_too(tmp_path):
    known = target(VOLUME, 0.9, np.s_[2, 5:15, 5:15])
    one = picture(montage(Proposals(VOLUME, (known,)), tmp_path / "one.png"))
    two = picture(montage(Proposals(VOLUME, (known, UNKNOWN)), tmp_path / "two.png"))
    assert len(two) > 1.8 * len(one)
    assert (two[len(one) :] < 128).any()  # its words stand there


@pytest.mark.parametrize("words", ["$x_{liver$ and $", "肝臓", "a\nb"])
def test_any_words_of_a_prompt_can_be_drawn(words, tmp_path):
    asked = TargetProposals(Prompt(words), None, Outcome.UNKNOWN_PROMPT)
    named = TargetProposals(Prompt(words), words, Outcome.FOUND, 0.9, np.ones((1, *FLAT.shape), np.float16))
    montage(Proposals(FLAT, (asked, named)), tmp_path / "m.png")


def test_unknown_prompts_alone_make_a_picture(tmp_path):
    assert (picture(montage(Proposals(FLAT, (UNKNOWN,)), tmp_path / "m.png")) < 128).any()


@pytest.mark.parametrize(
    ("value", "where"),
    [(0.0, ...), (1.0, ...), (0.3, ...), (1.0, np.s_[:, :1, :1]), (1.0, np.s_[:, 19:, :])],
    ids=["empty", "full", "likely nowhere", "one corner", "last row"],
)
def test_masks_of_any_extent_are_drawn_without_complaint(value, where, tmp_path):
    montage(Proposals(FLAT, (target(FLAT, value, where),)), tmp_path / "m.png")


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 40), (3, 50, 1)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_scans_one_voxel_wide_are_drawn(shape, value, tmp_path):
    scan = Scan(np.zeros(shape, np.float32), FLAT_AFFINE)
    montage(Proposals(scan, (target(scan, value),)), tmp_path / "m.png")


def test_the_slice_shown_is_the_one_with_most_of_the_target(tmp_path):
    """A bright slice among dark ones shows where it looks."""
    voxels = np.zeros((6, 30, 40), np.float32)
    voxels[:, :, 33] = 1.0
    scan = Scan(voxels, np.diag([1.0, 1, 3, 1]))
    shown, hidden = (target(scan, 0.9, np.s_[:, 10:20, k]) for k in (33, 5))
    bright = picture(montage(Proposals(scan, (shown,)), tmp_path / "a.png"))[60:260, 20:290].mean()
    dark = picture(montage(Proposals(scan, (hidden,)), tmp_path / "b.png"))[60:260, 20:290].mean()
    assert bright > dark + 50


@pytest.fixture
def titles(monkeypatch):
    """The titles of a montage's panels, row by row, and how many outlines each panel has."""

    def of(*targets, scan=VOLUME):
        figures = []
        monkeypatch.setattr("delineate.pictures.write_figure", lambda figure, path: figures.append(figure))
        montage(Proposals(scan, targets), "nowhere.png")
        return [(axis.get_title(), len(axis.collections)) for axis in figures[0].axes]

    return of


def halves(left, right, shape=VOLUME.shape):
    """`left` proposals of one half and `right` of the other."""
    drawn = np.zeros((left + right, *shape), np.float16)
    drawn[:left, :, :, : shape[2] // 2] = 1
    drawn[left:, :, :, shape[2] // 2 :] = 1
    return drawn


REACHES = "the score 0.900 reaches 0.600; below it would be likely\nabsent"


def test_distinct_proposals_are_shown_with_their_share_and_how_far_they_agree(titles):
    torn = replace(target(VOLUME), drawn=halves(3, 1))
    assert titles(torn) == [
        (
            f"liver, slice 1 of 40\nconsensus: found, score 0.90\n{REACHES}; 25% of the proposals differ from the first",
            1,
        ),
        ("proposal 0, for 75% of 4\ndistinct 1 of 2, agrees 0.67", 1),
        ("proposal 3, not here, for 25% of 4\ndistinct 2 of 2, agrees 0.00", 0),
        ("doubt (bits)", 0),
    ]


def test_where_one_stands_for_all_the_bare_scan_is_shown_too(titles):
    alike = target(FLAT, 1.0, np.s_[:, 5:15], n=3)
    assert titles(alike, scan=FLAT) == [
        (f"liver\nconsensus: found, score 0.90\n{REACHES}", 1),
        ("proposal 0, for 100% of 3\ndistinct 1 of 1, agrees 1.00", 1),
        ("scan", 0),
        ("doubt (bits)", 0),
    ]


def test_what_is_likely_absent_expects_no_dice(titles):
    absent = replace(target(FLAT), outcome=Outcome.LIKELY_ABSENT, score=0.0)
    assert [title for title, _ in titles(absent, scan=FLAT)[:2]] == [
        "liver\nconsensus: likely absent, score 0.00\nthe score 0.000 stays below 0.600, from where on it would\nbe found",
        "proposal 0, empty, for 100% of 2\ndistinct 1 of 1",
    ]


def outline(mask):
    axis = Figure().subplots()
    axis.imshow(mask)
    limits = axis.get_xlim(), axis.get_ylim()
    contour(axis, mask, "red", 1.0)
    assert (axis.get_xlim(), axis.get_ylim()) == limits  # the picture stays where it is
    return [path for c in axis.collections for path in c.get_paths() if len(path.vertices)]


def test_an_empty_mask_leaves_no_mark():
    assert outline(np.zeros((5, 5), bool)) == []


@pytest.mark.parametrize("where", [np.s_[2:4, 2:4], np.s_[:2, :3], np.s_[:, :]], ids=["inside", "corner", "full"])
def test_an_outline_lies_on_the_edge_of_the_mask_at_the_border_too(where):
    mask = np.zeros((6, 8), bool)
    mask[where] = True
    (path,) = outline(mask)
    rows, columns = np.nonzero(mask)
    x, y = path.vertices.T
    assert (x.min(), x.max()) == (columns.min() - 0.5, columns.max() + 0.5)
    assert (y.min(), y.max()) == (rows.min() - 0.5, rows.max() + 0.5)


def log(n):
    return [{"images": 8 * i, "seconds": i, "loss": 1 / (i + 1)} for i in range(n)]


@pytest.mark.parametrize("length", [1, 9, 10, 300])
def test_training_curves_of_any_length(length, tmp_path):
    one = picture(training_curves({"encoder": log(length)}, tmp_path / "one.png"))
    two = picture(training_curves({"encoder": log(length), "control": log(5)}, tmp_path / "two.png"))
    assert two.shape[1] > 1.8 * one.shape[1]


def summary(**dice):
    return {"targets": {k: {"consensus_dice": v, "single_dice": v - 0.1} for k, v in dice.items()}}


def test_dice_of_several_evaluations_that_share_not_every_target(tmp_path):
    path = dice_chart({"a": summary(liver=0.9, spleen=0.8), "b": summary(liver=0.5, aorta=0.2)}, tmp_path / "d.png")
    assert picture(path).shape[1] >= 500


def test_drawing_changes_nothing_of_matplotlib_s_own(tmp_path):
    settings, backend = dict(mpl.rcParams), mpl.get_backend()
    montage(Proposals(FLAT, (target(FLAT, 1.0), UNKNOWN)), tmp_path / "m.png")
    training_curves({"a": log(20)}, tmp_path / "c.png")
    dice_chart({"a": summary(liver=0.9)}, tmp_path / "d.png")
    assert dict(mpl.rcParams) == settings
    assert mpl.get_backend() == backend
    assert {p.name for p in tmp_path.iterdir()} == {"m.png", "c.png", "d.png"}  # nothing temporary
    import sys

    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def adapted(targets):
    """The chart's bars {kind: heights}, and their middles, of `adaptation_chart`."""
    (axis,) = adaptation_chart(targets, "better: Dice 0.5 before, 0.8 after").axes
    heights = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axis.containers}
    middles = {bars.get_label(): [bar.get_x() + bar.get_width() / 2 for bar in bars] for bars in axis.containers}
    return axis, heights, middles


def test_an_adaptation_has_a_bar_for_every_figure_in_the_order_of_events():
    targets = {
        "liver": {"source after": 0.85, "after": 0.8, "before": 0.5, "source before": 0.9},
        "left kidney": {"before": 0.2, "after": 0.7, "source before": 0.6, "source after": 0.5},
    }
    axis, heights, middles = adapted(targets)
    assert heights == {kind: [targets[name][kind] for name in targets] for kind in heights}
    assert list(heights) == ["before", "after", "source before", "source after"]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == list(heights)
    assert [label.get_text() for label in axis.get_xticklabels()] == list(targets)
    assert axis.get_ylim() == (0, 1)
    for place in range(len(targets)):
        bars = [middles[kind][place] for kind in heights]
        assert bars == sorted(bars)
        assert np.mean(bars) == pytest.approx(place)
        assert max(bars) - min(bars) < 0.8  # targets stay apart


def test_what_was_not_measured_has_no_bar():
    _, heights, _ = adapted({"liver": {"before": 0.5, "after": 0.8}, "gizmo": {"after": 0.7}})
    assert heights == {"before": [0.5, 0], "after": [0.8, 0.7]}
    _, heights, middles = adapted({"liver": {"after": 0.8}})
    assert heights == {"after": [0.8]}
    assert middles["after"] == pytest.approx([0])


@pytest.mark.parametrize("count", [1, 12])
def test_an_adaptation_of_any_number_of_targets_can_be_drawn(count, tmp_path):
    targets = {f"target number {n}": {"before": 0.1, "after": 0.9} for n in range(count)}
    write_figure(adaptation_chart(targets, "no clear change: " + "words " * 20), tmp_path / "dice.png")
    seen = picture(tmp_path / "dice.png")
    assert seen.shape[1] >= 100 * max(4.8, 1.2 * count)
    for colour in ("#9aa5b1", "#1f77b4"):
        rgb = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (seen == rgb).all(-1).sum() > 100


@pytest.mark.parametrize(("scan", "slices"), [(VOLUME, 3), (FLAT, 1), (COLOUR, 1)], ids=["volume", "flat", "colour"])
def test_slices_stand_side_by_side_with_their_masks(scan, slices, tmp_path):
    mask = np.zeros(scan.shape, bool)
    mask[:, 5:15, 5:15] = True
    row = tiles_of(scan, {"liver": mask}, slices, "told")
    assert len(row) == slices
    assert all(tile.masks["liver"].shape == tile.picture.shape[:2] for tile in row)
    assert all(tile.picture.min() >= 0 and tile.picture.max() <= 1 for tile in row)
    assert row[0].title.startswith("told, slice " if slices > 1 else "told")
    bare = picture(tiles({"scan": tiles_of(scan, {}, slices)}, tmp_path / "bare.png"))
    both = picture(tiles({"scan": tiles_of(scan, {}, slices), "found": row}, tmp_path / "both.png"))
    assert len(both) > 1.5 * len(bare)
    assert both.std() > 10


def test_a_large_picture_is_thinned_and_no_mask_in_it_is_lost():
    mask = np.zeros((5000, 3001), bool)
    mask[4999, 3000] = mask[1, 1] = True
    small = pictures.thinned(mask)
    assert max(small.shape) <= pictures.MOST_PIXELS
    assert small.sum() == 2
    assert small[-1, -1]
    assert pictures.thinned(np.zeros((5000, 3001, 3))).shape == (*small.shape, 3)
    assert pictures.thinned(mask[:100, :90]).shape == (100, 90)
