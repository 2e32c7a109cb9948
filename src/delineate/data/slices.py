"""The dataset and sampler of training slices: on the working grid, in memory, drawn and augmented by a generator."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
from torch import Generator, Tensor

from delineate.data.augmentation import AUGMENTATIONS, Augmentation, freedom, moved_labels
from delineate.data.dataset import Case, Dataset
from delineate.data.gridded import NOBODY, UNLABELLED, readings_of, side_by_side, slices_of
from delineate.data.questions import draw_prompts, generator_on
from delineate.data.synthetic import PROVENANCE
from delineate.errors import DatasetError
from delineate.prompts import anatomy
from delineate.prompts.concept import Concept
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.scan import Scan

RATINGS = ("consensus", "random", "all")
NO_RATER, NO_LABEL = -1, -2  # the same in a batch


@dataclass(frozen=True, eq=False)
class Batch:
    """Augmented slices and what is asked of them.

    Attributes:
        image: (B, 3, S, S) float32 in [-1, 1].
        labels: (B, S, S) int64; 0 is background, 1 + i is concept i of the vocabulary, `NO_LABEL` is neither: nobody
            labelled the pixel, and no loss may count it.
        concepts: (B, P) int64, the concept each prompt asks for; some are absent from their slice.
        masks: (B, P, S, S) float32 in {0, 1}.
        dataset: (B,) int64, which dataset a slice came from.
        synthetic: (B, 3, S, S) as `image`: another scan with the same labels, or the same again where a slice has none;
            None where the bank has none at all.
        readings: (B, M, S, S) int64 as `labels`, annotations of up to M raters; `NO_RATER` throughout for a rater who
            is not there. `labels` is one of them where the bank's `rating` says so. None where the bank has none.
        annotated: (B, concepts) bool, whose labels say where a concept is, or that it is absent.
        foreign: (B, concepts) bool, cannot be in the image (negative classes).
        lumped: whether background may hide what is not annotated (the marginal loss, `training.losses.lumped`).
    """

    image: Tensor
    labels: Tensor
    concepts: Tensor
    masks: Tensor
    dataset: Tensor
    annotated: Tensor
    foreign: Tensor
    synthetic: Tensor | None = None
    readings: Tensor | None = None
    lumped: bool = False

    @property
    def possible(self) -> Tensor:
        """(B, concepts) bool: the classes that compete for a pixel, annotated or certainly absent (negative)."""
        return self.annotated | self.foreign

    @property
    def known(self) -> Tensor:
        """(B, 1, S, S) bool: the pixels that somebody labelled."""
        return (self.labels != NO_LABEL)[:, None]

    @property
    def present(self) -> Tensor:
        """(B, M) bool: which raters there are, of a batch with readings."""
        assert self.readings is not None
        return self.readings[:, :, 0, 0] != NO_RATER

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        there = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: value.to(device) for name, value in there.items() if isinstance(value, Tensor)})


@dataclass(frozen=True, eq=False)
class Variants:
    """Synthetic scans of the slices of a bank, with the labels of those.

    Attributes:
        images: (M, 3, S, S) uint8.
        of: (N, K) int64, for every real slice the places of its variants in `images`, then -1.
    """

    images: Tensor
    of: Tensor


@dataclass(frozen=True, eq=False)
class SliceBank:
    """All training slices of one or several datasets, and how batches are drawn of them: a dataset and its sampler.

    Attributes:
        images: (N, 3, S, S) uint8.
        labels: (N, S, S) uint8, as in `Batch`; `UNLABELLED` where nobody labelled a pixel.
        dataset: (N,) int64.
        mirrored: (N,) uint8: how it may be mirrored and turned, `delineate.data.augmentation.freedom`.
        annotated: (datasets, concepts) bool: whose labels say where a concept is, or that it is absent.
        foreign: (datasets, concepts) bool, negative classes: cannot be in a dataset's images, being of another kind of
            picture or of another part of the body; safe to ask as absent.
        present: (N, concepts) bool: which slices show a concept.
        shares: (datasets,) float: how often each dataset is drawn, summing to 1.
        vocabulary: of all datasets together.
        modalities: one for each dataset.
        variants: synthetic scans that go along with the slices; None without.
        augmentation: a key of `delineate.data.augmentation.AUGMENTATIONS`.
        readings: (N, M, S, S) uint8, annotations of up to M raters, as `labels`; `NOBODY` throughout for a rater who
            is not there. A slice of a dataset without raters has its labels for the first. None without any raters.
        rating: what of it a batch takes for its labels. "consensus", none; "random", a rater's drawn anew each time;
            "all", a slice enters a batch as often as it has raters, with each one's (Jungo et al. 2018).
        lumped: whether background may hide every concept that its dataset does not annotate (the marginal loss,
            `training.losses.lumped`), as in adapting a model that knows more than is labelled here; else those are left
            out of the competition.
        apart_mm: how far neighbours are away that go along with a slice, `delineate.scans.grid.stack_of`.
        channels: of every scan, as `Dataset.channels`: images are then (N, channels, S, S).
        regions: what can be asked as well, made of names of `vocabulary`.
        case: (N,) int64, which scan every slice is of, counted from 0 in the order of slices; None where nobody asks.
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
    variants: Variants | None = None
    augmentation: str = "default"
    lumped: bool = False
    readings: Tensor | None = None
    rating: str = "consensus"
    case: Tensor | None = None
    apart_mm: float | None = None
    channels: tuple[str, ...] = ()
    regions: tuple[Concept, ...] = ()

    def __post_init__(self):
        if self.rating not in RATINGS:
            raise ValueError(f"a rating is one of {', '.join(RATINGS)}; got '{self.rating}'")
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"an augmentation is one of {', '.join(AUGMENTATIONS)}; got '{self.augmentation}'")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """Pixels along a side of the working grid."""
        return self.images.shape[-1]

    def subset(self, index: Tensor) -> "SliceBank":
        """The slices at `index` alone (int64), without variants."""
        rows = ("images", "labels", "dataset", "mirrored", "present", "readings", "case")
        there = {name: getattr(self, name) for name in rows}
        return replace(self, variants=None, **{name: x if x is None else x[index] for name, x in there.items()})

    @property
    def device(self) -> torch.device:
        """Where its slices are, and where batches are made."""
        return self.images.device

    def to(self, device: torch.device | str) -> "SliceBank":
        """The bank with its slices on another device; what little decides which are drawn stays."""
        if torch.device(device) == self.device:
            return self
        variants = self.variants and Variants(self.variants.images.to(device), self.variants.of.to(device))
        large = ("images", "labels", "readings")
        moved = {name: x.to(device) for name in large if (x := getattr(self, name)) is not None}
        return replace(self, variants=variants, **moved)

    def draw(self, size: int, prompts: int, generator: Generator, *, augment: bool = True) -> Batch:
        """A batch of `size` slices with `prompts` prompts each.

        A dataset is drawn by its share. Within one, half of the slices are drawn evenly; for the other half a
        concept is drawn first and then a slice that shows it, so that small structures are seen as often as large.

        What concerns synthetic scans is drawn last: with and without them the rest of the batch is the same.
        """
        augmentation = AUGMENTATIONS[self.augmentation if augment else "none"]
        where, rater = self._draw_slices(size, generator)
        dataset, index = self.dataset[where].to(self.device), where.to(self.device)
        generator = generator_on(self.device, generator)
        mirrored, image = self.mirrored[where].to(self.device), self.images[index].float() / 127.5 - 1
        maps = augmentation.maps(mirrored, generator)
        shown = self.labels[index]
        image = augmentation.enhanced(image, shown.masked_fill(shown == UNLABELLED, 0), mirrored, generator)
        image = augmentation.picture(image, maps, generator)
        chosen = self.labels[index]
        if rater is not None and self.readings is not None:
            chosen = self.readings[index, rater.to(self.device)]
        labels = _in_batch(moved_labels(chosen, maps))
        annotated, foreign = (x.to(self.device)[dataset] for x in (self.annotated, self.foreign))
        concepts = draw_prompts(labels, annotated, foreign, prompts, generator)
        masks = (labels[:, None] == (concepts + 1)[:, :, None, None]).float()
        synthetic = self._draw_variants(index, maps, augmentation, generator)
        readings = self._moved_readings(index, maps)
        return Batch(image, labels, concepts, masks, dataset, annotated, foreign, synthetic, readings, self.lumped)

    def stream(self, prompts: int, device: torch.device | str) -> Callable[[int, Generator], Batch]:
        """What a phase of training draws from: (size, generator) to a batch on a device.

        Where the device has memory of its own, slices are moved there once, and batches are made there.
        """
        bank = self.to(device)
        return lambda size, generator: bank.draw(size, prompts, generator)

    @cached_property
    def _pools(self) -> list[tuple[np.ndarray, list[np.ndarray]]]:
        """Of every dataset: the places of its slices, and those of the slices that show a concept, for each shown."""
        present, owner = self.present.cpu().numpy(), self.dataset.cpu().numpy()
        pools = []
        for d in range(len(self.shares)):
            own = np.flatnonzero(owner == d)
            pools.append((own, [shown for c in range(present.shape[1]) if len(shown := own[present[own, c]])]))
        return pools

    def _draw_places(self, count: int, generator: Generator) -> list[int]:
        datasets = torch.multinomial(self.shares, count, replacement=True, generator=generator).tolist()
        halves, concepts, slices = torch.rand(3, count, generator=generator, dtype=torch.float64).tolist()
        places = []
        for d, half, c, s in zip(datasets, halves, concepts, slices, strict=True):
            pool, shown = self._pools[d]
            if half < 0.5 and shown:
                pool = shown[int(c * len(shown))]
            places.append(int(pool[int(s * len(pool))]))
        return places

    def _draw_slices(self, size: int, generator: Generator) -> tuple[Tensor, Tensor | None]:
        """Places of `size` slices (B,), and whose reading of each (B,) is its label; None for the consensus."""
        if self.readings is None or self.rating == "consensus":
            return torch.tensor(self._draw_places(size, generator)), None
        drawn: list[tuple[int, int]] = []
        while len(drawn) < size:
            (slice_,) = self._draw_places(1, generator)
            there = (self.readings[slice_, :, 0, 0].cpu() != NOBODY).nonzero()[:, 0]
            order = there[torch.randperm(len(there), generator=generator)]
            drawn += [(slice_, int(rater)) for rater in (order[:1] if self.rating == "random" else order)]
        pairs = torch.tensor(drawn[:size])
        return pairs[:, 0], pairs[:, 1]

    def _moved_readings(self, index: Tensor, maps: Tensor | None) -> Tensor | None:
        if self.readings is None:
            return None
        readings = self.readings[index]
        count, absent = readings.shape[1], readings[:, :, :1, :1] == NOBODY
        of_each = None if maps is None else maps.repeat_interleave(count, dim=0)
        moved = _in_batch(moved_labels(readings.flatten(0, 1), of_each).view_as(readings))
        return moved.masked_fill(absent, NO_RATER)

    def _draw_variants(
        self, index: Tensor, maps: Tensor | None, augmentation: Augmentation, generator: Generator
    ) -> Tensor | None:
        """One variant of each slice, drawn evenly, moved by the slice's own map; the slice itself where it has none."""
        if self.variants is None:
            return None
        of = self.variants.of[index]
        count = (of >= 0).sum(1)
        nth = (
            (torch.rand(len(index), generator=generator, device=self.device) * count)
            .long()
            .minimum((count - 1).clamp(min=0))
        )
        chosen = of.gather(1, nth[:, None])[:, 0]
        made = self.variants.images[chosen.clamp(min=0)]
        image = torch.where((chosen >= 0)[:, None, None, None], made, self.images[index])
        return augmentation.picture(image.float() / 127.5 - 1, maps, generator)


def _in_batch(labels: Tensor) -> Tensor:
    """Labels uint8 as a batch has them."""
    return labels.long().masked_fill(labels == UNLABELLED, NO_LABEL)


def build_slices(
    datasets: Sequence[Dataset],
    split: str,
    size: int,
    *,
    shares: Sequence[float] | None = None,
    synthetic: str = "extra",
    rating: str = "consensus",
    vocabulary: Vocabulary | None = None,
    prepare: Callable[[Scan], Scan] = lambda scan: scan,
    apart_mm: float | None = None,
    progress: Callable[[Iterable[tuple[Dataset, Case]], int], Iterable[tuple[Dataset, Case]]] = lambda items, _: items,
) -> SliceBank:
    """Read a split of every dataset onto the working grid of `size` pixels.

    Args:
        datasets: one or more.
        split: of each of them.
        size: pixels along a side of the grid.
        shares: one positive number for each dataset, how often it is drawn; by default all are drawn evenly.
        synthetic: what synthetic cases are: slices as all others ("extra"), `variants` of the slices that they were
            made from ("pair"), or nothing ("none").
        rating: one of `RATINGS`. Readings of several raters are read for all but "consensus"; a dataset without them
            counts as having one rater.
        vocabulary: names to begin with; those of the datasets that are not among them come after.
        prepare: what is done to a scan first.
        apart_mm: how far the neighbours of a slice are away, as in `delineate.scans.grid.stack_of`.
        progress: wraps the iteration over all (dataset, case) pairs and is told their number.

    Raises:
        DatasetError: a synthetic case cannot be paired with its source, or as in `Dataset.split` and `Dataset.read`.
    """
    if synthetic not in ("pair", "extra", "none"):
        raise ValueError(f"synthetic cases are pair, extra or none; got '{synthetic}'")
    if odd := [dataset for dataset in datasets if dataset.channels != datasets[0].channels]:
        raise DatasetError(
            f"{odd[0].root}: scans that are learnt from together have the same channels in the same order; here they "
            f"are {_named(odd[0].channels)}, in {datasets[0].root} {_named(datasets[0].channels)}. Train them apart."
        )
    vocabulary = vocabulary or Vocabulary(())
    for dataset in datasets:
        vocabulary = vocabulary.merged(dataset.vocabulary())
    if len(vocabulary.concepts) >= UNLABELLED - 1:
        raise DatasetError(
            f"{datasets[0].root}: {len(vocabulary.concepts)} names are more than a slice's labels can tell apart, "
            f"{UNLABELLED - 2} at most; choose some of them (FOLDER=NAME,NAME)"
        )
    annotated = torch.zeros(len(datasets), len(vocabulary.concepts), dtype=torch.bool)
    for d, dataset in enumerate(datasets):
        for name in dataset.vocabulary().names:
            annotated[d, vocabulary.index(name)] = True
    modalities = tuple(dataset.modality for dataset in datasets)
    foreign = _foreign(vocabulary, annotated, modalities)
    images, labels, owner, mirrored, of_case = [], [], [], [], []
    made: list[tuple[Dataset, Case, Tensor, Tensor]] = []
    read: list[Tensor] = []
    places: dict[tuple[int, str], tuple[int, int]] = {}
    pairs = [(dataset, case) for dataset in datasets for case in dataset.split(split)]
    if synthetic != "none":
        pairs += [(dataset, case) for dataset in datasets for case in dataset.synthetic(split)]
    for dataset, case in progress(pairs, len(pairs)):
        stack, target, flat = slices_of(dataset, case, vocabulary, size, prepare, apart_mm)
        grey = ((stack + 1) * 127.5).round().to(torch.uint8)
        if synthetic == "pair" and case.name in dataset.origins:
            made.append((dataset, case, grey, target))
            continue
        first, number = sum(map(len, images)), datasets.index(dataset)
        places[number, case.name] = (first, first + len(grey))
        images.append(grey)
        labels.append(target)
        if rating != "consensus":
            read.append(readings_of(dataset, case, vocabulary, target))
        of_case.append(torch.full((len(target),), len(of_case)))
        owner.append(torch.full((len(target),), number))
        mirrored.append(torch.full((len(target),), freedom(flat, dataset.modality), dtype=torch.uint8))
    all_labels = torch.cat(labels)
    present = torch.stack([(all_labels == i + 1).flatten(1).any(1) for i in range(len(vocabulary.concepts))], dim=1)
    weights = torch.tensor([1.0] * len(datasets) if shares is None else list(shares))
    bank = SliceBank(
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
        readings=side_by_side(read) if any(r.shape[1] > 1 for r in read) else None,
        rating=rating,
        case=torch.cat(of_case),
        apart_mm=apart_mm,
        channels=datasets[0].channels,
        regions=_regions_of(datasets, vocabulary),
    )
    if not made:
        return bank
    at = [places[datasets.index(dataset), dataset.origins[case.name].source] for dataset, case, *_ in made]
    return replace(bank, variants=_variants(made, at, all_labels))


def _regions_of(datasets: Sequence[Dataset], vocabulary: Vocabulary) -> tuple[Concept, ...]:
    """Those of all datasets; of several of one name the parts must agree."""
    found: dict[str, Concept] = {}
    for dataset in datasets:
        for one in dataset.region_concepts():
            if (other := found.setdefault(one.name, one)).parts != one.parts or one.name in vocabulary.names:
                parts = other.parts if other.parts != one.parts else ("itself",)
                raise DatasetError(
                    f"{dataset.root}: '{one.name}' is made of {', '.join(one.parts)} here and of {', '.join(parts)} "
                    "in another dataset. Rename one of them, or train them apart."
                )
    return vocabulary.with_regions(found.values()).regions


def _named(channels: Sequence[str]) -> str:
    return ", ".join(channels) or "one"


def _variants(
    made: Sequence[tuple[Dataset, Case, Tensor, Tensor]], at: Sequence[tuple[int, int]], labels: Tensor
) -> Variants:
    """Synthetic cases (images uint8, labels) beside the slices they were made from.

    `at` is where in `labels`, those of all real slices, the slices of each one's source begin and end.
    """
    of: list[list[int]] = [[] for _ in labels]
    count = 0
    for (dataset, case, grey, target), (begin, end) in zip(made, at, strict=True):
        origin = dataset.origins[case.name]
        own = range(begin + origin.slices[0], begin + origin.slices[1])
        if len(own) != len(grey) or own.stop > end:
            raise DatasetError(
                f"{dataset.root / PROVENANCE}: '{case.name}' holds {len(grey)} axial slices, not slices "
                f"{list(origin.slices)} of the {end - begin} of '{origin.source}'; synthesise it again."
            )
        if not torch.equal(labels[own.start : own.stop], target):
            raise DatasetError(
                f"{case.labels}: the labels of a synthetic case must be those of '{origin.source}', slices "
                f"{list(origin.slices)}, on the same grid; synthesise it again, or take it as a case of its own "
                f"(--merge extra)."
            )
        for place in range(len(grey)):
            of[own[place]].append(count + place)
        count += len(grey)
    most = max(map(len, of))
    table = torch.tensor([own + [-1] * (most - len(own)) for own in of])
    return Variants(torch.cat([grey for _, _, grey, _ in made]), table)


def _foreign(vocabulary: Vocabulary, annotated: Tensor, modalities: Sequence[str | None]) -> Tensor:
    """The negative classes of datasets, which their images cannot show, (datasets, concepts) bool.

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
            other_picture = family is not None and bool(learnt_in) and not learnt_in & {None, family}
            elsewhere = bool(region) and "" not in here and region not in here
            foreign[d, c] = other_picture or elsewhere
    return foreign & ~annotated
