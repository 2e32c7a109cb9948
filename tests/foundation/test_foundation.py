import json
import re
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

from delineate.diffusion.schedule import Prediction
from delineate.errors import DelineateError, ModelError
from delineate.foundation.foundation import Foundation
from delineate.foundation.text import build_text_encoder, build_tokenizer
from delineate.jobs.pretrain import PretrainRequest, pretrain_foundation
from delineate.prompts.captions import captions
from delineate.prompts.vocabulary import Vocabulary
from delineate.scans.grid import View
from delineate.synthesis.synthesizer import Synthesizer
from delineate.systems.diffusion.progidiff import ProGiDiffConfig, build
from delineate.systems.system import Asked
from delineate.training.loop import Interrupted

VOCABULARY = Vocabulary.from_names(["liver", "spleen"], "CT")
CORPUS = [text for concept in VOCABULARY.concepts for text in captions(concept, "CT")]


def outputs(foundation):
    """What each part says to fixed inputs."""
    x = torch.randn(2, foundation.codec.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = foundation.encode_text(["the liver", "spleen"])
        noise = foundation.unet(x, torch.tensor([3, 800]), encoder_hidden_states=text.tokens).sample
        latent = foundation.vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist.mode()
    return [text.tokens, text.pooled, noise, latent]


def stable_diffusion(folder, prediction="epsilon", channels=4):
    """A tiny folder in plain Stable Diffusion layout, written by the libraries themselves."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(CORPUS, max_length=77)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 8, 8, 8),
        latent_channels=4,
        norm_num_groups=2,
    ).save_pretrained(folder / "vae")
    UNet2DConditionModel(
        sample_size=8,
        in_channels=channels,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    ).save_pretrained(folder / "unet")
    build_text_encoder(tokenizer, width=32, layers=2).save_pretrained(folder / "text_encoder")
    tokenizer.save_pretrained(str(folder / "tokenizer"))
    DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    ).save_pretrained(folder / "scheduler")
    return folder


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    return stable_diffusion(tmp_path_factory.mktemp("sd") / "sd1")


@pytest.fixture
def copied(strangers, tmp_path):
    return shutil.copytree(strangers, tmp_path / "copy")


def refused(folder, match):
    with pytest.raises(ModelError, match=match) as caught:
        Foundation.load(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("codec", ["unshuffle", "vae"])
def test_a_saved_foundation_is_the_same_foundation(codec, tmp_path):
    made = Foundation.make("tiny", codec, CORPUS, seed=0)
    if codec == "vae":
        made.codec.measure(torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(1)).round())
    made.pretraining = "a line of its own"
    made.save(tmp_path / "saved")
    again = Foundation.load(tmp_path / "saved")
    assert again.fingerprint() == made.fingerprint()
    assert all(torch.equal(a, b) for a, b in zip(outputs(again), outputs(made), strict=True))
    assert again.codec.config() == made.codec.config()
    assert (again.codec_name, again.pretraining) == (codec, "a line of its own")
    assert torch.equal(again.schedule.alphas_cumprod, made.schedule.alphas_cumprod)
    assert again.schedule.prediction is made.schedule.prediction
    suffixes = {path.suffix for path in (tmp_path / "saved").rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".txt"}  # no pickles


def test_a_seed_makes_one_foundation_and_leaves_the_global_generator_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    one, same, other = (Foundation.make("tiny", "unshuffle", CORPUS, seed=s).fingerprint() for s in (0, 0, 1))
    assert one == same != other
    assert torch.equal(torch.rand(3), expected)


def test_the_fingerprint_sees_a_single_changed_weight():
    made = Foundation.make("tiny", "unshuffle", CORPUS, seed=0)
    before = made.fingerprint()
    with torch.no_grad():
        made.vae.decoder.conv_out.bias[0] += 1e-6
    assert made.fingerprint() != before


def test_nothing_of_a_foundation_asks_for_gradients():
    made = Foundation.make("tiny", "unshuffle", CORPUS, seed=0)
    assert not any(p.requires_grad or m.training for m in made.modules.values() for p in m.parameters())


def test_a_saved_foundation_does_not_tell_where_it_lay(tmp_path):
    Foundation.make("words", "unshuffle", ["a liver"], seed=0).save(tmp_path / "a")
    Foundation.load(tmp_path / "a").save(tmp_path / "b")
    for path in (tmp_path / "b").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_plain_stable_diffusion_folder_loads_unchanged_and_serves_progidiff(prediction, tmp_path):
    folder = stable_diffusion(tmp_path / "sd", prediction)
    foundation = Foundation.load(folder)
    assert foundation.codec_name == "vae"
    assert foundation.codec.scale == pytest.approx(0.18215)  # the folder's own, for want of measured statistics
    assert foundation.schedule.prediction is Prediction(prediction)
    assert foundation.schedule.alphas_cumprod[-1].item() == pytest.approx(0.0047, abs=1e-4)
    theirs = UNet2DConditionModel.from_pretrained(folder / "unet", local_files_only=True)
    text = foundation.encode_text(["liver"])
    x = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        ours = foundation.unet(x, 10, encoder_hidden_states=text.tokens).sample
        assert torch.equal(ours, theirs(x, 10, encoder_hidden_states=text.tokens).sample)
    system = build(ProGiDiffConfig(size=64, skip_below=0.0), foundation, VOCABULARY)
    drawn = system.propose(
        system.see(View(torch.zeros(2, 3, 64, 64))), Asked(VOCABULARY.concepts[0], "liver"), 2, 0
    ).probabilities
    assert drawn.shape == (2, 2, 64, 64)
    assert torch.isfinite(drawn).all()
    assert drawn.std() > 0


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(copied, part):
    shutil.rmtree(copied / part)
    refused(copied, f"'{part}/' is missing")


@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_part_without_its_file_is_refused(copied, file):
    (copied / file).unlink()
    refused(copied, "there is no such file; copy the foundation again" if file.endswith("json") else "cannot be loaded")


def test_a_tokenizer_without_its_words_is_refused(copied):
    (copied / "tokenizer" / "tokenizer.json").unlink()
    refused(copied, "tokenizer")


@pytest.mark.parametrize("file", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_damaged_weights_are_refused(copied, file):
    data = (copied / file).read_bytes()
    (copied / file).write_bytes(data[: len(data) // 2])
    refused(copied, "cannot be loaded")


@pytest.mark.parametrize("file", ["scheduler/scheduler_config.json", "unet/config.json", "delineate.json"])
def test_json_that_is_none_is_refused(copied, file):
    (copied / file).write_text("{")
    refused(copied, f"{file}: not JSON .*; copy the foundation again")


def test_an_unknown_codec_is_refused(copied):
    (copied / "delineate.json").write_text(json.dumps({"codec": "jpeg"}))
    refused(copied, "jpeg")


def test_weights_that_are_pickles_are_not_read(copied):
    weights = copied / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    refused(copied, "cannot be loaded")


def test_a_text_encoder_of_another_width_is_refused(copied):
    tokenizer = build_tokenizer(CORPUS, max_length=77)
    build_text_encoder(tokenizer, width=64, layers=1).save_pretrained(copied / "text_encoder")
    refused(copied, "text of width 32, the text encoder gives 64")


def test_an_inpainting_model_is_refused_with_the_reason(tmp_path):
    refused(stable_diffusion(tmp_path / "inpainting", channels=9), "takes 9 channels .* inpainting")


def test_epsilon_prediction_that_reaches_zero_signal_is_refused(copied):
    path = copied / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rescale_betas_zero_snr": True}))
    refused(copied, "epsilon prediction needs signal")


# Pre-training with edges


@pytest.mark.slow  # four phases across a stop
def test_a_foundation_that_learns_edges_is_resumed_to_the_bit_and_counts_all_it_saw(phantom_dataset, tmp_path):
    """Stopped between its stages, and after all of them, when the folder could not be written."""

    def pretrained(name):
        return pretrain_foundation(
            PretrainRequest([phantom_dataset], edges=True, images=40, target=["liver"]), tmp_path / name
        )

    def stops(*given, **more):
        raise Interrupted("stopped")

    def fails(*given, **more):
        raise OSError("No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("delineate.synthesis.synthesizer.train_synthesizer", stops)
        with pytest.raises(Interrupted):
            pretrained("resumed")
    with pytest.raises(DelineateError, match="unfinished training with other settings"):  # without edges
        pretrain_foundation(PretrainRequest([phantom_dataset], images=40, target=["liver"]), tmp_path / "resumed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("delineate.synthesis.synthesizer.Synthesizer.save", fails)
        with pytest.raises(OSError, match="No space"):
            pretrained("resumed")
    assert not (tmp_path / "resumed").exists()
    for name in ("resumed", "whole"):
        pretrained(name)
        left = {p.name for p in (tmp_path / f"{name}-training").rglob("*.*")}
        assert left == {"curves.png", "log.jsonl"}  # no checkpoint
    one, other = (Synthesizer.load(tmp_path / name) for name in ("resumed", "whole"))
    assert one.fingerprint() == other.fingerprint()
    assert one.foundation.pretraining == other.foundation.pretraining
    seen = int(re.search(r"drawing them from edges, (\d+) pictures", one.foundation.pretraining)[1])
    assert 32 <= seen <= 64
    assert one.foundation.codec_name == "unshuffle-rgb"
    assert Foundation.load(tmp_path / "whole").fingerprint() == one.foundation.fingerprint()


def test_a_foundation_with_edges_serves_the_other_direction_too(edges_base, two_organ_bank):
    foundation = Foundation.load(edges_base)
    system = build(ProGiDiffConfig(size=64), foundation, two_organ_bank.vocabulary)
    image = two_organ_bank.images[:1].float() / 127.5 - 1
    with torch.no_grad():
        features = system.see(View(image))
    assert features is not None
