"""Losses. Each returns a scalar tensor."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


def grouped_dice_loss(
    probability: Float[Tensor, " batch *space"],
    mask: Float[Tensor, " batch *space"],
    group: Int[Tensor, " batch"],
    smooth: float = 1.0,
) -> Float[Tensor, ""]:
    """One minus soft Dice, counted over all samples of a group together, averaged over the groups present.

    Counting a target over the whole batch keeps slices without it from contributing a Dice of an empty mask,
    which is 0 or 1 by a hair (the "batch Dice" of nnU-Net).

    Args:
        probability: (B, ...) in [0, 1].
        mask: (B, ...) in {0, 1}.
        group: (B,) integers, the target each sample shows.
        smooth: in voxels.
    """
    groups, index = torch.unique(group, return_inverse=True)
    count = len(groups)

    def total(x: Tensor) -> Tensor:
        return x.new_zeros(count).index_add(0, index, x.flatten(1).sum(1))

    both, predicted, true = total(probability * mask), total(probability), total(mask)
    return (1 - (2 * both + smooth) / (predicted + true + smooth)).mean()


def segmentation_loss(
    log_probability: Float[Tensor, "batch channels h w"],
    labels: Int[Tensor, "batch h w"],
    possible: Bool[Tensor, "batch concepts"],
) -> Float[Tensor, ""]:
    """Cross entropy plus Dice of mutually exclusive targets, where not every slice is labelled for all of them.

    Args:
        log_probability: background, then every concept; about -1e4 where a concept is not possible.
        labels: 0 is background, 1 + i is concept i.
        possible: which concepts a slice's labels can tell of. Dice is averaged over those of any slice, each counted
            over the whole batch.
    """
    entropy = F.nll_loss(log_probability, labels)
    probability = log_probability[:, 1:].exp()
    concepts = torch.arange(1, 1 + probability.shape[1], device=labels.device)
    mask = (labels[:, None] == concepts[:, None, None]).float()
    both, total = (probability * mask).sum((0, 2, 3)), (probability + mask).sum((0, 2, 3))
    dice = (2 * both + 1) / (total + 1)
    return entropy + (1 - dice)[possible.any(dim=0)].mean()


def lumped(
    scores: Float[Tensor, "batch channels h w"], known: Bool[Tensor, "batch concepts"]
) -> Float[Tensor, "batch channels h w"]:
    """Scores whose background stands for every concept that a slice's labels cannot tell of as well.

    Where the liver is labelled and the stomach is not, a pixel of stomach is labelled background; it may be either, and
    what counts is the sum of both probabilities (the marginal loss of Shi et al. 2021, MedIA 70).

    Args:
        scores: (B, 1 + C, h, w) logits or log-probabilities, background first; probabilities sum to what they did.
        known: (B, C), which concepts the labels can tell of; the others come back as -1e4.
    """
    hidden = ~known[:, :, None, None]
    others = scores[:, 1:].masked_fill(~hidden, -torch.inf)
    background = torch.cat([scores[:, :1], others], dim=1).logsumexp(dim=1, keepdim=True)
    return torch.cat([background, scores[:, 1:].masked_fill(hidden, -1e4)], dim=1)


def denoising_loss(
    x0_hat: Float[Tensor, "batch channels h w"],
    x0: Float[Tensor, "batch channels h w"],
    decoded: Float[Tensor, "batch 1 height width"],
    mask: Float[Tensor, "batch 1 height width"],
    group: Int[Tensor, " batch"],
    dice_weight: float = 0.5,
) -> Float[Tensor, ""]:
    """Squared error of the clean estimate in latent units, plus Dice of the mask it decodes to.

    Args:
        x0_hat: (B, C, h, w) the estimate.
        x0: (B, C, h, w) the truth.
        decoded: (B, 1, H, W) the estimate decoded, unclamped.
        mask: (B, 1, H, W) in {0, 1}.
        group: (B,) the target each sample shows.
        dice_weight: weight of the Dice term; the squared error is divided by the latents' mean square so that
            one weight serves every codec.
    """
    error = (x0_hat - x0).square().mean() / x0.square().mean().clamp(min=1e-6)
    return error + dice_weight * grouped_dice_loss(decoded.clamp(0, 1), mask, group)


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
    logit: Float[Tensor, "batch channels h w"], mask: Float[Tensor, "batch channels h w"], smooth: float = 1.0
) -> Float[Tensor, " batch"]:
    """Binary cross entropy plus one minus soft Dice, a value a sample (UniSegDiff's L_dice + L_ce).

    Args:
        logit: (B, C, h, w).
        mask: (B, C, h, w) in {0, 1}; may be empty, where an empty prediction costs nothing.
        smooth: in pixels.
    """
    entropy = F.binary_cross_entropy_with_logits(logit, mask, reduction="none").flatten(1).mean(1)
    probability, true = logit.sigmoid().flatten(1), mask.flatten(1)
    both = (probability * true).sum(1)
    return entropy + 1 - (2 * both + smooth) / (probability.sum(1) + true.sum(1) + smooth)
