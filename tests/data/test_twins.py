from dataclasses import replace

import pytest
from tests.data.test_likeness import as_jpeg, saved, scene

from delineate.data import open_dataset
from delineate.data.check import check_dataset
from delineate.data.folds import Fold, fold_of, held_out
from delineate.data.twins import twins_across, twins_in_words, twins_learnt_from, without_twins
from delineate.storage.files import write_json

SPLITS = {"train": ["p0", "p1", "p2", "p3", "p4", "p8"], "val": ["p5"], "test": ["p6", "p7"]}
NAMES = [f"p{number}" for number in range(9)]


def write_twins(root, splits=SPLITS):
    """Nine pictures and masks; of train p1 and p8 look like p5 of val, p2 like p6 of test, p3 like p4, also of train."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number, name in enumerate(NAMES):
        saved(root / "masks" / f"{name}.png", 255 * (scene(number) > 150))
        looks = {5: 1, 8: 1, 6: 2, 4: 3}.get(number, number)
        (saved if looks == number else as_jpeg)(root / "images" / f"{name}.png", scene(looks))
    saved(root / "images" / "p8.png", scene(1) + 5)
    (root / "images" / "p8.jpg").unlink()
    if splits:
        write_json(root / "splits.json", splits)
    return root


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(write_twins(tmp_path / "set"), targets=["polyp"])


def test_twins_across_are_told_with_those_they_look_like(dataset):
    assert twins_across(dataset) == {"p1": ("p5",), "p8": ("p5",), "p2": ("p6",)}
    assert twins_across(dataset, ("test",)) == {"p2": ("p6",)}
    assert twins_across(replace(dataset, splits={})) == twins_across(replace(dataset, splits={"train": ("p0",)})) == {}


def test_without_twins_leaves_them_out_of_train_and_touches_nothing_else(dataset):
    rest = without_twins(dataset)
    assert rest.splits == {"train": ("p0", "p3", "p4"), "val": ("p5",), "test": ("p6", "p7")}
    assert (rest.cases, rest.split("test"), rest.root) == (dataset.cases, dataset.split("test"), dataset.root)
    assert twins_across(rest) == {}
    assert without_twins(rest) is rest


def test_the_line_counts_names_a_few_and_says_what_to_do(dataset):
    assert twins_in_words(dataset) == (
        "set: 3 train subjects look like held-out ones (p1 like p5, p8 like p5, p2 like p6), so figures on val and test "
        "flatter; see delineate check, and put those alike into one split, or use --fold"
    )
    assert "a train subject looks like held-out ones (p2 like p6), so figures on test" in twins_in_words(
        dataset, ("test",)
    )
    assert twins_in_words(without_twins(dataset)) is None


def test_who_learnt_from_twins_is_told_before_it_is_scored_and_who_did_not_is_not(dataset):
    with_them, without = held_out([dataset], None), held_out([without_twins(dataset)], None)
    assert "(p2 like p6)" in twins_learnt_from(with_them, dataset, "test")
    assert "(p1 like p5, p8 like p5)" in twins_learnt_from(with_them, dataset, "val")
    assert twins_learnt_from(without, dataset, "test") is None
    assert twins_learnt_from(without + with_them, dataset, "test")  # a foundation that saw them, say
    assert twins_learnt_from([{"name": "set", "fold": None}], dataset, "test")  # all that an older model tells
    others = held_out([replace(dataset, name="other", cases=dataset.cases[:3])], None)
    for seen, split in ((others, "test"), ([], "test"), (with_them, "train"), (with_them, "all")):
        assert twins_learnt_from(seen, dataset, split) is None


def test_folds_have_no_twins_across(dataset):
    for number in (1, 2, 3):
        assert twins_across(fold_of(dataset, *Fold(number, 3))) == {}


def test_check_names_the_files_of_each_group_and_the_way_out(dataset):
    problems = check_dataset(dataset.root, targets=["polyp"]).problems
    assert [(problem.file, problem.what, problem.severity) for problem in problems] == [
        ("images/p1.png", "in 'train', looks nearly the same as p8.png in 'train', p5.jpg in 'val'", "warning"),
        ("images/p2.png", "in 'train', looks nearly the same as p6.jpg in 'test'", "warning"),
    ]
    assert all("into one split, use --fold, or train without them" in problem.fix for problem in problems)


def test_check_says_nothing_without_splits_and_tells_equal_files_once(tmp_path):
    assert check_dataset(write_twins(tmp_path / "none", splits=None), targets=["polyp"]).problems == []
    root = write_twins(tmp_path / "set", {"train": [n for n in NAMES if n != "p7"], "val": [], "test": ["p7"]})
    saved(root / "images" / "p7.png", scene(0))
    (problem,) = check_dataset(root, targets=["polyp"]).problems
    assert "the same bytes as p0.png, which is in 'train' while this is in 'test'" in problem.what


def test_twins_of_busi_are_left_out_and_told(shared_data):
    if not (shared_data / "busi").is_dir():
        pytest.skip(f"no real data at {shared_data / 'busi'}")
    dataset = open_dataset(shared_data / "busi", targets=["breast lesion"])
    gone = set(dataset.splits["train"]) - set(without_twins(dataset).splits["train"])
    assert gone == {"malignant_28", "malignant_5", "malignant_6", "normal_49", "normal_5"}
    told = check_dataset(dataset.root, targets=["breast lesion"]).problems
    assert sum("looks nearly the same as" in problem.what for problem in told) == 5
