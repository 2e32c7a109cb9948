"""Bidirectional copy-paste: a student learns from labelled slices with unlabelled frames, and the reverse.

After Bai et al. (2023), "Bidirectional Copy-Paste for Semi-Supervised Medical Image Segmentation" (CVPR), arXiv
2305.00673. A mask M is 0 in a rectangle of 2/3 of either side and 1 around it (Sec. 3.1). First a network learns from
labelled slices pasted into one another. Then a teacher, the moving average of the weights, labels unlabelled slices U
(their largest component, Sec. 3.2), and the student learns from (Eq. 1 to 7)

    X_in  = X_i ⊙ M + U_p ⊙ (1 - M)        Y_in  = Y_i ⊙ M + Ŷ_p ⊙ (1 - M)
    X_out = U_q ⊙ M + X_j ⊙ (1 - M)        Y_out = Ŷ_q ⊙ M + Y_j ⊙ (1 - M)

    L = L(Q(X_in), Y_in) ⊙ M + α L(…) ⊙ (1 - M)  +  α L(Q(X_out), Y_out) ⊙ M + L(…) ⊙ (1 - M),    α = 0.5.

What is left open, and was decided: L is cross entropy plus Dice, each within its part of the picture, Dice counted over
the whole batch; the largest component is kept of every name in a slice by itself, and only of names that training
slices mostly show in one piece (an image of many nuclei keeps them all); the teacher looks as the network does in use,
without a sample's statistics being changed. What a labelled slice does not annotate (several sets) is refused.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch import Generator, Tensor
from torch.func import functional_call

from delineate.data.slices import Batch, SliceBank
from delineate.errors import DelineateError
from delineate.schemes import Streams
from delineate.systems.system import Pixelwise
from delineate.training.loop import Hyperparameters, Loss, Phase, Step
from delineate.training.losses import segmentation_loss

PASTED = 2 / 3  # of either side of the picture
ALPHA = 0.5  # weight of what a teacher labelled
FIRST_SHARE = 0.3  # of the budget: the phase of labelled slices alone
TEACHER_HALFLIFE_IMAGES = 550  # a decay of 0.99 for every 8 images, as published for a step
ONE_PIECE = 0.9  # a name is one piece where at least this share of its slices hold it so


@dataclass(frozen=True, eq=False)
class Pasted:
    """What a step looks at.

    Attributes:
        batch: labelled slices, the first half of which go into the second's places.
        unlabelled: (B, 3, S, S) slices; None in the first phase.
        outside: (1, S, S) bool, M: true around the rectangle.
    """

    batch: Batch
    unlabelled: Tensor | None
    outside: Tensor


def phases(learner: Pixelwise, streams: Streams, *, guessing: bool = True) -> list[Phase]:
    """Two: labelled slices in one another, then labelled and unlabelled ones; without `guessing` the first alone.

    Raises:
        DelineateError: there are no unlabelled slices, or not every set is labelled for every name.
    """
    labelled, unlabelled = streams.labelled, streams.unlabelled
    if unlabelled is None and guessing:
        raise DelineateError("the scheme bcp learns from unlabelled scans as well; name a folder with --unlabelled")
    if not labelled.annotated.all():
        raise DelineateError("the scheme bcp is for sets that are labelled for the same names; train them one by one")

    def draw_labelled(size: int, generator: Generator) -> Pasted:
        batch = labelled.draw(2 * size, 1, generator).to(learner.device)
        return Pasted(batch, None, rectangle(labelled.size, generator).to(learner.device))

    first = Phase("labelled", learner.network, draw_labelled, labelled_loss, learner)
    if unlabelled is None or not guessing:
        return [first]
    whole = one_piece(labelled)

    def draw_both(size: int, generator: Generator) -> Pasted:
        half = draw_labelled(size // 2, generator)
        return replace(half, unlabelled=unlabelled.draw(2 * (size // 2), generator).to(learner.device))

    def loss(system: Pixelwise, drawn: Pasted, step: Step) -> Loss:
        return pasted_loss(system, drawn, step, whole)

    hyper = Hyperparameters(average_halflife_images=TEACHER_HALFLIFE_IMAGES)
    return [
        replace(first, share=FIRST_SHARE),
        Phase("pasted", learner.network, draw_both, loss, learner, 1 - FIRST_SHARE, hyper),
    ]


def rectangle(size: int, generator: Generator) -> Tensor:
    """M, (1, size, size) bool: false in a rectangle of `PASTED` of either side, somewhere, and true around it."""
    side = round(PASTED * size)
    top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for _ in range(2))
    outside = torch.ones(1, size, size, dtype=torch.bool)
    outside[:, top : top + side, left : left + side] = False
    return outside


def labelled_loss(system: Pixelwise, drawn: Pasted, step: Step) -> Loss:
    """Of labelled slices, each with another's rectangle: Dice plus cross entropy of the whole picture."""
    images, labels = drawn.batch.image.chunk(2), drawn.batch.labels.chunk(2)
    logits = system.logits(torch.where(drawn.outside[:, None], *images))
    everywhere = torch.ones_like(drawn.outside)
    return part_loss(logits, torch.where(drawn.outside, *labels), everywhere), {}


def pasted_loss(system: Pixelwise, drawn: Pasted, step: Step, whole: list[bool]) -> Loss:
    """Eq. 6 and 7: of labelled slices with unlabelled rectangles, and of unlabelled ones with labelled rectangles."""
    assert drawn.unlabelled is not None
    (image, other), (labels, other_labels) = drawn.batch.image.chunk(2), drawn.batch.labels.chunk(2)
    inner, outer = drawn.unlabelled.chunk(2)
    guess_inner, guess_outer = pseudo_labels(system, drawn.unlabelled, step, whole).chunk(2)
    outside = drawn.outside
    seen_in, seen_out = system.logits(
        torch.cat([torch.where(outside[:, None], image, inner), torch.where(outside[:, None], outer, other)])
    ).chunk(2)
    known = part_loss(seen_in, labels, outside) + part_loss(seen_out, other_labels, ~outside)
    guessed = part_loss(seen_in, guess_inner, ~outside) + part_loss(seen_out, guess_outer, outside)
    return known + ALPHA * guessed, {"known": known.item(), "guessed": guessed.item()}


@torch.no_grad()
def pseudo_labels(system: Pixelwise, images: Tensor, step: Step, whole: list[bool]) -> Tensor:
    """What the teacher sees in slices, (B, S, S) int64; of names that are one piece the largest component."""
    network = system.network
    learning = network.training
    network.eval()
    labels = functional_call(network, dict(step.teacher), (images,)).argmax(dim=1)
    network.train(learning)
    for channel, one in enumerate(whole, start=1):
        if one:
            masks = (labels == channel).cpu().numpy()
            lost = torch.from_numpy(masks & ~np.stack([largest_component(mask) for mask in masks]))
            labels = labels.masked_fill(lost.to(labels.device), 0)
    return labels


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest piece of a mask (H, W), joined by sides and corners; of two as large the first from the top."""
    pieces, count = ndimage.label(mask, structure=np.ones((3, 3)))  # type: ignore[misc]
    return mask if count < 2 else pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()


def one_piece(bank: SliceBank) -> list[bool]:
    """For every name, whether most of its training slices show it in one piece."""
    shares = []
    for channel in range(1, 1 + bank.present.shape[1]):
        masks = (bank.labels[bank.present[:, channel - 1]] == channel).numpy()
        alone = [bool((largest_component(mask) == mask).all()) for mask in masks]
        shares.append(bool(alone) and sum(alone) >= ONE_PIECE * len(alone))
    return shares


def part_loss(logits: Tensor, labels: Tensor, where: Tensor) -> Tensor:
    """Cross entropy plus Dice of the names that are shown, of the pixels `where` (1, S, S) alone."""
    return segmentation_loss(logits.log_softmax(dim=1), labels, where.expand(len(labels), -1, -1))
