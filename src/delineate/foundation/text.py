"""Words to vectors: a CLIP-shaped text encoder and its tokenizer, made without any download."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(corpus: Iterable[str], *, vocabulary_size: int = 2048, max_length: int = 32) -> CLIPTokenizer:
    """A CLIP tokenizer whose merges are learnt from `corpus`; any other text falls back to bytes."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)])
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    last = [s + "</w>" for s in symbols]
    # Ties between merges go by the numbers of symbols. Those of `last` the trainer would give out in the order of a
    # hash table, which differs from call to call, and a resumed training would read other words than it learnt.
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        initial_alphabet=symbols,
        special_tokens=last,  # type: ignore[arg-type]
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learner.train_from_iterator(sorted(set(corpus)), trainer)
    learnt = json.loads(learner.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learnt["merges"]]
    words = [*symbols, *last, *("".join(m) for m in merges), START, END]
    with tempfile.TemporaryDirectory() as folder:
        vocabulary, merge_file = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
        vocabulary.write_text(json.dumps({w: i for i, w in enumerate(dict.fromkeys(words))}))
        merge_file.write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
        return CLIPTokenizer.from_pretrained(folder, model_max_length=max_length)


def build_text_encoder(tokenizer: CLIPTokenizer, *, width: int, layers: int) -> CLIPTextModel:
    """A randomly initialised CLIP text encoder for `tokenizer`, `width` channels wide."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=max(1, width // 32),
            max_position_embeddings=int(tokenizer.model_max_length),
            bos_token_id=_id(tokenizer.bos_token_id),
            eos_token_id=_id(tokenizer.eos_token_id),  # pooling looks for it
            pad_token_id=_id(tokenizer.pad_token_id),
        )
    )


@dataclass(frozen=True, eq=False)
class Encoded:
    """Texts as the networks see them: `tokens` (B, length, width) and `pooled` (B, width)."""

    tokens: Tensor
    pooled: Tensor

    def __getitem__(self, index: Tensor) -> "Encoded":
        return Encoded(self.tokens[index], self.pooled[index])


def encode_text(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Encoded:
    """`texts` through the encoder, cut at the tokenizer's length."""
    given = tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=int(tokenizer.model_max_length),
        return_tensors="pt",
    )
    device = next(encoder.parameters()).device
    seen = encoder(input_ids=torch.as_tensor(given["input_ids"], device=device))
    return Encoded(seen.last_hidden_state, seen.pooler_output)


def _id(token: object) -> int:
    if not isinstance(token, int):
        raise TypeError(f"the tokenizer has no id for a special token, but {token!r}")
    return token
