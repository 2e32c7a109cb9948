"""Every row of `SYSTEMS` as what learns: what its phases reach, and what becomes of it with other parts and names."""

import copy
from dataclasses import replace

import pytest
import torch
from tests.contracts.untrained import NAMES, answer, fresh, slices, state, stirred, untrained, with_kinds

from delineate.adapters import AdapterConfig
from delineate.adapters.adapter import attach
from delineate.data.slices import UNLABELLED
from delineate.errors import DelineateError
from delineate.few_shot.learning import phases_of
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.systems import SYSTEMS
from delineate.systems.system import Asked
from delineate.training.loop import Step

NEW = ("left kidney", "right kidney")
MORE = NAMES.merged(Vocabulary.from_names(NEW, "MR"))
# Rows of one file and network have the same layers, and are one and the same to an adapter: the first stands for all.
LAYERED = {(row.module, row.options.get("network")): name for name, row in reversed(SYSTEMS.items())}


@pytest.fixture(params=SYSTEMS)
def name(request):
    return request.param


@pytest.fixture
def system(name):
    return untrained(name)


def named(system, name):
    """The answer to a name that `NAMES` may lack."""
    concept = MORE.concepts[MORE.index(name)]
    return system.propose(system.see(View(slices(1))), Asked(concept, f"{name}, CT", name), 1, 0).probabilities


def shaken(adapted):
    """The adapter's parameters as a training might leave them."""
    generator = torch.Generator().manual_seed(0)
    adapted.load({k: v + 0.05 * torch.randn(v.shape, generator=generator) for k, v in adapted.weights().items()})


def test_the_global_generator_is_left_alone_by_making_one(name):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same = state(fresh(name)), state(fresh(name))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(one[key], same[key]) for key in one)


def test_phases_teach_all_that_is_its_own_and_each_its_module_alone(name, two_organ_bank):
    system = stirred(fresh(name))
    own = {id(p) for part in system.parts.values() for p in part.parameters()}
    phases = system.phases(two_organ_bank)
    assert {id(p) for phase in phases for p in phase.module.parameters()} == own
    for phase in phases:
        learns = list(phase.module.requires_grad_(True).train().parameters())
        phase.loss_of(4, Step(torch.Generator().manual_seed(0), teacher=phase.module.state_dict()))[0].backward()
        reached = {id(p) for p in learns if p.grad is not None and p.grad.any()}
        assert len(reached) > len(learns) / 4
        taught = {id(p) for p in learns}
        others = [p for other in phases for p in other.module.parameters() if id(p) not in taught]
        assert all(p.grad is None for p in others)
        phase.module.requires_grad_(False).eval()
        for p in learns:
            p.grad = None


def test_pixels_that_nobody_labelled_teach_nothing(name, two_organ_bank):
    """Where there is no label at all, there is no gradient; a posterior alone still answers to its prior."""
    system = stirred(fresh(name))
    nothing = torch.full_like(two_organ_bank.labels, UNLABELLED)
    bank = replace(two_organ_bank, labels=nothing, augmentation="none")  # beyond the border is background
    for phase in system.phases(bank):
        learns = list(phase.module.requires_grad_(True).train().parameters())
        step = Step(torch.Generator().manual_seed(0), teacher=phase.module.state_dict())
        loss, told = phase.loss_of(4, step)
        if "divergence" in told:
            loss = loss - system.config.divergence_weight * told["divergence"]
            assert loss.item() == pytest.approx(0, abs=1e-4)
        else:
            loss.backward()
            assert not any(p.grad.any() for p in learns if p.grad is not None)
        phase.module.requires_grad_(False).eval()


def test_with_other_parts_it_is_another_and_stays_itself(system):
    before = answer(system, n=1)
    parts = {key: copy.deepcopy(part) for key, part in system.parts.items()}
    for part in parts.values():
        for parameter in part.parameters():
            parameter.data *= 0.5
    assert (answer(system.with_parts(parts, NAMES), n=1) - before).abs().max() > 1e-4
    assert torch.equal(answer(system, n=1), before)


def can_learn_names(name):
    """Whether a row's systems get a channel for each new name, or need none."""
    try:
        untrained(name).widen(NEW)
    except DelineateError:
        return False
    return True


@pytest.mark.parametrize(("name", "kind"), with_kinds(name for name in LAYERED.values() if can_learn_names(name)))
def test_new_names_can_be_asked_and_take_nothing_from_the_base(name, kind):
    base = untrained(name)
    before = state(base)
    adapted = attach(base, AdapterConfig(kind, 2), MORE)
    assert adapted.system.vocabulary.names[:4] == MORE.names
    assert adapted.system.learnt.names == MORE.names
    shaken(adapted)
    answers = [named(adapted.system, new) for new in NEW]
    assert all(0 <= one.min() <= one.max() <= 1 for one in answers)
    assert (answers[0] - answers[1]).abs().max() > 1e-5
    again = attach(base, adapted.config, MORE, seed=9)
    again.load(adapted.weights())
    assert torch.equal(named(again.system, NEW[0]), answers[0])
    if adapted.can_merge:
        torch.testing.assert_close(named(adapted.merged(), NEW[0]), answers[0], rtol=0, atol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in state(base).items())


@pytest.mark.parametrize("name", [name for name in SYSTEMS if not can_learn_names(name)])
def test_names_that_cannot_be_learnt_are_refused_in_words(name):
    with pytest.raises(DelineateError, match=r"cannot learn new names \(left kidney, right kidney\); leave"):
        attach(untrained(name), AdapterConfig(rank=2), MORE)


@pytest.mark.parametrize(("name", "kind"), with_kinds(SYSTEMS))
def test_an_adapter_alone_learns(name, kind, two_organ_bank):
    base = untrained(name)
    adapted = attach(base, AdapterConfig(kind, 2), NAMES)
    own, weights = {id(p) for p in adapted.own.values()}, state(base)
    phases = phases_of(adapted, two_organ_bank, 1e-3)
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    for phase in phases:
        learns = list(phase.module.requires_grad_(True).parameters())
        assert {id(p) for p in learns} <= own
        step = Step(torch.Generator().manual_seed(0), teacher=phase.module.state_dict())
        phase.loss_of(2, step)[0].backward()
        reached = [p for p in learns if p.grad is not None and p.grad.any()]
        assert len(reached) > len(learns) / 4  # LoRA's A, SALT's left have none while B and right are zero
        torch.optim.SGD(learns, 1e-2).step()
        phase.module.requires_grad_(False)
    assert all(p.grad is None for part in adapted.system.parts.values() for p in part.parameters() if id(p) not in own)
    assert all(torch.equal(v, weights[k]) for k, v in state(base).items())


def test_a_merged_system_shares_no_memory_with_the_base(system):
    merged, before = attach(system, AdapterConfig(rank=2), NAMES).merged(), state(system)
    for part in merged.parts.values():
        for parameter in part.parameters():
            parameter.data.zero_()
    assert all(torch.equal(v, before[k]) for k, v in state(system).items())
