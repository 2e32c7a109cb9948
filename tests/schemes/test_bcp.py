"""Bidirectional copy-paste: what is pasted where, who labels what, and which part of a picture counts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from delineate.data.slices import Batch
from delineate.data.unlabelled import UnlabelledBank
from delineate.errors import DelineateError
from delineate.schemes import SCHEMES, Streams
from delineate.schemes.bcp import (
    Pasted,
    labelled_loss,
    largest_component,
    one_piece,
    part_loss,
    pasted_loss,
    pseudo_labels,
    rectangle,
)
from delineate.training.loop import Step

SIZE = 6


class Copied(nn.Module):
    """A network whose logits are its three channels, each times a weight."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, image: Tensor) -> Tensor:
        return image * self.scale[:, None, None]


class Fake:
    """A pixelwise system that keeps what it was shown and answers the picture itself: background, and two names."""

    def __init__(self):
        self.network = Copied()
        self.shown: list[Tensor] = []

    def logits(self, image: Tensor) -> Tensor:
        self.shown.append(image)
        return self.network(image)


@pytest.fixture
def system() -> Fake:
    return Fake()


def pictures(count: int, seed: int) -> Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=Generator().manual_seed(seed)) * 2 - 1


def step(scale: tuple[float, float, float] = (1, 1, 1)) -> Step:
    """One whose teacher weighs the channels so."""
    return Step(Generator().manual_seed(0), teacher={"scale": torch.tensor(scale)})


def pasted(unlabelled: Tensor | None = None) -> Pasted:
    """Four labelled slices, two and two, and a rectangle of 4 pixels a side."""
    labels = torch.randint(0, 3, (4, SIZE, SIZE), generator=Generator().manual_seed(4))
    none = torch.zeros(4, 2, dtype=torch.bool)
    batch = Batch(pictures(4, 1), labels, torch.zeros(4, 1), torch.zeros(4, 1, SIZE, SIZE), torch.zeros(4), ~none, none)
    outside = torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    outside[:, 1:5, 2:6] = False
    return Pasted(batch, unlabelled, outside)


def mixed(around: Tensor, within: Tensor) -> Tensor:
    """`around` with the rectangle of `pasted` out of `within`, by slices."""
    whole = around.clone()
    whole[..., 1:5, 2:6] = within[..., 1:5, 2:6]
    return whole


@pytest.mark.parametrize("size", [6, 64, 96, 100])
def test_the_rectangle_is_two_thirds_of_either_side_and_inside_the_picture(size):
    places = set()
    for seed in range(20):
        outside = rectangle(size, Generator().manual_seed(seed))
        assert outside.shape == (1, size, size)
        rows, columns = ((~outside[0]).any(dim=dim).nonzero()[:, 0] for dim in (1, 0))
        assert len(rows) == len(columns) == round(2 * size / 3)
        assert (~outside).sum() == len(rows) ** 2  # one piece, without holes
        places.add((rows[0].item(), columns[0].item()))
    assert len(places) > 3


# Pictures and labels.


def test_the_first_phase_shows_one_labelled_slice_in_another(system):
    drawn = pasted()
    loss, _ = labelled_loss(system, drawn, step())
    image, labels = drawn.batch.image, drawn.batch.labels
    (shown,) = system.shown
    assert torch.equal(shown, mixed(image[:2], image[2:]))
    everywhere = torch.ones_like(drawn.outside)
    assert torch.equal(loss, part_loss(shown, mixed(labels[:2], labels[2:]), everywhere))


def test_the_second_phase_pastes_both_ways_and_counts_guesses_by_half(system):
    unlabelled = pictures(4, 2)
    drawn, now = pasted(unlabelled), step((1, 2, 3))
    loss, parts = pasted_loss(system, drawn, now, [False, False])
    (image, other), (inner, outer) = drawn.batch.image.chunk(2), unlabelled.chunk(2)
    (shown,) = system.shown
    into, out = shown.chunk(2)
    assert torch.equal(into, mixed(image, inner))
    assert torch.equal(out, mixed(outer, other))
    labels, other_labels = drawn.batch.labels.chunk(2)
    guess_inner, guess_outer = pseudo_labels(system, unlabelled, now, [False, False]).chunk(2)
    known = part_loss(into, labels, drawn.outside) + part_loss(out, other_labels, ~drawn.outside)
    guessed = part_loss(into, guess_inner, ~drawn.outside) + part_loss(out, guess_outer, drawn.outside)
    torch.testing.assert_close(loss, known + 0.5 * guessed)
    assert parts == pytest.approx({"known": known.item(), "guessed": guessed.item()})


# What the teacher says.


def test_the_teacher_labels_and_not_the_student(system):
    images, teacher = pictures(2, 2), (1.0, 5.0, -3.0)
    labels = pseudo_labels(system, images, step(teacher), [False, False])
    assert torch.equal(labels, (images * torch.tensor(teacher)[:, None, None]).argmax(1))
    assert not torch.equal(labels, images.argmax(1))
    assert system.shown == []


def test_no_gradient_reaches_the_student_through_what_the_teacher_said(system):
    weights = torch.ones(3, requires_grad=True)
    now = Step(Generator(), teacher={"scale": weights})
    labels = pseudo_labels(system, pictures(2, 2), now, [False, False])
    assert not labels.requires_grad
    loss, _ = pasted_loss(system, pasted(pictures(4, 2)), now, [False, False])
    loss.backward()
    assert weights.grad is None
    assert system.network.scale.grad.abs().sum() > 0


@pytest.mark.parametrize("learning", [True, False])
def test_the_teacher_looks_as_in_use_and_leaves_the_network_in_the_mode_it_was_in(system, learning):
    modes = []
    system.network.register_forward_pre_hook(lambda network, _: modes.append(network.training))
    system.network.train(learning)
    pseudo_labels(system, pictures(2, 2), step(), [False, False])
    assert modes == [False]
    assert system.network.training == learning


def test_names_of_one_piece_keep_their_largest_and_names_of_many_keep_all(system):
    image = torch.full((1, 3, SIZE, SIZE), -1.0)
    image[:, 0] = 0
    for channel in (1, 2):
        image[0, channel, 3 * channel - 3, 0] = 1  # one pixel
        image[0, channel, 3 * channel - 3 : 3 * channel - 1, 3:5] = 1  # four
    every = pseudo_labels(system, image, step(), [False, False])
    assert torch.equal(torch.bincount(every.flatten())[1:], torch.tensor([5, 5]))
    one = pseudo_labels(system, image, step(), [True, False])
    assert torch.equal(torch.bincount(one.flatten())[1:], torch.tensor([4, 5]))
    assert one[0, 0, 0] == 0
    assert one[0, 3, 0] == 2


# Pieces.


def test_the_largest_piece_is_joined_by_sides_and_corners():
    mask = np.array([[1, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]], dtype=bool)
    assert largest_component(mask).nonzero()[0].tolist() == [0, 1, 2]
    assert largest_component(mask).nonzero()[1].tolist() == [0, 1, 2]


def test_of_two_pieces_as_large_the_first_from_the_top_is_kept():
    mask = np.array([[0, 0, 0, 1], [0, 0, 0, 1], [1, 0, 0, 0], [1, 0, 0, 0]], dtype=bool)
    assert largest_component(mask)[:2].sum() == 2
    assert largest_component(mask).sum() == 2


@pytest.mark.parametrize("filled", [False, True])
def test_nothing_and_a_single_piece_stay_as_they_are(filled):
    mask = np.full((4, 4), filled)
    assert (largest_component(mask) == mask).all()


def test_a_name_is_one_piece_where_nine_of_ten_slices_show_it_so(two_organ_bank):
    labels = torch.zeros(10, SIZE, SIZE, dtype=torch.uint8)
    labels[:, 0, :2] = 1
    labels[:, 3, 0] = labels[:2, 5, 5] = 2
    labels[0, 2, 4] = 1
    bank = replace(two_organ_bank, labels=labels, present=torch.ones(10, 2, dtype=torch.bool))
    assert one_piece(bank) == [True, False]
    nowhere = replace(bank, present=torch.zeros(10, 2, dtype=torch.bool))
    assert one_piece(nowhere) == [False, False]


# The loss of a part.


def test_pixels_outside_the_part_change_nothing():
    logits, labels, where = pictures(2, 3).requires_grad_(), pasted().batch.labels[:2], pasted().outside
    loss = part_loss(logits, labels, where)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert (gradient.movedim(1, -1)[:, ~where[0]] == 0).all()
    assert (gradient.movedim(1, -1)[:, where[0]] != 0).all()
    otherwise = torch.where(where, labels, (labels + 1) % 3)
    assert torch.equal(part_loss(logits, otherwise, where), loss)


def test_a_name_that_is_not_shown_adds_no_dice():
    """Sure and right everywhere but of a name that nobody shows: cross entropy alone is left."""
    labels = torch.zeros(1, SIZE, SIZE, dtype=torch.int64)
    logits, where = pictures(1, 3), torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    torch.testing.assert_close(part_loss(logits, labels, where), nn.functional.cross_entropy(logits, labels))


def test_dice_is_the_mean_of_the_names_that_are_shown():
    labels = torch.zeros(1, SIZE, SIZE, dtype=torch.int64)
    labels[:, :3] = 1
    logits, where = pictures(1, 3), torch.ones(1, SIZE, SIZE, dtype=torch.bool)
    p, mask = logits.softmax(1)[:, 1], (labels == 1).float()
    dice = 2 * (p * mask).sum() / (p + mask).sum()
    expected = nn.functional.cross_entropy(logits, labels) + 1 - dice
    torch.testing.assert_close(part_loss(logits, labels, where), expected, rtol=1e-4, atol=1e-5)


def test_a_part_that_is_right_costs_next_to_nothing():
    labels = pasted().batch.labels
    logits = 40 * nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    assert part_loss(logits, labels, pasted().outside) < 1e-4


# What it is taught with.


def test_without_unlabelled_slices_it_says_what_to_give(system, two_organ_bank):
    with pytest.raises(DelineateError, match="name a folder with --unlabelled"):
        SCHEMES["bcp"].phases(system, Streams(two_organ_bank))


@pytest.mark.parametrize("name", ["bcp", "copypaste"])
def test_sets_that_are_not_labelled_for_every_name_are_refused(system, two_organ_bank, name):
    bank = replace(two_organ_bank, annotated=torch.tensor([[True, False]]))
    unlabelled = UnlabelledBank(bank.images, bank.mirrored)
    with pytest.raises(DelineateError, match="labelled for the same names; train them one by one"):
        SCHEMES[name].phases(system, Streams(bank, unlabelled))


def test_copy_paste_alone_is_the_first_phase_with_the_whole_budget(system, two_organ_bank):
    (only,) = SCHEMES["copypaste"].phases(system, Streams(two_organ_bank))
    streams = Streams(two_organ_bank, UnlabelledBank(two_organ_bank.images, two_organ_bank.mirrored))
    first, second = SCHEMES["bcp"].phases(system, streams)
    assert (only.share, first.name, only.loss) == (1, only.name, first.loss)
    assert first.share + second.share == pytest.approx(1)
