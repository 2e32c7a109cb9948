"""The prompted encoder by itself."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open

from delineate.calibration.calibrators import Beta
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.storage.shipped import house_folder
from delineate.systems import SYSTEMS
from delineate.systems.diffusion.encoding import coarse_share, halved, rivals_in
from delineate.systems.diffusion.thresholds import SURE, thresholds
from delineate.systems.system import Asked, Clues
from delineate.training.loop import Budget, Run

SIZE = 32


@pytest.fixture(scope="module")
def system(two_organ_bank):
    made = SYSTEMS["encoder"].make("tiny", SIZE, two_organ_bank.vocabulary, seed=1)
    return made


def test_what_is_sure_is_every_proposals(system):
    probability = torch.zeros(1, SIZE, SIZE)
    probability[:, 10:20, 10:20], probability[:, 30:40, 30:40] = 1 - SURE / 2, SURE / 2
    drawn = thresholds(probability, 4, 0)
    assert torch.equal(drawn, probability.round().expand(4, -1, -1, -1))


def test_what_is_next_to_nothing_is_nothing(system):
    """Else a proposal would hold every voxel of a scan."""
    probability = torch.full((1, SIZE, SIZE), SURE / 2)
    probability[:, :8] = 2 * SURE
    drawn = thresholds(probability, 32, 0)
    assert (drawn[:, :, 8:] == 0).all()
    assert ((drawn == 0) | (drawn >= SURE)).all()
    assert (drawn[:, :, :8] == 0).float().mean() > 0.9


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.9])
def test_each_pixel_is_drawn_as_often_as_its_probability_says(system, share):
    drawn = thresholds(torch.full((1, SIZE, SIZE), share), 256, 3)
    assert drawn.mean().item() == pytest.approx(share, abs=0.01)
    assert (drawn > 0.5).float().mean().item() == pytest.approx(share, abs=0.012)


def test_a_mended_estimate_is_drawn_as_often_as_it_is_mended_to(system):
    """Frequencies are those of the calibrated probability, whatever the network said."""
    asked = Asked(None, "", calibrator=Beta(0.6, 0.5, -0.2))
    said = torch.tensor([0.0, 5e-4, 0.05, 0.3, 0.8])
    mended = asked.mended(said)
    assert torch.equal(mended[:2], said[:2])  # nearly all pixels: they stay nothing
    assert mended[2:].tolist() == pytest.approx(Beta(0.6, 0.5, -0.2)(said[2:].numpy()).tolist())
    drawn = thresholds(mended[:, None, None].expand(-1, SIZE, SIZE), 256, 3) > 0.5
    assert drawn.float().mean((0, 2, 3)).tolist() == pytest.approx(mended.tolist(), abs=0.012)
    assert Asked(None, "").mended(said) is said


def test_neighbours_come_and_go_together(system):
    drawn = thresholds(torch.full((1, SIZE, SIZE), 0.5), 32, 0) > 0.5
    assert (drawn[..., 1:] == drawn[..., :-1]).float().mean() > 0.9


def test_known_pixels_are_as_they_are_known(system):
    known, inside = torch.zeros(2, 1, SIZE, SIZE, dtype=torch.bool), torch.zeros(2, SIZE, SIZE, dtype=torch.bool)
    known[0, 0, :8], inside[0, :8] = True, True
    clues = Clues(torch.tensor([0, 1]), inside, torch.zeros_like(inside), torch.full((2, SIZE, SIZE), 0.5))
    drawn = thresholds(torch.full((2, SIZE, SIZE), 0.2), 3, 0, clues.known)
    assert (drawn[:, 0, :8] == 1).all()
    assert (drawn[:, 1] < 1).any()


def test_a_name_competes_with_those_it_was_taught_beside_alone(two_organ_bank):
    """The spleen was learnt on other pictures: however strong its logit, it takes no pixel of the liver's."""
    bank = replace(
        two_organ_bank,
        annotated=torch.tensor([[True, False], [False, True]]),
        foreign=torch.zeros(2, 2, dtype=torch.bool),
    )
    assert rivals_in(bank) == {"liver": ["liver"], "spleen": ["spleen"]}
    together = replace(bank, foreign=torch.tensor([[False, True], [False, False]]))
    assert rivals_in(together) == {"liver": ["liver", "spleen"], "spleen": ["spleen"]}

    made = SYSTEMS["encoder"].make("tiny", SIZE, bank.vocabulary, seed=1)
    alone = SYSTEMS["encoder"].make("tiny", SIZE, bank.vocabulary, seed=1)
    alone.config = replace(alone.config, rivals=rivals_in(bank))
    view = View(torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    asked = Asked(bank.vocabulary.concepts[0], "liver")
    of_two, of_one = made.estimate(made.see(view), asked), alone.estimate(alone.see(view), asked)
    assert (of_one > of_two).all()
    pooled = made.foundation.encode_text(["liver", "spleen"]).pooled
    logits = made.control.head(made.see(view).fine, pooled)
    torch.testing.assert_close(of_one, logits[:, 0].sigmoid())
    torch.testing.assert_close(of_two, torch.cat([torch.zeros(2, 1, SIZE, SIZE), logits], 1).softmax(1)[:, 1])


def test_what_was_worked_out_once_is_what_would_be_worked_out_again(system, two_organ_bank):
    view = View(torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    liver, spleen = (Asked(concept, concept.name) for concept in two_organ_bank.vocabulary.concepts)
    seen = system.see(view)
    first = [system.estimate(seen, asked) for asked in (liver, spleen)]
    again = [system.estimate(system.see(view), asked) for asked in (spleen, liver)]
    assert torch.equal(first[0], again[1])
    assert torch.equal(first[1], again[0])


def test_half_the_resolution_comes_first_on_a_large_grid(two_organ_bank, tmp_path):
    batch = two_organ_bank.draw(3, 0, torch.Generator().manual_seed(0))
    half = halved(batch)
    assert half.image.shape == (3, 3, 16, 16)
    assert torch.equal(half.labels, batch.labels[:, ::2, ::2])
    assert coarse_share(64) == 0
    assert coarse_share(256) > 0


def test_words_are_learnt_and_the_generator_is_left_alone(two_organ_bank, tmp_path):
    row, seen = SYSTEMS["encoder"], []
    run = Run(Budget(images=160), tmp_path, on_step=lambda phase, state, spent: seen.append(phase))
    before = row.make(
        "tiny", 32, two_organ_bank.vocabulary, modalities=two_organ_bank.modalities
    ).foundation.unet.state_dict()
    system = row.train(two_organ_bank, "tiny", run)
    assert list(dict.fromkeys(seen)) == ["words", "encoder"]
    assert "U-Net and the autoencoder are untrained and take no part" in system.about
    assert all(torch.equal(value, before[name]) for name, value in system.foundation.unet.state_dict().items())
    assert set(system.config.rivals) == {"liver", "spleen"}


def test_the_house_model_holds_what_its_system_uses():
    """Names of weights are a format."""
    config = json.loads((house_folder() / "config.json").read_text())
    with safe_open(house_folder() / "control.safetensors", "pt") as file:
        house = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    made = SYSTEMS[config["system"]].make("small", 256, Vocabulary.from_names(["liver"], "CT"))
    assert house == {name: tuple(weight.shape) for name, weight in made.control.state_dict().items()}
