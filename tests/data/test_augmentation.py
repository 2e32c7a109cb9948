from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator

from delineate.data import augmentation
from delineate.data.augmentation import AUGMENTATIONS, UPRIGHT_DEGREES, bias_fields, moved_labels, similarities

CHANGING = [name for name in AUGMENTATIONS if name != "none"]
MOVING = [name for name in AUGMENTATIONS if AUGMENTATIONS[name].place is not None]
SHADING = [name for name in AUGMENTATIONS if AUGMENTATIONS[name].shade is not None]
augmented = AUGMENTATIONS["default"]


def seeded(seed=0):
    return Generator().manual_seed(seed)


def flat(count, yes=True):
    """Flat pictures without a top, or slices of volumes."""
    return torch.full((count,), 2 * yes, dtype=torch.uint8)


def slices(bank, count=64):
    """Real slices (phantoms) and their labels."""
    picked = torch.arange(count) % len(bank)
    return bank.images[picked].float() / 127.5 - 1, bank.labels[picked]


def marked(count, row, column, half=6):
    """Black slices with one bright square that is also label 3."""
    image, labels = torch.full((count, 3, 64, 64), -1.0), torch.zeros(count, 64, 64, dtype=torch.uint8)
    image[:, :, row - half : row + half, column - half : column + half] = 1
    labels[:, row - half : row + half, column - half : column + half] = 3
    return image, labels


def dice(a, b):
    return (2 * (a & b).sum() / (a.sum() + b.sum())).item()


def centres(labels):
    at = torch.linspace(-1, 1, 64)
    mass = (labels == 3).float()
    return torch.stack([(mass.sum(2) * at).sum(1), (mass.sum(1) * at).sum(1)], dim=1) / mass.sum((1, 2))[:, None]


# every named one


def test_each_is_a_map_or_a_change_of_grey_but_for_none():
    assert {"none", "default", "nnunet", "bias", "strong"} < AUGMENTATIONS.keys()
    assert set(MOVING) | set(SHADING) == set(CHANGING)
    assert {"mirror", "rotation", "scale", "diffboost"} == set(MOVING) - set(SHADING)


def test_none_changes_nothing_and_draws_nothing(phantom_bank):
    image, labels = slices(phantom_bank, 8)
    generator = seeded()
    before = generator.get_state()
    same_image, same_labels = AUGMENTATIONS["none"](image, labels, flat(8), generator)
    assert torch.equal(same_image, image)
    assert torch.equal(same_labels, labels)
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("name", CHANGING)
def test_a_picture_is_really_changed_and_stays_in_range(name, phantom_bank):
    image, labels = slices(phantom_bank)
    changed, moved = AUGMENTATIONS[name](image, labels, flat(len(image)), seeded())
    assert changed.shape == image.shape
    assert changed.dtype == torch.float32
    assert moved.dtype == torch.uint8
    assert changed.abs().max() <= 1
    assert torch.isfinite(changed).all()
    differ = ((changed - image).abs().amax((1, 2, 3)) > 0.005).float().mean()
    assert differ > 0.35  # of the slices; what happens rarely happens to half of them at least
    assert torch.equal(moved, labels) == (name not in MOVING)
    assert set(moved.unique().tolist()) <= set(labels.unique().tolist()) | {0}


@pytest.mark.parametrize("name", CHANGING)
def test_every_slice_is_changed_in_its_own_way(name, phantom_bank):
    image, labels = (x[:1].expand(32, *x.shape[1:]) for x in slices(phantom_bank, 1))
    changed, _ = AUGMENTATIONS[name](image, labels, flat(32), seeded())
    assert len({tuple(c.flatten().tolist()) for c in changed}) >= 4  # mirrored: four ways and no more


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_seed_repeats_it_and_the_global_randomness_is_left_alone(name, phantom_bank):
    image, labels = slices(phantom_bank, 16)
    kept_image, kept_labels, state = image.clone(), labels.clone(), torch.get_rng_state()
    one = AUGMENTATIONS[name](image, labels, flat(16), seeded(1))
    again = AUGMENTATIONS[name](image, labels, flat(16), seeded(1))
    other = AUGMENTATIONS[name](image, labels, flat(16), seeded(2))
    assert torch.equal(one[0], again[0])
    assert torch.equal(one[1], again[1])
    assert torch.equal(one[0], other[0]) == (name == "none")
    assert torch.equal(image, kept_image)
    assert torch.equal(labels, kept_labels)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", MOVING)
@pytest.mark.parametrize("mirror", [False, True])
def test_image_and_label_move_together(name, mirror):
    image, labels = marked(40, 24, 38)
    # "strong" may turn black into white, which says nothing about where things are
    moving = replace(AUGMENTATIONS[name], shade=None) if name == "strong" else AUGMENTATIONS[name]
    moved_image, moved = moving(image, labels, flat(40, mirror), seeded())
    assert set(moved.unique().tolist()) == {0, 3}
    scores = [dice(moved_image[k].mean(0) > 0, moved[k] == 3) for k in range(40)]
    assert min(scores) > 0.85
    if name != "mirror" or mirror:
        assert min(dice(moved[k] == 3, labels[k] == 3) for k in range(40)) < 0.95  # they did move


@pytest.mark.parametrize("name", CHANGING)
def test_pictures_of_one_slice_share_its_map_and_not_its_grey(name, phantom_bank):
    image, labels = slices(phantom_bank)
    generator = seeded()
    maps = AUGMENTATIONS[name].maps(flat(len(image)), generator)
    assert (maps is not None) == (name in MOVING)
    one, other = (AUGMENTATIONS[name].picture(image, maps, generator) for _ in range(2))
    assert torch.equal(one, other) == (name not in SHADING)
    whole, moved = AUGMENTATIONS[name](image, labels, flat(len(image)), seeded())
    assert torch.equal(one, whole)
    assert torch.equal(moved_labels(labels, maps), moved)


@pytest.mark.parametrize("name", MOVING)
def test_slices_that_know_left_and_right_are_never_mirrored(name):
    """A map that flips one axis has a negative determinant; two flips are half a turn."""
    maps = AUGMENTATIONS[name].maps(flat(300, False), seeded())
    linear = maps[:, :, :2]
    assert (torch.linalg.det(linear) > 0).all()
    degrees = torch.atan2(linear[:, 1, 0], linear[:, 0, 0]).rad2deg().abs()
    assert degrees.max() <= UPRIGHT_DEGREES + 1e-3


# the limits that are stated


def test_nnunet_turns_flat_images_all_the_way_round():
    maps = AUGMENTATIONS["nnunet"].maps(flat(600), seeded())[:, :, :2]
    turned = maps[(maps.abs().amin((1, 2)) > 1e-4)]
    share = len(turned) / 600
    assert share == pytest.approx(0.2, abs=0.05)
    degrees = torch.atan2(turned[:, 1, 0].abs(), turned[:, 0, 0].abs()).rad2deg()
    assert degrees.max() > 80


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("scale", 0.95, 1.05), ("diffboost", 0.75, 1.05), ("nnunet", 0.7, 1.4), ("strong", 0.7, 1.4)],
)
def test_scales_are_as_stated(name, low, high):
    linear = AUGMENTATIONS[name].maps(flat(600), seeded())[:, :, :2]
    scale = torch.linalg.det(linear).abs().sqrt()
    assert low - 1e-4 <= scale.min() < low + 0.1 * (1 - low)
    assert high - 0.1 * (high - 1) < scale.max() <= high + 1e-4


def test_rotation_is_five_degrees_at_most():
    linear = AUGMENTATIONS["rotation"].maps(flat(300), seeded())[:, :, :2]
    degrees = torch.atan2(linear[:, 1, 0], linear[:, 0, 0]).rad2deg()
    assert -5.001 < degrees.min() < -4.5
    assert 4.5 < degrees.max() < 5.001


def test_diffboost_turns_by_twenty_degrees_at_most_and_leaves_greys_alone():
    """A generator that saw changed greys would draw them."""
    stack = AUGMENTATIONS["diffboost"]
    assert stack.shade is None
    linear = stack.maps(flat(300, False), seeded())[:, :, :2]
    degrees = torch.atan2(linear[:, 1, 0], linear[:, 0, 0]).rad2deg()
    assert -20.001 < degrees.min() < -18
    assert 18 < degrees.max() < 20.001
    both = stack.maps(flat(1200), seeded())[:, :, :2]
    mirrored = (torch.linalg.det(both) < 0).float().mean().item()
    assert mirrored == pytest.approx(0.5, abs=0.05)  # either flip alone


def test_three_quarters_have_their_mirror_tried():
    linear = AUGMENTATIONS["mirror"].maps(flat(1200), seeded())[:, :, :2]
    flipped = (linear.diagonal(dim1=1, dim2=2) < 0).any(1).float().mean().item()
    assert flipped == pytest.approx(0.75 * 0.75, abs=0.05)


def test_turning_there_and_back_is_standing_still():
    there, back, one = torch.tensor([30.0]), torch.tensor([-30.0]), torch.ones(1)
    maps = [similarities(d, one, torch.ones(1, 2), torch.zeros(1, 2))[0, :, :2] for d in (there, back)]
    assert torch.allclose(maps[0] @ maps[1], torch.eye(2), atol=1e-6)


def test_brightness_moves_the_mean_by_half_a_standard_deviation():
    grey = 0.4 + 0.01 * torch.randn(800, 3, 8, 8, generator=seeded())  # far from the ends of the range
    moved = augmentation._brightness(grey, seeded(1)) - grey
    assert moved.flatten(1).std(1).max() < 1e-6
    assert (moved.mean((1, 2, 3)) / grey.std((1, 2, 3))).std().item() == pytest.approx(0.5, abs=0.05)


def test_noise_has_the_variance_that_was_drawn():
    grey = torch.rand(300, 3, 16, 16, generator=seeded())
    variance = (augmentation._noise(0.05)(grey, seeded(1)) - grey).var((1, 2, 3)) / grey.var((1, 2, 3))
    assert variance.max() < 0.06
    assert variance.mean().item() == pytest.approx(0.025, abs=0.003)


def test_contrast_keeps_the_mean_and_the_range():
    grey = 0.5 + 0.1 * torch.sin(torch.linspace(0, 40, 3 * 32 * 32)).view(1, 3, 32, 32).expand(200, -1, -1, -1)
    changed = augmentation._contrast(grey, seeded())
    assert changed.min() >= grey.min()
    assert changed.max() <= grey.max()
    assert (changed.mean((1, 2, 3)) - 0.5).abs().max() < 0.005
    ratio = changed.std((1, 2, 3)) / grey.std((1, 2, 3))
    assert 0.74 < ratio.min() < 0.8
    assert 1.02 < ratio.max() < 1.25  # clipped at the ends


@pytest.mark.parametrize("shade", [augmentation._steady_gamma, augmentation._inverted_gamma])
def test_gamma_of_nnunet_keeps_mean_and_spread(shade, phantom_bank):
    grey = (slices(phantom_bank, 16)[0] + 1) / 2
    changed = shade(grey, seeded())
    assert (changed - grey).abs().amax((1, 2, 3)).max() > 0.02
    torch.testing.assert_close(changed.mean((1, 2, 3)), grey.mean((1, 2, 3)))
    torch.testing.assert_close(changed.std((1, 2, 3)), grey.std((1, 2, 3)), rtol=1e-3, atol=1e-4)


def test_gamma_leaves_black_and_white_where_they_are():
    grey = torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1).expand(100, 3, 4, 4)
    changed = augmentation._gamma(grey, seeded())
    assert (changed[:, 0] == 0).all()
    assert (changed[:, 2] == 1).all()
    powers = changed[:, 1, 0, 0].log() / np.log(0.5)
    assert 0.7 - 1e-3 <= powers.min() < 0.75
    assert 1.45 < powers.max() <= 1.5 + 1e-3


def test_a_blurred_point_has_the_width_that_was_drawn():
    point = torch.zeros(100, 3, 33, 33)
    point[:, :, 16, 16] = 1
    spread = augmentation._blur(0.5, 1.5)(point, seeded())
    assert torch.allclose(spread.sum((2, 3)), torch.ones(100, 3), atol=1e-5)
    at = torch.arange(33) - 16.0
    for axis in (2, 3):
        width = (spread.sum(5 - axis) * at**2).sum(2).sqrt()[:, 0]
        assert 0.45 < width.min() < 0.65
        assert 1.35 < width.max() < 1.5


@pytest.mark.parametrize("shade", [augmentation._blur(0.5, 1.5), augmentation._low_resolution])
def test_what_is_even_stays_even(shade):
    even = torch.full((8, 3, 40, 40), 0.3)
    assert torch.allclose(shade(even, seeded()), even, atol=1e-5)


def test_low_resolution_takes_away_detail_only(phantom_bank):
    grey = (slices(phantom_bank, 16)[0] + 1) / 2
    coarse = augmentation._low_resolution(grey, seeded())
    assert coarse.shape == grey.shape
    near = torch.nn.functional.avg_pool2d(coarse - grey, 8).abs().mean()
    assert near < 0.3 * (coarse - grey).abs().mean()


# the bias field of coils, and "strong"


def test_bias_fields_have_a_range_of_their_strength_and_a_geometric_mean_of_one():
    fields = bias_fields(400, 48, 0.6, seeded()).double().flatten(1)
    torch.testing.assert_close(fields.log().mean(1), torch.zeros(400).double(), atol=1e-5, rtol=0)
    ratio = fields.amax(1) / fields.amin(1)
    strength = (ratio - 1) / (ratio + 1)  # ratio = (1 + strength) / (1 - strength)
    assert 0 <= strength.min() < 0.02
    assert 0.58 < strength.max() <= 0.6 + 1e-5
    assert strength.mean().item() == pytest.approx(0.3, abs=0.03)  # uniform


def test_bias_fields_are_smooth_and_each_its_own():
    fields = bias_fields(100, 64, 0.6, seeded()).log()
    height = fields.amax((1, 2, 3)) - fields.amin((1, 2, 3))
    for axis in (2, 3):
        assert (fields.diff(dim=axis).abs().amax((1, 2, 3)) < 0.1 * height).all()  # noise would reach 1
    shapes = fields.flatten(1)
    assert (torch.corrcoef(shapes) - torch.eye(100)).abs().max() < 0.99


def test_bias_leaves_air_black_and_the_brightest_grey_as_it_is(phantom_bank):
    image, labels = slices(phantom_bank)
    changed, _ = AUGMENTATIONS["bias"](image, labels, flat(len(image)), seeded())
    assert (changed[image == -1] == -1).all()
    torch.testing.assert_close(changed.amax((1, 2, 3)), image.amax((1, 2, 3)), atol=1e-5, rtol=0)
    black = torch.full((4, 3, 32, 32), -1.0)
    assert torch.equal(AUGMENTATIONS["bias"].picture(black, None, seeded()), black)


def test_the_channels_of_a_slice_share_its_bias_field():
    grey = 0.1 + 0.9 * torch.rand(20, 3, 32, 32, generator=seeded())
    factor = augmentation._bias(0.6)(grey, seeded(1)) / grey
    torch.testing.assert_close(factor[:, :1].expand(-1, 3, -1, -1), factor)
    ratio = factor.amax((1, 2, 3)) / factor.amin((1, 2, 3))
    assert 1 <= ratio.min() < 1.2
    assert 3 < ratio.max() < (1.6 / 0.4) * 1.001


def curves(inverted, count=1000):
    """What `_curve` makes of greys from 0 to 1, (count, 200)."""
    ramp = torch.linspace(0, 1, 200).view(1, 1, 1, 200).expand(count, 1, 1, 200)
    return augmentation._curve(inverted)(ramp, seeded())[:, 0, 0]


def test_curves_lead_from_black_to_black_and_rise_more_often_than_not():
    made = curves(0.0)
    torch.testing.assert_close(made[:, 0], torch.zeros(1000))
    torch.testing.assert_close(made[:, -1], torch.ones(1000))
    assert made.min() >= 0
    assert made.max() <= 1 + 1e-6
    falling = (made.diff(dim=1).amin(1) < -1e-4).float().mean()
    assert 0.05 < falling < 0.5
    assert made.std(0).max() > 0.1


def test_a_few_curves_are_inverted():
    made = curves(0.1)
    inverted = made[:, 0] > 0.5
    assert inverted.float().mean().item() == pytest.approx(0.1, abs=0.03)
    torch.testing.assert_close(made[inverted][:, -1], torch.zeros(int(inverted.sum())), atol=1e-6, rtol=0)


def test_strong_turns_upright_slices_by_fifteen_degrees_and_shifts_them_as_the_default_does():
    maps = AUGMENTATIONS["strong"].maps(flat(800, False), seeded())
    degrees = torch.atan2(maps[:, 1, 0], maps[:, 0, 0]).rad2deg()
    assert -15.001 < degrees.min() < -14
    assert 14 < degrees.max() < 15.001
    assert (degrees.abs() > 1e-3).float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert 0.15 < maps[:, :, 2].abs().max() <= 0.16  # half-widths


def test_strong_changes_greys_more_often_than_nnunet(phantom_bank):
    image, _ = slices(phantom_bank, 400)
    changed = [
        ((AUGMENTATIONS[name].picture(image, None, seeded()) - image).abs().amax((1, 2, 3)) > 0.005).float().mean()
        for name in ("nnunet", "strong")
    ]
    assert changed[0] < 0.85
    assert changed[1] > 0.9


# the default one


def test_slices_that_may_be_mirrored_are_mirrored_either_way():
    free = torch.arange(600, dtype=torch.uint8) % 3
    _, moved = augmented(*marked(600, 19, 19), free, seeded())
    quarter = (centres(moved) > 0).long() @ torch.tensor([2, 1])
    assert (quarter[free == 0] == 0).all()  # turned by 20° and shifted by 8 % it is still in its quarter
    counts = [quarter[free == most].bincount(minlength=4) for most in (1, 2)]
    assert (counts[0][[0, 1]] > 60).all()  # of 200, half each: left and right
    assert (counts[0][[2, 3]] == 0).all()  # but never upside down
    assert (counts[1] > 30).all()  # a quarter each


def test_turning_scaling_and_shifting_stay_within_what_is_said():
    _, moved = augmented(*marked(300, 32, 32, half=12), flat(300, False), seeded())
    scale = ((moved == 3).float().sum((1, 2)) / 24**2).sqrt()
    assert 0.72 < scale.min() < 0.80
    assert 1.27 < scale.max() < 1.38
    shift = centres(moved).abs().max(1).values / 2  # of the width
    assert 0.06 < shift.max() < 0.08 * 1.25 + 0.02


def test_beyond_the_edge_there_is_air_and_background():
    image, labels = torch.full((60, 3, 64, 64), 1.0), torch.full((60, 64, 64), 3, dtype=torch.uint8)
    moved_image, moved = augmented(image, labels, flat(60, False), seeded())
    outside = (moved == 0)[:, None].expand_as(moved_image)
    assert outside.any()
    assert moved_image[outside].mean() < -0.7
    assert moved_image[~outside].mean() > 0.7


# contrast agent


def test_structures_of_a_volume_get_a_contrast_of_their_own_and_nothing_else_does():
    image, labels = marked(400, 20, 40)
    image = image / 2  # grey .25 and .75, so that nothing is cut off
    changed = augmented.enhanced(image, labels, flat(400, False), seeded()) - image
    inside, apart = labels == 3, torch.nn.functional.max_pool2d((labels == 3).float(), 3, stride=1, padding=1) == 0
    shifts = torch.stack([changed[k, 0][inside[k]].median() for k in range(400)])
    assert 0.4 < (shifts.abs() > 1e-6).float().mean() < 0.6  # of the slices
    assert shifts.std() > 0.05
    assert abs(shifts.mean()) < 0.03  # as often brighter as darker
    assert all(changed[k, :, apart[k]].abs().max() < 1e-6 for k in range(400))


def test_air_inside_a_structure_stays_air_and_flat_pictures_stay():
    image, labels = marked(60, 20, 40)
    labels[:, :10, :10] = 2  # where the picture is black
    changed = augmented.enhanced(image, labels, flat(60, False), seeded())
    assert torch.equal(changed[:, :, :10, :10], image[:, :, :10, :10])
    assert torch.equal(augmented.enhanced(image, labels, flat(60), seeded()), image)


def test_two_structures_of_one_slice_move_apart():
    image, labels = marked(300, 20, 40)
    labels[:, 40:50, 10:20] = 5
    image = torch.zeros_like(image)
    changed = augmented.enhanced(image, labels, flat(300, False), seeded())[:, 0]
    first, second = changed[:, 20, 40], changed[:, 45, 15]
    moved = first.abs() > 1e-6
    assert torch.equal(moved, second.abs() > 1e-6)
    assert abs(torch.corrcoef(torch.stack([first[moved], second[moved]]))[0, 1]) < 0.3
