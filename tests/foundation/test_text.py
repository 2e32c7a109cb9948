import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.rounding import assert_same_up_to_rounding
from transformers import CLIPTokenizer

from delineate.foundation.pretraining import caption_corpus
from delineate.foundation.text import build_text_encoder, build_tokenizer, encode_text
from delineate.prompts.vocabulary import Vocabulary

CORPUS = ["the liver", "outline the spleen in a CT image", "left kidney", "mask of the aorta"]
TOKENIZER = build_tokenizer(CORPUS, max_length=16)
torch.manual_seed(0)
ENCODER = build_text_encoder(TOKENIZER, width=32, layers=2).eval()


def ids(texts, tokenizer=TOKENIZER):
    return tokenizer(texts, padding="max_length", truncation=True, max_length=16)["input_ids"]


@torch.no_grad()
def pooled(*texts):
    return encode_text(ENCODER, TOKENIZER, texts).pooled


def test_what_was_learnt_is_short_and_what_was_not_is_spelt_out():
    assert len(TOKENIZER("liver")["input_ids"]) == 3  # start, one word, end
    assert len(TOKENIZER("zzyzx")["input_ids"]) == 7


def test_a_saved_tokenizer_gives_the_same_ids(tmp_path):
    TOKENIZER.save_pretrained(str(tmp_path))
    again = CLIPTokenizer.from_pretrained(tmp_path, local_files_only=True)
    texts = [*CORPUS, "Leber, bitte!", "ÆØÅ 肝臓 🫀", "", "x" * 300]
    assert ids(texts, again) == ids(texts)
    assert again.model_max_length == TOKENIZER.model_max_length
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (
        TOKENIZER.bos_token_id,
        TOKENIZER.eos_token_id,
        TOKENIZER.pad_token_id,
    )


def test_two_tokenizers_of_one_corpus_are_one():
    again = build_tokenizer(CORPUS[::-1], max_length=16)  # the order of captions means nothing
    assert ids(CORPUS, again) == ids(CORPUS)


def test_different_captions_are_pooled_to_different_vectors_and_case_means_nothing():
    liver, spleen, the_liver, shouted = pooled("liver", "spleen", "the liver", "LIVER")
    assert (liver - spleen).abs().max() > 0.1
    assert (liver - the_liver).abs().max() > 0.1
    assert_same_up_to_rounding(liver, shouted)
    assert ids(["LIVER"]) == ids(["liver"])


def test_what_is_pooled_is_the_token_at_the_end_of_the_text():
    encoded = encode_text(ENCODER, TOKENIZER, ["the liver", "left kidney in a CT"])
    for row, line in enumerate(ids(["the liver", "left kidney in a CT"])):
        end = line.index(TOKENIZER.eos_token_id)
        assert 0 < end < 15
        assert torch.equal(encoded.pooled[row], encoded.tokens[row, end])


def test_pooling_does_not_depend_on_who_else_is_in_the_batch():
    alone, together = pooled("liver"), pooled("liver", "outline the spleen in a CT image")
    assert_same_up_to_rounding(alone[0], together[0])


def test_a_long_text_is_cut_and_still_ends_as_a_text():
    line = ids(["the liver " * 50])[0]
    assert len(line) == 16
    assert line[-1] == TOKENIZER.eos_token_id
    assert torch.equal(pooled("the liver " * 50), pooled("the liver " * 60))


@given(st.text(max_size=80))
@settings(deadline=None, max_examples=60)
def test_any_unicode_becomes_ids_of_the_vocabulary_and_finite_vectors(text):
    line = ids([text])[0]
    assert len(line) == 16
    assert all(0 <= i < len(TOKENIZER) for i in line)
    assert torch.isfinite(pooled(text)).all()


@pytest.mark.parametrize("index", [0, 1])
def test_encoded_texts_are_picked_like_a_tensor(index):
    encoded = encode_text(ENCODER, TOKENIZER, ["liver", "spleen"])
    one = encoded[torch.tensor([index])]
    assert torch.equal(one.pooled[0], encoded.pooled[index])
    assert one.tokens.shape == (1, 16, 32)


def test_one_corpus_makes_one_tokenizer_in_every_call():
    """Else a training that goes on after a stop reads other words than those it has learnt."""
    corpus = caption_corpus(Vocabulary.from_names(["liver", "left kidney", "spleen"], "CT"), ("CT",))
    made = [build_tokenizer(corpus).get_vocab() for _ in range(8)]
    assert all(vocabulary == made[0] for vocabulary in made)
