"""Copy-paste of slices whose every pixel says which slice it is from; and a training that is stopped."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from delineate.data.unlabelled import UnlabelledBank
from delineate.schemes import Streams, bcp
from delineate.systems.plain import PlainConfig, build
from delineate.training.loop import Budget, Interrupted, Run, Step, train_phases

SIZE = 12


class Recorder:
    """A learner that keeps what its network was shown."""

    def __init__(self):
        self.network, self.device, self.shown = nn.Conv2d(3, 3, 1), torch.device("cpu"), []

    def logits(self, image):
        self.shown.append(image.clone())
        return self.network(image)


def drawn():
    """Labelled slices of 1, 2, 3, 4 in every pixel and unlabelled ones of -1, -2, -3, -4."""
    generator = torch.Generator().manual_seed(0)
    number = torch.arange(1.0, 5)[:, None, None, None].expand(-1, 3, SIZE, SIZE)
    labels = torch.randint(0, 3, (4, SIZE, SIZE), generator=generator)
    return bcp.Pasted(SimpleNamespace(image=number, labels=labels), -number, bcp.rectangle(SIZE, generator))


def step(learner):
    return Step(torch.Generator(), teacher={k: v.clone() for k, v in learner.network.state_dict().items()})


def test_the_mixtures_are_those_of_the_equations():
    """X_in = X_i M + U_p (1 - M), X_out = U_q M + X_j (1 - M)."""
    learner, given = Recorder(), drawn()
    bcp.pasted_loss(learner, given, step(learner), [False, False])
    (shown,) = learner.shown
    for picture, around, within in zip(shown, (1, 2, -3, -4), (-1, -2, 3, 4), strict=True):
        assert (picture[:, given.outside[0]] == around).all()
        assert (picture[:, ~given.outside[0]] == within).all()


def test_a_labelled_slice_is_pasted_with_its_labels():
    learner, given = Recorder(), drawn()
    loss, _ = bcp.labelled_loss(learner, given, step(learner))
    labels = given.batch.labels[:2].clone()
    labels[:, ~given.outside[0]] = given.batch.labels[2:][:, ~given.outside[0]]
    everywhere = torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    assert loss.item() == bcp.part_loss(learner.network(learner.shown[0]), labels, everywhere).item()


@pytest.mark.parametrize("stop", [("labelled", 16), ("pasted", 24)])
def test_a_resumed_training_equals_an_uninterrupted_one_to_the_bit(two_organ_bank, tmp_path, stop):
    streams, told = Streams(two_organ_bank, UnlabelledBank(two_organ_bank.images, two_organ_bank.mirrored)), []

    def on_step(phase, state, spent):
        if (phase, state.images_seen) == stop:
            told.append(True)

    learners = [build(PlainConfig(64, (4, 8)), two_organ_bank.vocabulary) for _ in range(3)]
    stopped, resumed, whole = (bcp.phases(learner, streams) for learner in learners)
    budget = Budget(images=80)
    with pytest.raises(Interrupted):
        train_phases(stopped, Run(budget, tmp_path / "a", on_step=on_step, should_stop=lambda: bool(told)))
    train_phases(resumed, Run(budget, tmp_path / "a"))
    train_phases(whole, Run(budget, tmp_path / "b"))
    one, other = (learner.network.state_dict() for learner in learners[1:])
    assert all(torch.equal(one[key], other[key]) for key in other)
