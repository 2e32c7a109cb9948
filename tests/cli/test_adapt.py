"""The commands `adapt` and `merge`, and `--adapter` elsewhere, as a person or a script calls them."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from delineate.cli.app import app
from delineate.data.phantom import write_phantom_dataset
from delineate.errors import DelineateError
from delineate.model_folder import save_model
from delineate.segmenter import Segmenter

runner = CliRunner()


@pytest.fixture(scope="module")
def base(trained, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "ct-model"
    save_model(folder, trained["unet"], "unet", training={"datasets": ["abdomen"]}, card="A base.\n")
    return folder


@pytest.fixture(scope="module")
def mr(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mr") / "mr_abdomen"
    return write_phantom_dataset(folder, cases=6, modality="MR", shape=(10, 64, 64), missing=(), seed=50)


@pytest.fixture(scope="module")
def adapter(base, mr, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("adapter") / "to-mr"
    done = call("adapt", base, f"{mr}=liver,spleen", "-o", folder, "--shots", "3", "--images", "400", "--threads", "1")
    assert done.exit_code == 0, done.output
    return folder


def call(*words):
    return runner.invoke(app, [str(word) for word in words])


def test_adapt_prints_the_table_and_the_verdict(base, mr, tmp_path):
    done = call(
        "adapt", base, f"{mr}=liver,spleen", "-o", tmp_path / "a", "--shots", "2", "--images", "16", "--rank", "2"
    )
    assert done.exit_code == 0, done.output
    assert "before" in done.output
    assert "after" in done.output
    assert "held-out subject" in done.output
    assert "parameters" in done.output
    assert str(tmp_path / "a") in done.output


def test_json_has_every_figure_and_nothing_else_on_standard_output(base, mr, tmp_path):
    done = call("adapt", base, f"{mr}=liver", "-o", tmp_path / "a", "--shots", "2", "--images", "16", "--json")
    report = json.loads(done.stdout)
    assert {"adapter", "targets", "held_out", "verdict", "checks", "own_parameters", "training"} <= report.keys()
    assert report["training"]["shots"] == 2


def test_segment_with_an_adapter_writes_masks_and_names_it_in_the_run(adapter, base, mr, tmp_path):
    scan = sorted((mr / "imagesTr").iterdir())[-1]
    done = call("segment", scan, "-p", "liver", "-m", base, "--adapter", adapter, "-o", tmp_path, "--json", "-n", "2")
    report = json.loads(done.stdout)
    assert done.exit_code == 0
    assert report["adapter_sha256"]
    (target,) = report["cases"][0]["targets"]
    assert 0 <= target["doubt"] <= 1
    assert target["unusual"] == (target["outcome"] == "found" and target["doubt"] > target["usual_doubt"])
    without = call("segment", scan, "-p", "liver", "-m", base, "-o", tmp_path, "--json", "--resume", "-n", "2")
    case = json.loads(without.stdout)["cases"][0]
    assert case["status"] == "done"  # not the one that was finished with the adapter
    assert "usual_doubt" not in case["targets"][0]


def test_an_unusual_scan_is_pointed_out(adapter, base, mr, tmp_path, monkeypatch):
    from delineate.proposals import proposals

    monkeypatch.setattr(proposals.TargetProposals, "doubt", property(lambda self: 0.99))
    scan = sorted((mr / "imagesTr").iterdir())[-1]
    done = call("segment", scan, "-p", "liver", "-m", base, "-a", adapter, "-o", tmp_path, "-n", "1")
    assert "the doubt about 'liver', 0.99, is above what was usual" in done.output


def test_the_vocabulary_of_an_adapter_decides_what_is_known(adapter, base, mr, tmp_path):
    scan = sorted((mr / "imagesTr").iterdir())[-1]
    with pytest.raises(DelineateError, match="'aorta' is not in this model's vocabulary"):
        runner.invoke(
            app, ["segment", str(scan), "-p", "aorta", "-m", str(base), "-a", str(adapter), "-o", str(tmp_path)],
            catch_exceptions=False,
        )  # fmt: skip


def test_evaluate_with_an_adapter(adapter, base, mr, tmp_path):
    done = call("evaluate", f"{mr}=liver,spleen", "-m", base, "-a", adapter, "-o", tmp_path, "-n", "1", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["adapter_sha256"]


def test_merge_writes_a_model_that_needs_no_adapter(adapter, base, tmp_path):
    done = call("merge", base, adapter, "-o", tmp_path / "merged")
    assert done.exit_code == 0, done.output
    assert "liver" in Segmenter.load(tmp_path / "merged").vocabulary.names
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["training"]["adapter"]["subjects"] == 3


def test_an_adapter_that_prepares_scans_cannot_be_merged(base, mr, tmp_path):
    scans = mr / "imagesTr"
    words = ["-o", tmp_path / "a", "--shots", "1", "--images", "8", "--unlabelled", scans]
    assert call("adapt", base, f"{mr}=liver", *words).exit_code == 0
    done = call("merge", base, tmp_path / "a", "-o", tmp_path / "merged")
    assert isinstance(done.exception, DelineateError)
    assert "prepares scans (--n4, --unlabelled), which no model folder can say" in str(done.exception)
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--kind", "dora"], "--kind is one of lora, salt, full, decoder; got 'dora'"),
        (["--shots", "many"], "--shots is a number from 1, or all; got 'many'"),
        (["--shots", "0"], "--shots is a number from 1, or all; got '0'"),
        (["--hold-out", "test"], "--hold-out is one of auto, val, rest, one-out, none; got 'test'"),
        (["--targets", "norms"], "--targets is one of all, attention, convolutions; got 'norms'"),
        (["--augmentation", "wild"], "--augmentation is one of"),
        (["--map", "liver"], "--map is LABEL=NAME"),
        (["--minutes", "1", "--images", "8"], "give --minutes or --images, not both"),
    ],
)
def test_wrong_words_are_wrong_usage(base, mr, tmp_path, words, message):
    done = call("adapt", base, mr, "-o", tmp_path / "a", *words)
    assert done.exit_code == 2
    assert message in " ".join(done.output.replace("│", " ").split())
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots", "99"], "99 shots were asked for, its train split has"),
        (["--map", "spleeen=liver"], "has no label 'spleeen'"),
        (["--source", "nowhere"], "nowhere"),
        (["--slices", "9999"], "9999 slices were asked for"),
        (["--unlabelled", "nowhere"], "nowhere: no such file or folder"),
    ],
)
def test_what_cannot_be_done_ends_in_one_line(base, mr, tmp_path, words, message):
    with pytest.raises(DelineateError, match=message):
        runner.invoke(
            app, ["adapt", str(base), str(mr), "-o", str(tmp_path / "a"), "--images", "8", *words],
            catch_exceptions=False,
        )  # fmt: skip


@pytest.mark.slow  # adapts the model that ships
def test_the_model_that_ships_is_called_house(mr, tmp_path):
    """It knows liver and spleen by itself; 16 images show that the door is open, no more."""
    done = call("adapt", "house", f"{mr}=liver", "-o", tmp_path / "a", "--shots", "1", "--images", "8", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "a" / "adapter.json").read_text())["base"]["name"] == "house"
