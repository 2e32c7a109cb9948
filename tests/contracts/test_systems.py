"""What every row of `SYSTEMS` keeps to before it is trained; a new row is asked the same without being named here."""

import json
import re
from typing import Any

import pytest
import torch
from tests.contracts.untrained import NAMES, SIZE, answer, asked, fresh, paths, slices, stirred, untrained
from tests.rounding import assert_same_up_to_rounding
from torch import Generator, Tensor, nn

from delineate.errors import DelineateError, ModelError
from delineate.networks import NETWORKS
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.systems import SYSTEMS
from delineate.systems.system import Clue, Clues
from delineate.training.loop import Step

NETWORKED = [
    (name, network)
    for name, row in SYSTEMS.items()
    if row.takes_network
    for network in NETWORKS
    if 2 in NETWORKS[network].dims
]


@pytest.mark.parametrize("name", SYSTEMS)
def test_proposals_are_probabilities_and_the_first_is_the_one_that_is_asked_for_alone(name):
    """As many as were asked for, or fewer, or one; and where there are several they differ."""
    three = answer(untrained(name))
    assert len(three) in (1, 2, 3)
    assert three.shape[1:] == (1, SIZE, SIZE)
    assert three.dtype == torch.float32
    assert three.device.type == "cpu"
    assert not three.requires_grad
    assert 0 <= three.min() <= three.max() <= 1
    assert_same_up_to_rounding(answer(untrained(name), n=1), three[:1])
    for k in range(1, len(three)):
        assert (three[k] - three[k - 1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_seed_draws_the_same_again_and_progress_never_falls(name):
    system, told = untrained(name), []
    seen = system.see(View(slices(1)))
    first = system.propose(seen, asked(), 2, 5, told.append).probabilities
    assert torch.equal(system.propose(seen, asked(), 2, 5).probabilities, first)
    assert told == sorted(told)
    assert not told or (told[0] >= 0 and told[-1] == pytest.approx(1))


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_slice_is_answered_the_same_in_any_company(name):
    """Networks look at slices one by one, and noise is a proposal's, not a slice's."""
    system, stack = untrained(name), slices(5)
    assert_same_up_to_rounding(answer(system, stack[3:], n=1), answer(system, stack, n=1)[:, 3:])


@pytest.mark.parametrize("name", SYSTEMS)
def test_slices_may_have_as_many_channels_as_scans_have(name, tmp_path):
    """Each of which makes a difference; and a model folder remembers how many."""
    network = SYSTEMS[name].options.get("network", "unet")
    if not NETWORKS[network].any_channels:
        with pytest.raises(ValueError, match="for grey and colour images; here a slice has 4 channels"):
            fresh(name, channels=4)
        return
    system, stack = stirred(fresh(name, channels=4)), slices(1)[:, :1].repeat(1, 4, 1, 1)
    before = answer(system, stack, n=1)
    for channel in range(4):
        other = stack.clone()
        other[:, channel] = -other[:, channel]
        assert (answer(system, other, n=1) - before).abs().max() > 1e-5
    config = json.loads(json.dumps(SYSTEMS[name].save(system, tmp_path)))
    assert torch.equal(answer(SYSTEMS[name].load(tmp_path, config, NAMES), stack, n=1), before)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_name_makes_a_difference(name):
    one, other = (answer(untrained(name), n=1, name=organ) for organ in NAMES.names)
    assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_saved_is_plain_data_and_comes_back_to_the_bit(name, tmp_path):
    system = untrained(name)
    config = json.loads(json.dumps(SYSTEMS[name].save(system, tmp_path)))
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in written)
    assert {path.suffix for path in written} <= {".safetensors", ".json", ".txt"}
    loaded = SYSTEMS[name].load(tmp_path, config, NAMES)
    assert torch.equal(answer(loaded, n=2), answer(system, n=2))
    assert not any(part.training for part in loaded.parts.values())
    with pytest.raises(ModelError, match="colour"):
        SYSTEMS[name].load(tmp_path, {**config, "colour": "red"}, NAMES)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_says_what_it_is(name):
    system = untrained(name)
    assert system.size == SIZE
    assert system.vocabulary.names[: len(NAMES.names)] == NAMES.names
    assert isinstance(system.learnt, Vocabulary)
    assert system.learnt.names == NAMES.names
    assert isinstance(system.accepts, frozenset)
    assert all(isinstance(clue, Clue) for clue in system.accepts)
    assert isinstance(system.open_words, bool)
    assert isinstance(system.about, str)
    assert "\n" not in system.about
    assert system.parts
    assert all(isinstance(part, nn.Module) for part in system.parts.values())
    assert system.to("cpu") is system


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_decoder_is_a_part_of_the_weights(name):
    weighted = paths(untrained(name))
    assert 0 < sum(re.search(untrained(name).decoder, path) is not None for path in weighted) < len(weighted)


@pytest.mark.parametrize("name", SYSTEMS)
def test_the_same_parts_make_the_same_system(name):
    system = untrained(name)
    assert torch.equal(answer(system.with_parts(system.parts, NAMES), n=1), answer(system, n=1))


@pytest.mark.parametrize("name", SYSTEMS)
def test_new_names_need_no_channel_or_a_block_of_their_own_or_are_refused(name):
    system, refusals, wider = untrained(name), [], None
    try:
        wider = system.widen(("left kidney",))
    except DelineateError as refused:
        refusals.append(str(refused))
    assert all("left kidney" in words for words in refusals)
    if wider is not None:
        path, more = wider
        here = nn.ModuleDict(system.parts).get_submodule(path)
        assert {k for k, _ in more.named_parameters()} == {k for k, _ in here.named_parameters()}


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_phase_can_be_trained(name, two_organ_bank):
    """Its loss is finite, depends on the generator alone, and moves something of the phase's module."""
    phases = fresh(name).phases(two_organ_bank)
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    assert len({phase.name for phase in phases}) == len(phases)
    for phase in phases:
        module = phase.module.requires_grad_(True).train()

        def loss(seed: int, phase: Any = phase) -> Tensor:
            return phase.loss_of(4, Step(Generator().manual_seed(seed)))[0]

        first = loss(0)
        assert first.shape == ()
        assert first.isfinite()
        first.backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.abs().sum() > 0 for gradient in gradients)
        assert loss(0).item() == first.item()
        assert loss(1).item() != first.item()
        module.requires_grad_(False).eval()


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_mask_is_heeded_by_those_that_accept_one(name):
    """The answer is of its slices alone. Nothing is asked here of a system that takes none."""
    system = untrained(name)
    if Clue.MASK not in system.accepts:
        return
    nowhere = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    means = []
    for mask in (torch.zeros(1, SIZE, SIZE), torch.ones(1, SIZE, SIZE)):
        clues = Clues(slices=torch.tensor([1]), inside=nowhere, outside=nowhere, mask=mask)
        drawn = answer(system, slices(2), n=1, clues=clues)
        assert drawn.shape == (1, 1, SIZE, SIZE)
        means.append(drawn.mean())
    assert means[0] < means[1]


@pytest.mark.parametrize(("name", "network"), NETWORKED)
def test_any_network_can_be_taken_and_its_proposals_differ(name, network):
    three = answer(stirred(fresh(name, network=network)))
    assert three.shape == (3, 1, SIZE, SIZE)
    assert 0 <= three.min() <= three.max() <= 1
    assert three.std(dim=0).max() > 1e-3
