import pytest
from tests.data.test_twins import write_twins

from delineate.cli.progress import progress_bar
from delineate.cli.telling import err, listening
from delineate.data.folds import Fold
from delineate.jobs.evaluate import EvaluateRequest, evaluate_model
from delineate.jobs.train import TrainRequest, train_system


class Listener:
    """A `Watch` that keeps what it is told for a person."""

    def __init__(self):
        self.lines = []

    def start(self, what, done=0.0): ...

    def update(self, done, note=""): ...

    def say(self, line):
        self.lines.append(line)


@pytest.fixture
def folder(tmp_path):
    return write_twins(tmp_path / "set")


def trained(folder, output, fold=None):
    watch = Listener()
    request = TrainRequest("unet", [folder], images=4, target=["polyp"], fold=fold, calibrate=False)
    train_system(request, output, watch=watch)
    return watch.lines


def scored(folder, model, output, split, fold=None):
    watch = Listener()
    request = EvaluateRequest(folder, model, split=split, n=1, target=["polyp"], fold=fold)
    evaluate_model(request, output, watch=watch)
    return watch.lines


def test_twins_across_splits_are_told_once_and_never_dropped(folder, tmp_path):
    (line,) = trained(folder, tmp_path / "model")
    assert "set: 3 train subjects look like held-out ones (p1 like p5, " in line
    (line,) = scored(folder, tmp_path / "model", tmp_path / "report", "test")
    assert "a train subject looks like held-out ones (p2 like p6), so figures on test flatter" in line
    assert scored(folder, tmp_path / "model", tmp_path / "again", "train") == []


def test_nothing_is_told_of_a_fold(folder, tmp_path):
    assert trained(folder, tmp_path / "model", Fold(1, 3)) == []
    assert scored(folder, tmp_path / "model", tmp_path / "report", "test", Fold(1, 3)) == []


def test_the_bar_prints_what_is_said_and_it_stays(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    for quiet in (False, True):
        with listening(), progress_bar(err, quiet=quiet) as bar:
            bar.say("busi: [bold] a line that is longer than the terminal")
    told = capsys.readouterr().err
    assert told == "delineate: busi: [bold] a line that is longer than the terminal\n" * 2
