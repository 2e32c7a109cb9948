import json
import os
import shutil
import signal
from dataclasses import asdict, replace

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from delineate.data.augmented import cropped, slab_of
from delineate.data.check import check_dataset
from delineate.data.dataset import open_dataset
from delineate.data.folds import Fold, fold_of
from delineate.data.phantom import make_phantom_image
from delineate.data.slices import build_slices, slices_of
from delineate.errors import DatasetError, DelineateError, ModelError
from delineate.foundation.foundation import Foundation
from delineate.jobs import synthesize as synthesizing
from delineate.jobs.evaluate import EvaluateRequest, evaluate_model
from delineate.jobs.pretrain import HELD_OUT
from delineate.jobs.synthesize import SynthesizeRequest, synthesize
from delineate.jobs.train import TrainRequest, train_system
from delineate.scans.grid import CT_WINDOW_HU, canonical_fit, intensity_range, stack_of
from delineate.scans.reading import read_scan
from delineate.scans.scan import Scan
from delineate.storage.files import write_json
from delineate.synthesis.artist import Drawing, name_of, seed_of
from delineate.synthesis.synthesizer import Synthesizer
from delineate.systems.plain import PlainConfig, build
from delineate.training.loop import Interrupted

pytestmark = (
    pytest.mark.slow
)  # whole enlargements, each two trainings: what cli/test_synthesize.py shows once, in all its ways

TARGETS = ["liver", "spleen"]
QUICK = Drawing(variants=2, steps=2, keep_all=True)


def bytes_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def told(folder):
    return json.loads((folder / "provenance.json").read_text())


@pytest.fixture(scope="module")
def small(tmp_path_factory, phantom_dataset):
    """The phantom with two train cases, one val and one test; of the latter no file can be read."""
    root = shutil.copytree(phantom_dataset, tmp_path_factory.mktemp("small") / "abdomen")
    for number in (2, 3):
        for path in root.rglob(f"phantom00{number}*"):
            path.unlink()
    write_json(
        root / "splits.json", {"train": ["phantom000", "phantom001"], "val": ["phantom004"], "test": ["phantom005"]}
    )
    for path in root.rglob("phantom005*"):
        path.write_bytes(b"nobody may look")
    return root


@pytest.fixture(scope="module")
def made(small, edges_base, tmp_path_factory):
    """A dataset of volumes made larger, and the summary."""
    folder = tmp_path_factory.mktemp("made") / "larger"
    return folder, synthesize(SynthesizeRequest(small, QUICK, foundation=edges_base, images=40, target=TARGETS), folder)


# Volumes


def test_every_train_case_has_its_variants_and_nothing_comes_from_test(made, small):
    folder, summary = made
    dataset, real = open_dataset(folder), open_dataset(small, targets=TARGETS)
    assert 0 <= summary["segmenter_on_real"] <= 1
    counted = {"cases": 2, "drawn": 4, "kept": 4, "rejected": {}}
    assert {name: summary[name] for name in counted} == counted
    assert set(dataset.origins) == {f"phantom00{case}_syn{k}" for case in (0, 1) for k in (0, 1)}
    assert [case.name for case in dataset.split("train")] == ["phantom000", "phantom001"]
    assert [case.name for case in dataset.split("val")] == ["phantom004"]
    assert not list(folder.rglob("*phantom005*"))
    assert dataset.labels == real.labels
    assert check_dataset(folder).ok
    assert {p.name for p in folder.iterdir()} == {
        "imagesTr",
        "labelsTr",
        "contact_sheet.png",
        "dataset.json",
        "provenance.json",
        "splits.json",
        "splits_final.json",
        "subjects.json",
    }


def test_a_volume_stays_a_grey_volume_at_its_place_with_its_labels(made, small):
    folder, _ = made
    dataset, real = open_dataset(folder), open_dataset(small, targets=TARGETS)
    for name, origin in dataset.origins.items():
        scan, ids = dataset.read(next(c for c in dataset.cases if c.name == name))
        source, source_ids = real.read(next(c for c in real.cases if c.name == origin.source))
        where = slab_of(source, *origin.slices)
        assert scan.voxels.ndim == 3
        assert scan.shape == source.voxels[where].shape
        np.testing.assert_allclose(scan.affine, cropped(source, where).affine, atol=1e-4)
        assert np.array_equal(ids, source_ids[where])
        image = nibabel.load(folder / "imagesTr" / f"{name}_0000.nii.gz")
        assert image.get_data_dtype() == np.int16  # as the scans it was made from


def test_slices_reach_one_beyond_the_targets(made, small):
    folder, _ = made
    real = open_dataset(small, targets=TARGETS)
    for origin in open_dataset(folder).origins.values():
        case = next(c for c in real.cases if c.name == origin.source)
        _, labels, _ = slices_of(real, case, real.vocabulary(), 64)
        shown = labels.flatten(1).any(1).nonzero()[:, 0]
        assert origin.slices == (max(0, int(shown[0]) - 1), min(10, int(shown[-1]) + 2))


def test_hounsfield_units_stay_within_those_of_the_real_scan_and_are_read_as_such(made, small):
    """A scan without values below -150 would be taken for CT that was windowed before, and stretched."""
    folder, _ = made
    dataset, real = open_dataset(folder), open_dataset(small)
    for name, origin in dataset.origins.items():
        voxels = read_scan(folder / "imagesTr" / f"{name}_0000.nii.gz").voxels
        source = real.read(next(c for c in real.cases if c.name == origin.source))[0].voxels
        assert voxels.min() >= source.min()
        assert voxels.max() <= min(source.max(), CT_WINDOW_HU[1])
        inside = voxels[voxels > source.min()]
        assert inside.min() >= CT_WINDOW_HU[0]
        assert intensity_range(voxels, "CT") == CT_WINDOW_HU


def test_labels_and_scans_go_along_in_training(made):
    bank = build_slices([open_dataset(made[0])], "train", 64, synthetic="pair")
    assert len(bank) == 20
    assert ((bank.variants.of >= 0).sum(1) == 2).sum() > 8


def test_provenance_tells_how_each_scan_came_about(made, small, edges_base):
    folder, summary = made
    provenance = told(folder)
    tuned = Synthesizer.load(folder.with_name("larger-training") / "synthesizer")
    assert provenance["model_sha256"] == tuned.fingerprint() != Synthesizer.load(edges_base).fingerprint()
    assert provenance["summary"] == summary
    assert provenance["foundation"] == tuned.foundation.pretraining
    assert provenance["settings"]["drawing"] == asdict(QUICK)
    assert provenance["settings"]["seed"] == 0
    assert provenance["rejected"] == {}
    entries = provenance["synthetic"]
    assert len({entry["seed"] for entry in entries.values()}) == len(entries) == 4
    for name, entry in entries.items():
        assert name == f"{entry['source']}_syn{entry['variant']}"
        assert entry["seed"] == seed_of(0, entry["source"], entry["variant"])
        assert entry["caption"].startswith("liver, spleen, CT")
        assert set(entry["verdict"]) == {"edges", "brightness", "contrast", "mask", "mask_of_real", "reason"}
        assert -1 <= entry["verdict"]["edges"] <= 1
    assert str(small.parent) not in (folder / "provenance.json").read_text()  # no path of this machine
    assert str(edges_base.parent) not in (folder / "provenance.json").read_text()


def test_the_contact_sheet_is_there(made):
    with Image.open(made[0] / "contact_sheet.png") as image:
        assert image.format == "PNG"
        assert image.width > image.height > 100


def test_a_contact_sheet_shows_slices_in_grey(made, small):
    """Three neighbouring slices are no three colours."""
    folder, _ = made
    drawn, dataset = folder / "imagesTr", open_dataset(small, targets=TARGETS)
    entries = told(folder)["synthetic"].items()
    records = {name: {**entry, "kept": True, "file": f"{name}_0000.nii.gz"} for name, entry in entries}
    rows = list(
        synthesizing._rows(dataset, dataset.split("train"), records, drawn, QUICK, synthesizing.EDGES["scharr"], 64)
    )
    assert [name for name, _ in rows] == ["phantom000", "phantom001"]
    for _, pictures in rows:
        assert len(pictures) == 2 + 2
        for picture in pictures:
            assert picture.shape == (64, 64, 3)
            assert 0 <= picture.min() < picture.max() <= 1
            assert np.ptp(picture, axis=-1).max() < 1e-6


def test_two_variants_differ(made):
    folder, _ = made
    one, other = (read_scan(folder / "imagesTr" / f"phantom000_syn{k}_0000.nii.gz").voxels for k in (0, 1))
    assert (one != other).mean() > 0.1


def test_what_was_made_can_be_trained_on_and_scored_on_the_real_test_set(made, phantom_dataset, small, tmp_path):
    train_system(TrainRequest("unet", [made[0]], images=16), tmp_path / "model")
    with pytest.raises(DelineateError):
        evaluate_model(EvaluateRequest(small, tmp_path / "model", n=1, target=TARGETS), tmp_path / "unreadable")
    report = evaluate_model(EvaluateRequest(phantom_dataset, tmp_path / "model", n=1), tmp_path / "report")
    assert report["cases"] == 1


def test_real_files_are_left_alone_and_those_of_test_unread(made, small, phantom_dataset):
    for path in phantom_dataset.rglob("phantom000*"):
        assert (small / path.relative_to(phantom_dataset)).read_bytes() == path.read_bytes()
    assert all(path.read_bytes() == b"nobody may look" for path in small.rglob("phantom005*"))


# Going on


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(made, small, edges_base, tmp_path, monkeypatch):
    """Stopped in the fine-tuning, while drawing, and before the folder was written."""
    folder, how = tmp_path / "larger", {"foundation": edges_base, "images": 40, "target": TARGETS}
    draw, train = synthesizing.Artist.draw, synthesizing.train_synthesizer
    count = 0

    def stops_early(synthesizer, bank, run, **more):
        nonlocal count

        def stop():
            nonlocal count
            count += 1
            return count > 3

        return train(synthesizer, bank, replace(run, should_stop=stop), **more)

    with monkeypatch.context() as patch:
        patch.setattr(synthesizing, "train_synthesizer", stops_early)
        with pytest.raises(Interrupted):
            synthesize(SynthesizeRequest(small, QUICK, **how), folder)
    assert not folder.exists()

    for drawing, more in (
        (Drawing(variants=3, steps=2, keep_all=True), {}),
        (QUICK, {"seed": 1}),
        (QUICK, {"images": 48}),
    ):
        with pytest.raises(DelineateError, match="unfinished training with other settings"):
            synthesize(SynthesizeRequest(small, drawing, **how | more), folder)

    drawn = []

    def draws_two(self, case, variant):
        if len(drawn) == 2:
            raise KeyboardInterrupt
        drawn.append((case.name, variant))
        draw(self, case, variant)

    with monkeypatch.context() as patch:
        patch.setattr(synthesizing.Artist, "draw", draws_two)
        with pytest.raises(KeyboardInterrupt):
            synthesize(SynthesizeRequest(small, QUICK, **how), folder)
    assert len(list((tmp_path / "larger-training" / "drawn").glob("*.json"))) == 2

    def fail(*given, **more):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(synthesizing, "contact_sheet", fail)
        with pytest.raises(OSError, match="No space"):
            synthesize(SynthesizeRequest(small, QUICK, **how), folder)
    assert not folder.exists()

    again = []
    with monkeypatch.context() as patch:
        patch.setattr(synthesizing.Synthesizer, "draw", lambda *given, **more: again.append(1))
        summary = synthesize(SynthesizeRequest(small, QUICK, **how), folder)
    assert again == []  # nothing is drawn twice
    assert summary == made[1]
    whole, resumed = bytes_of(made[0]), bytes_of(folder)
    assert resumed.keys() == whole.keys()
    assert [name for name in whole if resumed[name] != whole[name]] == []
    assert not list(tmp_path.glob(".writing-*"))


def test_a_request_to_stop_while_drawing_ends_politely(small, edges_base, tmp_path, monkeypatch):
    draw = synthesizing.Artist.draw

    def asked_to_stop(self, case, variant):
        draw(self, case, variant)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(synthesizing.Artist, "draw", asked_to_stop)
    with pytest.raises(Interrupted, match="stopped after 1 of 4 scans; the same command goes on"):
        synthesize(SynthesizeRequest(small, QUICK, foundation=edges_base, images=10, target=TARGETS), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What is refused


def test_a_folder_that_is_not_empty_is_left_alone(small, edges_base, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for taken in ("mine", "file"):
        with pytest.raises(DelineateError, match="exists and is not empty; choose another folder"):
            synthesize(SynthesizeRequest(small, QUICK, foundation=edges_base, images=8), tmp_path / taken)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine"]


def test_a_dataset_with_synthetic_scans_is_not_enlarged_again(made, edges_base, tmp_path):
    with pytest.raises(DatasetError, match="holds synthetic scans already; synthesize from the real dataset"):
        synthesize(SynthesizeRequest(made[0], QUICK, foundation=edges_base, images=8), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_base_that_is_none_or_without_splits_is_refused(small, edges_base, tmp_path):
    with pytest.raises(ModelError, match="not a Stable Diffusion folder"):
        synthesize(SynthesizeRequest(small, QUICK, foundation=tmp_path, images=8), tmp_path / "out")
    copy = shutil.copytree(small, tmp_path / "copy")
    (copy / "splits.json").unlink()
    with pytest.raises(DatasetError, match=r"no splits.json"):
        synthesize(SynthesizeRequest(copy, QUICK, foundation=edges_base, images=8), tmp_path / "out")


def test_a_base_that_saw_the_dataset_without_a_fold_is_no_base_for_one(phantom_dataset, edges_base, tmp_path):
    with pytest.raises(DelineateError, match=r"the foundation .* was trained on abdomen without --fold"):
        synthesize(
            SynthesizeRequest(phantom_dataset, QUICK, foundation=edges_base, images=8, fold=Fold(1, 3)),
            tmp_path / "out",
        )


@pytest.mark.parametrize(
    ("drawing", "words"),
    [
        ({"variants": 0}, "at least 1, got 0 and 20"),
        ({"steps": 0}, "at least 1, got 10 and 0"),
        ({"look": 1.5}, r"must lie in \[0, 1\], got 1.5"),
        ({"look": float("nan")}, r"must lie in \[0, 1\]"),
        ({"edges": "none", "label_boundary": False}, "nothing would hold a scan to its mask"),
    ],
    ids=str,
)
def test_a_drawing_says_what_it_needs(drawing, words):
    with pytest.raises(DelineateError, match=words):
        Drawing(**drawing)


def test_every_case_and_variant_has_a_seed_of_its_own(small):
    case = open_dataset(small).cases[0]
    assert name_of(case, 3) == "phantom000_syn3"
    seeds = {seed_of(seed, name, k) for seed in range(3) for name in ("a", "b", "a/1") for k in range(100)}
    assert len(seeds) == 900
    assert all(0 <= seed < 2**32 for seed in seeds)


# Flat images


def flat_images(root, colour):
    """Six pictures of one organ of the phantom, 40 × 48, and nothing in them named."""
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number in range(6):
        phantom = make_phantom_image(number, shape=(40, 48), height_mm=20)
        grey = np.interp(phantom.voxels[0], (-150, 250), (40, 200)).astype(np.uint8)
        tinted = np.stack([grey, grey // 2, 255 - grey], axis=-1) if colour else grey
        Image.fromarray(tinted).save(root / "images" / f"p{number}.png")
        mask = ((phantom.labels[0] > 0) * 255).astype(np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"p{number}.png")
    write_json(root / "splits.json", {"train": ["p0", "p1", "p2"], "val": ["p3"], "test": ["p4", "p5"]})
    for name in ("p4", "p5"):
        (root / "images" / f"{name}.png").write_bytes(b"nobody may look")
    return root


@pytest.mark.parametrize("colour", [False, True], ids=["grey", "colour"])
def test_flat_images_stay_what_they_are(edges_base, tmp_path, colour):
    root, folder = flat_images(tmp_path / "flat", colour), tmp_path / "larger"
    summary = synthesize(SynthesizeRequest(f"{root}=organ@US", QUICK, foundation=edges_base, images=40), folder)
    assert summary["kept"] == summary["drawn"] == 6
    assert check_dataset(folder).ok
    dataset = open_dataset(folder)
    assert (dataset.modality, dataset.labels) == ("US", {"organ": 1})
    assert {p.name for p in (folder / "images").iterdir()} == {
        *(f"p{k}.png" for k in range(4)),
        *(f"p{k}_syn{v}.png" for k in range(3) for v in (0, 1)),
    }
    for name, origin in dataset.origins.items():
        with Image.open(folder / "images" / f"{name}.png") as image:
            assert image.mode == ("RGB" if colour else "L")
            assert image.size == (48, 40)
            drawn = np.asarray(image).astype(int)
        real = np.asarray(Image.open(root / "images" / f"{origin.source}.png")).astype(int)
        assert drawn.min() >= real.min()
        assert drawn.max() <= real.max()
        assert origin.slices == (0, 1)
        if colour:
            assert np.ptp(drawn, axis=-1).max() > 0
        masks = [(folder / "masks" / f"{stem}.png").read_bytes() for stem in (name, origin.source)]
        assert masks[0] == masks[1]
    bank = build_slices([dataset], "train", 64, synthetic="pair")
    assert (bank.variants.of >= 0).all()


def test_a_folder_of_stable_diffusion_serves_and_stays_frozen(small, tmp_path):
    """On the latents of its autoencoder, with nothing in it that says it was made here."""
    base = Foundation.make("tiny", "vae", ["liver, CT"], seed=0)
    base.save(tmp_path / "sd")
    (tmp_path / "sd" / "delineate.json").unlink()
    drawing = Drawing(variants=1, steps=2, keep_all=True)
    summary = synthesize(
        SynthesizeRequest(small, drawing, foundation=tmp_path / "sd", images=20, target=TARGETS), tmp_path / "larger"
    )
    assert summary["kept"] == 2
    tuned = Synthesizer.load(tmp_path / "larger-training" / "synthesizer")
    assert tuned.foundation.fingerprint() == base.fingerprint()
    assert tuned.control.detail is None


def test_a_base_in_grey_draws_grey_volumes_and_refuses_colour(small, foundation_folder, tmp_path):
    summary = synthesize(
        SynthesizeRequest(small, QUICK, foundation=foundation_folder, images=10, target=TARGETS), tmp_path / "larger"
    )
    assert summary["kept"] == 4
    root = flat_images(tmp_path / "flat", colour=True)
    with pytest.raises(DelineateError, match=r"draws grey scans and .* is in colour"):
        synthesize(SynthesizeRequest(f"{root}=organ", QUICK, foundation=foundation_folder, images=10), tmp_path / "out")


# The gate, and one noise for a volume


@pytest.fixture(scope="module")
def artist(small, edges_base, tmp_path_factory):
    """An artist on an untrained judge, whose drawings are scripted."""

    def make(folder, keep_all=False):
        dataset = open_dataset(small, targets=TARGETS)
        bank = build_slices([dataset], "train", 64)
        judge = build(PlainConfig(64, (8, 16)), bank.vocabulary)
        synthesizer = Synthesizer.load(edges_base)
        drawing = Drawing(variants=1, steps=1, keep_all=keep_all, look=0)
        return synthesizing.Artist(synthesizer, judge, bank, dataset, drawing, synthesizing.EDGES["scharr"], 0, folder)

    return make


class Script:
    """Stands in for a synthesizer's `draw`, and for a segmenter that always finds what the mask says."""

    def __init__(self, artist, monkeypatch, case, change):
        _, self.pictures, self.labels, *_ = artist._read(case)
        self.change, self.asked, self.noise = change, [], []
        monkeypatch.setattr(Synthesizer, "draw", self.draw)

    def draw(self, edges, text, noise, **how):
        at = sum(map(len, self.asked))
        self.asked.append(edges)
        self.noise.append(noise(0))
        return self.change(self.pictures[at : at + len(edges)].expand(-1, 3, -1, -1))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda scan: scan, ""),
        (lambda scan: scan.roll(16, dims=2), "edges"),
        (lambda scan: 0.2 * scan + 0.8, "intensity"),
        (torch.ones_like, "intensity"),
    ],
    ids=["itself", "shifted", "bright", "white"],
)
def test_what_the_gate_rejects_is_recorded_and_not_written(artist, tmp_path, monkeypatch, change, reason):
    painter = artist(tmp_path)
    case = painter.dataset.split("train")[0]
    Script(painter, monkeypatch, case, change)
    painter.draw(case, 0)
    record = json.loads((tmp_path / "phantom000_syn0.json").read_text())
    assert record["verdict"]["reason"] == reason
    assert record["kept"] is not bool(reason)
    assert ("file" in record) is record["kept"] is (tmp_path / "phantom000_syn0.nii.gz").exists()


def test_keeping_all_still_records_what_was_wrong(artist, tmp_path, monkeypatch):
    painter = artist(tmp_path, keep_all=True)
    case = painter.dataset.split("train")[0]
    Script(painter, monkeypatch, case, torch.ones_like)
    painter.draw(case, 0)
    record = json.loads((tmp_path / "phantom000_syn0.json").read_text())
    assert (record["kept"], record["verdict"]["reason"]) == (True, "intensity")
    assert (tmp_path / record["file"]).exists()


def test_an_erased_organ_is_rejected_by_its_mask(artist, tmp_path, monkeypatch):
    painter = artist(tmp_path)
    case = painter.dataset.split("train")[0]
    answers = []
    script = Script(painter, monkeypatch, case, lambda scan: scan)
    painter.held = None
    labels = script.labels

    def segmented(self, pictures):
        answers.append(len(pictures))
        return labels if len(answers) == 1 else torch.where(labels == 1, 0, labels)  # first asked of the real scan

    monkeypatch.setattr(synthesizing.Artist, "_segmented", segmented)
    painter.draw(case, 0)
    record = json.loads((tmp_path / "phantom000_syn0.json").read_text())
    assert record["verdict"]["reason"] == "mask"
    assert record["verdict"]["mask"] < 0.6


def test_rejected_scans_are_counted_and_left_out(small, edges_base, tmp_path, monkeypatch):
    draw, folder = Synthesizer.draw, tmp_path / "larger"
    monkeypatch.setattr(Synthesizer, "draw", lambda self, *given, **how: torch.ones_like(draw(self, *given, **how)))
    summary = synthesize(
        SynthesizeRequest(small, Drawing(variants=2, steps=1), foundation=edges_base, images=10, target=TARGETS), folder
    )
    assert {k: summary[k] for k in ("drawn", "kept", "rejected")} == {
        "drawn": 4,
        "kept": 0,
        "rejected": {"intensity": 4},
    }
    provenance = told(folder)
    assert provenance["synthetic"] == {}
    assert set(provenance["rejected"]) == {f"phantom00{case}_syn{k}" for case in (0, 1) for k in (0, 1)}
    assert not list(folder.rglob("*_syn*"))
    assert open_dataset(folder).origins == {}
    assert (folder / "contact_sheet.png").exists()


def test_all_slices_of_a_volume_are_drawn_from_one_noise(artist, tmp_path, monkeypatch):
    monkeypatch.setattr("delineate.synthesis.artist.AT_ONCE", 3)
    painter = artist(tmp_path)
    first, second = painter.dataset.split("train")
    script = Script(painter, monkeypatch, first, lambda scan: scan)
    painter.draw(first, 0)
    fields = torch.cat(script.noise)
    assert len(fields) == len(script.pictures) > 3
    assert torch.equal(fields, fields[:1].expand_as(fields))
    other = Script(painter, monkeypatch, second, lambda scan: scan)
    painter.draw(second, 0)
    assert not torch.allclose(other.noise[0][0], fields[0])


def test_identical_slices_of_a_volume_are_drawn_alike(artist, tmp_path):
    """Chunks do not matter either: nothing but the noise and the edges tells slices apart."""
    painter = artist(tmp_path, keep_all=True)
    case = painter.dataset.split("train")[0]
    scan, pictures, labels, first, real = painter._read(case)
    painter.held = (
        case.name,
        (
            scan,
            pictures[:1].expand_as(pictures).contiguous(),
            labels[:1].expand_as(labels).contiguous(),
            first,
            real,
        ),
    )
    painter.draw(case, 0)
    drawn = stack_of(read_scan(tmp_path / "phantom000_syn0.nii.gz", modality="CT"), 64)[:, 1]
    assert (drawn - drawn[:1]).abs().max() < 0.02  # whole HU are 0.005 of the window


def test_a_drawn_picture_comes_back_from_its_file(artist, tmp_path):
    """What is read for training is what the synthesizer drew, up to the grid's interpolation."""
    painter = artist(tmp_path)
    case = painter.dataset.split("train")[0]
    scan, pictures, _, first, _ = painter._read(case)
    file = painter._write("x", scan, pictures, first)
    back = stack_of(read_scan(tmp_path / file, modality="CT"), 64)[:, 1:2]
    assert canonical_fit(scan, 64).inner == (64, 64)
    assert (back - pictures).abs().mean() < 0.01
    assert (back - pictures).abs().max() <= 0.041  # the lowest 2 % of the window are air


@pytest.mark.parametrize("modality", ["MR", "CT"])
def test_fractions_stay_fractions_and_windowed_ct_stays_windowed(artist, tmp_path, modality):
    painter = artist(tmp_path)
    case = painter.dataset.split("train")[0]
    scan, pictures, _, first, _ = painter._read(case)
    other = Scan(scan.voxels * 0.0007 + 1.3, scan.affine, modality, scan.source)
    path = tmp_path / painter._write("x", other, pictures, first)
    back = read_scan(path, modality=modality).voxels
    low, high = intensity_range(other.voxels, modality)
    assert low - 1e-5 <= back.min() < back.max() <= high + 1e-5
    assert not np.array_equal(back, np.rint(back))


# A fold


def test_a_fold_holds_its_own_train_and_val_cases(phantom_dataset, foundation_folder, tmp_path):
    folder = tmp_path / "larger"
    base = shutil.copytree(foundation_folder, tmp_path / "base")
    part = fold_of(open_dataset(phantom_dataset, targets=TARGETS), 1, 3)
    write_json(base / HELD_OUT, [])
    drawing = Drawing(variants=1, steps=1, keep_all=True)
    synthesize(
        SynthesizeRequest(phantom_dataset, drawing, foundation=base, images=10, target=TARGETS, fold=Fold(1, 3)), folder
    )
    dataset = open_dataset(folder)
    assert dataset.splits == {"train": part.splits["train"], "val": part.splits["val"], "test": ()}
    assert told(folder)["source"] == {"name": "abdomen", "fold": "1/3"}
    assert told(folder)["held_out"][0]["fold"] == "1/3"
    train_system(TrainRequest("unet", [folder], images=8), tmp_path / "model")
    with pytest.raises(DelineateError, match="add --fold 1/3"):
        evaluate_model(EvaluateRequest(phantom_dataset, tmp_path / "model", n=1, target=TARGETS), tmp_path / "report")
    report = evaluate_model(
        EvaluateRequest(phantom_dataset, tmp_path / "model", n=1, target=TARGETS, fold=Fold(1, 3)), tmp_path / "report"
    )
    assert report["cases"] == len(part.splits["test"])
