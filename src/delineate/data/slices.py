"""Datasets as training batches: slices on the working grid, held in memory, drawn and augmented by a generator."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from delineate import anatomy
from delineate.data.dataset import Case, Dataset
from delineate.grid import canonical_fit, stack_of
from delineate.prompt import Vocabulary
from delineate.scan import orientation_of, to_canonical


@dataclass(frozen=True, eq=False)
class Batch:
    """Augmented slices and what is asked of them.

    Attributes:
        image: (B, 3, S, S) float32 in [-1, 1].
        labels: (B, S, S) int64; 0 is background, 1 + i is concept i of the vocabulary.
        concepts: (B, P) int64, the concept each prompt asks for; some are absent from their slice.
        masks: (B, P, S, S) float32 in {0, 1}.
        dataset: (B,) int64, which dataset a slice came from.
    """

    image: Tensor
    labels: Tensor
    concepts: Tensor
    masks: Tensor
    dataset: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The batch on another device."""
        return Batch(*(getattr(self, f.name).to(device) for f in fields(self)))


@dataclass(frozen=True, eq=False)
class SliceBank:
    """All training slices of one or several datasets.

    Attributes:
        images: (N, 3, S, S) uint8.
        labels: (N, S, S) uint8, as in `Batch`.
        dataset: (N,) int64.
        mirrored: (N,) bool: may be flipped, because left and right mean nothing in it (flat images).
        annotated: (datasets, concepts) bool: whose labels say where a concept is, or that it is absent.
        foreign: (datasets, concepts) bool: cannot be in the dataset's images, being of another kind of picture or of
            another part of the body; safe to ask as absent.
        present: (N, concepts) bool: which slices show a concept.
        shares: (datasets,) float: how often each dataset is drawn, summing to 1.
        vocabulary: of all datasets together.
        modalities: one for each dataset.
    """

    images: Tensor
    labels: Tensor
    dataset: Tensor
    mirrored: Tensor
    annotated: Tensor
    foreign: Tensor
    present: Tensor
    shares: Tensor
    vocabulary: Vocabulary
    modalities: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        return self.images.shape[-1]

    def draw(self, size: int, prompts: int, generator: Generator, *, augment: bool = True) -> Batch:
        """A batch of `size` slices with `prompts` prompts each.

        A dataset is drawn by its share. Within one, half of the slices are drawn evenly; for the other half a
        concept is drawn first and then a slice that shows it, so that small structures are seen as often as large.
        """
        index = torch.stack([self._draw_slice(generator) for _ in range(size)])
        image = self.images[index].float() / 127.5 - 1
        labels = self.labels[index]
        if augment:
            image, labels = augmented(image, labels, self.mirrored[index], generator)
        labels = labels.long()
        concepts = torch.stack(
            [
                self._draw_prompts(int(d), lab, prompts, generator)
                for d, lab in zip(self.dataset[index], labels, strict=True)
            ]
        )
        masks = (labels[:, None] == (concepts + 1)[:, :, None, None]).float()
        return Batch(image, labels, concepts, masks, self.dataset[index])

    def _draw_slice(self, generator: Generator) -> Tensor:
        dataset = torch.multinomial(self.shares, 1, generator=generator)
        candidates = self.dataset == dataset
        if torch.rand((), generator=generator) < 0.5:
            shown = (self.present & candidates[:, None]).any(0).nonzero()[:, 0]
            if len(shown):
                concept = shown[torch.randint(len(shown), (), generator=generator)]
                candidates = candidates & self.present[:, concept]
        where = candidates.nonzero()[:, 0]
        return where[torch.randint(len(where), (), generator=generator)]

    def _draw_prompts(self, dataset: int, labels: Tensor, count: int, generator: Generator) -> Tensor:
        """Concepts to ask of one slice: those it shows, but a third (rounded down) absent ones where there are any."""
        shows = torch.zeros(len(self.vocabulary.concepts), dtype=torch.bool)
        shows[labels.unique()[1:] - 1 if labels.min() == 0 else labels.unique() - 1] = True
        order = torch.randperm(len(shows), generator=generator)
        present = order[shows[order]]
        absent = order[(self.annotated[dataset] & ~shows)[order]]
        foreign = order[self.foreign[dataset][order]]
        if torch.rand((), generator=generator) < 0.25:
            absent, foreign = torch.cat([foreign[:1], absent]), foreign[1:]
        absent = torch.cat([absent, foreign])
        kept = present[: max(count - len(absent), count - count // 3)]
        chosen = torch.cat([kept, absent, present[len(kept) :]])[:count]
        return chosen.repeat(-(-count // len(chosen)))[:count]


def build_slices(
    datasets: Sequence[Dataset],
    split: str,
    size: int,
    *,
    shares: Sequence[float] | None = None,
    progress: Callable[[Iterable[tuple[Dataset, Case]], int], Iterable[tuple[Dataset, Case]]] = lambda items, _: items,
) -> SliceBank:
    """Read a split of every dataset onto the working grid of `size` pixels.

    Datasets are drawn evenly unless `shares`, one positive number for each, says otherwise.
    `progress` wraps the iteration over all (dataset, case) pairs and is told their number.
    """
    vocabulary = datasets[0].vocabulary()
    for other in datasets[1:]:
        vocabulary = vocabulary.merged(other.vocabulary())
    annotated = torch.zeros(len(datasets), len(vocabulary.concepts), dtype=torch.bool)
    for d, dataset in enumerate(datasets):
        for name in dataset.vocabulary().names:
            annotated[d, vocabulary.index(name)] = True
    modalities = tuple(dataset.modality for dataset in datasets)
    foreign = _foreign(vocabulary, annotated, modalities)
    images, labels, owner, mirrored = [], [], [], []
    pairs = [(dataset, case) for dataset in datasets for case in dataset.split(split)]
    for dataset, case in progress(pairs, len(pairs)):
        stack, target, flat = slices_of(dataset, case, vocabulary, size)
        images.append(((stack + 1) * 127.5).round().to(torch.uint8))
        labels.append(target)
        owner.append(torch.full((len(target),), datasets.index(dataset)))
        mirrored.append(torch.full((len(target),), flat))
    all_labels = torch.cat(labels)
    present = torch.stack([(all_labels == i + 1).flatten(1).any(1) for i in range(len(vocabulary.concepts))], dim=1)
    weights = torch.tensor([1.0] * len(datasets) if shares is None else list(shares))
    return SliceBank(
        torch.cat(images),
        all_labels,
        torch.cat(owner),
        torch.cat(mirrored),
        annotated,
        foreign,
        present,
        weights / weights.sum(),
        vocabulary,
        modalities,
    )


def _foreign(vocabulary: Vocabulary, annotated: Tensor, modalities: Sequence[str | None]) -> Tensor:
    """Which concepts a dataset's images cannot show, (datasets, concepts) bool.

    A concept that nobody annotated may well be there (the liver in a set labelled for kidneys), so absence is claimed
    only where the concept is learnt in another family of pictures alone, or lies, by the anatomy table, in another
    part of the body than everything the dataset annotates.
    """
    known = {s.name: "trunk" if s.region in anatomy.TRUNK else s.region for s in anatomy.STRUCTURES}
    regions = [known.get(name, "") for name in vocabulary.names]
    families = [next((i for i, f in enumerate(anatomy.FAMILIES) if m in f), None) for m in modalities]
    foreign = torch.zeros_like(annotated)
    for d, family in enumerate(families):
        here = {regions[c] for c in annotated[d].nonzero()[:, 0].tolist()}
        for c, region in enumerate(regions):
            learnt_in = {families[e] for e in annotated[:, c].nonzero()[:, 0].tolist()}
            other_picture = family is not None and None not in learnt_in and family not in learnt_in
            elsewhere = bool(region) and "" not in here and region not in here
            foreign[d, c] = other_picture or elsewhere
    return foreign & ~annotated


def slices_of(dataset: Dataset, case: Case, vocabulary: Vocabulary, size: int) -> tuple[Tensor, Tensor, bool]:
    """One case on the grid, and whether it is a flat image.

    Images are (S, 3, size, size) in [-1, 1], labels (S, size, size) uint8 as in `Batch`.
    """
    scan, ids = dataset.read(case)
    canonical = np.ascontiguousarray(to_canonical(ids, orientation_of(scan.affine)))
    table = np.zeros(max(int(canonical.max(initial=0)), *dataset.labels.values()) + 1, dtype=np.uint8)
    for name, value in dataset.labels.items():
        table[value] = 1 + vocabulary.index(name)
    own = torch.from_numpy(table[canonical])
    fit = canonical_fit(scan, size)
    wanted = sorted({int(v) for v in table if v})
    target = torch.cat([fit.labels_to_grid(chunk, wanted) for chunk in own.split(32)])
    return stack_of(scan, size), target, scan.is_flat


def augmented(image: Tensor, labels: Tensor, mirrored: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Slices rotated (±15°), scaled (0.8 to 1.25), shifted (±8 %), and changed in contrast, gamma and noise.

    Args:
        image: (B, 3, S, S) in [-1, 1].
        labels: (B, S, S) uint8; moved by the same map, nearest neighbour.
        mirrored: (B,) bool, which slices may also be flipped either way.
        generator: of every random number drawn here.
    """
    count = len(image)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator)

    angle, scale = uniform(-15, 15).deg2rad(), (uniform(-1, 1) * np.log(1.25)).exp()
    signs = torch.stack([1.0 - 2.0 * (mirrored & (uniform(0, 1) < 0.5)) for _ in range(2)], dim=1)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    linear = rotation * scale[:, None, None] * signs[:, :, None]
    shift = torch.stack([uniform(-0.16, 0.16), uniform(-0.16, 0.16)], dim=1)  # of the half-width: ±8 %
    grid = F.affine_grid(torch.cat([linear, shift[:, :, None]], dim=2), list(image.shape), align_corners=False)
    image = F.grid_sample(image + 1, grid, mode="bilinear", align_corners=False) / 2  # zeros outside are air
    moved = F.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False)[:, 0]
    shape = (-1, 1, 1, 1)
    image = image.clamp(0, 1) ** (uniform(-1, 1) * np.log(1.4)).exp().view(shape)
    image = 0.5 + (image - 0.5) * uniform(0.8, 1.2).view(shape) + uniform(-0.1, 0.1).view(shape)
    noise = torch.randn(image.shape, generator=generator) * uniform(0, 0.05).view(shape)
    return (2 * (image + noise) - 1).clamp(-1, 1), moved.to(torch.uint8)
