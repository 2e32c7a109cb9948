import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.rounding import assert_same_up_to_rounding
from torch import Generator

from delineate.data.dataset import open_dataset
from delineate.data.slices import SliceBank, build_slices
from delineate.diffusion.codec import noise_fields
from delineate.errors import ModelError
from delineate.foundation.foundation import Foundation
from delineate.foundation.text import Encoded
from delineate.jobs.pretrain import HELD_OUT
from delineate.synthesis.edges import hint, scharr
from delineate.synthesis.synthesizer import (
    LOOKS,
    Looks,
    Synthesizer,
    _captions,
    caption,
    measure,
    pictures_of,
    train_synthesizer,
)
from delineate.training.loop import Budget, Interrupted, Run

FEW = torch.tensor([4, 15, 25, 36])  # slices that are told apart easily: four cases, four heights
SIZE = 32  # quicker than 64, and four organs can still be told


@pytest.fixture(scope="module")
def few(phantom_dataset) -> SliceBank:
    """A bank of four slices."""
    bank = build_slices([open_dataset(phantom_dataset, targets=["liver", "spleen"])], "train", SIZE)
    parts = {name: getattr(bank, name)[FEW] for name in ("images", "labels", "dataset", "mirrored", "present")}
    return replace(bank, **parts)


@pytest.fixture(scope="module")
def base(edges_base) -> Synthesizer:
    """Trained for a moment; not to be changed."""
    return Synthesizer.load(edges_base)


def asked(bank):
    """Edges of all slices of a bank, and the pictures they were taken from."""
    pictures = bank.images[:, 1:2].float() / 127.5 - 1
    return hint(pictures, bank.labels), pictures


def noise_of(synthesizer, *seeds, size=SIZE):
    codec = synthesizer.foundation.codec
    fields = [noise_fields(codec, 1, (codec.channels, size // 8, size // 8), seed)(0) for seed in seeds]
    return lambda step: torch.cat(fields)


def said(synthesizer, *texts):
    with torch.no_grad():
        return synthesizer.foundation.encode_text(list(texts))


# What is said


def test_a_caption_names_targets_modality_and_looks():
    assert caption(["liver", "spleen"], "CT", ["dark"]) == "liver, spleen, CT, dark"
    assert caption([], "US") == "ultrasound"
    assert caption(["polyp"], None) == "polyp"
    assert caption([], None) == ""


def test_one_caption_is_itself_and_order_does_not_matter(base):
    alone = said(base, "liver, CT")
    for text, wanted in zip(base.mixed({"liver, CT": 1.0}).__dict__.values(), alone.__dict__.values(), strict=True):
        assert torch.equal(text, wanted)
    weights = {"liver, CT": 0.2, "spleen, CT": 0.5, "": 0.3}
    one, other = base.mixed(weights), base.mixed(dict(reversed(weights.items())))
    torch.testing.assert_close(one.tokens, other.tokens)
    torch.testing.assert_close(one.pooled, other.pooled)


def test_a_mixed_caption_is_the_weighted_mean(base):
    texts = said(base, "liver, CT", "spleen, CT, dark")
    mixed = base.mixed({"liver, CT": 0.25, "spleen, CT, dark": 0.75})
    torch.testing.assert_close(mixed.tokens, 0.25 * texts.tokens[:1] + 0.75 * texts.tokens[1:])
    torch.testing.assert_close(mixed.pooled, 0.25 * texts.pooled[:1] + 0.75 * texts.pooled[1:])


@pytest.mark.parametrize("weights", [{"a": 0.5}, {"a": 0.9, "b": 0.2}, {}])
def test_weights_of_captions_sum_to_one(base, weights):
    with pytest.raises(ValueError, match="the weights of captions must sum to 1, not"):
        base.mixed(weights)


# Looks


def test_each_look_is_a_third_of_the_dataset(phantom_bank):
    """Measured on what is drawn: of a volume the slice alone, whose neighbours would blur it."""
    looks = Looks.of(phantom_bank)
    pictures = phantom_bank.images[:, 1:2].float() / 127.5 - 1
    words = [word for own in looks.words(pictures, phantom_bank.dataset) for word in own]
    for pair in LOOKS:
        for word in pair:
            assert words.count(word) == pytest.approx(len(pictures) / 3, abs=1), word


def test_looks_say_what_one_sees(phantom_bank):
    looks, dataset = Looks.of(phantom_bank), torch.tensor([0])
    picture = phantom_bank.images[5:6, 1:2].float() / 127.5 - 1

    def words(changed):
        return looks.words(changed, dataset)[0]

    assert "dark" in words((picture - 0.7).clamp(-1, 1))
    assert "bright" in words((picture + 0.7).clamp(-1, 1))
    assert "low contrast" in words(0.2 * picture)
    assert "high contrast" in words((3 * picture).clamp(-1, 1))
    blurred = torch.nn.functional.avg_pool2d(picture, 9, 1, 4)
    assert "smooth" in words(blurred)
    speckled = picture + 0.5 * torch.randn(picture.shape, generator=Generator().manual_seed(0))
    assert "sharp" in words(speckled)


def test_what_looks_are_measured_by():
    generator = Generator().manual_seed(0)
    pictures = torch.rand(3, 1, 16, 16, generator=generator) - 0.5
    brightness, contrast, sharpness = measure(pictures).T
    torch.testing.assert_close(brightness, pictures.mean((1, 2, 3)))
    torch.testing.assert_close(contrast, pictures.std((1, 2, 3)))
    torch.testing.assert_close(measure(2 * pictures)[:, 2], sharpness)  # a ratio: contrast does not count
    torch.testing.assert_close(measure(pictures + 0.3)[:, 1:], measure(pictures)[:, 1:])
    assert torch.isfinite(measure(torch.zeros(1, 3, 8, 8))).all()


def test_each_dataset_has_its_own_looks(phantom_bank):
    dark = phantom_bank.images // 2
    bank = replace(
        phantom_bank,
        images=torch.cat([phantom_bank.images, dark]),
        labels=phantom_bank.labels.repeat(2, 1, 1),
        dataset=torch.cat([phantom_bank.dataset, phantom_bank.dataset + 1]),
        mirrored=phantom_bank.mirrored.repeat(2),
        modalities=("CT", "MR"),
    )
    both = Looks.of(bank)
    torch.testing.assert_close(both.thirds[:1], Looks.of(phantom_bank).thirds)
    assert (both.thirds[1, 0] < both.thirds[0, 0]).all()  # brightness
    middle = int(measure(phantom_bank.images[:, 1:2].float() / 127.5 - 1)[:, 0].argsort()[20])
    picture = (dark[middle : middle + 1, 1:2].float() / 127.5 - 1).expand(2, -1, -1, -1)
    as_first, as_second = both.words(picture, torch.tensor([0, 1]))
    assert "dark" in as_first
    assert not {"dark", "bright"} & set(as_second)


def test_captions_name_what_a_slice_shows(phantom_bank):
    batch = phantom_bank.draw(60, 1, Generator().manual_seed(0), augment=False)
    texts = _captions(phantom_bank, batch, [["dark", "sharp"]] * 60, Generator().manual_seed(0))
    assert 1 <= texts.count("") <= 15  # a tenth: what guidance needs
    for labels, text in zip(batch.labels, texts, strict=True):
        if text:
            names = [phantom_bank.vocabulary.names[int(v) - 1] for v in labels.unique() if v > 0]
            words = text.split(", ")
            assert words[: len(names) + 1] == [*names, "CT"]
            assert set(words[len(names) + 1 :]) <= {"dark", "sharp"}
    spoken = [text for text in texts if text]
    assert 0.3 < sum("dark" in text for text in spoken) / len(spoken) < 0.7


def test_a_volume_is_drawn_without_its_neighbours_and_a_flat_image_in_colour(phantom_bank):
    batch = phantom_bank.draw(4, 1, Generator().manual_seed(0), augment=False)
    own = pictures_of(phantom_bank, batch)
    assert torch.equal(own, batch.image[:, 1:2].expand(-1, 3, -1, -1))
    flat = replace(phantom_bank, mirrored=torch.ones_like(phantom_bank.mirrored))
    assert torch.equal(pictures_of(flat, batch), batch.image)


# Drawing


def test_a_seed_draws_one_scan_and_another_seed_another(base, few):
    edges, _ = asked(few)
    text = said(base, *["liver, CT"] * 4)
    noise = noise_of(base, 1, 2, 3, 4)
    drawn = base.draw(edges, text, noise, steps=2)
    assert drawn.shape == (4, 3, SIZE, SIZE)
    assert (drawn.abs() <= 1).all()
    assert torch.isfinite(drawn).all()
    torch.manual_seed(99)
    assert torch.equal(drawn, base.draw(edges, text, noise, steps=2))
    other = base.draw(edges, text, noise_of(base, 5, 6, 7, 8), steps=2)
    assert (drawn - other).abs().mean() > 1e-3


def test_a_scan_does_not_depend_on_the_batch_it_is_drawn_in(base, few):
    edges, _ = asked(few)
    texts = ["liver, CT", "spleen, CT, dark", "", "CT"]
    together = base.draw(edges, said(base, *texts), noise_of(base, 1, 2, 3, 4), steps=2, guidance=2.0)
    for k in range(4):
        alone = base.draw(edges[k : k + 1], said(base, texts[k]), noise_of(base, k + 1), steps=2, guidance=2.0)
        assert_same_up_to_rounding(alone, together[k : k + 1])


def test_one_noise_and_one_edge_map_give_one_scan(base, few):
    """Neighbours of a volume that ask for the same get the same."""
    edges, _ = asked(few)
    drawn = base.draw(edges[:1].expand(3, -1, -1, -1), said(base, *["CT"] * 3), noise_of(base, 1, 1, 1), steps=2)
    assert_same_up_to_rounding(drawn[1:], drawn[:1].expand(2, -1, -1, -1))


def test_without_guidance_there_is_no_second_pass(base, few, monkeypatch):
    edges, _ = asked(few)
    text, noise, calls = said(base, *["liver, CT"] * 4), noise_of(base, 1, 2, 3, 4), []
    steer = type(base.control).steer

    def counted(self, foundation, x_t, t, words, hint):
        calls.append(int(t[0]))
        return steer(self, foundation, x_t, t, words, hint)

    monkeypatch.setattr(type(base.control), "steer", counted)
    plain = base.draw(edges, text, noise, steps=3)
    assert len(calls) == 3
    assert calls[0] == 999
    calls.clear()
    near = base.draw(edges, text, noise, steps=3, guidance=1.0 + 1e-6)
    assert len(calls) == 6
    torch.testing.assert_close(near, plain, rtol=0, atol=1e-3)
    nothing = said(base, *[""] * 4)
    assert_same_up_to_rounding(
        base.draw(edges, text, noise, steps=3, guidance=0.0), base.draw(edges, nothing, noise, steps=3)
    )
    assert not torch.allclose(base.draw(edges, text, noise, steps=3, guidance=9.0), plain, atol=1e-4)


def test_drawing_leaves_no_gradient(base, few):
    edges, _ = asked(few)
    text = Encoded(*(v.clone().requires_grad_() for v in said(base, *["CT"] * 4).__dict__.values()))
    assert not base.draw(edges, text, noise_of(base, 1, 2, 3, 4), steps=1).requires_grad


# On disk


def test_what_is_saved_draws_the_same(base, few, tmp_path):
    base.save(tmp_path / "copy")
    again = Synthesizer.load(tmp_path / "copy")
    assert again.preset == base.preset == "tiny"
    assert again.fingerprint() == base.fingerprint()
    edges, _ = asked(few)
    text, noise = said(base, *["liver, CT"] * 4), noise_of(base, 1, 2, 3, 4)
    assert torch.equal(again.draw(edges, text, noise, steps=2), base.draw(edges, text, noise, steps=2))
    assert not any(p.requires_grad for p in again.control.parameters())
    assert {p.name for p in (tmp_path / "copy" / "edges").iterdir()} == {"config.json", "control.safetensors"}


def test_the_fingerprint_sees_every_part(base, edges_base):
    other = Synthesizer.load(edges_base)
    assert other.fingerprint() == base.fingerprint()
    for part in (other.control, other.foundation.unet, other.foundation.text_encoder):
        before = other.fingerprint()
        with torch.no_grad():
            next(iter(part.parameters())).add_(1e-3)
        assert other.fingerprint() != before


def test_a_foundation_without_edges_gets_an_untrained_control(edges_base, foundation_folder, tmp_path):
    plain = shutil.copytree(edges_base, tmp_path / "plain", ignore=shutil.ignore_patterns("edges"))
    fresh, again = (Synthesizer.load(plain, "tiny", seed=seed) for seed in (3, 3))
    assert fresh.fingerprint() == again.fingerprint() != Synthesizer.load(plain, "tiny", seed=4).fingerprint()
    assert fresh.foundation.fingerprint() == Synthesizer.load(edges_base).foundation.fingerprint()
    assert not any(conv.weight.any() for conv in fresh.control.net.controlnet_down_blocks)
    assert Synthesizer.load(foundation_folder).colours == 1  # of `pretrain` without --edges
    assert fresh.colours == 3


@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"preset": "huge"}', '{"preset": []}'])
def test_a_damaged_or_unknown_configuration_is_one_line(edges_base, tmp_path, text):
    copy = shutil.copytree(edges_base, tmp_path / "copy")
    config = copy / "edges" / "config.json"
    config.unlink() if text is None else config.write_text(text)
    known = text is not None and "huge" in text
    words = "is not known here; known: tiny, base" if known else r"edges/config\.json: .*; copy the foundation again"
    with pytest.raises(ModelError, match=words) as caught:
        Synthesizer.load(copy)
    assert "\n" not in str(caught.value)
    assert str(copy) in str(caught.value)


@pytest.mark.parametrize("damage", ["missing", "cut", "other"])
def test_weights_that_are_damaged_are_one_line(edges_base, tmp_path, damage):
    copy = shutil.copytree(edges_base, tmp_path / "copy")
    path = copy / "edges" / "control.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        shutil.copy(copy / "unet" / "diffusion_pytorch_model.safetensors", path)
    with pytest.raises(
        ModelError, match=r"weights do not fit this model|weights cannot be read|than its files hold"
    ) as caught:
        Synthesizer.load(copy)
    assert "\n" not in str(caught.value)


def test_a_foundation_trained_with_edges_says_so(edges_base):
    own = json.loads((edges_base / "delineate.json").read_text())
    assert own["codec"] == "unshuffle-rgb"
    assert "pre-trained here on 40 slices" in own["pretraining"]
    assert "then on drawing them from edges" in own["pretraining"]
    assert json.loads((edges_base / HELD_OUT).read_text())[0]["name"] == "abdomen"


# Training


def likeness(drawn, real):
    """Correlation (N, N) of what sets every drawn scan apart from the mean of those drawn, and every real one likewise."""
    a, b = (v.mean(dim=1).flatten(1) for v in (drawn, real))
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    return (a @ b.T / (a.norm(dim=1)[:, None] * b.norm(dim=1)).clamp(min=1e-3)).numpy()


@pytest.fixture(scope="module")
def overfitted(edges_base, few, tmp_path_factory):
    synthesizer = Synthesizer.load(edges_base)
    folder = tmp_path_factory.mktemp("overfitted")
    return train_synthesizer(synthesizer, few, Run(Budget(images=320), folder), edges=(scharr,), learning_rate=0.004)


@pytest.mark.slow  # that it learns
def test_scans_follow_their_edges(overfitted, few):
    """One caption and one noise for all: only the edges tell the four apart."""
    edges, real = asked(few)
    text, noise = said(overfitted, *["liver, spleen, CT"] * 4), noise_of(overfitted, 1, 1, 1, 1)
    alike = likeness(overfitted.draw(edges, text, noise, steps=4), real)
    others = alike[~np.eye(4, dtype=bool)].reshape(4, 3)
    assert (alike.diagonal() > others.max(axis=1)).all()
    assert alike.diagonal().mean() > others.mean() + 0.25
    swapped = overfitted.draw(edges[[1, 2, 3, 0]], text, noise, steps=4)
    assert (likeness(swapped, real).argmax(axis=1) == [1, 2, 3, 0]).all()
    blind = overfitted.draw(torch.zeros_like(edges), text, noise, steps=4)
    assert np.abs(likeness(blind, real)).max() < 0.05  # the comparison can fail


@pytest.mark.slow  # a whole training leaves the foundation alone
def test_a_locked_foundation_stays_as_it_is(edges_base, few, tmp_path):
    for unlocked in (False, True):
        synthesizer = Synthesizer.load(edges_base)
        before, own = synthesizer.foundation.fingerprint(), synthesizer.fingerprint()
        folder = tmp_path / str(unlocked)
        train_synthesizer(synthesizer, few, Run(Budget(images=48), folder), unlocked=unlocked)
        assert (synthesizer.foundation.fingerprint() == before) is not unlocked
        assert synthesizer.fingerprint() != own
        modules = [synthesizer.control, *synthesizer.foundation.modules.values()]
        assert not any(p.requires_grad for module in modules for p in module.parameters())
        assert not any(module.training for module in modules)


@pytest.mark.slow  # both phases across a stop, to the bit
def test_a_resumed_training_equals_an_uninterrupted_one(edges_base, few, tmp_path):
    def trained(folder, stops=()):
        """Trained with a stop after each of so many steps."""
        for stop in (*stops, None):
            synthesizer, asked = Synthesizer.load(edges_base), 0

            def should_stop(stop=stop):
                nonlocal asked
                asked += 1
                return stop is not None and asked > stop

            run = Run(Budget(images=80), folder, seed=1, should_stop=should_stop)
            if stop is None:
                return train_synthesizer(synthesizer, few, run)
            with pytest.raises(Interrupted):
                train_synthesizer(synthesizer, few, run)
        return None

    whole, resumed = trained(tmp_path / "whole"), trained(tmp_path / "resumed", (2, 4))
    assert resumed.fingerprint() == whole.fingerprint()
    other = train_synthesizer(Synthesizer.load(edges_base), few, Run(Budget(images=80), tmp_path / "other", seed=2))
    assert other.fingerprint() != whole.fingerprint()


@pytest.mark.slow  # that boundaries alone teach
@pytest.mark.parametrize("edges", [(None,), (None, scharr)])
def test_label_boundaries_alone_can_be_learnt_from(edges_base, few, tmp_path, edges):
    seen = []
    train_synthesizer(
        Synthesizer.load(edges_base),
        few,
        Run(Budget(images=16), tmp_path, on_step=lambda stage, state, spent: seen.append(stage)),
        edges=edges,
    )
    assert seen
    assert list(dict.fromkeys(seen))[-1] == "edges"


@pytest.mark.parametrize("codec", ["unshuffle", "vae"])
def test_other_codecs_can_be_taught_too(few, tmp_path, codec):
    synthesizer = Synthesizer.make(Foundation.make("tiny", codec, ["the liver"], seed=0), "tiny")
    train_synthesizer(synthesizer, few, Run(Budget(images=16), tmp_path))
    edges, _ = asked(few)
    drawn = synthesizer.draw(edges, said(synthesizer, *["CT"] * 4), noise_of(synthesizer, 1, 2, 3, 4), steps=1)
    assert drawn.shape == (4, synthesizer.colours, SIZE, SIZE)
