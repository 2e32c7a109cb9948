"""What a training request refuses of schemes, and that a teacher is heeded where there are unlabelled slices."""

import pytest
import torch
from tests.contracts.untrained import fresh, stirred

from delineate.data.unlabelled import UnlabelledBank
from delineate.errors import DelineateError
from delineate.jobs.train import TrainRequest
from delineate.schemes import SCHEMES, Streams
from delineate.systems import SYSTEMS
from delineate.training.loop import Step

PIXELWISE = next(name for name, row in SYSTEMS.items() if row.pixelwise)


@pytest.fixture(params=SCHEMES)
def name(request):
    return request.param


def streams(name, bank):
    """Of the same slices, once with labels and once without."""
    return Streams(bank, UnlabelledBank(bank.images, bank.mirrored) if SCHEMES[name].takes_unlabelled else None)


def loss_of(phase, teacher, seed=0):
    phase.module.requires_grad_(True).train()
    return phase.loss_of(4, Step(torch.Generator().manual_seed(seed), teacher=teacher))[0]


def teacher_of(phase, moved=0.0):
    generator = torch.Generator().manual_seed(2)
    return {
        key: value.detach().clone() + (moved * torch.randn(value.shape, generator=generator) if moved else 0)
        for key, value in phase.module.state_dict().items()
    }


def test_where_there_are_unlabelled_slices_a_teacher_is_heeded(name, two_organ_bank):
    phases = SCHEMES[name].phases(stirred(fresh(PIXELWISE)), streams(name, two_organ_bank))
    heeded = []
    for phase in phases:
        one, other = (loss_of(phase, teacher_of(phase, moved)).item() for moved in (0.0, 0.5))
        heeded.append(one != other)
    assert any(heeded) == SCHEMES[name].takes_unlabelled


def test_what_a_scheme_needs_is_refused_in_words_before_any_work(name, tmp_path):
    row, folder = SCHEMES[name], {"unlabelled": tmp_path} if SCHEMES[name].takes_unlabelled else {}
    TrainRequest(PIXELWISE, [tmp_path], scheme=name, **folder)
    other = {} if row.takes_unlabelled else {"unlabelled": tmp_path}
    with pytest.raises(DelineateError, match=f"the scheme {name} (needs|takes no) --unlabelled"):
        TrainRequest(PIXELWISE, [tmp_path], scheme=name, **other)
    odd = [system for system, entry in SYSTEMS.items() if not entry.pixelwise] if row.pixelwise else []
    for system in odd:
        with pytest.raises(DelineateError, match=f"the scheme {name} teaches .*; not {system}"):
            TrainRequest(system, [tmp_path], scheme=name, **folder)


def test_a_scheme_that_there_is_not_and_scans_that_nobody_reads_are_refused(tmp_path):
    with pytest.raises(DelineateError, match=f"--scheme is one of {', '.join(SCHEMES)}; got 'osmosis'"):
        TrainRequest(PIXELWISE, [tmp_path], scheme="osmosis")
    with pytest.raises(DelineateError, match="--unlabelled is for a --scheme that learns from such scans"):
        TrainRequest(PIXELWISE, [tmp_path], unlabelled=tmp_path)
