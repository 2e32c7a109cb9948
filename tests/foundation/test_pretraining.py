from dataclasses import replace

import pytest
import torch

from delineate.foundation.foundation import Foundation
from delineate.foundation.pretraining import caption_corpus, draw_captions, pretrain
from delineate.prompts.captions import captions
from delineate.prompts.concept import Concept
from delineate.prompts.vocabulary import Vocabulary
from delineate.training.loop import Budget, Run


def made(bank, codec="unshuffle", seed=0):
    return Foundation.make("tiny", codec, caption_corpus(bank.vocabulary, bank.modalities), seed=seed)


def nearness(foundation, bank):
    """Mean cosine of captions of one concept, and of different concepts."""
    texts = [captions(c, "CT")[i] for c in bank.vocabulary.concepts for i in (0, 7)]
    with torch.no_grad():
        unit = torch.nn.functional.normalize(foundation.encode_text(texts).pooled, dim=1)
    cosine = unit @ unit.T
    concept = torch.arange(len(texts)) // 2
    same = (concept[:, None] == concept) & ~torch.eye(len(texts), dtype=torch.bool)
    return cosine[same].mean().item(), cosine[concept[:, None] != concept].mean().item()


@pytest.fixture(scope="module")
def pretrained(phantom_bank, tmp_path_factory):
    foundation = made(phantom_bank)
    return pretrain(foundation, phantom_bank, Run(Budget(images=1200), tmp_path_factory.mktemp("pretrain")))


def test_the_corpus_has_every_caption_that_training_draws(phantom_bank):
    corpus = set(caption_corpus(phantom_bank.vocabulary, phantom_bank.modalities))
    for seed in range(20):
        drawn = draw_captions(phantom_bank, torch.Generator().manual_seed(seed))
        assert len(drawn) == len(phantom_bank.vocabulary.concepts)
        assert set(drawn) <= corpus


@pytest.mark.slow  # a pre-training of its own
def test_captions_of_one_concept_come_together_and_others_move_apart(phantom_bank, pretrained):
    same, other = nearness(pretrained, phantom_bank)
    before_same, before_other = nearness(made(phantom_bank), phantom_bank)
    assert before_same - before_other < 0.3  # a random encoder tells concepts hardly apart
    assert same - other > 0.5


@pytest.mark.slow  # a pre-training of its own
def test_every_part_has_learnt_and_is_frozen_afterwards(phantom_bank, pretrained):
    fresh = made(phantom_bank)
    for name, module in pretrained.modules.items():
        before = fresh.modules[name].state_dict()
        assert any(not torch.equal(v, before[k]) for k, v in module.state_dict().items()), name
        assert not any(p.requires_grad for p in module.parameters()), name
    assert "pre-trained here" in pretrained.pretraining
    assert fresh.pretraining == "not pre-trained"


@pytest.mark.slow  # a pre-training of its own
def test_the_foundation_denoises_masks_better_than_before(phantom_bank, pretrained):
    def error(foundation):
        batch = phantom_bank.draw(16, 1, torch.Generator().manual_seed(5))
        x0 = foundation.codec.encode(batch.masks)
        t = torch.full((16,), 300)
        x_t = foundation.schedule.add_noise(x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(6)), t)
        text = foundation.encode_text([phantom_bank.vocabulary.names[int(c)] for c in batch.concepts[:, 0]])
        with torch.no_grad():
            output = foundation.unet(x_t, t, encoder_hidden_states=text.tokens).sample
        return ((foundation.schedule.to_x0(output, x_t, t) - x0).square().mean() / x0.square().mean()).item()

    assert error(pretrained) < 0.7 * error(made(phantom_bank))


def test_with_the_vae_codec_mask_latents_end_up_standardised(phantom_bank, tmp_path):
    foundation = pretrain(made(phantom_bank, "vae"), phantom_bank, Run(Budget(images=96), tmp_path))
    masks = phantom_bank.draw(64, 1, torch.Generator().manual_seed(0)).masks
    latent = foundation.codec.encode(masks)
    assert latent.mean().item() == pytest.approx(0, abs=0.1)
    assert latent.std().item() == pytest.approx(1, abs=0.1)


def test_a_name_that_no_dataset_annotates_is_captioned_as_where_it_was_learnt(phantom_bank):
    """The names that a model brings along: the first from MR and dermoscopy, the second from nobody knows where."""
    brought = (Concept("polyp", (), ("MR", "dermoscopy")), Concept("gizmo"))
    vocabulary = Vocabulary((*phantom_bank.vocabulary.concepts, *brought))
    wider = torch.cat([phantom_bank.annotated, torch.zeros(1, 2, dtype=torch.bool)], dim=1)
    bank = replace(phantom_bank, vocabulary=vocabulary, annotated=wider)
    drawn = [draw_captions(bank, torch.Generator().manual_seed(seed)) for seed in range(60)]
    assert {len(texts) for texts in drawn} == {len(vocabulary.concepts)}
    for i, concept in enumerate(phantom_bank.vocabulary.concepts):
        assert {texts[i] for texts in drawn} <= set(captions(concept, "CT"))
    polyp, gizmo = ({texts[i] for texts in drawn} for i in (-2, -1))
    of_mr, of_skin = (set(captions(brought[0], m)) for m in ("MR", "dermoscopy"))
    assert polyp <= of_mr | of_skin
    assert polyp - of_mr
    assert polyp - of_skin
    assert gizmo <= set(captions(brought[1]))
