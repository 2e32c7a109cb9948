import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from delineate import samples
from delineate.cli.app import app
from delineate.data.dataset import open_dataset
from delineate.scans.reading import read_scan
from delineate.storage.files import sha256_of

RECIPE = Path(__file__).parents[2] / "recipes" / "samples.py"


@pytest.mark.parametrize("name", samples.names())
def test_files_are_those_that_were_described(name):
    one = samples.sample(name)
    scans = [path for path in one.folder.rglob("*") if path.is_file() and path.suffix != ".json"]
    assert {path.relative_to(one.folder).as_posix(): sha256_of(path) for path in scans} == one.sha256


@pytest.mark.parametrize("name", samples.names())
def test_every_sample_opens_and_shows_what_it_says(name):
    one = samples.sample(name)
    dataset = open_dataset(one.folder)
    assert (dataset.modality, tuple(dataset.labels)) == (one.modality, one.targets)
    assert [case.image for case in dataset.cases] == list(one.images)
    assert [case.labels for case in dataset.cases] == list(one.masks)
    for case in dataset.cases:
        assert read_scan(case.image).shape == dataset.read(case)[0].shape
        assert set(np.unique(dataset.read(case)[1])) == {0, *dataset.labels.values()}
    assert {split: len(members) for split, members in dataset.splits.items()} == (
        {"train": 5, "val": 0, "test": 6} if name == "nuclei" else {"train": 0, "val": 0, "test": 1}
    )


def test_the_samples_are_small_and_say_whose_they_are():
    assert sum(path.stat().st_size for path in samples.folder().rglob("*") if path.is_file()) < 1.5e6
    page = (samples.folder() / "README.md").read_text()
    for one in map(samples.sample, samples.names()):
        for told in (one.title, one.origin, one.terms, one.attribution, one.changes):
            assert told
            assert told in page


def test_an_unknown_sample_is_told_the_known_ones():
    with pytest.raises(ValueError, match="'mr' is not a sample; there are ct, dermoscopy"):
        samples.sample("mr")


def test_nothing_is_imported_for_them():
    said = "import sys; from delineate.samples import sample; sample('ct').images; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("name", samples.names())
def test_no_sample_is_of_a_subject_that_a_model_that_ships_may_learn_from(name, shared_data):
    """But for the images to adapt by, of a set that none of them may learn from."""
    told = json.loads((samples.folder() / "samples.json").read_text())[name]
    dataset = open_dataset(samples.sample(name).folder)
    whole = json.loads((shared_data / "splits.json").read_text())[told["source"]]
    for split, cases in dataset.splits.items():
        assert {told["subjects"][case] for case in cases} <= set(whole[split])
    if dataset.splits["train"]:
        others = [path.read_text() for path in RECIPE.parent.glob("house*.py")]
        assert not [text for text in others if told["source"] in text]


def test_the_slab_lies_where_it_was_cut_from(shared_data):
    [path] = samples.sample("ct").images
    slab, whole = read_scan(path), read_scan(shared_data / "btcv_ct" / "imagesTr" / f"{path.name[:6]}_0000.nii.gz")
    corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in slab.shape), 1]]).T
    (i, i2), (j, j2), (k, k2), _ = np.linalg.inv(whole.affine) @ slab.affine @ corners
    at = [
        np.rint(np.linspace(a, b, n)).astype(int) for a, b, n in zip((i, j, k), (i2, j2, k2), slab.shape, strict=True)
    ]
    assert np.array_equal(whole.voxels[np.ix_(*at)], slab.voxels)
    assert np.allclose((i, j, k), [a[0] for a in at], atol=1e-4)


def test_the_command_lists_them_all():
    told = json.loads(CliRunner().invoke(app, ["samples", "--json"]).stdout)
    assert [one["name"] for one in told] == list(samples.names())
    assert all(Path(path).is_file() for one in told for path in one["images"])
    listed = CliRunner().invoke(app, ["samples"]).stdout
    assert all(one["name"] in listed for one in told)
