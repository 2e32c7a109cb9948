from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from delineate.data.dataset import open_dataset
from delineate.data.phantom import PHANTOM_LABELS, write_phantom_dataset
from delineate.data.slices import NOBODY, _foreign, build_slices, slices_of
from delineate.prompts.concept import Concept
from delineate.prompts.vocabulary import Vocabulary
from delineate.storage.files import write_json


def seeded(seed=0):
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def two_modalities(tmp_path_factory):
    """CT that knows liver and spleen, more CT that knows the aorta, MR that knows liver and left kidney."""
    root = tmp_path_factory.mktemp("datasets")
    folders = [
        write_phantom_dataset(root / name, cases=3, modality=modality, seed=seed, shape=(8, 48, 48), missing=())
        for seed, (name, modality) in enumerate([("ct", "CT"), ("more_ct", "CT"), ("mr", "MR")])
    ]
    targets = [("liver", "spleen"), ("aorta",), ("liver", "left kidney")]
    return [
        open_dataset(folder, targets={name: PHANTOM_LABELS[name] for name in names})
        for folder, names in zip(folders, targets, strict=True)
    ]


@pytest.fixture(scope="module")
def three_banks(two_modalities):
    return build_slices(two_modalities, "train", 64)


@pytest.fixture(scope="module")
def polyps(tmp_path_factory):
    """Flat colour images: a bright disc each, beside a dark background, with its mask."""
    root = tmp_path_factory.mktemp("polyps")
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (root / part).mkdir()
    y, x = np.mgrid[:60, :80]
    for number in range(6):
        disc = (y - rng.integers(20, 40)) ** 2 + (x - rng.integers(20, 60)) ** 2 < 100
        pixels = np.where(disc[..., None], [220, 120, 60], [20, 30, 10]).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"p{number}.png")
        Image.fromarray(disc.astype(np.uint8) * 255).save(root / "masks" / f"p{number}.png")
    write_json(root / "splits.json", {"train": ["p0", "p1", "p2", "p3"], "val": ["p4"], "test": ["p5"]})
    return open_dataset(root, targets=["polyp"], modality="endoscopy")


# what is in a bank


def test_a_bank_holds_every_slice_of_its_split_and_no_other(phantom_dataset, phantom_bank):
    dataset = open_dataset(phantom_dataset)
    assert len(phantom_bank) == 10 * len(dataset.split("train")) == 40
    assert phantom_bank.images.shape == (40, 3, 64, 64)
    assert phantom_bank.labels.shape == (40, 64, 64)
    assert phantom_bank.vocabulary.names == tuple(PHANTOM_LABELS)
    held_out, *_ = slices_of(dataset, dataset.split("test")[0], phantom_bank.vocabulary, 64)
    for image in ((held_out + 1) * 127.5).round().to(torch.uint8):
        assert not (phantom_bank.images == image).flatten(1).all(1).any()


def test_images_lose_less_than_a_grey_level(phantom_dataset, phantom_bank):
    dataset = open_dataset(phantom_dataset)
    images, labels, _ = slices_of(dataset, dataset.split("train")[0], phantom_bank.vocabulary, 64)
    kept = phantom_bank.images[:10].float() / 127.5 - 1
    assert (kept - images).abs().max() <= 1 / 255 + 1e-6
    assert torch.equal(phantom_bank.labels[:10], labels)


def test_labels_lie_where_the_organ_is_seen(phantom_bank):
    """In CT fat is dark and organs are bright: the image inside the labels is brighter than just outside of them."""
    organs = (phantom_bank.labels > 0)[:, None].float()
    around = torch.nn.functional.max_pool2d(organs, 7, stride=1, padding=3) - organs
    seen = phantom_bank.images[:, 1:2].float()
    assert (seen * organs).sum() / organs.sum() > 1.2 * (seen * around).sum() / around.sum()


def test_what_is_present_is_what_the_labels_hold(phantom_bank):
    for k in range(len(phantom_bank)):
        shown = set(phantom_bank.labels[k].unique().tolist()) - {0}
        assert shown == set((phantom_bank.present[k].nonzero()[:, 0] + 1).tolist())
    assert phantom_bank.present.any(0).all()


def test_datasets_are_merged_under_one_vocabulary(two_modalities, three_banks):
    names = three_banks.vocabulary.names
    assert sorted(names) == ["aorta", "left kidney", "liver", "spleen"]
    assert three_banks.modalities == ("CT", "CT", "MR")
    assert three_banks.dataset.bincount().tolist() == [8, 8, 8]
    for d, known in enumerate([{"liver", "spleen"}, {"aorta"}, {"liver", "left kidney"}]):
        assert {names[i] for i in three_banks.annotated[d].nonzero()[:, 0]} == known
        own = three_banks.labels[three_banks.dataset == d].unique().tolist()
        assert {names[i - 1] for i in own if i} == known


@pytest.fixture(scope="module")
def mixed_bank(two_modalities, polyps):
    """Abdominal CT, endoscopy, abdominal MR."""
    return build_slices([two_modalities[0], polyps, two_modalities[2]], "train", 64)


def test_foreign_is_another_kind_of_picture_never_an_organ_that_was_not_labelled(three_banks, mixed_bank):
    assert not three_banks.foreign.any()
    names = mixed_bank.vocabulary.names
    foreign = [{names[i] for i in row.nonzero()[:, 0]} for row in mixed_bank.foreign]
    assert foreign == [{"polyp"}, {"liver", "spleen", "left kidney"}, {"polyp"}]


def test_another_part_of_the_body_is_foreign_within_one_modality():
    vocabulary = Vocabulary.from_names(["liver", "lung nodule", "anterior hippocampus"], "MR")
    foreign = _foreign(vocabulary, torch.eye(3, dtype=torch.bool), ("MR", "MR", "MR"))
    assert foreign.tolist() == [[False, False, True], [False, False, True], [True, True, False]]


def test_a_merged_case_has_the_labels_it_had_alone(two_modalities, three_banks):
    alone = build_slices(two_modalities[2:], "train", 64)
    merged = three_banks.labels[three_banks.dataset == 2]
    for i, name in enumerate(alone.vocabulary.names):
        assert torch.equal(alone.labels == i + 1, merged == three_banks.vocabulary.index(name) + 1)
        assert (alone.labels == i + 1).any()


def test_only_flat_images_may_be_mirrored(polyps, two_modalities, three_banks):
    assert not three_banks.mirrored.any()
    bank = build_slices([polyps, two_modalities[0]], "train", 64)
    assert torch.equal(bank.mirrored, 2 * (bank.dataset == 0))  # polyps have no top
    still = build_slices([replace(polyps, modality="US")], "train", 64)
    assert (still.mirrored == 1).all()  # an ultrasound has: its skin


def test_progress_is_told_of_every_case(polyps, two_modalities):
    told = []

    def progress(items, total):
        for item in items:
            told.append((item[0].name, item[1].name, total))
            yield item

    build_slices([polyps, two_modalities[0]], "train", 64, progress=progress)
    assert len(told) == len(set(told)) == told[0][2] == 5


# what is drawn


def same(one, two):
    return all(
        torch.equal(getattr(one, f), getattr(two, f)) for f in ("image", "labels", "concepts", "masks", "dataset")
    )


@pytest.mark.parametrize("augment", [True, False])
def test_a_draw_depends_on_its_generator_alone(three_banks, augment):
    torch.manual_seed(1)
    first = three_banks.draw(6, 4, seeded(), augment=augment)
    torch.manual_seed(2)
    assert same(first, three_banks.draw(6, 4, seeded(), augment=augment))
    assert not same(first, three_banks.draw(6, 4, seeded(1), augment=augment))


@pytest.mark.parametrize("augment", [True, False])
def test_a_draw_changes_neither_the_bank_nor_the_global_randomness(phantom_bank, augment):
    images, labels, state = phantom_bank.images.clone(), phantom_bank.labels.clone(), torch.get_rng_state()
    phantom_bank.draw(8, 4, seeded(), augment=augment)
    assert torch.equal(images, phantom_bank.images)
    assert torch.equal(labels, phantom_bank.labels)
    assert torch.equal(state, torch.get_rng_state())


def test_a_batch_is_as_it_says(three_banks):
    batch = three_banks.draw(12, 5, seeded())
    assert batch.image.shape == (12, 3, 64, 64)
    assert batch.masks.shape == (12, 5, 64, 64)
    assert batch.concepts.shape == (12, 5)
    assert batch.image.dtype == batch.masks.dtype == torch.float32
    assert batch.labels.dtype == batch.concepts.dtype == torch.int64
    assert batch.image.abs().max() <= 1
    assert set(batch.masks.unique().tolist()) == {0, 1}


@pytest.mark.parametrize("augment", [True, False])
def test_a_mask_shows_the_concept_that_was_asked_for(three_banks, augment):
    batch = three_banks.draw(24, 4, seeded(), augment=augment)
    for labels, concepts, masks in zip(batch.labels, batch.concepts, batch.masks, strict=True):
        for concept, mask in zip(concepts, masks, strict=True):
            assert torch.equal(mask.bool(), labels == concept + 1)
    assert batch.masks.flatten(2).any(2).any(0).any()


def test_an_unaugmented_slice_is_a_slice_of_the_bank(phantom_bank):
    batch = phantom_bank.draw(5, 3, seeded(), augment=False)
    for image, labels in zip(batch.image, batch.labels, strict=True):
        where = ((phantom_bank.images.float() / 127.5 - 1) == image).flatten(1).all(1).nonzero()[:, 0]
        assert len(where) >= 1
        assert torch.equal(phantom_bank.labels[where[0]].long(), labels)


@pytest.mark.parametrize("prompts", [3, 6, 9])
def test_prompts_ask_for_what_is_there_and_for_a_third_of_what_is_not(phantom_bank, prompts):
    batch = phantom_bank.draw(40, prompts, seeded())
    for labels, concepts, masks in zip(batch.labels, batch.concepts, batch.masks, strict=True):
        there, asked = len(labels.unique()) - 1, masks.flatten(1).any(1)
        assert len(set(concepts.tolist())) == prompts  # no target twice while there are others
        missing = len(PHANTOM_LABELS) - there
        assert (~asked).sum() >= min(missing, prompts // 3)
        assert asked.sum() >= min(there, prompts - prompts // 3)


def test_one_prompt_asks_for_something_that_is_there(phantom_bank):
    batch = phantom_bank.draw(40, 1, seeded())
    shows = (batch.labels > 0).flatten(1).any(1)
    assert shows.any()
    assert torch.equal(batch.masks.flatten(1).any(1), shows)


def test_more_prompts_than_targets_repeat_them(polyps):
    batch = build_slices([polyps], "train", 64).draw(4, 5, seeded())
    assert batch.concepts.unique().tolist() == [0]


def test_what_nobody_annotated_is_never_asked_for(mixed_bank):
    batch = mixed_bank.draw(200, 4, seeded())
    for d in range(3):
        allowed = (mixed_bank.annotated[d] | mixed_bank.foreign[d]).nonzero()[:, 0].tolist()
        asked = batch.concepts[batch.dataset == d].unique().tolist()
        assert asked == allowed  # and all that may be asked for is
        foreign = torch.isin(batch.concepts, mixed_bank.foreign[d].nonzero()[:, 0]) & (batch.dataset == d)[:, None]
        assert not batch.masks[foreign].any()


@pytest.mark.parametrize("prompts", [2, 3, 4])
def test_no_target_is_asked_for_twice_while_there_are_others(mixed_bank, prompts):
    batch = mixed_bank.draw(200, prompts, seeded())
    for dataset, concepts in zip(batch.dataset, batch.concepts, strict=True):
        choice = int((mixed_bank.annotated[dataset] | mixed_bank.foreign[dataset]).sum())
        assert len(set(concepts.tolist())) == min(prompts, choice)


def test_datasets_are_drawn_evenly_whatever_their_size(polyps, phantom_dataset):
    bank = build_slices([polyps, open_dataset(phantom_dataset)], "train", 64)
    counts = bank.dataset.bincount()
    assert counts[1] >= 10 * counts[0]
    drawn = bank.draw(300, 1, seeded(), augment=False).dataset.float().mean().item()
    assert drawn == pytest.approx(0.5, abs=0.1)


def test_small_structures_are_seen_more_often_than_they_occur(phantom_bank):
    rare = int(phantom_bank.present.float().mean(0).argmin())
    occurs = phantom_bank.present[:, rare].float().mean().item()
    batch = phantom_bank.draw(400, 1, seeded(), augment=False)
    seen = (batch.labels == rare + 1).flatten(1).any(1).float().mean().item()
    assert occurs > 0
    assert seen > occurs + 0.03


# a few of them, with names that a model brings along, prepared


def test_a_subset_is_those_slices_in_that_order(three_banks):
    index = torch.tensor([17, 3, 3, 9])
    few = three_banks.subset(index)
    assert len(few) == 4
    for name in ("images", "labels", "dataset", "mirrored", "present"):
        assert torch.equal(getattr(few, name), getattr(three_banks, name)[index])
    for name in ("annotated", "foreign", "shares", "vocabulary", "modalities", "augmentation", "lumped"):
        assert getattr(few, name) is getattr(three_banks, name)
    assert few.variants is None
    assert len(three_banks) == 24


def test_all_of_a_bank_is_drawn_from_as_the_bank_itself(three_banks):
    whole = three_banks.subset(torch.arange(len(three_banks)))
    assert same(whole.draw(8, 3, seeded()), three_banks.draw(8, 3, seeded()))


def test_nothing_but_the_subset_is_drawn(phantom_bank):
    few = phantom_bank.subset(torch.tensor([4, 25]))
    batch = few.draw(20, 2, seeded(), augment=False)
    drawn = {int(torch.equal(labels, few.labels[1].long())) for labels in batch.labels}
    assert drawn == {0, 1}
    assert all(any(torch.equal(labels, own.long()) for own in few.labels) for labels in batch.labels)


def test_background_hides_nothing_unless_it_is_said(two_modalities, three_banks):
    assert not three_banks.lumped
    assert not build_slices(two_modalities[:1], "train", 64, vocabulary=three_banks.vocabulary).lumped
    assert replace(three_banks, lumped=True).subset(torch.tensor([0])).lumped


BROUGHT = Vocabulary(
    (Concept("polyp", (), ("endoscopy",)), *Vocabulary.from_names(["spleen", "stomach"], "MR").concepts)
)


def test_names_that_are_brought_along_come_first_and_keep_their_places(two_modalities):
    alone = build_slices(two_modalities[:1], "train", 64)
    bank = build_slices(two_modalities[:1], "train", 64, vocabulary=BROUGHT)
    assert bank.vocabulary.names == ("polyp", "spleen", "stomach", "liver")
    assert bank.vocabulary.concepts[1].modalities == ("MR", "CT")
    assert bank.annotated.tolist() == [[False, True, False, True]]
    assert torch.equal(bank.images, alone.images)
    for i, name in enumerate(bank.vocabulary.names):
        own = alone.labels == alone.vocabulary.index(name) + 1 if name in alone.vocabulary.names else False
        assert torch.equal(bank.labels == i + 1, own & (alone.labels > 0))
    assert not bank.present[:, [0, 2]].any()
    asked = bank.draw(60, 4, seeded()).concepts.unique().tolist()
    assert asked == [1, 3]  # what no label tells of is never asked for


def test_a_dataset_s_own_names_brought_along_change_nothing(two_modalities, three_banks):
    again = build_slices(two_modalities, "train", 64, vocabulary=three_banks.vocabulary)
    assert again.vocabulary == three_banks.vocabulary
    assert same(again.draw(8, 3, seeded()), three_banks.draw(8, 3, seeded()))


def test_an_ultrasound_of_one_thing_tells_that_a_ct_of_another_does_not_show_it():
    """Else nothing ever teaches a model that a CT of the abdomen has no fetal head, and it finds one there."""
    vocabulary = Vocabulary.from_names(["liver", "fetal head", "breast lesion"])
    foreign = _foreign(vocabulary, torch.eye(3, dtype=torch.bool), ("CT", "US", "US"))
    assert torch.equal(foreign, ~torch.eye(3, dtype=torch.bool))


def test_what_nobody_annotates_is_foreign_nowhere_because_of_its_modality():
    vocabulary = Vocabulary((*BROUGHT.concepts, *Vocabulary.from_names(["anterior hippocampus"], "MR").concepts))
    annotated = torch.zeros(2, 4, dtype=torch.bool)
    annotated[:, 1] = True  # spleen
    foreign = _foreign(vocabulary, annotated, ("CT", None))
    assert foreign.tolist() == [[False, False, False, True]] * 2  # the head is not in pictures of the trunk
    annotated[1, 0] = True  # once endoscopy teaches polyps, CT has none
    assert _foreign(vocabulary, annotated, ("CT", "endoscopy"))[0].tolist() == [True, False, False, True]
    assert not _foreign(vocabulary, annotated, ("CT", None))[0, 0]  # unless it may be CT itself


def test_scans_are_prepared_before_anything_else_and_labels_are_not(two_modalities):
    mr, told = two_modalities[2], []

    def negative(scan):
        told.append(scan)
        return replace(scan, voxels=-scan.voxels)

    plain, prepared = build_slices([mr], "train", 64), build_slices([mr], "train", 64, prepare=negative)
    cases = mr.split("train")
    assert len(told) == len(cases)
    for scan, case in zip(told, cases, strict=True):
        np.testing.assert_array_equal(scan.voxels, mr.read(case)[0].voxels)
        assert scan.modality == "MR"
    assert torch.equal(prepared.labels, plain.labels)
    apart = (prepared.images.int() - (255 - plain.images.int())).abs()
    assert apart.max() <= 1  # the rounding to grey levels
    assert plain.images.float().std() > 20


# several raters


@pytest.fixture(scope="module")
def rated_dataset(rated):
    return open_dataset(rated)


def areas(labels):
    return [int(n) for n in (labels > 0).flatten(-2).sum(-1).flatten()]


def test_readings_of_all_raters_lie_side_by_side(rated_dataset):
    bank = build_slices([rated_dataset], "train", 64, rating="random")
    small, large = 193, 793
    assert bank.readings.shape == (3, 3, 64, 64)
    assert areas(bank.readings[0]) == [small, large, 0]
    assert (bank.readings[2, 2] == NOBODY).all()
    assert areas(bank.labels) == [large] * 3
    assert areas(bank.subset(torch.tensor([1])).readings) == [small, large, 0]


def test_a_random_rater_is_each_one_as_often_and_never_one_who_is_not_there(rated_dataset):
    bank = build_slices([rated_dataset], "train", 64, rating="random")
    batch = bank.draw(600, 1, seeded(), augment=False)
    drawn = np.array(areas(batch.labels))
    three = (batch.readings[:, 2, 0, 0] >= 0).numpy()  # those slices have a third rater, who saw nothing
    for there, chances in ((three, {193: 1 / 3, 793: 1 / 3, 0: 1 / 3}), (~three, {193: 1 / 2, 793: 1 / 2, 0: 0})):
        for area, chance in chances.items():
            assert np.mean(drawn[there] == area) == pytest.approx(chance, abs=0.08)
    assert (batch.readings[~torch.from_numpy(three), 2] == -1).all()


def test_all_raters_of_a_slice_come_one_after_the_other(rated_dataset):
    batch = build_slices([rated_dataset], "train", 64, rating="all").draw(8, 1, seeded(1), augment=False)
    images = batch.image[:, 0, 0, 0]
    runs, labels = torch.unique_consecutive(images, return_counts=True), areas(batch.labels)
    for start, length in zip((runs[1].cumsum(0) - runs[1])[:-1].tolist(), runs[1][:-1].tolist(), strict=True):
        there = int((batch.readings[start, :, 0, 0] >= 0).sum())
        assert length % there == 0
        assert sorted(labels[start : start + there]) == sorted(areas(batch.readings[start, :there]))


def test_readings_move_with_their_picture(rated_dataset):
    batch = build_slices([rated_dataset], "train", 64, rating="random").draw(16, 1, seeded(2))
    own = [
        any(torch.equal(one, r) for r in readings) for one, readings in zip(batch.labels, batch.readings, strict=True)
    ]
    assert all(own)
    assert len(set(areas(batch.readings[:, 1]))) > 4  # each is turned and scaled in its own way


def test_the_consensus_is_drawn_as_if_there_were_no_raters(rated_dataset):
    bank = build_slices([rated_dataset], "train", 64)
    assert bank.readings is None
    told = replace(build_slices([rated_dataset], "train", 64, rating="random"), rating="consensus")
    one, other = bank.draw(4, 2, seeded(3)), told.draw(4, 2, seeded(3))
    assert torch.equal(one.labels, other.labels)
    assert torch.equal(one.image, other.image)
    assert one.readings is None
    assert other.readings.shape == (4, 3, 64, 64)


def test_a_dataset_without_raters_counts_as_one_rater_beside_others(rated_dataset, polyps):
    bank = build_slices([rated_dataset, polyps], "train", 64, rating="all")
    own = bank.dataset == 1
    assert torch.equal(bank.readings[own, 0], bank.labels[own])
    assert (bank.readings[own, 1:] == NOBODY).all()
    assert build_slices([polyps], "train", 64, rating="random").readings is None


def test_an_unknown_rating_is_refused(rated_dataset):
    with pytest.raises(ValueError, match="a rating is one of consensus, random, all; got 'most'"):
        build_slices([rated_dataset], "train", 64, rating="most")
