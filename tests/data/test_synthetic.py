import json
import shutil
import sys
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from tests.data.test_dataset import pictures

from delineate.cli import app as cli
from delineate.data.augmentation import moved_labels
from delineate.data.dataset import open_dataset
from delineate.data.folds import Fold, fold_of, held_out, refuse_seen
from delineate.data.slices import Batch, Variants, build_slices
from delineate.data.synthetic import Origin, read_origins
from delineate.errors import DatasetError, DelineateError
from delineate.evaluation.evaluation import evaluate
from delineate.jobs.evaluate import EvaluateRequest, evaluate_model
from delineate.jobs.train import TrainRequest, train_system
from delineate.model_folder import check_model
from delineate.segmenter import Segmenter
from delineate.storage.files import write_json
from delineate.systems.plain import PlainConfig, build, train
from delineate.training.loop import Budget, Run
from delineate.training.merging import MERGES, Merging

MADE = {  # name: source, variant, first slice, end
    "phantom000_syn0": ("phantom000", 0, 2, 8),
    "phantom000_syn1": ("phantom000", 1, 4, 10),
    "phantom001_syn0": ("phantom001", 0, 0, 10),
}


def write_variant(root, name, source, first, end):
    """Slices of a case with other grey values, softer and noisier, and its labels."""
    rng = np.random.default_rng(len(name) + first)
    for part, ending in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        image = nibabel.load(root / part / f"{source}{ending}")
        array, affine = np.asarray(image.dataobj)[:, :, first:end], image.affine.copy()
        affine[:3, 3] += first * affine[:3, 2]
        if part == "imagesTr":
            array = np.round(0.7 * array - 60 + rng.normal(0, 20, array.shape)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(array, affine), root / part / f"{name}{ending}")


@pytest.fixture(scope="module")
def augmented(phantom_dataset, tmp_path_factory):
    """`phantom_dataset` (10 slices a case) with three synthetic cases of two of its four train cases."""
    root = tmp_path_factory.mktemp("augmented") / "augmented"
    shutil.copytree(phantom_dataset, root)
    for name, (source, _, first, end) in MADE.items():
        write_variant(root, name, source, first, end)
    write_json(root / "subjects.json", {name: source for name, (source, *_) in MADE.items()})
    entries = {n: {"source": s, "variant": v, "seed": 1, "slices": [a, b]} for n, (s, v, a, b) in MADE.items()}
    write_json(root / "provenance.json", {"made_by": "test", "synthetic": entries, "rejected": {}})
    return root


@pytest.fixture
def root(augmented, tmp_path):
    """A copy of `augmented` to write to."""
    return shutil.copytree(augmented, tmp_path / "augmented")


@pytest.fixture(scope="module")
def banks(augmented):
    """The train split, by what synthetic cases are taken for."""
    dataset = open_dataset(augmented)
    return {use: build_slices([dataset], "train", 64, synthetic=use) for use in ("pair", "extra", "none")}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# who was made from whom


def test_origins_are_read(augmented, phantom_dataset):
    assert read_origins(augmented) == {n: Origin(s, v, (a, b)) for n, (s, v, a, b) in MADE.items()}
    assert read_origins(phantom_dataset) == {}
    assert open_dataset(phantom_dataset).origins == {}


def test_variants_whose_files_were_removed_are_no_more(root):
    for path in root.rglob("phantom000_syn1*"):
        path.unlink()
    subjects = json.loads((root / "subjects.json").read_text())
    write_json(root / "subjects.json", {n: s for n, s in subjects.items() if n != "phantom000_syn1"})
    assert sorted(open_dataset(root).origins) == ["phantom000_syn0", "phantom001_syn0"]


def test_a_damaged_file_is_refused(root):
    (root / "provenance.json").write_text('{"synthetic": {')
    with pytest.raises(DatasetError, match=r"provenance.json: not JSON"):
        open_dataset(root)
    write_json(root / "provenance.json", {"made_by": "test"})
    with pytest.raises(DatasetError, match="must hold"):
        open_dataset(root)


@pytest.mark.parametrize(
    "change",
    [{"source": 3}, {"variant": "0"}, {"slices": [3]}, {"slices": [4, 4]}, {"slices": [-1, 4]}, {"slices": [0, 2.5]}],
    ids=str,
)
def test_a_damaged_entry_is_refused(root, change):
    written = json.loads((root / "provenance.json").read_text())
    written["synthetic"]["phantom000_syn0"] |= change
    write_json(root / "provenance.json", written)
    with pytest.raises(DatasetError, match=r"'phantom000_syn0' must have .*bring back the file"):
        read_origins(root)


@pytest.mark.parametrize("source", ["phantom077", "phantom001_syn0"])
def test_a_source_that_is_no_real_case_is_refused(root, source):
    written = json.loads((root / "provenance.json").read_text())
    written["synthetic"]["phantom000_syn0"]["source"] = source
    write_json(root / "provenance.json", written)
    with pytest.raises(DatasetError, match=f"'phantom000_syn0' was made from '{source}', which is no real case"):
        read_origins(root)


@pytest.mark.parametrize("held", ["val", "test"])
def test_a_source_that_is_held_out_is_refused(root, held):
    splits = json.loads((root / "splits.json").read_text())
    splits["train"].remove("phantom001")
    splits[held].append("phantom001")
    write_json(root / "splits.json", splits)
    with pytest.raises(DatasetError, match=f"'phantom001', whose subject 'phantom001' is in '{held}'"):
        open_dataset(root)


def test_splits_given_by_hand_are_heeded_too(augmented, tmp_path):
    names = [f"phantom{number:03d}" for number in range(6)]
    write_json(tmp_path / "splits.json", {"train": names[2:], "val": [], "test": names[:2]})
    with pytest.raises(DatasetError, match="is in 'test'"):
        open_dataset(augmented, splits=tmp_path / "splits.json")


def test_a_synthetic_case_belongs_to_the_subject_of_its_source(root):
    write_json(root / "subjects.json", {"phantom000_syn0": "phantom001"})
    with pytest.raises(DatasetError, match="must say 'phantom000', not 'phantom001'"):
        open_dataset(root)


# nobody is scored on synthetic cases


@pytest.mark.parametrize("split", ["train", "val", "test", "all"])
def test_every_split_is_of_real_cases(augmented, phantom_dataset, split):
    ours, real = open_dataset(augmented), open_dataset(phantom_dataset)
    assert [case.name for case in ours.split(split)] == [case.name for case in real.split(split)]
    made = {case.name for case in ours.synthetic(split)}
    assert made == (set(MADE) if split in ("train", "all") else set())
    assert {case.name for case in ours.cases} == {case.name for case in real.cases} | set(MADE)


def test_no_synthetic_case_is_scored(augmented):
    dataset = open_dataset(augmented, targets=["liver"])
    segmenter = Segmenter(build(PlainConfig(64, (8, 16)), dataset.vocabulary()), ("CT",))
    rows = evaluate(segmenter, dataset, split="train", n=1)
    assert {row.case for row in rows} == {f"phantom{number:03d}" for number in range(4)}


def test_a_fold_is_refused_in_one_line(augmented, tmp_path):
    with pytest.raises(
        DatasetError, match=r"divide the dataset of real scans: delineate synthesize --fold 1/3"
    ) as told:
        fold_of(open_dataset(augmented), 1, 3)
    assert "\n" not in str(told.value)
    with pytest.raises(DatasetError, match="delineate synthesize --fold 1/2"):
        train_system(TrainRequest("unet", [augmented], images=8, fold=Fold(1, 2)), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_training_remembers_what_the_maker_saw(root, phantom_dataset):
    real = open_dataset(phantom_dataset)
    fold = Fold(1, 3)
    seen = held_out([fold_of(real, *fold)], fold)
    assert held_out([open_dataset(root)], None)[0]["fold"] is None
    written = json.loads((root / "provenance.json").read_text())
    write_json(root / "provenance.json", {**written, "held_out": seen})
    assert held_out([open_dataset(root)], None) == seen
    with pytest.raises(DelineateError, match="use --fold 1/3"):
        refuse_seen(held_out([open_dataset(root)], None), fold_of(real, 2, 3), Fold(2, 3), "the model")
    refuse_seen(held_out([open_dataset(root)], None), fold_of(real, *fold), fold, "the model")
    write_json(root / "provenance.json", {**written, "held_out": "all"})
    with pytest.raises(DatasetError, match="'held_out': must be a list"):
        held_out([open_dataset(root)], None)


# slices and their variants


def test_extra_cases_are_slices_and_none_are_left_out(banks, phantom_bank):
    assert len(banks["none"]) == len(banks["pair"]) == 40
    assert len(banks["extra"]) == 40 + 6 + 6 + 10
    assert banks["none"].variants is banks["extra"].variants is None
    assert torch.equal(banks["none"].images, phantom_bank.images)
    assert torch.equal(banks["extra"].images[:40], phantom_bank.images)
    with pytest.raises(ValueError, match="pair, extra or none; got 'all'"):
        build_slices([], "train", 64, synthetic="all")


def test_variants_lie_beside_the_slices_they_were_made_from(banks):
    bank = banks["pair"]
    assert bank.variants.images.shape == (22, 3, 64, 64)
    assert bank.variants.of.shape == (40, 2)
    counts = (bank.variants.of >= 0).sum(1).tolist()
    assert counts == [0, 0, 1, 1, 2, 2, 2, 2, 1, 1] + [1] * 10 + [0] * 20
    for real, variants in enumerate(bank.variants.of.tolist()):
        for variant in (v for v in variants if v >= 0):
            one, other = bank.images[real, 1].float(), bank.variants.images[variant, 1].float()
            assert (one - other).abs().mean() > 2  # other greys
            assert np.corrcoef(one.flatten(), other.flatten())[0, 1] > 0.9  # of the same slice
    nearest = [np.corrcoef(bank.variants.images[0, 1].flatten(), bank.images[k, 1].flatten())[0, 1] for k in range(10)]
    assert int(np.argmax(nearest)) == 2


def test_flat_images_have_variants_too(tmp_path):
    root = pictures(tmp_path / "flat")
    image = np.asarray(Image.open(root / "images" / "a.png"))
    Image.fromarray(255 - image).save(root / "images" / "a_syn0.png")
    shutil.copy(root / "masks" / "a.png", root / "masks" / "a_syn0.png")
    write_json(root / "subjects.json", {"a_syn0": "a"})
    write_json(root / "splits.json", {"train": ["a", "b"], "val": ["c"], "test": []})
    write_json(
        root / "provenance.json", {"synthetic": {"a_syn0": {"source": "a", "variant": 0, "seed": 5, "slices": [0, 1]}}}
    )
    bank = build_slices([open_dataset(root, targets=["polyp"])], "train", 32, synthetic="pair")
    assert bank.variants.of.tolist() == [[0], [-1]]
    inside = bank.images[0] > 0
    assert (bank.variants.images[0][inside] < 255).any()


@pytest.mark.parametrize("slices", [[2, 7], [5, 11]])
def test_slices_that_do_not_fit_the_source_are_refused(root, slices):
    written = json.loads((root / "provenance.json").read_text())
    written["synthetic"]["phantom000_syn0"]["slices"] = slices
    write_json(root / "provenance.json", written)
    with pytest.raises(DatasetError, match=r"'phantom000_syn0' holds 6 axial slices, not slices .* of the 10"):
        build_slices([open_dataset(root)], "train", 64, synthetic="pair")


def test_labels_that_are_not_the_source_s_are_refused(root):
    written = json.loads((root / "provenance.json").read_text())
    written["synthetic"]["phantom000_syn0"]["slices"] = [3, 9]
    write_json(root / "provenance.json", written)
    with pytest.raises(DatasetError, match=r"phantom000_syn0.nii.gz: the labels .* must be those of 'phantom000'"):
        build_slices([open_dataset(root)], "train", 64, synthetic="pair")
    build_slices([open_dataset(root)], "train", 64, synthetic="extra")


def test_two_datasets_keep_their_variants_apart(augmented, phantom_dataset, banks):
    both = [open_dataset(phantom_dataset), open_dataset(augmented)]
    bank = build_slices(both, "train", 64, synthetic="pair")
    assert (bank.variants.of[:40] == -1).all()
    assert torch.equal(bank.variants.of[40:], banks["pair"].variants.of)


# what is drawn


@pytest.mark.parametrize("name", ["default", "nnunet", "none"])
def test_the_rest_of_a_batch_is_the_same_with_and_without_variants(banks, name):
    for seed in range(5):
        pair = replace(banks["pair"], augmentation=name).draw(8, 3, seeded(seed))
        none = replace(banks["none"], augmentation=name).draw(8, 3, seeded(seed))
        for field in ("image", "labels", "concepts", "masks", "dataset"):
            assert torch.equal(getattr(pair, field), getattr(none, field)), field
        assert none.synthetic is None
        assert pair.synthetic.shape == pair.image.shape
        assert pair.synthetic.abs().max() <= 1


@pytest.mark.parametrize("name", ["mirror", "rotation", "scale", "default", "nnunet"])
def test_a_variant_is_moved_by_the_map_of_its_slice(banks, name):
    """Every slice has the picture of its labels for a variant: where a pixel goes can be read off."""
    bank = banks["none"]
    drawn = (bank.labels > 0).to(torch.uint8)[:, None].expand(-1, 3, -1, -1) * 255
    variants = Variants(drawn, torch.arange(40)[:, None])
    batch = replace(bank, augmentation=name, variants=variants, mirrored=torch.ones(40, dtype=torch.bool)).draw(
        40, 1, seeded()
    )
    shown, there = (batch.synthetic[:, 1] > 0).flatten(1), (batch.labels > 0).flatten(1)
    large = there.sum(1) > 100
    assert large.sum() > 20
    scores = (2 * (shown & there).sum(1) / (shown.sum(1) + there.sum(1)))[large]
    assert scores.quantile(0.1) > 0.93
    assert scores.min() > 0.8  # blurred or coarse, where the edges of small organs move


def test_variants_are_drawn_evenly_and_a_slice_without_gets_itself(banks):
    bank = replace(banks["pair"], augmentation="none")
    table = {tuple(image.flatten().tolist()): k for k, image in enumerate(bank.variants.images)}
    drawn = dict.fromkeys(range(22), 0)
    for seed in range(60):
        batch = bank.draw(16, 1, seeded(seed))
        pictures = ((batch.synthetic + 1) * 127.5).round().to(torch.uint8)
        for synthetic, image in zip(pictures, batch.image, strict=True):
            real = int((bank.images == ((image + 1) * 127.5).round().to(torch.uint8)).flatten(1).all(1).nonzero()[0])
            variants = [v for v in bank.variants.of[real].tolist() if v >= 0]
            if not variants:
                assert torch.equal(synthetic, bank.images[real])
                continue
            variant = table[tuple(synthetic.flatten().tolist())]
            assert variant in variants
            drawn[variant] += 1
    for one, other in bank.variants.of[4:8].tolist():
        assert 0.25 < drawn[one] / (drawn[one] + drawn[other]) < 0.75
    assert all(drawn.values())


def test_greys_of_a_variant_change_on_their_own(banks):
    """A slice without variants goes along with itself: the same place, other greys."""
    bank = replace(banks["pair"], variants=replace(banks["pair"].variants, of=torch.full((40, 2), -1)))
    batch = bank.draw(8, 1, seeded())
    assert ((batch.image - batch.synthetic).abs().amax((1, 2, 3)) > 0.05).all()
    moved = replace(bank, augmentation="rotation").draw(8, 1, seeded())
    assert torch.equal(moved.image, moved.synthetic)


@pytest.mark.parametrize("use", ["pair", "none"])
def test_a_batch_can_be_moved(banks, use):
    batch = banks[use].draw(2, 1, seeded()).to(torch.device("meta"))
    assert isinstance(batch, Batch)
    assert batch.image.device.type == "meta"
    assert (batch.synthetic is None) == (use == "none")


def test_labels_stay_where_nothing_moves(banks):
    labels = banks["none"].labels[:4]
    assert torch.equal(moved_labels(labels, None), labels)


# training


def weights(bank, folder, merging, images=32):
    system = build(PlainConfig(bank.size, (8, 16)), bank.vocabulary, seed=0)
    train(system, bank, Run(Budget(images=images), folder), merging=merging)
    return system.network.state_dict()


@pytest.mark.parametrize("mode", [*MERGES, "none"])
def test_keeping_all_of_the_real_scans_is_plain_training_to_the_bit(banks, mode, tmp_path):
    plain = weights(banks["none"], tmp_path / "plain", Merging())
    merged = weights(banks["pair"], tmp_path / "merged", Merging(mode, keep=1))
    assert plain.keys() == merged.keys()
    assert all(torch.equal(plain[name], merged[name]) for name in plain)


@pytest.mark.parametrize("mode", MERGES)
def test_merging_teaches_something_else_and_repeats(banks, mode, tmp_path):
    plain = weights(banks["none"], tmp_path / "plain", Merging())
    one, again = (weights(banks["pair"], tmp_path / name, Merging(mode)) for name in ("one", "again"))
    assert all(torch.isfinite(value).all() for value in one.values())
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], plain[name]) for name in one)


@pytest.mark.parametrize(
    ("system", "asked", "use", "mode"),
    [
        ("unet", {}, "pair", "patch"),
        ("unet", {"merge": "image", "keep_real": 0.3, "cell": 16, "augmentation": "nnunet"}, "pair", "image"),
        ("unet", {"merge": "extra"}, "extra", None),
        ("unet", {"merge": "none"}, "none", None),
        pytest.param("unisegdiff", {}, "extra", None, marks=pytest.mark.slow),
    ],
)
def test_a_model_says_what_it_learnt_from(augmented, tmp_path, system, asked, use, mode):
    train_system(TrainRequest(system, [augmented], images=16, **asked), tmp_path / "model")
    training = check_model(tmp_path / "model")[1]["training"]
    card = (tmp_path / "model" / "card.md").read_text()
    assert training["synthetic"] == use
    assert training["augmentation"] == asked.get("augmentation", "default")
    assert training["slices"] == (62 if use == "extra" else 40)
    assert ("nnunet" in card) == ("augmentation" in asked)
    if mode is None:
        assert "merging" not in training
        assert ("are among the slices" if use == "extra" else "were left out") in card
    else:
        assert training["variants"] == 22
        assert Merging(**training["merging"]) == (
            Merging("image", 0.3, 16 / training["plan"]["size"]) if asked else Merging()
        )
        assert f"Merged with 22 synthetic slices: by {mode}" in card


def test_a_model_of_an_augmented_folder_is_scored_on_the_real_one(augmented, phantom_dataset, tmp_path):
    train_system(TrainRequest("unet", [augmented], images=8), tmp_path / "model")
    report = evaluate_model(EvaluateRequest(phantom_dataset, tmp_path / "model", n=1), tmp_path / "report")
    assert report["split"] == "test"


def test_a_plain_training_is_called_what_it_was_called_before(phantom_dataset, tmp_path):
    train_system(TrainRequest("unet", [phantom_dataset], images=8), tmp_path / "model")
    training = check_model(tmp_path / "model")[1]["training"]
    assert not {"synthetic", "merging", "merge", "keep_real", "cell", "variants"} & training.keys()
    assert "ynthetic" not in (tmp_path / "model" / "card.md").read_text()


@pytest.mark.parametrize("asked", [{"merge": "extra"}, {"merge": "patch"}, {"keep_real": 0.5}, {"cell": 8}], ids=str)
def test_merging_needs_synthetic_cases(phantom_dataset, tmp_path, asked):
    option = next(iter(asked)).replace("_", "-")
    with pytest.raises(DelineateError, match=f"--{option} is for synthetic cases, .*: delineate synthesize"):
        train_system(TrainRequest("unet", [phantom_dataset], images=8, **asked), tmp_path / "model")


def test_other_settings_are_refused_when_going_on(augmented, tmp_path):
    work = tmp_path / "model-training"
    with pytest.raises(DelineateError, match="--cell is from 1 to"):
        train_system(TrainRequest("unet", [augmented], images=8, cell=1000), tmp_path / "model")
    (work / "network" / "checkpoint-0000000008").mkdir(parents=True)
    for other in ({"cell": 8}, {"cell": 1000, "augmentation": "none"}, {"merge": "image"}, {"keep_real": 0.1}, {}):
        with pytest.raises(DelineateError, match="unfinished training with other settings"):
            train_system(TrainRequest("unet", [augmented], images=8, **other), tmp_path / "model")


def test_the_command_line_passes_it_on(augmented, phantom_dataset, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        command = ["train", "unet", *arguments, "-o", tmp_path / "model", "--images", 8, "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["delineate", *map(str, command)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code or 0, capsys.readouterr().err

    for wrong, words in (
        ((augmented, "--augmentation", "magic"), "--augmentation is one of none, default, diffboost, contrast"),
        ((augmented, "--merge", "mix"), "--merge is one of patch, image, loss, extra, none; got 'mix'"),
        ((augmented, "--merge", "none", "--keep-real", 0.5), "--keep-real is for --merge patch"),
        ((phantom_dataset, "--merge", "patch"), "make some with: delineate synthesize"),
    ):
        code, said = run(*wrong)
        assert code == 2
        assert words in said
    options = ("--augmentation", "mirror", "--merge", "patch", "--keep-real", 0.5, "--cell", 16)
    assert run(augmented, *options)[0] == 0
    training = check_model(tmp_path / "model")[1]["training"]
    assert (training["augmentation"], training["merging"]["keep"]) == ("mirror", 0.5)
    assert training["merging"]["cell"] == 16 / training["plan"]["size"]
