"""Pre-training of a foundation: pictures of scans and of masks, each with its caption."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from delineate.data.slices import Batch, SliceBank
from delineate.foundation.foundation import Foundation
from delineate.prompts.captions import captions, scan_captions
from delineate.prompts.vocabulary import Vocabulary
from delineate.training.loop import Hyperparameters, Loss, Phase, Run, Step, train_phase
from delineate.training.losses import contrast_loss, grouped_dice_loss

AUTOENCODER_SHARE = 0.25  # of the budget; the rest trains the U-Net and the text encoder
NO_PART = "the U-Net and the autoencoder are untrained and take no part"


def caption_corpus(vocabulary: Vocabulary, modalities: tuple[str | None, ...]) -> list[str]:
    """Every caption that training may use: what the tokenizer's merges are learnt from."""
    corpus = [text for c in vocabulary.concepts for m in modalities for text in captions(c, m)]
    names = list(vocabulary.names)
    return corpus + [text for m in modalities for text in scan_captions(names, m)]


def pick(options: tuple[str, ...], generator: Generator) -> str:
    """One of `options`, drawn evenly."""
    return options[int(torch.randint(len(options), (), generator=generator))]


def draw_captions(bank: SliceBank, generator: Generator) -> list[str]:
    """One caption for each concept of the vocabulary, drawn among its many."""
    texts = []
    for i, concept in enumerate(bank.vocabulary.concepts):
        shown_in = [m for d, m in enumerate(bank.modalities) if bank.annotated[d, i]]
        shown_in = shown_in or list(concept.modalities) or [None]  # a name that a model brings with it to new slices
        modality = shown_in[int(torch.randint(len(shown_in), (), generator=generator))]
        texts.append(pick(captions(concept, modality), generator))
    return texts


def pretrain(foundation: Foundation, bank: SliceBank, run: Run) -> Foundation:
    """Train all parts of a new foundation and return it frozen.

    First the autoencoder (L1 plus a little KL), on scans and masks alike; then the U-Net together with the text
    encoder, by denoising (Ho et al., 2020, in the parameterisation of the foundation's scheduler). Half of
    the pictures are scans, half are ±1 masks of one concept. Beside it a contrast of captions teaches the text
    encoder, whose random start tells concepts hardly apart, which captions mean the same: without it the heads that
    read its vectors learn several times slower.
    """

    def pictures(size: int, generator: Generator) -> Pictures:
        return _pictures(bank, bank.draw(size, 1, generator), generator)

    vae: Any = foundation.vae
    first = Phase("autoencoder", vae, pictures, autoencoder_loss, foundation)
    autoencoder = train_phase(first, run.part(AUTOENCODER_SHARE))
    foundation.frozen()
    if foundation.codec_name == "vae":
        masks = bank.draw(64, 1, Generator().manual_seed(run.seed)).masks
        foundation.codec.measure(masks.to(foundation.device))  # type: ignore[union-attr]
    learns = nn.ModuleDict({"unet": foundation.unet, "text_encoder": foundation.text_encoder})
    loss = partial(denoiser_loss, bank=bank)
    second = Phase("denoiser", learns, pictures, loss, foundation, hyper=Hyperparameters(batch_size=16))
    denoiser = train_phase(second, replace(run.part(1 - AUTOENCODER_SHARE), seed=run.seed + 1))
    seen = autoencoder.images_seen + denoiser.images_seen
    foundation.pretraining = f"pre-trained here on {len(bank)} slices and their masks, {seen} pictures seen"
    return foundation.frozen()


def pretrain_words(foundation: Foundation, bank: SliceBank, run: Run) -> Foundation:
    """Train the text encoder of a new foundation alone, by the contrast of captions, and return it frozen."""

    def draw(size: int, generator: Generator) -> list[str]:
        return [caption for _ in range(2) for caption in draw_captions(bank, generator)]

    hyper = Hyperparameters(learning_rate=3e-4)
    state = train_phase(Phase("words", foundation.text_encoder, draw, words_loss, foundation, hyper=hyper), run)
    steps = state.images_seen // hyper.batch_size
    foundation.pretraining = f"the text encoder alone, on the captions of {len(bank.vocabulary.concepts)} names"
    foundation.pretraining += f", {steps} steps; {NO_PART}"
    return foundation.frozen()


def words_loss(foundation: Foundation, captions: list[str], step: Step) -> Loss:
    """The contrast of two captions of every concept, the first of each before the second of each."""
    concepts = torch.arange(len(captions) // 2, device=foundation.device).repeat(2)
    return contrast_loss(foundation.encode_text(captions).pooled, concepts), {}


@dataclass(frozen=True, eq=False)
class Pictures:
    """Scans in the even places, masks in the odd ones.

    Attributes:
        picture: (B, 1, S, S) in [-1, 1].
        captions: one each.
        is_mask: (B,) bool.
        batch: what they were made from.
    """

    picture: Tensor
    captions: list[str]
    is_mask: Tensor
    batch: Batch


def _pictures(bank: SliceBank, batch: Batch, generator: Generator) -> Pictures:
    is_mask = torch.arange(len(batch.image)) % 2 == 1
    texts = []
    for i, concept in enumerate(batch.concepts[:, 0].tolist()):
        modality = bank.modalities[int(batch.dataset[i])]
        if is_mask[i]:
            options = captions(bank.vocabulary.concepts[concept], modality)
        else:
            shown = [bank.vocabulary.names[int(v) - 1] for v in batch.labels[i].unique() if v > 0]
            options = scan_captions(shown, modality)
        texts.append(pick(options, generator))
    grey = batch.image.mean(dim=1, keepdim=True)
    return Pictures(torch.where(is_mask[:, None, None, None], 2 * batch.masks - 1, grey), texts, is_mask, batch)


def autoencoder_loss(foundation: Foundation, drawn: Pictures, step: Step) -> Loss:
    """L1 of pictures there and back, plus a little KL."""
    picture, generator = drawn.picture.to(foundation.device), step.generator
    # The mean over a crop is the mean over the picture: crops cost less and show as much.
    top, left = (int(v) * 8 for v in torch.randint(picture.shape[-1] // 16 + 1, (2,), generator=generator))
    half = picture.shape[-1] // 16 * 8
    picture = picture[..., top : top + half, left : left + half].expand(-1, 3, -1, -1)
    posterior = foundation.vae.encode(picture).latent_dist  # type: ignore[union-attr]
    noise = torch.randn(posterior.mean.shape, generator=generator).to(foundation.device)
    back = foundation.vae.decode(posterior.mean + posterior.std * noise).sample  # type: ignore[union-attr]
    error, kl = F.l1_loss(back, picture), posterior.kl().mean() / picture[0].numel()
    return error + 1e-3 * kl, {"error": error.item(), "kl": kl.item()}


def denoiser_loss(foundation: Foundation, drawn: Pictures, step: Step, *, bank: SliceBank) -> Loss:
    """Squared error of x0, Dice of masks, and the contrast of captions."""
    picture, is_mask, batch, generator = drawn.picture, drawn.is_mask, drawn.batch, step.generator
    x0 = foundation.codec.encode_picture(picture.to(foundation.device))
    t = torch.randint(1000, (len(picture),), generator=generator).to(foundation.device)
    noise = foundation.codec.noise(x0.shape, generator).to(foundation.device)
    x_t = foundation.schedule.add_noise(x0, noise, t)
    text = foundation.encode_text(drawn.captions)
    output = foundation.unet(x_t, t, encoder_hidden_states=text.tokens).sample
    x0_hat = foundation.schedule.to_x0(output, x_t, t)
    error = (x0_hat - x0).square().mean() / x0.square().mean()
    decoded = foundation.codec.decode(x0_hat[is_mask]).clamp(0, 1)
    dice = grouped_dice_loss(
        decoded, batch.masks[is_mask].to(foundation.device), batch.concepts[is_mask, 0].to(foundation.device)
    )
    contrast = _caption_contrast(foundation, bank, generator)
    loss = error + 0.2 * dice + 0.1 * contrast
    return loss, {"error": error.item(), "dice": dice.item(), "contrast": contrast.item()}


def _caption_contrast(foundation: Foundation, bank: SliceBank, generator: Generator) -> Tensor:
    """Two captions of every concept, contrasted."""
    texts = [caption for _ in range(2) for caption in draw_captions(bank, generator)]
    return words_loss(foundation, texts, Step(generator))[0]
