from dataclasses import replace

import pytest
import torch
from tests.rounding import assert_same_up_to_rounding

from delineate.adapters import AdapterConfig
from delineate.adapters.adapter import attach
from delineate.errors import DelineateError, ModelError
from delineate.few_shot.learning import phases_of
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.systems import SYSTEMS, plain
from delineate.systems.ensemble import EnsembleConfig, build
from delineate.systems.plain import PlainConfig
from delineate.systems.system import Asked
from delineate.training.checkpoint import checkpoints
from delineate.training.loop import Budget, Interrupted, Run, train_phases

VOCABULARY = Vocabulary.from_names(["liver", "spleen"], "CT")
LIVER = Asked(VOCABULARY.concepts[0], "liver")
CONFIG = EnsembleConfig(PlainConfig(32, (8, 16)), members=3)
STACK = torch.randn(17, 3, 32, 32, generator=torch.Generator().manual_seed(0))  # more than are seen at once


@pytest.fixture
def system():
    return build(CONFIG, VOCABULARY)


def small(bank):
    """Two members that learn quickly from a bank of 32 pixels."""
    return build(EnsembleConfig(PlainConfig(32, (4, 8)), members=2), bank.vocabulary)


def drawn(system, stack=STACK):
    return system.propose(system.see(View(stack)), LIVER, 3, 0).probabilities


def weights(system):
    return {f"{p}.{k}": v for p, part in system.parts.items() for k, v in part.state_dict().items()}


def same(one, other):
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_usual_ensemble_is_the_paper_s_of_five():
    assert EnsembleConfig(PlainConfig()).members == 5


def test_every_member_is_a_proposal_in_its_place_whatever_number_and_seed(system):
    seen = system.see(View(STACK))
    whole = system.propose(seen, LIVER, 3, 0).probabilities
    assert whole.shape == (3, 17, 32, 32)
    for k, member in enumerate(system.members):
        assert torch.equal(whole[k], member.propose(member.see(View(STACK)), LIVER, 1, 0).probabilities[0])
    assert all(not torch.allclose(whole[a], whole[b], atol=1e-3) for a, b in ((0, 1), (1, 2), (0, 2)))
    assert torch.equal(system.propose(seen, LIVER, 2, 7).probabilities, whole[:2])


def test_there_are_no_more_proposals_than_members(system):
    assert system.propose(system.see(View(STACK[:2])), LIVER, 20, 0).probabilities.shape == (3, 2, 32, 32)


def test_how_slices_are_chunked_does_not_matter(system):
    by_one = torch.cat([drawn(system, s) for s in STACK.split(1)], dim=1)
    assert_same_up_to_rounding(by_one, drawn(system))


def test_members_of_one_seed_are_none_of_another_s():
    seeds = [member.network.state_dict() for seed in (0, 1) for member in build(CONFIG, VOCABULARY, seed=seed).members]
    first = [state["model.0.conv.unit0.conv.weight"] for state in seeds]
    assert all(not torch.equal(first[a], first[b]) for a in range(6) for b in range(a))


def test_every_member_learns_from_batches_of_its_own_with_an_equal_part_of_the_budget(two_organ_bank, tmp_path):
    bank, log, batches = two_organ_bank, {}, {}
    system = small(bank)
    for name, network in system.parts.items():
        batches[name] = []
        network.register_forward_pre_hook(lambda module, given, name=name: batches[name].append(given[0].clone()))
    train_phases(
        system.phases(bank),
        Run(
            Budget(images=32),
            tmp_path,
            on_step=lambda stage, state, spent: log.setdefault(stage, []).append(state.images_seen),
        ),
    )
    assert log == {"member-0": [8, 16], "member-1": [8, 16]}
    assert not any(torch.equal(one, other) for one in batches["member-0"] for other in batches["member-1"])
    assert not any(p.requires_grad for part in system.parts.values() for p in part.parameters())


def test_the_first_member_is_the_plain_network_with_its_part_of_the_budget(two_organ_bank, tmp_path):
    system = small(two_organ_bank)
    train_phases(system.phases(two_organ_bank), Run(Budget(images=32), tmp_path / "ensemble", seed=0))
    alone = plain.build(system.config.plain, two_organ_bank.vocabulary, seed=0)
    plain.train(alone, two_organ_bank, Run(Budget(images=16), tmp_path / "alone", seed=0))
    first, expected = (s.network.state_dict() for s in (system.members[0], alone))
    assert all(torch.equal(first[k], expected[k]) for k in expected)


@pytest.mark.parametrize("stop", [("member-0", 8), ("member-1", 16)])
def test_a_resumed_training_equals_an_uninterrupted_one_to_the_bit(two_organ_bank, tmp_path, stop):
    bank, budget, asked = two_organ_bank, Budget(images=64), []

    def on_step(stage, state, spent):
        if (stage, state.images_seen) == stop:
            asked.append(True)

    with pytest.raises(Interrupted):
        train_phases(small(bank).phases(bank), Run(budget, tmp_path / "a", on_step=on_step, should_stop=lambda: asked))
    resumed, whole = small(bank), small(bank)
    train_phases(resumed.phases(bank), Run(budget, tmp_path / "a"))
    train_phases(whole.phases(bank), Run(budget, tmp_path / "b"))
    assert same(resumed, whole)
    assert len(checkpoints(tmp_path / "b" / "member-1")) > 0


def test_a_folder_holds_a_file_a_member_and_gives_the_same_proposals(system, tmp_path):
    entry = SYSTEMS["ensemble"]
    config = entry.save(system, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {f"member-{i}.safetensors" for i in range(3)}
    written = {**config, "plain": {**config["plain"], "widths": [8, 16]}}  # as JSON gives it back
    again = entry.load(tmp_path, written, VOCABULARY)
    assert again.config == CONFIG
    assert torch.equal(drawn(again), drawn(system))


@pytest.mark.parametrize("odd", [{"colour": "red"}, {"plain": {"widths": [8, 16], "colour": "red"}}])
def test_a_configuration_that_is_not_known_is_refused(system, tmp_path, odd):
    entry = SYSTEMS["ensemble"]
    with pytest.raises(ModelError, match=r"colour.: is not known here"):
        entry.load(tmp_path, {**entry.save(system, tmp_path), **odd}, VOCABULARY)


def test_an_ensemble_of_nobody_is_refused():
    with pytest.raises(ValueError, match="1 member or more; got 0"):
        replace(CONFIG, members=0)


@pytest.mark.parametrize("kind", ["lora", "salt", "full", "decoder"])
def test_all_members_are_adapted_and_the_base_stays(system, two_organ_bank, kind):
    before = drawn(system, STACK[:2])
    adapted = attach(system, AdapterConfig(kind, 2), VOCABULARY)
    assert torch.equal(drawn(adapted.system, STACK[:2]), before)
    adapted.load({k: v + 0.1 for k, v in adapted.weights().items()})
    changed = drawn(adapted.system, STACK[:2])
    assert all(not torch.allclose(changed[k], before[k], atol=1e-4) for k in range(3))
    assert torch.equal(drawn(system, STACK[:2]), before)
    torch.testing.assert_close(drawn(adapted.merged(), STACK[:2]), changed, rtol=0, atol=2e-5)
    stages = phases_of(adapted, two_organ_bank, 1e-3)
    assert [stage.name for stage in stages] == ["member-0", "member-1", "member-2"]
    assert sum(stage.share for stage in stages) == pytest.approx(1)


def test_new_names_are_refused_in_one_line(system):
    with pytest.raises(DelineateError, match=r"cannot learn new names \(aorta\); leave their labels out") as caught:
        attach(system, AdapterConfig(rank=2), VOCABULARY.merged(Vocabulary.from_names(["aorta"], "CT")))
    assert "\n" not in str(caught.value)
