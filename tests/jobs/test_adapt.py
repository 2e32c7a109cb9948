"""A model adapted to another kind of scan, from the dataset to the adapter folder and what is said of it."""

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch

from delineate.adapters import AdapterConfig
from delineate.adapters.adapter import attach
from delineate.adapters.folder import in_half, load_adapter, read_adapter
from delineate.data.dataset import open_dataset
from delineate.data.phantom import write_phantom_dataset
from delineate.errors import DatasetError, DelineateError, ModelError
from delineate.evaluation.evaluation import Row
from delineate.few_shot.learning import best_of, training_slices
from delineate.few_shot.report import card_of, figures_of, usual_doubt
from delineate.interaction.marker import Marker, MarkerConfig, build
from delineate.jobs.adapt import AdaptRequest, adapt, with_names
from delineate.jobs.evaluate import EvaluateRequest, evaluate_model
from delineate.model_folder import save_model
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.preparation import Preparation
from delineate.segmenter import Segmenter
from delineate.training.loop import Interrupted

pytestmark = pytest.mark.slow  # whole adaptations, each a training: what cli/test_adapt.py shows once, in all its ways


def adapter_on(folder, base):
    """An adapter in its base, and the segmenter of both."""
    segmenter = Segmenter.load(base)
    adapted, about = load_adapter(folder, segmenter.system, segmenter.fingerprint)
    return adapted, segmenter.adapted(adapted, about.habits, merge=adapted.can_merge)


@pytest.fixture(scope="module")
def base(trained, tmp_path_factory) -> Path:
    """A U-Net that knows liver and spleen in CT."""
    folder = tmp_path_factory.mktemp("base") / "ct-model"
    save_model(folder, trained["unet"], "unet", training={"datasets": ["abdomen"]}, card="A base.\n")
    return folder


@pytest.fixture(scope="module")
def mr(tmp_path_factory) -> Path:
    """Phantoms in MR: 5 train, 1 val, 1 test subject."""
    folder = tmp_path_factory.mktemp("mr") / "mr_abdomen"
    return write_phantom_dataset(folder, cases=7, modality="MR", shape=(10, 64, 64), missing=(), seed=50)


HOW = {"images": 800, "target": ["liver", "spleen"]}


@pytest.fixture(scope="module")
def adapter(base, mr, phantom_dataset, tmp_path_factory) -> tuple[Path, dict]:
    """The usual adapter of three shots, and its report."""
    folder = tmp_path_factory.mktemp("adapter") / "to-mr"
    known = f"{phantom_dataset}=liver,spleen"
    return folder, adapt(AdaptRequest(base, mr, shots=3, source=known, **HOW), folder)


def test_a_few_scans_carry_a_model_to_another_contrast(adapter, base, mr, tmp_path):
    """Better on the val subject it stopped by, and on the test subject that nobody had seen."""
    folder, report = adapter
    held = report["held_out"]
    assert (held["rule"], held["subjects"]) == ("val", 1)
    assert held["after"] > held["before"] + 0.2
    assert report["verdict"] == "seems better"
    assert "too few for an interval" in report["sentence"]
    plain = evaluate_model(EvaluateRequest(mr, base, target=HOW["target"]), tmp_path / "before")
    carried = evaluate_model(EvaluateRequest(mr, base, adapter=folder, target=HOW["target"]), tmp_path / "after")
    assert carried["mean"]["consensus_dice"] > plain["mean"]["consensus_dice"] + 0.2
    assert carried["adapter_sha256"] != carried["model_sha256"]


def test_the_folder_is_small_whole_and_says_all(adapter, base):
    folder, report = adapter
    assert {p.name for p in folder.iterdir()} == {
        *("adapter.json", "adapter.safetensors", "vocabulary.json", "card.md", "dice.png", "manifest.json")
    }
    assert sum(p.stat().st_size for p in folder.iterdir()) < 400_000
    about = read_adapter(folder)
    assert about.base["name"] == "ct-model"
    assert about.training["subjects"] == 3
    assert about.habits.modality == "MR"
    assert set(about.habits.usual_doubt) == {"liver", "spleen"}
    assert report["own_parameters"] < 0.1 * report["base_parameters"]
    card = (folder / "card.md").read_text()
    assert "| liver |" in card
    assert "source after" in card
    assert about.base["sha256"] in card
    text = (folder / "adapter.json").read_text()
    assert "phantom0" not in text  # no subject's name
    assert not [p for p in folder.parent.iterdir() if p.name.startswith(".")]
    assert {p.name for p in folder.with_name("to-mr-training").iterdir()} == {"curves.png", "network"}


def test_the_source_is_looked_at_and_forgetting_is_told(adapter):
    _, report = adapter
    for target in ("liver", "spleen"):
        figures = report["targets"][target]
        assert {"before", "after", "source before", "source after"} == figures.keys()
        assert figures["source before"] >= figures["before"]
    assert report["targets"]["liver"]["source before"] > report["targets"]["liver"]["before"]


def test_what_is_saved_is_what_was_measured(adapter, base, mr):
    """Weights are rounded before they are measured: loading them again changes no bit."""
    folder, _ = adapter
    adapted, segmenter = adapter_on(folder, base)
    before = adapted.weights()
    in_half(adapted)
    assert all(torch.equal(v, before[k]) for k, v in adapted.weights().items())
    scan, _ = open_dataset(mr).read(open_dataset(mr).split("test")[0])
    again = Segmenter.load(base, adapter=folder)
    one, other = segmenter(scan, ["liver"])["liver"], again(scan, ["liver"])["liver"]
    assert (one.probabilities == other.probabilities).all()


def test_the_base_is_the_same_to_the_bit_with_an_adapter_beside_it(adapter, base, mr):
    folder, _ = adapter
    scan, _ = open_dataset(mr).read(open_dataset(mr).split("test")[0])
    plain = Segmenter.load(base)
    plain.marker = Marker(MarkerConfig(64, (8, 16)), build(MarkerConfig(64, (8, 16))))
    before = plain(scan, ["liver", "spleen"])
    adapted = plain.with_adapter(folder)
    assert adapted.habits.modality == "MR"
    assert adapted.marker is plain.marker
    assert (adapted(scan, ["liver"])["liver"].probability() != before["liver"].probability()).any()
    after = plain(scan, ["liver", "spleen"])
    for name in ("liver", "spleen"):
        assert (before[name].probabilities == after[name].probabilities).all()


def test_the_same_call_gives_the_same_adapter_and_another_seed_another(base, mr, tmp_path):
    quick = HOW | {"images": 32}
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        adapt(AdaptRequest(base, mr, shots=2, seed=seed, **quick), tmp_path / name)
    weights = [(tmp_path / name / "adapter.safetensors").read_bytes() for name in ("one", "two", "three")]
    assert weights[0] == weights[1] != weights[2]


def test_an_interrupted_adaptation_goes_on_where_it_was(base, mr, tmp_path, monkeypatch):
    quick = HOW | {"images": 64}
    adapt(AdaptRequest(base, mr, shots=2, **quick), tmp_path / "whole")
    steps = 0

    class Watch:
        def start(self, what: str, done: float = 0.0) -> None: ...

        def update(self, done: float, note: str = "") -> None:
            nonlocal steps
            steps += 1
            if steps == 5:
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="the same command goes on"):
        adapt(AdaptRequest(base, mr, shots=2, **quick), tmp_path / "parted", watch=Watch())
    assert not (tmp_path / "parted").exists()
    with pytest.raises(DelineateError, match="unfinished training with other settings"):
        adapt(AdaptRequest(base, mr, shots=3, **quick), tmp_path / "parted")
    adapt(AdaptRequest(base, mr, shots=2, **quick), tmp_path / "parted")
    one, other = (adapter_on(tmp_path / n, base)[0].weights() for n in ("whole", "parted"))
    assert all(torch.equal(v, other[k]) for k, v in one.items())


def test_what_a_call_left_that_was_stopped_at_its_very_start_is_not_taken_over(base, mr, tmp_path):
    """Its first check is on disk before its first checkpoint; another kind of adapter must not end with it."""
    work = tmp_path / "a-training"
    work.mkdir()
    (work / "checks.json").write_text(json.dumps([{"stage": "start", "share": 0.0, "dice": 2.0}]))
    (work / "check-0.safetensors").write_bytes(b"of another adapter")
    report = adapt(AdaptRequest(base, mr, shots=2, **(HOW | {"images": 16})), tmp_path / "a")
    assert max(c["dice"] for c in report["checks"]) <= 1


def test_each_shot_in_turn_is_held_out_where_there_is_nobody_else(base, mr, tmp_path):
    report = adapt(AdaptRequest(base, mr, shots=3, hold_out="one-out", **(HOW | {"images": 320})), tmp_path / "a")
    assert report["held_out"]["rule"] == "one-out"
    assert report["held_out"]["subjects"] == 3
    assert "interval" in report["held_out"]
    assert report["verdict"] in ("better", "no clear change")
    assert [c["share"] for c in report["checks"]] == [0.0, 0.5, 1.0]


def test_without_held_out_subjects_nothing_is_claimed(base, mr, tmp_path):
    report = adapt(AdaptRequest(base, mr, shots=2, hold_out="none", **(HOW | {"images": 16})), tmp_path / "a")
    assert report["verdict"] == "cannot tell"
    assert report["targets"] == {}
    assert not (tmp_path / "a" / "dice.png").exists()
    assert read_adapter(tmp_path / "a").habits.usual_doubt == {}


def test_an_adaptation_that_does_harm_is_left_at_its_start(base, mr, tmp_path):
    """With a learning rate that destroys, the best check is the first: the adapter changes nothing and says so."""
    report = adapt(AdaptRequest(base, mr, shots=2, learning_rate=30.0, **(HOW | {"images": 48})), tmp_path / "a")
    assert best_of(report["checks"]) == 0
    assert report["verdict"] == "no clear change"
    assert report["held_out"]["gain"] == pytest.approx(0, abs=1e-9)


def test_an_organ_that_only_the_target_has_is_added(base, mr, tmp_path):
    report = adapt(AdaptRequest(base, mr, shots=3, images=240), tmp_path / "a")
    assert "right kidney" in report["targets"]
    assert "before" not in report["targets"]["right kidney"]
    segmenter = Segmenter.load(base, adapter=tmp_path / "a")
    assert "right kidney" in segmenter.vocabulary.names
    assert "right kidney" not in Segmenter.load(base).vocabulary.names
    assert "New to the base: " in (tmp_path / "a" / "card.md").read_text()


def test_slices_instead_of_cases(base, mr, tmp_path):
    report = adapt(AdaptRequest(base, mr, shots=3, slices=4, **(HOW | {"images": 16})), tmp_path / "a")
    assert report["training"]["slices"] == 4
    few = open_dataset(mr, targets=["liver", "spleen"])
    bank = training_slices(few, few.vocabulary(), 64, Preparation(), 4, "none", 0)
    assert len(bank) == 4
    assert bank.lumped
    assert bank.present.any(1).all()


def test_the_usual_shots_are_five_or_as_many_as_there_are(base, mr, phantom_dataset, tmp_path):
    quick = {"images": 8, "target": ["liver"]}
    assert adapt(AdaptRequest(base, mr, **quick), tmp_path / "a")["training"]["subjects"] == 5
    assert adapt(AdaptRequest(base, phantom_dataset, **quick), tmp_path / "b")["training"]["subjects"] == 4
    assert adapt(AdaptRequest(base, mr, shots="all", **quick), tmp_path / "c")["training"]["subjects"] == 5


def test_unlabelled_scans_set_the_standard_of_grey_values_for_good(base, mr, tmp_path):
    """The adapter remembers it: a scan in other units, a thousand times as bright, gives the same answer."""
    adapt(AdaptRequest(base, mr, shots=2, unlabelled=mr / "imagesTr", **(HOW | {"images": 48})), tmp_path / "a")
    assert len(read_adapter(tmp_path / "a").habits.preparation.standard) == 11
    segmenter, dataset = Segmenter.load(base, adapter=tmp_path / "a"), open_dataset(mr)
    scan, _ = dataset.read(dataset.split("test")[0])
    bright = replace(scan, voxels=scan.voxels.astype("float32") * 1000 + 7)
    one, other = segmenter(scan, ["liver"])["liver"].probability(), segmenter(bright, ["liver"])["liver"].probability()
    assert abs(one - other).max() < 0.02


def test_an_adapter_is_never_scored_on_the_scans_it_learnt_from(adapter, base, mr, tmp_path):
    folder, _ = adapter
    with pytest.raises(DelineateError, match=r"learnt from 3 of these scans \(phantom\d+\); score it on others"):
        evaluate_model(EvaluateRequest(mr, base, adapter=folder, split="train", target=HOW["target"]), tmp_path)


# Wrong bases, damaged folders.


def test_another_base_is_refused_by_name_and_hash(adapter, base, trained, tmp_path):
    folder, _ = adapter
    save_model(tmp_path / "other", trained["unet"], "unet", training={"datasets": ["other"]}, card="Another.\n")
    with pytest.raises(ModelError, match=r"was made for the model 'ct-model' \(\w{12}…\), this one is \w{12}…; give"):
        Segmenter.load(tmp_path / "other", adapter=folder)
    shutil.copytree(base, tmp_path / "copy")
    Segmenter.load(tmp_path / "copy", adapter=folder)  # a copy of the base is the base


def test_a_segmenter_from_nowhere_takes_no_adapter(adapter, trained):
    with pytest.raises(ModelError, match="needs a base that was loaded from a model folder"):
        trained["unet"].with_adapter(adapter[0])


def test_damaged_and_mistaken_folders_end_in_one_line(adapter, base, tmp_path):
    folder, _ = adapter
    plain = Segmenter.load(base)
    with pytest.raises(ModelError, match="it is a model; give it with --model"):
        plain.with_adapter(base)
    with pytest.raises(ModelError, match="not an adapter folder"):
        plain.with_adapter(tmp_path / "nothing")
    shutil.copytree(folder, tmp_path / "damaged")
    data = bytearray((tmp_path / "damaged" / "adapter.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "damaged" / "adapter.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=r"'adapter.safetensors' was changed or damaged"):
        plain.with_adapter(tmp_path / "damaged")


def test_a_model_with_an_adapter_on_cannot_be_saved_as_a_model(adapter, base, tmp_path):
    """Its weights would come under names like `base_layer.weight`, and loading would leave the layers at chance."""
    adapted, _ = adapter_on(adapter[0], base)
    with pytest.raises(ModelError, match="with an adapter on cannot be saved; merge it first"):
        save_model(tmp_path / "m", Segmenter(adapted.system), "unet", training={}, card="")
    assert not (tmp_path / "m").exists()


def test_merged_and_saved_it_is_a_model_like_any_other(adapter, base, mr, tmp_path):
    folder, _ = adapter
    adapted, segmenter = adapter_on(folder, base)
    merged = Segmenter(adapted.merged(), segmenter.modalities)
    save_model(tmp_path / "merged", merged, "unet", training={}, card="Merged.\n")
    scan, _ = open_dataset(mr).read(open_dataset(mr).split("test")[0])
    one = segmenter(scan, ["liver"])["liver"].probability()
    other = Segmenter.load(tmp_path / "merged")(scan, ["liver"])["liver"].probability()
    assert abs(one - other).max() < 2e-3  # proposals are kept in half precision


def test_something_else_is_never_replaced(base, mr, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ModelError, match="exists and is not an adapter folder"):
        adapt(AdaptRequest(base, mr, shots=2, **HOW), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


# Names.


def test_labels_are_named_as_the_model_names_them(mr):
    """By synonyms, by what the caller says, or as new names; never by a guess."""
    dataset = open_dataset(mr)
    known = Vocabulary.from_names(["liver", "left kidney", "right kidney"], "CT")
    odd = replace(dataset, labels={"lk": 3, "hepar zone": 1, "my kidney": 2, "left kidney cyst": 4})
    named, renamed = with_names(odd, known, {"my kidney": "RK", "hepar zone": "liver"})
    assert named.labels == {"left kidney": 3, "liver": 1, "right kidney": 2, "left kidney cyst": 4}
    assert renamed == {"lk": "left kidney", "hepar zone": "liver", "my kidney": "right kidney"}


def test_labels_that_clash_or_are_not_there_are_told(mr):
    dataset = replace(open_dataset(mr), labels={"lk": 1, "left kidney": 2})
    known = Vocabulary.from_names(["left kidney"], "CT")
    with pytest.raises(DatasetError, match=r"'lk' and 'left kidney' would both be 'left kidney'; tell one with --map"):
        with_names(dataset, known, {})
    assert with_names(dataset, known, {"lk": "left renal mass"})[0].labels == {"left renal mass": 1, "left kidney": 2}
    with pytest.raises(DatasetError, match=r"has no label 'spleen'; it has lk, left kidney"):
        with_names(dataset, known, {"Spleen": "x"})


# What is said.


def row(case: str, target: str, dice: float, *, doubt: float = 0.1, present: bool = True) -> Row:
    return Row(
        *(case, target, present, "found", 0.9, {}, {"mean": {"dice": dice}}, dice, 0.0, 1, 0, 0, 0.0),
        doubt=doubt,
    )


def rows(gains: list[float]) -> dict[str, list[Row]]:
    before = [row(f"c{i}", t, 0.5) for i in range(len(gains)) for t in ("liver", "spleen")]
    after = [row(f"c{i}", t, 0.5 + g) for i, g in enumerate(gains) for t in ("liver", "spleen")]
    return {"before": before, "after": after}


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([], "cannot tell"),
        ([0.3], "seems better"),
        ([0.3, 0.2], "seems better"),
        ([0.004], "no clear change"),
        ([-0.2], "seems worse"),
        ([0.3, 0.2, 0.25], "better"),
        ([0.3, -0.3, 0.02], "no clear change"),
        ([-0.3, -0.2, -0.25], "worse"),
    ],
)
def test_better_is_said_only_where_held_out_subjects_say_so(gains, verdict):
    figures = figures_of(rows(gains), "val")
    assert figures["verdict"] == verdict
    assert figures["sentence"].startswith(verdict)
    assert figures["held_out"]["subjects"] == len(gains)
    assert ("interval" in figures["held_out"]) == (len(gains) >= 3)
    if gains:
        assert figures["held_out"]["gain"] == pytest.approx(fmean(gains))


def test_cases_of_one_subject_are_one_subject():
    figures = figures_of(rows([0.3, 0.1, 0.2]), "val", {"c0": "a", "c1": "a", "c2": "b"})
    assert figures["held_out"]["subjects"] == 2
    assert figures["verdict"] == "seems better"


def test_what_only_one_of_both_saw_does_not_count_for_the_verdict():
    some = rows([0.1])
    some["after"].append(row("c0", "right kidney", 0.9))
    figures = figures_of(some, "val")
    assert figures["held_out"]["gain"] == pytest.approx(0.1)
    assert figures["targets"]["right kidney"] == {"after": 0.9}


def test_the_usual_doubt_is_a_margin_above_the_worst_held_out_scan():
    some = [row("a", "liver", 0.9, doubt=0.1), row("b", "liver", 0.9, doubt=0.2)]
    some += [row("a", "spleen", 0.9, doubt=0.9), row("a", "aorta", 0.0, doubt=0.5, present=False)]
    assert usual_doubt(some) == {"liver": pytest.approx(0.3), "spleen": 1.0}


def test_the_best_check_is_the_first_of_equals():
    assert best_of([{"dice": 0.1}, {"dice": 0.4}, {"dice": 0.4}, {"dice": 0.2}]) == 1


def test_the_card_says_when_nothing_was_measured(adapter):
    about = read_adapter(adapter[0])
    figures = {**about.figures, **figures_of({}, "none")}
    card = card_of(replace(about, figures=figures), ["liver"], ("liver",))
    assert "cannot tell" in card
    assert "| target |" not in card
    assert math.isfinite(len(json.dumps(figures)))


def test_attach_is_refused_before_any_scan_is_read(base, mr, tmp_path):
    with pytest.raises(DelineateError, match="take --kind full, or lora with --targets all"):
        adapt(AdaptRequest(base, mr, config=AdapterConfig("lora", targets="attention"), **HOW), tmp_path / "a")
    assert not (tmp_path / "a-training").exists()
    assert attach(Segmenter.load(base).system, AdapterConfig(), Segmenter.load(base).vocabulary).own
