"""Losses. Each returns a scalar tensor, or a value a sample."""

import math

import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

SMOOTH = 1e-5
"""Of every Dice here, in pixels: keeps 0/0 away and nothing else.

A larger one pays for silence: where a name is absent from a batch, one pixel of it costs all of its Dice, and names
that most batches lack (small organs) are unlearnt for good. nnU-Net's value, too."""


def grouped_dice_loss(
    probability: Float[Tensor, " batch *space"],
    mask: Float[Tensor, " batch *space"],
    group: Int[Tensor, " batch"],
) -> Float[Tensor, ""]:
    """One minus soft Dice, counted over all samples of a group together, averaged over the groups that are shown.

    Counting a target over the whole batch keeps slices without it from contributing a Dice of an empty mask,
    which is 0 or 1 by a hair (the "batch Dice" of nnU-Net). A group whose masks are all empty has no Dice and is left
    out: what it should not draw is for a pixelwise loss to say. 0 where none is shown.

    Args:
        probability: (B, ...) in [0, 1].
        mask: (B, ...) in {0, 1}.
        group: (B,) integers, the target each sample shows.
    """
    groups, index = torch.unique(group, return_inverse=True)
    count = len(groups)

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(count).index_add(0, index, x.flatten(1).sum(1))

    return _dice_of_shown(total(probability * mask), total(probability), total(mask))


def _dice_of_shown(both: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """The mean of one minus Dice over the names that `true` shows at all; of sums of pixels, one entry a name."""
    shown = (true > 0).to(both.dtype)
    dice = (2 * both + SMOOTH) / (predicted + true + SMOOTH)
    return ((1 - dice) * shown).sum() / shown.sum().clamp(min=1)


def segmentation_loss(
    log_probability: Float[Tensor, "batch channels h w"],
    labels: Int[Tensor, "batch h w"],
    where: Bool[Tensor, "batch h w"] | None = None,
) -> Float[Tensor, ""]:
    """Cross entropy plus Dice of mutually exclusive targets; Dice is the mean over the names that the batch shows.

    Each name is counted over the whole batch. One that no slice of it shows gets no gradient of Dice, only that of the
    cross entropy.

    Args:
        log_probability: background, then every concept; about -1e4 where a slice's labels cannot tell of a concept.
        labels: 0 is background, 1 + i is concept i; pixels below 0 are not labelled, and do not count.
        where: which pixels count; all by default.
    """
    log_probability = log_probability.float()
    weight = (labels >= 0 if where is None else where & (labels >= 0)).to(log_probability.dtype)
    labels = labels.clamp(min=0)
    of_truth = log_probability.gather(1, labels[:, None])[:, 0]
    channel, probability = labels.flatten(), log_probability.exp() * weight[:, None]

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(log_probability.shape[1]).index_add(0, channel, x.flatten())

    both, true, predicted = total(of_truth.exp() * weight), total(weight), probability.sum((0, 2, 3))
    entropy = -(of_truth * weight).sum() / weight.sum().clamp(min=1)
    return entropy + _dice_of_shown(both[1:], predicted[1:], true[1:])


def lumped(
    scores: Float[Tensor, "batch channels h w"], known: Bool[Tensor, "batch concepts"]
) -> Float[Tensor, "batch channels h w"]:
    """Scores for the marginal loss: background stands for every concept that a slice's labels cannot tell of as well.

    Where the liver is labelled and the stomach is not, a pixel of stomach is labelled background; it may be either, and
    what counts is the sum of both probabilities (Shi et al. 2021, MedIA 70).

    Args:
        scores: (B, 1 + C, h, w) logits or log-probabilities, background first; probabilities sum to what they did.
        known: (B, C), which concepts the labels can tell of; the others come back as -1e4.
    """
    hidden = ~known[:, :, None, None]
    others = scores[:, 1:].masked_fill(~hidden, -torch.inf)
    background = torch.cat([scores[:, :1], others], dim=1).logsumexp(dim=1, keepdim=True)
    return torch.cat([background, scores[:, 1:].masked_fill(hidden, -1e4)], dim=1)


def log_shares(
    logits: Float[Tensor, "batch channels h w"], known: Bool[Tensor, "batch concepts"], hiding: bool
) -> Float[Tensor, "batch channels h w"]:
    """Log-probabilities of logits (B, 1 + C, h, w), background first, where labels cannot tell of every concept.

    Args:
        logits: of every channel.
        known: (B, C), which concepts the labels can tell of, if only that they are absent.
        hiding: whether background may hide the others (`lumped`); else they are left out of the competition.
    """
    if hiding:
        return lumped(logits, known).log_softmax(dim=1)
    hidden = F.pad(~known, (1, 0))  # background is always possible
    return logits.masked_fill(hidden[:, :, None, None], -1e4).log_softmax(dim=1)


def contrast_loss(
    embedding: Float[Tensor, "batch width"], group: Int[Tensor, " batch"], temperature: float = 0.1
) -> Float[Tensor, ""]:
    """Embeddings (B, D) of one group drawn together, those of different groups pushed apart.

    The supervised contrastive loss of Khosla et al. (2020), Eq. 2; every group needs two members or more.
    """
    unit = F.normalize(embedding, dim=1)
    similarity = unit @ unit.T / temperature
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    log_share = similarity - similarity.masked_fill(itself, -torch.inf).logsumexp(dim=1, keepdim=True)
    partner = (group[:, None] == group[None, :]) & ~itself
    return -(log_share * partner).sum(dim=1).div(partner.sum(dim=1)).mean()


def noise_error(
    noise_hat: Float[Tensor, "batch channels h w"], noise: Float[Tensor, "batch channels h w"]
) -> Float[Tensor, " batch"]:
    """Mean squared error of the noise, a value a sample (UniSegDiff's L_n)."""
    return (noise_hat - noise).square().flatten(1).mean(1)


def mask_error(
    logit: Float[Tensor, "batch channels h w"], mask: Float[Tensor, "batch channels h w"]
) -> Float[Tensor, " batch"]:
    """Binary cross entropy plus one minus soft Dice, a value a sample (UniSegDiff's L_dice + L_ce).

    Args:
        logit: (B, C, h, w).
        mask: (B, C, h, w) in {0, 1}; an empty one has no Dice, its error is the cross entropy alone.
    """
    entropy = F.binary_cross_entropy_with_logits(logit, mask, reduction="none").flatten(1).mean(1)
    probability, true = logit.sigmoid().flatten(1), mask.flatten(1)
    both, shown = (probability * true).sum(1), true.sum(1) > 0
    return entropy + (1 - (2 * both + SMOOTH) / (probability.sum(1) + true.sum(1) + SMOOTH)) * shown


def gaussian_divergence(
    mean: Float[Tensor, "batch latent"],
    log_sigma: Float[Tensor, "batch latent"],
    other_mean: Float[Tensor, "batch latent"],
    other_log_sigma: Float[Tensor, "batch latent"],
) -> Float[Tensor, " batch"]:
    """KL(N(mean, diag σ²) || N(other_mean, diag other_σ²)) in nats, a value a sample, in closed form.

    The second term of the Probabilistic U-Net's bound (Kohl et al. 2018, Eq. 4): the posterior is the first of the two.
    """
    ratio = 2 * (log_sigma - other_log_sigma)
    apart = (mean - other_mean).square() * torch.exp(-2 * other_log_sigma)
    return 0.5 * (ratio.exp() + apart - 1 - ratio).sum(1)


def energy_score(
    samples: Float[Tensor, "batch samples h w"],
    raters: Float[Tensor, "batch raters h w"],
    present: Bool[Tensor, "batch raters"],
    matched: float = 0.0,
) -> Float[Tensor, " batch"]:
    """How well masks drawn of an image stand for those that raters drew: 2 E d(s, y) - E d(s, s'), a value an image.

    The energy score (Gneiting and Raftery 2007, Eq. 20, with β = 1 and d in the place of the norm): proper, for d =
    1 - IoU is a metric of negative type, so that its mean is least where draws come as raters do; up to the raters'
    own spread it is GED² without a mask's distance to itself. d is the soft Jaccard distance (`jaccard_distances`).

    Args:
        samples: (B, K, h, w) in [0, 1], K of two or more. Soft masks hedge: give them as sharp as they will be used.
        raters: (B, M, h, w) in {0, 1}; one where there is one truth.
        present: (B, M), which raters there are. Without any, 0 comes back.
        matched: weight of a second term: the mean distance where each draw answers to one rater and each rater to
            as many draws, at its cheapest (the distance of optimal transport; 1 - HM-IoU). It asks for draws that are
            near somebody, and pays for few of them lying closer together than raters do.
    """
    weight = present.to(samples.dtype)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1)
    across = jaccard_distances(samples, raters)  # (B, K, M)
    within = jaccard_distances(samples, samples)
    count = samples.shape[1]
    apart = (within.sum((1, 2)) - within.diagonal(dim1=1, dim2=2).sum(1)) / (count * (count - 1))
    score = 2 * torch.einsum("bkm,bm->b", across, weight) / count - apart
    if matched:
        score = score + matched * _transport(across, present)
    return score * present.any(1)


def jaccard_distances(
    one: Float[Tensor, "batch n h w"], other: Float[Tensor, "batch m h w"]
) -> Float[Tensor, "batch n m"]:
    """1 - (a·b + 1) / (|a|² + |b|² - a·b + 1) of all pairs: 1 - IoU where masks are 0 and 1, but for a pixel.

    Of two empty ones 0, as by GED²'s convention.
    """
    a, b = one.flatten(2), other.flatten(2)
    both = a @ b.transpose(1, 2)
    either = a.square().sum(2)[:, :, None] + b.square().sum(2)[:, None] - both
    return 1 - (both + 1) / (either + 1)


def _transport(cost: Tensor, present: Tensor) -> Tensor:
    """The mean of (B, K, M) costs where draws are dealt out evenly to the raters who are there, at their cheapest."""
    draws = cost.shape[1]
    totals = []
    for own, there in zip(cost, present, strict=True):
        raters = there.nonzero()[:, 0]
        if not len(raters):
            totals.append(own.sum() * 0)
            continue
        times = math.lcm(draws, len(raters))
        rows = torch.arange(draws).repeat_interleave(times // draws)
        columns = raters.cpu().repeat_interleave(times // len(raters))
        chosen = linear_sum_assignment(own.detach().float().cpu()[rows][:, columns].numpy())
        totals.append(own[rows[chosen[0]], columns[chosen[1]]].mean())
    return torch.stack(totals)


def energy_distance(
    samples: Float[Tensor, "batch samples *channels h w"],
    raters: Float[Tensor, "batch raters *channels h w"],
    present: Bool[Tensor, "batch raters"],
) -> Float[Tensor, " batch"]:
    """How far apart two sets of maps are: 2 E|y - s| - E|s - s'| - E|y - y'|, a value an image, 0 or more.

    A map is one point; |·| is the Euclidean norm over the square root of the number of pixels h·w. The V form (Székely
    and Rizzo 2013): means are over all pairs, those of a map with itself among them, so that it is 0 for equal sets and
    nowhere negative. The price is a pull on few samples to lie closer together than the raters do.

    It stands for PULASki's default (Chatterjee et al. 2025, arXiv 2312.15686), geomloss's "hausdorff" with its energy
    kernel: given a kernel, that routine is the kernel norm ½|α - β|², here half the energy distance (without the
    division by the pixels). The name promises a Hausdorff distance that no release of geomloss computes.

    Args:
        samples: (B, K, ..., h, w) probabilities. The gradient is finite everywhere, zero between maps that coincide.
        raters: (B, M, ..., h, w) in {0, 1}.
        present: (B, M), which raters there are; what the others' maps hold does not matter. Without any, 0 comes back.
    """
    s, y, weight = _points(samples, raters, present)
    across = (_norms(s, y).mean(1) * weight).sum(1)
    within = torch.einsum("bm,bn,bmn->b", weight, weight, _norms(y, y))
    return (2 * across - _norms(s, s).mean((1, 2)) - within) * present.any(1)


def sinkhorn_divergence(
    samples: Float[Tensor, "batch samples *channels h w"],
    raters: Float[Tensor, "batch raters *channels h w"],
    present: Bool[Tensor, "batch raters"],
    blur: float = 0.02,
    iterations: int = 30,
) -> Float[Tensor, " batch"]:
    """How far apart two sets of maps are: the price of carrying one onto the other, a value an image.

    The debiased OT(s, y) - ½ OT(s, s) - ½ OT(y, y) of entropic optimal transport with the cost ½|s - y|² of
    `energy_distance`'s norm and even weights (Feydy et al. 2019, arXiv 1810.08278): 0 for equal sets, ½|s - y|² for
    single maps. Potentials are found in the log domain by averaged symmetric updates while the temperature falls from
    1 to blur², and the gradient is that of the last update alone (Feydy 2020, Sec. 3.3), as in geomloss.

    Args:
        samples: (B, K, ..., h, w) probabilities.
        raters: (B, M, ..., h, w) in {0, 1}.
        present: (B, M), which raters there are; what the others' maps hold does not matter. Without any, 0 comes back.
        blur: below this root mean square over the pixels, maps count as alike.
        iterations: number of updates.
    """
    s, y, weight = _points(samples, raters, present)
    of_s, of_y = s.new_full(s.shape[:2], -math.log(s.shape[1])), weight.log()

    def cost(x: Tensor, other: Tensor) -> Tensor:
        return _norms(x, other.detach()).square() / 2

    s_y, y_s, s_s, y_y = cost(s, y), cost(y, s), cost(s, s), cost(y, y)

    def softmin(price: Tensor, log_weight: Tensor, potential: Tensor, temperature: float) -> Tensor:
        exponent = (log_weight + potential / temperature)[:, None] - price / temperature
        return -temperature * exponent.logsumexp(2)

    def updated(f: tuple[Tensor, ...], temperature: float) -> tuple[Tensor, ...]:
        """Potentials of s towards y, of y towards s, of s towards itself and of y towards itself."""
        return (
            softmin(s_y, of_y, f[1], temperature),
            softmin(y_s, of_s, f[0], temperature),
            softmin(s_s, of_s, f[2], temperature),
            softmin(y_y, of_y, f[3], temperature),
        )

    with torch.no_grad():
        f = updated(tuple(torch.zeros_like(price[:, :, 0]) for price in (s_y, y_s, s_s, y_y)), 1.0)
        for step in range(iterations):
            new = updated(f, blur ** (2 * (step + 1) / iterations))
            f = tuple((before + after) / 2 for before, after in zip(f, new, strict=True))
    f = updated(f, blur**2)
    return ((f[0] - f[2]).mean(1) + ((f[1] - f[3]) * weight).sum(1)) * present.any(1)


def _points(samples: Tensor, raters: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps as points, (B, K, P) and (B, M, P), scaled so that |·| is the root mean square over pixels; raters' weights.

    Where there are no raters at all the weights are even, to keep all that follows finite.
    """
    pixels = samples.shape[-2] * samples.shape[-1]
    there = present | ~present.any(1, keepdim=True)
    y = raters.flatten(2).masked_fill(~present[:, :, None], 0)
    weight = there.to(samples.dtype)
    return samples.flatten(2) / pixels**0.5, y / pixels**0.5, weight / weight.sum(1, keepdim=True)


def _norms(x: Tensor, other: Tensor) -> Tensor:
    """|x - other| of all pairs, (B, N, M); the gradient is zero where the two coincide.

    Differences are taken before they are squared: by the products of the points, near ones would come out as noise.
    """
    return torch.cdist(x, other, compute_mode="donot_use_mm_for_euclid_dist")
