"""A set as brain tumours come: two channels, regions, voxels that nobody labelled. Trained, saved, asked, scored."""

import json
import sys

import nibabel
import numpy as np
import pytest

from delineate.cli.app import main
from delineate.data.dataset import open_dataset
from delineate.errors import ScanError
from delineate.evaluation.evaluation import consensus_dice
from delineate.jobs.train import TrainRequest, train_system
from delineate.segmenter import Segmenter

NAMES = [f"p{k}" for k in range(6)]
LABELS = {"background": 0, "whole tumour": [1, 2], "enhancing tumour": [2], "ignore": 3}


def write_brains(root):
    """Discs of which T1 shows the inner, and T2 the whole; a strip that nobody labelled."""
    rng = np.random.default_rng(0)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    y, x = np.mgrid[:64, :64]
    for number, name in enumerate(NAMES):
        middle, radius = rng.uniform(26, 38, 2), 14 + number % 3
        far = np.hypot(y - middle[0], x - middle[1])
        whole, inner = np.repeat((far < radius)[..., None], 4, 2), np.repeat((far < radius / 2)[..., None], 4, 2)
        labels = whole.astype(np.uint8) + inner
        labels[:6] = 3
        for channel, shown in enumerate((inner, whole)):
            voxels = (rng.normal(100, 8, shown.shape) + 120 * shown).astype(np.int16)
            image = nibabel.Nifti1Image(voxels, np.diag([1.0, 1, 5, 1]))
            nibabel.save(image, root / "imagesTr" / f"{name}_{channel:04d}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(labels, np.diag([1.0, 1, 5, 1])), root / "labelsTr" / f"{name}.nii.gz")
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}, "labels": LABELS}))
    (root / "splits.json").write_text(json.dumps({"train": NAMES[:4], "val": NAMES[4:5], "test": NAMES[5:]}))
    return root


@pytest.fixture(scope="module")
def brains(tmp_path_factory):
    return write_brains(tmp_path_factory.mktemp("brains") / "set")


@pytest.fixture(scope="module")
def model(brains, tmp_path_factory):
    output = tmp_path_factory.mktemp("model") / "unet"
    train_system(TrainRequest("unet", [brains], images=700, calibrate=False), output)
    return output


def test_regions_of_a_scan_of_two_channels_are_learnt_and_asked(brains, model):
    dataset, segmenter = open_dataset(brains), Segmenter.load(model)
    assert segmenter.habits.channels == ("T1", "T2")
    assert segmenter.vocabulary.names == ("enhancing tumour", "whole tumour outside enhancing tumour", "whole tumour")
    scores = consensus_dice(segmenter, dataset, n=1)["p5"]
    assert set(scores) == set(dataset.targets)
    assert min(scores["whole tumour"], scores["enhancing tumour"]) > 0.7
    case = dataset.split("test")[0]
    whole, inner, ring = (
        segmenter(dataset.read(case)[0], [name], n=1)[name].mean()
        for name in ("whole tumour", "enhancing tumour", "whole tumour outside enhancing tumour")
    )
    np.testing.assert_allclose(whole, np.minimum(inner + ring, 1), atol=0.01)


def test_one_image_of_it_or_of_another_order_is_refused(brains, model):
    dataset, segmenter = open_dataset(brains), Segmenter.load(model)
    scan = dataset.read(dataset.split("test")[0])[0]
    with pytest.raises(ScanError, match=r"2 channels on one grid: T1, T2; this is one image: name the files NAME_0000"):
        segmenter.look(scan.shown)
    with pytest.raises(ScanError, match="this scan has T2, T1"):
        segmenter.look(type(scan)(scan.voxels, scan.affine, "MR", channels=("T2", "T1")))
    with pytest.raises(ScanError, match=r"reads one image, this scan has 2 \(T1, T2\)"):
        Segmenter.load().look(scan)


def test_what_cannot_learn_of_channels_or_regions_says_so(brains, model, tmp_path, capsys, monkeypatch):
    for arguments, said in (
        (["train", "efficientnet", str(brains)], "efficientnet is for grey and colour images"),
        (["synthesize", str(brains)], "a synthesizer reads scans of one image, and these have channels: T1, T2"),
        (["pretrain", str(brains)], "a foundation reads scans of one image"),
        (["adapt", "house", str(brains)], "the model reads one image, this scan has 2 (T1, T2)"),
        (["adapt", str(model), str(brains)], "an adapter learns names that exclude each other"),
    ):
        monkeypatch.setattr(sys, "argv", ["delineate", *arguments, "-o", str(tmp_path / "out")])
        with pytest.raises(SystemExit) as stopped:
            main()
        lines = capsys.readouterr().err
        assert stopped.value.code not in (0, None)
        assert said in " ".join(lines.split())
        assert "Traceback" not in lines


def test_files_of_channels_are_segmented_as_one_scan(brains, model, tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["delineate", *map(str, arguments)])
        try:
            main()
        except SystemExit as stopped:
            return stopped.code or 0
        return 0

    assert run("prompts", "--model", model) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "made of enhancing tumour, whole tumour outside enhancing tumour" in said
    out, images = tmp_path / "out", brains / "imagesTr"
    assert run("segment", images, "-m", model, "-o", out, "-p", "whole tumor", "-p", "enhancing tumour", "-n", 1) == 0
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == NAMES
    told = json.loads((out / "p5" / "case.json").read_text())
    assert [told["file"], *told["more_files"]] == [str(images / f"p5_000{k}.nii.gz") for k in (0, 1)]
    assert [target["outcome"] for target in told["targets"]] == ["found", "found"]
    labels = np.asanyarray(nibabel.load(out / "p5" / "labels.nii.gz").dataobj)
    truth = np.asanyarray(nibabel.load(brains / "labelsTr" / "p5.nii.gz").dataobj)
    ids = json.loads((out / "p5" / "labels.json").read_text())["labels"]
    inner = labels == ids["enhancing tumour"]
    assert 2 * (inner & (truth == 2)).sum() > 0.7 * (inner.sum() + (truth == 2).sum())  # the part stands, not the whole
    assert run("segment", images / "p5_0001.nii.gz", "-m", model, "-o", tmp_path / "one", "-p", "whole tumour") == 0
    assert (tmp_path / "one" / "p5" / "case.json").exists()
    (only := tmp_path / "only").mkdir()
    (only / "p5_0000.nii.gz").write_bytes((images / "p5_0000.nii.gz").read_bytes())
    assert run("segment", only, "-m", model, "-o", tmp_path / "none", "-p", "whole tumour") == 3
    assert "T2 is not there; add p5_0001.*" in " ".join(capsys.readouterr().err.split())
    assert run("segment", images, "-m", model, "-o", tmp_path / "none", "-p", "whole tumour", "--modality", "MR") == 2
