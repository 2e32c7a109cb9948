"""What every row of `SCHEMES` keeps to with a U-Net; a new row is asked the same without being named here."""

import pytest
import torch
from tests.contracts.untrained import fresh
from torch import Generator, Tensor

from delineate.data.unlabelled import UnlabelledBank
from delineate.schemes import SCHEMES, Scheme, Streams
from delineate.systems import SYSTEMS
from delineate.training.loop import Phase, Step


@pytest.fixture(params=SCHEMES)
def scheme(request) -> Scheme:
    return SCHEMES[request.param]


@pytest.fixture
def phases(scheme, two_organ_bank) -> list[Phase]:
    """Of an untrained U-Net, with the same slices again as unlabelled ones where they are wanted."""
    unlabelled = UnlabelledBank(two_organ_bank.images, two_organ_bank.mirrored)
    return scheme.phases(fresh("unet"), Streams(two_organ_bank, unlabelled if scheme.takes_unlabelled else None))


def step(phase: Phase, seed: int = 0) -> Step:
    """One whose teacher is what the module holds now."""
    teacher = {name: value.detach().clone() for name, value in phase.module.state_dict().items()}
    return Step(Generator().manual_seed(seed), teacher=teacher)


def test_a_scheme_teaches_what_there_is_and_says_whom_it_follows(scheme):
    assert any(row.pixelwise for row in SYSTEMS.values()) or not scheme.pixelwise
    assert len(scheme.summary) > 20
    assert "\n" not in scheme.summary + scheme.source


def test_the_phases_share_the_budget_and_have_names_of_their_own(phases):
    assert sum(phase.share for phase in phases) == pytest.approx(1)
    assert len({phase.name for phase in phases}) == len(phases)


def test_every_phase_teaches_and_leaves_its_teacher_alone(phases):
    for phase in phases:
        phase.module.requires_grad_(True).train()
        now = step(phase)
        before: dict[str, Tensor] = {name: value.clone() for name, value in now.teacher.items()}
        loss, parts = phase.loss_of(4, now)
        assert loss.shape == ()
        assert loss.isfinite()
        assert all(isinstance(value, float) for value in parts.values())
        loss.backward()
        gradients = [p.grad for p in phase.module.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.abs().sum() > 0 for gradient in gradients)
        assert phase.module.training
        assert now.teacher.keys() == before.keys()
        assert all(torch.equal(value, before[name]) for name, value in now.teacher.items())
        assert all(value.grad is None for value in now.teacher.values())


def test_a_loss_depends_on_the_generator_alone(phases):
    for phase in phases:
        first, same, other = (phase.loss_of(4, step(phase, seed))[0].item() for seed in (0, 0, 1))
        assert first == same
        assert first != other
