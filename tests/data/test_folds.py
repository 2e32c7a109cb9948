import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.data.test_dataset import DATA, pictures
from tests.data.test_likeness import as_jpeg, saved, scene

from delineate.data import open_dataset
from delineate.data.dataset import Case, Dataset
from delineate.data.folds import Fold, fold_of, held_out, refuse_seen
from delineate.data.layout import split_faults
from delineate.data.twins import twins_across
from delineate.errors import DatasetError, DelineateError


def dataset_of(folder, images):
    """One case for each (subject, content of its image file)."""
    cases = []
    for number, (subject, content) in enumerate(images):
        path = Path(folder) / f"{number}.png"
        path.write_bytes(content)
        cases.append(Case(f"{number}", subject, path, path))
    return Dataset(Path(folder), "set", None, {"polyp": 1}, tuple(cases))


@pytest.fixture
def twenty(tmp_path):
    """Twenty subjects of one image each, all different."""
    return dataset_of(tmp_path, [(f"s{number:02d}", bytes([number])) for number in range(20)])


SUBJECTS = [f"s{number:02d}" for number in range(24)]
CONTENTS = [bytes([number]) for number in range(40)]  # of one length: few enough that some are the same


@given(
    images=st.lists(st.tuples(st.sampled_from(SUBJECTS), st.sampled_from(CONTENTS)), min_size=6, max_size=40),
    of=st.integers(2, 4),
    seed=st.integers(0, 3),
    shuffle=st.randoms(),
)
@settings(deadline=None, max_examples=60)
def test_folds_keep_groups_whole_and_hold_out_everyone_once(images, of, seed, shuffle):
    with tempfile.TemporaryDirectory() as folder:
        dataset = dataset_of(folder, images)
        assume(subjects_together(images, {subject for subject, _ in images}) > of + 1)
        folds = [fold_of(dataset, number, of, seed) for number in range(1, of + 1)]
        cases = list(dataset.cases)
        shuffle.shuffle(cases)
        again = [fold_of(replace(dataset, cases=tuple(cases)), number, of, seed).splits for number in range(1, of + 1)]
    subjects = {subject for subject, _ in images}
    assert sorted(subject for fold in folds for subject in fold.splits["test"]) == sorted(subjects)
    assert again == [fold.splits for fold in folds]
    for fold in folds:
        home = {subject: part for part, members in fold.splits.items() for subject in members}
        assert home.keys() == subjects
        assert split_faults(fold.splits, subjects) == []
        assert all(fold.splits[part] for part in ("train", "val", "test"))
        for content in {content for _, content in images}:
            assert len({home[subject] for subject, other in images if other == content}) == 1  # no leak
    groups = [subjects_together(images, fold.splits["test"]) for fold in folds]
    assert max(groups) - min(groups) <= 1
    assert all(fold.cases == dataset.cases for fold in folds)


def subjects_together(images, members):
    """How many groups that share an image there are among `members`, by merging until nothing changes."""
    groups = [{subject} for subject in members]
    for content in {content for _, content in images}:
        shared = {subject for subject, other in images if other == content}
        touched = [group for group in groups if group & shared]
        groups = [group for group in groups if not group & shared] + ([set().union(*touched)] if touched else [])
    return len(groups)


def test_duplicates_bind_subjects_in_chains(tmp_path):
    """a and b share an image, b and c another: all three are one group."""
    images = [("a", b"1"), ("b", b"1"), ("b", b"2"), ("c", b"2"), ("d", b"3"), ("e", b"4"), ("f", b"5")]
    for number in range(1, 5):
        splits = fold_of(dataset_of(tmp_path, images), number, 4).splits
        assert sum(bool(set("abc") & set(members)) for members in splits.values()) == 1
    with pytest.raises(DatasetError, match="4 groups of subjects are too few for 5 folds; take fewer"):
        fold_of(dataset_of(tmp_path, images), 1, 5)


def test_pictures_that_look_alike_bind_subjects_too(tmp_path):
    """Every second subject has the picture of the one before it, as JPEG: ten pairs, and no fold parts one."""
    cases = []
    for number in range(20):
        save = as_jpeg if number % 2 else saved
        path = save(tmp_path / f"{number:02d}.png", scene(number // 2))
        cases.append(Case(path.stem, f"s{number:02d}", path, path))
    dataset = Dataset(tmp_path, "set", None, {"polyp": 1}, tuple(cases))
    for number in range(1, 6):
        fold = fold_of(dataset, number, 5)
        assert [len(part) for part in fold.splits.values()] == [14, 2, 4]
        for members in fold.splits.values():
            assert [int(name[1:]) // 2 for name in members[::2]] == [int(name[1:]) // 2 for name in members[1::2]]


def test_several_images_of_a_subject_stay_together(tmp_path):
    dataset = dataset_of(tmp_path, [(f"s{number // 3}", bytes([number])) for number in range(30)])
    fold = fold_of(dataset, 2, 5)
    assert len(fold.splits["test"]) == 2
    assert len(fold.split("test")) == 6


def test_sizes_are_a_fold_a_tenth_and_the_rest(twenty):
    for number in range(1, 5):
        assert [len(part) for part in fold_of(twenty, number, 4).splits.values()] == [13, 2, 5]
    assert [len(part) for part in fold_of(twenty, 1, 4, val=0.0).splits.values()] == [15, 0, 5]
    assert [len(part) for part in fold_of(twenty, 1, 3, val=0.001).splits.values()] == [12, 1, 7]


def test_another_seed_divides_otherwise_and_val_does_not_move_the_test_part(twenty):
    first, other = fold_of(twenty, 1, 4), fold_of(twenty, 1, 4, seed=1)
    assert first.splits["test"] != other.splits["test"]
    assert fold_of(twenty, 1, 4, val=0.4).splits["test"] == first.splits["test"]


def test_own_splits_do_not_count_and_are_left_alone(tmp_path):
    root = pictures(tmp_path / "set", names=[f"n{number}" for number in range(8)])
    written = '{"train": ["n0"], "val": [], "test": ["n1"]}'
    (root / "splits.json").write_text(written)
    dataset = open_dataset(root, targets=["polyp"])
    fold = fold_of(dataset, 1, 4)
    assert len(fold.split("test")) == 2
    assert len(dataset.split("test")) == 1
    assert (root / "splits.json").read_text() == written


@pytest.mark.parametrize("text", ["1/4", " 4 / 4 ", "2/10"])
def test_a_fold_is_read_and_written(text):
    assert str(Fold.parse(text)) == text.replace(" ", "")


@pytest.mark.parametrize("text", ["", "0/4", "5/4", "1/1", "1", "1/4/2", "-1/4", "one/4", "1/0"])
def test_what_is_no_fold_is_refused(text):
    with pytest.raises(DelineateError, match="a fold is NUMBER/OF with NUMBER from 1 to OF and OF at least 2, as 1/4"):
        Fold.parse(text)


def test_folds_that_cannot_be_are_refused(twenty, tmp_path):
    with pytest.raises(DelineateError, match="got '21/20'"):
        fold_of(twenty, 21, 20)
    with pytest.raises(DelineateError, match="val is a share"):
        fold_of(twenty, 1, 4, val=1.0)
    with pytest.raises(DatasetError, match="20 groups of subjects are too few for 21 folds"):
        fold_of(twenty, 1, 21)
    few = dataset_of(tmp_path, [("a", b"1"), ("b", b"2")])
    with pytest.raises(DatasetError, match="fold 1/2 leaves no subject to train on; take more folds"):
        fold_of(few, 1, 2)


def test_twins_of_a_real_set_stay_together():
    if not (DATA / "busi").is_dir():
        pytest.skip(f"no real data at {DATA / 'busi'}")
    dataset = open_dataset(DATA / "busi", targets=["breast lesion"])
    folds = [fold_of(dataset, number, 4) for number in range(1, 5)]
    assert sorted(case.name for fold in folds for case in fold.split("test")) == [case.name for case in dataset.cases]
    for fold in folds:
        home = {subject: part for part, members in fold.splits.items() for subject in members}
        for twins in (
            "malignant_4 malignant_5",
            "malignant_6 malignant_7 malignant_8 malignant_9",
            "normal_13 normal_5",
        ):
            assert len({home[subject] for subject in twins.split()}) == 1
        assert twins_across(fold) == {}


# Who may be scored on what


ONE, TWO = Fold(1, 4), Fold(2, 4)


@pytest.mark.parametrize(
    ("trained", "asked", "message"),
    [
        (None, None, ""),
        (ONE, ONE, ""),
        (ONE, TWO, "the model was trained on fold 1/4 of set, on subjects that fold 2/4 holds out; use --fold 1/4, or train"),
        (ONE, Fold(1, 5), "use --fold 1/4, or train one with --fold 1/5"),
        (ONE, None, "the model was trained on fold 1/4 of set, on subjects that splits.json may hold out; add --fold 1/4"),
        (None, ONE, "the model was trained on set without --fold, on subjects that fold 1/4 holds out; train one with --fold 1/4"),
    ],
)  # fmt: skip
def test_only_the_fold_of_the_training_may_be_scored(twenty, trained, asked, message):
    def part(fold):
        return twenty if fold is None else fold_of(twenty, *fold)

    seen = held_out([part(trained)], trained)
    renamed = replace(part(asked), name="copy")  # the subjects say that it is the same
    for dataset, name in ((part(asked), "set"), (renamed, "copy")):
        if message:
            with pytest.raises(DelineateError) as refused:
                refuse_seen(seen, dataset, asked, "the model")
            assert message.replace(" set", f" {name}") in str(refused.value)
            assert "\n" not in str(refused.value)
        else:
            refuse_seen(seen, dataset, asked, "the model")
    by_name = [{"name": "set", "fold": trained and str(trained)}]  # all that an older model tells
    if message:
        with pytest.raises(DelineateError):
            refuse_seen(by_name, part(asked), asked, "the model")
    else:
        refuse_seen(by_name, part(asked), asked, "the model")


def test_a_dataset_that_was_not_trained_on_may_be_scored_in_any_fold(twenty, tmp_path):
    (tmp_path / "other").mkdir()
    other = replace(dataset_of(tmp_path / "other", [("p", b"1"), ("q", b"2"), ("r", b"3")]), name="other")
    for trained in (None, ONE):
        seen = held_out([twenty if trained is None else fold_of(twenty, *trained)], trained)
        for asked in (None, Fold(1, 3)):
            refuse_seen(seen, other if asked is None else fold_of(other, *asked), asked, "the model")


def test_a_fold_that_would_hold_out_others_today_is_refused(twenty):
    seen = held_out([fold_of(twenty, *ONE)], ONE)
    gone = fold_of(twenty, *ONE).splits["test"][0]
    fewer = replace(twenty, cases=tuple(case for case in twenty.cases if case.subject != gone))
    with pytest.raises(DelineateError, match="when that held out other subjects; bring back the files"):
        refuse_seen(seen, fold_of(fewer, *ONE), ONE, "the model")


def test_the_record_names_no_subject(twenty, tmp_path):
    (record,) = held_out([fold_of(twenty, *ONE)], ONE)
    assert "s0" not in str(record)
    assert record["fold"] == "1/4"
    copy = shutil.copytree(twenty.root, tmp_path / "copy")
    assert held_out([fold_of(replace(twenty, root=copy), *ONE)], ONE) == [record]
