import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch.nn import functional as F

from delineate.networks.encoder import ImageEncoder
from delineate.training.losses import (
    contrast_loss,
    energy_distance,
    energy_score,
    gaussian_divergence,
    grouped_dice_loss,
    jaccard_distances,
    log_shares,
    lumped,
    mask_error,
    segmentation_loss,
    sinkhorn_divergence,
)


def random_masks(*shape, seed=0):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(seed)) > 0.7).float()


def test_dice_of_a_perfect_answer_is_zero():
    mask = random_masks(4, 1, 8, 8)
    assert grouped_dice_loss(mask, mask, torch.tensor([0, 1, 0, 2])).item() == pytest.approx(0, abs=1e-6)


def test_dice_is_counted_over_a_group_together_and_averaged_over_groups():
    probability = torch.tensor([[0.5, 1.0], [0.0, 0.2], [1.0, 0.0]])
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    loss = grouped_dice_loss(probability, mask, torch.tensor([7, 7, 3]))
    assert loss.item() == pytest.approx(((1 - 2 * 1.5 / 3.7) + 1) / 2, abs=1e-4)


def test_a_slice_without_its_target_does_not_weigh_as_a_slice_with_it():
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, :, 4:12, 4:12] = 1
    probability = mask.clone()
    probability[1, 0, 0, 0] = 1  # one wrong voxel in the empty slice
    together = grouped_dice_loss(probability, mask, torch.tensor([0, 0]))
    assert together.item() == pytest.approx(1 - 128 / 129, abs=1e-6)
    assert grouped_dice_loss(probability, mask, torch.tensor([0, 1])).item() == 0  # target 1 is not shown: no Dice


def test_the_names_and_the_order_of_groups_do_not_matter():
    probability = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    mask, group = random_masks(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    expected = grouped_dice_loss(probability, mask, group)
    order = torch.tensor([5, 3, 1, 0, 2, 4])
    renamed = torch.tensor([40, 7, 12])[group]
    torch.testing.assert_close(grouped_dice_loss(probability[order], mask[order], renamed[order]), expected)


def test_targets_absent_everywhere_have_no_dice_and_no_gradient_of_it():
    mask, group = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])
    drawn = torch.full_like(mask, 0.3, requires_grad=True)
    loss = grouped_dice_loss(drawn, mask, group)
    loss.backward()
    assert loss.item() == 0
    assert not drawn.grad.any()


def test_an_absent_group_gets_no_gradient_beside_one_that_is_shown():
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, 0, :4] = 1
    drawn = torch.full_like(mask, 0.3, requires_grad=True)
    grouped_dice_loss(drawn, mask, torch.tensor([0, 1])).backward()
    assert drawn.grad[0].any()
    assert not drawn.grad[1].any()


def favouring(labels, sharpness):
    """Log-probabilities (B, 3, H, W) that favour the labels (0, 1, 2) by `sharpness`."""
    logit = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float() * sharpness
    return logit.log_softmax(dim=1)


def test_a_perfect_segmentation_costs_nothing():
    labels = torch.randint(3, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    loss = segmentation_loss(favouring(labels, 100.0), labels)
    assert loss.item() == pytest.approx(0, abs=1e-5)


def test_segmentation_that_knows_nothing_costs_what_the_formula_says():
    # A third everywhere: cross entropy ln 3; 16 voxels, all of target 1, so Dice 2·16/3 / (16/3 + 16). None of target 2.
    labels = torch.ones(1, 4, 4, dtype=torch.long)
    loss = segmentation_loss(favouring(labels, 0.0), labels)
    assert loss.item() == pytest.approx(math.log(3) + 1 - (32 / 3) / (16 / 3 + 16), abs=1e-5)


def test_a_name_that_the_batch_does_not_show_gets_no_gradient_of_dice():
    labels = torch.tensor([[[0, 0, 1, 1]] * 4])
    logit = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (whole,) = torch.autograd.grad(segmentation_loss(logit.log_softmax(1), labels), logit)
    (entropy,) = torch.autograd.grad(F.cross_entropy(logit, labels), logit)
    p = logit.detach().softmax(1)
    one = torch.zeros_like(
        p[:, 1:2]
    ).requires_grad_()  # the gradient of Dice alone, by hand: of name 1, through softmax
    mask = (labels == 1).float()[:, None]
    dice = 1 - 2 * ((p[:, 1:2] + one) * mask).sum() / ((p[:, 1:2] + one).sum() + mask.sum())
    (of_p,) = torch.autograd.grad(dice, one)
    through = torch.cat([torch.zeros_like(of_p), of_p, torch.zeros_like(of_p), torch.zeros_like(of_p)], 1)
    expected = p * (through - (through * p).sum(1, keepdim=True))
    torch.testing.assert_close(whole - entropy, expected, atol=1e-5, rtol=1e-4)


def test_names_that_labels_cannot_tell_of_do_not_compete():
    labels = torch.zeros(1, 4, 4, dtype=torch.long)
    logits = favouring(torch.full((1, 4, 4), 2), 3.0)
    both = segmentation_loss(log_shares(logits, torch.tensor([[True, True]]), False), labels)
    first = segmentation_loss(log_shares(logits, torch.tensor([[True, False]]), False), labels)
    hidden = segmentation_loss(log_shares(logits, torch.tensor([[True, False]]), True), labels)
    assert hidden < first < both


def test_only_the_pixels_where_it_says_count():
    labels = torch.randint(3, (2, 4, 4), generator=torch.Generator().manual_seed(0))
    shares = favouring(torch.randint(3, (2, 4, 4), generator=torch.Generator().manual_seed(1)), 2.0)
    left = torch.zeros(2, 4, 4, dtype=torch.bool)
    left[:, :, :2] = True
    expected = segmentation_loss(shares[..., :2], labels[..., :2])
    torch.testing.assert_close(segmentation_loss(shares, labels, left), expected)


def test_mask_error_of_an_empty_mask_is_its_cross_entropy():
    logit = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 4, 4)
    mask[1, 0, :2] = 1
    entropy = F.binary_cross_entropy_with_logits(logit, mask, reduction="none").mean((1, 2, 3))
    error = mask_error(logit, mask)
    p = logit[1].sigmoid()
    assert error[0].item() == pytest.approx(entropy[0].item())
    assert error[1].item() == pytest.approx((entropy[1] + 1 - 2 * p[0, :2].sum() / (p.sum() + 8)).item(), abs=1e-5)


def plus_one(log_probability, labels):
    """Cross entropy and Dice with 1 added above and below, over all names: what pays for silence."""
    probability = log_probability[:, 1:].exp()
    mask = F.one_hot(labels, log_probability.shape[1]).permute(0, 3, 1, 2)[:, 1:].float()
    dice = (2 * (probability * mask).sum((0, 2, 3)) + 1) / ((probability + mask).sum((0, 2, 3)) + 1)
    return F.nll_loss(log_probability, labels) + (1 - dice).mean()


def learnt_small_organ(loss_of, seed):
    """Dice of an organ of 4×4 pixels after two hundred steps in which two batches of three do not show it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder, head = ImageEncoder((8, 16)), torch.nn.Conv2d(8, 12, 1)
    parameters = [*encoder.parameters(), *head.parameters()]

    def log_probability(image):
        return F.pixel_shuffle(head(encoder.levels(image)[0]), 2).log_softmax(1)

    def batch(small):
        image, labels = torch.zeros(4, 3, 32, 32), torch.zeros(4, 32, 32, dtype=torch.long)
        image[:, :, 6:26, 6:26], labels[:, 6:26, 6:26] = 0.5, 1
        if small:
            top, left = torch.randint(8, 20, (2,), generator=generator).tolist()
            image[0, :, top : top + 4, left : left + 4], labels[0, top : top + 4, left : left + 4] = 0.8, 2
        return image + 0.03 * torch.randn(image.shape, generator=generator), labels

    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    for step in range(200):
        image, labels = batch(step % 3 == 0)
        optimizer.zero_grad()
        loss_of(log_probability(image), labels).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    scores = []
    for image, labels in (batch(True) for _ in range(5)):
        found = log_probability(image).argmax(1)[0] == 2
        scores.append((2 * (found & (labels[0] == 2)).sum() / (found.sum() + 16)).item())
    return sum(scores) / len(scores)


def test_a_small_organ_that_most_batches_lack_is_learnt():
    """Starts differ much, so it is the mean of two."""
    lost, learnt = ([learnt_small_organ(loss, seed) for seed in (0, 1)] for loss in (plus_one, segmentation_loss))
    assert sum(learnt) / 2 > sum(lost) / 2 + 0.2


def test_segmentation_pulls_every_pixel_towards_its_label():
    labels = torch.randint(3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    logit = torch.zeros(2, 3, 4, 4, requires_grad=True)
    segmentation_loss(logit.log_softmax(dim=1), labels).backward()
    chosen = torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).bool()
    assert (logit.grad[chosen] < 0).all()


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_contrast_of_two_orthogonal_groups_has_its_closed_form(temperature):
    embedding = torch.tensor([[1.0, 0], [3.0, 0], [0, 2.0], [0, 1.0]])  # lengths do not count
    loss = contrast_loss(embedding, torch.tensor([0, 0, 1, 1]), temperature)
    assert loss.item() == pytest.approx(math.log(1 + 2 * math.exp(-1 / temperature)), abs=1e-6)


def test_contrast_is_lower_the_better_groups_are_separated():
    group = torch.arange(4).repeat_interleave(3)
    noise = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    losses = [contrast_loss(torch.eye(4, 8)[group] * pull + noise, group).item() for pull in (0, 1, 3, 10, 100)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(math.log(2), abs=0.01)  # two partners share the probability


def test_contrast_descends_to_separated_groups():
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    embedding = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    optimizer = torch.optim.SGD([embedding], lr=0.5)
    first = contrast_loss(embedding, group).item()
    for _ in range(50):
        optimizer.zero_grad()
        contrast_loss(embedding, group).backward()
        assert torch.isfinite(embedding.grad).all()
        optimizer.step()
    assert contrast_loss(embedding, group).item() < 0.1 * first
    unit = torch.nn.functional.normalize(embedding.detach(), dim=1)
    nearest = (unit @ unit.T - 2 * torch.eye(6)).argmax(1)
    assert torch.equal(group[nearest], group)


# background that may be what is not labelled

SOME = torch.tensor([[True, False, True, False], [False, False, False, False], [True, True, True, True]])


def logits(seed=0, scale=3.0):
    return scale * torch.randn(3, 5, 4, 4, generator=torch.Generator().manual_seed(seed))


KINDS = {"logits": lambda x: x, "log-probabilities": lambda x: x.log_softmax(dim=1)}


@pytest.mark.parametrize("kind", KINDS)
def test_lumped_background_is_the_sum_of_all_that_it_may_be(kind):
    before = logits().softmax(dim=1)
    after = lumped(KINDS[kind](logits()), SOME).softmax(dim=1)
    torch.testing.assert_close(after.sum(dim=1), torch.ones(3, 4, 4))
    hidden = ~SOME[:, :, None, None]
    torch.testing.assert_close(after[:, 0], before[:, 0] + (before[:, 1:] * hidden).sum(dim=1))
    torch.testing.assert_close(after[:, 1:], before[:, 1:] * ~hidden)
    assert (after[1, 0] == 1).all()  # where nothing is known all is background
    assert (after[:, 1:][hidden.expand(-1, -1, 4, 4)] == 0).all()


def test_lumped_log_probabilities_are_log_probabilities():
    before, after = (logits().log_softmax(dim=1), lumped(logits().log_softmax(dim=1), SOME))
    torch.testing.assert_close(after.exp().sum(dim=1), torch.ones(3, 4, 4))
    torch.testing.assert_close(after[0, [1, 3]], before[0, [1, 3]], rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_lumping_before_or_after_the_softmax_is_the_same(kind):
    shifted = KINDS[kind](logits() + 7)
    torch.testing.assert_close(
        lumped(shifted, SOME).log_softmax(dim=1).exp(), lumped(logits().log_softmax(dim=1), SOME).exp()
    )


@pytest.mark.parametrize("scale", [0.0, 3.0, 300.0])
def test_where_all_is_known_nothing_changes(scale):
    scores = logits(scale=scale)
    assert torch.equal(lumped(scores, torch.ones(3, 4, dtype=torch.bool)), scores)


def test_names_that_are_not_known_may_come_in_any_order():
    order = torch.tensor([2, 0, 3, 1])
    moved = torch.cat([logits()[:, :1], logits()[:, 1:][:, order]], dim=1)
    expected = lumped(logits(), SOME)
    expected = torch.cat([expected[:, :1], expected[:, 1:][:, order]], dim=1)
    torch.testing.assert_close(lumped(moved, SOME[:, order]), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_labelled_background_teach_what_they_may_be_and_pull_none_of_it_down(kind):
    """The gradient of -log(p_0 + Σ p_hidden): what may be there is raised by its part, what is not there lowered."""
    scores = logits().requires_grad_()
    scaled = lumped(KINDS[kind](scores), SOME).log_softmax(dim=1)
    torch.nn.functional.nll_loss(scaled, torch.zeros(3, 4, 4, dtype=torch.long), reduction="sum").backward()
    p = scores.detach().softmax(dim=1)
    may_be = torch.cat([torch.ones(3, 1, dtype=torch.bool), ~SOME], dim=1)[:, :, None, None]
    whole = (p * may_be).sum(dim=1, keepdim=True)
    torch.testing.assert_close(scores.grad, p - p * may_be / whole, rtol=1e-4, atol=1e-6)
    hidden = ~SOME[0]
    assert (scores.grad[0, 1:][hidden] < 0).all()
    assert (scores.grad[0, 1:][~hidden] > 0).all()


def test_lumping_is_finite_whatever_the_scores():
    scores = torch.full((3, 5, 4, 4), -1e4).requires_grad_()
    with torch.no_grad():
        scores[:, 0, :2] = 1e4
        scores[:, 2, 2:] = 1e4
    loss = lumped(scores, SOME).log_softmax(dim=1).square().mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scores.grad).all()


# Gaussians, and distances of sets of maps.

DISTANCES = {"energy": energy_distance, "sinkhorn": sinkhorn_divergence}
SETS = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)


def maps(count, *, batch=2, shape=(8, 8), seed=0):
    return torch.rand(batch, count, *shape, generator=torch.Generator().manual_seed(seed))


def all_of(raters):
    return torch.ones(raters.shape[:2], dtype=torch.bool)


def rms(x, y):
    return (x - y).square().mean().sqrt().item()


def test_the_divergence_of_gaussians_is_that_of_torch_and_zero_for_equals():
    mean, log_sigma, other_mean, other_log_sigma = maps(4, batch=3, shape=(5,)).unbind(1)
    p, q = (torch.distributions.Normal(m, s.exp()) for m, s in ((mean, log_sigma), (other_mean, other_log_sigma)))
    expected = torch.distributions.kl_divergence(p, q).sum(1)
    torch.testing.assert_close(gaussian_divergence(mean, log_sigma, other_mean, other_log_sigma), expected)
    assert gaussian_divergence(mean, log_sigma, mean, log_sigma).abs().max() < 1e-6


def test_the_divergence_from_a_standard_normal_is_the_formula():
    """KL(N(m, s²) || N(0, 1)) = (s² + m² - 1 - ln s²) / 2, summed over the latent."""
    found = gaussian_divergence(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]]), *torch.zeros(2, 1, 2))
    assert found.item() == pytest.approx(4 / 2 + (math.e**2 - 1 - 2) / 2, rel=1e-5)


@SETS
def test_equal_sets_are_no_distance_apart(distance):
    x = maps(3)
    assert distance(x, x, all_of(x)).abs().max() < 1e-6
    assert distance(x, x[:, [2, 0, 1]], all_of(x)).abs().max() < 1e-6


@SETS
def test_each_map_twice_is_the_same_set(distance):
    x, y = maps(3), maps(2, seed=1)
    twice = y.repeat(1, 2, 1, 1)
    torch.testing.assert_close(distance(x, twice, all_of(twice)), distance(x, y, all_of(y)), rtol=1e-4, atol=1e-6)


@SETS
def test_it_is_as_far_there_as_back_and_never_less_than_nothing(distance):
    for seed in range(5):
        x, y = maps(4, seed=seed), maps(3, seed=100 + seed)
        there = distance(x, y, all_of(y))
        torch.testing.assert_close(there, distance(y, x, all_of(x)), rtol=1e-4, atol=1e-6)
        assert (there > 0).all()


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8)])
def test_the_distance_of_single_maps_is_their_norm_over_the_root_of_the_pixels(shape):
    x, y = maps(1, shape=shape), maps(1, shape=shape, seed=1)
    norm = torch.tensor([rms(a, b) for a, b in zip(x, y, strict=True)]) * (math.prod(shape) / 64) ** 0.5
    torch.testing.assert_close(energy_distance(x, y, all_of(y)), 2 * norm)
    torch.testing.assert_close(sinkhorn_divergence(x, y, all_of(y)), norm.square() / 2)


def test_the_energy_distance_is_the_formula_over_all_pairs():
    x, y = maps(3, batch=1), maps(2, batch=1, seed=1)

    def mean(first, second):
        return sum(rms(a, b) for a in first[0] for b in second[0]) / (len(first[0]) * len(second[0]))

    expected = 2 * mean(x, y) - mean(x, x) - mean(y, y)
    assert energy_distance(x, y, all_of(y)).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_with_little_blur_the_sinkhorn_divergence_is_the_price_of_the_best_assignment(seed):
    x, y = maps(4, batch=1, seed=seed).round(), maps(4, batch=1, seed=50 + seed).round()
    price = np.array([[rms(a, b) ** 2 / 2 for b in y[0]] for a in x[0]])
    expected = price[linear_sum_assignment(price)].mean()
    assert sinkhorn_divergence(x, y, all_of(y), blur=0.01, iterations=100).item() == pytest.approx(expected, rel=1e-2)


def test_with_much_blur_the_sinkhorn_divergence_only_sees_the_means():
    x, y = maps(4, batch=1), maps(3, batch=1, seed=1)
    expected = rms(x.mean(1), y.mean(1)) ** 2 / 2
    assert sinkhorn_divergence(x, y, all_of(y), blur=30.0).item() == pytest.approx(expected, rel=1e-2)


@SETS
def test_raters_who_are_not_there_do_not_matter(distance):
    x, y = maps(4), maps(2, seed=1)
    more = torch.cat([y[:, :1], torch.full_like(y[:, :1], torch.nan), y[:, 1:]], dim=1)
    present = torch.tensor([[True, False, True]]).expand(2, -1)
    torch.testing.assert_close(distance(x, more, present), distance(x, y, all_of(y)))
    x.requires_grad_()
    found = distance(x, more, torch.tensor([[True, False, True], [False, False, False]]))
    assert found[1] == 0
    assert torch.isfinite(torch.autograd.grad(found.sum(), x)[0]).all()


@SETS
def test_the_gradient_is_finite_where_maps_coincide_and_leads_to_the_raters_elsewhere(distance):
    y = maps(2, seed=1).round()
    x = torch.cat([y, y[:, :1], y[:, :1]], dim=1).requires_grad_()  # each met, and samples that meet one another
    gradient = torch.autograd.grad(distance(x, y, all_of(y)).sum(), x)[0]
    assert torch.isfinite(gradient).all()
    one, target = maps(1).requires_grad_(), maps(1, seed=1)
    step = torch.autograd.grad(distance(one, target, all_of(target)).sum(), one)[0]
    assert torch.nn.functional.cosine_similarity(step.flatten(), (one - target).flatten(), dim=0) > 0.9


@SETS
def test_the_gradient_is_that_of_finite_differences(distance):
    x, y = maps(3, batch=1, shape=(2, 2)).double().requires_grad_(), maps(2, batch=1, shape=(2, 2), seed=1).double()
    more = {} if distance is energy_distance else {"blur": 0.3, "iterations": 200}
    assert torch.autograd.gradcheck(lambda z: distance(z, y, all_of(y), **more), (x,), atol=1e-5)


@SETS
def test_samples_that_do_not_spread_as_the_raters_do_are_far_from_them(distance):
    """Of maps with the same mean, those that are the raters' own are nearer than the mean itself, over and over."""
    y = maps(4, seed=1).round()
    mean = y.mean(1, keepdim=True).expand_as(y)
    assert (distance(mean, y, all_of(y)) > 0.05).all()


# the energy score


def discs(*radii):
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    return torch.stack([((y - 16) ** 2 + (x - 16) ** 2 < radius**2).float() for radius in radii])[None]


def there(count):
    return torch.ones(1, count, dtype=torch.bool)


def test_the_distance_is_one_minus_iou_but_for_a_pixel():
    one, other = discs(4.0, 10.0), discs(4.0, 7.0, 0.0)
    found = jaccard_distances(one, other)[0]
    iou = (one[0, 1] * other[0, 1]).sum() / (one[0, 1] + other[0, 1]).clamp(max=1).sum()
    assert found[0, 0] == 0
    assert found[1, 1] == pytest.approx(1 - iou.item(), abs=0.01)
    assert found[0, 2] == pytest.approx(1, abs=0.03)
    assert jaccard_distances(discs(0.0), discs(0.0)).item() == 0


def test_the_score_is_least_where_draws_come_as_raters_do():
    """Raters draw small or large, one time in four nothing: of all shares of the three kinds theirs is the best."""
    kinds, truth = discs(4.0, 10.0, 0.0), torch.tensor([0.5, 0.25, 0.25])
    d = jaccard_distances(kinds, kinds)[0]

    def expected(q):
        return 2 * q @ d @ truth - q @ d @ q

    best = expected(truth)
    for q in torch.distributions.Dirichlet(torch.ones(3)).sample((200,)):
        assert expected(q) >= best - 1e-6
    raters, draws = discs(4.0, 4.0, 10.0, 0.0), 4
    order = torch.cartesian_prod(*[torch.arange(4)] * draws)  # every way to draw four of what raters drew
    shown = raters[0][order]
    mean = energy_score(shown, raters.expand(len(order), -1, -1, -1), there(4).expand(len(order), -1)).mean()
    assert mean.item() == pytest.approx(best.item(), abs=1e-4)  # unbiased in the number of draws


def test_raters_who_are_not_there_say_nothing():
    samples = discs(5.0, 9.0)
    two = energy_score(samples, discs(4.0, 10.0), there(2))
    with_more = energy_score(samples, discs(4.0, 10.0, 16.0), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(with_more, two)
    assert energy_score(samples, discs(4.0), torch.tensor([[False]]), 1.0).item() == 0


def test_the_second_term_is_the_cheapest_way_to_deal_draws_to_raters():
    samples, raters = discs(10.0, 4.0, 7.0, 7.0), discs(4.0, 7.0, 10.0)
    plain, matched = (energy_score(samples, raters, there(3), weight) for weight in (0.0, 1.0))
    cost = jaccard_distances(samples, raters)[0]
    rows, columns = torch.arange(4).repeat_interleave(3), torch.arange(3).repeat_interleave(4)
    whole = cost[rows][:, columns].numpy()
    chosen = linear_sum_assignment(whole)
    assert (matched - plain).item() == pytest.approx(whole[chosen].mean(), abs=1e-6)
    exact = energy_score(raters, raters, there(3), 1.0) - energy_score(raters, raters, there(3))
    assert exact.item() == pytest.approx(0, abs=1e-6)


def test_the_gradient_of_the_score_is_finite_for_equal_and_empty_draws():
    samples = torch.zeros(1, 3, 32, 32, requires_grad=True)
    energy_score(samples, discs(4.0, 0.0), there(2), 0.5).sum().backward()
    assert torch.isfinite(samples.grad).all()
    assert samples.grad.any()
