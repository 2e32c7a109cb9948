"""Every row of `SYSTEMS`, untrained, behind the door: a `Segmenter` that is asked of scans, saved and loaded."""

import inspect

import nibabel
import numpy as np
import pytest
import torch
from tests.contracts.untrained import SIZE, answer, asked, fresh, slices, stirred, untrained
from tests.rounding import HALVES

from delineate.model_folder import save_model
from delineate.networks import NETWORKS
from delineate.prompts.concept import Concept
from delineate.prompts.prompt import Prompt
from delineate.scans.geometry import FLAT_AFFINE
from delineate.scans.grid import View
from delineate.scans.preparation import Habits
from delineate.scans.scan import Scan
from delineate.segmenter import Segmenter
from delineate.systems import SYSTEMS

NETWORKED = [
    (name, network)
    for name, row in SYSTEMS.items()
    if row.takes_network
    for network in NETWORKS
    if 2 in NETWORKS[network].dims
]


@pytest.fixture(params=SYSTEMS)
def name(request):
    return request.param


@pytest.fixture
def system(name):
    return untrained(name)


@pytest.fixture(scope="module")
def volume():
    """Two slices of noise, their voxels longer one way."""
    voxels = np.random.default_rng(1).uniform(-200, 300, (20, 24, 2)).astype(np.float32)
    return Scan(voxels, np.diag([-1.5, -1.2, 4.0, 1.0]), "CT")


def test_a_region_is_its_parts_together(system, tmp_path, name):
    """What draws names one by one draws them together; what draws from an estimate draws from that of all."""
    region = Concept("both", ("upper abdomen",), ("CT",), parts=("liver", "spleen"))
    segmenter = Segmenter(system, ("CT",), habits=Habits(regions=(region,)))
    volume = Scan(np.random.default_rng(1).uniform(-200, 300, (SIZE, SIZE, 1)).astype(np.float32), np.eye(4), "CT")
    both, *parts = (segmenter(volume, [one], n=2)[one].probabilities for one in ("both", "liver", "spleen"))
    if not getattr(system, "unites", False):
        np.testing.assert_allclose(both, np.minimum(parts[0].astype(np.float32) + parts[1], 1), atol=0.01)
    else:
        seen = segmenter.look(volume)
        asked = (segmenter._asked(seen, Prompt(one)) for one in ("both", "liver", "spleen"))
        whole, *parts = (system.estimate(seen.features, one) for one in asked)
        torch.testing.assert_close(whole, torch.stack(parts).sum(dim=0), atol=1e-4, rtol=0)
    save_model(tmp_path / "model", segmenter, name, training={}, card="")
    again = Segmenter.load(tmp_path / "model")
    assert again.vocabulary.names == ("liver", "spleen", "both")
    assert again.habits.regions == (region,)
    assert np.array_equal(again(volume, ["upper abdomen"], n=2)["upper abdomen"].probabilities, both)


def test_a_segmenter_asks_by_these_words(system):
    assert list(inspect.signature(system.propose).parameters) == ["seen", "asked", "n", "seed", "on_step"]


def test_another_seed_draws_others_unless_there_are_only_so_many(system):
    one, other = (answer(system, n=1, seed=seed) for seed in (0, 1))
    if (one - other).abs().max() < 1e-4:
        assert len(answer(system, n=12)) < 12  # then no chance is in it


def test_the_global_generator_has_no_say(system):
    answers = []
    for number in (1, 2):
        torch.manual_seed(number)
        answers.append(system.propose(system.see(View(slices(1))), asked(), 1, 0).probabilities)
    assert torch.equal(*answers)


@pytest.mark.parametrize("codes", ["RAS", "PIR"])
def test_how_the_file_is_stored_does_not_move_the_mask_in_the_patient(system, volume, codes):
    own = nibabel.orientations.io_orientation(volume.affine)
    other = nibabel.orientations.axcodes2ornt(tuple(codes))
    there, back = (nibabel.orientations.ornt_transform(*pair) for pair in ((own, other), (other, own)))
    affine = volume.affine @ nibabel.orientations.inv_ornt_aff(there, volume.shape)
    stored = Scan(np.ascontiguousarray(nibabel.orientations.apply_orientation(volume.voxels, there)), affine, "CT")
    turned, straight = (
        Segmenter(system, ("CT",))(scan, ["liver"], n=1)["liver"].probabilities for scan in (stored, volume)
    )
    assert straight.dtype == np.float16
    assert straight.shape == (1, *volume.shape)
    assert turned.shape == (1, *stored.shape)
    off = np.abs(nibabel.orientations.apply_orientation(turned[0], back) - straight[0]).max()
    mirrored = min(np.abs(np.flip(straight[0], axis) - straight[0]).max() for axis in range(3))
    assert off <= HALVES
    assert off < mirrored / 4


@pytest.mark.parametrize("colour", [False, True])
def test_flat_images_of_any_shape_are_answered_on_their_pixels(system, colour):
    shape = (1, 41, 77, 3) if colour else (1, 41, 77)
    picture = np.random.default_rng(0).uniform(0, 255, shape).astype(np.float32)
    found = Segmenter(system, ("CT",))(Scan(picture, FLAT_AFFINE), ["liver"], n=1)["liver"]
    assert found.probabilities.shape[1:] == (1, 41, 77)
    assert np.isfinite(found.probabilities).all()


def test_the_same_question_has_the_same_answer_whatever_was_asked_before(system, volume):
    segmenter = Segmenter(system, ("CT",))
    seen, told = segmenter.look(volume), []
    before = segmenter(seen, ["spleen", "nonsense", "liver"], n=1, seed=5, on_step=told.append)["liver"]
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1)
    alone = segmenter(volume, ["liver"], n=1, seed=5)["liver"]
    assert np.array_equal(before.probabilities, alone.probabilities)


def kept(system, name, folder):
    save_model(folder, Segmenter(system, ("CT",)), name, training={}, card="card")
    return Segmenter.load(folder)


def test_a_model_folder_gives_back_the_system(name, system, tmp_path):
    again = kept(system, name, tmp_path / "model")
    assert again.modalities == ("CT",)
    assert again.vocabulary == system.vocabulary
    assert again.system.learnt == system.learnt
    assert again.system.decoder == system.decoder
    assert torch.equal(answer(again.system, n=1, seed=7), answer(system, n=1, seed=7))


@pytest.mark.parametrize(("name", "network"), NETWORKED)
def test_a_model_folder_knows_which_network_a_system_was_made_of(name, network, tmp_path):
    system = stirred(fresh(name, network=network))
    assert torch.equal(answer(kept(system, name, tmp_path / "model").system, n=2), answer(system, n=2))
