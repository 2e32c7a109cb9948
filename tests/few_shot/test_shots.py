from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delineate.data.dataset import Case, Dataset, open_dataset
from delineate.data.synthetic import Origin
from delineate.errors import DatasetError
from delineate.few_shot.shots import HOLD_OUT, Shots, draw_shots, draw_slices, only

TRAIN, VAL, TEST = (tuple(f"{part}{n}" for n in range(count)) for part, count in (("t", 8), ("v", 2), ("x", 3)))
SPLITS = {"train": TRAIN, "val": VAL, "test": TEST}


@pytest.fixture
def dataset(tmp_path):
    """Every subject has a case of its own; no file is there, and none is needed."""
    return dataset_of(tmp_path, [(name, name) for name in (*TRAIN, *VAL, *TEST)], SPLITS)


def dataset_of(root, cases, splits):
    """Labelled cases (name, subject)."""
    made = (Case(name, subject, root / f"{name}.png", root / f"{name}_mask.png") for name, subject in sorted(cases))
    return Dataset(root, "set", "MR", {"liver": 1}, tuple(made), splits)


def unlabelled(dataset, *names):
    cases = (replace(case, labels=None) if case.name in names else case for case in dataset.cases)
    return replace(dataset, cases=tuple(cases))


# who is drawn


@pytest.mark.parametrize("hold_out", HOLD_OUT)
@pytest.mark.parametrize("seed", range(4))
def test_draws_of_one_seed_are_nested_and_repeat(dataset, hold_out, seed):
    draws = [draw_shots(dataset, count, hold_out=hold_out, seed=seed).drawn for count in range(2, 8)]
    assert draws == [draw_shots(dataset, count, hold_out=hold_out, seed=seed).drawn for count in range(2, 8)]
    for count, (fewer, more) in enumerate(pairwise(draws), start=2):
        assert len(set(fewer)) == count
        assert set(fewer) < set(more) < set(TRAIN)


def test_other_seeds_draw_others_and_all_are_drawn_by_some(dataset):
    draws = [set(draw_shots(dataset, 3, seed=seed).drawn) for seed in range(20)]
    assert len(set(map(frozenset, draws))) > 10
    assert set.union(*draws) == set(TRAIN)


def test_the_order_of_cases_does_not_count(dataset):
    turned = replace(dataset, cases=dataset.cases[::-1])
    assert draw_shots(turned, 3) == draw_shots(dataset, 3)


@given(st.integers(1, 8), st.sampled_from(HOLD_OUT), st.integers(0, 5), st.booleans())
@settings(deadline=None, max_examples=60)
def test_nobody_is_asked_whom_the_rule_forbids(tmp_path_factory, count, hold_out, seed, split):
    whole = dataset_of(tmp_path_factory.getbasetemp(), [(s, s) for s in TRAIN + VAL + TEST], SPLITS)
    dataset = whole if split else replace(whole, splits={}, cases=whole.cases[: len(TRAIN)])
    try:
        shots = draw_shots(dataset, count, hold_out=hold_out, seed=seed)
    except DatasetError:
        assert hold_out in ("val", "rest", "one-out")  # auto always can
        return
    assert len(shots.drawn) == count
    assert set(shots.drawn) <= set(TRAIN)
    assert not {*shots.drawn, *shots.held_out} & set(TEST)
    assert shots.rule in HOLD_OUT
    assert hold_out in ("auto", shots.rule)
    assert set(shots.drawn) & set(shots.held_out) == (set(shots.drawn) if shots.rule == "one-out" else set())


def test_subjects_are_drawn_not_cases(tmp_path):
    dataset = dataset_of(tmp_path, [(f"c{n}", f"s{n // 3}") for n in range(12)], {})
    shots = draw_shots(dataset, 3)
    assert len(shots.drawn) == 3
    assert {*shots.drawn, *shots.held_out} == {"s0", "s1", "s2", "s3"}


def test_who_has_no_labels_is_neither_drawn_nor_asked(dataset):
    some = unlabelled(dataset, "t0", "t1", "t2", "v0")
    shots = draw_shots(some, None)
    assert set(shots.drawn) == set(TRAIN[3:])
    assert shots.held_out == ("v1",)
    assert draw_shots(unlabelled(some, "v1"), None).rule == "one-out"


def test_a_subject_with_one_labelled_case_of_two_counts(tmp_path):
    dataset = dataset_of(tmp_path, [("a1", "a"), ("a2", "a"), ("b1", "b")], {})
    assert set(draw_shots(unlabelled(dataset, "a1"), None).drawn) == {"a", "b"}
    assert [case.name for case in only(unlabelled(dataset, "a1"), ["a"]).cases] == ["a2"]


def test_none_takes_all(dataset):
    assert set(draw_shots(dataset, None).drawn) == set(TRAIN)
    assert set(draw_shots(replace(dataset, splits={}), None).drawn) == {*TRAIN, *VAL, *TEST}


@pytest.mark.parametrize("count", [0, -1, 9])
def test_too_many_shots_or_none_at_all_are_refused(dataset, count):
    with pytest.raises(DatasetError, match=f"{count} shots were asked for, its train split has 8 labelled subjects"):
        draw_shots(dataset, count)


def test_a_dataset_without_splits_says_so_where_it_is_too_small(dataset):
    few = replace(dataset, splits={}, cases=dataset.cases[:3])
    with pytest.raises(DatasetError, match="4 shots were asked for, it has 3 labelled subjects") as caught:
        draw_shots(few, 4)
    assert str(dataset.root) in str(caught.value)
    with pytest.raises(DatasetError, match="it has 0 labelled subjects"):
        draw_shots(unlabelled(few, "t0", "t1", "t2"), None)


def test_splits_that_leak_are_refused(dataset):
    with pytest.raises(DatasetError, match="subject 't0' is in both 'train' and 'val'"):
        draw_shots(replace(dataset, splits={**SPLITS, "val": ("t0",)}), 2)


# by whom is checked


def test_auto_takes_the_first_that_can_be(dataset):
    shots = draw_shots(dataset, 3)
    assert (shots.rule, shots.held_out) == ("val", VAL)
    no_val = replace(dataset, splits={**SPLITS, "val": ()}, cases=tuple(c for c in dataset.cases if c.name[0] != "v"))
    shots = draw_shots(no_val, 3)
    assert shots.rule == "rest"
    assert shots.held_out == tuple(sorted(set(TRAIN) - set(shots.drawn)))
    shots = draw_shots(no_val, 8)
    assert (shots.rule, shots.held_out) == ("one-out", shots.drawn)
    single = replace(no_val, splits={**no_val.splits, "train": TRAIN[:1]})
    assert draw_shots(single, 1) == Shots(("t0",), (), "none")


def test_auto_without_splits_holds_out_the_rest(dataset):
    everybody = replace(dataset, splits={})
    shots = draw_shots(everybody, 5)
    assert shots.rule == "rest"
    assert sorted((*shots.drawn, *shots.held_out)) == sorted((*TRAIN, *VAL, *TEST))
    assert draw_shots(everybody, 13).rule == "one-out"


def test_splits_without_a_val_list_have_no_val_split(dataset):
    no_val = replace(dataset, splits={"train": TRAIN, "test": TEST})
    assert draw_shots(no_val, 3).rule == "rest"
    with pytest.raises(DatasetError, match="--hold-out val needs a val split"):
        draw_shots(no_val, 3, hold_out="val")


@pytest.mark.parametrize("hold_out", HOLD_OUT[1:])
def test_what_is_asked_for_is_what_is_done_and_draws_the_same(dataset, hold_out):
    shots = draw_shots(dataset, 3, hold_out=hold_out)
    assert shots.rule == hold_out
    assert shots.drawn == draw_shots(dataset, 3).drawn
    others = set(TRAIN) - set(shots.drawn)
    held_out = {"val": set(VAL), "rest": others, "one-out": set(shots.drawn), "none": set()}
    assert set(shots.held_out) == held_out[hold_out]


@pytest.mark.parametrize(
    ("hold_out", "count", "needs"),
    [("val", 3, "a val split"), ("rest", 8, "labelled subjects beyond the shots"), ("one-out", 1, "two shots or more")],
)
def test_rules_that_cannot_be_followed_say_what_they_need(dataset, hold_out, count, needs):
    no_val = replace(dataset, splits={**SPLITS, "val": ()})
    with pytest.raises(DatasetError, match=f"--hold-out {hold_out} needs {needs}; take another, or auto") as caught:
        draw_shots(no_val, count, hold_out=hold_out)
    assert "\n" not in str(caught.value)


def test_a_rule_that_is_none_is_refused(dataset):
    with pytest.raises(ValueError, match="one of auto, val, rest, one-out, none; got 'half'"):
        draw_shots(dataset, 3, hold_out="half")


# the dataset of a few


def test_of_a_few_subjects_all_labelled_cases_are_there_and_nothing_else(tmp_path):
    dataset = dataset_of(tmp_path, [(f"c{n}", f"s{n // 3}") for n in range(12)], {"train": ("s0", "s1", "s2", "s3")})
    few = only(unlabelled(dataset, "c4"), ["s3", "s1"])
    assert {case.name for case in few.cases} == {"c3", "c5", "c9", "c10", "c11"}
    assert few.split("train") == few.split("all") == few.cases
    assert few.split("val") == few.split("test") == ()
    assert replace(few, cases=dataset.cases, splits=dataset.splits) == dataset


def test_whatever_split_they_were_in_they_are_learnt_from(dataset):
    few = only(dataset, ["v0", "x1", "t2"])
    assert {case.subject for case in few.split("train")} == {"v0", "x1", "t2"}


def test_synthetic_cases_are_left_out(tmp_path):
    made = {"a_syn0": Origin("a", 0, (0, 1))}
    dataset = dataset_of(tmp_path, [("a", "a"), ("a_syn0", "a"), ("b", "b"), ("syn_only", "c")], {})
    dataset = replace(dataset, origins=made | {"syn_only": Origin("b", 0, (0, 1))})
    few = only(dataset, ["a"])
    assert [case.name for case in few.cases] == ["a"]
    assert few.synthetic("train") == ()
    assert set(draw_shots(dataset, None).drawn) == {"a", "b"}


def test_a_few_of_a_real_folder_are_read(phantom_dataset):
    dataset = open_dataset(phantom_dataset, targets=["liver"])
    shots = draw_shots(dataset, 2)
    assert (shots.rule, shots.held_out) == ("val", dataset.splits["val"])
    few = only(dataset, shots.drawn)
    assert {case.subject for case in few.split("train")} == set(shots.drawn)
    scan, ids = few.read(few.cases[0])
    assert scan.shape == ids.shape == (64, 64, 10)
    assert few.vocabulary() == dataset.vocabulary()


# the slices of a few


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), max_size=60), st.integers(0, 60), st.integers(0, 3))
@settings(deadline=None, max_examples=150)
def test_slices_show_a_target_and_come_evenly_from_all_subjects(slices, count, seed):
    shown, subject = [s for s, _ in slices], [who for _, who in slices]
    there = Counter(who for does, who in slices if does)
    if count > sum(there.values()):
        with pytest.raises(DatasetError, match=f"{count} slices were asked for, {sum(there.values())} of the shots"):
            draw_slices(shown, subject, count, seed)
        return
    drawn = draw_slices(shown, subject, count, seed)
    assert len(drawn) == len(set(drawn)) == count
    assert drawn == sorted(drawn) == draw_slices(shown, subject, count, seed)
    assert all(type(place) is int and shown[place] for place in drawn)
    taken = Counter(subject[place] for place in drawn)
    for who in there:  # nobody gives one more than another who has more to give
        assert taken[who] >= min(there[who], max(taken.values(), default=0) - 1)


def test_too_few_slices_are_refused_with_how_many_there_are():
    with pytest.raises(DatasetError, match="3 slices were asked for, 2 of the shots show a target; ask for fewer"):
        draw_slices([True, False, True], [0, 0, 1], 3, seed=0)


def test_slices_of_one_seed_are_nested_and_of_others_different():
    shown, subject = [True] * 40, [place // 10 for place in range(40)]
    draws = [set(draw_slices(shown, subject, count, seed=0)) for count in (4, 9, 40)]
    assert draws[0] < draws[1] < draws[2]
    assert sorted(place // 10 for place in draws[0]) == [0, 1, 2, 3]
    assert len({tuple(draw_slices(shown, subject, 4, seed)) for seed in range(20)}) > 10
    assert set().union(*(draw_slices(shown, subject, 4, seed) for seed in range(60))) == set(range(40))
